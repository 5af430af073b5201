"""Where the factors of an MLP's product are, tried on the loaded model.

A rule about factors rests on what hook points promise: that all that an MLP gives is computed from `hook_pre` and, where it
is gated, `hook_pre_linear`, element by element, as `f(pre) * linear`. A mixture of experts has hook points of the same names
that are something else (its input and its output), so the promise is tried before a number rests on it.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from circuitsae.errors import InputError
from circuitsae.model import points
from circuitsae.model.hooks import Hook, Watch
from circuitsae.model.probes import Probe, reaches, tolerance, vjp
from circuitsae.model.runs import Readout, forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.trials import some_tokens

_held: "weakref.WeakKeyDictionary[Any, list[points.Mlp]]" = weakref.WeakKeyDictionary()


def factors(spliced: SplicedModel) -> list[points.Mlp]:
    """Returns the factors of every layer that has an MLP. Cost, once a model: one forward pass over a few tokens.

    Raises:
        InputError: An MLP has no hook points inside, or what it gives is not computed from them alone, element by element,
            as in mixtures of experts.
    """
    named = _named(spliced)
    if _held.get(spliced.model) != named:
        _try(spliced, named)
        _held[spliced.model] = named
    return named


def _named(spliced: SplicedModel) -> list[points.Mlp]:
    found = [points.mlp(spliced.hooked, layer) for layer in range(spliced.n_layers)]
    for mlp in filter(None, found):
        if not (spliced.hooked.has(mlp.pre) and spliced.hooked.has(mlp.post)):
            raise InputError(
                f"The MLP of layer {mlp.layer} has no hook points inside ({mlp.pre} and {mlp.post}), so no rule can be "
                f"applied to what it multiplies. {_INSTEAD}"
            )
    return [*filter(None, found)]


_INSTEAD = "relp leaves its rule out with mlps=False, gim with gate=1 and up=1; attribution-patching has no such rule, and auto does without it."


def _try(spliced: SplicedModel, named: list[points.Mlp]) -> None:
    """Tries, with leaves at the factors, that what an MLP gives comes from them, is diagonal, and linear in `linear`."""
    tape: dict[str, Tensor] = {}

    def leaf(name: str) -> Callable[[Tensor], Tensor]:
        def put(x: Tensor) -> Tensor:
            tape[name] = x.detach().requires_grad_()
            return tape[name]

        return put

    inputs = [name for mlp in named for name in (mlp.pre, mlp.linear) if name is not None]
    ends = [name for mlp in named for name in (mlp.post, mlp.out)]
    hooks: list[tuple[str, Hook]] = [(name, leaf(name)) for name in inputs]
    hooks += [(name, Watch(tape, name)) for name in ends if spliced.hooked.has(name)]
    tokens = some_tokens(spliced)
    with torch.enable_grad():
        embed = forward(spliced, tokens, Readout(None, tokens.shape[1]), extra=hooks, leaf_embed=True).embed
    probe = Probe(tolerance(spliced.hooked.dtype))
    for mlp in named:
        post, end = tape.get(mlp.post), tape.get(mlp.out)
        mine = [tape[name] for name in (mlp.pre, mlp.linear) if name is not None]
        if (
            post is None
            or reaches(embed, post)
            or (end is not None and reaches(embed, end))
            or not all(_is_diagonal(probe, post, x) for x in mine)
            or (mlp.linear is not None and not _is_factor(probe, post, tape[mlp.linear]))
        ):
            raise InputError(
                f"What the MLP of layer {mlp.layer} gives is not computed from {' and '.join(filter(None, mlp[1:3]))} alone, "
                "element by element (a mixture of experts, say), so no rule can be applied to what it multiplies. "
                f"{_INSTEAD}"
            )


def _is_diagonal(probe: Probe, y: Tensor, x: Tensor) -> bool:
    """Whether each element of y depends on that element of x alone: `J^T (s r) = s J^T r`."""
    r, s = probe.random(y), probe.random(y)
    plain, scaled = vjp(y, x, r), vjp(y, x, s * r)
    return y.shape == x.shape and plain is not None and scaled is not None and probe.agrees(scaled, s * plain)


def _is_factor(probe: Probe, y: Tensor, x: Tensor) -> bool:
    """Whether y is x times something that does not depend on x."""
    slope = vjp(y, x, torch.ones_like(y))
    return slope is not None and probe.agrees(slope * x.detach(), y.detach())
