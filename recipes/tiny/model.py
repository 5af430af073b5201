"""Trains the model: a GPT-2 of four layers on `language`, in a few minutes on one CPU core."""

import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from recipes.tiny import language

LENGTH, SHORT = 64, 21
"""Tokens a row: three steps of four have short rows, so that most sentences stand near the beginning, as prompts do."""
STEPS, TOKENS, RATE, WARMUP = 2000, 2048, 3e-3, 150


def train(folder: Path, *, seed: int = 0, steps: int = STEPS) -> GPT2LMHeadModel:
    """Trains the model and saves it, weights rounded to float16, beside its tokenizer in `folder`.

    Returns the model with the rounded weights in float32: what anyone who loads it will have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n_words = language.write_tokenizer(folder)
    encode, bos = language.encoder(folder)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=n_words, n_positions=LENGTH, n_embd=96, n_layer=4, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=bos, eos_token_id=bos, use_cache=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / WARMUP) * max(0.02, 1 - s / steps)
    )
    started = time.perf_counter()
    for step in range(steps):
        length = LENGTH if step % 4 == 0 else SHORT
        rows = language.rows(encode, bos, TOKENS // length, length, seed=seed * 1_000_003 + step + 1)
        tokens = torch.tensor(rows)
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.perf_counter() - started:5.0f} s", flush=True)  # noqa: T201
    model.eval().requires_grad_(False)
    weights = {
        name: w.half().contiguous() for name, w in model.state_dict().items() if name != "lm_head.weight"
    }  # tied
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.to_json_file(folder / "config.json")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model.half().float()
