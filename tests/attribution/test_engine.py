"""Every number of the engine by a second, independent road: plain hooks, dense algebra, finite differences."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae import names
from circuitsae.attribution.effects import make_context
from circuitsae.errors import InputError, NodeError, TaskError, UnknownNameError
from circuitsae.graph.schema import known_effect
from circuitsae.model.checks import freezes
from tests.attribution.architectures import TOKENS, bridge
from tests.attribution.architectures import dictionary as random_sae
from tests.dictionaries.reference import naive

Hook = Callable[..., Tensor | None]


def run_plain(spliced: cs.SplicedModel, task: cs.Task, hooks: list[tuple[str, Hook]] = []) -> Tensor:  # noqa: B006
    """The metric by TransformerLens' own hooks, nothing of ours."""
    tokens = torch.tensor([task.prepare(spliced.vocabulary).tokens])
    logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
    metric = task.metric
    assert isinstance(metric, cs.LogitDiff)
    answer, foil = (spliced.vocabulary.token_id(t) for t in (metric.answer, metric.foil))
    return logits[0, -1, answer] - logits[0, -1, foil]


def dense(spliced: cs.SplicedModel, task: cs.Task, site: str) -> tuple[Tensor, Tensor, Tensor]:
    """Input, dense activations and reconstruction of one dictionary on the clean run."""
    dictionary = spliced.dictionary(site)
    kept: dict[str, Tensor] = {}

    def keep(x: Tensor, hook: object) -> None:
        kept["x"] = x.detach()[0]

    with torch.no_grad():
        run_plain(spliced, task, [(dictionary.hook_in, keep)])
    encoding = dictionary.encode(kept["x"])
    return kept["x"], encoding.features.to_dense(), dictionary.decode(encoding, kept["x"])


def test_splice_is_an_identity(spliced: cs.SplicedModel, task: cs.Task) -> None:
    def splice(site: str) -> tuple[str, Hook]:
        dictionary = spliced.dictionary(site)

        def hook(x: Tensor, hook: object) -> Tensor:
            rebuilt = dictionary.decode(dictionary.encode(x[0]))
            return (rebuilt + (x[0] - rebuilt))[None]

        return dictionary.hook_in, hook

    with torch.no_grad():
        bare = run_plain(spliced, task)
        whole = run_plain(spliced, task, [splice(s) for s in spliced.sites])
    assert abs(float(whole - bare)) < 1e-10
    assert cs.node_effects(spliced, task).metric == pytest.approx(float(bare), abs=1e-10)


def test_effects_equal_dense_gradient_times_change(spliced: cs.SplicedModel, task: cs.Task) -> None:
    effects = cs.node_effects(spliced, task, method="attribution-patching")
    for block in effects.features():
        dictionary = spliced.dictionary(block.site)
        x, activations, rebuilt = dense(spliced, task, block.site)
        leaf = torch.zeros_like(x).requires_grad_()
        value = run_plain(spliced, task, [(dictionary.hook_outs[0], lambda x, hook, leaf=leaf: x + leaf)])
        gradient = torch.autograd.grad(value, leaf)[0]
        W_dec = dictionary.decoder_rows(torch.arange(dictionary.d_sae)).double()
        expected = -(gradient @ W_dec.T) * activations
        found = torch.zeros_like(expected)
        assert block.indices is not None
        found[block.positions, block.indices] = block.effects
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-7)
        errors = next(b for b in effects.errors() if b.site == dictionary.hook_outs[0])
        torch.testing.assert_close(errors.effects, -(gradient * (x - rebuilt)).sum(-1), atol=1e-9, rtol=1e-7)


def test_slopes_equal_central_differences(spliced: cs.SplicedModel, task: cs.Task) -> None:
    effects = cs.node_effects(spliced, task, method="attribution-patching")
    step = 1e-4
    for record in effects.strongest(8):
        up, down = (cs.intervene(spliced, task, [cs.Add(record["node"], s)]).metric_after for s in (step, -step))
        assert record["effect"] == pytest.approx(-record["activation"] * (up - down) / (2 * step), rel=1e-5, abs=1e-7)


def test_measured_effects_equal_plain_hooks(spliced: cs.SplicedModel, task: cs.Task) -> None:
    circuit = cs.trace(spliced, task, method="attribution-patching", measure=12)
    measured = [key for key, data in circuit.graph.nodes(data=True) if "measured_effect" in data]
    assert len(measured) == 12
    with torch.no_grad():
        bare = float(run_plain(spliced, task))
        for key in measured:
            node = names.parse(key)
            dictionary = spliced.dictionary(str(node.site))
            x, _, rebuilt = dense(spliced, task, str(node.site))
            if node.kind == "error":
                change = -(x - rebuilt)[node.position]
            else:
                change = -circuit[key]["activation"] * dictionary.decoder_rows(torch.tensor([node.index])).double()[0]

            def edit(x: Tensor, hook: object, at: object = node.position, change: Tensor = change) -> Tensor:
                new = x.clone()
                new[0, at] += change
                return new

            after = float(run_plain(spliced, task, [(dictionary.hook_outs[0], edit)]))
            assert circuit[key]["measured_effect"] == pytest.approx(after - bare, abs=1e-9)


def test_patch_baseline_sets_nodes_to_the_patch_prompt(spliced: cs.SplicedModel, patched: cs.Task) -> None:
    effects = cs.node_effects(spliced, patched)
    assert effects.baseline == "patch"
    other = cs.Task(patched.patch or "", metric=patched.metric)
    with torch.no_grad():
        assert effects.baseline_metric == pytest.approx(float(run_plain(spliced, other)), abs=1e-9)
    for site in spliced.sites[:3]:
        block = next(b for b in effects.features() if b.site == site)
        _, here, _ = dense(spliced, patched, site)
        _, there, _ = dense(spliced, other, site)
        assert block.indices is not None
        torch.testing.assert_close(block.activations, here[block.positions, block.indices])
        torch.testing.assert_close(block.baselines, there[block.positions, block.indices])
        assert len(block) == int(((here != 0) | (there != 0)).sum())


@pytest.mark.parametrize("linearisation", ["gradient", "frozen"])
def test_edges_equal_naive_jacobians(spliced: cs.SplicedModel, task: cs.Task, linearisation: str) -> None:
    circuit = cs.trace(spliced, task, max_nodes=40, linearisation=linearisation)
    leaves: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    hooks: list[tuple[str, Hook]] = []
    if linearisation == "frozen":
        hooks += [(name, lambda x, hook, f=freeze: f(x)) for name, freeze in freezes(spliced)]

    def cut(site: str) -> Hook:
        def hook(x: Tensor, hook: object) -> Tensor:
            read[site] = x
            leaves[site] = x.detach().requires_grad_()
            return leaves[site]

        return hook

    hooks += [(site, cut(site)) for site in spliced.sites]
    metric = run_plain(spliced, task, hooks)
    checked = 0
    for target in [*circuit.features[::2], "metric"]:
        node = names.parse(target)
        if node.kind == "feature":
            x = read[str(node.site)][0]
            row, index = torch.tensor([node.position]), torch.tensor([node.index])
            value = spliced.dictionary(str(node.site)).pre_activations(x, row, index)[0]
        else:
            value = metric
        found = torch.autograd.grad(value, list(leaves.values()), retain_graph=True, allow_unused=True)
        jacobian = dict(zip(leaves, found, strict=True))
        for source in circuit.features:
            up = names.parse(source)
            j = jacobian[str(up.site)]
            row = spliced.dictionary(str(up.site)).decoder_rows(torch.tensor([up.index])).double()[0]
            expected = 0.0 if j is None else float(j[0, up.position] @ row) * circuit[source]["activation"]
            edge = circuit.graph.get_edge_data(source, target, default={"contribution": 0.0})
            assert edge["contribution"] == pytest.approx(expected, abs=1e-8)
            checked += expected != 0
    assert checked > 20


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_edges_into_dictionaries_that_normalise_equal_central_differences(normalisation: str) -> None:
    low, high = sites = [f"blocks.{n}.hook_resid_post" for n in range(2)]
    made = [random_sae(site, seed=n, normalize_activations=normalisation) for n, site in enumerate(sites)]
    spliced = cs.SplicedModel(bridge("gpt2"), made, prepend_bos=False)
    task = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
    circuit = cs.trace(spliced, task, max_nodes=40, error_targets=True)
    slopes = make_context(spliced, task).gradients()[0][high]
    seen: dict[str, Tensor] = {}

    def run(position: int, change: Tensor) -> tuple[Tensor, Tensor]:
        """Features and what is left over where the upper one reads, with a change of what leaves the lower one."""

        def add(x: Tensor, hook: object) -> Tensor:
            seen[low] = x.clone()
            x = x.clone()
            x[0, position] += change
            return x

        def keep(x: Tensor, hook: object) -> None:
            seen[high] = x[0]

        run_plain(spliced, task, [(low, add), (high, keep)])
        answer = naive(made[1], seen[high])
        return answer.features, seen[high] - answer.outputs[0]

    run(0, torch.zeros(()))
    x = seen[low][0]
    scale = x.std(-1) if normalisation == "layer_norm" else x.norm(dim=-1) / x.shape[-1] ** 0.5
    checked = {"feature": 0, "error": 0}
    for source in (key for key in circuit.features if str(names.parse(key).site) == low):
        up = names.parse(source)
        assert isinstance(up.position, int)
        row = made[0].decoder_rows(torch.tensor([up.index]))[0]
        written = circuit[source]["activation"] * scale[up.position] * row
        (more, rest), (less, left) = run(up.position, 1e-5 * written), run(up.position, -1e-5 * written)
        for _, target, edge in circuit.graph.out_edges(source, data=True):
            down = names.parse(target)
            if str(down.site) != high or down.kind not in checked:
                continue
            at = down.position
            if down.kind == "feature":
                change = more[at, down.index] - less[at, down.index]
            else:
                change = (slopes[at] / slopes[at].norm()) @ (rest[at] - left[at])
            assert edge["contribution"] == pytest.approx(float(change) / 2e-5, rel=1e-5, abs=1e-7)
            checked[down.kind] += 1
    assert checked["feature"] > 50 and checked["error"] > 2


def test_frozen_transcoder_rows_add_up(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    """In-edges sum to the pre-activation, and the bias node's is what the frozen model gives with all sources zero."""
    circuit = cs.trace(transcoders, task, linearisation="frozen", max_nodes=None, prune=None)
    rows = {
        key: sum(e["contribution"] for _, _, e in circuit.graph.in_edges(key, data=True)) for key in circuit.features
    }
    for key, total in rows.items():
        assert total == pytest.approx(circuit[key]["activation"], abs=1e-9)
    constants: dict[str, Tensor] = {}
    stored: dict[str, Tensor] = {}
    watched = [name for name, _ in freezes(transcoders)]
    tokens = torch.tensor([task.prepare(transcoders.vocabulary).tokens])

    def remember(name: str) -> Hook:
        return lambda x, hook: stored.__setitem__(name, x)

    def recall(name: str) -> Hook:
        return lambda x, hook: stored[name]

    def zero(x: Tensor, hook: object) -> Tensor:
        return torch.zeros_like(x)

    def bias_only(site: str) -> Hook:
        bias = circuit_bias(transcoders, task, site)
        return lambda x, hook: bias[None].expand_as(x)

    def circuit_bias(model: cs.SplicedModel, task: cs.Task, site: str) -> Tensor:
        dictionary = model.dictionary(site)
        return (
            dictionary.encode(torch.zeros(1, dictionary.d_in, dtype=torch.float64)).biases[0].expand(len(tokens[0]), -1)
        )

    hooks: list[tuple[str, Hook]] = [(name, recall(name)) for name in watched]
    hooks += [("hook_embed", zero)] + [(site, bias_only(site)) for site in transcoders.sites]
    for number, dictionary in enumerate(transcoders.dictionaries):

        def take(x: Tensor, hook: object, number: int = number) -> None:
            constants[transcoders.sites[number]] = x.detach()[0]

        hooks.append((dictionary.hook_in, take))
    with torch.no_grad():
        transcoders.model.run_with_hooks(tokens, fwd_hooks=[(name, remember(name)) for name in watched])
        transcoders.model.run_with_hooks(tokens, fwd_hooks=hooks)
        for key in circuit.features[::7]:
            node = names.parse(key)
            x = constants[str(node.site)]
            row, index = torch.tensor([node.position]), torch.tensor([node.index])
            expected = float(transcoders.dictionary(str(node.site)).pre_activations(x, row, index)[0])
            edge = circuit.graph.get_edge_data("bias", key, default={"contribution": 0.0})
            assert edge["contribution"] == pytest.approx(expected, abs=1e-8)


def test_pruning_reports_what_it_kept(spliced: cs.SplicedModel, task: cs.Task) -> None:
    everything = cs.trace(spliced, task, max_nodes=None, prune=None)
    some = cs.trace(spliced, task, max_nodes=20)  # chosen by what is measured, where it is
    kept = some.graph.graph["kept"]
    effects = cs.node_effects(spliced, task)
    assert len(some.features) == 20 == kept["features"]
    assert set(some.strongest(20, "feature")) == {r["node"] for r in effects.strongest(20)}
    every, mine = (
        [abs(known_effect(d) or 0.0) for _, d in c.graph.nodes(data=True) if d["kind"] in ("feature", "error")]
        for c in (everything, some)
    )
    assert kept["effect_share"] == pytest.approx(sum(mine) / sum(every), rel=1e-9)
    assert kept["candidates"] == len(every)
    by_size = cs.trace(spliced, task, prune="threshold", node_threshold=0.2)
    assert all(abs(known_effect(by_size[k]) or 0.0) >= 0.2 for k in [*by_size.features, *by_size.errors])
    influential = cs.trace(spliced, task, prune="influence", node_threshold=0.5, max_nodes=60)
    assert 0 < len(influential.features) < 60
    assert influential.graph.graph["kept"]["influence_share"] <= 1


def test_interventions_compose_and_reach_all_positions(spliced: cs.SplicedModel, task: cs.Task) -> None:
    top = cs.node_effects(spliced, task).strongest(1)[0]
    node, activation = top["node"], top["activation"]
    zero = cs.intervene(spliced, task, [cs.Ablate(node)], nodes=[node])
    assert zero.activations[node] == 0 and zero.activations_before[node] == pytest.approx(activation)
    assert cs.intervene(spliced, task, [cs.Set(node, 0)]).effect == pytest.approx(zero.effect, abs=1e-12)
    assert cs.intervene(spliced, task, [cs.Scale(node, 0)]).effect == pytest.approx(zero.effect, abs=1e-12)
    assert cs.intervene(spliced, task, [cs.Add(node, -activation)]).effect == pytest.approx(zero.effect, abs=1e-12)
    back = cs.intervene(spliced, task, [cs.Ablate(node), cs.Add(node, activation)])
    assert back.effect == pytest.approx(0, abs=1e-12) and back.kl == pytest.approx(0, abs=1e-12)
    everywhere = cs.intervene(spliced, task, [cs.Ablate(node.split("@")[0] + "@*")])
    assert everywhere.top_tokens(3) and everywhere.metric_before == pytest.approx(zero.metric_before)
    error = names.error(spliced.sites[0], 3)
    held = cs.intervene(spliced, task, [cs.Ablate(error)], errors="frozen")
    live = cs.intervene(spliced, task, [cs.Ablate(error)])
    assert held.effect != pytest.approx(live.effect, abs=1e-6)


def test_frozen_errors_alone_change_nothing(spliced: cs.SplicedModel, task: cs.Task) -> None:
    assert cs.intervene(spliced, task, [], errors="frozen").effect == pytest.approx(0, abs=1e-9)


def test_model_is_left_as_it_was(spliced: cs.SplicedModel, task: cs.Task) -> None:
    def state() -> list[object]:
        model = spliced.model
        return [
            [p.requires_grad for p in model.parameters()],
            [len(h.fwd_hooks) for h in model.hook_dict.values()],
            ["forward" in vars(b) for b in model.blocks],
            model.training,
        ]

    before = state()
    cs.trace(spliced, task, max_nodes=8, measure=3)
    assert state() == before
    with pytest.raises(NodeError):
        cs.intervene(spliced, task, [cs.Ablate("blocks.0.hook_resid_post/999999@1")])
    assert state() == before


def test_weights_frozen_by_the_caller_stay_frozen(spliced: cs.SplicedModel, task: cs.Task) -> None:
    weight = next(spliced.model.parameters())
    before = weight.requires_grad
    try:
        for wanted in (False, True):
            weight.requires_grad_(wanted)
            cs.node_effects(spliced, task)
            assert weight.requires_grad is wanted
    finally:
        weight.requires_grad_(before)


def test_predictions_hold_on_tiny(spliced: cs.SplicedModel, task: cs.Task) -> None:
    """Rank correlation of predicted and measured effects over the strongest features."""
    circuit = cs.trace(spliced, task, max_nodes=100, measure=120)
    pairs = [
        (d["effect"], d["measured_effect"])
        for _, d in circuit.graph.nodes(data=True)
        if d["kind"] == "feature" and "measured_effect" in d
    ]
    predicted, measured = torch.tensor(pairs).T
    ranks = torch.stack([predicted.argsort().argsort(), measured.argsort().argsort()]).double()
    assert len(pairs) == 100
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.7


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s, t: s.restrict(["blocks.0.hook_resid_pots"]), UnknownNameError, "blocks.0.hook_resid_post"),
        (lambda s, t: cs.intervene(s, t, [cs.Ablate("nonsense")]), NodeError, "not a node key"),
        (lambda s, t: cs.node_effects(s, t, method="attribution-patchin"), UnknownNameError, "attribution-patching"),
        (lambda s, t: cs.node_effects(s, t, steps=3), InputError, "has no option 'steps'"),
        (lambda s, t: cs.trace(s, t, linearisation="froze"), UnknownNameError, "frozen"),
        (lambda s, t: cs.trace(s, t, max_nodes=0), InputError, "at least 1"),
        (lambda s, t: cs.trace(s, cs.Task("", metric=t.metric)), TaskError, "empty"),
        (lambda s, t: cs.trace(s, cs.Task("The key", metric=t.metric, patch="The")), TaskError, "equal lengths"),
        (lambda s, t: cs.trace(s, cs.Task("The key", metric=cs.LogitDiff(" Mary John", " a"))), TaskError, "2 tokens"),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_one_sentence(
    spliced: cs.SplicedModel, task: cs.Task, call: Callable[..., object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        call(spliced, task)
    assert "\n" not in str(caught.value)
