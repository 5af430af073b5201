"""Influence by a second road (dense powers), what pruning keeps, and pruned mass moved to error nodes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsae.errors import InputError
from circuitsae.graph.influence import (
    cumulative_share,
    edge_influence,
    graph_scores,
    least_kept,
    node_influence,
    prune_by_influence,
)
from circuitsae.graph.merging import merge_into_errors
from circuitsae.graph.table import (
    BIAS,
    ERROR,
    FEATURE,
    METRIC,
    TOKEN,
    EdgeTable,
    keep_all,
    table_of,
)
from tests.synthetic import synthetic_circuit


def layered(seed: int, n_layers: int = 4, width: int = 6) -> EdgeTable:
    """A random graph: a token a column, features and an error node a layer, a bias node and the metric."""
    rng = np.random.default_rng(seed)
    kinds = [TOKEN] * 2 + [BIAS]
    depth = [-1, -1, -1]
    for layer in range(n_layers):
        kinds += [FEATURE] * width + [ERROR]
        depth += [layer] * (width + 1)
    kinds.append(METRIC)
    depth.append(n_layers)
    level, kind = np.array(depth), np.array(kinds, dtype=np.int8)
    is_target = (kind == FEATURE) | (kind == METRIC)
    feeds = (level[None, :] < level[:, None]) & is_target[:, None] & (kind != METRIC)[None, :]
    targets, sources = np.nonzero(feeds & (rng.random(feeds.shape) < 0.7))
    values = rng.normal(size=len(sources)) * 10 ** rng.normal(size=len(sources))
    stand_ins = np.full(len(kind), -1, dtype=np.int32)
    for layer in range(n_layers):
        stand_ins[(level == layer) & (kind == FEATURE)] = np.flatnonzero((level == layer) & (kind == ERROR))[0]
    start = (kind == METRIC).astype(np.float64)
    return EdgeTable(
        kind, sources.astype(np.int32), targets.astype(np.int32), values, rng.normal(size=len(values)), start, stand_ins
    )


@given(st.integers(0, 10_000))
def test_influence_equals_the_sum_of_dense_powers(seed: int) -> None:
    table = layered(seed)
    matrix = np.zeros((table.n_nodes, table.n_nodes))
    matrix[table.targets, table.sources] = np.abs(table.contributions)
    matrix[:, table.kinds == BIAS] = 0
    matrix /= np.maximum(matrix.sum(1, keepdims=True), 1e-10)
    whole = np.linalg.inv(np.eye(len(matrix)) - matrix) - np.eye(len(matrix))
    np.testing.assert_allclose(node_influence(table), table.start @ whole, atol=1e-12)
    through = matrix * (table.start @ whole + table.start)[:, None]
    np.testing.assert_allclose(edge_influence(table), through[table.targets, table.sources], atol=1e-12)
    scores = graph_scores(table)
    assert 0 <= scores.replacement <= 1 + 1e-12
    assert 0 <= scores.completeness <= 1 + 1e-12


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_what_influence_keeps_is_connected_and_holds_its_share(seed: int, nodes: float, edges: float) -> None:
    table = layered(seed)
    pruned = prune_by_influence(table, nodes, edges)
    kept = table.with_edges(pruned.edges)
    assert pruned.nodes[table.of_kind(TOKEN, BIAS, METRIC)].all()
    assert pruned.nodes[kept.sources].all() and pruned.nodes[kept.targets].all()
    inner = kept.kinds[kept.sources] != BIAS
    for number in np.flatnonzero(pruned.nodes & table.of_kind(FEATURE, ERROR)):
        assert number in kept.sources
        assert table.kinds[number] == ERROR or number in kept.targets[inner]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.floats(0, 1))
def test_the_kept_scores_hold_the_share_and_no_smaller_set_does(values: list[float], share: float) -> None:
    scores = np.array(values)
    kept = scores[scores >= least_kept(scores, share)]
    whole = scores.sum()
    assert kept.sum() >= share * whole * (1 - 1e-12)
    fewer = np.sort(kept)[1:]  # ties at the border are kept together
    if len(np.unique(scores)) == len(scores) and whole > 0 and share < 1:
        assert fewer.sum() <= share * whole * (1 + 1e-12)
    ranked = cumulative_share(scores)
    assert ranked.max() == pytest.approx(1)
    assert np.all(np.diff(ranked[np.argsort(-scores, kind="stable")]) >= 0)


@given(st.integers(0, 10_000))
def test_merged_mass_is_moved_and_none_is_lost(seed: int) -> None:
    table = layered(seed)
    pruned = prune_by_influence(table, 0.5, 1.0)
    merged, kept = merge_into_errors(table, pruned)
    after = merged.with_edges(kept.edges)
    lost = ~pruned.nodes & (table.kinds == FEATURE)
    for target in np.flatnonzero(pruned.nodes & table.of_kind(FEATURE, METRIC)):
        for values, now in ((table.contributions, after.contributions), (table.weights, after.weights)):
            for error in np.flatnonzero(table.kinds == ERROR):
                taken = lost & (table.stand_ins == error)
                if not taken.any():
                    continue
                here = table.targets == target
                expected = values[here & (taken[table.sources] | (table.sources == error))].sum()
                found = now[(after.targets == target) & (after.sources == error)]
                assert found.sum() == pytest.approx(expected, abs=1e-9) and len(found) <= 1
    assert kept.report["merged"] == lost.sum() == kept.attributes["merged"].sum()
    assert not (lost & kept.nodes).any()
    pairs = list(zip(after.sources.tolist(), after.targets.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_nothing_pruned_nothing_merged() -> None:
    table = layered(0)
    merged, kept = merge_into_errors(table, keep_all(table))
    assert kept.nodes.all() and kept.edges.all()
    np.testing.assert_array_equal(merged.contributions, table.contributions)


def test_a_cycle_is_refused() -> None:
    table = layered(0)
    number = int(np.flatnonzero(table.kinds == FEATURE)[0])
    loop = EdgeTable(
        table.kinds,
        np.append(table.sources, np.int32(number)),
        np.append(table.targets, np.int32(number)),
        np.append(table.contributions, 1.0),
        np.append(table.weights, 1.0),
        np.where(np.arange(table.n_nodes) == number, 1.0, 0.0),
        table.stand_ins,
    )
    lone = loop.with_edges(loop.targets == number)
    lone = lone.with_edges(lone.sources == number)
    with pytest.raises(InputError, match="cycle"):
        node_influence(lone)


def test_a_circuit_becomes_columns() -> None:
    circuit = synthetic_circuit(seed=4, n_features=30)
    table, keys = table_of(circuit.graph)
    assert len(table) == circuit.graph.number_of_edges() and keys == list(circuit.graph)
    rows = zip(table.sources.tolist(), table.targets.tolist(), table.contributions.tolist(), strict=True)
    assert {(keys[s], keys[t]): c for s, t, c in rows} == {
        (s, t): c for s, t, c in circuit.graph.edges(data="contribution")
    }
    for key, stand_in in zip(keys, table.stand_ins.tolist(), strict=True):
        data = circuit[key]
        if stand_in >= 0:
            other = circuit[keys[stand_in]]
            assert (other["kind"], other["site"], other["position"]) == ("error", data["site"], data["position"])
