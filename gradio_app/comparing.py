"""Two prompts, one graph: which nodes both circuits have, and which only one."""

import math
from typing import Any, cast

import networkx as nx

from circuitsae.errors import TaskError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import Graph

WHERE = ("in both", "only in A", "only in B")


def join_circuits(first: Circuit, second: Circuit) -> tuple[Circuit, list[dict[str, Any]]]:
    """Returns the union of two circuits of one model, and the ways of colouring that tell them apart.

    Nodes and edges that both have carry the first one's numbers, and nodes each one's effect and activation (`effect_a`,
    `effect_b` and so on). Where the prompts' tokens differ, a position is called by both. The prompts are of equal length
    (`check_lengths`): a node at one position in a prompt is the node at that position in the other.
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
    for side, part in (("a", first), ("b", second)):
        for name in ("effect", "activation"):
            for key, value in _numbers(part, name).items():
                graph.nodes[key][f"{name}_{side}"] = value
    union = Circuit(graph)
    where = {key: (0 if key in first and key in second else 1 if key in first else 2) for key in union}
    return union, [
        {"id": "where", "name": "Where", "kind": "category", "names": list(WHERE), "values": where},
        {"id": "effect-a", "name": "Effect in A", "kind": "sign", "values": _numbers(first, "effect")},
        {"id": "effect-b", "name": "Effect in B", "kind": "sign", "values": _numbers(second, "effect")},
    ]


def check_lengths(first: Circuit, second: Circuit) -> None:
    """Says what is wrong with prompts that can't be compared position by position.

    Raises:
        TaskError: They have different numbers of tokens.
    """
    a, b = len(first.graph.graph.get("tokens", [])), len(second.graph.graph.get("tokens", []))
    if a != b:
        raise TaskError(
            f"Prompt A has {a} tokens and prompt B {b}; expected as many, so that each position of A stands against one "
            "of B."
        )


def _numbers(circuit: Circuit, name: str) -> dict[str, float]:
    nodes = circuit.graph.nodes(data=True)
    return {key: float(f"{data[name]:.5g}") for key, data in nodes if math.isfinite(data.get(name, math.nan))}


def _at(tokens: list[str], position: int) -> str:
    return tokens[position] if position < len(tokens) else ""


def _both(a: str, b: str) -> str:
    return a if a == b else f"{a}/{b}" if a and b else a or b
