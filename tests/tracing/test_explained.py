"""How much of the metric a circuit explains: said in its header, and grown until it is enough."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import circuitsae as cs
from circuitsae.cli.main import run
from circuitsae.errors import InputError
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit

PROMPT = "The keys to the cabinet"
TASK = cs.Task(PROMPT, metric=cs.LogitDiff(" are", " is"))


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64)


def test_a_circuit_grows_until_what_it_keeps_is_faithful(spliced: cs.SplicedModel) -> None:
    session = cs.Session(spliced, TASK)
    circuit = session.trace(min_faithfulness=0.5)
    said = circuit.graph.graph["faithfulness"]
    found = session.faithfulness(circuit, n_random=3)
    assert said["faithfulness"] == pytest.approx(found.faithfulness, abs=1e-9)
    assert said["faithfulness"] >= 0.5 and said["size"] == len(circuit.features) + len(circuit.errors)
    assert np.allclose([share or 0.0 for share in found.random_faithfulness], said["random_faithfulness"], atol=1e-9)
    # the strongest nodes and no others; and fewer than are allowed
    effects = session.effects()
    sizes = {row["node"]: abs(row["effect"]) for row in effects.records(("feature", "error"))}
    kept = [sizes[key] for key in (*circuit.features, *circuit.errors)]
    assert sum(size > min(kept) for size in sizes.values()) == len(kept) - 1
    assert len(circuit.features) < 256
    (line,) = [line for line in circuit.report().splitlines() if line.startswith("explained: ")]
    assert f"faithfulness {said['faithfulness']:.2f} (random nodes " in line
    assert view_payload(circuit)["explained"] == [line]


def test_what_is_not_reached_is_said(spliced: cs.SplicedModel) -> None:
    circuit = cs.trace(spliced, TASK, min_faithfulness=1.0, max_nodes=4)
    assert len(circuit.features) == 4
    (line,) = [line for line in circuit.report().splitlines() if line.startswith("explained: ")]
    assert "short of the 1 asked for" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_faithfulness": 1.5}, "min_faithfulness is 1.5"),
        ({"min_faithfulness": 0.5, "prune": "influence"}, "expected prune='top-k'"),
        ({"min_faithfulness": 0.5, "node_threshold": 0.1}, "no node_threshold"),
    ],
)
def test_what_can_not_be_asked_is_said(spliced: cs.SplicedModel, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cs.trace(spliced, TASK, **options)


def test_the_command_grows_it_and_shares_are_those_of_the_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.json"
    assert (
        run(["trace", PROMPT, "--answer", " are", "--foil", " is", "--preset", "tiny", "--faithful", "0.5", "--json"])
        == 0
    )
    text = capsys.readouterr().out
    file.write_text(text)
    circuit = Circuit.load(file)
    assert json.loads(text)["graph"]["faithfulness"]["faithfulness"] >= 0.5
    scores = circuit.scores()
    assert scores is not None and 0 <= scores.replacement <= 1
    line = next(line for line in circuit.report().splitlines() if line.startswith("explained: "))
    share = circuit.graph.graph["kept"]["error_share"]
    assert f"error nodes hold {share:.0%} of all |effect|" in line
    assert f"completeness {scores.completeness:.2f}, replacement {scores.replacement:.2f}" in line
    empty = circuit.subgraph(circuit.features[:1])
    assert empty.scores() is None and "explained" not in empty.report()
