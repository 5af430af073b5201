"""What `trace` may be asked for beyond the defaults: other targets, bounded graphs, merged mass, sets of prompts."""

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable

import pytest
import torch

import circuitsae as cs
from circuitsae import names
from circuitsae.errors import CancelledError, InputError, UnknownNameError
from circuitsae.task.targets import TopLogits
from tests.attribution.architectures import TOKENS, bridge, with_transcoders

PLURAL = cs.LogitDiff(" are", " is")


@pytest.fixture
def task() -> cs.Task:
    return cs.Task("The keys to the cabinet", metric=PLURAL)


def inputs(circuit: cs.Circuit, target: str, name: str = "contribution") -> dict[str, float]:
    """A target's in-edges by source; the bias node's left out."""
    return {s: value for s, _, value in circuit.graph.in_edges(target, data=name) if s != "bias"}


def test_logits_at_the_top_add_up_to_the_metric(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    first, second = (word for word, _ in cs.trace(transcoders, task, max_nodes=1).graph.graph["top_tokens"][:2])
    task = cs.Task(task.prompt, metric=cs.LogitDiff(first, second))
    whole = cs.trace(transcoders, task, max_nodes=60)
    apart = cs.trace(transcoders, task, max_nodes=60, targets="logits", logit_share=1.0, max_logits=3)
    vocabulary, last = transcoders.vocabulary, len(whole.tokens) - 1
    are, other = (names.logit(vocabulary.token_id(word), last) for word in (first, second))
    assert "metric" not in apart and are in apart and other in apart
    for name in ("contribution", "weight"):
        expected = inputs(whole, "metric", name)
        plus, minus = inputs(apart, are, name), inputs(apart, other, name)
        sign = -1 if name == "contribution" else 1  # weights are in units of the metric already
        for source, value in expected.items():
            assert plus.get(source, 0.0) + sign * minus.get(source, 0.0) == pytest.approx(value, abs=1e-9)
        assert len(expected) > 20
    assert apart[are]["activation"] - apart[other]["activation"] == pytest.approx(whole["metric"]["activation"])
    assert apart[are]["label"] == first and 0 < apart[are]["probability"] < 1
    assert inputs(apart, are, "contribution").keys() >= inputs(whole, "metric").keys()
    assert {k: d["effect"] for k, d in whole.graph.nodes(data=True) if d["kind"] == "feature"} == {
        k: d["effect"] for k, d in apart.graph.nodes(data=True) if d["kind"] == "feature"
    }


def test_logits_are_as_many_as_hold_the_share(spliced: cs.SplicedModel, task: cs.Task) -> None:
    for share, most in ((0.5, 10), (0.99, 10), (1.0, 3)):
        circuit = cs.trace(spliced, task, max_nodes=5, targets="logits", logit_share=share, max_logits=most)
        found = [data["probability"] for _, data in circuit.graph.nodes(data=True) if data["kind"] == "metric"]
        assert len(found) == most or sum(found) >= share > sum(found) - min(found)
        assert found == pytest.approx([p for _, p in circuit.graph.graph["top_tokens"]][: len(found)], rel=1e-5)


def test_likeliest_logits_count_by_their_probability(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    task = cs.Task(task.prompt, metric=TopLogits(limit=4))
    circuit = cs.trace(transcoders, task, max_nodes=30, targets="logits", max_logits=4)
    tops = [key for key in circuit if circuit[key]["kind"] == "metric"]
    edges = [e for key in tops for e in circuit.graph.in_edges(key, data=True) if e[0] != "bias"]
    assert len(tops) == 4 and len(edges) > 80
    for _, target, data in edges:
        assert data["weight"] == pytest.approx(
            -circuit[target]["probability"] * data["contribution"], rel=1e-6, abs=1e-12
        )


def test_every_target_says_how_much_of_it_is_explained(spliced: cs.SplicedModel, task: cs.Task) -> None:
    circuit = cs.trace(spliced, task, max_nodes=200, error_targets=True, skip_nodes=True)
    targets = [*circuit.features, *circuit.errors, "metric"]
    fed = [key for key in targets if circuit.graph.in_degree(key)]
    assert len(fed) > 40
    for key in fed:
        assert 0 < circuit[key]["explained"] <= 1 and "total" in circuit[key]
    assert any(circuit.graph.in_degree(key) for key in circuit.errors)
    everything = cs.trace(spliced, task, prune=None, skip_nodes=True)
    for key in everything.features[::50]:
        assert everything[key]["explained"] == pytest.approx(1)
        row = [c for *_, c in everything.graph.in_edges(key, data="contribution")]
        assert sum(row) == pytest.approx(everything[key]["total"], abs=1e-8)


def test_top_edges_keeps_the_largest_of_each_target(spliced: cs.SplicedModel, task: cs.Task) -> None:
    everything = cs.trace(spliced, task, max_nodes=30)
    bounded = cs.trace(spliced, task, max_nodes=30, top_edges=4)
    for key in [*bounded.features, "metric"]:
        sizes = sorted(map(abs, inputs(everything, key).values()), reverse=True)
        assert sorted(map(abs, inputs(bounded, key).values()), reverse=True) == pytest.approx(sizes[:4])
        assert bounded[key]["explained"] <= everything[key]["explained"] + 1e-9
    assert bounded.graph.graph["options"]["top_edges"] == 4


def test_merged_error_nodes_have_the_effects_of_what_they_stand_in_for(
    transcoders: cs.SplicedModel, task: cs.Task
) -> None:
    whole = cs.trace(transcoders, task, prune="influence", node_threshold=1.0, edge_threshold=1.0, max_nodes=200)
    plain = cs.trace(transcoders, task, prune="influence", node_threshold=0.5, max_nodes=200)
    merged = cs.trace(
        transcoders, task, prune="influence", node_threshold=0.5, max_nodes=200, merge_pruned=True, measure=6
    )
    effects = cs.node_effects(transcoders, task)
    assert set(merged.features) == set(plain.features)
    chosen = {row["node"] for row in effects.strongest(200)}
    gone = [key for key in chosen if key not in plain]
    dictionaries = {d.site: d.hook_outs[0] for d in transcoders.dictionaries}
    expected: dict[str, float] = defaultdict(float)
    for key in gone:
        node = names.parse(key)
        assert isinstance(node.position, int)
        expected[names.error(dictionaries[str(node.site)], node.position)] += effects.effect_of(key)
    counts = Counter(names.error(dictionaries[str(n.site)], n.position) for n in map(names.parse, gone))  # type: ignore[arg-type]
    assert sum(counts.values()) == merged.graph.graph["kept"]["merged"] > 0
    for key, count in counts.items():
        data = merged[key]
        assert data["merged"] == count and "activation" not in data and "measured_effect" not in data
        assert data["effect"] == pytest.approx(effects.effect_of(key) + expected[key], abs=1e-9)
    for key in merged.features:
        before, after = inputs(whole, key), inputs(merged, key)
        for source in set(before) & set(after) - set(counts):
            assert after[source] == pytest.approx(before[source], abs=1e-9)
    scores = merged.graph.graph["kept"]
    assert scores["pruned_replacement_score"] < plain.graph.graph["kept"]["pruned_replacement_score"]
    assert scores["replacement_score"] == pytest.approx(plain.graph.graph["kept"]["replacement_score"], abs=1e-9)


def test_dropped_positions_have_no_nodes_and_change_no_others(spliced: cs.SplicedModel, task: cs.Task) -> None:
    whole = cs.trace(spliced, task, prune=None)
    without = cs.trace(spliced, task, prune=None, drop_positions=[0, -1])
    last = len(whole.tokens) - 1
    assert {whole[k]["position"] for k in whole.features} - {without[k]["position"] for k in without.features} == {
        0,
        last,
    }
    assert not any(without[k]["position"] in (0, last) for k in without.errors)
    for key in without.features[::40]:
        for source, value in inputs(without, key).items():
            assert inputs(whole, key)[source] == pytest.approx(value, abs=1e-10)


def test_every_option_is_recorded(spliced: cs.SplicedModel, task: cs.Task) -> None:
    about = cs.trace(spliced, task, max_nodes=5).graph.graph
    known = {*about, *about["options"]}
    for name in inspect.signature(cs.trace).parameters:
        if name not in ("spliced", "task", "progress", "method_options"):
            assert name in known, name


def test_capped_logits_are_explained_before_the_cap() -> None:
    """Rows add up to what the unembedding gives, as circuit-tracer's do; weights are still those of the capped logit."""
    model, cap = bridge("gemma2"), 2.0
    model.original_model.config.final_logit_softcapping = model.cfg.output_logits_soft_cap = cap
    spliced = with_transcoders(model)
    circuit = cs.trace(
        spliced,
        cs.Task(TOKENS, metric=cs.Logit(7)),
        compat="circuit-tracer",
        drop_positions=[],  # what is no node is missing from the sum of a row
        logit_share=1.0,
        max_logits=50,
    )
    with torch.no_grad():
        hidden = model.original_model.model(torch.tensor([TOKENS])).last_hidden_state[0, -1]
        capped = model.original_model(torch.tensor([TOKENS])).logits[0, -1]
    scores = hidden @ model.original_model.lm_head.weight.T
    torch.testing.assert_close(capped, cap * (scores / cap).tanh(), atol=1e-6, rtol=1e-6)
    assert float((capped - scores).abs().max()) > 0.2
    tops = [node for node in circuit.graph if node.startswith("logit/")]
    assert len(tops) == 50
    for node in tops:
        token = int(node.split("/")[1].split("@")[0])
        value = float(scores[token] - scores.mean())
        assert circuit[node]["activation"] == pytest.approx(value, abs=1e-6)
        assert circuit[node]["probability"] == pytest.approx(float(capped.softmax(-1)[token]), abs=1e-6)
        rows = [edge["contribution"] for *_, edge in circuit.graph.in_edges(node, data=True)]
        assert sum(rows) == pytest.approx(value, abs=1e-6)
        if token == 7:
            weights = [
                edge["weight"] for source, _, edge in circuit.graph.in_edges(node, data=True) if source != "bias"
            ]
            rows = [
                edge["contribution"] for source, _, edge in circuit.graph.in_edges(node, data=True) if source != "bias"
            ]
            slope = 1 - float(capped[7] / cap) ** 2
            assert weights == pytest.approx([-slope * row for row in rows], abs=1e-6)


def test_compat_replaces_defaults_only(transcoders: cs.SplicedModel, task: cs.Task) -> None:
    circuit = cs.trace(
        transcoders, task, compat="circuit-tracer", prune="influence", max_nodes=50, drop_positions=[0, 1]
    )
    options = circuit.graph.graph["options"]
    assert circuit.graph.graph["linearisation"] == "frozen" and options["targets"] == "logits"
    assert (options["compat"], options["max_nodes"], options["drop_positions"]) == ("circuit-tracer", 50, [0, 1])
    assert circuit.graph.graph["prune"] == "influence" and options["skip_positions"] == []


def test_many_tasks_are_the_mean_of_each(spliced: cs.SplicedModel) -> None:
    tasks = [cs.Task(prompt, metric=PLURAL) for prompt in ("The keys to the cabinet", "The keys to the box")]
    mean = cs.trace_many(spliced, tasks, max_nodes=20)
    each = [cs.trace(spliced, task, max_nodes=20) for task in tasks]
    other = cs.aggregate(each)
    assert dict(mean.graph.nodes) == dict(other.graph.nodes)
    assert mean.graph.graph["metric_value"] == pytest.approx(sum(c.graph.graph["metric_value"] for c in each) / 2)
    with pytest.raises(CancelledError, match="after 1 of 2 tasks"):
        cs.trace_many(spliced, tasks, max_nodes=20, progress=lambda done, total, what: done < 1)
    with pytest.raises(InputError, match="There is no task"):
        cs.trace_many(spliced, [])


def test_what_can_not_be_put_together_is_said_before_anything_is_traced(
    spliced: cs.SplicedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitsae.tracing.steps.trace", lambda *args, **options: pytest.fail("it was traced"))
    tasks = [cs.Task(prompt, metric=PLURAL) for prompt in ("The keys to the cabinet", "The old keys")]
    with pytest.raises(InputError, match="from 4 to 6 tokens"):
        cs.trace_many(spliced, tasks)
    with pytest.raises(InputError, match="min_count is 3"):
        cs.trace_many(spliced, tasks, align="sum", min_count=3)
    with pytest.raises(InputError, match="slots has"):
        cs.trace_many(spliced, tasks, align="template", slots=[["a"], ["b"]])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda s, t: cs.trace(s, t, targets="logit"), UnknownNameError, "logits"),
        (lambda s, t: cs.trace(s, t, compat="circuit_tracer"), UnknownNameError, "circuit-tracer"),
        (lambda s, t: cs.trace(s, t, targets="logits", logit_share=1.2), InputError, "logit_share is 1.2"),
        (lambda s, t: cs.trace(s, t, targets="logits", max_logits=0), InputError, "max_logits is 0"),
        (lambda s, t: cs.trace(s, t, top_edges=0), InputError, "top_edges is 0"),
        (lambda s, t: cs.trace(s, t, prune="influence", node_threshold=1.5), InputError, "share of the influence"),
    ],
)
def test_options_out_of_range_are_one_sentence(
    spliced: cs.SplicedModel, task: cs.Task, call: Callable[..., object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        call(spliced, task)
    assert "\n" not in str(caught.value)
