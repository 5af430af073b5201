"""Holding parts of a run at what they are on the clean one: attention patterns, normalisation scales, whole layers."""

from collections.abc import Container

import torch
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.errors import SpliceError, UnknownNameError
from circuitsae.model import points
from circuitsae.model.checks import require
from circuitsae.model.hooks import Constant, Hook

WAYS = ("free", "frozen")


def frozen_hooks(context: Context, *, attention: str, normalisation: str) -> list[tuple[str, Hook]]:
    """Returns hooks that hold attention patterns and normalisation scales at the clean run's.

    Cost: one forward pass if anything is frozen that was not before.

    Raises:
        UnknownNameError: `attention` or `normalisation` is neither `"free"` nor `"frozen"`.
        SpliceError: This model does not let them be held; the message names the hook point.
    """
    for what, way in (("attention", attention), ("normalisation", normalisation)):
        if way not in WAYS:
            raise UnknownNameError(f"way to treat {what}", way, WAYS)
    spliced, names = context.spliced, list[str]()
    if attention == "frozen":
        require(spliced, "patterns")
        names += points.patterns(spliced.hooked)
    if normalisation == "frozen":
        require(spliced, "scales")
        names += points.scales(spliced.hooked)
    return clean_hooks(context, names)


def held_layers(context: Context, but: Container[str]) -> list[tuple[str, Hook]]:
    """Returns hooks that hold what attention and MLP layers write to the residual stream at the clean run's.

    Args:
        context: The task on the model.
        but: Those that stay as they are.

    Raises:
        SpliceError: Something else writes there.
    """
    require(context.spliced, "layers")
    return clean_hooks(context, [name for name in points.layer_outputs(context.spliced.hooked) if name not in but])


def clean_hooks(context: Context, names: list[str]) -> list[tuple[str, Hook]]:
    """Returns hooks that put the clean run's values back at these hook points; one forward pass if there are any."""
    if not names:
        return []

    def values() -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Hook:
            def hook(x: Tensor) -> Tensor:
                if name in kept and not torch.equal(kept[name], x):
                    raise SpliceError(
                        f"The hook point {name!r} fires several times in one pass of {context.spliced.hooked.family}, with "
                        "values that differ, so none can be put back; leave attention and normalisation free."
                    )
                kept[name] = x.detach()
                return x

            return Constant(hook)

        run, hooks = context.run, [(name, keep(name)) for name in names]
        with torch.no_grad():
            context.spliced.hooked.forward(run.tokens[None], hooks, logits_at=[run.n_tokens - 1])
        return kept

    kept = context.once(tuple(names), values)

    def put_back(name: str) -> Hook:
        def hook(x: Tensor) -> Tensor:
            value = kept[name].to(x.dtype)
            if len(value) > 1:  # the positions of all prompts lie in one row (OPT)
                value = value.repeat(len(x) // len(value), *[1] * (x.ndim - 1))
            return value.expand_as(x)

        return Constant(hook)

    return [(name, put_back(name)) for name in names]
