"""Influence pruning of a graph whose dense matrix would take tens of gigabytes.

    python -m benchmarks.pruning [--tokens 128] [--edges-per-target 64] > pruning.json

A made-up graph of the size that 12 dictionaries of 24k features give (50 active a position), with the strongest 64 edges
into each target: 76,800 features at 128 tokens. Reported are seconds and the process's whole peak memory, graph included.
"""

import time
from collections.abc import Sequence

import numpy as np

from benchmarks.timing import parser_of, peak_mib, show
from circuitsae.graph.influence import prune_by_influence
from circuitsae.graph.merging import merge_into_errors
from circuitsae.graph.table import BIAS, ERROR, FEATURE, METRIC, TOKEN, EdgeTable

LAYERS, ACTIVE, LOGITS = 12, 50, 10


def made_up(n_tokens: int, per_target: int) -> EdgeTable:
    """Returns a graph in which every feature has `per_target` inputs from layers below, at or before its position."""
    rng = np.random.default_rng(0)
    # Sources are numbered by layer, then position: tokens, then per layer and position 50 features and the error node.
    per_place = ACTIVE + 1
    n = n_tokens + LAYERS * n_tokens * per_place + LOGITS + 1
    kinds = np.full(n, FEATURE, dtype=np.int8)
    kinds[:n_tokens] = TOKEN
    places = n_tokens + np.arange(LAYERS * n_tokens) * per_place
    kinds[places + ACTIVE] = ERROR
    kinds[-LOGITS - 1 : -1] = METRIC
    kinds[-1] = BIAS
    targets = np.repeat(np.flatnonzero((kinds == FEATURE) | (kinds == METRIC)).astype(np.int32), per_target)
    place = np.minimum((targets - n_tokens) // per_place, LAYERS * n_tokens)  # metric nodes lie past the last
    layer = place // n_tokens
    position = np.where(kinds[targets] == METRIC, n_tokens - 1, place % n_tokens)
    from_layer = rng.integers(-1, layer)  # -1: a token
    from_position = np.minimum(rng.integers(0, n_tokens, len(targets)), position)
    inside = rng.integers(0, per_place, len(targets))
    sources = np.where(
        from_layer < 0, from_position, n_tokens + (from_layer * n_tokens + from_position) * per_place + inside
    ).astype(np.int32)
    _, first = np.unique(targets.astype(np.int64) * n + sources, return_index=True)
    sources, targets = sources[first], targets[first]
    contributions = rng.standard_t(2, len(sources))
    start = np.zeros(n)
    start[kinds == METRIC] = np.geomspace(0.5, 0.001, LOGITS)
    stand_ins = np.full(n, -1, dtype=np.int32)
    features = np.flatnonzero(kinds == FEATURE)
    stand_ins[features] = n_tokens + (features - n_tokens) // per_place * per_place + ACTIVE
    return EdgeTable(kinds, sources, targets, contributions, -contributions, start, stand_ins)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--edges-per-target", type=int, default=64)
    args = parser.parse_args(arguments)
    n_tokens, per_target = (2, 4) if args.small else (args.tokens, args.edges_per_target)
    table = made_up(n_tokens, per_target)
    before = peak_mib()
    start = time.perf_counter()
    pruned = prune_by_influence(table, 0.8, 0.98)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    merged, kept = merge_into_errors(table, pruned)
    result = {
        "tokens": n_tokens,
        "active_nodes": int(np.count_nonzero(table.of_kind(FEATURE))),
        "edges": len(table),
        "kept_nodes": int(pruned.nodes.sum()),
        "kept_edges": int(pruned.edges.sum()),
        "kept_edges_merged": int(kept.edges.sum()),
        "scores": {name: value for name, value in pruned.report.items() if name.endswith("_score")},
        "prune_seconds": seconds,
        "merge_seconds": time.perf_counter() - start,
        "peak_mib_before": before,
        "peak_mib": peak_mib(),
        "dense_matrix_mib": table.n_nodes**2 * 4 / 2**20,
    }
    assert len(merged) <= len(table)
    show(result)


if __name__ == "__main__":
    main()
