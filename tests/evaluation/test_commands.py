"""tasks, evaluate and report from the command line: what they write, and what they say of what can't be used."""

import json
import re
from pathlib import Path

import pytest

from circuitsae.cli.main import run
from circuitsae.evaluation.result import Evaluation
from circuitsae.graph.circuit import Circuit

_MODEL = ["--preset", "tiny", "--sites", "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]


def test_tasks_are_listed_and_drawn(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["tasks", *_MODEL, "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"ioi", "greater-than"}
    path = tmp_path / "t.csv"
    assert run(["tasks", "capitals", "-n", "3", "-o", str(path), *_MODEL]) == 0
    assert len(path.read_text().splitlines()) == 4
    assert run(["tasks", "capitol", *_MODEL]) == 2
    assert "did you mean 'capitals'" in capsys.readouterr().err


def test_a_report_is_one_page_with_its_numbers_and_its_data_beside_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    arguments = ["report", "agreement-simple", "-n", "3", "--circuits", "2", "--max-nodes", "20", "--measure", "3",
                 "--random", "1", "--grid", "0.1", "1", "--title", "<b>mine</b>"]  # fmt: skip
    assert run([*arguments, "-o", str(page), *_MODEL]) == 0
    text = page.read_text()
    assert "<h1>&lt;b&gt;mine&lt;/b&gt;</h1>" in text
    assert text.count("<svg") >= 2
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", text)
    assert "default-src 'none'" in text
    for words in ("Faithfulness", "Does the circuit do it?", "Do the predictions hold?", "Where this is from"):
        assert words in text
    data = json.loads(page.with_suffix(".json").read_text())
    found = Evaluation.from_json(json.dumps(data["evaluation"]))
    assert found.faithfulness is not None
    assert f"{found.faithfulness.value:.3f}" in text
    Circuit.from_json(json.dumps(data["circuit"]))
    assert "CPR" in capsys.readouterr().out
    out = tmp_path / "e.json"
    assert (
        run(["evaluate", "agreement-simple", "-n", "2", "--compare", "--grid", "0.5", "1", "-o", str(out), *_MODEL])
        == 0
    )
    assert Evaluation.load(out).metrics.shape[1] == 2


@pytest.mark.unchecked
def test_arguments_that_can_not_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", "ioi", "-n", "1", "--errors", "live", *_MODEL]) == 2
    assert "way to treat errors" in capsys.readouterr().err
    assert run(["evaluate", "nothing.jsonl", *_MODEL]) == 2
    assert "can't be read" in capsys.readouterr().err
