"""Groups of nodes that do the same job: planted ones are found, whatever the layers, and nothing else is."""

import random

import networkx as nx
import numpy as np
import pytest

import circuitsae as cs
from circuitsae.errors import UnknownNameError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.grouping import group, linked, profiles, silhouette
from circuitsae.graph.table import table_of


def planted(seed: int, noise: float = 0.02) -> tuple[Circuit, dict[str, int]]:
    """Three roles: read token 1, read token 3, and carry both on; members over layers and positions."""
    rng = random.Random(seed)
    graph: nx.DiGraph[str] = nx.DiGraph()
    tokens = [f"token@{p}" for p in range(4)]
    for key in tokens:
        graph.add_node(key, kind="token", token=f" t{key[-1]}", activation=1.0, effect=0.1)
    graph.add_node("metric", kind="metric")
    role: dict[str, int] = {}
    readers: list[list[str]] = [[], []]
    number = 0
    for which, source in enumerate((1, 3)):
        for layer in (0, 0, 1, 2):
            key = f"blocks.{layer}.hook_resid_post/{number}@3"
            number += 1
            graph.add_node(key, kind="feature", activation=1.0, effect=rng.uniform(0.5, 1.0), label=f"role {which}")
            graph.add_edge(tokens[source], key, contribution=1.0 + noise * rng.random(), weight=0.1)
            graph.add_edge(tokens[0], key, contribution=noise * rng.uniform(-1, 1), weight=0.01)
            role[key], readers[which] = which, [*readers[which], key]
    for layer in (4, 4, 5):
        key = f"blocks.{layer}.hook_resid_post/{number}@3"
        number += 1
        graph.add_node(key, kind="feature", activation=1.0, effect=2.0, label="role 2")
        for which, sign in enumerate((1.0, -1.0)):
            for reader in readers[which]:
                graph.add_edge(reader, key, contribution=sign * (1.0 + noise * rng.random()), weight=0.2 * sign)
        graph.add_edge(key, "metric", contribution=1.0, weight=0.7)
        role[key] = 2
    return Circuit(graph), role


@pytest.mark.parametrize("seed", range(4))
def test_planted_roles_are_the_groups(seed: int) -> None:
    circuit, role = planted(seed)
    found = group(circuit).graph.graph["groups"]
    assert {frozenset(one["keys"]) for one in found} == {
        frozenset(key for key in role if role[key] == which) for which in range(3)
    }
    # the strongest first, and named after its label
    assert found[0]["name"] == "role 2 (L4-5)"
    assert "groups" not in circuit.graph.graph
    assert group(circuit).graph.graph["groups"] == found


def test_profiles_are_sums_over_all_ways() -> None:
    circuit, _ = planted(0, noise=0.5)
    table, keys = table_of(circuit.graph)
    arriving, leaving = profiles(table, keys)
    sums = {v: sum(abs(d["contribution"]) for _, _, d in circuit.graph.in_edges(v, data=True)) for v in circuit}
    share = {(u, v): d["contribution"] / sums[v] for u, v, d in circuit.graph.edges(data=True)}
    top, root = next(k for k in keys if "blocks.5." in k), "token@1"
    by_hand = sum(
        float(np.prod([share[step] for step in zip(way, way[1:], strict=False)]))
        for way in nx.all_simple_paths(circuit.graph, root, top)
    )
    assert arriving[keys.index(top), keys.index(root)] == pytest.approx(by_hand, abs=1e-12)
    assert leaving[keys.index(root), keys.index(top)] == pytest.approx(by_hand, abs=1e-12)


def test_average_linkage_and_silhouette_by_hand() -> None:
    points = np.array([0.0, 0.1, 0.15, 1.0, 1.05, 3.0])
    distance = np.abs(points[:, None] - points[None])
    assert linked(distance, 0.5).tolist() == [0, 0, 0, 3, 3, 5]
    assert linked(distance, 0.01).tolist() == list(range(6))
    label = np.array([0, 0, 0, 3, 3, 5])
    first = 1 - ((0.1 + 0.15) / 2) / ((1.0 + 1.05) / 2)
    assert silhouette(distance[:, :], label) == pytest.approx(
        np.mean([
            first,
            1 - ((0.1 + 0.05) / 2) / ((0.9 + 0.95) / 2),
            1 - ((0.15 + 0.05) / 2) / ((0.85 + 0.9) / 2),
            1 - 0.05 / ((1.0 + 0.9 + 0.85) / 3),
            1 - 0.05 / ((1.05 + 0.95 + 0.9) / 3),
            0.0,
        ])
    )  # fmt: skip


def test_small_empty_and_unknown() -> None:
    circuit, _ = planted(1)
    few = circuit.subgraph([*circuit.features[:2], "metric"])
    assert group(few).graph.graph["groups"] == []
    with pytest.raises(UnknownNameError, match="grouping"):
        group(circuit, "no-such")


def test_a_group_is_measured_by_ablating_it_as_one() -> None:
    spliced = cs.load("tiny")
    task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
    circuit = cs.measure_groups(spliced, task, cs.group(cs.trace(spliced, task, max_nodes=48)))
    groups = circuit.graph.graph["groups"]
    assert groups
    for one in groups[:3]:
        together = cs.intervene(spliced, task, [cs.Ablate(key) for key in one["keys"]])
        assert one["measured_effect"] == pytest.approx(together.effect, abs=1e-4)
        alone = sum(circuit[key].get("measured_effect", circuit[key]["effect"]) for key in one["keys"])
        assert one["effect"] == pytest.approx(alone)
    lines = circuit.report().splitlines()
    header = next(n for n, line in enumerate(lines) if line.startswith("groups "))
    assert lines[header].split() == ["groups", "nodes", "measured", "each", "alone"]
    assert groups[0]["name"][:12] in lines[header + 1]
    assert Circuit.from_json(circuit.to_json()) == circuit
