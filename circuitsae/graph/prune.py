"""Pruning: which nodes and edges a circuit keeps. Plugins (group `pruners`); needs no torch.

A pruner works in two steps: `choose` picks the nodes whose edges are computed, from the effects alone; `prune` then says
which nodes and edges stay of the table of those edges, before a graph is made of it.
"""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from circuitsae.errors import InputError
from circuitsae.graph.influence import prune_by_influence
from circuitsae.graph.table import EdgeTable, Pruned, keep_all


class Pruner(Protocol):
    """What a pruner plugin is: a class whose instance chooses nodes by effect, then prunes the table of their edges."""

    name: ClassVar[str]

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """Returns which candidates to compute edges for, from their |effect|."""
        ...

    def edge_threshold(self, threshold: float | None) -> float:
        """Returns the |weight| below which edges need not be stored at all."""
        ...

    def prune(self, table: EdgeTable, node_threshold: float | None, edge_threshold: float | None) -> Pruned:
        """Returns which nodes and edges stay, numbers to store on the nodes, and what a circuit's `kept` reports."""
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

    def prune(self, table: EdgeTable, node_threshold: float | None, edge_threshold: float | None) -> Pruned:
        """Nothing is left to drop: nodes were chosen by effect, edges by weight."""
        return keep_all(table)


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
    of the product of `A` along them. The smallest set of nodes that holds `node_threshold` (0.8) of the influence stays
    (tokens always do), then the smallest set of edges that holds `edge_threshold` (0.98) of what is left; then nodes
    that no kept edge leaves go, and features that none enters, until there are none. Edges are computed for the
    `max_nodes` features of largest |effect| and for every error node. Source: circuit-tracer's `prune_graph` (Ameisen et
    al. 2025), whose influence, masks and scores a test reproduces. Cost: linear in the edges, no matrices.
    """

    name: ClassVar[str] = "influence"

    def choose(
        self, sizes: NDArray[np.float64], is_feature: NDArray[np.bool_], max_nodes: int | None, threshold: float | None
    ) -> NDArray[np.bool_]:
        """See [Pruner][circuitsae.graph.prune.Pruner]; `threshold` is a share of influence, used afterwards."""
        return strongest(sizes, is_feature, max_nodes) | ~is_feature

    def edge_threshold(self, threshold: float | None) -> float:
        """All edges are needed to compute influence."""
        return 0.0

    def prune(self, table: EdgeTable, node_threshold: float | None, edge_threshold: float | None) -> Pruned:
        """See [Pruner][circuitsae.graph.prune.Pruner]."""
        return prune_by_influence(
            table,
            _share("node_threshold", 0.8 if node_threshold is None else node_threshold),
            _share("edge_threshold", 0.98 if edge_threshold is None else edge_threshold),
        )


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


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise InputError(
            f"With influence pruning {name} is a share of the influence, from 0 to 1; {value:g} was given."
        )
    return value
