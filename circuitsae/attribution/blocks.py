"""How targets are put together into blocks: by position, and so many as a byte budget holds."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitsae.attribution.contributions import Part
from circuitsae.model.spliced import SplicedModel

# Bytes that one block of targets may hold at a time.
BUDGET = 96 * 2**20
# Positions of one swept block are at least this share of the block's longest, so that little of it is empty;
FILL = 0.8
# but a block of fewer rows than this is too small for the processor to be at its best.
_FEW_ROWS = 512
# What a pass costs whatever its length, in tokens; and the length at which attention's share is as much as the rest's.
_CALL, _ATTENTION = 256, 2048


def products_together(spliced: SplicedModel, n_tokens: int, n_leaves: int, budget: int = BUDGET) -> int:
    """Returns how many vector-Jacobian products through a prompt are batched within a byte budget."""
    d_mlp, heads = spliced.hooked.d_mlp, spliced.hooked.n_heads
    floats = n_tokens * (4 * d_mlp + (6 + 2 * n_leaves) * spliced.d_model + 3 * heads * n_tokens)
    return max(1, budget // (4 * floats))


def position_buckets(positions: Int[Tensor, "target"], n_tokens: int) -> list[tuple[int, int]]:
    """Splits target positions into ranges `[low, high)`, each with a forward pass of `high` tokens of its own.

    Nothing after a target's position acts on it, so products for early targets need only a short prompt. The ranges are
    those for which the passes and products together cost least; a short prompt is one.
    """
    if n_tokens <= 16:
        return [(0, n_tokens)]
    counts = torch.bincount(positions)
    ends = counts.nonzero().flatten().double().cpu().numpy() + 1
    below = np.concatenate([[0.0], counts[counts > 0].double().cumsum(0).cpu().numpy()])
    each = _CALL + ends + ends**2 / _ATTENTION
    least, came_from = np.zeros(len(ends) + 1), np.zeros(len(ends), dtype=int)
    for n in range(len(ends)):  # the cheapest way to have ranges end at the first n + 1 ends
        cost = least[: n + 1] + (1 + below[n + 1] - below[: n + 1]) * each[n]
        came_from[n] = cost.argmin()
        least[n + 1] = cost[came_from[n]]
    found: list[tuple[int, int]] = []
    n = len(ends)
    while n > 0:
        start = int(came_from[n - 1])
        found.append((int(ends[start - 1]) if start else 0, int(ends[n - 1])))
        n = start
    return found[::-1]


def position_blocks(positions: Int[Tensor, "target"], room: int) -> list[tuple[int, int]]:
    """Splits target positions into ranges `[low, high)` for `Chain.sweep`, the last positions first.

    A range is narrow enough that its targets fill most of a block `high` positions long; one with very few targets takes
    in the ones before as well, while `room` positions in all are not exceeded.
    """
    counts = torch.bincount(positions).tolist()
    blocks: list[tuple[int, int]] = []
    high = len(counts)
    while high > 0:
        if not counts[high - 1]:
            high -= 1
            continue
        low = min(high - 1, int(high * FILL))
        while low > 0 and sum(counts[low:high]) * high < min(room, _FEW_ROWS):
            low -= 1
        blocks.append((low, high))
        high = low
    return blocks


def split(parts: Sequence[Part], room: int) -> Iterator[list[Part]]:
    """Cuts a list of targets into blocks of at most `room`, in order."""
    block: list[Part] = []
    left = room
    for target, chosen in parts:
        while len(chosen):
            block.append((target, chosen[:left]))
            left -= len(block[-1][1])
            chosen = chosen[len(block[-1][1]) :]
            if not left:
                yield block
                block, left = [], room
    if block:
        yield block
