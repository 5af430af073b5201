"""The built-in export formats: functions from a circuit to a file's contents (group `exporters`). No torch.

An exporter returns text or bytes, or a mapping from a name's ending to such where the format takes several files;
[Circuit.export][circuitsae.graph.circuit.Circuit.export] writes them. Only JSON is read back by circuitsae.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx

from circuitsae import names
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import EDGE_NUMBERS, NODE_NUMBERS, known_effect

_FLOATS = {*NODE_NUMBERS, *EDGE_NUMBERS, "metric_value", "baseline_metric_value"}
_WHOLE = ("layer", "index", "position")
# What XML 1.0 can't hold: most control characters, half surrogate pairs and two non-characters.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Names that networkx's writers take for something of their own.
_TAKEN = {
    *("id", "key", "type", "viz", "pid", "parents", "slices", "spells", "start", "end", "networkx_key"),
    *("mode", "node_default", "edge_default", "defaultedgetype", "name"),
}
_UP, _DOWN = "#1f77b4", "#d95f02"


def as_json(circuit: Circuit) -> str:
    """Returns the circuit in its own format (docs/format.md), which `Circuit.load` reads back exactly."""
    return circuit.to_json()


def as_node_link(circuit: Circuit) -> str:
    """Returns networkx's node-link JSON: `networkx.node_link_graph(json.load(file), edges="edges")` reads it."""
    graph = circuit.graph
    document = {
        "directed": True,
        "multigraph": False,
        "graph": graph.graph,
        "nodes": [{**data, "id": key} for key, data in graph.nodes(data=True)],
        "edges": [{**data, "source": source, "target": target} for source, target, data in graph.edges(data=True)],
    }
    return json.dumps(document, allow_nan=False) + "\n"


def as_graphml(circuit: Circuit) -> bytes:
    """Returns GraphML for Gephi, yEd, Cytoscape or igraph. Lists and objects become JSON text; characters that XML
    can't hold become U+FFFD."""
    file = io.BytesIO()
    nx.write_graphml_xml(_flat(circuit), file)
    return file.getvalue()


def as_gexf(circuit: Circuit) -> bytes:
    """Returns GEXF 1.2 for Gephi: nodes without a label are labelled by their key; flattened as for GraphML."""
    flat = _flat(circuit)
    for key, data in flat.nodes(data=True):
        data.setdefault("label", key)
    file = io.BytesIO()
    nx.write_gexf(flat, file)
    return file.getvalue()


def as_dot(circuit: Circuit, max_edges: int = 500) -> str:
    """Returns a Graphviz drawing: layers upwards; blue raises the metric, orange and dashed lowers it.

    Args:
        circuit: What is drawn.
        max_edges: The strongest by |weight| are drawn, as Graphviz can't lay out tens of thousands.
    """
    graph = circuit.graph
    edges = circuit.strongest_edges(max_edges)
    largest = max((abs(graph.edges[edge]["weight"]) for edge in edges), default=0.0) or 1.0
    lines = ["digraph circuit {", "  rankdir=BT;", '  node [style=filled, fillcolor="white"];']
    shapes = {"feature": "ellipse", "error": "diamond", "token": "box", "bias": "box", "metric": "doubleoctagon"}
    ranks: dict[str, list[str]] = {}
    for key, data in graph.nodes(data=True):
        parts = [key, data.get("label", "") or data.get("token", "")]
        effect = known_effect(data)
        color = f", color={_dot_text(_DOWN if effect > 0 else _UP)}" if effect else ""
        label = _dot_text("\n".join(part for part in parts if part))
        lines.append(f"  {_dot_text(key)} [label={label}, shape={shapes[data['kind']]}{color}];")
        ranks.setdefault(data.get("site", data["kind"]), []).append(key)
    lines += [f"  {{rank=same; {'; '.join(map(_dot_text, keys))}}}" for keys in ranks.values()]
    for source, target in edges:
        data = graph.edges[source, target]
        lowers = data["weight"] > 0  # weight is the metric's change when the source is taken away
        style = f"color={_dot_text(_DOWN if lowers else _UP)}, style={'dashed' if lowers else 'solid'}"
        width = 0.3 + 3.7 * abs(data["weight"]) / largest
        lines.append(f"  {_dot_text(source)} -> {_dot_text(target)} [{style}, penwidth={width:.2f}];")
    return "\n".join([*lines, "}"]) + "\n"


def as_csv(circuit: Circuit) -> Mapping[str, str]:
    """Returns two tables, `.nodes.csv` and `.edges.csv`, strongest first; what is not known is an empty cell.

    Text that a spreadsheet would run as a formula (`=...`) gets an apostrophe before it, as spreadsheets have it.
    """
    nodes = ["node", "kind", "site", "layer", "index", "position", "token", "label", *NODE_NUMBERS]
    return {
        ".nodes.csv": _csv(circuit.nodes_table(), nodes),
        ".edges.csv": _csv(circuit.edges_table(), ["source", "target", *EDGE_NUMBERS]),
    }


def as_html(circuit: Circuit, state: Mapping[str, Any] | None = None) -> str:
    """Returns one HTML page that draws the circuit, opens from disk and asks the network for nothing.

    Args:
        circuit: What is drawn.
        state: What the page shows at first (`circuitsae.export.page.circuit_page`).
    """
    from circuitsae.export.page import circuit_page

    return circuit_page(circuit, state)


def _flat(circuit: Circuit) -> "nx.DiGraph[str]":
    """Returns the graph with attributes that XML formats hold: text, whole numbers, floats, truth values."""
    flat: nx.DiGraph[str] = nx.DiGraph()
    flat.graph.update(_flat_attributes(circuit.graph.graph))
    for key in sorted(circuit.graph, key=names.sort_key):
        flat.add_node(_xml_text(key), **_flat_attributes(circuit.graph.nodes[key]))
    for source, target, data in circuit.graph.edges(data=True):
        flat.add_edge(_xml_text(source), _xml_text(target), **_flat_attributes(data))
    return flat


def _flat_attributes(data: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        plain = _xml_text(name)
        plain = f"{plain}_" if plain in _TAKEN else plain
        if name in _FLOATS and isinstance(value, int | float):
            flat[plain] = float(value)
        elif name in _WHOLE:
            flat[plain] = value
        elif isinstance(value, str):
            flat[plain] = _xml_text(value)
        else:  # one type for every row, which a column of unknown meaning might not have
            flat[plain] = _xml_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    return flat


def _xml_text(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _dot_text(text: str) -> str:
    escaped = _NOT_XML.sub("\ufffd", text).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\r", "\\r").replace("\n", "\\n") + '"'


def _csv(rows: Iterable[Mapping[str, Any]], first: list[str]) -> str:
    rows = list(rows)
    found = {name: None for row in rows for name in row}
    columns = [name for name in first if name in found or name in ("node", "source", "target")]
    columns += sorted(name for name in found if name not in first)
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | dict):
        value = json.dumps(value, allow_nan=False)
    if isinstance(value, str) and len(value) > 1 and value[0] in "=+-@\t\r":
        return "'" + value
    return value
