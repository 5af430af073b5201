"""Trains the sixteen dictionaries at once: per layer SAEs on residual, attention-out and MLP-out, and a transcoder.

They are trained as TopK dictionaries (Gao et al. 2024, arXiv 2406.04093), the residual ones with `k` features at every
position, the others with `k` on average over the batch (BatchTopK, Bussmann et al. 2024, arXiv 2412.06410), which
become JumpReLU dictionaries once trained: their threshold is the mean of the least activation kept. Features that have
not fired for long learn to reconstruct what the others leave (Gao et al.'s auxiliary loss).
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2LMHeadModel

from recipes.tiny import language
from recipes.tiny.model import LENGTH, SHORT

D_SAE, K, STEPS, ROWS, RATE = 512, 16, 800, 1024, 2e-3
DEAD_AFTER, AUX_K, AUX_WEIGHT = 50, 32, 1 / 32


@dataclass(frozen=True)
class Place:
    """Where one dictionary reads and writes, and what kind it is."""

    layer: int
    part: str
    architecture: str

    @property
    def hook_in(self) -> str:
        return f"blocks.{self.layer}.mlp.hook_in" if self.part == "transcoder" else self.hook_out

    @property
    def hook_out(self) -> str:
        return (
            f"blocks.{self.layer}.{dict(resid='hook_resid_post', attn='hook_attn_out').get(self.part, 'hook_mlp_out')}"
        )

    @property
    def folder(self) -> str:
        return f"transcoders/{self.hook_out}" if self.part == "transcoder" else f"saes/{self.hook_out}"


PARTS = {"resid": "topk", "attn": "jumprelu", "mlp": "jumprelu", "transcoder": "jumprelu_transcoder"}
PLACES = [Place(layer, part, kind) for part, kind in PARTS.items() for layer in range(4)]


def activations(model: GPT2LMHeadModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what each place reads and what it writes, [place, tokens, d_model], BOS left out."""
    kept: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda module, args, out: kept.__setitem__(
            name, (out[0] if isinstance(out, tuple) else out)[:, 1:].flatten(0, 1)
        )

    modules = [
        (f"{part} {i}", module)
        for i, h in enumerate(model.transformer.h)
        for part, module in (("resid", h), ("attn", h.attn), ("mlp", h.mlp), ("normalized", h.ln_2))
    ]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    with torch.no_grad():
        model.transformer(tokens)
    for handle in handles:
        handle.remove()
    read = [kept[f"{'normalized' if p.part == 'transcoder' else p.part} {p.layer}"] for p in PLACES]
    write = [kept[f"{'mlp' if p.part == 'transcoder' else p.part} {p.layer}"] for p in PLACES]
    return torch.stack(read), torch.stack(write)


def batches(model: GPT2LMHeadModel, home: Path, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields shuffled batches of `ROWS` activations, from rows of text as the model was trained on."""
    encode, bos = language.encoder(home / "model")
    generator = torch.Generator().manual_seed(seed)
    while True:
        length = LENGTH if seed % 4 == 0 else SHORT
        rows = language.rows(encode, bos, 8 * ROWS // (length - 1) + 1, length, seed)
        read, write = activations(model, torch.tensor(rows))
        order = torch.randperm(read.shape[1], generator=generator)[: 8 * ROWS].view(8, ROWS)
        for choice in order:
            yield read[:, choice], write[:, choice]
        seed += 1


class Stack(torch.nn.Module):
    """All dictionaries side by side, on activations brought to mean 0 and variance 1 per coordinate on average."""

    def __init__(self, read: Tensor, write: Tensor) -> None:
        super().__init__()
        n, _, d = read.shape
        self.centre_in, self.centre_out = read.mean(1, keepdim=True), write.mean(1, keepdim=True)
        self.scale_in = (read - self.centre_in).pow(2).mean((1, 2), keepdim=True).sqrt()
        self.scale_out = (write - self.centre_out).pow(2).mean((1, 2), keepdim=True).sqrt()
        rows = torch.nn.functional.normalize(torch.randn(n, D_SAE, d), dim=-1)
        self.decoder = torch.nn.Parameter(rows)
        self.encoder = torch.nn.Parameter(rows.mT.contiguous().clone())
        self.encoder_bias = torch.nn.Parameter(torch.zeros(n, 1, D_SAE))
        self.decoder_bias = torch.nn.Parameter(torch.zeros(n, 1, d))
        self.threshold = torch.zeros(n, 1, 1)
        self.by_row = torch.tensor([p.architecture == "topk" for p in PLACES])
        self.silent = torch.zeros(n, D_SAE)

    def rows(self) -> Tensor:
        return torch.nn.functional.normalize(self.decoder, dim=-1)

    def loss(self, read: Tensor, write: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss summed over dictionaries, and each one's fraction of variance unexplained."""
        x, y = (read - self.centre_in) / self.scale_in, (write - self.centre_out) / self.scale_out
        before = x @ self.encoder + self.encoder_bias
        active = before.relu()
        keep = torch.empty_like(active, dtype=torch.bool)
        with torch.no_grad():
            keep[self.by_row] = active[self.by_row] >= active[self.by_row].topk(K, dim=-1).values[..., -1:]
            sample = active[~self.by_row, ::4].flatten(1)
            least = sample.kthvalue(sample.shape[1] - K * sample.shape[1] // D_SAE, dim=1).values[:, None, None]
            keep[~self.by_row] = active[~self.by_row] > least
            self.threshold[~self.by_row] += 0.02 * (least - self.threshold[~self.by_row])
            self.silent = torch.where((keep & (active > 0)).any(1), 0.0, self.silent + 1)
            dead = self.silent > DEAD_AFTER
        rows = self.rows()
        error = y - (active * keep) @ rows - self.decoder_bias
        fvu = error.pow(2).sum((1, 2)) / y.pow(2).sum((1, 2))
        loss = fvu.sum()
        if dead.any():
            hidden = torch.where(dead[:, None], active, 0.0)
            hidden = hidden * (hidden >= hidden.topk(AUX_K, dim=-1).values[..., -1:])
            left = error.detach() - hidden @ rows
            loss = loss + AUX_WEIGHT * (left.pow(2).sum((1, 2)) / error.detach().pow(2).sum((1, 2)))[dead.any(1)].sum()
        return loss, fvu.detach()

    def weights(self, i: int) -> dict[str, Tensor]:
        """Returns one dictionary's weights for activations as they are, decoder rows of unit norm, in float16."""
        centre_in, scale_in, scale_out = self.centre_in[i], self.scale_in[i], self.scale_out[i]
        made = {
            "W_enc": self.encoder[i] * scale_out / scale_in,
            "b_enc": ((self.encoder_bias[i] - centre_in / scale_in @ self.encoder[i]) * scale_out)[0],
            "W_dec": self.rows()[i],
            "b_dec": (self.decoder_bias[i] * scale_out + self.centre_out[i])[0],
        }
        if not self.by_row[i]:
            made["threshold"] = (self.threshold[i] * scale_out).expand(1, D_SAE)[0]
        return {name: w.detach().half().contiguous() for name, w in made.items()}


def train(model: GPT2LMHeadModel, home: Path, *, seed: int = 0, steps: int = STEPS) -> None:
    """Trains the dictionaries and writes them in SAELens' format below `home`."""
    torch.manual_seed(seed)
    source = batches(model, home, 500_000 + seed)
    stack = Stack(*next(source))
    optimizer = torch.optim.Adam(stack.parameters(), lr=RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / 20, 0.02 + 1.4 * (1 - s / steps))
    )
    started = time.perf_counter()
    for step in range(steps):
        loss, fvu = stack.loss(*next(source))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            dead = (stack.silent > DEAD_AFTER).sum(1)
            by_part = "  ".join(
                f"{part} {fvu[4 * i : 4 * i + 4].mean():.3f} ({dead[4 * i : 4 * i + 4].sum()} dead)"
                for i, part in enumerate(PARTS)
            )
            print(f"step {step:4d}  FVU {by_part}  {time.perf_counter() - started:4.0f} s", flush=True)  # noqa: T201
    for i, place in enumerate(PLACES):
        write_dictionary(home / place.folder, place, stack.weights(i), steps * ROWS)


def write_dictionary(folder: Path, place: Place, weights: dict[str, Tensor], tokens: int) -> None:
    """Writes `cfg.json` and `sae_weights.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    d = weights["b_dec"].shape[0]
    config = {"architecture": place.architecture, "d_in": d, "d_sae": D_SAE}
    if place.part == "transcoder":
        config["d_out"] = d
    if place.architecture == "topk":
        config |= {"k": K, "rescale_acts_by_decoder_norm": False}
    config |= {
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": "tiny",
            "sae_lens_version": "6.0.0",  # whose format this is; without it SAELens takes it for an older one
            "hook_name": place.hook_in,
            "prepend_bos": True,
            "training_tokens": tokens,
        },
    }
    if place.part == "transcoder":
        config["metadata"]["hook_name_out"] = place.hook_out
    save_file(weights, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
