"""The sweep of frozen graphs against autograd, for every architecture, and against the conservation law."""

import gc
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae.attribution import sweep
from circuitsae.attribution.contributions import EdgeBatch, FeatureTargets, Sources
from circuitsae.attribution.edges import EdgeEngine
from circuitsae.attribution.effects import make_context
from circuitsae.attribution.sweep import Chain
from circuitsae.errors import InputError
from circuitsae.model.checks import freezes
from circuitsae.model.spliced import SplicedModel
from tests.attribution.architectures import N_LAYERS, TOKENS, bridge, dictionary, with_transcoders

ARCHITECTURES = ["gpt2", "llama", "gemma2", "neox"]
model = cache(bridge)


def whole_graph(
    spliced: SplicedModel, tokens: list[int] = TOKENS, **options: Any
) -> tuple[EdgeEngine, list[FeatureTargets]]:
    """An engine in which every active feature, error and token is a source, and every active feature a target."""
    context = make_context(spliced, cs.Task(tokens, metric=cs.LogitDiff(7, 8)))
    n_tokens, number = len(tokens), len(tokens) + 1
    features, targets = [], []
    for place, nodes in enumerate(context.nodes):
        n = len(nodes.positions)
        numbers = torch.arange(number, number + n)
        number += n
        features.append((torch.arange(n), numbers))
        targets.append(
            FeatureTargets(
                place, nodes.positions, nodes.indices, nodes.activations, torch.ones_like(nodes.activations), numbers
            )
        )
    errors = {}
    every = torch.arange(n_tokens)
    for hook in spliced.written:
        errors[hook] = (every, torch.arange(number, number + n_tokens))
        number += n_tokens
    sources = Sources(tuple(features), errors, (every, every), bias=n_tokens)
    options.setdefault("linearisation", "frozen")
    return EdgeEngine(
        spliced, context.run, context.nodes, context.baseline, context.readout, sources=sources, **options
    ), targets


def dense(batches: list[EdgeBatch], what: str = "contributions") -> Tensor:
    """Edges as a matrix, target by source; every edge comes once."""
    targets, sources, values = (torch.cat([getattr(b, w) for b in batches]) for w in ("targets", "sources", what))
    size = int(torch.cat([b.target_nodes for b in batches]).max()) + 1 + 200
    assert len(torch.unique(targets * size + sources)) == len(targets)
    return torch.zeros(size, size, dtype=torch.float64).index_put_((targets, sources), values.double())


def by_node(batches: list[EdgeBatch], what: str) -> Tensor:
    nodes, values = (torch.cat([getattr(b, w) for b in batches]) for w in ("target_nodes", what))
    return values[nodes.argsort()]


def agree(
    spliced: SplicedModel, path: str = "sweep", tokens: list[int] = TOKENS, atol: float = 1e-9, **options: Any
) -> None:
    """The sweep's edges are those of one vector-Jacobian product a target by autograd."""
    engine, targets = whole_graph(spliced, tokens, **options)
    swept = list(engine.feature_edges(targets))
    assert engine.path == path
    plain, _ = whole_graph(spliced, tokens, sweep=False, **options)
    expected = list(plain.feature_edges(targets))
    assert plain.path == "autograd"
    for what in ("contributions", "weights"):
        torch.testing.assert_close(dense(swept, what), dense(expected, what), atol=atol, rtol=atol)
    for what in ("totals", "magnitudes"):
        torch.testing.assert_close(by_node(swept, what), by_node(expected, what), atol=atol, rtol=atol)
    assert int((dense(expected) != 0).sum()) > 1000


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sweep_equals_autograd(name: str) -> None:
    agree(with_transcoders(model(name)))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_rows_add_up_to_the_pre_activation_without_the_bias_closing_them(name: str) -> None:
    """The constant part by a second road: the frozen model run with every source at zero."""
    spliced = with_transcoders(model(name))
    engine, targets = whole_graph(spliced)
    batches = list(engine.feature_edges(targets))
    edges = dense(batches)
    rows = edges.sum(1)
    for target in targets:
        torch.testing.assert_close(rows[target.nodes], target.totals, atol=1e-9, rtol=1e-9)
        constant = frozen_constants(spliced, target.number)[target.positions]
        wanted = spliced.dictionaries[target.number].pre_activations(
            constant, torch.arange(len(target)), target.indices, frozen=True
        )
        torch.testing.assert_close(edges[target.nodes, len(TOKENS)], wanted, atol=1e-9, rtol=1e-9)


def frozen_constants(spliced: SplicedModel, number: int) -> Tensor:
    """What a dictionary reads when embeddings and features are zero, patterns and scales those of the prompt."""
    tokens = torch.tensor([TOKENS])
    stored: dict[str, Tensor] = {}
    names = [n for n in spliced.model.hook_dict if n.endswith(("hook_pattern", "hook_scale"))]
    bias = {d.hook_outs[0]: d.encode(torch.zeros(1, d.d_in).double()).biases[0] for d in spliced.dictionaries}
    read: list[Tensor] = []
    hooks: list[Any] = [(n, lambda x, hook, n=n: stored[n]) for n in names]
    hooks += [(n, lambda x, hook, b=b: b[None].expand_as(x)) for n, b in bias.items()]
    hooks += [("hook_embed", lambda x, hook: torch.zeros_like(x))]
    hooks += [(spliced.reads[number], lambda x, hook: read.append(x.detach()[0]))]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spliced.model.run_with_hooks(
            tokens, fwd_hooks=[(n, lambda x, hook, n=n: stored.__setitem__(n, x)) for n in names]
        )
        spliced.model.run_with_hooks(tokens, fwd_hooks=hooks)
    return read[0]


SITES = {
    "residual SAEs": lambda m: [dictionary(f"blocks.{n}.hook_resid_post", seed=n) for n in range(N_LAYERS)],
    "a residual SAE below transcoders": lambda m: [
        dictionary("blocks.0.hook_resid_post"),
        *with_transcoders(m, range(1, N_LAYERS)).dictionaries,
    ],
    "transcoders at some layers": lambda m: list(with_transcoders(m, range(1, N_LAYERS)).dictionaries),
    "attention and transcoders": lambda m: [
        dictionary("blocks.1.hook_attn_out", seed=9),
        *with_transcoders(m).dictionaries,
    ],
    "heads and transcoders": lambda m: [
        dictionary("blocks.1.attn.hook_z", seed=9, width=m.blocks[1].attn.W_O.shape[0] * m.blocks[1].attn.W_O.shape[1]),
        *with_transcoders(m).dictionaries,
    ],
    "MLP SAEs": lambda m: [dictionary(f"blocks.{n}.hook_mlp_out", seed=n) for n in range(N_LAYERS)],
}
CASES = [
    ("gpt2", "residual SAEs", "sweep"),
    ("gemma2", "a residual SAE below transcoders", "sweep"),
    ("gpt2", "transcoders at some layers", "sweep"),
    ("gpt2", "attention and transcoders", "sweep and autograd"),
    ("llama", "heads and transcoders", "sweep and autograd"),
    ("neox", "attention and transcoders", "sweep and autograd"),
    ("gpt2", "MLP SAEs", "autograd"),
    # beside an MLP that nothing replaces, parallel attention is not told apart
    ("neox", "transcoders at some layers", "autograd"),
]


@pytest.mark.parametrize(("name", "sites", "path"), CASES)
def test_sweep_equals_autograd_at_other_sites(name: str, sites: str, path: str) -> None:
    agree(SplicedModel(model(name), SITES[sites](model(name)), prepend_bos=False), path)


def test_skip_paths_are_part_of_the_segment() -> None:
    agree(with_transcoders(model("llama"), skip=True))


def test_blocks_under_a_small_budget_give_the_same() -> None:
    tokens = (TOKENS * 3)[:20]
    engine, targets = whole_graph(with_transcoders(model("llama")), tokens, budget=500_000)
    batches = list(engine.feature_edges(targets))
    assert engine.path == "sweep" and len(batches) > 5
    whole, _ = whole_graph(with_transcoders(model("llama")), tokens)
    torch.testing.assert_close(dense(batches), dense(list(whole.feature_edges(targets))), atol=1e-9, rtol=1e-9)


def test_float32_goes_the_same_way() -> None:
    spliced = with_transcoders(bridge("llama", torch.float32))
    agree(spliced, atol=2e-3)


def test_top_edges_are_the_largest_contributions_of_each_target() -> None:
    spliced = with_transcoders(model("llama"))
    engine, targets = whole_graph(spliced)
    whole = list(engine.feature_edges(targets))
    few, _ = whole_graph(spliced, top_k=5)
    kept = list(few.feature_edges(targets))
    everything, some = dense(whole), dense(kept)
    bias = len(TOKENS)
    torch.testing.assert_close(everything[:, bias], some[:, bias])
    everything[:, bias] = some[:, bias] = 0
    largest = everything.abs().topk(5, dim=1).values
    torch.testing.assert_close(some.abs().topk(6, dim=1).values[:, :5], largest)
    assert int((some != 0).sum(1).max()) == 5
    for what in ("totals", "magnitudes"):
        torch.testing.assert_close(by_node(kept, what), by_node(whole, what))
    with pytest.raises(InputError, match="at least 1"):
        whole_graph(spliced, top_k=0)


def test_cancelling_leaves_nothing_behind() -> None:
    spliced = with_transcoders(model("gpt2"))
    engine, targets = whole_graph(spliced, budget=200_000)

    def progress(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(engine.feature_edges(targets, progress))
    gc.collect()
    assert not any(type(thing) is Chain for thing in gc.get_objects())
    assert all(not point.fwd_hooks for point in spliced.model.hook_dict.values())


def test_a_chain_that_does_not_hold_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with autograd notices a wrong piece, and autograd's numbers are what comes out."""
    pull = sweep.Attention.pull
    monkeypatch.setattr(sweep.Attention, "pull", lambda self, g: pull(self, g) * (1 + 1e-6))
    monkeypatch.setattr(sweep, "_verified", type(sweep._verified)())
    spliced = with_transcoders(model("gpt2"))
    engine, targets = whole_graph(spliced)
    assert next(iter(engine.feature_edges(targets))) and engine.path == "autograd"


@pytest.mark.parametrize("linearisation", ["gradient", "frozen"])
@pytest.mark.parametrize("sites", ["residual SAEs", "transcoders"])
def test_edges_of_error_nodes_equal_finite_differences(sites: str, linearisation: str) -> None:
    """How far the error's projection moves when a source is moved, all other leaves held; and rows add up."""
    m = model("gpt2")  # whose softmax is in float64 too
    spliced = SplicedModel(m, SITES[sites](m), prepend_bos=False) if sites in SITES else with_transcoders(m)
    engine, _ = whole_graph(spliced, linearisation=linearisation)
    batches = list(engine.error_edges())
    edges = dense(batches)
    totals, nodes = (torch.cat([getattr(b, w) for b in batches]) for w in ("totals", "target_nodes"))
    torch.testing.assert_close(edges[nodes].sum(1), totals, atol=1e-9, rtol=1e-9)
    hook, position = spliced.written[-1], len(TOKENS) - 1
    target = next(t for t in engine.error_targets() if t.hook == hook)
    unit = target.gradients[position] / target.gradients[position].norm()
    node = int(target.nodes[position])
    assert float(totals[nodes == node]) == pytest.approx(float(unit @ engine.run.sites[hook].error[position]), abs=1e-9)
    source = spliced.written[-2]
    chosen, numbers = engine.origins.sources.features[1]
    block = engine.origins.nodes[1]
    at = int((block.positions <= position).sum()) - 1  # an active feature at the target's position
    row = block.decoders[0][block.inverse[at]]
    patterns = {name: hook for name, hook in freezes(spliced)} if linearisation == "frozen" else {}
    stored: dict[str, Tensor] = {}

    def projection(change: float) -> float:
        values: dict[str, Tensor] = {}

        def put(name: str) -> Any:
            def run(x: Tensor, hook: object) -> Tensor:
                values[name] = x[0]
                new = engine.run.sites[name].x.clone()
                if name == source:
                    new[int(block.positions[at])] += change * row
                return new[None]

            return run

        number = len(spliced.dictionaries) - 1
        hooks: list[Any] = [(n, lambda x, hook, n=n: stored.get(n, x)) for n in patterns]
        hooks += [(name, put(name)) for name in spliced.written if name != hook]
        read: list[Tensor] = []
        hooks += [(spliced.reads[number], lambda x, hook: read.append(x[0]))]
        hooks += [(hook, lambda x, hook: values.__setitem__("out", x[0]))]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            spliced.model.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=hooks)
        rebuilt = spliced.dictionaries[number].reconstruct(read[0], engine.run.features[number].features)
        return float(unit @ (values["out"] - rebuilt)[position])

    if patterns:
        with torch.no_grad():
            hooks = [(n, lambda x, hook, n=n: stored.__setitem__(n, x)) for n in patterns]
            spliced.model.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=hooks)
    step = 1e-5
    slope = (projection(step) - projection(-step)) / (2 * step)
    assert abs(slope) > 1e-6
    found = float(edges[node, int(numbers[at])])
    assert found == pytest.approx(slope * float(block.activations[at]), rel=1e-5, abs=1e-8)
    assert int(chosen[at]) == at
