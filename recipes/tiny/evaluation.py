"""Grades the model and measures the dictionaries as they lie on disk, and writes the card."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel

from recipes.tiny import language
from recipes.tiny.dictionaries import D_SAE, PLACES, K, activations

QUESTIONS, QUESTION_SEED = 400, 1
ROWS, ROW_SEED = 200, 900_000


def load_model(home: Path) -> GPT2LMHeadModel:
    """Loads the model in float32."""
    return GPT2LMHeadModel.from_pretrained(home / "model", dtype=torch.float32).eval().requires_grad_(False)


def accuracy(
    model: GPT2LMHeadModel, home: Path, n: int = QUESTIONS, seed: int = QUESTION_SEED
) -> dict[str, dict[str, float]]:
    """Grades the model on `n` held-out questions of each task.

    Returns for each task: `right`, how often the likeliest among answers and foils is an answer; `mass`, the mean
    probability of the answers among answers and foils.
    """
    encode, bos = language.encoder(home / "model")
    graded: dict[str, dict[str, float]] = {}
    for task in language.TASKS:
        right = mass = 0.0
        for question in language.questions(task, n, seed):
            tokens = torch.tensor([[bos, *encode(question.prompt)]])
            p = model(tokens).logits[0, -1].softmax(-1)
            good, bad = (
                torch.tensor([encode(word) for word in words])[:, 0] for words in (question.answers, question.foils)
            )
            right += float(p[good].max() > p[bad].max())
            mass += float(p[good].sum() / (p[good].sum() + p[bad].sum()))
        graded[task] = {"right": right / n, "mass": mass / n}
    return graded


def dictionaries(
    model: GPT2LMHeadModel, home: Path, rows: int = ROWS, seed: int = ROW_SEED
) -> dict[str, dict[str, float]]:
    """Measures each dictionary on fresh text, BOS left out.

    Returns for each folder: `fvu`, the fraction of variance unexplained; `l0`, the mean number of active features;
    `fired`, how many features were ever active.
    """
    tokens = torch.tensor(language.rows(*language.encoder(home / "model"), rows, 64, seed))
    measured: dict[str, dict[str, float]] = {}
    for place, x, y in zip(PLACES, *activations(model, tokens), strict=True):
        w = {
            name: weight.float() for name, weight in load_file(home / place.folder / "sae_weights.safetensors").items()
        }
        f = (x @ w["W_enc"] + w["b_enc"]).relu()
        f = f * (f > w["threshold"]) if "threshold" in w else f * (f >= f.topk(K, dim=-1).values[:, -1:])
        error = y - f @ w["W_dec"] - w["b_dec"]
        measured[place.folder] = {
            "fvu": round(float(error.pow(2).sum() / (y - y.mean(0)).pow(2).sum()), 4),
            "l0": round(float((f > 0).sum(1).float().mean()), 1),
            "fired": int((f > 0).any(0).sum()),
        }
    return measured


def write_card(home: Path) -> str:
    """Measures everything, keeps each dictionary's numbers in its `cfg.json`, writes `README.md` and returns it."""
    model = load_model(home)
    graded, measured = accuracy(model, home), dictionaries(model, home)
    for place in PLACES:
        path = home / place.folder / "cfg.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["metadata"]["heldout"] = measured[place.folder]
        path.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    tasks = "\n".join(
        f"| {task} | {_example(task)} | {100 * g['right']:.1f} % | {100 * g['mass']:.1f} % |"
        for task, g in graded.items()
    )
    parts = {
        "residual (`blocks.L.hook_resid_post`)": "saes/blocks.{}.hook_resid_post",
        "attention out (`blocks.L.hook_attn_out`)": "saes/blocks.{}.hook_attn_out",
        "MLP out (`blocks.L.hook_mlp_out`)": "saes/blocks.{}.hook_mlp_out",
        "transcoder (`blocks.L.mlp.hook_in` to `blocks.L.hook_mlp_out`)": "transcoders/blocks.{}.hook_mlp_out",
    }
    table = "\n".join(
        f"| {part} | {layer} | {m['fvu']:.4f} | {1 - m['fvu']:.4f} | {m['l0']:.1f} | {m['fired']} |"
        for part, folder in parts.items()
        for layer in range(model.config.n_layer)
        for m in [measured[folder.format(layer)]]
    )
    card = _CARD.format(
        parameters=sum(p.numel() for p in model.parameters()), words=model.config.vocab_size, n=QUESTIONS, tasks=tasks,
        d_sae=D_SAE, k=K, rows=ROWS, table=table, tokens=config["metadata"]["training_tokens"],
    )  # fmt: skip
    (home / "README.md").write_text(card, encoding="utf-8")
    return card


def _example(task: str) -> str:
    question = language.questions(task, 1, QUESTION_SEED)[0]
    return f"{question.prompt} → {'/'.join(answer.strip() for answer in question.answers[:1])}"


_CARD = """\
# tiny: a small model of templated English, and its dictionaries

A GPT-2 of four layers (width 96, four heads, {parameters:,} parameters, context 64) for demonstrations and tests: real
circuits, no download, loaded at once. It knows {words} words. Made by the seeded recipe
`python -m recipes.tiny` in circuitsae's repository, on one CPU core. Licence: MIT, like the package.

## Words

A word is one token that carries its leading space, and a text that begins with a letter gets one, so `"Mary"` and
`" Mary"` are the same single token. A year is two tokens, `" 17"` and `"32"`. Unknown words become `<unk>`. BOS is
`<bos>`; prompts begin with it.

## Tasks

Held-out cases only ({n} questions each): two words (adjective and noun, two nouns, two names) or an event and its year
that training never showed together in that task. *Right*: the likeliest among answers and foils is an answer. *Mass*:
mean probability of the answers among answers and foils; one training sentence in twenty ends wrongly on purpose, so that
it stays below 100 %.

| task | for example | right | mass |
| --- | --- | --- | --- |
{tasks}

It has also seen pronouns, capitals and languages of twenty countries, opposites, and the order of days, months and
numbers.

## Dictionaries

SAELens' format, float16, {d_sae} features each, decoder rows of unit norm. Residual SAEs are TopK (k = {k}); the
others were trained as BatchTopK ({k} on average) and are JumpReLU. Each saw {tokens:,} activations; BOS was left out,
so they do not describe position 0 (the presets skip it). On fresh text ({rows} rows of 64 tokens):

| reads and writes | layer L | FVU | variance explained | L0 | features that fired |
| --- | --- | --- | --- | --- | --- |
{table}

Transcoders read `blocks.L.mlp.hook_in`, what the MLP really gets: the normalised residual with LayerNorm's weight and
bias applied. TransformerBridge has this hook point in transformer_lens 3.9 and 4; `blocks.L.ln2.hook_normalized` is
before weight and bias there.
"""
