"""Every method by a second, independent road: dense algebra, plain hooks, conservation laws, formulas as published."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import circuitsae as cs
from circuitsae import names
from circuitsae.attribution.context import Context
from circuitsae.attribution.curvature import principal_curvatures, second_order
from circuitsae.attribution.effects import NodeEffects, make_context
from circuitsae.attribution.methods.integrated_gradients import independent_sites, mean_gradients, quadrature
from circuitsae.attribution.rules import (
    LayerDrop,
    _SoftPattern,
    frozen_patterns,
    relevant_mlps,
    scaled_gates,
    scaled_inputs,
)
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.neurons import identity_dictionary
from circuitsae.errors import FlatMetricError, InputError, UnknownNameError
from circuitsae.graph.schema import known_effect
from circuitsae.model import points
from circuitsae.model.checks import freezes
from circuitsae.model.runs import Readout
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.metrics import BoundMetric
from tests.attribution.architectures import D_MODEL, N_LAYERS, TOKENS, bridge, dictionary
from tests.dictionaries.reference import naive

Hook = Callable[..., Tensor | None]
Hooks = list[tuple[str, Hook]]
METRIC = cs.LogitDiff(7, 8)
TASK = cs.Task(TOKENS, metric=METRIC)
model = cache(bridge)
CLOSE = {"atol": 1e-9, "rtol": 1e-7}


def plain(spliced: SplicedModel, hooks: Hooks = [], tokens: list[int] = TOKENS) -> Tensor:  # noqa: B006
    """The metric by TransformerLens' own hooks."""
    logits = spliced.model.run_with_hooks(torch.tensor([tokens]), return_type="logits", fwd_hooks=hooks)
    return logits[0, -1, 7] - logits[0, -1, 8]


def saes(name: str, *layers: int) -> SplicedModel:
    """A model with random SAEs at the end of some layers."""
    found = [dictionary(f"blocks.{n}.hook_resid_post", seed=n) for n in layers]
    return SplicedModel(model(name), found, prepend_bos=False)


def neurons(name: str, hook: str, width: int = D_MODEL) -> SplicedModel:
    """A model whose features at one hook point are its coordinates."""
    return SplicedModel(model(name), [identity_dictionary(hook, width, prepend_bos=False)])


def dense(spliced: SplicedModel, site: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One SAE on the clean run: activations, decoder, bias, error, all dense."""
    sae = spliced.dictionary(site)
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: object) -> None:
        kept["x"] = x.detach()[0]

    with torch.no_grad():
        plain(spliced, [(site, keep)])
    encoding = sae.encode(kept["x"])
    decoder = sae.decoder_rows(torch.arange(sae.d_sae))
    activations = encoding.features.to_dense()
    return activations, decoder, encoding.biases[0], kept["x"] - activations @ decoder - encoding.biases[0]


def by_place(effects: NodeEffects, site: str, shape: tuple[int, ...]) -> Tensor:
    """A site's effects, dense."""
    block = next(b for b in effects.features() if b.site == site)
    found = torch.zeros(shape, dtype=torch.float64)
    found[block.positions, block.indices] = block.effects
    return found


def errors_of(effects: NodeEffects, site: str) -> Tensor:
    return next(b for b in effects.errors() if b.site == site).effects


def features_of(effects: NodeEffects) -> Tensor:
    return torch.cat([b.effects for b in effects.features()])


# Gradients


def test_frozen_gradient_is_that_of_a_model_with_detached_patterns_and_scales() -> None:
    spliced = saes("llama", 0, 1)
    effects = cs.node_effects(spliced, TASK, method="attribution-patching", gradient="frozen")
    assert effects.gradient == "frozen"
    held: Hooks = [(name, lambda x, hook: x.detach()) for name, _ in freezes(spliced)]
    assert len(held) == 3 * N_LAYERS + 1
    for site in spliced.sites:
        leaf = torch.zeros(1, len(TOKENS), D_MODEL, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(plain(spliced, [*held, (site, lambda x, hook, z=leaf: x + z)]), leaf)[0][0]
        activations, decoder, _, error = dense(spliced, site)
        torch.testing.assert_close(
            by_place(effects, site, activations.shape), -(gradient @ decoder.T) * activations, **CLOSE
        )
        torch.testing.assert_close(errors_of(effects, site), -(gradient * error).sum(-1), **CLOSE)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_gradients_through_dictionaries_are_those_of_a_model_that_they_rebuild(normalisation: str) -> None:
    """By finite differences: what SAEs leave over is held, their statistics of the input change with it."""
    sites = [f"blocks.{n}.hook_resid_post" for n in range(2)]
    made = [dictionary(site, seed=n, normalize_activations=normalisation) for n, site in enumerate(sites)]
    spliced = SplicedModel(model("gpt2"), made, prepend_bos=False)
    gradients, embed = make_context(spliced, TASK, gradient="through-dictionary").gradients()
    errors: dict[str, Tensor] = {}

    def value(at: str, change: Tensor) -> float:
        def through(x: Tensor, site: str, sae: Dictionary) -> Tensor:
            rebuilt = naive(sae, x[0]).outputs[0]
            return rebuilt + errors.setdefault(site, x[0] - rebuilt) + (change if at == site else 0)

        hooks: Hooks = [
            (site, lambda x, hook, site=site, sae=sae: through(x, site, sae)[None])
            for site, sae in zip(sites, made, strict=True)
        ]
        return float(plain(spliced, [("hook_embed", lambda x, hook: x + change if at == "hook_embed" else x), *hooks]))

    value("", torch.zeros(()))  # the clean run, whose errors are held
    generator = torch.Generator().manual_seed(0)
    for at, gradient in {**gradients, "hook_embed": embed}.items():
        change = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        expected = (value(at, 1e-5 * change) - value(at, -1e-5 * change)) / 2e-5
        assert float((gradient * change).sum()) == pytest.approx(expected, rel=1e-6, abs=1e-8)


# Relevance


@pytest.mark.parametrize("hook", ["hook_embed", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
def test_relevance_is_conserved_from_layer_to_layer(hook: str) -> None:
    """Llama has no biases, so the relevance of all that enters a layer is the metric itself, whatever the layer."""
    spliced = neurons("llama", "blocks.0.hook_resid_post" if hook == "hook_embed" else hook)
    effects = cs.node_effects(spliced, TASK, method="relp")
    found = effects.tokens().effects.sum() if hook == "hook_embed" else features_of(effects).sum()
    assert float(found) == pytest.approx(-effects.metric, rel=1e-9)
    gradient = features_of(cs.node_effects(spliced, TASK)).sum()
    assert abs(float(gradient) + effects.metric) > 0.1 * abs(effects.metric)  # plain gradients don't conserve it


def test_relevance_through_a_gated_mlp_is_the_published_formula() -> None:
    spliced = saes("llama", 0)
    mlp = spliced.model.original_model.model.layers[1].mlp
    leaves: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    seen: list[Tensor] = []
    with torch.enable_grad():
        spliced.hooked.forward(
            torch.tensor([TOKENS]),
            [*relevant_mlps(spliced), ("blocks.1.mlp.hook_in", leaf), ("blocks.1.hook_mlp_out", seen.append)],
        )
    x = leaves[0]
    v = torch.linspace(-1, 1, D_MODEL, dtype=torch.float64).expand_as(seen[0])
    found = torch.autograd.grad((seen[0] * v).sum(), x)[0]
    with torch.no_grad():
        weights = {n: getattr(mlp, n).original_component.weight for n in ("gate_proj", "up_proj", "down_proj")}
        z, u = x @ weights["gate_proj"].T, x @ weights["up_proj"].T
        back = v @ weights["down_proj"]
        expected = (back * F.silu(z) * u / (2 * z)) @ weights["gate_proj"] + (back * F.silu(z) / 2) @ weights["up_proj"]
        torch.testing.assert_close(found, expected, **CLOSE)
        torch.testing.assert_close(seen[0], (F.silu(z) * u) @ weights["down_proj"].T, **CLOSE)


def test_relevance_through_a_plain_mlp_is_value_over_input() -> None:
    spliced = neurons("gpt2", "blocks.2.mlp.hook_pre", 32)
    effects = cs.node_effects(spliced, TASK, method="relp")
    # Above the activation function there is only ln_final with a frozen scale: E = -f(z) . dm/df, whatever f is.
    after = neurons("gpt2", "blocks.2.mlp.hook_post", 32)
    frozen = cs.node_effects(after, TASK, method="attribution-patching", gradient="frozen")
    torch.testing.assert_close(features_of(effects), features_of(frozen), **CLOSE)


def test_relevance_without_rules_is_attribution_patching(spliced: cs.SplicedModel, task: cs.Task) -> None:
    none = {"scales": False, "patterns": False, "mlps": False}
    plain = cs.node_effects(spliced, task, method="attribution-patching")
    for method, options in (
        ("relp", none),
        ("gim", {"scales": False, "temperature": 1, "query": 1, "key": 1, "value": 1, "gate": 1, "up": 1}),
        ("atp-star", {"drop": False}),
    ):
        found = cs.node_effects(spliced, task, method=method, **options)
        torch.testing.assert_close(features_of(found), features_of(plain), **CLOSE)


def test_relevance_needs_hook_points_inside_the_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = saes("llama", 0)
    has = spliced.hooked.has
    monkeypatch.setattr(spliced.hooked, "has", lambda name: has(name) and "hook_pre" not in name)
    for method in ("relp", "gim"):
        with pytest.raises(InputError, match=r"MLP of layer 0 has no hook points inside"):
            cs.node_effects(spliced, TASK, method=method)


@pytest.mark.parametrize(("method", "without"), [("relp", {"mlps": False}), ("gim", {"gate": 1, "up": 1})])
def test_a_rule_about_factors_is_refused_in_a_mixture_of_experts(method: str, without: dict[str, Any]) -> None:
    # Its `hook_pre` and `hook_post` are the MLP's input and output, of one shape: the rule would run, and mean nothing.
    spliced = saes("mixtral", 0)
    assert spliced.hooked.has("blocks.0.mlp.hook_pre")
    with pytest.raises(InputError, match=r"MLP of layer 0 .* mixture of experts"):
        cs.node_effects(spliced, TASK, method=method)
    assert cs.node_effects(spliced, TASK, method=method, **without).method == method
    assert cs.node_effects(spliced, TASK, method="auto", passes=5).method == "auto"  # does without that prediction


@pytest.mark.parametrize("method", ["attribution-patching", "relp", "gim", "atp-star"])
def test_a_metric_that_is_flat_at_the_clean_run_is_refused_where_gradients_predict(method: str) -> None:
    # The first order of a divergence is zero there: what is left is rounding, in any order.
    with pytest.raises(InputError, match=r"gradient of the metric .* is zero at the clean run.*'ablation'"):
        cs.node_effects(saes("llama", 0), cs.Task(TOKENS, metric=cs.Divergence()), method=method)
    assert cs.node_effects(saes("llama", 0), cs.Task(TOKENS, metric=cs.LogProb(7)), method=method).method == method


def test_a_graph_of_a_metric_that_is_flat_is_refused() -> None:
    with pytest.raises(InputError, match=r"and every edge"):
        cs.trace(saes("llama", 0), cs.Task(TOKENS, metric=cs.Divergence()), method="auto")


def test_curvatures_are_the_eigenpairs_of_the_hessian() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 30, generator=generator, dtype=torch.float64)
    p = logits.softmax(-1)

    def divergence(now: Tensor) -> Tensor:
        return (p * (p.log() - now.log_softmax(-1))).sum(-1).mean(1)

    values, directions = principal_curvatures(Readout(BoundMetric(divergence, None, {}), 2), logits, 4)
    hessian = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in p)) / 2
    expected = torch.linalg.eigvalsh(hessian).flip(0)[:4]
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
    for value, direction in zip(values, directions, strict=True):
        assert float((hessian @ direction.flatten() - value * direction.flatten()).norm()) < 1e-2 * float(value)
    quartic = BoundMetric(lambda now: (now - logits).pow(4).sum((1, 2)), None, {"description": "quartic"})
    with pytest.raises(FlatMetricError, match="quartic"):
        principal_curvatures(Readout(quartic, 2), logits, 4)


@pytest.mark.parametrize("gradient", ["pass-through", "through-dictionary"])
def test_second_order_is_what_small_changes_do(gradient: str) -> None:
    spliced = saes("gpt2", 1)
    task = cs.Task(TOKENS, metric=cs.Divergence(position=(2, -1)))
    context = make_context(spliced, task, method="auto", gradient=gradient)
    found = list(
        second_order(context, 100).records(("feature", "error"))
    )  # 100: as many directions as there are logits
    found = sorted(found, key=lambda r: -r["effect"])[::40][:6]
    step = 1e-3
    for record in found:
        both = [
            r.metric_after
            for r in cs.intervene_many(spliced, task, [[cs.Scale(record["node"], 1 + s)] for s in (step, -step)])
        ]
        assert record["effect"] == pytest.approx(sum(both) / 2 / step**2, rel=1e-4, abs=1e-9)
    assert found[0]["effect"] > 1e-4


def test_auto_finds_what_a_divergence_is_made_of(spliced: cs.SplicedModel) -> None:
    for prompt in ("The keys to the cabinet", "The nurse near the doctors"):
        task = cs.Task(prompt, metric=cs.Divergence())
        exact = cs.node_effects(spliced, task, method="ablation", tokens=False)
        found = cs.node_effects(spliced, task, method="auto")
        assert sum(found.passes.values()) <= 20
        ablated = sum(int(b.measured.sum()) for b in found.blocks if b.measured is not None)
        assert len(found.notes) == 1 and f"{ablated:,} of " in found.notes[0] and "as strong" in found.notes[0]
        size = torch.cat([b.effects.abs() for b in (*exact.features(), *exact.errors())])
        blocks = [*found.features(), *found.errors()]
        measured = torch.cat([b.measured for b in blocks if b.measured is not None])
        assert int(measured[size.argsort(descending=True)[:20]].sum()) >= 16  # 18 where this was written
        effects = torch.cat([b.effects for b in blocks])
        torch.testing.assert_close(effects[measured].abs(), size[measured], **CLOSE)


def test_a_divergence_is_ablated_as_by_hand() -> None:
    spliced = saes("llama", 0)
    task = cs.Task(TOKENS, metric=cs.Divergence())
    found = errors_of(cs.node_effects(spliced, task, method="ablation"), spliced.sites[0])
    _, _, _, error = dense(spliced, spliced.sites[0])
    tokens, logs = torch.tensor([TOKENS]), []
    for change in (torch.zeros_like(error[4]), error[4]):

        def without(x: Tensor, hook: object, change: Tensor = change) -> Tensor:
            x = x.clone()
            x[:, 4] -= change
            return x

        logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(spliced.sites[0], without)])
        logs.append(logits[0, -1].log_softmax(-1))
    expected = float((logs[0].exp() * (logs[0] - logs[1])).sum())
    assert expected > 1e-6
    assert float(found[4]) == pytest.approx(expected, abs=1e-10)


# GIM


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_soft_patterns_are_the_backward_pass_of_gim_explain(temperature: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    masked = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    gradient = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    pattern = masked.softmax(-1)
    through = _SoftPattern.apply(pattern, temperature)
    assert torch.equal(through, pattern)
    found = torch.autograd.grad(through, scores, gradient)[0]
    soft = (masked / temperature).softmax(-1).detach()
    torch.testing.assert_close(found, soft * (gradient - (soft * gradient).sum(-1, keepdim=True)), **CLOSE)


def test_scaled_values_pass_that_share_of_the_gradient() -> None:
    spliced = saes("llama", 0)

    def gradient(value: float) -> Tensor:
        context = make_context(spliced, TASK)
        return context.gradients(scaled_inputs(spliced, 1, 1, value))[0]["blocks.0.hook_resid_post"]

    none, whole = gradient(0.0), gradient(1.0)
    assert not torch.allclose(none, whole)
    cut: Hooks = [(f"blocks.{n}.attn.hook_v", lambda x, hook: x.detach()) for n in range(N_LAYERS)]
    leaf = torch.zeros(1, len(TOKENS), D_MODEL, dtype=torch.float64, requires_grad=True)
    value = plain(spliced, [*cut, ("blocks.0.hook_resid_post", lambda x, hook: x + leaf)])
    torch.testing.assert_close(none, torch.autograd.grad(value, leaf)[0][0], **CLOSE)
    last = [n for n in range(N_LAYERS) if n > 1]  # one attention layer only: there the gradient is linear in the share
    top = saes("llama", 1)
    with_share = [
        make_context(top, TASK).gradients(scaled_inputs(top, 1, 1, s))[0]["blocks.1.hook_resid_post"]
        for s in (0.0, 0.5, 1.0)
    ]
    assert len(last) == 1
    torch.testing.assert_close(with_share[1], (with_share[0] + with_share[2]) / 2, **CLOSE)


@pytest.mark.parametrize("family", ["llama", "phi3"])  # phi3: gate and up in one matrix
def test_gates_pass_each_factor_its_share_by_the_published_formula(family: str) -> None:
    spliced = saes(family, 0)
    mlp = spliced.model.original_model.model.layers[1].mlp
    leaves, seen = [], []

    def leaf(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[0]

    hooks = [*scaled_gates(spliced, 0.3, 0.5), ("blocks.1.mlp.hook_in", leaf), ("blocks.1.hook_mlp_out", seen.append)]
    with torch.enable_grad():
        spliced.hooked.forward(torch.tensor([TOKENS]), hooks)
    (x,), (y,) = leaves, seen
    v = torch.linspace(-1, 1, D_MODEL, dtype=torch.float64).expand_as(y)
    found = torch.autograd.grad((y * v).sum(), x)[0]
    with torch.no_grad():
        if family == "phi3":
            gate, up = mlp.gate_up_proj.weight.chunk(2)
        else:
            gate, up = mlp.gate_proj.original_component.weight, mlp.up_proj.original_component.weight
        down = mlp.down_proj.original_component.weight
        z, u, back = x @ gate.T, x @ up.T, v @ down
        slope = z.sigmoid() * (1 + z * (1 - z.sigmoid()))  # of silu
        expected = 0.3 * (back * slope * u) @ gate + 0.5 * (back * F.silu(z)) @ up
        torch.testing.assert_close(found, expected, **CLOSE)
        torch.testing.assert_close(y, (F.silu(z) * u) @ down.T, **CLOSE)


def test_gim_of_a_plain_mlp_has_nothing_to_share() -> None:
    spliced = saes("gpt2", 0)
    assert scaled_gates(spliced, 0.5, 0.5) == []


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
def test_gim_equals_plain_hooks_that_do_the_same(family: str) -> None:
    spliced = saes(family, 0)
    found = cs.node_effects(spliced, TASK, method="gim")

    def share(by: float) -> Hook:
        return lambda x, hook: by * x + ((1 - by) * x).detach()

    def soft(x: Tensor, hook: object) -> Tensor:
        # The same values; differentiated as the scores' softmax at temperature 2 is, times 2 (its inner derivative).
        logs = x.clamp_min(1e-300).log().masked_fill(x == 0, -1e9)
        warm = 2 * (logs / 2).softmax(-1)
        return x.detach() + warm - warm.detach()

    hooks: Hooks = [(n, lambda x, hook: x.detach()) for n, _ in freezes(spliced) if "scale" in n]
    for n in range(N_LAYERS):
        scores = f"blocks.{n}.attn"
        hooks += [
            (f"{scores}.hook_q", share(0.25)),
            (f"{scores}.hook_k", share(0.25)),
            (f"{scores}.hook_v", share(0.5)),
            # Half of what both branches of a gated MLP pass back is all that its product passes back, halved.
            (f"blocks.{n}.mlp.hook_post", share(0.5)),
        ]
        hooks.append((f"{scores}.hook_pattern", soft))
    leaf = torch.zeros(1, len(TOKENS), D_MODEL, dtype=torch.float64, requires_grad=True)
    site = spliced.sites[0]
    gradient = torch.autograd.grad(plain(spliced, [*hooks, (site, lambda x, hook: x + leaf)]), leaf)[0][0]
    activations, decoder, _, _ = dense(spliced, site)
    torch.testing.assert_close(
        by_place(found, site, activations.shape), -(gradient @ decoder.T) * activations, atol=1e-7, rtol=1e-6
    )


# Metrics that read inside the model


@pytest.mark.parametrize("reads", ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out"])
def test_only_what_is_computed_below_acts_on_what_is_read(reads: str) -> None:
    sites = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"]
    spliced = SplicedModel(
        model("llama"), [dictionary(hook, seed=n) for n, hook in enumerate(sites)], prepend_bos=False
    )
    vector = torch.linspace(-1, 1, D_MODEL, dtype=torch.float64)
    task = cs.Task(TOKENS, metric=cs.Direction(reads, vector))
    own = "blocks.1.hook_mlp_out" if "mlp" in reads else reads
    below = [site for site in sites if sites.index(site) < sites.index(own)]
    assert spliced.hooked.point(own) is spliced.hooked.point(reads)
    exact = cs.node_effects(spliced, task, method="ablation")
    for block in [*exact.features(), *exact.errors()]:
        acting = block.effects.abs() > 1e-10
        assert bool(acting.any()) == (block.site in below), block.site
    _, _, _, error = dense(spliced, sites[0])
    seen: list[Tensor] = []
    last = len(TOKENS) - 1

    def without_error(x: Tensor, hook: object) -> Tensor:
        x = x.clone()
        x[:, last] -= error[last]
        return x

    for hooks in ([], [(sites[0], without_error)]):
        plain(spliced, [(reads, lambda x, hook: seen.append(x[0, last] @ vector)), *hooks])
    expected = float(seen[1] - seen[0])
    assert float(errors_of(exact, sites[0])[last]) == pytest.approx(expected, abs=1e-9)
    for site, effect in ((sites[0], expected), (own, 0.0), (sites[3], 0.0)):
        node = names.error(site, last)
        assert cs.intervene(spliced, task, [cs.Ablate(node)]).effect == pytest.approx(effect, abs=1e-9)
    # Above what is read nothing acts: every circuit has the clean metric, and runs start below it all the same.
    report = cs.evaluate(spliced, [task], grid=(0.5, 1.0), compare=(), start_layer=2, method=None)
    assert abs(report.metrics - exact.metric).max() < 1e-10


# AtP*


def test_dropped_layers_are_averaged_as_published(spliced: cs.SplicedModel, task: cs.Task) -> None:
    """On tiny: for each layer plain hooks that detach what it adds; then mean |effect| without the node's own layer."""
    found = cs.node_effects(spliced, task, method="atp-star")
    plain_effects = cs.node_effects(spliced, task, method="attribution-patching")
    dropped: list[NodeEffects] = []
    for layer in range(spliced.n_layers):
        names = [f"blocks.{layer}.hook_attn_out", f"blocks.{layer}.hook_mlp_out"]
        context = make_context(spliced, task)
        dropped.append(context.effects(*context.gradients([(n, lambda x: x.detach().requires_grad_()) for n in names])))
    for number, block in enumerate(found.blocks):
        own = None
        if block.site and ".hook_resid_" not in block.site:
            own = int(block.site.split(".")[1])
        others = torch.stack([e.blocks[number].effects.abs() for n, e in enumerate(dropped) if n != own])
        assert len(others) == spliced.n_layers - (own is not None)
        expected = plain_effects.blocks[number].effects.sign() * others.mean(0)
        torch.testing.assert_close(block.effects, expected, **CLOSE)
    assert found.passes == {"forward": 2, "backward": 1 + spliced.n_layers}


@pytest.mark.parametrize(("hook", "width"), [("hook_q", 24), ("hook_k", 12)])
def test_queries_and_keys_get_their_exact_softmax(hook: str, width: int) -> None:
    """Rotary positions and grouped heads included: plain hooks change one coordinate and read the pattern."""
    spliced = neurons("llama", f"blocks.1.attn.{hook}", width)
    effects = cs.node_effects(spliced, TASK, method="atp-star", drop=False)
    patterns: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def hook(x: Tensor, hook: object) -> Tensor:
            patterns[name] = x = x if x.requires_grad else x.detach().requires_grad_()
            return x

        return hook

    value = plain(spliced, [("blocks.1.attn.hook_pattern", keep("clean"))])
    gradient = torch.autograd.grad(value, patterns["clean"])[0]
    linear = cs.node_effects(spliced, TASK)
    for record in effects.strongest(6):

        def edit(x: Tensor, hook: object, record: dict[str, Any] = record) -> Tensor:
            new = x.clone()
            new.flatten(2)[0, record["position"], record["index"]] = 0
            return new

        with torch.no_grad():
            plain(spliced, [(spliced.sites[0], edit), ("blocks.1.attn.hook_pattern", keep("changed"))])
        expected = float((gradient * (patterns["changed"] - patterns["clean"])).sum().detach())
        assert record["effect"] == pytest.approx(expected, abs=1e-10)
        assert record["effect"] != pytest.approx(linear.effect_of(record["node"]), rel=1e-3)


# Integrated gradients


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gauss_legendre_is_exact_for_polynomials(steps: int) -> None:
    points, weights = quadrature("gauss-legendre", steps)
    for degree in range(2 * steps):
        assert sum(w * p**degree for p, w in zip(points, weights, strict=True)) == pytest.approx(1 / (degree + 1))


def test_rules_are_those_of_riemann() -> None:
    assert quadrature("left", 4)[0] == [0, 0.25, 0.5, 0.75]
    assert quadrature("right", 4)[0] == [0.25, 0.5, 0.75, 1]
    assert quadrature("midpoint", 2) == ([0.25, 0.75], [0.5, 0.5])


@pytest.mark.parametrize("rule", ["left", "right"])
def test_riemann_sums_equal_feature_circuits_loop(rule: str) -> None:
    """One site, features and error moved together, a backward pass a step: grad_f m . (0 - f), averaged."""
    spliced, steps = saes("llama", 0, 1), 4
    effects = cs.node_effects(spliced, TASK, method="integrated-gradients", steps=steps, rule=rule, tokens=False)
    for site in spliced.sites:
        activations, decoder, bias, error = dense(spliced, site)
        features, errors = torch.zeros_like(activations), torch.zeros_like(error)
        for k in range(steps):
            alpha = (k + (rule == "right")) / steps
            f = ((1 - alpha) * activations).requires_grad_()
            e = ((1 - alpha) * error).requires_grad_()
            value = plain(spliced, [(site, lambda x, hook, f=f, e=e, W=decoder, b=bias: (f @ W + b + e)[None])])
            by_f, by_e = torch.autograd.grad(value, [f, e])
            features += by_f / steps
            errors += by_e / steps
        torch.testing.assert_close(by_place(effects, site, activations.shape), -features * activations, **CLOSE)
        torch.testing.assert_close(errors_of(effects, site), -(errors * error).sum(-1), **CLOSE)


@pytest.mark.parametrize("baseline", ["zero", "patch"])
def test_effects_of_a_site_add_up_to_its_ablation(baseline: str) -> None:
    spliced = saes("llama", 0, 1)
    patch = [*TOKENS[:4], 21, 22, *TOKENS[6:]]
    task = cs.Task(TOKENS, metric=METRIC, patch=patch if baseline == "patch" else None)
    effects = cs.node_effects(spliced, task, method="integrated-gradients", steps=24)
    for site in spliced.sites:
        kept: dict[str, Tensor] = {}
        with torch.no_grad():
            plain(spliced, [(site, lambda x, hook, kept=kept: kept.update(x=x))], patch)
            target = kept["x"] if baseline == "patch" else dense(spliced, site)[2].expand(1, len(TOKENS), -1)
            change = float(plain(spliced, [(site, lambda x, hook, target=target: target)]) - plain(spliced))
        block = next(b for b in effects.features() if b.site == site)
        assert float(block.effects.sum() + errors_of(effects, site).sum()) == pytest.approx(change, abs=1e-5)
    with torch.no_grad():
        kept = {}
        plain(spliced, [("hook_embed", lambda x, hook: kept.update(x=x))], patch)
        target = kept["x"] if baseline == "patch" else torch.zeros_like(kept["x"])
        change = float(plain(spliced, [("hook_embed", lambda x, hook: target)]) - plain(spliced))
    assert baseline == "zero" or float(effects.tokens().effects.sum()) == pytest.approx(
        change, abs=2e-3
    )  # it starts from small norms


def test_sites_that_do_not_feed_each_other_share_a_run() -> None:
    parallel, sequential = (
        SplicedModel(
            model(name),
            [dictionary(f"blocks.1.{hook}", seed=n) for n, hook in enumerate(("hook_attn_out", "hook_mlp_out"))],
            prepend_bos=False,
        )
        for name in ("neox", "llama")
    )
    assert independent_sites(parallel) == [("blocks.1.hook_attn_out", "blocks.1.hook_mlp_out")]
    assert independent_sites(sequential) == [("blocks.1.hook_attn_out",), ("blocks.1.hook_mlp_out",)]
    together = cs.node_effects(parallel, TASK, method="integrated-gradients", steps=3, tokens=False)
    context = make_context(parallel, TASK)
    points, weights = quadrature("gauss-legendre", 3)
    assert together.passes["backward"] == pytest.approx(3 * (1 - 1 / N_LAYERS))
    # Moved together they meet only above, so each one's gradient is at another point than alone; the sum is what counts.
    both = float(features_of(together).sum() + sum(b.effects.sum() for b in together.errors()))
    gradients = mean_gradients(context, parallel.written, points, weights)
    assert set(gradients) == set(parallel.written)
    assert abs(both) > 1e-3


def test_what_feeds_what_is_what_autograd_says() -> None:
    for name in ("llama", "neox"):
        spliced = saes(name, 1)
        hooks = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "hook_attn_out", "hook_mlp_out"]
        seen: dict[str, Tensor] = {}

        def keep(hook: str, seen: dict[str, Tensor] = seen) -> Hook:
            def run(x: Tensor, hook_: object = None, **kwargs: object) -> Tensor:
                seen[hook] = x if x.requires_grad else x.detach().requires_grad_()
                return seen[hook]

            return lambda x, hook: run(x)

        leaf: Hook = lambda x, hook: x.detach().requires_grad_()  # noqa: E731
        plain(spliced, [("hook_embed", leaf), *((f"blocks.1.{hook}", keep(hook)) for hook in hooks)])
        for below in hooks:
            for above in hooks:
                if below != above:
                    found = torch.autograd.grad(seen[above].sum(), seen[below], retain_graph=True, allow_unused=True)[0]
                    assert points.feeds(spliced.hooked, f"blocks.1.{below}", f"blocks.1.{above}") == (
                        found is not None
                    ), (
                        below,
                        above,
                    )


@pytest.mark.unchecked
def test_integrated_gradients_say_what_they_can_not_do(spliced: cs.SplicedModel, task: cs.Task) -> None:
    method = "integrated-gradients"
    with pytest.raises(InputError, match="expected the gradient 'pass-through' or 'frozen'"):
        cs.node_effects(spliced, task, method=method, gradient="through-dictionary")
    with pytest.raises(UnknownNameError, match="midpoint"):
        cs.node_effects(spliced, task, method=method, rule="midpoin")
    with pytest.raises(InputError, match="at least 1"):
        cs.node_effects(spliced, task, method=method, steps=0)


# Ablation and auto


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox"])
def test_ablation_from_a_middle_position_changes_no_number(name: str) -> None:
    spliced = SplicedModel(
        model(name),
        [dictionary("blocks.0.hook_resid_post", seed=0), dictionary("blocks.1.hook_mlp_out", seed=1)],
        prepend_bos=False,
    )
    task = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8, position=(3, -1)))
    from circuitsae.attribution.methods.ablation import Ablation

    found = []
    for suffixes in (True, False):
        context: Context = make_context(spliced, task, method="ablation")
        if suffixes:
            assert context.key_values is not None
        else:
            context._kept.key_values = [None]
        found.append(Ablation()(context, Ablation.Options()))
    assert found[0].passes["forward"] < 0.8 * found[1].passes["forward"]
    for a, b in zip(found[0].blocks, found[1].blocks, strict=True):
        torch.testing.assert_close(a.effects, b.effects, **CLOSE)
    for record in [*found[0].strongest(4), *found[0].strongest(2, ["error"]), *found[0].strongest(1, ["token"])]:
        measured = cs.intervene(spliced, task, [cs.Ablate(record["node"])]).effect
        assert record["effect"] == pytest.approx(measured, abs=1e-9)


@pytest.fixture(scope="module")
def few(spliced: cs.SplicedModel) -> cs.SplicedModel:
    """Some of tiny's sites: less to ablate."""
    return spliced.restrict(["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"])


def test_auto_measures_the_strongest_and_keeps_to_its_passes(few: cs.SplicedModel, task: cs.Task) -> None:
    spliced = few
    exact = cs.node_effects(spliced, task, method="ablation")
    counts = []
    for passes in (6, 10):
        auto = cs.node_effects(spliced, task, method="auto", passes=passes)
        assert (auto.passes["forward"] + auto.passes["backward"]) / 2 <= passes
        count = 0
        first = cs.node_effects(spliced, task, method="attribution-patching")
        second = cs.node_effects(spliced, task, method="relp", scales=False, patterns=False)
        for mine, true, a, b in zip(auto.blocks, exact.blocks, first.blocks, second.blocks, strict=True):
            if mine.measured is None:
                assert mine.kind == "token"
                continue
            count += int(mine.measured.sum())
            torch.testing.assert_close(mine.effects[mine.measured], true.effects[mine.measured], **CLOSE)
            rest = ~mine.measured
            torch.testing.assert_close(mine.effects[rest], ((a.effects + b.effects) / 2)[rest], **CLOSE)
            torch.testing.assert_close(mine.predicted, (a.effects + b.effects) / 2, **CLOSE)
        counts.append(count)
    assert 0 < counts[0] < counts[1]
    measured = {r["node"] for r in auto.strongest(16, ["feature", "error"])}
    assert measured == {r["node"] for r in exact.strongest(16, ["feature", "error"])}
    with pytest.raises(InputError, match="expected at least 4"):
        cs.node_effects(spliced, task, method="auto", passes=2)


def test_methods_trace(few: cs.SplicedModel, task: cs.Task) -> None:
    given: dict[str, dict[str, Any]] = {
        "auto": {"passes": 6},
        "integrated-gradients": {"steps": 2},
        "atp-star": {},
    }
    for method, options in given.items():
        circuit = cs.trace(few, task, method=method, max_nodes=12, **options)
        assert circuit.graph.graph["method"] == method
        assert circuit.graph.graph["options"].items() >= options.items()
        effects = cs.node_effects(few, task, method=method, **options)
        for node in circuit.features[:4]:
            assert known_effect(circuit[node]) == pytest.approx(effects.effect_of(node), abs=1e-12)


def test_attribution_patching_is_one_forward_and_one_backward_pass(spliced: cs.SplicedModel, task: cs.Task) -> None:
    assert cs.node_effects(spliced, task, method="attribution-patching").passes == {"forward": 1, "backward": 1}


# Every architecture, every baseline


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox"])
def test_rules_act_on_every_architecture(name: str) -> None:
    """No gradient through queries and keys is a frozen pattern; a dropped layer passes none on, wherever its hooks are."""
    spliced = saes(name, 0)
    site = spliced.sites[0]

    def gradient(rules: Any) -> Tensor:
        return make_context(spliced, TASK).gradients(rules)[0][site]

    base = gradient([])
    cut = gradient(scaled_inputs(spliced, 0, 0, 1))
    torch.testing.assert_close(cut, gradient(frozen_patterns(spliced)), **CLOSE)
    assert not torch.allclose(cut, base)
    assert not torch.allclose(gradient(relevant_mlps(spliced)), base)
    drop, context = LayerDrop(), make_context(spliced, TASK)
    captured, value = context.linearise(drop.hooks(spliced))
    inputs = [captured.x_out[site]]
    torch.testing.assert_close(context.backward(value, inputs, retain=True)[0][0], base, **CLOSE)
    drop.layer = 1
    without: Hooks = [(f"blocks.1.{hook}", lambda x, hook: x.detach()) for hook in ("hook_attn_out", "hook_mlp_out")]
    leaf = torch.zeros(1, len(TOKENS), D_MODEL, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(plain(spliced, [*without, (site, lambda x, hook: x + leaf)]), leaf)[0]
    torch.testing.assert_close(context.backward(value, inputs)[0], expected, **CLOSE)


@pytest.mark.parametrize("method", ["attribution-patching", "relp", "gim", "atp-star", "integrated-gradients", "auto"])
def test_what_does_not_change_has_no_effect(method: str) -> None:
    """A patch that differs in one late token: what is the same at earlier positions has no effect, by any method."""
    spliced = saes("llama", 0, 1)
    task = cs.Task(TOKENS, metric=METRIC, patch=[*TOKENS[:6], 21, *TOKENS[7:]])
    effects = cs.node_effects(spliced, task, method=method)
    assert effects.baseline == "patch"
    for block in effects.blocks:
        early = block.positions < 6
        assert float(block.effects[early].abs().max()) < 1e-9
        assert float(block.effects[~early].abs().max()) > 1e-6
    mean = cs.node_effects(spliced, task, method=method, baseline="mean", reference=[TOKENS, TOKENS])
    for block in mean.blocks:  # the mean over the prompt itself is the prompt
        assert float(block.effects.abs().max()) < 1e-9
