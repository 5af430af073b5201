"""Two prompts, one graph: which nodes both circuits have, and which only one."""

import math
from typing import Any, cast

import networkx as nx

from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import Graph

WHERE = ("in both", "only in A", "only in B")


def join_circuits(first: Circuit, second: Circuit) -> tuple[Circuit, list[dict[str, Any]]]:
    """Returns the union of two circuits of one model, and the ways of colouring that tell them apart.

    Nodes and edges that both have carry the first one's numbers. Where the prompts' tokens differ, a position is called
    by both. A node at one position in a prompt is the node at that position in the other: prompts of equal length are
    compared word by word, others from their beginning.
    """
    graph = cast(Graph, nx.DiGraph())
    for part in (first.graph, second.graph):
        for key, data in part.nodes(data=True):
            if key not in graph:
                graph.add_node(key, **data)
        for source, target, data in part.edges(data=True):
            if not graph.has_edge(source, target):
                graph.add_edge(source, target, **data)
    about = dict(first.graph.graph)
    tokens_a, tokens_b = about.get("tokens", []), second.graph.graph.get("tokens", [])
    n_tokens = max(len(tokens_a), len(tokens_b))
    for name in (
        "token_ids",
        "patch",
        "patch_tokens",
        "patch_token_ids",
        "kept",
        "baseline_metric_value",
        "top_tokens",
    ):
        about.pop(name, None)
    about["tokens"] = [_both(_at(tokens_a, p), _at(tokens_b, p)) for p in range(n_tokens)]
    about["prompt"] = f"A: {first.prompt} | B: {second.prompt}"
    graph.graph.update(about)
    for key, data in graph.nodes(data=True):
        if isinstance(data.get("position"), int) and "token" in data:
            graph.nodes[key]["token"] = about["tokens"][data["position"]]
    union = Circuit(graph)
    where = {key: (0 if key in first and key in second else 1 if key in first else 2) for key in union}
    return union, [
        {"id": "where", "name": "Where", "kind": "category", "names": list(WHERE), "values": where},
        {"id": "effect-a", "name": "Effect in A", "kind": "sign", "values": _effects(first)},
        {"id": "effect-b", "name": "Effect in B", "kind": "sign", "values": _effects(second)},
    ]


def _effects(circuit: Circuit) -> dict[str, float]:
    nodes = circuit.graph.nodes(data=True)
    return {key: float(f"{data['effect']:.5g}") for key, data in nodes if math.isfinite(data.get("effect", math.nan))}


def _at(tokens: list[str], position: int) -> str:
    return tokens[position] if position < len(tokens) else ""


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a}/{b}" if a and b else a or b
