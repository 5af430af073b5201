"""Cytoscape's elements and PyTorch Geometric's tensors: read back exactly."""

import json
import math

import networkx as nx
import pytest
from hypothesis import given, settings

from circuitsae.errors import GraphFileError
from circuitsae.export.tables import as_cytoscape, from_cytoscape, from_pyg, to_pyg
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import EDGE_NUMBERS, NODE_NUMBERS
from tests.graph.test_strangers import circuits


@settings(max_examples=40)
@given(circuits())
def test_every_circuit_comes_back_from_cytoscape_exactly(circuit: Circuit) -> None:
    text = as_cytoscape(circuit)
    assert from_cytoscape(text) == circuit
    document = json.loads(text)
    ids = [row["data"]["id"] for part in document["elements"].values() for row in part]
    assert len(set(ids)) == len(ids) and all(isinstance(i, str) for i in ids)
    assert all(row["data"]["name"] for row in document["elements"]["nodes"])


def test_names_that_cytoscape_takes_stand_aside() -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("blocks.0.hook_mlp_out/1@0", id=3, name="mine", circuitsae={"a": 1})
    graph.add_edge("blocks.0.hook_mlp_out/1@0", "metric", weight=1.0, id="x")
    circuit = Circuit(graph)
    assert from_cytoscape(as_cytoscape(circuit)) == circuit


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "Expecting"),
        ("[1]", "expected an object"),
        ('{"elements": {"nodes": 3, "edges": []}}', "is no list"),
        ('{"elements": {"nodes": [{}], "edges": []}}', "without 'data'"),
        ('{"elements": {"nodes": [{"data": {"id": 3}}], "edges": []}}', "or no text"),
        ('{"elements": {"nodes": [], "edges": [{"data": {"source": "a", "target": "b"}}]}}', "no such node"),
        ('{"elements": {"nodes": [{"data": {"id": "x y"}}], "edges": []}}', "not a node key"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_circuit_is_refused_in_words(text: str, sentence: str) -> None:
    with pytest.raises(GraphFileError, match=sentence):
        from_cytoscape(text)


pyg = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pyg
@settings(max_examples=10)
@given(circuits())
def test_every_circuit_comes_back_from_tensors_exactly(circuit: Circuit) -> None:
    pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    data = to_pyg(circuit)
    assert from_pyg(data) == circuit
    assert data.num_nodes == len(circuit) and data.num_edges == circuit.graph.number_of_edges()
    for row, key in enumerate(data.node_keys):
        node = circuit[key]
        assert data.kinds[data.kind[row]] == node["kind"] and data.position[row] == node.get("position", -1)
        for column, name in enumerate(NODE_NUMBERS):
            value = float(data.x[row, column])
            assert value == node[name] if name in node else math.isnan(value)
    for number in range(data.num_edges):
        ends = tuple(data.node_keys[row] for row in data.edge_index[:, number].tolist())
        for column, name in enumerate(EDGE_NUMBERS):
            if name in circuit.graph.edges[ends]:
                assert float(data.edge_attr[number, column]) == circuit.graph.edges[ends][name]


@pyg
def test_data_without_a_circuit_is_refused() -> None:
    torch_geometric = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")
    with pytest.raises(GraphFileError, match="no text 'circuit'"):
        from_pyg(torch_geometric.Data())


def test_a_file_of_cytoscapes_under_another_name_is_told_apart() -> None:
    with pytest.raises(GraphFileError, match=r"It looks like Cytoscape's format: .*from_cytoscape reads it"):
        Circuit.from_json(as_cytoscape(Circuit(nx.DiGraph())))
