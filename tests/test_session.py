"""A session gives the numbers of the functions, makes nothing twice, and keeps no more than it may."""

import pytest
import torch

import circuitsae as cs
from circuitsae.model import runs
from circuitsae.tracing.steps import options_of

PROMPT = "The keys to the cabinet"
TASK = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"))
PATCHED = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"), patch="The key to the cabinet")


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny")


def test_a_session_gives_what_the_functions_give(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, PATCHED)
    by_hand = cs.node_effects(spliced, PATCHED, method="integrated-gradients", steps=2)
    for method, options in (("attribution-patching", {}), ("relp", {}), ("integrated-gradients", {"steps": 2})):
        found = session.effects(method, **options)
    assert found.options == by_hand.options
    for mine, theirs in zip(found.blocks, by_hand.blocks, strict=True):
        torch.testing.assert_close(mine.effects, theirs.effects)
    circuit, alone = session.trace(max_nodes=12, measure=3), cs.trace(spliced, PATCHED, max_nodes=12, measure=3)
    assert set(circuit.graph) == set(alone.graph)
    for key, data in alone.graph.nodes(data=True):
        if "effect" in data:
            assert circuit.graph.nodes[key]["effect"] == pytest.approx(data["effect"], abs=1e-5)
    assert circuit.graph.graph["options"] == alone.graph.graph["options"]
    node = circuit.strongest(1)[0]
    result = session.intervene([cs.Ablate(node)], attention="frozen")
    assert result.effect == pytest.approx(
        cs.intervene(spliced, PATCHED, [cs.Ablate(node)], attention="frozen").effect, abs=1e-5
    )
    measured = session.measure([node])
    assert list(measured) == [node]
    assert measured[node] == pytest.approx(cs.intervene(spliced, PATCHED, [cs.Ablate(node)]).effect, abs=1e-4)
    assert session.estimate(max_nodes=12).forward == cs.estimate(spliced, PATCHED, max_nodes=12).forward


def test_a_trace_followed_by_an_intervention_makes_one_clean_run(
    spliced: cs.SplicedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, ...]] = []
    real = runs.take_apart

    def counted(*args: object, **kwargs: object) -> object:
        made.append(tuple(args[1]))  # type: ignore[arg-type]
        return real(*args, **kwargs)  # type: ignore[arg-type]

    from circuitsae.attribution import context

    monkeypatch.setattr(runs, "take_apart", counted)
    monkeypatch.setattr(context, "take_apart", counted)
    session = cs.Session(spliced, PATCHED)
    circuit = session.trace(max_nodes=8, measure=2)
    session.intervene([cs.Ablate(circuit.strongest(1)[0])])
    session.measure(circuit.strongest(4))
    session.faithfulness(circuit)
    assert len(made) == 2  # the prompt and the patch prompt
    assert made[0] != made[1]


def test_effects_say_what_their_question_cost(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, TASK)
    first, second = session.effects("attribution-patching"), session.effects("relp")
    assert first.passes == {"forward": 1, "backward": 1}
    assert second.passes == {"forward": 1, "backward": 1}  # the clean run is there
    assert session.passes == {"forward": 2, "backward": 2}


def test_what_exceeds_the_memory_is_given_back_and_made_again(spliced: cs.SplicedModel) -> None:
    tight, roomy = cs.Session(spliced, TASK, memory=0), cs.Session(spliced, TASK)
    expected = roomy.trace(max_nodes=8)
    assert 0 < roomy.nbytes < roomy.memory
    assert set(tight.trace(max_nodes=8).graph) == set(expected.graph)
    assert tight.nbytes == 0
    node = expected.strongest(1)[0]
    assert tight.measure([node])[node] == pytest.approx(roomy.measure([node])[node], abs=1e-5)
    with roomy:
        pass
    assert roomy.nbytes == 0


def test_faithfulness_of_all_nodes_is_one_and_of_few_is_measured(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, PATCHED)
    everything = session.trace(max_nodes=None, node_threshold=0, edge_threshold=0, prune=None)
    whole = session.faithfulness(everything, n_random=2)
    assert whole.size == whole.pool
    assert whole.faithfulness == pytest.approx(1, abs=1e-3)
    assert whole.completeness == pytest.approx(0, abs=1e-3)
    assert whole.metric == pytest.approx(session.metric, abs=1e-4)
    few = session.trace(max_nodes=6).strongest(6)
    found = session.faithfulness(few)
    report = cs.evaluate(spliced, [PATCHED], dict.fromkeys(few, 1.0), compare=(), method=None, grid=(1.0,))
    assert report.faithfulness is not None and report.completeness is not None
    assert found.size == 6
    assert found.empty == pytest.approx(report.empty_metric.value, abs=1e-4)
    assert found.faithfulness == pytest.approx(report.faithfulness.value, abs=1e-4)
    assert found.completeness == pytest.approx(report.completeness.value, abs=1e-4)


def test_faithfulness_says_what_is_wrong_with_a_set(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, TASK)
    with pytest.raises(cs.CircuitsaeError, match="can be set to a baseline"):
        session.faithfulness(["token@1"])
    with pytest.raises(cs.CircuitsaeError, match="past the end"):
        session.faithfulness([f"{spliced.sites[0]}/0@999"])


@pytest.mark.unchecked
def test_faithfulness_names_the_ways_to_treat_errors(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, TASK)
    with pytest.raises(cs.CircuitsaeError, match="way to treat errors"):
        session.faithfulness([session.trace(max_nodes=2).features[0]], errors="some")  # type: ignore[arg-type]


def test_nodes_outside_prompt_or_dictionary_have_no_effect_that_could_be_told(spliced: cs.SplicedModel) -> None:
    session, site = cs.Session(spliced, TASK), spliced.sites[0]
    for key in (f"{site}/0@99", f"{site}/99999@1", f"{spliced.written[0]}/error@99", "token@99"):
        with pytest.raises(cs.CircuitsaeError, match="outside"):
            session.measure([key])


def test_what_is_settled_at_opening_can_not_be_asked_later(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, PATCHED)
    with pytest.raises(cs.CircuitsaeError, match="settled when a session is opened"):
        session.trace(baseline="zero")
    with pytest.raises(cs.CircuitsaeError, match="open the session with baseline='zero'"):
        session.trace(compat="circuit-tracer")
    plain = cs.Session(spliced.skipping([], sinks=False), TASK, baseline="zero")
    ours, theirs = plain.trace(compat="circuit-tracer"), cs.trace(spliced, TASK, compat="circuit-tracer")
    assert set(ours.graph) == set(theirs.graph)


def test_what_is_given_holds_against_a_named_set_even_at_its_default() -> None:
    asked = options_of({"compat": "circuit-tracer", "max_nodes": 256, "linearisation": "gradient", "prune": "top-k"})
    assert (asked.graph.max_nodes, asked.graph.linearisation, asked.graph.targets) == (256, "gradient", "logits")
    asked = options_of({"compat": "circuit-tracer"})
    assert (asked.graph.max_nodes, asked.graph.linearisation, asked.graph.drop_positions) == (None, "frozen", (0,))
