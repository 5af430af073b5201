"""Influence: each node's part in what reaches the metric, over all paths. Linear in the edges; no matrices.

The definitions are circuit-tracer's (Ameisen et al. 2025; `circuit_tracer.graph`), reproduced on sparse columns; a test
holds them to 1e-12 against that package. The bias node, which circuit-tracer does not have, takes no part.
"""

from typing import NamedTuple

import numpy as np

from circuitsae.errors import InputError
from circuitsae.graph.table import BIAS, ERROR, FEATURE, METRIC, TOKEN, EdgeTable, Floats, Mask, Pruned

# Rows whose |contribution| sums to less are taken to have this sum, as in circuit-tracer.
_LEAST_SUM = 1e-10


class Scores(NamedTuple):
    """How much of a graph goes through nodes that can be read.

    Attributes:
        replacement: Influence of tokens / (influence of tokens + of error nodes): what goes from the prompt to the
            metric through features only. 1 is best.
        completeness: Over all targets, the share of the |contribution| that comes from features and tokens rather than
            error nodes, weighted by the target's influence. 1 is best.
    """

    replacement: float
    completeness: float


def input_shares(table: EdgeTable) -> Floats:
    """Returns each edge's part of the |contribution| that arrives at its target; 0 for the bias node's. `[edge]`"""
    sizes = np.abs(table.contributions)
    sizes[table.kinds[table.sources] == BIAS] = 0.0
    sums = np.bincount(table.targets, weights=sizes, minlength=table.n_nodes)
    return sizes / np.maximum(sums, _LEAST_SUM)[table.targets]


def node_influence(table: EdgeTable, shares: Floats | None = None) -> Floats:
    """Returns every node's influence: the sum over all paths to the metric of the product of `input_shares` along them.

    With `A` the shares (row = target) and `p` what of the metric each node is (`EdgeTable.start`), `p A + p A^2 + ...`;
    a metric node's own is 0. Cost: one pass over the edges for each node of the longest path. `[node]`

    Raises:
        InputError: The graph has a cycle.
    """
    shares = input_shares(table) if shares is None else shares
    influence = np.zeros(table.n_nodes)
    arriving = table.start
    for _ in range(table.n_nodes + 1):
        if not arriving.any():
            return influence
        arriving = np.bincount(table.sources, weights=arriving[table.targets] * shares, minlength=table.n_nodes)
        influence += arriving
    raise InputError("Influence is defined on graphs without cycles; this one has a cycle.")


def edge_influence(table: EdgeTable) -> Floats:
    """Returns the influence that goes through each edge: its share of its target's influence. `[edge]`"""
    shares = input_shares(table)
    return shares * (node_influence(table, shares) + table.start)[table.targets]


def least_kept(scores: Floats, share: float) -> float:
    """Returns the smallest score of the smallest set, largest first, that holds a share of the sum."""
    ordered = -np.sort(-scores)
    held = np.cumsum(ordered)
    if not len(held) or held[-1] <= 0:
        return 0.0
    return float(ordered[min(int(np.searchsorted(held / held[-1], share)), len(held) - 1)])


def cumulative_share(scores: Floats) -> Floats:
    """Returns, for each score, the share of the sum that it and all larger ones hold. `[node]`"""
    order = np.argsort(-scores, kind="stable")
    held = np.cumsum(scores[order])
    result = np.zeros(len(scores))
    result[order] = held / held[-1] if len(held) and held[-1] > 0 else 1.0
    return result


def prune_by_influence(table: EdgeTable, node_share: float, edge_share: float) -> Pruned:
    """Keeps the smallest set of nodes that holds a share of the influence, then of edges; see `Influence`.

    Cost: as `node_influence`, twice, and one sort each of the nodes and of the edges that are not zero.
    """
    influence = node_influence(table)
    always = table.of_kind(TOKEN, BIAS, METRIC)
    nodes = (influence >= least_kept(influence, node_share)) | always

    alive = nodes[table.sources] & nodes[table.targets]
    inner = table.with_edges(alive)
    scores = np.zeros(len(table))
    scores[alive] = edge_influence(inner)
    nonzero = scores[scores > 0]
    edges = alive & (scores >= least_kept(nonzero, edge_share)) & (scores > 0)

    while True:
        fed = np.zeros(table.n_nodes, dtype=bool)
        used = fed.copy()
        fed[table.targets[edges]] = True
        used[table.sources[edges]] = True
        stay = nodes & (always | (used & (fed | (table.kinds == ERROR))))
        if (stay == nodes).all():
            break
        nodes = stay
        edges &= nodes[table.sources] & nodes[table.targets]

    edges |= (table.kinds[table.sources] == BIAS) & nodes[table.targets]  # the constant part has no influence to lose
    before, after = graph_scores(table), graph_scores(table.with_edges(edges))
    prunable = table.of_kind(FEATURE, ERROR)
    whole = float(influence[prunable].sum())
    report = {
        "influence_share": float(influence[prunable & nodes].sum()) / whole if whole else 1.0,
        "replacement_score": before.replacement,
        "completeness_score": before.completeness,
        "pruned_replacement_score": after.replacement,
        "pruned_completeness_score": after.completeness,
    }
    attributes = {"influence": influence, "cumulative_influence": cumulative_share(influence)}
    return Pruned(nodes, edges, attributes, report)


def graph_scores(table: EdgeTable) -> Scores:
    """Returns circuit-tracer's replacement and completeness scores; 1 where nothing arrives from tokens or errors."""
    shares = input_shares(table)
    influence = node_influence(table, shares)
    errors = float(influence[table.kinds == ERROR].sum())
    tokens = float(influence[table.kinds == TOKEN].sum())
    from_error: Mask = table.kinds[table.sources] == ERROR
    unexplained = np.bincount(table.targets[from_error], weights=shares[from_error], minlength=table.n_nodes)
    output = influence + table.start
    whole = float(output.sum())
    return Scores(
        tokens / (tokens + errors) if tokens + errors > 0 else 1.0,
        float(((1 - unexplained) * output).sum()) / whole if whole > 0 else 1.0,
    )
