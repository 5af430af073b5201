"""What a circuit shows first is measured: the default method, and everything that goes by effects."""

from pathlib import Path

import networkx as nx
import pytest
import torch

import circuitsae as cs
from circuitsae.cli.main import run
from circuitsae.graph.aggregation import aggregate
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import known_effect

PROMPT = "The keys to the cabinet"
TASK = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"))


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64)


@pytest.fixture(scope="module")
def circuit(spliced: cs.SplicedModel) -> Circuit:
    return cs.trace(spliced, TASK, max_nodes=64)


def test_the_ten_strongest_are_measured_and_among_the_true_twenty(spliced: cs.SplicedModel, circuit: Circuit) -> None:
    assert circuit.graph.graph["method"] == "auto"
    exact = cs.node_effects(spliced, TASK, method="ablation", tokens=False)
    true = [row["node"] for row in exact.strongest(20, ("feature", "error"))]
    strongest = circuit.strongest(10)
    assert set(strongest) <= set(true)
    for key in strongest:
        assert circuit[key]["measured_effect"] == pytest.approx(exact.effect_of(key), abs=1e-9)
    predicted = cs.node_effects(spliced, TASK, method="attribution-patching")
    half_rule = cs.node_effects(spliced, TASK, method="relp", scales=False, patterns=False)
    for key in strongest:  # what was predicted is kept beside it
        mean = (predicted.effect_of(key) + half_rule.effect_of(key)) / 2
        assert circuit[key]["effect"] == pytest.approx(mean, abs=1e-9)


def test_nothing_that_is_measured_is_measured_again(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, TASK)
    session.trace(max_nodes=64)
    before = session.passes["forward"]
    session.trace(max_nodes=64, measure=5)
    again = session.passes["forward"] - before
    before = session.passes["forward"]
    session.trace(max_nodes=64)
    assert again == pytest.approx(session.passes["forward"] - before)


def test_reports_show_both_and_say_which(circuit: Circuit, spliced: cs.SplicedModel) -> None:
    header = next(line for line in circuit.report(3).splitlines() if line.startswith("strongest nodes"))
    assert header.split()[-2:] == ["measured", "predicted"]
    predicted = cs.trace(spliced, TASK, method="attribution-patching", max_nodes=8)
    assert "measured" not in predicted.report(3) and " effect" in predicted.report(3)
    exact = cs.trace(spliced, TASK, method="ablation", max_nodes=8)
    assert "measured" in exact.report(3) and "predicted" not in exact.report(3)


def made(**effects: tuple[float, float | None]) -> Circuit:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("metric", kind="metric")
    for number, (effect, measured) in enumerate(effects.values()):
        key = f"blocks.0.hook_mlp_out/{number}@1"
        extra = {} if measured is None else {"measured_effect": measured}
        graph.add_node(key, kind="feature", activation=1.0, effect=effect, **extra)
        graph.add_edge(key, "metric", contribution=1.0, weight=effect)
    return Circuit(graph)


def test_what_goes_by_effects_goes_by_the_measured_one() -> None:
    overstated, small, other = (f"blocks.0.hook_mlp_out/{n}@1" for n in range(3))
    circuit = made(a=(-2.73, 0.08), b=(0.5, None), c=(0.1, -1.5))
    assert circuit.strongest(3) == [other, small, overstated]
    assert [row["node"] for row in circuit.nodes_table()][:3] == [other, small, overstated]
    assert circuit.pruned("top-k", max_nodes=2).features == [small, other]
    mean = aggregate([circuit, made(a=(-1.0, None), b=(0.5, None), c=(0.1, None))])
    assert mean[overstated]["effect"] == pytest.approx((0.08 - 1.0) / 2)
    assert known_effect(mean[other]) == pytest.approx((-1.5 + 0.1) / 2)  # not the one circuit's measured effect
    difference = cs.compare(circuit, made(a=(-2.73, None), b=(0.5, None), c=(0.1, -1.5))).circuit
    assert difference.strongest(1) == [overstated]
    assert difference[overstated]["effect"] == pytest.approx(-2.73 - 0.08)


def test_an_option_that_was_not_written_leaves_compat_alone(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    asked = ["trace", PROMPT, "--answer", " are", "--preset", "tiny-transcoders", "--compat", "circuit-tracer"]
    assert run([*asked, "--prune", "influence", "-o", str(file), "--quiet"]) == 0
    about = Circuit.load(file).graph.graph
    assert (about["linearisation"], about["options"]["targets"]) == ("frozen", "logits")
    assert (about["method"], about["prune"]) == ("attribution-patching", "influence")
    assert run([*asked, "--linearisation", "gradient", "-o", str(file), "--quiet"]) == 0
    assert Circuit.load(file).graph.graph["linearisation"] == "gradient"
