"""Circuits: files that come back exactly, strangers' files that are refused in one sentence, and ways through them."""

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from circuitsae.errors import GraphFileError, InputError, NodeError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import known_effect
from tests.synthetic import synthetic_circuit

A, B, C = "blocks.0.hook_mlp_out/1@0", "blocks.1.hook_mlp_out/2@0", "blocks.1.hook_mlp_out/error@0"


def _diamond() -> Circuit:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge("token@0", A, contribution=1.0, weight=-1.0)
    graph.add_edge(A, B, contribution=-3.0, weight=3.0)
    graph.add_edge("token@0", B, contribution=1.0, weight=-1.0)
    graph.add_edge(A, C, contribution=2.0, weight=2.0)
    graph.add_edge(B, "metric", contribution=1.0, weight=-1.0)
    graph.add_edge(C, "metric", contribution=0.5, weight=-0.5)
    graph.nodes[A].update(effect=-0.5, label="first")
    graph.nodes[B].update(effect=1.25)
    return Circuit(graph)


def _document(**changes: Any) -> dict[str, Any]:
    return json.loads(_diamond().to_json()) | changes


def test_a_saved_circuit_comes_back_exactly(tmp_path: Path) -> None:
    circuit = synthetic_circuit(seed=3, n_features=60)
    circuit.graph.nodes[circuit.features[0]]["activation"] = 5e-324  # no digit may be lost
    circuit.graph.nodes[circuit.features[1]]["label"] = 'quote " line\n\u2028 \ud83d lone </script>'
    path = tmp_path / "circuit.json"
    circuit.save(path)
    loaded = Circuit.load(path)
    assert loaded == circuit
    assert list(loaded.graph) == list(circuit.graph) and list(loaded.graph.edges) == list(circuit.graph.edges)
    assert loaded.to_json() == circuit.to_json() and loaded.fingerprint == circuit.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["circuit.json"]


def test_equality_sees_one_changed_digit() -> None:
    circuit, other = _diamond(), _diamond()
    other.graph.nodes[A]["effect"] = math.nextafter(-0.5, 0)
    assert circuit != other and circuit.fingerprint != other.fingerprint


def test_what_a_key_says_is_filled_in_and_numpy_becomes_plain() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=("a",))
    graph.add_node("blocks.4.hook_resid_post/9@0", activation=np.float32(0.5))
    data = Circuit(graph)["blocks.4.hook_resid_post/9@0"]
    site = {"kind": "feature", "site": "blocks.4.hook_resid_post", "layer": 4, "index": 9, "position": 0}
    assert data == site | {"activation": 0.5}
    assert type(data["activation"]) is float and graph.graph["tokens"] == ["a"]


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan")])
@pytest.mark.parametrize("name", ["effect", "made_up"])
def test_numbers_that_are_not_finite_are_refused(value: float, name: str) -> None:
    circuit = _diamond()
    circuit.graph.nodes[A][name] = value
    with pytest.raises(InputError, match="finite"):
        circuit.to_json()


def test_cycles_are_refused_with_the_way_round() -> None:
    graph = _diamond().graph
    graph.add_edge(B, A, weight=1.0)
    with pytest.raises(InputError, match=r"no cycles; this one has .*blocks\.0.* -> "):
        Circuit(graph)


@pytest.mark.parametrize(
    ("source", "target", "attributes", "message"),
    [
        ("metric", A, {"weight": 1.0}, "metric"),
        (A, "token@0", {"weight": 1.0}, "nothing acts on"),
        (A, B, {"contribution": 1.0}, "no weight"),
        (A, B, {"weight": None}, "weight"),
        (A, B, {"weight": True}, "weight"),
        (A, "blocks.1.hook_mlp_out/2@*", {"weight": 1.0}, "every position"),
        (A, "nonsense", {"weight": 1.0}, "nonsense"),
    ],
)
def test_edges_that_break_the_contract_are_named(
    source: str, target: str, attributes: dict[str, Any], message: str
) -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_edge(source, target, **attributes)
    with pytest.raises(InputError, match=message):
        Circuit(graph)


_HOSTILE: dict[str, tuple[Any, str]] = {
    "not JSON": (b"{", "not JSON"),
    "not text": (b"\xff\xfe\x00", "not JSON"),
    "nested deep": (b"[" * 200_000, "nested too deep|not JSON"),
    "another type": ([1], "JSON object"),
    "no schema": ({"nodes": {}, "edges": {}}, "schema"),
    "newer": (_document(schema="circuitsae/2"), "newer circuitsae"),
    "someone else's": ({"metadata": {}, "nodes": [], "links": []}, "circuit-tracer"),
    "columns missing": (_document(nodes={}), "'key'"),
    "columns no lists": (_document(nodes={"key": 7}), "expected a list"),
    "columns of unequal length": (_document(nodes={"key": [A], "effect": []}), "rows"),
    "a node twice": (_document(nodes={"key": [A, A]}), "twice"),
    "a key no text": (_document(nodes={"key": [[A]]}), "expected strings"),
    "edge to nowhere": (_document(edges={"source": [0], "target": [99], "weight": [1.0]}), "expected a row of nodes"),
    "edge by truth value": (_document(edges={"source": [True], "target": [0], "weight": [1.0]}), "row of nodes"),
    "cycle": (_document(edges={"source": [1, 2], "target": [2, 1], "weight": [1.0, 1.0]}), "no cycles"),
    "NaN": (b'{"schema":"circuitsae/1","graph":{"metric_value":NaN},"nodes":{"key":[]},'
            b'"edges":{"source":[],"target":[]}}', "finite"),
    "overflow": (b'{"schema":"circuitsae/1","graph":{"metric_value":1e999},"nodes":{"key":[]},'
                 b'"edges":{"source":[],"target":[]}}', "finite"),
    "huge index": (_document(nodes={"key": ["blocks.0.hook_mlp_out/" + "9" * 400]}, edges={"source": [], "target": []}),
                   "index over"),
    "tokens no texts": (_document(graph={"tokens": [["x"]]}), "tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", _HOSTILE)
def test_strangers_files_are_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    content, message = _HOSTILE[name]
    path = tmp_path / "stranger.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(GraphFileError, match=message) as caught:
        Circuit.load(path)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)


def test_files_missing_or_too_large_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphFileError, match="no file"):
        Circuit.load(tmp_path / "none.json")
    _diamond().save(tmp_path / "c.json")
    with pytest.raises(GraphFileError, match="larger than 10 bytes"):
        Circuit.load(tmp_path / "c.json", max_bytes=10)


def test_saving_where_one_cannot_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        _diamond().save(tmp_path / "missing" / "c.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        _diamond().save(tmp_path / "folder")
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


def test_strongest_orders_by_size_and_keeps_to_a_kind() -> None:
    circuit = synthetic_circuit(seed=1, n_features=50)
    sizes = [abs(known_effect(circuit[key]) or 0.0) for key in circuit.strongest(1000)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == len(circuit.features) + len(circuit.errors)
    assert set(circuit.strongest(1000, kind="error")) == set(circuit.errors)
    assert _diamond().strongest(1) == [B] and _diamond().strongest(0) == []
    assert _diamond().strongest_edges(2) == [(A, B), (A, C)]


def test_paths_by_hand() -> None:
    through, direct, error = _diamond().paths("token@0", k=3)
    # into metric: B holds 1/1.5, C 0.5/1.5; into B: A holds 3/4, the token 1/4
    assert through.nodes == ("token@0", A, B, "metric") and through.share == pytest.approx(2 / 3 * 3 / 4)
    assert through.sign == -1
    assert error.nodes == ("token@0", B, "metric") and error.share == pytest.approx(2 / 3 * 1 / 4)
    assert direct.nodes == ("token@0", A, C, "metric") and direct.share == pytest.approx(1 / 3) and direct.sign == 1
    assert _diamond().paths(B, A) == []
    with pytest.raises(NodeError, match="did you mean"):
        _diamond().paths("blocks.0.hook_mlp_out/1@1")


def test_paths_equal_trying_every_way() -> None:
    rng = random.Random(0)
    graph: nx.DiGraph[str] = nx.DiGraph()
    keys = [f"blocks.{layer}.hook_mlp_out/{i}@0" for layer in range(4) for i in range(3)]
    for i, source in enumerate(keys):
        for target in keys[i + 1 :]:
            if rng.random() < 0.5:
                graph.add_edge(source, target, weight=rng.gauss(0, 1), contribution=rng.gauss(0, 1))
    circuit = Circuit(graph)
    ends = next((s, t) for s in keys for t in reversed(keys) if s in graph and t in graph and nx.has_path(graph, s, t))

    def share(way: list[str]) -> float:
        return math.prod(
            abs(graph.edges[edge]["weight"])
            / sum(abs(data["weight"]) for *_, data in graph.in_edges(edge[1], data=True))
            for edge in pairwise(way)
        )

    expected = sorted((share(way) for way in nx.all_simple_paths(graph, *ends)), reverse=True)[:6]
    assert [path.share for path in circuit.paths(*ends, k=6)] == pytest.approx(expected)


def test_a_part_is_a_copy_and_claims_no_shares() -> None:
    circuit = synthetic_circuit(seed=2, n_features=40)
    part = circuit.subgraph([*circuit.features[:10], "metric"])
    assert part.graph.graph["kept"]["nodes"] == 11 and "effect_share" not in part.graph.graph["kept"]
    part.graph.nodes["metric"]["label"] = "changed"
    part.graph.graph["tokens"][0] = "changed"
    assert "label" not in circuit["metric"] and circuit.graph.graph["tokens"][0] != "changed"


def test_labels_reach_every_position_and_the_exact_key_wins(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("site,index,label\nblocks.1.hook_mlp_out,2,verbs\n")
    assert _diamond().with_labels(tmp_path / "labels.csv")[B]["label"] == "verbs"
    both = {"blocks.1.hook_mlp_out/2": "anywhere", B: "here"}
    assert _diamond().with_labels(both)[B]["label"] == "here"
    assert "label" not in _diamond()[B]
    (tmp_path / "bad.csv").write_text("site,index,label\nblocks.1.hook_mlp_out,-2,verbs\n")
    with pytest.raises(InputError, match="row 1"):
        _diamond().with_labels(tmp_path / "bad.csv")


def test_the_html_table_escapes_labels() -> None:
    graph = _diamond().graph
    graph.nodes[A]["label"] = "<img src=x onerror=alert(1)>"
    shown = Circuit(graph)._repr_html_()
    assert "<img" not in shown and "&lt;img" in shown


def test_the_example_in_the_format_s_page_is_a_circuit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    circuit = Circuit.from_json(page.partition("```json\n")[2].partition("```")[0])
    assert circuit.strongest() == ["blocks.0.hook_mlp_out/17@1"]
    assert len(circuit.paths("token@1")) == 1
