"""The edges of a circuit: computed batch by batch, collected as columns, made a graph when it is known which are kept."""

from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.contributions import EdgeBatch
from circuitsae.attribution.edges import EdgeEngine
from circuitsae.attribution.effects import Context, NodeEffects
from circuitsae.graph.schema import Graph
from circuitsae.graph.table import EdgeTable, Pruned
from circuitsae.model.runs import Readout, Run
from circuitsae.tracing.nodes import ChosenNodes, as_numpy
from circuitsae.tracing.options import GraphOptions


class EdgeColumns:
    """Collects batches of edges as columns."""

    def __init__(self, n_nodes: int) -> None:
        self.candidates = 0
        self.totals = np.full(n_nodes, np.nan)
        self.magnitudes = np.zeros(n_nodes)
        self._columns: list[tuple[Any, ...]] = []

    def add(self, batch: EdgeBatch, slope: float = 1.0) -> None:
        """Adds a batch; `slope` turns weights in units of its target into weights in units of the metric."""
        columns = (
            batch.sources.numpy().astype(np.int32),
            batch.targets.numpy().astype(np.int32),
            as_numpy(batch.contributions),
            as_numpy(batch.weights) * slope,
        )
        self._columns.append(columns)
        nodes = batch.target_nodes.numpy()
        self.totals[nodes] = as_numpy(batch.totals)
        self.magnitudes[nodes] = as_numpy(batch.magnitudes)
        self.candidates += batch.candidates

    def table(self, nodes: ChosenNodes) -> EdgeTable:
        """Returns the edges collected so far."""
        sources, targets, contributions, weights = (np.concatenate(c) for c in zip(*self._columns, strict=True))
        self._columns.clear()
        return EdgeTable(nodes.kinds, sources, targets, contributions, weights, nodes.start, nodes.stand_ins)

    def describe(self, graph: Graph, nodes: ChosenNodes, table: EdgeTable) -> None:
        """Stores on each target its total, and which share of the |contribution| there its kept in-edges carry."""
        kept = np.bincount(table.targets, weights=np.abs(table.contributions), minlength=table.n_nodes)
        for number in np.flatnonzero(~np.isnan(self.totals)).tolist():
            data = graph.nodes.get(nodes.keys[number])
            if data is not None:
                data["total"] = float(self.totals[number])
                if self.magnitudes[number] > 0:
                    data["explained"] = min(1.0, float(kept[number] / self.magnitudes[number]))


def compute_edges(
    context: Context, effects: NodeEffects, nodes: ChosenNodes, options: GraphOptions, threshold: float
) -> EdgeColumns:
    """Computes the in-edges of the metric nodes and of every chosen feature."""

    def engine(run: Run, readout: Readout) -> EdgeEngine:
        return EdgeEngine(
            context.spliced,
            run,
            context.nodes,
            context.baseline,
            readout,
            linearisation=options.linearisation,
            sources=nodes.sources,
            edge_threshold=threshold,
            top_k=options.top_edges,
        )

    edges = EdgeColumns(len(nodes.keys))
    main = engine(context.run, context.readout)
    if nodes.logits is None:
        edges.add(main.metric_edges(nodes.first_metric))
    for number, target in enumerate(nodes.logits or (), nodes.first_metric):
        top = engine(replace(context.run, metric=target.value), target.readout)
        edges.add(top.metric_edges(number), target.slope)
    for batch in main.feature_edges(nodes.targets(slopes_of(context, effects)), context.report):
        edges.add(batch)
    if options.error_targets:
        for batch in main.error_edges(progress=context.report):
            edges.add(batch)
    return edges


def build_graph(nodes: ChosenNodes, edges: EdgeColumns, table: EdgeTable, kept: Pruned) -> Graph:
    """Makes the graph of what is kept."""
    graph: Graph = nx.DiGraph()
    nodes.add_to(graph, table, kept)
    table = table.with_edges(kept.edges)
    keys = nodes.keys
    graph.add_edges_from(
        (keys[source], keys[target], {"contribution": contribution, "weight": weight})
        for source, target, contribution, weight in table.rows()
    )
    edges.describe(graph, nodes, table)
    if names.BIAS in graph and graph.out_degree(names.BIAS) == 0:
        graph.remove_node(names.BIAS)
    return graph


def slopes_of(context: Context, effects: NodeEffects) -> list[Tensor]:
    """Returns the metric's derivative by each feature; a method that gives none costs one more pass each way."""
    slopes = [block.slopes for block in effects.features()]
    if any(s is None for s in slopes):
        slopes = [block.slopes for block in context.effects(*context.gradients()).features()]
    return [s for s in slopes if s is not None]
