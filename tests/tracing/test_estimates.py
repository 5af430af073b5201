"""What an estimate says against the real thing: the model's forward and backward passes, counted while it runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae import registry
from circuitsae.attribution.context import Context
from circuitsae.attribution.effects import NoOptions
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.tracing import estimates

TASK = cs.Task("Mary and John went to", metric=cs.LogitDiff(" Mary", " John"))
PATCHED = cs.Task(TASK.prompt, metric=TASK.metric, patch="John and Mary went to")


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", skip_positions=[])


@dataclass
class Counts:
    """Blocks gone through, by token and copy, in units of whole passes."""

    forward: float = 0.0
    backward: float = 0.0


@pytest.fixture
def counts(spliced: cs.SplicedModel) -> Iterator[Counts]:
    """Counts tokens through every block, on the way up and on the way down, with torch's own hooks on its layers.

    A block is counted by one layer of its MLP, which a block that a run starts above, or does not come to, never calls.
    """
    counted = Counts()
    n_tokens = len(TASK.prepare(spliced.vocabulary).tokens)
    unit = 1 / (spliced.n_layers * n_tokens)

    def down(gradient: Tensor) -> None:
        counted.backward += gradient.shape[0] * gradient.shape[1] * unit

    def up(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = output[0] if isinstance(output, tuple) else output
        counted.forward += x.shape[0] * x.shape[1] * unit
        if x.requires_grad:
            x.register_hook(down)

    handles = [block.ln1.register_forward_hook(up) for block in spliced.model.blocks]
    yield counted
    for handle in handles:
        handle.remove()


FIXED: list[tuple[str, dict[str, Any]]] = [
    ("attribution-patching", {}),
    ("attribution-patching", {"gradient": "frozen"}),
    ("attribution-patching", {"gradient": "through-dictionary"}),
    ("relp", {}),
    ("relp", {"scales": False, "patterns": False, "mlps": False}),
    ("gim", {}),
    ("atp-star", {}),
    ("atp-star", {"drop": False}),
    ("integrated-gradients", {"steps": 3}),
    ("integrated-gradients", {"steps": 2, "tokens": False}),
    ("ablation", {}),
    ("ablation", {"tokens": False}),
]


@pytest.mark.parametrize("task", [TASK, PATCHED], ids=["zero", "patch"])
@pytest.mark.parametrize(("method", "options"), FIXED, ids=[f"{m}-{o}" for m, o in FIXED])
def test_a_methods_passes_are_those_that_it_makes(
    spliced: cs.SplicedModel, counts: Counts, task: cs.Task, method: str, options: dict[str, Any]
) -> None:
    said = cs.estimate(spliced, task, graph=False, method=method, **options)
    cs.node_effects(spliced, task, method=method, **options)  # what is tried once a model is tried here
    counts.forward = counts.backward = 0.0
    found = cs.node_effects(spliced, task, method=method, **options)
    assert not any(step.at_most for step in said.steps)
    assert said.forward == pytest.approx(found.passes["forward"])
    assert said.backward == pytest.approx(found.passes["backward"])
    # the half of a prompt that keys and values are tried on may be half a token more
    n_tokens = len(task.prepare(spliced.vocabulary).tokens)
    assert counts.forward == pytest.approx(said.forward, abs=0.51 / n_tokens if method == "ablation" else 1e-9)
    if method == "integrated-gradients":  # below a site that ends a layer, that layer is not gone back through
        counts.backward += sum(options["steps"] for _ in spliced.sites) / spliced.n_layers
    assert counts.backward == pytest.approx(said.backward)


@pytest.mark.parametrize("passes", [4, 6, 10, 1000])
def test_what_auto_may_spend_bounds_what_it_spends(spliced: cs.SplicedModel, passes: float) -> None:
    said = cs.estimate(spliced, TASK, graph=False, method="auto", passes=passes)
    found = cs.node_effects(spliced, TASK, method="auto", passes=passes).passes
    [step] = said.steps
    assert step.at_most
    assert step.forward + step.backward <= 2 * passes + 1e-9
    assert found["forward"] <= step.forward + 1e-9
    assert found["backward"] == step.backward
    assert passes > 10 or found["forward"] >= step.forward / 2


@pytest.mark.parametrize("graph", [{}, {"linearisation": "frozen"}, {"error_targets": True}, {"prune": None}])
def test_edges_go_to_as_many_features_as_said_and_their_passes_are_of_that_size(
    spliced: cs.SplicedModel, counts: Counts, graph: dict[str, Any]
) -> None:
    options = {"max_nodes": 40, **graph}
    said = cs.estimate(spliced, TASK, **options)
    totals: dict[str, int] = {}

    def progress(done: int, total: int, what: str) -> None:
        totals[what] = total

    cs.trace(spliced, TASK, **options)  # what is tried once a model is tried here
    counts.forward = 0.0
    circuit = cs.trace(spliced, TASK, progress=progress, **options)
    assert totals["targets"] == said.targets == (40 if "prune" not in graph else said.features)
    effects, edges = said.steps
    assert edges.at_most
    assert counts.forward - effects.forward <= edges.forward * 1.5
    assert counts.forward - effects.forward >= edges.forward / 3
    kept = said.memory["graph"] / estimates._EDGE_BYTES
    assert circuit.graph.number_of_edges() / 4 < kept < circuit.graph.number_of_edges() * 4


def test_measuring_is_bounded_by_a_pass_a_node(spliced: cs.SplicedModel, counts: Counts) -> None:
    said = cs.estimate(spliced, TASK, max_nodes=10, measure=6)
    without = cs.estimate(spliced, TASK, max_nodes=10)
    assert [step.name for step in said.steps] == ["effects", "edges", "measuring"]
    assert said.forward - without.forward == said.steps[2].forward <= 6
    assert said.steps[2].backward == 0


def test_reference_prompts_are_counted_by_their_length(spliced: cs.SplicedModel, counts: Counts) -> None:
    n_tokens = len(TASK.prepare(spliced.vocabulary).tokens)
    reference = ["The keys to the cabinet", "The keys"]
    asked = {"method": "attribution-patching", "baseline": "mean", "reference": reference}
    said = cs.estimate(spliced, TASK, graph=False, **asked)
    cs.node_effects(spliced, TASK, **asked)
    counts.forward = 0.0
    cs.node_effects(spliced, TASK, **asked)
    assert said.forward == pytest.approx(counts.forward)
    assert said.steps[1].forward == pytest.approx(
        sum(len(spliced.vocabulary.encode(prompt)) for prompt in reference) / n_tokens
    )


def test_a_long_prompt_is_judged_by_its_beginning(
    spliced: cs.SplicedModel, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = cs.Task("The keys to the cabinet and the old box near the door of the house", metric=TASK.metric)
    n_tokens = len(long.prepare(spliced.vocabulary).tokens)
    whole = cs.estimate(spliced, long, graph=False, method="ablation")
    counts.forward = 0.0
    monkeypatch.setattr(estimates, "PROBE", 6)
    part = cs.estimate(spliced, long, graph=False, method="ablation")
    assert (whole.probed, part.probed) == (n_tokens, 6)
    assert whole.notes == ()
    assert part.notes == ("measured on the first 6 tokens, and scaled",)
    assert part.steps[0].at_most
    assert part.forward == pytest.approx(whole.forward, rel=0.5)
    assert part.features == pytest.approx(whole.features, rel=0.5)
    assert part.memory["tape"] == pytest.approx(whole.memory["tape"], rel=0.5)


def test_more_work_takes_longer_and_more_room(spliced: cs.SplicedModel) -> None:
    few, many = (cs.estimate(spliced, TASK, max_nodes=n) for n in (8, 100))
    assert many.steps[1].backward > 10 * few.steps[1].backward
    assert many.bytes > few.bytes > few.memory["run"] > 0
    assert all(math.isfinite(step.seconds) and step.seconds > 0 for step in (*few.steps, *many.steps))


class Strange:
    """A stranger's method that tells nothing of its cost in numbers."""

    name: ClassVar[str] = "strange"
    cost: ClassVar[str] = "a few passes"
    Options: ClassVar[type] = NoOptions

    def __call__(self, context: Context, options: NoOptions) -> NodeEffects:
        raise AssertionError("an estimate runs no method")


def test_a_method_that_does_not_say_counts_as_one_pass_each_way(spliced: cs.SplicedModel) -> None:
    registry.register("methods", "strange", Strange)
    try:
        said = cs.estimate(spliced, TASK, graph=False, method="strange")
    finally:
        registry.unregister("methods", "strange")
    assert (said.forward, said.backward) == (1, 1)
    assert said.notes == ("the method 'strange' doesn't say its passes; counted as one each way",)
    assert said.notes[0] in str(said)


def test_every_method_of_the_package_says_its_passes(spliced: cs.SplicedModel) -> None:
    for plugin in registry.plugins("methods"):
        if plugin.distribution == "circuitsae":
            assert not cs.estimate(spliced, TASK, graph=False, method=plugin.name).notes


def test_settings_are_those_of_a_trace(spliced: cs.SplicedModel) -> None:
    with pytest.raises(UnknownNameError, match="relpp"):
        cs.estimate(spliced, TASK, method="relpp")
    with pytest.raises(InputError, match="has no option 'step'"):
        cs.estimate(spliced, TASK, method="integrated-gradients", step=3)
    with pytest.raises(InputError, match="max_nodes is 0"):
        cs.estimate(spliced, TASK, max_nodes=0)
    frozen = cs.estimate(spliced, TASK, compat="circuit-tracer")
    assert frozen.targets < frozen.features  # the first position's are no nodes


def test_an_estimate_reads_well_and_is_plain_data(spliced: cs.SplicedModel) -> None:
    said = cs.estimate(spliced, TASK, method="auto", measure=3)
    lines = said.describe().splitlines()
    assert str(said) == said.describe()
    assert lines[0].startswith("about ")
    assert [line.split(":")[0].strip() for line in lines[1:5]] == ["effects", "edges", "measuring", "memory"]
    assert "at most 18 forward + 2 backward" in lines[1]
    found = said.to_json()
    assert found["forward"] == said.forward
    assert found["steps"][0]["name"] == "effects"
    assert found["bytes"] == said.bytes
    assert estimates._duration(0.123) == "0.12 s"
    assert estimates._duration(75) == "75 s"
    assert estimates._duration(600) == "10 min"
    assert estimates._duration(7200) == "2.0 h"
