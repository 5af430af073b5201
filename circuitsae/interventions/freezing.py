"""Holding parts of a run at what they are on the clean one: attention patterns, normalisation scales, whole layers."""

import torch
from torch import Tensor

from circuitsae.errors import UnknownNameError
from circuitsae.model.hooks import Hook
from circuitsae.model.runs import Run
from circuitsae.model.spliced import SplicedModel

WAYS = ("free", "frozen")


def frozen_hooks(spliced: SplicedModel, run: Run, *, attention: str, normalisation: str) -> list[tuple[str, Hook]]:
    """Returns hooks that hold attention patterns and normalisation scales at the clean run's.

    Cost: one forward pass if anything is frozen.

    Raises:
        UnknownNameError: `attention` or `normalisation` is neither `"free"` nor `"frozen"`.
    """
    for what, way in (("attention", attention), ("normalisation", normalisation)):
        if way not in WAYS:
            raise UnknownNameError(f"way to treat {what}", way, WAYS)
    layers = range(spliced.n_layers)
    points: list[str] = []
    if attention == "frozen":
        points += [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    if normalisation == "frozen":
        norms = ("ln1", "ln2", "ln1_post", "ln2_post")
        points += [f"blocks.{layer}.{ln}.hook_scale" for layer in layers for ln in norms]
        points.append("ln_final.hook_scale")
    return clean_hooks(spliced, run, [name for name in points if spliced.hooked.has(name)])


def layer_outputs(spliced: SplicedModel) -> list[str]:
    """Returns the hook points where attention and MLP layers write to the residual stream."""
    points = [f"blocks.{layer}.hook_{part}_out" for layer in range(spliced.n_layers) for part in ("attn", "mlp")]
    return [name for name in points if spliced.hooked.has(name)]


def clean_hooks(spliced: SplicedModel, run: Run, points: list[str]) -> list[tuple[str, Hook]]:
    """Returns hooks that put the clean run's values back at these hook points; one forward pass if there are any."""
    if not points:
        return []
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def hook(x: Tensor) -> None:
            kept[name] = x.detach()

        return hook

    with torch.no_grad():
        spliced.hooked.forward(run.tokens[None], [(name, keep(name)) for name in points], logits_at=[run.n_tokens - 1])
    return [(name, lambda x, name=name: kept[name].to(x.dtype).expand_as(x)) for name in points]
