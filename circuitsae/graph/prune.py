"""Pruning: which nodes and edges a circuit keeps. Plugins (group `pruners`); needs no torch.

A pruner works in two steps: `choose` picks the nodes whose edges are computed, from the effects alone; `prune` then drops
nodes and edges of the finished graph.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from circuitsae.errors import InputError

K = TypeVar("K")


class Pruner(Protocol):
    """What a pruner plugin is: a class whose instance chooses nodes by effect, then prunes the graph."""

    name: ClassVar[str]

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """Returns which candidates to compute edges for, from their |effect|."""
        ...

    def edge_threshold(self, threshold: float | None) -> float:
        """Returns the |weight| below which edges need not be stored at all."""
        ...

    def prune(
        self, graph: "nx.DiGraph[str]", node_threshold: float | None, edge_threshold: float | None
    ) -> Mapping[str, Any]:
        """Drops nodes and edges of the graph in place; returns what a circuit's `kept` reports of it."""
        ...


class TopK:
    """Keeps the `max_nodes` features of largest |effect|, and the error nodes that reach the weakest of them."""

    name: ClassVar[str] = "top-k"

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """See [Pruner][circuitsae.graph.prune.Pruner]."""
        keep = sizes >= (threshold or 0.0)
        return keep & strongest(sizes, is_feature, max_nodes)

    def edge_threshold(self, threshold: float | None) -> float:
        """See [Pruner][circuitsae.graph.prune.Pruner]."""
        return threshold or 0.0

    def prune(
        self, graph: "nx.DiGraph[str]", node_threshold: float | None, edge_threshold: float | None
    ) -> Mapping[str, Any]:
        """Nothing is left to drop: nodes were chosen by effect, edges by weight."""
        return {}


class Threshold(TopK):
    """Keeps the nodes with |effect| of at least `node_threshold` (in units of the metric), as Marks et al. do."""

    name: ClassVar[str] = "threshold"

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """See [Pruner][circuitsae.graph.prune.Pruner]."""
        if threshold is None:
            raise InputError("Pruning by 'threshold' needs node_threshold, the smallest |effect| to keep, such as 0.1.")
        return sizes >= threshold


class Influence:
    """Keeps the nodes, then the edges, that hold a share of the influence on the metric.

    With `A` the normalised absolute adjacency (row = target), a node's influence is the sum over all paths to the metric
    of the product of `A` along them. The smallest set of nodes that holds `node_threshold` (0.8) of the influence stays,
    then the smallest set of edges that holds `edge_threshold` (0.98); nodes left without a way to the metric go. Source:
    circuit-tracer's `prune_graph` (Ameisen et al. 2025). Cost: linear in the edges, no matrices.
    """

    name: ClassVar[str] = "influence"

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """See [Pruner][circuitsae.graph.prune.Pruner]; `threshold` is a share of influence, used afterwards."""
        return strongest(sizes, is_feature, max_nodes)

    def edge_threshold(self, threshold: float | None) -> float:
        """All edges are needed to compute influence."""
        return 0.0

    def prune(
        self, graph: "nx.DiGraph[str]", node_threshold: float | None, edge_threshold: float | None
    ) -> Mapping[str, Any]:
        """See [Pruner][circuitsae.graph.prune.Pruner]."""
        node_share = _share("node_threshold", 0.8 if node_threshold is None else node_threshold)
        edge_share = _share("edge_threshold", 0.98 if edge_threshold is None else edge_threshold)
        node_influence, _ = influence(graph)
        for node, value in node_influence.items():
            graph.nodes[node]["influence"] = value
        prunable = {n: v for n, v in node_influence.items() if graph.nodes[n]["kind"] in ("feature", "error")}
        kept = _holding(prunable, node_share)
        graph.remove_nodes_from([n for n in prunable if n not in kept])
        _, edge_influence = influence(graph)
        kept_edges = _holding(edge_influence, edge_share)
        graph.remove_edges_from([e for e in list(graph.edges) if e not in kept_edges])
        while True:
            dead = [
                n
                for n, data in graph.nodes(data=True)
                if data["kind"] in ("feature", "error")
                and (graph.out_degree(n) == 0 or (data["kind"] == "feature" and graph.in_degree(n) == 0))
            ]
            if not dead:
                break
            graph.remove_nodes_from(dead)
        total = sum(prunable.values())
        share = sum(v for n, v in prunable.items() if n in graph) / total if total else 1.0
        return {"influence_share": share}


def strongest(sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None) -> NDArray[np.bool_]:
    """Returns the `max_nodes` largest features, and the other nodes that are as large as the smallest of them.

    Ties at the border fall to the earlier node, so that the choice does not depend on the machine.
    """
    if max_nodes is None or int(is_feature.sum()) <= max_nodes:
        return np.ones(len(sizes), dtype=bool)
    features = np.flatnonzero(is_feature)
    order = features[np.argsort(-sizes[features], kind="stable")][:max_nodes]
    keep = np.zeros(len(sizes), dtype=bool)
    keep[order] = True
    smallest = sizes[order].min() if len(order) else np.inf
    return keep | (~is_feature & (sizes >= smallest))


def influence(graph: "nx.DiGraph[str]") -> tuple[dict[str, float], dict[tuple[str, str], float]]:
    """Returns every node's and edge's influence on the metric: 1 for the metric, shared out backwards over in-edges.

    Each target hands its influence to its sources in proportion to |contribution|; one pass in reverse topological order
    sums over all paths.
    """
    node = {n: (1.0 if data["kind"] == "metric" else 0.0) for n, data in graph.nodes(data=True)}
    edge: dict[tuple[str, str], float] = {}
    for target in reversed(list(nx.topological_sort(graph))):
        incoming = [(source, abs(float(data["contribution"]))) for source, _, data in graph.in_edges(target, data=True)]
        total = sum(size for _, size in incoming)
        for source, size in incoming:
            part = node[target] * size / total if total > 0 else 0.0
            edge[source, target] = part
            node[source] += part
    return node, edge


def _holding(values: Mapping[K, float], share: float) -> set[K]:
    """Returns the smallest set of keys, largest value first, whose values reach a share of the sum."""
    total, reached = sum(values.values()), 0.0
    kept: set[K] = set()
    for key, value in sorted(values.items(), key=lambda item: -item[1]):
        if reached >= share * total and share < 1:
            break
        kept.add(key)
        reached += value
    return kept


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(
            f"With influence pruning {name} is a share of the influence, from 0 to 1; {value:g} was given."
        )
    return value
