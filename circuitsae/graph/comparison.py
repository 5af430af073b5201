"""Two circuits side by side: what both have, what only one has, and by how much they differ."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from circuitsae import __version__, names
from circuitsae.correlation import correlation
from circuitsae.graph.aggregation import collapse
from circuitsae.graph.alignment import Align, align_circuits
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.reports import number_text, table_lines
from circuitsae.graph.schema import Attributes, Graph

_NUMBERS = ("activation", "effect")
_TEXTS = ("kind", "site", "layer", "index", "token", "label")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        circuit: Every node and edge of either, as a circuit that can be drawn, saved and exported. `side` is "shared",
            "a" or "b"; `effect`, `activation`, `weight` and `contribution` are b's less a's, where one that lacks the
            node or edge counts as zero; `effect_a`, `effect_b` and so on are each one's own.
        similarity: `node_overlap` and `edge_overlap` (shared / all, of features and error nodes, and of edges),
            `effect_overlap` (sum of the smaller |effect| / sum of the larger, of equal sign, else 0) and
            `effect_correlation` over shared nodes (absent where it is not defined).
    """

    circuit: Circuit
    similarity: dict[str, float]

    @property
    def shared(self) -> list[str]:
        """Features and error nodes that both have; those that differ most first."""
        return self._on("shared")

    @property
    def only_a(self) -> list[str]:
        """Features and error nodes of the first circuit only, strongest first."""
        return self._on("a")

    @property
    def only_b(self) -> list[str]:
        """Features and error nodes of the second circuit only, strongest first."""
        return self._on("b")

    def nodes_table(self) -> list[dict[str, Any]]:
        """Returns a row per node: `node`, `side`, `effect` (b - a), `effect_a`, `effect_b`, ...; largest change first."""
        return self.circuit.nodes_table()

    def edges_table(self) -> list[dict[str, Any]]:
        """Returns a row per edge: `source`, `target`, `side`, `weight` (b - a), `weight_a`, ...; largest change first."""
        return self.circuit.edges_table()

    def report(self, n: int = 10) -> str:
        """Returns a page of text: how alike the two are, and the `n` nodes and edges that differ most."""
        about = self.circuit.graph.graph["compared"]
        lines = ["Comparison of two circuits"]
        lines += [f"{side}: {about[side].get('prompt', '')!r}{_value(about[side])}" for side in ("a", "b")]
        counts = [(len(self.shared), "shared"), (len(self.only_a), "only in a"), (len(self.only_b), "only in b")]
        lines.append("features and error nodes: " + ", ".join(f"{count:,} {word}" for count, word in counts))
        lines.append(
            "likeness: " + ", ".join(f"{k.replace('_', ' ')} {number_text(v)}" for k, v in self.similarity.items())
        )
        keys = self.circuit.strongest(n)
        if keys:
            rows = [self.circuit[key] for key in keys]
            columns = [keys, [row["side"] for row in rows]]
            columns += [[number_text(row.get(name), signed=True) for row in rows] for name in _shown("effect")]
            lines += ["", *table_lines(["largest differences", "in", "effect in a", "in b", "b - a"], columns, "<<>>>")]
        edges = self.circuit.strongest_edges(n)
        if edges:
            data = [self.circuit.graph.edges[ends] for ends in edges]
            columns = [[s for s, _ in edges], [f"-> {t}" for _, t in edges], [row["side"] for row in data]]
            columns += [[number_text(row.get(name), signed=True) for row in data] for name in _shown("weight")]
            header = ["largest differences of edges", "", "in", "weight in a", "in b", "b - a"]
            lines += ["", *table_lines(header, columns, "<<<>>>")]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.report()

    def _on(self, side: str) -> list[str]:
        nodes = self.circuit.graph.nodes
        inside = [k for k in self.circuit if nodes[k]["side"] == side and nodes[k]["kind"] in ("feature", "error")]
        return sorted(inside, key=lambda k: (-abs(nodes[k].get("effect", 0.0)), names.sort_key(k)))


def compare(
    a: Circuit, b: Circuit, *, align: Align = "position", slots: Sequence[Sequence[str]] | None = None
) -> Comparison:
    """Compares two circuits of one model: of two prompts, two methods, or two prunings.

    Args:
        a, b: The circuits. Differences are b's less a's.
        align: How nodes are matched: by `"position"` (prompts of equal length), by `"template"` (equal slots), or by
            feature, over all positions (`"sum"`); see `aggregate`.
        slots: The two prompts' slots, for `align="template"`.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: The circuits are of different models or dictionaries, or can't be aligned so.
    """
    alignment = align_circuits([a, b], align, slots)
    (nodes_a, edges_a), (nodes_b, edges_b) = (
        collapse(c, None if alignment.places is None else alignment.places[n], alignment.tokens)
        for n, c in enumerate((a, b))
    )
    graph: Graph = nx.DiGraph()
    for key in sorted({**nodes_a, **nodes_b}, key=names.sort_key):
        graph.add_node(key, **_difference(nodes_a.get(key), nodes_b.get(key), _NUMBERS))
    for ends in {**edges_a, **edges_b}:
        graph.add_edge(*ends, **_difference(edges_a.get(ends), edges_b.get(ends), ("contribution", "weight")))
    graph.graph.update(_about(a, b, None if alignment.tokens is None else list(alignment.tokens), align))
    return Comparison(Circuit(graph), _similarity(graph))


def _difference(a: Attributes | None, b: Attributes | None, numbers: tuple[str, ...]) -> Attributes:
    result: Attributes = {name: value for name, value in (b or a or {}).items() if name in _TEXTS}
    result["side"] = "b" if a is None else "a" if b is None else "shared"
    for name in numbers:
        mine, theirs = (a or {}).get(name), (b or {}).get(name)
        if mine is None and theirs is None:
            continue
        if mine is not None:
            result[f"{name}_a"] = mine
        if theirs is not None:
            result[f"{name}_b"] = theirs
        result[name] = (theirs or 0.0) - (mine or 0.0)
    return result


def _similarity(graph: Graph) -> dict[str, float]:
    nodes = [data for _, data in graph.nodes(data=True) if data["kind"] in ("feature", "error")]
    edges = [data for _, _, data in graph.edges(data=True)]
    result: dict[str, float] = {}
    for name, found in (("node_overlap", nodes), ("edge_overlap", edges)):
        if found:
            result[name] = sum(data["side"] == "shared" for data in found) / len(found)
    pairs = [(data.get("effect_a", 0.0), data.get("effect_b", 0.0)) for data in nodes]
    larger = math.fsum(max(abs(x), abs(y)) for x, y in pairs)
    if larger:
        result["effect_overlap"] = math.fsum(min(abs(x), abs(y)) for x, y in pairs if x * y > 0) / larger
    both = [(data["effect_a"], data["effect_b"]) for data in nodes if "effect_a" in data and "effect_b" in data]
    r = correlation([a for a, _ in both], [b for _, b in both])
    if r is not None:
        result["effect_correlation"] = r
    return result


def _about(a: Circuit, b: Circuit, tokens: list[str] | None, align: str) -> dict[str, Any]:
    first, second = a.graph.graph, b.graph.graph
    about: dict[str, Any] = {
        name: first[name]
        for name in ("model", "preset", "method", "baseline", "gradient", "linearisation", "prune")
        if name in first and first[name] == second.get(name)
    }
    about["package_version"] = __version__
    sites = list(dict.fromkeys([*first.get("sites", []), *second.get("sites", [])]))
    if sites:
        about["sites"] = sites
    if tokens is not None and ("tokens" in first or "tokens" in second):
        about["tokens"] = tokens
    metrics = [str(g.get("metric", {}).get("description", "")) for g in (first, second)]
    text = metrics[0] if metrics[0] == metrics[1] else f"{metrics[0]} (a), {metrics[1]} (b)"
    about["metric"] = {"name": "difference", "description": f"b - a of {text or 'the metric'}"}
    if first.get("metric_value") is not None and second.get("metric_value") is not None:
        about["metric_value"] = second["metric_value"] - first["metric_value"]
    wanted = ("metric", "metric_value", "baseline_metric_value", "patch", "method", "options", "aggregate")
    about["compared"] = {
        side: {
            "prompt": circuit.prompt,
            **{k: circuit.graph.graph[k] for k in wanted if circuit.graph.graph.get(k) is not None},
        }
        for side, circuit in (("a", a), ("b", b))
    } | {"align": align}
    return about


def _shown(name: str) -> tuple[str, str, str]:
    return f"{name}_a", f"{name}_b", name


def _value(about: dict[str, Any]) -> str:
    value = about.get("metric_value")
    text = about.get("metric", {}).get("description", "metric")
    return "" if value is None else f", {text} = {number_text(value)}"
