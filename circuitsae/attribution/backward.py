"""The backward pass of a metric, in one piece or, over long prompts, a few layers at a time (see `model.tapes`)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.errors import InputError
from circuitsae.model.hooks import Prefix
from circuitsae.model.runs import EMBED, Readout, forward
from circuitsae.model.spliced import SplicedModel

_ENTRY = ""  # the residual stream entering a piece, among hook points


def differentiate(
    spliced: SplicedModel,
    tokens: Int[Tensor, "batch pos"],
    readout: Readout,
    wanted: Sequence[str],
    residuals: Mapping[int, Float[Tensor, "batch pos d_model"]],
    *,
    start: Prefix | None = None,
    **options: Any,
) -> dict[str, Float[Tensor, "batch pos _d"]]:
    """Returns the gradients of the summed metric at hook points written and at the embeddings, piece by piece.

    Args:
        spliced: The model.
        tokens: The prompts.
        readout: The metric.
        wanted: Hook points written, or `EMBED`. Those that the metric doesn't depend on are left out of what is returned.
        residuals: Where the tape is cut, and what enters there in this very run (see `cuts`); one piece when empty.
        start: Where the run starts.
        **options: As for `forward`; the hooks among them must do the same each time.

    Raises:
        InputError: The metric can't be differentiated.
    """
    bounds = [0 if start is None else start.layer, *sorted(residuals), spliced.n_layers]
    pieces = list(zip(bounds, bounds[1:], strict=False))
    reads = None if readout.metric is None else readout.metric.reads
    if reads is not None:  # nothing above what the metric reads has a part in it
        pieces = [(low, high) for low, high in pieces if low <= spliced.hooked.layer(reads)]
    found: dict[str, Tensor] = {}
    above: Tensor | None = None
    for low, high in reversed(pieces):
        with torch.enable_grad():
            entry = residuals[low].detach().requires_grad_() if low in residuals else None
            captured = forward(
                spliced,
                tokens,
                readout,
                leaf_embed=True,
                start=start if entry is None else Prefix(low, entry),
                until=None if high == spliced.n_layers else high,
                **options,
            )
            output, seed = (readout.of(captured).sum(), None) if above is None else (captured.residuals[high], above)
        if not output.requires_grad:
            if above is None and bounds[0] == 0:  # else what is written above the start may just not reach what is read
                raise InputError("The metric does not depend on the model in a way that can be differentiated.")
            break
        inputs = {name: captured.x_out[name] for name in wanted if name in captured.x_out}
        if EMBED in wanted and bounds[0] == 0 and entry is None:
            inputs[EMBED] = captured.embed
        if entry is not None:
            inputs[_ENTRY] = entry
        inputs = {name: x for name, x in inputs.items() if x.requires_grad}
        gradients = torch.autograd.grad(output, list(inputs.values()), seed, allow_unused=True) if inputs else ()
        here = {name: g for name, g in zip(inputs, gradients, strict=True) if g is not None}
        above = here.pop(_ENTRY, None)
        found |= here
        if above is None:
            break
    return found
