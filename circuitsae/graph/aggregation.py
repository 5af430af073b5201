"""Circuits of many prompts as one: means over the prompts, and on every node and edge how far they spread."""

import datetime
import math
from collections.abc import Iterable, Sequence
from typing import Any

import networkx as nx

from circuitsae import __version__, names
from circuitsae.errors import InputError
from circuitsae.graph.alignment import Align, Alignment, align_circuits
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import Attributes, Graph

# A node that a prompt's circuit lacks does nothing there: zero. What else is not known stays unknown.
_ZERO_WHERE_MISSING = ("activation", "baseline", "effect", "total", "influence")
_WHERE_KNOWN = ("measured_effect", "explained", "probability")
_SPREAD = ("activation", "effect")
# Of several positions of one prompt put together, these are no sums of theirs.
_NOT_ADDITIVE = ("measured_effect", "explained")
_SAME = (
    *("model", "preset", "patch", "prompt", "method", "baseline", "gradient", "linearisation", "prune"),
    *("token_ids", "patch_tokens", "patch_token_ids"),
)


def aggregate(
    circuits: Iterable[Circuit],
    *,
    align: Align = "position",
    slots: Sequence[Sequence[str]] | None = None,
    min_count: int = 1,
) -> Circuit:
    """Returns the circuit averaged over a set of prompts' circuits.

    Every number is the mean over all prompts; where a prompt's circuit lacks a node or an edge it counts as zero there
    (its feature is not active, or was too weak to be kept). `count` says in how many circuits a node or edge is, and
    `effect_std`, `activation_std`, `contribution_std` and `weight_std` by how much it varies over the prompts (standard
    deviation, zeros included). `measured_effect`, `explained` and `probability` are means over the circuits that know
    them. Nodes that fall together in one prompt (several positions in one slot, or summed over) are added up first.

    Args:
        circuits: Of one model and its dictionaries.
        align: `"position"` (prompts of equal length), `"template"` (equal slots: named by `slots`, or the tokens that all
            prompts share, and the runs between them) or `"sum"` (a feature's positions are one node, without `@`).
        slots: By circuit, the slot's name at each position, for `align="template"`.
        min_count: Nodes in fewer circuits are left out.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: No circuits, circuits of different models, dictionaries or metrics, or that can't be aligned so.
    """
    circuits = list(circuits)
    alignment = align_circuits(circuits, align, slots)
    check_min_count(min_count, len(circuits))
    _check_metrics(circuits)
    nodes: dict[str, list[Attributes]] = {}
    edges: dict[tuple[str, str], list[Attributes]] = {}
    for number, circuit in enumerate(circuits):
        own_nodes, own_edges = collapse(circuit, alignment, number)
        for key, data in own_nodes.items():
            nodes.setdefault(key, []).append(data)
        for ends, data in own_edges.items():
            edges.setdefault(ends, []).append(data)
    n = len(circuits)
    graph: Graph = nx.DiGraph()
    for key in sorted(nodes, key=names.sort_key):
        if len(nodes[key]) >= min_count or names.parse(key).kind in ("token", "bias", "metric"):
            graph.add_node(key, **_mean_node(nodes[key], n))
    for (source, target), found in edges.items():
        if source in graph and target in graph:
            graph.add_edge(source, target, **_mean_edge(found, n))
    graph.graph.update(_about(circuits, alignment, align, min_count))
    graph.graph["kept"] = {
        "nodes": graph.number_of_nodes(),
        "candidates": len(nodes),
        "edges": graph.number_of_edges(),
        "edge_candidates": len(edges),
    }
    return Circuit(graph)


def check_min_count(min_count: int, n_circuits: int) -> None:
    """Says when no node could be in so many circuits.

    Raises:
        InputError: It is less than one, or more than there are circuits.
    """
    if not 1 <= min_count <= n_circuits:
        raise InputError(f"min_count is {min_count}; expected from 1 to the number of circuits, {n_circuits}.")


def collapse(
    circuit: Circuit, alignment: Alignment, number: int
) -> tuple[dict[str, Attributes], dict[tuple[str, str], Attributes]]:
    """Returns one circuit's nodes and edges under their common keys; those that fall together are added up."""
    common = {key: alignment.key(number, key) for key in circuit}
    nodes: dict[str, Attributes] = {}
    for key, data in circuit.graph.nodes(data=True):
        mine = {name: value for name, value in data.items() if name not in ("position", "cumulative_influence")}
        position = names.parse(common[key]).position
        if isinstance(position, int) and alignment.tokens is not None and "token" in mine:
            mine["token"] = alignment.tokens[position]
        elif position is None:
            mine.pop("token", None)
        if common[key] in nodes:
            _add_into(nodes[common[key]], mine)
        else:
            nodes[common[key]] = mine
    edges: dict[tuple[str, str], Attributes] = {}
    for source, target, data in circuit.graph.edges(data=True):
        ends = common[source], common[target]
        if ends in edges:
            for name in ("contribution", "weight"):
                if name in data:
                    edges[ends][name] = edges[ends].get(name, 0.0) + data[name]
        else:
            edges[ends] = {name: data[name] for name in ("contribution", "weight") if name in data}
    return nodes, edges


def _add_into(sum_of: Attributes, data: Attributes) -> None:
    for name in _NOT_ADDITIVE:
        sum_of.pop(name, None)
    for name in (*_ZERO_WHERE_MISSING, "probability"):
        if name in data:
            sum_of[name] = sum_of.get(name, 0.0) + data[name]


def _mean_node(found: Sequence[Attributes], n: int) -> Attributes:
    result: Attributes = {}
    for data in found:  # what is no number (kind, site, label, ...) is the first's that has it
        for name, value in data.items():
            if name not in _ZERO_WHERE_MISSING and name not in _WHERE_KNOWN:
                result.setdefault(name, value)
    for name in _ZERO_WHERE_MISSING:
        values = [data[name] for data in found if name in data]
        if values:
            result[name] = math.fsum(values) / n
            if name in _SPREAD:
                result[f"{name}_std"] = spread(values, n)
    for name in _WHERE_KNOWN:
        values = [data[name] for data in found if name in data]
        if values:
            result[name] = math.fsum(values) / len(values)
    result["count"] = len(found)
    return result


def _mean_edge(found: Sequence[Attributes], n: int) -> Attributes:
    result: Attributes = {}
    for name in ("contribution", "weight"):
        values = [data[name] for data in found if name in data]
        if values:
            result[name] = math.fsum(values) / n
            result[f"{name}_std"] = spread(values, n)
    result["count"] = len(found)
    return result


def spread(values: Sequence[float], n: int) -> float:
    """Returns the standard deviation of `n` numbers: these, and zeros for the rest."""
    mean = math.fsum(values) / n
    return math.sqrt((math.fsum((v - mean) ** 2 for v in values) + (n - len(values)) * mean**2) / n)


def _check_metrics(circuits: Sequence[Circuit]) -> None:
    metrics = {str(c.graph.graph.get("metric", {}).get("name", "")) for c in circuits} - {""}
    if len(metrics) > 1:
        raise InputError(
            f"The circuits explain different metrics ({', '.join(sorted(metrics))}), whose units can't be averaged; "
            "expected one."
        )


def _about(circuits: Sequence[Circuit], alignment: Alignment, align: str, min_count: int) -> dict[str, Any]:
    """Returns the graph's attributes: what all circuits have in common, and what each one was."""
    every = [circuit.graph.graph for circuit in circuits]
    about: dict[str, Any] = {
        name: every[0][name] for name in _SAME if all(name in g and g[name] == every[0].get(name) for g in every)
    }
    about["package_version"] = __version__
    about["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    dictionaries = {str(d.get("site")): d for g in every for d in g.get("dictionaries", [])}
    sites = dict.fromkeys(site for g in every for site in g.get("sites", []))
    if dictionaries:
        about["dictionaries"] = list(dictionaries.values())
    if sites:
        about["sites"] = list(sites)
    if alignment.tokens is not None and any("tokens" in g for g in every):
        about["tokens"] = list(alignment.tokens)
    if alignment.places is None or len(alignment.tokens or ()) != len(every[0].get("tokens", ())):
        for name in ("token_ids", "patch_tokens", "patch_token_ids"):
            about.pop(name, None)
    options = [g.get("options", {}) for g in every]
    about["options"] = {k: v for k, v in options[0].items() if all(k in o and o[k] == v for o in options)}
    descriptions = list(dict.fromkeys(str(g.get("metric", {}).get("description", "")) for g in every))
    if any("metric" in g for g in every):
        text = descriptions[0] if len(descriptions) == 1 else f"{len(descriptions)} metrics, such as {descriptions[0]}"
        about["metric"] = {
            "name": str(every[0].get("metric", {}).get("name", "metric")),
            "description": f"mean over {len(circuits)} prompts of {text}",
        }
    for name in ("metric_value", "baseline_metric_value"):
        values = [g[name] for g in every if g.get(name) is not None]
        if len(values) == len(every):
            about[name] = math.fsum(values) / len(values)
    about["aggregate"] = {"prompts": len(circuits), "align": align, "min_count": min_count}
    about["prompts"] = [
        {
            "prompt": circuit.prompt,
            **{k: g[k] for k in ("metric", "metric_value", "baseline_metric_value", "patch") if g.get(k) is not None},
        }
        for circuit, g in zip(circuits, every, strict=True)
    ]
    return about
