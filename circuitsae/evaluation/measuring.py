"""`m(C)`: the metric with every node outside a circuit at its baseline, for many circuits of one task at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from circuitsae.attribution.context import Context
from circuitsae.evaluation.ranking import NodeTable, Ranking
from circuitsae.model.edits import batch_size
from circuitsae.model.masks import FeatureMask, Masks, VectorMask, run_masked

Errors = Literal["default", "keep", "remove"]
ERRORS: tuple[str, ...] = get_args(Errors)


@dataclass(frozen=True)
class Cut:
    """One circuit to measure: the first `size` nodes of a ranking.

    Attributes:
        ranking: The order.
        size: How many of its nodes are kept.
        complement: Keeps all others instead.
        without: The place of a node that is left out, `None` for none.
    """

    ranking: Ranking
    size: int
    complement: bool = False
    without: int | None = None


def measure_cuts(
    prompt: Context, table: NodeTable, cuts: Sequence[Cut], *, errors: Errors = "default", start_layer: int = 0
) -> list[float]:
    """Returns the metric of each circuit.

    Kept nodes have their live values. Cost: one forward pass a circuit, in batches, from the lowest layer on at which a
    node can be ablated.

    Args:
        prompt: The task.
        table: The nodes that the rankings order.
        cuts: The circuits.
        errors: `"default"`: error nodes are nodes like others; `"keep"`: all are kept; `"remove"`: none is.
        start_layer: Nodes of layers below are never ablated.
    """
    found: list[float] = []
    size = batch_size(prompt.spliced, prompt.run.n_tokens)
    for start in range(0, len(cuts), size):
        batch = cuts[start : start + size]
        masks = _masks(prompt, table, batch, errors, start_layer)
        with torch.no_grad():
            edited = run_masked(prompt.spliced, prompt.run, prompt.readout, masks, len(batch))
            found += prompt.readout.of(edited.captured).double().tolist()
        prompt.passes["forward"] += len(batch) * (1 - edited.start / prompt.spliced.n_layers)
        prompt.report(len(found), len(cuts), "sets of nodes")
    return found


def _masks(prompt: Context, table: NodeTable, cuts: Sequence[Cut], errors: Errors, start_layer: int) -> Masks:
    owners, device = table.owners, prompt.spliced.device
    n_tokens = prompt.run.n_tokens
    features: dict[int, FeatureMask] = {}
    vectors: dict[str, VectorMask] = {}
    complement = torch.tensor([c.complement for c in cuts], device=device)
    for owner in range(len(owners)):
        if owners.layers[owner] < start_layer:
            continue
        part = table.part(owner)
        numbers = torch.from_numpy(table.number[part]).to(device)
        kept = torch.from_numpy(np.stack([_kept(cut, part) for cut in cuts])).to(device)
        if owners.is_error(owner):
            if errors == "keep":
                continue
            hook = owners.hooks[owner - len(owners.sites)]
            applied = prompt.run.sites[hook].kept
            here = torch.ones(len(cuts), n_tokens, dtype=torch.bool, device=device)
            here[:, applied] = False if errors == "remove" else complement[:, None]
            if errors == "default" and owners.positioned:
                inside = torch.isin(numbers, applied)
                here[:, numbers[inside]] = kept[:, inside]
            elif errors == "default" and len(numbers):
                here[:, applied] = kept
            base = prompt.baseline.errors
            vectors[hook] = VectorMask(here, None if base is None else base[hook])
            continue
        width = owners.widths[owner]
        if owners.positioned:
            positions, indices = numbers // width, numbers % width
            inside = positions < n_tokens
            positions, indices, kept = positions[inside], indices[inside], kept[:, inside]
        else:
            # A feature without a position stands for itself at every position at which the dictionary is applied.
            applied = prompt.run.features[owner].kept
            positions = applied.repeat_interleave(len(numbers))
            indices = numbers.repeat(len(applied))
            kept = kept.repeat(1, len(applied))
        baselines = prompt.baseline.feature_values(owner, positions, indices)
        # What is in no task's run is no node: features that only an ablated run has are ablated, whatever is kept.
        nothing = torch.zeros_like(complement)
        features[owner] = FeatureMask(positions, indices, kept, baselines, nothing)
    return Masks(features, vectors)


def _kept(cut: Cut, part: slice) -> NDArray[np.bool_]:
    inside = cut.ranking.rank[part] < cut.size
    if cut.without is not None and part.start <= cut.without < part.stop:
        inside = inside.copy()
        inside[cut.without - part.start] = False
    return inside != cut.complement
