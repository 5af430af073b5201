"""Which nodes there are over a set of tasks, how strong they are, and what they are predicted to do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from circuitsae.attribution.context import Context
from circuitsae.attribution.effects import NodeEffects, run_method
from circuitsae.evaluation.prompts import Prompts
from circuitsae.evaluation.ranking import NodeTable, Numbers, Owners, Reals


@dataclass(frozen=True)
class Surveyed:
    """One task's nodes. Where nodes have no position, those of one feature are added up.

    Attributes:
        owner, number: Which they are, see `NodeTable`.
        effect: Predicted change of the metric when the node is set to its baseline; NaN where that was not asked for.
        size: How much the node writes: the norm of a feature's activation times its decoder row, of an error vector.
    """

    owner: Numbers
    number: Numbers
    effect: Reals
    size: Reals


@dataclass(frozen=True)
class Survey:
    """All tasks' nodes, in one table.

    Attributes:
        table: The nodes that are active, or not at their baseline, in some task.
        effect: By place, the mean predicted effect over the tasks (0 where a node is not active).
        size: Likewise the mean of how much each writes.
    """

    table: NodeTable
    effect: Reals
    size: Reals


def survey_prompt(prompts: Prompts, number: int, owners: Owners, method: str | None, error_nodes: bool) -> Surveyed:
    """Surveys one task. Cost: the method's passes (without one, those of the clean run and its baseline)."""
    if method is None:
        prompt, effects = prompts.open(number), None
    else:
        prompt = prompts.open(number, method)
        effects = run_method(prompt)
    parts: list[tuple[Numbers, Numbers, Reals, Reals]] = []
    for owner in range(len(owners)):
        if owners.is_error(owner) and not error_nodes:
            continue
        positions, indices, size, effect = _nodes(prompt, owners, owner, effects)
        numbers = owners.number(owner, positions, indices)
        unique, inverse = np.unique(numbers, return_inverse=True)
        parts.append(
            (
                np.full(len(unique), owner, np.int64),
                unique,
                np.bincount(inverse, effect, len(unique)).astype(np.float64),
                np.bincount(inverse, size, len(unique)).astype(np.float64),
            )
        )
    prompts.close(number, prompt)
    owner, number_, effect, size = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Surveyed(owner, number_, effect, size)


def summarise(owners: Owners, found: Sequence[Surveyed], more: Iterable[tuple[Numbers, Numbers]] = ()) -> Survey:
    """Returns the means over the tasks, on the table of all their nodes and `more`."""
    table = NodeTable.union(owners, [*((f.owner, f.number) for f in found), *more])
    effect, size = np.zeros(len(table)), np.zeros(len(table))
    for one in found:  # in the tasks' order: the sums are the same in every run
        places = table.find(one.owner, one.number)
        effect[places] += one.effect
        size[places] += one.size
    return Survey(table, effect / len(found), size / len(found))


def _nodes(
    prompt: Context, owners: Owners, owner: int, effects: NodeEffects | None
) -> tuple[Numbers, Numbers, Reals, Reals]:
    """Returns positions, indices, sizes and effects of an owner's nodes at the positions that are not skipped."""
    if owners.is_error(owner):
        hook = owners.hooks[owner - len(owners.sites)]
        positions = prompt.run.sites[hook].kept
        size = prompt.run.sites[hook].error[positions].norm(dim=-1)
        indices = torch.zeros_like(positions)
        block = None if effects is None else effects.errors()[owner - len(owners.sites)].effects[positions]
    else:
        nodes = prompt.nodes[owner]
        positions, indices = nodes.positions, nodes.indices
        size = nodes.activations.abs().double() * nodes.decoders.squares().sqrt()[nodes.inverse]
        if nodes.scale is not None:
            size = size * nodes.scale[positions].abs()
        block = None if effects is None else effects.features()[owner].effects
    nothing = np.full(len(positions), np.nan)
    return (
        positions.cpu().numpy().astype(np.int64),
        indices.cpu().numpy().astype(np.int64),
        size.double().cpu().numpy(),
        nothing if block is None else block.detach().double().cpu().numpy(),
    )
