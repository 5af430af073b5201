"""Heads kept on the edges of a frozen graph: those of `cs.heads`, in tables, files and exports."""

from pathlib import Path
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae import registry
from circuitsae.errors import InputError
from circuitsae.graph.circuit import Circuit

TASK = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))


@pytest.fixture(scope="module")
def session() -> cs.Session:
    return cs.Session(cs.load("tiny", dtype=torch.float64), TASK)


@pytest.fixture(scope="module")
def circuit(session: cs.Session) -> Circuit:
    return session.trace(linearisation="frozen", max_nodes=24, heads=2)


def test_edges_keep_their_strongest_heads(session: cs.Session, circuit: Circuit) -> None:
    split = [(u, v) for u, v, data in circuit.graph.edges(data=True) if "heads" in data]
    assert {(u, v) for u, v in circuit.graph.edges if v in circuit.features and u != "bias"} == set(split)
    moved = [(u, v) for u, v in split if circuit[u]["position"] != circuit[v]["position"]]
    assert moved
    for found in cs.heads(session, split[:8] + moved[:8]):
        data = circuit.graph.edges[found.source, found.target]
        assert data["heads"] == [[s.layer, s.head, s.contribution] for s in found.heads[:2]]
        assert (data["direct"], data["several"]) == (found.direct, found.several)
        whole = found.direct + found.several + sum(share.contribution for share in found.heads)
        assert whole == pytest.approx(data["contribution"], abs=1e-10)
    assert all(circuit.graph.edges[ends]["direct"] == 0 for ends in moved)


def test_the_table_of_heads_is_their_sum(session: cs.Session) -> None:
    circuit = session.trace(linearisation="frozen", max_nodes=24, heads=100)
    rows = circuit.heads()
    assert [row["carried"] for row in rows] == sorted((row["carried"] for row in rows), reverse=True)
    first = rows[0]
    weights = [
        data["weight"] * value / data["contribution"]
        for u, v, data in circuit.graph.edges(data=True)
        for layer, head, value in data.get("heads", ())
        if (layer, head, circuit[u]["position"], circuit[v]["position"])
        == (first["layer"], first["head"], first["source"], first["target"])
    ]
    assert first["edges"] == len(weights)
    assert first["weight"] == pytest.approx(sum(weights)) and first["carried"] == pytest.approx(sum(map(abs, weights)))
    header = next(line for line in circuit.report().splitlines() if line.startswith("heads "))
    assert header.split() == ["heads", "between", "edges", "carried", "weight"]


def test_they_outlive_files_and_break_no_export(circuit: Circuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert again == circuit and again.heads() == circuit.heads()
    for name in registry.names("exporters"):
        assert circuit.export(tmp_path / f"{name}.out", format=name)


@pytest.mark.parametrize(
    "damage",
    [
        lambda graph: next(iter(graph.edges(data=True)))[2].update(heads="all"),
        lambda graph: next(iter(graph.edges(data=True)))[2].update(heads=[[0, 1]]),
        lambda graph: graph.graph.update(faithfulness=0.8),
        lambda graph: graph.graph.update(faithfulness={"faithfulness": "much"}),
        lambda graph: graph.graph.update(faithfulness={"faithfulness": 1.0, "random_faithfulness": ["some"]}),
        lambda graph: graph.graph.update(groups=[{"name": "g", "keys": [], "measured_effect": "large"}]),
    ],
)
def test_a_strangers_values_are_refused_before_anything_is_made_of_them(circuit: Circuit, damage: Any) -> None:
    graph = circuit.subgraph(circuit).graph
    damage(graph)
    with pytest.raises(InputError, match="expected"):
        Circuit(graph)


def test_what_can_not_be_asked_is_said(session: cs.Session) -> None:
    with pytest.raises(InputError, match="expected linearisation='frozen'"):
        session.trace(heads=2)
    with pytest.raises(InputError, match="heads is -1"):
        session.trace(linearisation="frozen", heads=-1)
    assert session.trace(max_nodes=8).heads() == []
