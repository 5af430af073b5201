"""What a circuit's graph may hold, and its file format `circuitsae/1` (docs/format.md).

[normalise][circuitsae.graph.schema.normalise] holds a networkx graph to the contract: keys that parse, attributes that
agree with their key, finite numbers, no cycle. [to_document][circuitsae.graph.schema.to_document] and
[from_document][circuitsae.graph.schema.from_document] turn it into plain columns and back, exactly.
"""

import math
import numbers
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import networkx as nx

from circuitsae import names
from circuitsae.errors import InputError

if TYPE_CHECKING:
    Graph: TypeAlias = nx.DiGraph[str]
else:
    Graph: TypeAlias = nx.DiGraph

Attributes: TypeAlias = dict[str, Any]

SCHEMA = "circuitsae/1"
VERSION = 1
NODE_NUMBERS = (
    *("activation", "baseline", "effect", "measured_effect", "influence", "cumulative_influence", "explained", "total"),
    *("probability", "merged"),
    *("count", "activation_std", "effect_std"),  # of circuits averaged over prompts
    *("activation_a", "activation_b", "effect_a", "effect_b"),  # of the comparison of two circuits
)
EDGE_NUMBERS = (
    *("contribution", "weight"),
    *("count", "contribution_std", "weight_std"),
    *("contribution_a", "contribution_b", "weight_a", "weight_b"),
)
FROM_KEY = ("kind", "site", "layer", "index", "position")

_LONGEST_KEY = 1_000
_LARGEST_INDEX = 2**53 - 1  # what a JSON reader with double precision still tells apart
_LARGEST_POSITION = 2**31 - 1
_DEEPEST = 20


def known_effect(data: Mapping[str, Any]) -> float | None:
    """Returns a node's effect as it is best known: measured, or else predicted; `None` where it has none.

    Of an average only the mean effect counts, into which each circuit's best known one went: `measured_effect` is there a
    mean over some of the circuits.

    >>> known_effect({"effect": -2.7, "measured_effect": 0.1}), known_effect({"effect": -2.7}), known_effect({})
    (0.1, -2.7, None)
    """
    if "measured_effect" in data and "count" not in data:
        return data["measured_effect"]
    return data.get("effect")


def attributes_of(key: str) -> Attributes:
    """Returns what follows from a node's key: `kind` and, where it has such, `site`, `layer`, `index`, `position`.

    >>> attributes_of("blocks.3.hook_mlp_out/17@5")
    {'kind': 'feature', 'site': 'blocks.3.hook_mlp_out', 'layer': 3, 'index': 17, 'position': 5}

    Raises:
        InputError: The key does not parse, is not in its canonical form, or names no single position.
    """
    if len(key) > _LONGEST_KEY:
        raise InputError(f"The node key {shown(key)} has {len(key)} characters; {_LONGEST_KEY} are allowed.")
    node = names.parse(key)
    if node.position == "*":
        raise InputError(f"The node key {key!r} stands for every position; a circuit's nodes have one, or none.")
    if str(node) != key:
        raise InputError(f"The node key {shown(key)} is not in its canonical form {str(node)!r}.")
    if node.index is not None and node.index > _LARGEST_INDEX:
        raise InputError(f"The node key {shown(key)} has an index over {_LARGEST_INDEX}.")
    if node.position is not None and node.position > _LARGEST_POSITION:
        raise InputError(f"The node key {shown(key)} has a position over {_LARGEST_POSITION}.")
    layer = names.layer_of(node.site) if node.site else None
    found = {"kind": node.kind, "site": node.site, "layer": layer, "index": node.index, "position": node.position}
    return {name: value for name, value in found.items() if value is not None}


def normalise(graph: Graph) -> None:
    """Holds a graph to the contract, in place: fills in what follows from the keys, turns numpy's scalars and tuples
    into Python's numbers and lists, and checks everything. Cost: one pass over nodes and edges.

    Raises:
        InputError: The graph is not a `networkx.DiGraph`, has a cycle, a key that does not parse, an attribute that
            contradicts its key, a number that is not finite, or a value that JSON can't hold; the message names it.
    """
    if not isinstance(cast(object, graph), nx.DiGraph) or graph.is_multigraph():
        raise InputError(f"A circuit wraps a networkx.DiGraph; got {type(graph).__name__}.")
    _normalise_graph_attributes(graph)
    n_tokens = len(graph.graph["tokens"]) if "tokens" in graph.graph else None
    for key, data in graph.nodes(data=True):
        if not isinstance(cast(object, key), str):
            raise InputError(f"A circuit's node keys are strings; got {shown(key)}.")
        _normalise_node(key, data, n_tokens)
    for source, target, data in graph.edges(data=True):
        _normalise_edge(graph, source, target, data)
    if not nx.is_directed_acyclic_graph(graph):
        found = cast(list[tuple[str, str]], nx.find_cycle(graph))  # pyright: ignore[reportUnknownMemberType]
        cycle = [source for source, _ in found]
        way = " -> ".join(shown(key) for key in [*cycle[:6], *(["..."] if len(cycle) > 6 else []), cycle[0]])
        raise InputError(f"A circuit's graph has no cycles; this one has {way}.")


def to_document(graph: Graph) -> dict[str, Any]:
    """Returns a normalised graph as JSON-able columns; attributes that follow from the keys are left out."""
    node_rows = cast(list[tuple[str, Attributes]], list(graph.nodes(data=True)))
    row_of = {key: row for row, (key, _) in enumerate(node_rows)}
    edge_rows = list(graph.edges(data=True))
    nodes: dict[str, list[Any]] = {"key": [key for key, _ in node_rows]}
    nodes.update(_columns([data for _, data in node_rows]))
    derived = [attributes_of(key) for key, _ in node_rows]
    for name in FROM_KEY:
        if all(data.get(name) == known.get(name) for (_, data), known in zip(node_rows, derived, strict=True)):
            nodes.pop(name, None)
    edges: dict[str, list[Any]] = {
        "source": [row_of[source] for source, _, _ in edge_rows],
        "target": [row_of[target] for _, target, _ in edge_rows],
    }
    edges.update(_columns([data for _, _, data in edge_rows]))
    attributes = {name: value for name, value in graph.graph.items() if name != "schema"}
    return {"schema": SCHEMA, "graph": attributes, "nodes": nodes, "edges": edges}


def from_document(document: object) -> Graph:
    """Returns the graph that [to_document][circuitsae.graph.schema.to_document] took apart, checked.

    Raises:
        InputError: The document is not of this schema, of a newer version, or its contents break the contract.
    """
    if not isinstance(document, dict):
        raise InputError(f"a saved circuit is a JSON object; this is {_json_name(document)}.")
    parts = cast(dict[str, Any], document)
    _check_version(parts)
    for name in ("graph", "nodes", "edges"):
        if not isinstance(parts.get(name), dict):
            raise InputError(f"a saved circuit has an object {name!r}; here it is {_json_name(parts.get(name))}.")
    graph: Graph = nx.DiGraph()
    graph.graph.update(parts["graph"])
    graph.graph["schema"] = SCHEMA
    keys, nodes = _rows("nodes", "key", parts["nodes"])
    for key, data in zip(keys, nodes, strict=True):
        if not isinstance(key, str):
            raise InputError(f"nodes.key holds {shown(key)}; expected strings.")
        if key in graph:
            raise InputError(f"the node {shown(key)} is there twice.")
        graph.add_node(key, **data)
    columns = dict(parts["edges"])
    targets = columns.pop("target", None)
    sources, edges = _rows("edges", "source", columns)
    if not isinstance(targets, list) or len(cast(list[Any], targets)) != len(sources):
        raise InputError(f"edges.target is no list of {len(sources)} rows, as edges.source is.")
    for source, target, data in zip(sources, cast(list[Any], targets), edges, strict=True):
        ends: list[str] = []
        for name, row in (("source", source), ("target", target)):
            if type(row) is not int or not 0 <= row < len(keys):
                raise InputError(f"edges.{name} holds {shown(row)}; expected a row of nodes, 0 to {len(keys) - 1}.")
            ends.append(keys[row])
        if graph.has_edge(*ends):
            raise InputError(f"the edge from {shown(ends[0])} to {shown(ends[1])} is there twice.")
        graph.add_edge(*ends, **data)
    normalise(graph)
    return graph


def shown(value: object) -> str:
    """Returns a value as text for a message, cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "a very large number"


def _check_version(document: Mapping[str, Any]) -> None:
    schema = document.get("schema")
    family, _, version = schema.partition("/") if isinstance(schema, str) else ("", "", "")
    if family != "circuitsae" or not (version.isascii() and version.isdigit() and len(version) < 10):
        hint = ""
        if {"metadata", "nodes", "links"} <= document.keys():
            hint = " It looks like circuit-tracer's graph format: circuitsae.export.circuit_tracer reads it."
        elif {"directed", "nodes"} <= document.keys():
            hint = " It looks like networkx's node-link format: networkx.node_link_graph reads it."
        elif "elements" in document:
            hint = " It looks like Cytoscape's format: circuitsae.export.tables.from_cytoscape reads it."
        raise InputError(f"expected the schema {SCHEMA!r}; this file says {shown(schema)}.{hint}")
    if int(version) > VERSION:
        raise InputError(
            f"it was written by a newer circuitsae (schema {shown(schema)}; this version reads up to {SCHEMA!r}): "
            "pip install -U circuitsae."
        )
    if int(version) < 1:
        raise InputError(f"there is no schema {shown(schema)}; this version reads {SCHEMA!r}.")


def _columns(rows: list[Attributes]) -> dict[str, list[Any]]:
    """Returns rows of attributes as columns, `None` where a row lacks the attribute; known attributes first."""
    present = {name: None for row in rows for name in row}
    order = [name for name in (*FROM_KEY, "token", "label", *NODE_NUMBERS, *EDGE_NUMBERS) if name in present]
    order += sorted(name for name in present if name not in order)
    return {name: [row.get(name) for row in rows] for name in order}


def _rows(part: str, first: str, columns: Mapping[str, Any]) -> tuple[list[Any], list[Attributes]]:
    """Returns the column `first` and, per row, the attributes that the other columns hold."""
    for name, column in columns.items():
        if not isinstance(column, list):
            raise InputError(f"{part}.{shown(name)[1:-1]} is {_json_name(column)}; expected a list.")
    if first not in columns:
        raise InputError(f"{part!r} has no column {first!r}.")
    leading = cast(list[Any], columns[first])
    rows: list[Attributes] = [{} for _ in leading]
    for name, column in columns.items():
        if name == first:
            continue
        if len(column) != len(leading):
            raise InputError(f"{part}.{shown(name)[1:-1]} has {len(column)} rows; {part}.{first} has {len(leading)}.")
        for row, value in zip(rows, column, strict=True):
            if value is not None:
                row[name] = value
    return leading, rows


def _normalise_node(key: str, data: Attributes, n_tokens: int | None) -> None:
    known = attributes_of(key)
    for name, value in known.items():
        given = data.setdefault(name, value)
        if given != value or isinstance(given, bool):
            if name == "layer":
                continue  # a site's layer is the model's to say; only its type matters
            raise InputError(f"Node {shown(key)} has {name}={shown(given)}, but its key says {value!r}.")
    for name in ("site", "index", "position"):
        if name in data and name not in known:
            raise InputError(f"Node {shown(key)} has {name}={shown(data[name])}, but its key names none.")
    if n_tokens is not None and known.get("position", -1) >= n_tokens:
        raise InputError(f"Node {shown(key)} lies past the prompt's {n_tokens} tokens.")
    _normalise_attributes(data, NODE_NUMBERS, lambda: f"node {shown(key)}", reserved=("key",))
    for name in ("token", "label"):
        if name in data and not isinstance(data[name], str):
            raise InputError(f"Node {shown(key)} has {name}={shown(data[name])}; expected text.")
    if "layer" in data and type(data["layer"]) is not int:
        raise InputError(f"Node {shown(key)} has layer={shown(data['layer'])}; expected a whole number.")


def _normalise_edge(graph: Graph, source: str, target: str, data: Attributes) -> None:
    def where() -> str:
        return f"edge {shown(source)} -> {shown(target)}"

    if graph.nodes[target]["kind"] in ("token", "bias"):
        raise InputError(f"The {where()} ends at a {graph.nodes[target]['kind']} node, which nothing acts on.")
    if graph.nodes[source]["kind"] == names.METRIC:
        raise InputError(f"The {where()} starts at the metric, which acts on nothing.")
    if "weight" not in data:
        raise InputError(f"The {where()} has no weight.")
    _normalise_attributes(data, EDGE_NUMBERS, where, reserved=("source", "target"))
    if "heads" in data and not _are_heads(data["heads"]):
        raise InputError(
            f"The {where()} has heads {shown(data['heads'])}; expected a list of [layer, head, contribution]."
        )


def _normalise_attributes(
    data: Attributes, numeric: tuple[str, ...], where: Callable[[], str], reserved: tuple[str, ...]
) -> None:
    for name, value in data.items():
        kind = cast(type[Any], type(value))
        if kind is float:
            if not math.isfinite(value):
                raise InputError(f"The {where()} has {shown(name)[1:-1]}={value}; numbers in a circuit are finite.")
        elif kind is str and name not in numeric:
            pass
        elif name in numeric:
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise InputError(f"The {where()} has {name}={shown(value)}; expected a number, or no such attribute.")
            data[name] = _plain(value, where)
        else:
            if value is None:
                raise InputError(f"The {where()} has {shown(name)[1:-1]}=None; what is not known is left out.")
            data[name] = _plain(value, where)
        if not isinstance(cast(object, name), str) or name in reserved:
            raise InputError(f"The {where()} has an attribute {shown(name)}, a name that can't be used there.")


def _normalise_graph_attributes(graph: Graph) -> None:
    attributes = graph.graph
    if attributes.setdefault("schema", SCHEMA) != SCHEMA:
        raise InputError(f"The graph says schema={shown(attributes['schema'])}; this version knows {SCHEMA!r}.")
    for name, value in list(attributes.items()):
        if not isinstance(cast(object, name), str):
            raise InputError(f"The graph has an attribute {shown(name)}; names are strings.")
        attributes[name] = _plain(value, lambda: "graph")
        expected, fits = _GRAPH_ATTRIBUTES.get(name, ("", _anything))
        if not fits(attributes[name]):
            raise InputError(f"The graph has {name}={shown(value)}; expected {expected}.")


_SIMPLE = frozenset({str, bool, type(None)})


def _plain(value: Any, where: Callable[[], str], depth: int = 0) -> Any:
    """Returns a value in JSON's own types: text, whole numbers, finite numbers, truth values, null, lists, objects."""
    kind = cast(type[Any], type(value))
    if kind in _SIMPLE:
        return value
    if kind is not list and kind is not dict:  # which json gives, and abstract classes are slow to tell apart
        if isinstance(value, numbers.Integral):
            if not is_number(value := int(value)):  # no float holds it, and Python may not even print it
                raise InputError(
                    f"The {where()} holds a whole number of over 300 digits; numbers in a circuit are finite."
                )
            return value
        if isinstance(value, numbers.Real):
            if not math.isfinite(value):
                raise InputError(f"The {where()} holds {float(value)}; numbers in a circuit are finite.")
            return float(value)
        if isinstance(value, str):
            return str(value)
    if depth >= _DEEPEST:
        raise InputError(f"The {where()} holds lists or objects nested over {_DEEPEST} deep.")
    if isinstance(value, list | tuple):
        items = cast(Iterable[Any], value)
        return [item if type(item) in _SIMPLE else _plain(item, where, depth + 1) for item in items]
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for name, item in cast(Mapping[Any, Any], value).items():
            if not isinstance(name, str):
                raise InputError(f"The {where()} holds an object with the name {shown(name)}; names are strings.")
            plain[name] = item if type(item) in _SIMPLE else _plain(item, where, depth + 1)
        return plain
    raise InputError(f"The {where()} holds {shown(value)} ({kind.__name__}), which JSON can't.")


def _json_name(value: object) -> str:
    kinds: dict[type[Any], str] = {dict: "an object", list: "a list", str: "text", bool: "a truth value"}
    if value is None:
        return "missing"
    return kinds.get(type(value), "a number")


def _anything(value: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that a float holds: finite, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast(list[Any], value))


def is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(is_number(item) for item in cast(list[Any], value))


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_metric(value: Any) -> bool:
    return _is_object(value) and all(isinstance(value.get(name, ""), str) for name in ("name", "description"))


def _is_token_shares(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and len(cast(list[Any], row)) == 2 and isinstance(row[0], str) and is_number(row[1])
        for row in cast(list[Any], value)
    )


def _are_heads(value: Any) -> bool:
    def is_head(row: Any) -> bool:
        return isinstance(row, list) and len(cast(list[Any], row)) == 3 and is_numbers(row[:2]) and is_number(row[2])

    return isinstance(value, list) and all(map(is_head, cast(list[Any], value)))


def _is_groups(value: Any) -> bool:
    return isinstance(value, list) and all(
        _is_object(group)
        and _is_text(group.get("name"))
        and _is_texts(group.get("keys"))
        and all(is_number(group.get(name, 0)) for name in ("effect", "measured_effect"))
        for group in cast(list[Any], value)
    )


def _is_faithfulness(value: Any) -> bool:
    def is_share(share: Any) -> bool:
        return share is None or is_number(share)

    if not _is_object(value):
        return False
    random = value.get("random_faithfulness", [])
    return (
        is_share(value.get("faithfulness")) and isinstance(random, list) and all(map(is_share, cast(list[Any], random)))
    )


_TEXT = ("text", _is_text)
_GRAPH_ATTRIBUTES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "package_version": _TEXT,
    "created": _TEXT,
    "model": ("an object with the model's name", lambda value: _is_object(value) and _is_text(value.get("name", ""))),
    "preset": ("text, or null", lambda value: value is None or _is_text(value)),
    "dictionaries": (
        "a list of objects",
        lambda value: isinstance(value, list) and all(map(_is_object, cast(list[Any], value))),
    ),
    "sites": ("a list of site ids", _is_texts),
    "prompt": ("text, or token ids", lambda value: _is_text(value) or is_numbers(value)),
    "tokens": ("a list of texts", _is_texts),
    "token_ids": ("a list of whole numbers", is_numbers),
    "patch": ("text, token ids or null", lambda value: value is None or _is_text(value) or is_numbers(value)),
    "patch_tokens": ("a list of texts", lambda value: value is None or _is_texts(value)),
    "metric": ("an object with name and description", _is_metric),
    "metric_value": ("a number", is_number),
    "baseline_metric_value": ("a number, or null", lambda value: value is None or is_number(value)),
    "top_tokens": ("a list of [token, probability]", _is_token_shares),
    "neuronpedia": _TEXT,
    "pins": ("a list of node keys", _is_texts),
    "groups": ("a list of objects with name and keys", _is_groups),
    "faithfulness": ("an object with faithfulness and random_faithfulness", _is_faithfulness),
    "options": ("an object", _is_object),
    "kept": ("an object", _is_object),
}
