"""The engine finds planted circuits exactly; and what is not the truth is seen not to be."""

import dataclasses

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import InputError
from circuitsae.evaluation.evaluator import evaluate
from circuitsae.testing.planted import PLANTED, check, compare_with


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", PLANTED)
def test_the_traced_graph_is_the_planted_one(name: str, seed: int) -> None:
    verdict = compare_with(PLANTED[name](seed))
    assert (verdict.node_precision, verdict.node_recall) == (1, 1)
    assert (verdict.edge_precision, verdict.edge_recall) == (1, 1)
    assert verdict.ranking == 1
    assert verdict.by_activation < 0.6
    assert verdict.by_chance < 0.6
    assert verdict.holds


@pytest.mark.parametrize("name", PLANTED)
def test_the_models_do_what_they_were_built_for(name: str) -> None:
    planted = PLANTED[name](0)
    spliced, prepared = planted.spliced, planted.task.prepare(planted.spliced.vocabulary)
    with torch.no_grad():
        logits = spliced.model(torch.tensor([prepared.tokens]))[0, -1]
    assert int(logits.argmax()) == prepared.metric.description["token_ids"]["answer"]
    # Really ablating a planted node changes the metric; really ablating any other leaves it, attention aside.
    effects = cs.node_effects(spliced, planted.task, method="ablation")
    for row in effects.records(("feature",)):
        if row["node"] in planted.nodes:
            assert abs(row["effect"]) > 1e-2, row


def test_a_linearisation_that_ignores_queries_and_keys_misses_those_of_induction() -> None:
    verdict = compare_with(PLANTED["induction"](0), linearisation="frozen")
    assert verdict.edge_precision == 1
    assert verdict.edge_recall < 1
    assert not verdict.holds


def test_a_wrong_truth_does_not_hold() -> None:
    planted = PLANTED["copy"](0)
    other = "blocks.0.hook_resid_pre/0@1"
    wrong = dataclasses.replace(planted, nodes=planted.nodes | {other})
    verdict = compare_with(wrong)
    assert verdict.node_recall == pytest.approx(2 / 3)
    assert verdict.ranking < 1
    assert not verdict.holds
    fewer = dataclasses.replace(planted, edges=frozenset(list(planted.edges)[:1]))
    assert compare_with(fewer).edge_precision == 0.5


def test_check_gives_a_verdict_for_every_circuit_and_passes_options_on() -> None:
    verdicts = check(method="ablation")
    assert [v.name for v in verdicts] == list(PLANTED)
    assert all(set(v.to_json()) >= {"name", "holds"} for v in verdicts)
    with pytest.raises(InputError):
        check(method="nothing")


def test_the_planted_nodes_and_what_settles_attention_are_the_whole_circuit() -> None:
    for name in ("copy", "comparison", "two-step"):
        planted = PLANTED[name](0)
        effects = cs.node_effects(planted.spliced, planted.task, method="ablation")
        # The gradient does not see a settled attention move, and rightly; really ablating a position unsettles it.
        positions = {r["node"] for r in effects.records(("feature",)) if abs(r["effect"]) > 1e-9} - planted.nodes
        assert positions
        circuit = dict.fromkeys(planted.nodes | positions, 1.0)
        found = evaluate(planted.spliced, [planted.task], circuit, baseline="zero", compare=(), grid=(1.0,))
        assert found.faithfulness is not None
        assert found.completeness is not None
        assert found.faithfulness.value == pytest.approx(1, abs=1e-9)
        assert found.completeness.value == pytest.approx(0, abs=1e-9)
