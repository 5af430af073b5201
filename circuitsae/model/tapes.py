"""How long a tape of autograd may get: where one over a long prompt is cut.

The tape of a whole pass holds every layer's attention patterns, heads x length^2 numbers each, and its MLP's inside. Where
that is more than a byte budget, only the residual stream is kept where the tape is cut, and on the way back each piece is
run again when its turn comes: one piece's tape is all there is at a time, for one more forward pass.
"""

from collections.abc import Iterable

from circuitsae.model.spliced import SplicedModel

TAPE = 512 * 2**20
"""Bytes that one tape may hold in any case."""


def budget(spliced: SplicedModel) -> int:
    """Returns how many bytes one tape may hold: `TAPE`, or a quarter of the weights, beside which that is little.

    A longer one is cut. This decides for node effects and for edges alike.
    """
    return max(TAPE, spliced.hooked.weight_bytes // 4)


def layer_bytes(spliced: SplicedModel, n_tokens: int, batch: int = 1, *, mlp: bool = True) -> int:
    """Returns about how many bytes one layer leaves on a tape: a pattern, and some copies of what each position has.

    `mlp` says whether the MLP is on the tape; one whose output is replaced by a leaf is not.
    """
    d_mlp, heads = spliced.hooked.d_mlp, spliced.hooked.n_heads
    floats = batch * n_tokens * (5 * d_mlp * mlp + 12 * spliced.d_model + heads * n_tokens)
    return floats * spliced.hooked.dtype.itemsize


def is_long(spliced: SplicedModel, n_tokens: int) -> bool:
    """Whether a tape over the whole model would be cut."""
    return spliced.n_layers * layer_bytes(spliced, n_tokens) > budget(spliced)


def cuts(
    spliced: SplicedModel,
    n_tokens: int,
    first: int = 0,
    last: int | None = None,
    *,
    batch: int = 1,
    joined: Iterable[int] = (),
) -> list[int]:
    """Returns the layers before which a tape is cut that starts at layer `first` and ends below layer `last`.

    Args:
        spliced: The model.
        n_tokens: The prompt's length.
        first, last: The layers on the tape; to the end of the model when `None`.
        batch: How many prompts.
        joined: Dictionaries through which gradients flow: no cut comes between where they read and write.
    """
    last = spliced.n_layers if last is None else last
    step = max(1, budget(spliced) // layer_bytes(spliced, n_tokens, batch))
    if last - first <= step:
        return []
    layer = spliced.hooked.layer
    spans = [
        (layer(spliced.reads[number]), max(layer(hook) for hook in spliced.dictionaries[number].hook_outs))
        for number in joined
    ]
    found: list[int] = []
    for at in range(first + 1, last):
        if at - (found or [first])[-1] >= step and not any(low < at <= high for low, high in spans):
            found.append(at)
    return found
