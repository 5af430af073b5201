"""Holding parts of a run at what they are on the clean one: attention patterns, normalisation scales, whole layers."""

import torch
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.errors import UnknownNameError
from circuitsae.model.hooks import Hook
from circuitsae.model.spliced import SplicedModel

WAYS = ("free", "frozen")


def frozen_hooks(context: Context, *, attention: str, normalisation: str) -> list[tuple[str, Hook]]:
    """Returns hooks that hold attention patterns and normalisation scales at the clean run's.

    Cost: one forward pass if anything is frozen that was not before.

    Raises:
        UnknownNameError: `attention` or `normalisation` is neither `"free"` nor `"frozen"`.
    """
    for what, way in (("attention", attention), ("normalisation", normalisation)):
        if way not in WAYS:
            raise UnknownNameError(f"way to treat {what}", way, WAYS)
    spliced = context.spliced
    layers = range(spliced.n_layers)
    points: list[str] = []
    if attention == "frozen":
        points += [f"blocks.{layer}.attn.hook_pattern" for layer in layers]
    if normalisation == "frozen":
        norms = ("ln1", "ln2", "ln1_post", "ln2_post")
        points += [f"blocks.{layer}.{ln}.hook_scale" for layer in layers for ln in norms]
        points.append("ln_final.hook_scale")
    return clean_hooks(context, [name for name in points if spliced.hooked.has(name)])


def layer_outputs(spliced: SplicedModel) -> list[str]:
    """Returns the hook points where attention and MLP layers write to the residual stream."""
    points = [f"blocks.{layer}.hook_{part}_out" for layer in range(spliced.n_layers) for part in ("attn", "mlp")]
    return [name for name in points if spliced.hooked.has(name)]


def clean_hooks(context: Context, points: list[str]) -> list[tuple[str, Hook]]:
    """Returns hooks that put the clean run's values back at these hook points; one forward pass if there are any."""
    if not points:
        return []

    def values() -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Hook:
            def hook(x: Tensor) -> None:
                kept[name] = x.detach()

            return hook

        run, hooks = context.run, [(name, keep(name)) for name in points]
        with torch.no_grad():
            context.spliced.hooked.forward(run.tokens[None], hooks, logits_at=[run.n_tokens - 1])
        return kept

    kept = context.once(tuple(points), values)
    return [(name, lambda x, name=name: kept[name].to(x.dtype).expand_as(x)) for name in points]
