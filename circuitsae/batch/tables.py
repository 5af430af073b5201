"""A circuit as rows of Parquet tables, and back, exactly (`circuitsae.batch/1`, docs/format.md)."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import networkx as nx
import pyarrow as pa

from circuitsae.errors import InputError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import Attributes, Graph

SCHEMA = "circuitsae.batch/1"
SETTINGS = "settings.json"
TABLES = ("nodes", "edges", "tasks")
"""In the order in which a part's files take their places: a task's row says that all of it is there."""

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_REALS = ("activation", "baseline", "effect", "measured_effect", "influence", "cumulative_influence", "explained")
COLUMNS: dict[str, pa.Schema] = {
    "tasks": pa.schema(
        [
            *[("task", _WHOLE), ("case", _TEXT), ("prompt", _TEXT), ("tokens", pa.list_(_TEXT)), ("metric", _TEXT)],
            *[("metric_value", _REAL), ("baseline_metric_value", _REAL), ("n_nodes", _WHOLE), ("n_edges", _WHOLE)],
            *[("error", _TEXT), ("about", _TEXT), ("common", _TEXT)],
        ]
    ),
    "nodes": pa.schema(
        [
            *[("task", _WHOLE), ("node", _TEXT), ("kind", _TEXT), ("site", _TEXT), ("layer", _WHOLE)],
            *[("index", _WHOLE), ("position", _WHOLE), ("token", _TEXT), *((name, _REAL) for name in _REALS)],
            *[("total", _REAL), ("probability", _REAL), ("merged", _WHOLE), ("other", _TEXT)],
        ]
    ),
    "edges": pa.schema(
        [
            *[("task", _WHOLE), ("source", _TEXT), ("target", _TEXT)],
            *[("contribution", _REAL), ("weight", _REAL), ("other", _TEXT)],
        ]
    ),
}

# Graph attributes that are the same in most circuits of a batch: one text, which a file holds once.
_COMMON = (
    *("schema", "package_version", "model", "dictionaries", "sites", "preset", "neuronpedia", "method", "baseline"),
    *("gradient", "linearisation", "prune", "options"),
)


def task_row(number: int, case: str, prompt: object, circuit: Circuit | None, error: str | None) -> dict[str, Any]:
    """Returns a task's row of the table `tasks`; all of a circuit's graph attributes are in `about` and `common`."""
    row: dict[str, Any] = {"task": number, "case": case, "prompt": prompt, "error": error}
    if circuit is not None:
        about = circuit.graph.graph
        row |= {name: about[name] for name in ("metric_value", "baseline_metric_value", "tokens") if name in about}
        row |= {"metric": about["metric"]["description"], "prompt": circuit.prompt}
        row |= {"n_nodes": circuit.graph.number_of_nodes(), "n_edges": circuit.graph.number_of_edges()}
        row |= {
            "common": json.dumps({k: v for k, v in about.items() if k in _COMMON}, allow_nan=False),
            "about": json.dumps({k: v for k, v in about.items() if k not in _COMMON}, allow_nan=False),
        }
    return {name: _printable(value) for name, value in row.items()}


def table_of(name: str, rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Returns rows as a table; what has no column of its own, or does not fit there, is in `other`, as JSON."""
    columns: dict[str, list[Any]] = {field.name: [] for field in COLUMNS[name]}
    for given in rows:
        row = dict(given)
        for field in COLUMNS[name]:
            if field.name != "other":
                columns[field.name].append(row.pop(field.name) if _fits(row.get(field.name), field.type) else None)
        if "other" in columns:
            columns["other"].append(json.dumps(row, allow_nan=False) if row else None)
    return pa.table(columns, schema=COLUMNS[name])


def circuit_tables(number: int, circuit: Circuit) -> dict[str, pa.Table]:
    """Returns a circuit's tables of nodes and of edges, in its own order."""
    nodes = ({"task": number, "node": key, **data} for key, data in circuit.graph.nodes(data=True))
    edges = ({"task": number, "source": u, "target": v, **data} for u, v, data in circuit.graph.edges(data=True))
    return {"nodes": table_of("nodes", nodes), "edges": table_of("edges", edges)}


def circuit_of(row: Mapping[str, Any], nodes: pa.Table, edges: pa.Table) -> Circuit:
    """Returns the circuit that was taken apart, checked as a stranger's is.

    Raises:
        InputError: The rows are no circuit.
    """
    graph: Graph = nx.DiGraph()
    for name in ("common", "about"):
        graph.graph.update(_object(row[name]))
    for data in map(_attributes, nodes.to_pylist()):
        key = data.pop("node", None)
        if not isinstance(key, str) or key in graph:
            raise InputError(f"the node {key!r} is there twice, or has no key.")
        graph.add_node(key, **data)
    for data in map(_attributes, edges.to_pylist()):
        ends = data.pop("source", None), data.pop("target", None)
        if not set(ends) <= set(graph) or graph.has_edge(*ends):
            raise InputError(f"the edge from {ends[0]!r} to {ends[1]!r} is there twice, or joins what is not there.")
        graph.add_edge(*ends, **data)
    if (len(graph), graph.number_of_edges()) != (row["n_nodes"], row["n_edges"]):
        raise InputError(f"it has {len(graph)} nodes and {graph.number_of_edges()} edges; its row says otherwise.")
    return Circuit(graph)


def _attributes(row: dict[str, Any]) -> Attributes:
    other = _object(row.pop("other"))
    row.pop("task")
    return {name: value for name, value in row.items() if value is not None} | other


def _object(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"an attribute is not JSON: {str(error).splitlines()[0]}.") from None
    if not isinstance(found, dict):
        raise InputError("an attribute is no JSON object.")
    return found


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a column of a type holds a value exactly."""
    if kind == _REAL:
        return type(value) is float
    if kind == _WHOLE:
        return type(value) is int and abs(value) < 2**63
    if kind == _TEXT:
        return isinstance(value, str) and value == _printable(value)
    return isinstance(value, list)


def _printable(value: Any) -> Any:
    """Returns a value whose texts are Unicode: half characters, which no Parquet file holds, are written out."""
    if isinstance(value, list):
        return [_printable(item) for item in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
