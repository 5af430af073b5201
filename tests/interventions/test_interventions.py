"""Every kind of intervention by a second road: TransformerLens' own hooks, one change at a time."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae import names
from circuitsae.errors import CancelledError, InputError, NodeError, UnknownNameError
from circuitsae.interventions import intervene_many
from circuitsae.interventions.freezing import frozen_hooks
from tests.interventions.conftest import PATCH, PROMPT
from tests.interventions.plain import Hook, dense_of, metric_of, tokens_of, values_of

SITE = "blocks.1.hook_mlp_out"


def adding(name: str, changes: dict[int, Tensor]) -> tuple[str, Hook]:
    def hook(x: Tensor, hook: object) -> Tensor:
        new = x.clone()
        for position, change in changes.items():
            new[0, position] += change
        return new

    return name, hook


@pytest.fixture(scope="module")
def strongest(spliced: cs.SplicedModel) -> str:
    task = cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John"))
    records = cs.node_effects(spliced, task).strongest(200)
    return next(r["node"] for r in records if r["site"] == SITE and r["position"] not in (0, 14))


def feature_of(spliced: cs.SplicedModel, task: cs.Task, key: str) -> tuple[int, Tensor, Tensor]:
    """Position, dense activations at every position, and decoder row."""
    node = names.parse(key)
    active, _ = dense_of(spliced, tokens_of(spliced, task), str(node.site))
    row = spliced.dictionary(str(node.site)).decoder_rows(torch.tensor([node.index])).double()[0]
    assert isinstance(node.position, int)
    return node.position, active[:, node.index], row


def test_edits_of_a_feature(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    at, active, row = feature_of(spliced, task, strongest)
    everywhere = strongest.split("@")[0]
    tokens, others = tokens_of(spliced, task), tokens_of(spliced, cs.Task(PATCH, metric=task.metric))
    other = dense_of(spliced, others, SITE)[0]
    there = other[:, names.parse(strongest).index]
    # The prompts' features are the same up to the first token in which they differ: a swap there would change nothing.
    parted = int((tokens != others)[0].nonzero()[0])
    late = next(
        r["node"]
        for r in cs.node_effects(spliced, task).strongest(200)
        if r["site"] == SITE and r["position"] >= parted
    )
    late_at, late_active, late_row = feature_of(spliced, task, late)
    swapped = other[late_at, names.parse(late).index] - late_active[late_at]
    assert at < parted and abs(swapped) > 0.1
    norm = values_of(spliced, tokens, [SITE])[SITE].norm(dim=-1).mean()
    n = len(active)
    clean = metric_of(spliced, task, [])
    cases: list[tuple[cs.Intervention, dict[int, float | Tensor]]] = [
        (cs.Scale(strongest, 3), {at: 2 * active[at]}),
        (cs.Add(strongest, 1.5), {at: 1.5}),
        (cs.Set(strongest, -2), {at: -2 - active[at]}),
        (cs.Set(f"{everywhere}@*", 1), {p: 1 - active[p] for p in range(n)}),
        (cs.Set(f"{everywhere}@2:5", 1), {p: 1 - active[p] for p in range(2, 5)}),
        (cs.Add(f"{everywhere}@-3:", 1), {p: 1.0 for p in range(n - 3, n)}),
        (cs.Add(f"{everywhere}@-1", 1), {n - 1: 1.0}),
        (cs.Swap(strongest, PATCH, position=-1), {at: there[-1] - active[at]}),
        (cs.Steer(everywhere, 2.0), {p: 2.0 for p in range(n)}),
        (cs.Steer(f"{everywhere}@3", 0.5, unit="norm"), {3: 0.5 * norm / row.norm()}),
    ]
    changes = [(edit, {p: c * row for p, c in change.items()}) for edit, change in cases]
    changes += [(cs.Swap(late, PATCH), {late_at: swapped * late_row}), (cs.Swap(strongest, PATCH), {})]
    results = cs.intervene_many(spliced, task, [[edit] for edit, _ in changes])
    for result, (edit, change) in zip(results, changes, strict=True):
        expected = metric_of(spliced, task, [adding(SITE, change)])
        assert result.metric_after == pytest.approx(expected, abs=1e-9), edit
        assert result.effect == pytest.approx(expected - clean, abs=1e-9), edit
        assert abs(expected - clean) > 1e-4 or not change, edit
        alone = cs.intervene(spliced, task, [edit])
        assert alone.metric_after == pytest.approx(result.metric_after, abs=1e-10)


def test_edits_of_error_nodes_and_embeddings(spliced: cs.SplicedModel, task: cs.Task) -> None:
    tokens = tokens_of(spliced, task)
    other = tokens_of(spliced, cs.Task(PATCH, metric=task.metric))
    error, their_error = dense_of(spliced, tokens, SITE)[1], dense_of(spliced, other, SITE)[1]
    embed, their_embed = (values_of(spliced, t, ["hook_embed"])["hook_embed"] for t in (tokens, other))
    vector = torch.linspace(-1, 1, embed.shape[-1], dtype=torch.float64)
    e, t = f"{SITE}/error", "token"
    cases: list[tuple[cs.Intervention, str, dict[int, Tensor]]] = [
        (cs.Ablate(f"{e}@4"), SITE, {4: -error[4]}),
        (cs.Scale(f"{e}@4:6", 2), SITE, {4: error[4], 5: error[5]}),
        (cs.Set(f"{e}@-1", vector), SITE, {14: vector - error[14]}),
        (cs.Add(f"{e}@7", vector), SITE, {7: vector}),
        (cs.Swap(f"{e}@*", PATCH), SITE, {p: their_error[p] - error[p] for p in range(15)}),
        (cs.Swap(f"{t}@*", PATCH), "hook_embed", {p: their_embed[p] - embed[p] for p in range(15)}),
        (cs.Scale(f"{t}@2", 0.5), "hook_embed", {2: -0.5 * embed[2]}),
        (cs.Set(f"{t}@3", 0), "hook_embed", {3: -embed[3]}),
    ]
    for result, (edit, hook, changes) in zip(
        cs.intervene_many(spliced, task, [[edit] for edit, _, _ in cases]), cases, strict=True
    ):
        assert result.metric_after == pytest.approx(metric_of(spliced, task, [adding(hook, changes)]), abs=1e-9), edit


def test_swapping_every_embedding_gives_the_other_prompt(spliced: cs.SplicedModel, task: cs.Task) -> None:
    there = metric_of(spliced, cs.Task(PATCH, metric=task.metric), [])
    assert cs.intervene(spliced, task, [cs.Swap("token@*", PATCH)]).metric_after == pytest.approx(there, abs=1e-9)


@pytest.mark.parametrize(("attention", "normalisation"), [("frozen", "free"), ("free", "frozen"), ("frozen", "frozen")])
def test_frozen_attention_and_normalisation(
    spliced: cs.SplicedModel, task: cs.Task, strongest: str, attention: str, normalisation: str
) -> None:
    at, active, row = feature_of(spliced, task, strongest)
    layers = range(spliced.n_layers)
    held = [f"blocks.{n}.attn.hook_pattern" for n in layers] if attention == "frozen" else []
    if normalisation == "frozen":
        held += [f"blocks.{n}.{ln}.hook_scale" for n in layers for ln in ("ln1", "ln2")] + ["ln_final.hook_scale"]
    clean = values_of(spliced, tokens_of(spliced, task), held)
    hooks: list[tuple[str, Hook]] = [(name, lambda x, hook, name=name: clean[name][None]) for name in held]
    with warnings.catch_warnings():  # the Bridge warns of every edited scale
        warnings.simplefilter("ignore")
        expected = metric_of(spliced, task, [*hooks, adding(SITE, {at: -active[at] * row})])
    found = cs.intervene(spliced, task, [cs.Ablate(strongest)], attention=attention, normalisation=normalisation)
    assert found.metric_after == pytest.approx(expected, abs=1e-9)
    assert found.effect != pytest.approx(cs.intervene(spliced, task, [cs.Ablate(strongest)]).effect, abs=1e-4)


@pytest.mark.parametrize("preset", ["spliced", "transcoders"])
def test_frozen_direct_effects_are_the_weights_of_the_frozen_graph(
    preset: str, task: cs.Task, request: pytest.FixtureRequest
) -> None:
    spliced: cs.SplicedModel = request.getfixturevalue(preset)
    circuit = cs.trace(spliced, task, linearisation="frozen", max_nodes=30, edge_threshold=0.0)
    graph = circuit.graph
    edges = [
        (u, v, d)
        for u, v, d in graph.edges(data=True)
        if graph.nodes[u]["kind"] in ("feature", "error", "token") and graph.nodes[v]["kind"] == "feature"
    ]
    edges = sorted(edges, key=lambda e: -abs(e[2]["contribution"]))
    edges = [[e for e in edges if graph.nodes[e[0]]["kind"] == kind][:9:3] for kind in ("feature", "error", "token")]
    assert edges[0] and (edges[1] or edges[2])
    edges = [edge for some in edges for edge in some]
    frozen: dict[str, Any] = {"attention": "frozen", "normalisation": "frozen", "direct_only": True}
    # So small that no feature falls silent: the activation follows the pre-activation. Where a transcoder stands for each
    # MLP all between is linear, and one step is exact; elsewhere two steps are, up to their square.
    step = 1e-4
    choices = [[cs.Scale(u, 1 + s)] for u, _, _ in edges for s in (step, -step)]
    found = cs.intervene_many(spliced, task, choices, nodes=[v for _, v, _ in edges], **frozen)
    for up, down, (_, v, data) in zip(found[::2], found[1::2], edges, strict=True):
        slope = (up.activations[v] - down.activations[v]) / (2 * step)
        assert slope == pytest.approx(data["contribution"], abs=1e-8 if preset == "transcoders" else 1e-6)
        if preset == "transcoders":
            assert (up.activations[v] - up.activations_before[v]) / step == pytest.approx(slope, abs=1e-8)
    into_metric = [(u, d["weight"]) for u, _, d in graph.in_edges(names.METRIC, data=True) if u != names.BIAS]
    into_metric = sorted(into_metric, key=lambda e: -abs(e[1]))[:6]
    found = cs.intervene_many(spliced, task, [[cs.Ablate(u)] for u, _ in into_metric], **frozen)
    for result, (_, weight) in zip(found, into_metric, strict=True):
        assert result.effect == pytest.approx(weight, abs=1e-8)


def test_direct_effects_are_the_slopes_of_the_gradient_graph(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    graph = cs.trace(transcoders, task, max_nodes=40, edge_threshold=0.0).graph
    edges = [(u, v, d) for u, v, d in graph.edges(data=True) if {graph.nodes[n]["kind"] for n in (u, v)} == {"feature"}]
    edges = sorted(edges, key=lambda e: -abs(e[2]["contribution"]))[:5]
    step = 1e-4
    choices = [[cs.Scale(u, 1 + s)] for u, _, _ in edges for s in (step, -step)]
    found = cs.intervene_many(transcoders, task, choices, nodes=[v for _, v, _ in edges], direct_only=True)
    for up, down, (_, v, data) in zip(found[::2], found[1::2], edges, strict=True):
        slope = (up.activations[v] - down.activations[v]) / (2 * step)
        assert slope == pytest.approx(data["contribution"], rel=1e-5, abs=1e-7)


def test_direct_only_holds_every_other_node(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    at, active, row = feature_of(spliced, task, strongest)
    clean = values_of(spliced, tokens_of(spliced, task), [d.hook_outs[0] for d in spliced.dictionaries])
    hooks: list[tuple[str, Hook]] = [(name, lambda x, hook, name=name: clean[name][None]) for name in clean]
    expected = metric_of(spliced, task, [*hooks, adding(SITE, {at: -active[at] * row})])
    error = f"{SITE}/error@{at}"
    found = cs.intervene(spliced, task, [cs.Ablate(strongest)], direct_only=True, nodes=[strongest, error])
    assert found.metric_after == pytest.approx(expected, abs=1e-9)
    assert found.activations[strongest] == 0
    assert found.activations[error] == pytest.approx(found.activations_before[error], abs=1e-9)


def test_nodes_may_be_slices(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    _, active, _ = feature_of(spliced, task, strongest)
    everywhere = strongest.split("@")[0]
    found = cs.intervene(spliced, task, [cs.Scale(strongest, 2)], nodes=[f"{everywhere}@*", f"{everywhere}@1"])
    assert list(found.activations_before) == [f"{everywhere}@{p}" for p in range(15)]
    assert list(found.activations_before.values()) == pytest.approx(active.tolist(), abs=1e-9)


def test_many_are_cancelled_between_batches(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    with pytest.raises(CancelledError):
        intervene_many(spliced, task, [[cs.Ablate(strongest)]], progress=lambda *args: False)


def test_model_is_left_as_it_was(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    def state() -> list[object]:
        model = spliced.model
        hooks = [len(point.fwd_hooks) for point in model.hook_dict.values()]
        return [hooks, model.cfg.use_split_qkv_input, len(model.ln_final._forward_pre_hooks)]

    before = state()
    cs.intervene(spliced, task, [cs.PathPatch(cs.Ablate(strongest), ["blocks.2.hook_q_input/1", "metric"])])
    assert state() == before


@pytest.mark.parametrize(
    ("edits", "error", "text"),
    [
        ([cs.Ablate(f"{SITE}/3@99")], NodeError, "past the end of the prompt"),
        ([cs.Ablate(f"{SITE}/3@9:9")], NodeError, "slice of .* is empty"),
        ([cs.Ablate(f"{SITE}/3@five")], NodeError, "'@five' .* can't be read"),
        ([cs.Ablate(f"{SITE}/3@new")], NodeError, "for generate"),
        ([cs.Ablate(f"{SITE}/3")], NodeError, "names no position"),
        ([cs.Ablate("metric")], NodeError, "can't be set"),
        ([cs.Set(f"{SITE}/3@2", [1.0, 2.0])], InputError, "is one number"),
        ([cs.Set(f"{SITE}/error@2", [1.0, 2.0])], InputError, "a vector of 96 numbers"),
        ([cs.Swap(f"{SITE}/3@9", "The key")], NodeError, "position= says where to read"),
        ([cs.Steer(f"{SITE}/error@2", 1)], NodeError, "is not a feature"),
        ([cs.PathPatch(cs.Ablate(f"{SITE}/3@2"), [])], NodeError, "at least"),
        ([cs.PathPatch(cs.Ablate(f"{SITE}/3@2"), [f"{SITE}/error@3"])], NodeError, "can't receive"),
        ([cs.PathPatch(cs.Ablate(f"{SITE}/3@2"), ["blocks.2.hook_v_input/9"])], NodeError, "heads 0 to 3"),
    ],
)
def test_bad_edits_are_one_sentence(
    spliced: cs.SplicedModel, task: cs.Task, edits: list[cs.Intervention], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        cs.intervene(spliced, task, edits)
    assert "\n" not in str(caught.value)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("edits", "error", "text"),
    [
        (lambda: [cs.Steer(f"{SITE}/3", 1, unit="volts")], UnknownNameError, "norm"),  # type: ignore[arg-type]
        (lambda: [cs.PathPatch(cs.Ablate(f"{SITE}/3@2"), ["metric"], along="air")], UnknownNameError, "residual"),  # type: ignore[arg-type]
        (lambda: cs.Ablate(f"{SITE}/3@2"), InputError, "come as a list"),
        (lambda: ["ablate"], InputError, "PathPatch or AblateEdge"),
    ],
)
def test_edits_of_a_wrong_type_are_one_sentence(
    spliced: cs.SplicedModel, task: cs.Task, edits: Callable[[], Any], error: type[Exception], text: str
) -> None:
    test_bad_edits_are_one_sentence(spliced, task, edits(), error, text)


@pytest.mark.unchecked
@pytest.mark.parametrize(("setting", "value"), [("attention", "warm"), ("normalisation", "cold"), ("errors", "dead")])
def test_bad_settings_are_named(spliced: cs.SplicedModel, task: cs.Task, setting: str, value: str) -> None:
    with pytest.raises(UnknownNameError, match="frozen"):
        cs.intervene(spliced, task, [], **{setting: value})  # type: ignore[arg-type]


# path patching


def straight(spliced: cs.SplicedModel, task: cs.Task, heads: dict[str, list[int]], change: dict[int, Tensor]) -> float:
    """The seed notebook's way: heads' inputs less a feature's direction, by hooks on the split inputs."""

    def into(x: Tensor, hook: object, numbers: list[int]) -> Tensor:
        new = x.clone()
        for position, vector in change.items():
            for number in numbers:
                new[0, position, number] += vector
        return new

    spliced.model.set_use_split_qkv_input(True)
    try:
        hooks: list[tuple[str, Hook]] = [
            (name, lambda x, hook, numbers=numbers: into(x, hook, numbers)) for name, numbers in heads.items()
        ]
        return metric_of(spliced, task, hooks)
    finally:
        spliced.model.set_use_split_qkv_input(False)


def test_path_into_the_values_of_chosen_heads(spliced: cs.SplicedModel, task: cs.Task, strongest: str) -> None:
    at, active, row = feature_of(spliced, task, strongest)
    heads = {"blocks.2.hook_v_input": [0, 3], "blocks.3.hook_v_input": [1], "blocks.3.hook_q_input": [2]}
    through = [f"{hook}/{head}@{at}" for hook, numbers in heads.items() for head in numbers]
    found = cs.intervene(spliced, task, [cs.PathPatch(cs.Ablate(strongest), through, along="residual")])
    expected = straight(spliced, task, heads, {at: -active[at] * row})
    assert found.metric_after == pytest.approx(expected, abs=1e-9)
    assert abs(found.effect) > 1e-4
    anywhere = [key.split("@")[0] for key in through]
    again = cs.intervene(spliced, task, [cs.PathPatch(cs.Ablate(strongest), anywhere, along="residual")])
    assert again.effect == pytest.approx(found.effect, abs=1e-9)


def test_path_along_the_nodes_passes_what_is_between(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    """Transcoders hold the MLPs, so the change reaches the head through attention in between as well."""
    node = next(
        r["node"] for r in cs.node_effects(transcoders, task).strongest(200) if r["site"] == "blocks.0.hook_mlp_out"
    )
    at, active, row = feature_of(transcoders, task, node)
    held = [d.hook_outs[0] for d in transcoders.dictionaries]
    clean = values_of(transcoders, tokens_of(transcoders, task), [*held, "blocks.3.hook_resid_pre"])
    kept: dict[str, Tensor] = {}
    hooks: list[tuple[str, Hook]] = [(name, lambda x, hook, name=name: clean[name][None]) for name in held]
    hooks.append(adding("blocks.0.hook_mlp_out", {at: -active[at] * row}))
    hooks.append(("blocks.3.hook_resid_pre", lambda x, hook: kept.__setitem__("x", x[0].clone())))
    metric_of(transcoders, task, hooks)
    change = kept["x"] - clean["blocks.3.hook_resid_pre"]
    assert float(change[at + 1 :].norm()) > 1e-3
    expected = straight(transcoders, task, {"blocks.3.hook_k_input": [1]}, dict(enumerate(change)))
    found = cs.intervene(transcoders, task, [cs.PathPatch(cs.Ablate(node), ["blocks.3.hook_k_input/1"])])
    assert found.metric_after == pytest.approx(expected, abs=1e-9)


def test_a_path_into_the_metric_is_the_direct_effect(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    node = cs.node_effects(transcoders, task).strongest(1)[0]["node"]
    direct = cs.intervene(transcoders, task, [cs.Ablate(node)], direct_only=True)
    found = cs.intervene(transcoders, task, [cs.PathPatch(cs.Ablate(node), ["metric"])])
    assert found.effect == pytest.approx(direct.effect, abs=1e-9)


def test_an_ablated_edge_and_a_longer_path(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    graph = cs.trace(transcoders, task, max_nodes=60, edge_threshold=0.0, linearisation="frozen").graph
    features = {n for n, kind in graph.nodes(data="kind") if kind == "feature"}
    chains = [
        (u, v, w)
        for u, v in graph.edges
        for w in graph.successors(v)
        if {u, v, w} <= features and len({names.parse(n).site for n in (u, v, w)}) == 3
    ]
    frozen: dict[str, Any] = {"attention": "frozen", "normalisation": "frozen"}

    def change(result: cs.InterventionResult, node: str) -> float:
        return result.activations[node] - result.activations_before[node]

    step = 1e-4
    u, v, w = max(
        chains, key=lambda c: abs(graph.edges[c[0], c[1]]["contribution"] * graph.edges[c[1], c[2]]["contribution"])
    )
    first, second = graph.edges[u, v]["contribution"], graph.edges[v, w]["contribution"]
    path = cs.PathPatch(cs.PathPatch(cs.Scale(u, 1 - step), [v]), [w])
    found = cs.intervene(transcoders, task, [path], nodes=[u, v, w], **frozen)
    assert change(found, u) == pytest.approx(0, abs=1e-12)
    assert change(found, v) == pytest.approx(0, abs=1e-12)
    assert change(found, w) / step == pytest.approx(-first * second / graph.nodes[v]["activation"], abs=1e-6)

    # The edge alone: its target is what the source's ablation leaves of it, and the rest of the model follows.
    cut = cs.intervene(transcoders, task, [cs.AblateEdge(u, v)], nodes=[v])
    ablated = cs.intervene(transcoders, task, [cs.Ablate(u)], direct_only=True, nodes=[v])
    assert cut.activations[v] == pytest.approx(ablated.activations[v], abs=1e-9)
    given = cs.intervene(transcoders, task, [cs.Set(v, ablated.activations[v])])
    assert cut.effect == pytest.approx(given.effect, abs=1e-9)


def test_freezes_hold_the_clean_values(spliced: cs.SplicedModel, task: cs.Task) -> None:
    from circuitsae.attribution.effects import make_context

    context = make_context(spliced, task)
    hooks = frozen_hooks(context, attention="frozen", normalisation="frozen")
    points: set[str] = {name for name, _ in hooks}
    assert {"blocks.0.attn.hook_pattern", "blocks.3.ln2.hook_scale", "ln_final.hook_scale"} <= points
    assert cs.intervene(spliced, task, [], attention="frozen", normalisation="frozen").effect == pytest.approx(
        0, abs=1e-9
    )


def test_a_path_into_a_heads_input_is_refused_with_normalisation_frozen(
    spliced: cs.SplicedModel, task: cs.Task, strongest: str
) -> None:
    # each head's own input is normalised anew, by no hook point that is held
    path = cs.PathPatch(cs.Ablate(strongest), ["blocks.2.hook_q_input/1"])
    with pytest.raises(cs.CircuitsaeError, match="normalised anew"):
        cs.intervene(spliced, task, [path], normalisation="frozen")
