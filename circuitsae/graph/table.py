"""A graph as columns: what pruning works on, before a networkx graph is made of what is kept. No torch, no N x N array."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from circuitsae import names
from circuitsae.errors import InputError
from circuitsae.graph.schema import Graph

KINDS: tuple[names.Kind, ...] = ("token", "bias", "feature", "error", "metric")
TOKEN, BIAS, FEATURE, ERROR, METRIC = range(5)

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EdgeTable:
    """Numbered nodes and the edges among them: 24 bytes an edge.

    Attributes:
        kinds: Each node's kind, a place in `KINDS`; `[node]`.
        sources, targets: Node numbers; `[edge]`.
        contributions: What the source adds to the target, in units of the target's activation; `[edge]`.
        weights: Change of the metric through the edge when the source becomes its baseline; `[edge]`.
        start: How much of the metric each node is: 1 for a metric node, a logit's probability; `[node]`.
        stand_ins: The error node that takes over what a node did once it is pruned, -1 for none; `[node]`.
    """

    kinds: NDArray[np.int8]
    sources: Ints
    targets: Ints
    contributions: Floats
    weights: Floats
    start: Floats
    stand_ins: Ints

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def n_nodes(self) -> int:
        """How many nodes there are, with edges or without."""
        return len(self.kinds)

    def of_kind(self, *kinds: int) -> Mask:
        """Returns which nodes are of one of the kinds (`FEATURE`, `ERROR`, ...); `[node]`."""
        return np.isin(self.kinds, kinds)

    def with_edges(self, keep: Mask) -> "EdgeTable":
        """Returns the table with some of its edges; nodes keep their numbers."""
        return replace(
            self,
            sources=self.sources[keep],
            targets=self.targets[keep],
            contributions=self.contributions[keep],
            weights=self.weights[keep],
        )


@dataclass(frozen=True)
class Pruned:
    """What a pruner keeps of a table.

    Attributes:
        nodes: Which nodes; `[node]`.
        edges: Which edges; `[edge]`. Edges of nodes that go are never kept.
        attributes: Numbers to store on the nodes, by name; each `[node]`.
        report: What a circuit's `kept` says of the pruning.
    """

    nodes: Mask
    edges: Mask
    attributes: Mapping[str, Floats] = field(default_factory=dict[str, Floats])
    report: Mapping[str, Any] = field(default_factory=dict[str, Any])


def keep_all(table: EdgeTable) -> Pruned:
    """Returns the pruning that keeps everything."""
    return Pruned(np.ones(table.n_nodes, dtype=bool), np.ones(len(table), dtype=bool))


def strongest_inputs(targets: NDArray[Any], sizes: NDArray[Any], k: int) -> Mask:
    """Returns which edges are among the `k` largest into their target; ties fall to the earlier edge.

    Cost: one sort of the edges.
    """
    if k < 1:
        raise InputError(f"Edges kept per target are {k}; expected at least 1, or None for all.")
    order = np.lexsort((-sizes, targets))
    first = np.flatnonzero(np.r_[True, np.diff(targets[order]) != 0])
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)])) if len(order) else order
    keep = np.zeros(len(order), dtype=bool)
    keep[order[rank < k]] = True
    return keep


def merge_into_errors(table: EdgeTable, pruned: Pruned) -> tuple[EdgeTable, Pruned]:
    """Adds what pruned nodes did to the error nodes at their places.

    The error there becomes `error + sum of pruned f_i W_dec[i]`, so contributions and weights add exactly. An error node
    that takes anything over is kept, with all of its edges into kept nodes. Where a cross-layer transcoder's feature
    writes at several places, its first one's error node takes all of it. Edges that were pruned between kept nodes stay
    pruned.

    Returns:
        A table in which those edges are summed, and what is kept of it; the attribute `merged` counts the nodes that an
        error node stands in for.
    """
    lost = ~pruned.nodes & (table.stand_ins >= 0) & (table.kinds == FEATURE)
    taking = np.zeros(table.n_nodes, dtype=bool)
    taking[table.stand_ins[lost]] = True
    into_kept = pruned.nodes[table.targets]
    moved = lost[table.sources] & into_kept
    own = taking[table.sources] & into_kept
    summed = moved | own
    sources = np.where(moved, table.stand_ins[table.sources], table.sources)[summed]
    # One number per (source, target); below 2**62 for any graph that fits in memory.
    pairs = sources.astype(np.int64) * table.n_nodes + table.targets[summed]
    unique, inverse = np.unique(pairs, return_inverse=True)

    def total(values: Floats) -> Floats:
        return np.bincount(inverse, weights=values[summed], minlength=len(unique)).astype(np.float64)

    rest = ~summed
    merged = replace(
        table,
        sources=np.concatenate([table.sources[rest], (unique // table.n_nodes).astype(np.int32)]),
        targets=np.concatenate([table.targets[rest], (unique % table.n_nodes).astype(np.int32)]),
        contributions=np.concatenate([table.contributions[rest], total(table.contributions)]),
        weights=np.concatenate([table.weights[rest], total(table.weights)]),
    )
    counts = np.bincount(table.stand_ins[lost], minlength=table.n_nodes).astype(np.float64)
    kept = Pruned(
        pruned.nodes | taking,
        np.concatenate([pruned.edges[rest], np.ones(len(unique), dtype=bool)]),
        {**pruned.attributes, "merged": counts},
        {**pruned.report, "merged": int(lost.sum())},
    )
    return merged, kept


def table_of(graph: Graph) -> tuple[EdgeTable, list[str]]:
    """Returns a circuit's graph as columns, and the nodes' keys in the order of their numbers.

    Edges without a `contribution` are taken by their weight.
    """
    keys = list(graph)
    number = {key: n for n, key in enumerate(keys)}
    nodes = cast(Sequence[Mapping[str, Any]], [graph.nodes[key] for key in keys])
    edges = list(graph.edges(data=True))
    metric = [data["kind"] == names.METRIC for data in nodes]
    table = EdgeTable(
        kinds=np.array([KINDS.index(data["kind"]) for data in nodes], dtype=np.int8),
        sources=np.array([number[source] for source, _, _ in edges], dtype=np.int32),
        targets=np.array([number[target] for _, target, _ in edges], dtype=np.int32),
        contributions=np.array([data.get("contribution", data["weight"]) for _, _, data in edges], dtype=np.float64),
        weights=np.array([data["weight"] for _, _, data in edges], dtype=np.float64),
        start=np.array([data.get("probability", 1.0) if m else 0.0 for data, m in zip(nodes, metric, strict=True)]),
        stand_ins=np.full(len(keys), -1, dtype=np.int32),
    )
    places = {(data["site"], data.get("position")): n for n, data in enumerate(nodes) if data["kind"] == "error"}
    for n, data in enumerate(nodes):
        if data["kind"] == "feature":
            table.stand_ins[n] = places.get((data["site"], data.get("position")), -1)
    return table, keys
