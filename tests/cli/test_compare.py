"""The `compare` command on saved circuits; it needs no model."""

import json
from pathlib import Path

import pytest

from circuitsae.cli.main import run
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.comparison import compare
from tests.synthetic import synthetic_circuit


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    whole = synthetic_circuit(seed=1, n_features=30)
    part = whole.pruned("top-k", max_nodes=12)
    for circuit, name in ((whole, "a.json"), (part, "b.json")):
        circuit.save(tmp_path / name)
    return str(tmp_path / "a.json"), str(tmp_path / "b.json")


def test_it_shows_and_writes_the_difference(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = ["-o", str(tmp_path / "d.json"), "--html", str(tmp_path / "d.html")]
    assert run(["compare", *files, *written, "--top", "3"]) == 0
    out, err = capsys.readouterr()
    a, b = map(Circuit.load, files)
    found = compare(a, b)
    assert f"{len(found.shared)} shared, {len(found.only_a)} only in a, 0 only in b" in out
    assert found.circuit.strongest(1)[0] in out
    assert Circuit.load(tmp_path / "d.json").graph.nodes == found.circuit.graph.nodes
    assert "d.html" in err and (tmp_path / "d.html").stat().st_size > 10_000


def test_as_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", *files, "--align", "sum", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["similarity"]["node_overlap"] < 1
    assert {row["side"] for row in found["nodes"]} == {"shared", "a"} and found["edges"]


def test_what_can_not_be_compared_is_one_sentence(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["compare", *files, "--align", "positions", "-o", str(tmp_path / "d.json")]) == 2
    assert "did you mean 'position'" in capsys.readouterr().err
    assert run(["compare", files[0], str(tmp_path / "none.json")]) == 2
    err = capsys.readouterr().err
    assert "no file" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "d.json").exists()
