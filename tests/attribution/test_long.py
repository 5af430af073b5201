"""Prompts whose tape is cut: a piece at a time, and every number is the one of the whole tape."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.attribution import edges as edges_module
from circuitsae.attribution.blocks import position_buckets
from circuitsae.attribution.contributions import EdgeBatch, FeatureTargets
from circuitsae.attribution.effects import NodeEffects
from circuitsae.model import tapes
from circuitsae.model.spliced import SplicedModel
from tests.attribution.architectures import N_LAYERS, TOKENS, bridge, dictionary, with_transcoders
from tests.attribution.test_sweep import by_node, dense, whole_graph

EXACT: dict[str, Any] = {"atol": 1e-11, "rtol": 1e-10}
ARCHITECTURES = ["gpt2", "llama", "gemma2", "neox"]
model = cache(bridge)


@cache
def everywhere(name: str) -> SplicedModel:
    """Autoencoders at residual stream, attention and MLP, a transcoder beside."""
    return SplicedModel(
        model(name),
        [
            dictionary("blocks.0.hook_resid_post", seed=1),
            dictionary("blocks.1.hook_attn_out", seed=2),
            dictionary("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=3, skip=True),
            dictionary("blocks.2.hook_resid_pre", seed=5),
            dictionary("blocks.2.hook_mlp_out", seed=4),
        ],
        prepend_bos=False,
    )


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets every tape hold one layer."""
    return lambda: monkeypatch.setattr(tapes, "budget", lambda spliced: 1)


def effects_of(spliced: SplicedModel, metric: Any = None, **options: Any) -> NodeEffects:
    return cs.node_effects(spliced, cs.Task(TOKENS, metric=metric or cs.LogitDiff(7, 8)), **options)


def same(found: NodeEffects, expected: NodeEffects) -> None:
    for mine, theirs in zip(found.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(mine.effects, theirs.effects, **EXACT)
    assert sum(int((b.effects != 0).sum()) for b in expected.blocks) >= len(TOKENS)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        {"gradient": "pass-through"},
        {"gradient": "through-dictionary"},
        {"gradient": "frozen"},
        {"method": "relp"},
        {"method": "integrated-gradients", "steps": 3},
        {"method": "atp-star"},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_effects_are_those_of_one_tape(name: str, options: dict[str, Any], cut: Any) -> None:
    expected = effects_of(everywhere(name), **options)
    cut()
    same(effects_of(everywhere(name), **options), expected)


@pytest.mark.parametrize("reads", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.0.hook_mlp_out"])
def test_a_metric_that_reads_an_activation_starts_where_it_reads(reads: str, cut: Any) -> None:
    metric = cs.Direction(reads, torch.arange(24.0).tolist())
    expected = effects_of(everywhere("gpt2"), metric)
    cut()
    same(effects_of(everywhere("gpt2"), metric), expected)


def test_what_a_metric_reads_before_a_site_of_its_layer_does_not_depend_on_it() -> None:
    metric = cs.Direction("blocks.1.hook_attn_out", torch.arange(24.0).tolist())
    found = effects_of(everywhere("gpt2"), metric, method="integrated-gradients", steps=2)
    moved = {b.site for b in found.blocks if len(b.effects) and bool(b.effects.any())}
    assert "blocks.0.hook_resid_post" in moved and "blocks.1.hook_mlp_out" not in moved


def test_a_tape_is_cut_by_its_size_and_not_through_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = everywhere("gpt2")
    assert tapes.cuts(spliced, 9) == [] and not tapes.is_long(spliced, 9)
    assert tapes.budget(spliced) == tapes.TAPE
    monkeypatch.setattr(tapes, "TAPE", 5)
    assert tapes.budget(spliced) == sum(p.numel() * 8 for p in spliced.model.parameters()) // 4
    size = 2 * tapes.layer_bytes(spliced, 9)
    monkeypatch.setattr(tapes, "budget", lambda spliced: size)
    assert tapes.is_long(spliced, 9) and tapes.cuts(spliced, 9) == [2] and tapes.cuts(spliced, 9, 1) == []
    assert tapes.cuts(spliced, 9, batch=2) == [1, 2]
    across = SplicedModel(
        model("gpt2"), [dictionary("blocks.0.hook_mlp_out", "blocks.2.hook_mlp_out")], prepend_bos=False
    )
    assert tapes.cuts(across, 9, batch=2, joined=[0]) == [] and tapes.cuts(across, 9, batch=2) == [1, 2]


SITES = {
    "one segment": lambda m: [
        dictionary("blocks.0.hook_attn_out", seed=2),
        dictionary("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", seed=3),
        dictionary("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=6, skip=True),
        dictionary("blocks.2.hook_attn_out", seed=4),
        dictionary("blocks.2.hook_resid_post", seed=5),
    ],
    "across layers": lambda m: [
        dictionary("blocks.0.mlp.hook_in", "blocks.1.hook_mlp_out", seed=3),
        dictionary("blocks.1.hook_resid_post", seed=5),
        dictionary("blocks.0.hook_attn_out", "blocks.2.hook_mlp_out", seed=7),
    ],
}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers takes some models' softmax in float32, where the order of two sums shows."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim=None, dtype=None: softmax(x, dim=dim))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("linearisation", ["gradient", "frozen"])
@pytest.mark.parametrize("sites", [*SITES])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_edges_are_those_of_one_tape(name: str, sites: str, linearisation: str, cut: Any) -> None:
    """Of features, errors and the metric: with blocks of several targets, and of one product at a time."""
    spliced = SplicedModel(model(name), SITES[sites](model(name)), prepend_bos=False)
    tokens = (TOKENS * 3)[:20]
    shown: list[int] = []

    def edges(**options: Any) -> list[EdgeBatch]:
        engine, targets = whole_graph(spliced, tokens, linearisation=linearisation, sweep=False, **options)
        few = [select(t, slice(0, None, 29)) for t in targets]
        progress = lambda done, total, what: shown.append(done)  # noqa: E731
        return [engine.metric_edges(0), *engine.feature_edges(few, progress), *engine.error_edges()]

    expected = edges()
    cut()
    shown.clear()
    found = edges(budget=200_000)
    for what in ("contributions", "weights"):
        torch.testing.assert_close(dense(found, what), dense(expected, what), **EXACT)
    for what in ("totals", "magnitudes"):
        torch.testing.assert_close(by_node(found, what), by_node(expected, what), **EXACT)
    assert shown == sorted(shown) and len(shown) > 5
    assert int((dense(expected) != 0).sum()) > 1000


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2"])
def test_frozen_graphs_are_swept_segment_by_segment(name: str, cut: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One chain a segment gives what autograd does over the whole; where its patterns take too much there is none."""
    sites = [
        dictionary("blocks.0.mlp.hook_in", "blocks.0.hook_mlp_out", seed=3),
        dictionary("blocks.0.hook_resid_post", seed=1),
        dictionary("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=4),
        dictionary("blocks.2.hook_resid_post", seed=2),
    ]
    spliced = SplicedModel(model(name), sites, prepend_bos=False)
    plain, targets = whole_graph(spliced, sweep=False)
    expected = list(plain.feature_edges(targets))
    cut()
    engine, _ = whole_graph(spliced)
    found = list(engine.feature_edges(targets))
    assert engine.path == "sweep"
    torch.testing.assert_close(dense(found), dense(expected), atol=1e-9, rtol=1e-9)
    chains = engine._scopes({0, 1, 2, 3})
    assert chains == [(0, 1, {0, 1}), (1, 3, {2, 3})]
    monkeypatch.setattr(edges_module, "_CHAIN", 0)
    assert engine._scopes({0, 1, 2, 3}) == []


def select(targets: FeatureTargets, chosen: slice) -> FeatureTargets:
    fields = ("positions", "indices", "totals", "slopes", "nodes")
    return replace(targets, **{name: getattr(targets, name)[chosen] for name in fields})


def test_ranges_of_positions_cost_least() -> None:
    def cost(ranges: list[tuple[int, int]], positions: torch.Tensor) -> float:
        inside = [int(((positions >= low) & (positions < high)).sum()) for low, high in ranges]
        return sum((1 + n) * (256 + high + high**2 / 2048) for n, (_, high) in zip(inside, ranges, strict=True))

    assert position_buckets(torch.tensor([2, 9]), 12) == [(0, 12)]
    assert position_buckets(torch.tensor([999] * 50), 1000) == [(0, 1000)]
    assert position_buckets(torch.tensor([10] * 50 + [999] * 50), 1000) == [(0, 11), (11, 1000)]
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(200, (40,), generator=generator)
    found = position_buckets(positions, 200)
    assert 1 < len(found) < 10 and found[0][0] == 0 and found[-1][1] == int(positions.max()) + 1
    assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
    ends = sorted({int(p) + 1 for p in positions})
    for _ in range(200):
        other = sorted(
            {*torch.tensor(ends[:-1])[torch.rand(len(ends) - 1, generator=generator) < 0.15].tolist(), ends[-1]}
        )
        assert cost(list(zip([0, *other], other, strict=False)), positions) >= cost(found, positions) - 1e-6


class Saved:
    """A tensor on a tape; counts how many numbers all tapes hold, now and at most."""

    now = most = 0

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        Saved.now += x.numel()
        Saved.most = max(Saved.most, Saved.now)

    def __del__(self) -> None:
        Saved.now -= self.x.numel()


def longest_tape(work: Any) -> int:
    Saved.now = Saved.most = 0
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.x):
        work()
    return Saved.most


def test_one_layer_is_on_the_tape_at_a_time(cut: Any) -> None:
    spliced = with_transcoders(model("llama"))
    whole = longest_tape(lambda: effects_of(spliced))
    cut()
    assert longest_tape(lambda: effects_of(spliced)) < 1.4 * whole / N_LAYERS
