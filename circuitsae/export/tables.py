"""Circuits for programs that compute with graphs: Cytoscape.js' elements, and PyTorch Geometric's tensors."""

import importlib
import json
from typing import Any

import networkx as nx

from circuitsae import names
from circuitsae.errors import GraphFileError, InputError
from circuitsae.extras import wanted
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import EDGE_NUMBERS, NODE_NUMBERS, Graph, shown
from circuitsae.kinds import NODE_KINDS

_SHOWN = ("id", "source", "target", "name")


def as_cytoscape(circuit: Circuit) -> str:
    """Returns Cytoscape.js JSON: `cytoscape(JSON.parse(text))` draws it, Cytoscape's desktop program imports it.

    A node's `data` has its attributes, `id` its key and `name` what to write beside it; an edge's `weight` and
    `contribution` are as in the circuit. An attribute of the same name as one of these stands under `circuitsae`.
    """
    nodes = [
        {"data": {**_free(data), "id": key, "name": data.get("label") or data.get("token") or key}, "group": "nodes"}
        for key, data in circuit.graph.nodes(data=True)
    ]
    edges = [
        {"data": {**_free(data), "id": f"{source} -> {target}", "source": source, "target": target}, "group": "edges"}
        for source, target, data in circuit.graph.edges(data=True)
    ]
    document = {"data": circuit.graph.graph, "elements": {"nodes": nodes, "edges": edges}}
    return json.dumps(document, allow_nan=False) + "\n"


def from_cytoscape(text: str | bytes) -> Circuit:
    """Returns the circuit that `as_cytoscape` wrote, exactly.

    Raises:
        GraphFileError: The text is not such JSON, or its contents are no circuit.
    """
    try:
        document = json.loads(text)
        graph: Graph = nx.DiGraph()
        if not isinstance(document, dict) or not isinstance(document.get("elements"), dict):
            raise InputError("expected an object with 'elements'.")
        about = document.get("data", {})
        if not isinstance(about, dict):
            raise InputError("'data' is no object.")
        graph.graph.update(about)
        for data in _elements(document["elements"], "nodes"):
            key = data.get("id")
            if not isinstance(key, str) or key in graph:
                raise InputError(f"the node {shown(key)} is there twice, or no text.")
            graph.add_node(key, **_given(data))
        for data in _elements(document["elements"], "edges"):
            source, target = data.get("source"), data.get("target")
            if not isinstance(source, str) or not isinstance(target, str) or not {source, target} <= set(graph):
                raise InputError(f"an edge joins {shown(source)} to {shown(target)}; there is no such node.")
            if graph.has_edge(source, target):
                raise InputError(f"the edge from {shown(source)} to {shown(target)} is there twice.")
            graph.add_edge(source, target, **_given(data))
        return Circuit(graph)
    except (InputError, ValueError, RecursionError) as error:
        reason = "its JSON is nested too deep." if isinstance(error, RecursionError) else str(error)
        raise GraphFileError(f"The graph can't be read: {reason}") from None


def to_pyg(circuit: Circuit) -> Any:
    """Returns a `torch_geometric.data.Data`: nodes in the order in which the model computes them.

    `x` [node, number] has the columns `x_names` (float64, NaN where not known) and `kind` [node] a place in `kinds`;
    `layer`, `feature`, `position` [node] are -1 where a node has none. `edge_index` [2, edge] are rows of `x`;
    `edge_attr` [edge, number] has the columns `edge_names`. `node_keys`, `sites`, `labels`, `tokens` are lists of texts,
    `circuit` the saved form, from which `from_pyg` makes the circuit again.

    Raises:
        MissingExtraError: torch_geometric is not installed.
    """
    data = wanted("torch_geometric.data", "PyTorch Geometric's Data")
    torch = importlib.import_module("torch")  # by name: a saved circuit is opened and written without it otherwise
    keys = sorted(circuit.graph, key=names.sort_key)
    row_of = {key: row for row, key in enumerate(keys)}
    nodes = [circuit.graph.nodes[key] for key in keys]
    edges = list(circuit.graph.edges(data=True))
    nan = float("nan")

    def matrix(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Any:
        values = [[row.get(name, nan) for name in columns] for row in rows]
        return torch.tensor(values, dtype=torch.float64).reshape(len(rows), len(columns))

    def whole(name: str) -> Any:
        return torch.tensor([node.get(name, -1) for node in nodes], dtype=torch.int64)

    ends = [[row_of[source] for source, _, _ in edges], [row_of[target] for _, target, _ in edges]]
    return data.Data(
        x=matrix(nodes, NODE_NUMBERS),
        edge_index=torch.tensor(ends, dtype=torch.int64).reshape(2, len(edges)),
        edge_attr=matrix([edge for _, _, edge in edges], EDGE_NUMBERS),
        kind=torch.tensor([NODE_KINDS.index(node["kind"]) for node in nodes], dtype=torch.int64),
        layer=whole("layer"),
        feature=whole("index"),
        position=whole("position"),
        node_keys=keys,
        sites=[node.get("site", "") for node in nodes],
        labels=[node.get("label", "") for node in nodes],
        tokens=[node.get("token", "") for node in nodes],
        kinds=list(NODE_KINDS),
        x_names=list(NODE_NUMBERS),
        edge_names=list(EDGE_NUMBERS),
        circuit=circuit.to_json(),
    )


def from_pyg(data: Any) -> Circuit:
    """Returns the circuit that `to_pyg` took apart, exactly as it was; changed tensors are not looked at.

    Raises:
        GraphFileError: The data has no circuit.
    """
    text = getattr(data, "circuit", None)
    if not isinstance(text, str):
        raise GraphFileError("The data has no text 'circuit'; expected what to_pyg gave.")
    return Circuit.from_json(text)


def _free(data: dict[str, Any]) -> dict[str, Any]:
    """Moves attributes aside whose names Cytoscape takes for its own."""
    taken = {name: value for name, value in data.items() if name in (*_SHOWN, "circuitsae")}
    free = {name: value for name, value in data.items() if name not in taken}
    return free | {"circuitsae": taken} if taken else free


def _given(data: dict[str, Any]) -> dict[str, Any]:
    taken = data.get("circuitsae", {})
    if not isinstance(taken, dict):
        raise InputError(f"'circuitsae' is {shown(taken)}; expected an object.")
    return {name: value for name, value in data.items() if name not in (*_SHOWN, "circuitsae")} | taken


def _elements(elements: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = elements.get(name)
    if not isinstance(rows, list):
        raise InputError(f"'elements.{name}' is no list.")
    found = [row.get("data") if isinstance(row, dict) else None for row in rows]
    for row in found:
        if not isinstance(row, dict):
            raise InputError(f"'elements.{name}' holds something without 'data'.")
    return [row for row in found if isinstance(row, dict)]
