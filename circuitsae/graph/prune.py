"""Pruning: which nodes and edges a circuit keeps. Plugins (group `pruners`); needs no torch.

A pruner works in two steps: `choose` picks the nodes whose edges are computed, from the effects alone; `prune` then says
which nodes and edges stay of the table of those edges, before a graph is made of it.
"""

from dataclasses import replace
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from circuitsae import registry
from circuitsae.errors import InputError
from circuitsae.graph.influence import prune_by_influence
from circuitsae.graph.merging import merge_into_errors, merged_sums
from circuitsae.graph.schema import Graph, known_effect
from circuitsae.graph.table import (
    BIAS,
    ERROR,
    FEATURE,
    EdgeTable,
    Floats,
    Pruned,
    keep_all,
    table_of,
)


@runtime_checkable
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


def prune_graph(
    graph: Graph,
    name: str,
    max_nodes: int | None = None,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    merge_pruned: bool = False,
) -> None:
    """Prunes a circuit's graph in place; see `Circuit.pruned`.

    Raises:
        UnknownNameError: There is no such pruner.
        InputError: A threshold out of range.
    """
    if max_nodes is not None and max_nodes < 1:
        raise InputError(f"max_nodes is {max_nodes}; expected at least 1, or None for all.")
    pruner: Pruner = registry.get("pruners", name)()
    whole, keys = table_of(graph)
    effects = np.array([known_effect(graph.nodes[key]) or 0.0 for key in keys])
    candidates = whole.of_kind(FEATURE, ERROR)
    chosen = np.ones(len(keys), dtype=bool)
    is_feature = whole.kinds[candidates] == FEATURE
    chosen[candidates] = pruner.choose(np.abs(effects[candidates]), is_feature, max_nodes, node_threshold)
    large = (np.abs(whole.weights) >= pruner.edge_threshold(edge_threshold)) | (whole.kinds[whole.sources] == BIAS)
    table = whole.with_edges(chosen[whole.sources] & chosen[whole.targets] & large)
    table.stand_ins[~chosen[table.stand_ins]] = -1
    kept = pruner.prune(table, node_threshold, edge_threshold)
    kept = replace(kept, nodes=kept.nodes & chosen)
    if merge_pruned:
        table, kept = merge_into_errors(table, kept)
    _apply(graph, keys, whole, table, kept, effects)
    record = {"max_nodes": max_nodes, "node_threshold": node_threshold, "edge_threshold": edge_threshold}
    graph.graph["prune"] = name
    graph.graph.pop("faithfulness", None)  # that was of all its nodes
    graph.graph["options"] = {**graph.graph.get("options", {}), **record, "merge_pruned": merge_pruned}
    was = graph.graph.get("kept", {})
    graph.graph["kept"] = {
        **{name: value for name, value in was.items() if not name.endswith(("_share", "_score"))},
        "nodes": graph.number_of_nodes(),
        "features": int((kept.nodes & (table.kinds == FEATURE)).sum()),
        "edges": graph.number_of_edges(),
        **kept.report,
    }


def _apply(graph: Graph, keys: list[str], whole: EdgeTable, table: EdgeTable, kept: Pruned, effects: Floats) -> None:
    """Leaves in a graph what is kept of its table, with the numbers that pruning gives to nodes."""
    before = np.bincount(whole.targets, weights=np.abs(whole.contributions), minlength=len(keys))
    table = table.with_edges(kept.edges)
    after = np.bincount(table.targets, weights=np.abs(table.contributions), minlength=len(keys))
    known = {(source, target): data for source, target, data in graph.edges(data=True)}
    graph.remove_edges_from(list(graph.edges))
    for source, target, contribution, weight in table.rows():
        ends = keys[source], keys[target]
        data = known.get(ends, {})
        if "contribution" in data or not data:
            data["contribution"] = contribution
        graph.add_edge(*ends, **{**data, "weight": weight})
    merged = kept.attributes.get("merged")
    moved = None if merged is None else merged_sums(table, kept, effects)
    for number, key in enumerate(keys):
        if not kept.nodes[number]:
            graph.remove_node(key)
            continue
        data = graph.nodes[key]
        if "explained" in data and before[number] > 0:
            data["explained"] = min(1.0, float(data["explained"] * after[number] / before[number]))
        for name, values in kept.attributes.items():
            if name != "merged":
                data[name] = float(values[number])
        if merged is not None and moved is not None and merged[number] > 0:
            if "effect" in data:
                data["effect"] = (known_effect(data) or 0.0) + float(moved[number])
            for name in ("activation", "baseline", "measured_effect"):
                data.pop(name, None)
            data["merged"] = int(merged[number]) + int(data.get("merged", 0))


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
