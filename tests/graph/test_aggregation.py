"""Circuits averaged over prompts and compared: by hand, and against numpy on random ones."""

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.aggregation import aggregate
from circuitsae.graph.alignment import align_circuits
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.comparison import compare
from circuitsae.graph.schema import known_effect
from tests.synthetic import synthetic_circuit

SITE, ABOVE = "blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"


def circuit(tokens: str, features: dict[str, float], edges: dict[tuple[str, str], float], **about: Any) -> Circuit:
    """A small circuit: nodes by key with their effects, edges with their weights (contribution = -2 * weight)."""
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=tokens.split("|"), metric={"name": "logit", "description": "m"}, **about)
    for key, effect in features.items():
        graph.add_node(key, effect=effect, activation=abs(effect), token="?")
    graph.add_node("metric")
    for (source, target), weight in edges.items():
        graph.add_edge(source, target, weight=weight, contribution=-2 * weight)
    return Circuit(graph)


def made_up(**settings: Any) -> Circuit:
    """A synthetic circuit that does not say which weights its dictionaries have: different ones are compared here."""
    made = synthetic_circuit(**settings)
    for dictionary in made.graph.graph["dictionaries"]:
        del dictionary["fingerprint"]
    return made


A = circuit("The| key", {f"{SITE}/1@1": -2.0, f"{SITE}/2@0": 1.0}, {(f"{SITE}/1@1", "metric"): -2.0}, metric_value=3.0)
B = circuit(
    "The| keys",
    {f"{SITE}/1@1": -4.0, f"{ABOVE}/3@1": 0.5},
    {(f"{SITE}/1@1", "metric"): -3.0, (f"{SITE}/1@1", f"{ABOVE}/3@1"): 1.0, (f"{ABOVE}/3@1", "metric"): 0.5},
    metric_value=5.0,
)


def test_means_count_what_is_missing_as_zero() -> None:
    mean = aggregate([A, B])
    both, one = mean[f"{SITE}/1@1"], mean[f"{SITE}/2@0"]
    assert (both["effect"], both["effect_std"], both["count"]) == (-3.0, 1.0, 2)
    assert (both["activation"], both["activation_std"]) == (3.0, 1.0)
    assert (one["effect"], one["effect_std"], one["count"]) == (0.5, 0.5, 1)
    edge = mean.graph.edges[f"{SITE}/1@1", "metric"]
    assert (edge["weight"], edge["weight_std"], edge["count"]) == (-2.5, 0.5, 2)
    assert (edge["contribution"], edge["contribution_std"]) == (5.0, 1.0)
    about = mean.graph.graph
    assert about["metric_value"] == 4.0 and about["tokens"] == ["The", " key| keys"]
    assert about["aggregate"] == {"prompts": 2, "align": "position", "min_count": 1}
    assert [row["prompt"] for row in about["prompts"]] == ["The key", "The keys"]
    assert f"{SITE}/2@0" not in aggregate([A, B], min_count=2)


def test_summed_positions_are_one_node_a_feature() -> None:
    first = circuit("a|b", {f"{SITE}/1@0": -1.0, f"{SITE}/1@1": -2.0}, {(f"{SITE}/1@1", "metric"): -2.0})
    second = circuit("a|b|c", {f"{SITE}/1@2": -5.0}, {(f"{SITE}/1@2", "metric"): -4.0})
    mean = aggregate([first, second], align="sum")
    node = mean[f"{SITE}/1"]
    assert (node["effect"], node["effect_std"], node["count"]) == (-4.0, 1.0, 2)
    assert "position" not in node and "tokens" not in mean.graph.graph
    assert mean.graph.edges[f"{SITE}/1", "metric"]["weight"] == -3.0


def test_templates_are_aligned_by_the_tokens_that_all_share() -> None:
    texts = [
        "When| Mary| went| to| the| store",
        "When| Anne|-|Marie| went| to| the| park",
        "When| Bob| went| to| the| inn",
    ]
    circuits = [circuit(text, {f"{SITE}/1@1": -1.0}, {}) for text in texts]
    found = align_circuits(circuits, "template")
    assert found.tokens == ("When", "{1}", " went", " to", " the", "{2}")
    assert found.places == ((0, 1, 2, 3, 4, 5), (0, 1, 1, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5))
    assert aggregate(circuits, align="template")[f"{SITE}/1@1"]["count"] == 3


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=1, max_size=7), min_size=1, max_size=4))
def test_template_slots_keep_the_order_of_every_prompt(prompts: list[list[str]]) -> None:
    circuits = [circuit("|".join(prompt), {}, {}) for prompt in prompts]
    found = align_circuits(circuits, "template")
    assert found.places is not None and found.tokens is not None
    for prompt, places in zip(prompts, found.places, strict=True):
        assert list(places) == sorted(places)
        for token, place in zip(prompt, places, strict=True):
            assert found.tokens[place] in (token, *[f"{{{n}}}" for n in range(1, 20)])
    if len({tuple(prompt) for prompt in prompts}) == 1:
        assert found.tokens == tuple(prompts[0])


def test_named_slots_put_positions_together() -> None:
    first = circuit("Anne|-|Marie| runs", {f"{SITE}/1@0": -1.0, f"{SITE}/1@2": -2.0}, {})
    second = circuit("Bob| runs", {f"{SITE}/1@0": -5.0}, {})
    mean = aggregate([first, second], align="template", slots=[["who", "who", "who", "verb"], ["who", "verb"]])
    assert mean.graph.graph["tokens"] == ["who", "verb"]
    assert (mean[f"{SITE}/1@0"]["effect"], mean[f"{SITE}/1@0"]["token"]) == (-4.0, "who")


@given(st.integers(1, 5), st.integers(0, 1000))
def test_means_and_spreads_equal_numpy(n: int, seed: int) -> None:
    circuits = [made_up(seed=seed + i, n_features=12, layers=(1, 2), d_sae=8) for i in range(n)]
    mean = aggregate(circuits)
    for key, data in mean.graph.nodes(data=True):
        for name in ("effect", "activation"):
            every = [c.graph.nodes[key] if key in c else {} for c in circuits]
            known = [known_effect(d) or 0.0 if name == "effect" else d.get(name, 0.0) for d in every]
            values = np.array(known)
            if name in data:
                assert data[name] == pytest.approx(values.mean(), abs=1e-9)
                assert data[f"{name}_std"] == pytest.approx(values.std(), abs=1e-9)
    for source, target, data in mean.graph.edges(data=True):
        found = [c.graph.get_edge_data(source, target, {"weight": 0.0})["weight"] for c in circuits]
        assert data["weight"] == pytest.approx(np.mean(found), abs=1e-9)
        assert data["weight_std"] == pytest.approx(np.std(found), abs=1e-9)
        assert data["count"] == sum(c.graph.has_edge(source, target) for c in circuits)


def test_what_can_not_be_put_together_is_said() -> None:
    longer = circuit("The| key| is", {}, {})
    with pytest.raises(InputError, match="from 2 to 3 tokens; expected one length"):
        aggregate([A, longer])
    with pytest.raises(InputError, match="No circuit was given"):
        aggregate([])
    with pytest.raises(UnknownNameError, match="position"):
        aggregate([A], align="positions")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="min_count is 3; expected from 1 to the number of circuits, 2"):
        aggregate([A, B], min_count=3)
    with pytest.raises(InputError, match="expected one a token"):
        aggregate([A, B], align="template", slots=[["a"], ["a", "b"]])
    with pytest.raises(InputError, match="slots are for"):
        aggregate([A, B], slots=[["a", "b"], ["a", "b"]])
    other = circuit("The| key", {}, {}, model={"name": "other"})
    with pytest.raises(InputError, match="different models"):
        aggregate([circuit("The| key", {}, {}, model={"name": "one"}), other])
    trained = [circuit("a", {}, {}, dictionaries=[{"site": SITE, "fingerprint": f}]) for f in ("aa", "bb")]
    with pytest.raises(InputError, match="different dictionaries at"):
        compare(*trained)
    graph = A.subgraph(A.graph).graph
    graph.graph["metric"] = {"name": "loss", "description": ""}
    with pytest.raises(InputError, match="different metrics"):
        aggregate([A, Circuit(graph)])


def test_a_comparison_by_hand() -> None:
    found = compare(A, B)
    assert found.shared == [f"{SITE}/1@1"] and found.only_a == [f"{SITE}/2@0"] and found.only_b == [f"{ABOVE}/3@1"]
    node = found.circuit[f"{SITE}/1@1"]
    assert (node["effect"], node["effect_a"], node["effect_b"], node["side"]) == (-2.0, -2.0, -4.0, "shared")
    gone = found.circuit[f"{SITE}/2@0"]
    assert (gone["effect"], gone["effect_a"], gone["side"]) == (-1.0, 1.0, "a") and "effect_b" not in gone
    edge = found.circuit.graph.edges[f"{SITE}/1@1", "metric"]
    assert (edge["weight"], edge["weight_a"], edge["weight_b"], edge["side"]) == (-1.0, -2.0, -3.0, "shared")
    assert found.circuit.graph.edges[f"{ABOVE}/3@1", "metric"]["side"] == "b"
    assert found.similarity["node_overlap"] == 1 / 3 and found.similarity["edge_overlap"] == 1 / 3
    assert found.similarity["effect_overlap"] == pytest.approx(2 / (4 + 1 + 0.5))
    assert found.circuit.graph.graph["metric_value"] == 2.0
    report = found.report()
    assert "'The key', m = 3" in report and "1 shared, 1 only in a, 1 only in b" in report
    assert {row["node"]: row["side"] for row in found.nodes_table()}[f"{ABOVE}/3@1"] == "b"
    assert found.edges_table()[0]["weight"] in (-1.0, 1.0)


@given(st.integers(0, 1000))
def test_a_circuit_does_not_differ_from_itself(seed: int) -> None:
    one = made_up(seed=seed, n_features=15, layers=(1, 2))
    same = compare(one, one, align="sum")
    assert not same.only_a and not same.only_b
    assert all(data["effect"] == 0 for _, data in same.circuit.graph.nodes(data=True) if "effect" in data)
    assert all(data["weight"] == 0 for *_, data in same.circuit.graph.edges(data=True))
    assert same.similarity["node_overlap"] == same.similarity["edge_overlap"] == 1
    assert same.similarity["effect_correlation"] == pytest.approx(1)
    assert same.similarity["effect_overlap"] == pytest.approx(1)


@given(st.integers(0, 1000))
def test_the_other_way_round_every_difference_turns(seed: int) -> None:
    a, b = (made_up(seed=seed + i, n_features=15, layers=(1, 2), d_sae=12) for i in range(2))
    there, back = compare(a, b), compare(b, a)
    assert there.only_a == back.only_b and set(there.shared) == set(back.shared)
    for key, data in there.circuit.graph.nodes(data=True):
        assert data.get("effect", 0.0) == -back.circuit[key].get("effect", 0.0)
    assert there.similarity == pytest.approx(back.similarity)


@pytest.mark.parametrize("suffix", [".json", ".node-link.json", ".graphml", ".gexf", ".csv", ".dot", ".html"])
def test_their_attributes_go_through_every_exporter(suffix: str, tmp_path: Path) -> None:
    for name, made in (("mean", aggregate([A, B])), ("difference", compare(A, B).circuit)):
        files = made.export(tmp_path / f"{name}{suffix}")
        assert all(file.stat().st_size for file in files)
        if suffix == ".json":
            assert Circuit.load(files[0]) == made
        if suffix in (".graphml", ".gexf"):
            read = {".graphml": nx.read_graphml, ".gexf": nx.read_gexf}[suffix](files[0])
            for key, data in made.graph.nodes(data=True):
                for attribute in ("effect", "effect_std", "count", "effect_a", "effect_b", "side"):
                    assert read.nodes[key].get(attribute) == data.get(attribute), (key, attribute)
            for *ends, data in made.graph.edges(data=True):
                for attribute in ("weight", "weight_std", "count", "weight_a", "side"):
                    assert read.edges[ends].get(attribute) == data.get(attribute), (ends, attribute)
        if suffix == ".csv":
            header = files[0].read_text().splitlines()[0].split(",")
            assert {"effect_std", "count"} <= set(header) if name == "mean" else {"effect_a", "side"} <= set(header)
        if suffix == ".node-link.json":
            assert any("count" in row or "side" in row for row in json.loads(files[0].read_text())["nodes"])


def test_influence_prunes_a_mean_and_a_file(tmp_path: Path) -> None:
    mean = aggregate([made_up(seed=i, n_features=40) for i in range(3)])
    pruned = mean.pruned("influence", node_threshold=0.6)
    assert 0 < len(pruned.features) < len(mean.features)
    assert pruned.graph.graph["prune"] == "influence" and pruned.graph.graph["options"]["node_threshold"] == 0.6
    assert 0 < pruned.graph.graph["kept"]["influence_share"] < 1
    for key in pruned.features:
        assert pruned.graph.out_degree(key) and pruned.graph.in_degree(key)
    assert len(mean.features) > len(pruned.features), "the whole stays as it was"
    strongest = mean.pruned("top-k", max_nodes=10, edge_threshold=0.01)
    assert strongest.features and set(strongest.features) == set(mean.strongest(10, kind="feature"))
    assert all(abs(data["weight"]) >= 0.01 for s, _, data in strongest.graph.edges(data=True) if s != "bias")
    merged = mean.pruned("influence", node_threshold=0.6, merge_pruned=True)
    taking = [data for _, data in merged.graph.nodes(data=True) if "merged" in data]
    assert taking and all(data["kind"] == "error" and "activation" not in data for data in taking)
    assert math.isfinite(sum(data["effect"] for data in taking))
    merged.save(tmp_path / "merged.json")
    assert Circuit.load(tmp_path / "merged.json") == merged


@pytest.mark.parametrize("align", ["position", "template", "sum"])
def test_an_iterator_gives_what_a_list_gives_in_any_order_and_nothing_is_kept(align: Any) -> None:
    circuits = [made_up(seed=i, n_features=20) for i in range(5)]
    alive: list[weakref.ref[Circuit]] = []

    def one_by_one() -> Iterator[Circuit]:
        for number in range(5):
            assert align == "template" or sum(ref() is not None for ref in alive) <= 1
            made = made_up(seed=number, n_features=20)
            alive.append(weakref.ref(made))
            yield made
            del made

    whole = aggregate(circuits, align=align)
    for other in (aggregate(one_by_one(), align=align), aggregate(circuits[::-1], align=align)):
        for key, data in whole.graph.nodes(data=True):
            numbers = {name for name in data if isinstance(data[name], float)}
            assert {name: other[key][name] for name in numbers} == {name: data[name] for name in numbers}
        assert {edge[:2]: edge[2] for edge in whole.graph.edges(data=True)} == {
            edge[:2]: edge[2] for edge in other.graph.edges(data=True)
        }
    assert aggregate(iter(circuits), align=align).graph.graph["prompts"] == whole.graph.graph["prompts"]
