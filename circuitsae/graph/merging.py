"""Pruned mass that is not lost but counted as unexplained: what dropped features did goes to error nodes."""

from dataclasses import replace

import numpy as np

from circuitsae.graph.influence import graph_scores
from circuitsae.graph.table import FEATURE, EdgeTable, Floats, Pruned


def merge_into_errors(table: EdgeTable, pruned: Pruned) -> tuple[EdgeTable, Pruned]:
    """Adds what pruned nodes did to the error nodes at their places.

    The error there becomes `error + sum of pruned f_i W_dec[i]`, so contributions and weights add exactly. An error node
    that takes anything over is kept, with all of its edges into kept nodes. Where a cross-layer transcoder's feature
    writes at several places, its first one's error node takes all of it. Edges that were pruned between kept nodes stay
    pruned.

    Returns:
        A table in which those edges are summed, and what is kept of it, its scores computed anew; the attribute `merged`
        counts the nodes that an error node stands in for.
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
    edges = np.concatenate([pruned.edges[rest], np.ones(len(unique), dtype=bool)])
    scores = graph_scores(merged.with_edges(edges))
    kept = Pruned(
        pruned.nodes | taking,
        edges,
        {**pruned.attributes, "merged": counts},
        {
            **pruned.report,
            "merged": int(lost.sum()),
            "pruned_replacement_score": scores.replacement,
            "pruned_completeness_score": scores.completeness,
        },
    )
    return merged, kept


def merged_sums(table: EdgeTable, kept: Pruned, values: Floats) -> Floats:
    """Returns, for each error node, the sum of a number over the nodes that it stands in for. `[node]`"""
    lost = ~kept.nodes & (table.stand_ins >= 0) & (table.kinds == FEATURE)
    return np.bincount(table.stand_ins[lost], weights=values[lost], minlength=table.n_nodes).astype(np.float64)
