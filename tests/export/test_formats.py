"""Exporters: other programs' formats read back with what was written, whatever the strings."""

import csv
import io
import json
import re
from pathlib import Path

import networkx as nx
import pytest

from circuitsae import registry
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.circuit import Circuit
from tests.synthetic import synthetic_circuit

HOSTILE = "</script><img src=x onerror=alert(1)> ${1} \\ \" ' \x00 \x1b \ud83d \uffff ]]> &amp; \u2028\r\nend\\"
FORMATS = ("circuit-tracer", "csv", "cytoscape", "dot", "gexf", "graphml", "html", "json", "node-link", "svg")


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    circuit = synthetic_circuit(seed=5, n_features=40)
    graph = circuit.graph
    graph.nodes[circuit.features[0]]["label"] = HOSTILE
    graph.nodes[circuit.features[0]].update(viz="v", id="taken", start="s", notes=[1, {"a": None}])
    graph.graph.update(node_default="x", mode="y", more={"a": [1, None]})
    graph.graph["tokens"][0] = HOSTILE
    return Circuit(graph)


def test_the_built_in_exporters_each_have_a_suffix() -> None:
    built_in = {p.name: p.extra["suffix"] for p in registry.plugins("exporters") if p.distribution == "circuitsae"}
    assert set(FORMATS) <= set(built_in) and len(set(built_in.values())) == len(built_in)


def test_json_is_the_saved_form(circuit: Circuit, tmp_path: Path) -> None:
    assert circuit.export(tmp_path / "c.json") == (tmp_path / "c.json",)
    assert Circuit.load(tmp_path / "c.json") == circuit


def test_node_link_reads_back_exactly(circuit: Circuit, tmp_path: Path) -> None:
    circuit.export(tmp_path / "c.node-link.json")
    read = nx.node_link_graph(json.loads((tmp_path / "c.node-link.json").read_text()), edges="edges")
    assert dict(read.edges) == dict(circuit.graph.edges) and read.graph == circuit.graph.graph
    lacking = {key: {n: v for n, v in data.items() if n != "id"} for key, data in circuit.graph.nodes(data=True)}
    assert dict(read.nodes) == lacking


@pytest.mark.parametrize("format", ["graphml", "gexf"])
def test_networkx_reads_xml_formats_back(circuit: Circuit, tmp_path: Path, format: str) -> None:
    circuit.export(tmp_path / f"c.{format}")
    read = {"graphml": nx.read_graphml, "gexf": nx.read_gexf}[format](tmp_path / f"c.{format}")
    assert set(read.nodes) == set(circuit.graph) and set(read.edges) == set(circuit.graph.edges)
    for key, data in circuit.graph.nodes(data=True):
        for name in ("kind", "layer", "position", "effect", "activation"):
            assert read.nodes[key].get(name) == data.get(name), (key, name)
    for edge in circuit.graph.edges:
        assert read.edges[edge]["weight"] == circuit.graph.edges[edge]["weight"]
        assert read.edges[edge]["contribution"] == circuit.graph.edges[edge]["contribution"]
    first = read.nodes[circuit.features[0]]
    assert first["label"].startswith("</script><img src=x onerror=alert(1)> ${1}") and "\ufffd" in first["label"]
    assert json.loads(first["notes"]) == [1, {"a": None}]


def test_csv_tables_hold_every_row_and_run_no_formula(circuit: Circuit, tmp_path: Path) -> None:
    graph = circuit.subgraph(circuit.graph).graph
    key = circuit.strongest(1, kind="feature")[0]
    graph.nodes[key]["label"] = "=HYPERLINK(1)"
    nodes, edges = Circuit(graph).export(tmp_path / "c.csv")
    assert (nodes.name, edges.name) == ("c.nodes.csv", "c.edges.csv")
    rows = {row["node"]: row for row in csv.DictReader(io.StringIO(nodes.read_text("utf-8")))}
    assert set(rows) == set(graph) and rows[key]["label"] == "'=HYPERLINK(1)"
    assert float(rows[key]["effect"]) == graph.nodes[key]["effect"]
    read = list(csv.DictReader(io.StringIO(edges.read_text("utf-8"))))
    assert {(row["source"], row["target"]): float(row["weight"]) for row in read} == {
        edge: graph.edges[edge]["weight"] for edge in graph.edges
    }


def test_dot_is_well_formed_and_draws_the_strongest_edges(circuit: Circuit, tmp_path: Path) -> None:
    (path,) = circuit.export(tmp_path / "c.dot", max_edges=7)
    text = path.read_text("utf-8")
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "S", text)  # no quoted string ends early, so nothing hostile is outside of one
    assert '"' not in bare and "onerror" not in bare
    assert len(re.findall(r"S -> S", bare)) == 7 and bare.count("shape=") == len(circuit)
    assert bare.rstrip().endswith("}") and bare.count("{") == bare.count("}")


@pytest.mark.parametrize("format", FORMATS)
def test_an_unwritable_path_leaves_nothing(circuit: Circuit, tmp_path: Path, format: str) -> None:
    with pytest.raises(InputError, match="no folder"):
        circuit.export(tmp_path / "missing" / "c", format=format)
    for name in ("c", "c.edges.csv"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        circuit.export(tmp_path / "c", format=format)
    assert {path.name for path in tmp_path.rglob("*")} == {"c", "c.edges.csv"}


def test_unknown_formats_name_those_there_are(circuit: Circuit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.graphml"):
        circuit.export(tmp_path / "c.unknown")
    with pytest.raises(UnknownNameError, match="graphml"):
        circuit.export(tmp_path / "c", format="graphm")
    assert not list(tmp_path.iterdir())
