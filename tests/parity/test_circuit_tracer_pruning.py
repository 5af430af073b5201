"""Influence, masks and scores against circuit-tracer's own functions, on random graphs in float64."""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from circuitsae.graph.influence import (
    edge_influence,
    graph_scores,
    input_shares,
    node_influence,
    prune_by_influence,
)
from circuitsae.graph.table import BIAS, ERROR, FEATURE, METRIC, TOKEN, EdgeTable

N_LAYERS = 4


@pytest.fixture(scope="module")
def theirs() -> Any:
    """circuit-tracer's functions on graphs."""
    pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
    return importlib.import_module("circuit_tracer.graph")


def random_graph(seed: int, n_tokens: int, n_features: int, density: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Their dense adjacency (row = target) and logit probabilities: features, errors, tokens, logits, in that order."""
    generator = torch.Generator().manual_seed(seed)
    n_logits = 3
    layer = torch.randint(0, N_LAYERS, (n_features,), generator=generator).sort().values
    position = torch.randint(0, n_tokens, (n_features,), generator=generator)
    places = [(at, p) for at in range(N_LAYERS) for p in range(n_tokens)]
    layers = torch.cat([layer, torch.tensor([at for at, _ in places]), torch.full((n_tokens,), -1)])
    positions = torch.cat([position, torch.tensor([p for _, p in places]), torch.arange(n_tokens)])
    n_sources = len(layers)
    n = n_sources + n_logits
    matrix = torch.zeros(n, n, dtype=torch.float64)
    values = torch.randn(n, n_sources, generator=generator, dtype=torch.float64) * 10 ** torch.randn(
        n, n_sources, generator=generator, dtype=torch.float64
    )
    there = torch.rand(n, n_sources, generator=generator) < density
    feeds = (layers[None, :] < layer[:, None]) & (positions[None, :] <= position[:, None])
    matrix[:n_features, :n_sources] = values[:n_features] * (there[:n_features] & feeds)
    matrix[-n_logits:, :n_sources] = values[-n_logits:] * there[-n_logits:]
    probabilities = torch.tensor([0.6, 0.25, 0.1], dtype=torch.float64)
    return matrix, probabilities


def as_theirs(matrix: torch.Tensor, probabilities: torch.Tensor, n_tokens: int) -> Any:
    """The parts of their Graph that pruning and scores read."""
    n_features = len(matrix) - N_LAYERS * n_tokens - n_tokens - len(probabilities)
    return SimpleNamespace(
        adjacency_matrix=matrix,
        logit_probabilities=probabilities,
        logit_targets=[None] * len(probabilities),
        input_tokens=torch.arange(n_tokens),
        selected_features=torch.arange(n_features),
        cfg=SimpleNamespace(n_layers=N_LAYERS),
    )


def as_ours(matrix: torch.Tensor, probabilities: torch.Tensor, n_tokens: int, bias: bool) -> EdgeTable:
    """The same graph as columns; with a bias node, which must change nothing."""
    n_logits, n = len(probabilities), len(matrix)
    n_features = n - N_LAYERS * n_tokens - n_tokens - n_logits
    kinds = np.array(
        [FEATURE] * n_features + [ERROR] * (N_LAYERS * n_tokens) + [TOKEN] * n_tokens + [METRIC] * n_logits, np.int8
    )
    targets, sources = (x.numpy().astype(np.int32) for x in matrix.nonzero(as_tuple=True))
    contributions = matrix[matrix != 0].numpy()
    start = np.zeros(n)
    start[-n_logits:] = probabilities.numpy()
    if bias:
        fed = np.unique(targets)
        kinds, start = np.append(kinds, np.int8(BIAS)), np.append(start, 0.0)
        sources, targets = np.append(sources, np.full(len(fed), n, np.int32)), np.append(targets, fed)
        contributions = np.append(contributions, np.full(len(fed), 7.0))
    stand_ins = np.full(len(kinds), -1, np.int32)
    return EdgeTable(kinds, sources, targets, contributions, -contributions, start, stand_ins)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("seed", "n_tokens", "n_features", "density"),
    [(0, 3, 40, 0.9), (1, 5, 150, 0.3), (2, 8, 400, 0.05), (3, 2, 60, 0.1)],
)
def test_influence_and_scores(
    theirs: Any, seed: int, n_tokens: int, n_features: int, density: float, bias: bool
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        matrix, probabilities = random_graph(seed, n_tokens, n_features, density)
        table, n = as_ours(matrix, probabilities, n_tokens, bias), len(matrix)
        weights = torch.zeros(n)
        weights[-len(probabilities) :] = probabilities
        shares = input_shares(table)
        real = table.sources < n
        dense = np.zeros((n, n))
        dense[table.targets[real], table.sources[real]] = shares[real]
        assert np.abs(dense - theirs.normalize_matrix(matrix).numpy()).max() < 1e-12
        expected = theirs.compute_node_influence(matrix, weights).numpy()
        assert expected.max() > 0.01
        assert np.abs(node_influence(table)[:n] - expected).max() < 1e-12
        edge_scores = np.zeros((n, n))
        edge_scores[table.targets[real], table.sources[real]] = edge_influence(table)[real]
        assert np.abs(edge_scores - theirs.compute_edge_influence(matrix, weights).numpy()).max() < 1e-12
        replacement, completeness = theirs.compute_graph_scores(as_theirs(matrix, probabilities, n_tokens))
        scores = graph_scores(table)
        assert scores.replacement == pytest.approx(replacement, abs=1e-12)
        assert scores.completeness == pytest.approx(completeness, abs=1e-12)
        assert 0 < scores.replacement < 1 and 0 < scores.completeness < 1
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("node_share", "edge_share"), [(0.8, 0.98), (0.5, 0.5), (0.95, 0.9), (0.3, 0.999), (1.0, 0.7)])
@pytest.mark.parametrize(
    ("seed", "n_tokens", "n_features", "density"), [(0, 3, 40, 0.9), (1, 5, 150, 0.3), (2, 8, 400, 0.05)]
)
def test_masks(
    theirs: Any, seed: int, n_tokens: int, n_features: int, density: float, node_share: float, edge_share: float
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        matrix, probabilities = random_graph(seed, n_tokens, n_features, density)
        table, n = as_ours(matrix, probabilities, n_tokens, bias=True), len(matrix)
        result = theirs.prune_graph(as_theirs(matrix, probabilities, n_tokens), node_share, edge_share)
        pruned = prune_by_influence(table, node_share, edge_share)
        assert np.array_equal(pruned.nodes[:n], result.node_mask.numpy())
        edges = np.zeros((n, n), dtype=bool)
        real = (table.sources < n) & pruned.edges
        edges[table.targets[real], table.sources[real]] = True
        assert np.array_equal(edges, (result.edge_mask & (matrix != 0)).numpy())
        assert 0 < edges.sum() < (matrix != 0).sum()
        expected = result.cumulative_scores.numpy()
        influential = pruned.attributes["influence"][:n] > 0
        mine = pruned.attributes["cumulative_influence"][:n]
        # Sorted, as the order of nodes of equal influence is arbitrary, and theirs not stable.
        assert np.abs(np.sort(mine[influential]) - np.sort(expected[influential])).max() < 1e-12
    finally:
        torch.set_default_dtype(torch.float32)
