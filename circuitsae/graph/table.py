"""A graph as columns: what pruning works on, before a networkx graph is made of what is kept. No torch, no N x N array."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from circuitsae import names
from circuitsae.graph.schema import Graph
from circuitsae.kinds import NODE_KINDS

TOKEN, BIAS, FEATURE, ERROR, METRIC = range(5)

Floats = NDArray[np.float64]
Ints = NDArray[np.int32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class EdgeTable:
    """Numbered nodes and the edges among them: 24 bytes an edge.

    Attributes:
        kinds: Each node's kind, a place in `circuitsae.kinds.NODE_KINDS`; `[node]`.
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

    def rows(self) -> Iterator[tuple[int, int, float, float]]:
        """Yields each edge's source, target, contribution and weight."""
        columns = self.sources, self.targets, self.contributions, self.weights
        yield from zip(*(column.tolist() for column in columns), strict=True)

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
        kinds=np.array([NODE_KINDS.index(data["kind"]) for data in nodes], dtype=np.int8),
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
