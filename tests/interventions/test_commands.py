"""The commands generate and scan, and what intervene has besides: what they print and write; bad input is one sentence."""

import csv
import json
from pathlib import Path

import pytest

from circuitsae.cli.main import run

PROMPT = "The keys to the cabinet"
QUESTION = [PROMPT, "--preset", "tiny", "--answer", " are", "--foil", " is"]
NODE = "blocks.1.hook_mlp_out/3@2"


def _out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    status = run(list(arguments))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def test_generate_shows_both_texts(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", PROMPT, "--preset", "tiny", "--steer", "blocks.2.hook_mlp_out/7=300", "--tokens", "3"]
    text = _out(capsys, *command)
    assert text.startswith("before")
    assert "they part at token" in text
    found = json.loads(_out(capsys, *command, "--json", "--no-cache"))
    assert len(found["before"][0]["token_ids"]) <= 3
    assert found["before"][0]["text"] != found["after"][0]["text"]
    assert found["cached"] is False


def test_scan_writes_tables_and_pictures(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / name) for name in ("rows.csv", "heat.png")]
    command = ["scan", *QUESTION, "--at", "-1", "--nodes", "12"]
    found = json.loads(_out(capsys, *command, "--json", *(word for f in files for word in ("-o", f))))
    assert found["agreement"]["n"] == 12
    with open(files[0], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == [row["node"] for row in found["rows"]]
    assert [float(row["measured"]) for row in rows] == pytest.approx([row["measured"] for row in found["rows"]])
    assert Path(files[1]).read_bytes().startswith(b"\x89PNG")
    node = found["rows"][0]["node"]
    done = json.loads(_out(capsys, "intervene", *QUESTION, "--ablate", node, "--json"))
    assert done["effect"] == pytest.approx(found["rows"][0]["measured"], abs=1e-4)
    curve = json.loads(
        _out(capsys, "scan", *QUESTION, "--what", "scales", "--node", node, "--scales", "0", "1", "--json")
    )
    assert [row["scale"] for row in curve["rows"]] == [0, 1]
    assert curve["rows"][0]["metric"] == pytest.approx(done["metric_after"], abs=1e-4)
    assert "active features" in _out(capsys, "scan", PROMPT, "--preset", "tiny", "--what", "activity", "--at", "-1")


def test_intervene_along_paths_and_with_parts_frozen(capsys: pytest.CaptureFixture[str]) -> None:
    token = ["intervene", *QUESTION, "--ablate", "token@2", "--json"]
    whole = json.loads(_out(capsys, *token))["effect"]
    by_one = json.loads(_out(capsys, *token, "--through", "blocks.1.hook_v_input/0", "--along", "residual"))["effect"]
    direct = json.loads(_out(capsys, *token, "--direct-only", "--attention", "frozen"))["effect"]
    assert len({round(value, 6) for value in (whole, by_one, direct)}) == 3
    swap = ["intervene", *QUESTION, "--swap", "token@*=The key to the cabinet", "--json"]
    assert abs(json.loads(_out(capsys, *swap))["effect"]) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["generate", PROMPT, "--preset", "tiny"], "No edit was given"),
        (["generate", PROMPT, "--preset", "tiny", "--steer", NODE], "expected NODE=VALUE"),
        (["generate", PROMPT, "--preset", "tiny", "--ablate", NODE, "--top-p", "2"], "top_p is 2"),
        (["intervene", *QUESTION, "--swap", NODE], "expected NODE=PROMPT"),
        (["intervene", *QUESTION, "--ablate", NODE, "--attention", "hot"], "hot"),
        (["scan", *QUESTION, "-o", "rows.xls"], "tells no format"),
        (["scan", *QUESTION, "--what", "scales"], "add --node"),
        (["scan", "--preset", "tiny", "--what", "activity"], "No prompt was given"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], text: str) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert text in err
    assert err.strip().count("\n") == 0
