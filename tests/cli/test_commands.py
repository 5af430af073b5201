"""The commands on the shipped preset: what they print and write; bad input is one sentence, status 2, no file."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

from circuitsae.cli.main import run
from circuitsae.graph.circuit import Circuit

PROMPT = "The keys to the cabinet"
QUESTION = [PROMPT, "--preset", "tiny", "--answer", " are", "--foil", " is"]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what one trace wrote."""
    folder = tmp_path_factory.mktemp("traced")
    files = ["-o", str(folder / "c.json"), "-o", str(folder / "c.csv"), "--html", str(folder / "page.html")]
    assert run(["trace", *QUESTION, "--max-nodes", "40", "--measure", "4", *files]) == 0
    return folder


def _out(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    status = run(list(arguments))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


@pytest.mark.parametrize("value", [float("nan"), 1e30])  # a weight that is NaN; products that overflow
@pytest.mark.parametrize(
    "command",
    [["effects"], ["trace"], ["intervene", "--ablate", "token@2"], ["scan"], ["scan", "--what", "activity"]],
    ids=" ".join,
)
def test_a_broken_model_is_a_sentence_and_status_1(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: list[str],
    value: float,
) -> None:
    import torch

    from circuitsae.model import loading

    def load(*arguments: Any, original: Any = loading.load, **options: Any) -> Any:
        spliced = original(*arguments, **options)
        for weight in spliced.model.blocks[1].mlp.parameters():
            weight.data = torch.full_like(weight, value)
        return spliced

    monkeypatch.setattr(loading, "load", load)
    files = [] if command[0] == "intervene" else ["-o", str(tmp_path / "found.json")]
    assert run([command[0], *QUESTION, "--json", *command[1:], *files]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "not finite" in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_trace_writes_every_file_it_was_asked_for_and_nothing_else(traced: Path) -> None:
    assert sorted(p.name for p in traced.iterdir()) == ["c.edges.csv", "c.json", "c.nodes.csv", "page.html"]
    circuit = Circuit.load(traced / "c.json")
    assert 0 < len(circuit.features) <= 40
    assert circuit.graph.graph["preset"] == "tiny"
    strongest = circuit.strongest(4)
    assert all("measured_effect" in circuit[key] for key in strongest)
    page = (traced / "page.html").read_text()
    assert PROMPT in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_trace_shows_the_strongest_features_as_the_file_has_them(
    traced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = _out(capsys, "trace", *QUESTION, "--max-nodes", "40", "--top", "5", "--labels", "none")
    circuit = Circuit.load(traced / "c.json")
    for key in circuit.strongest(5):
        line = next(line for line in text.splitlines() if line.startswith(f"{key} "))
        measured, predicted = (float(number.replace("−", "-")) for number in line.split()[-2:])
        assert measured == pytest.approx(circuit[key]["measured_effect"], rel=0.01)
        assert predicted == pytest.approx(circuit[key]["effect"], rel=0.01)
    for source, target in circuit.strongest_edges(3):
        assert source in text
        assert target in text


def test_trace_as_json_is_the_circuit_itself(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Circuit.from_json(_out(capsys, "trace", *QUESTION, "--max-nodes", "40", "--json"))
    saved = Circuit.load(traced / "c.json")
    assert set(found) == set(saved)
    assert found.graph.graph["metric_value"] == saved.graph.graph["metric_value"]


def test_effects_in_the_terminal_in_csv_and_in_json_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "e.csv", tmp_path / "e.json"]
    text = _out(capsys, "effects", *QUESTION, "--top", "5", "-o", str(files[0]), "-o", str(files[1]))
    with files[0].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["node"] for row in rows] == [row["node"] for row in json.loads(files[1].read_text())]
    strongest = sorted(rows, key=lambda row: -abs(float(row["effect"])))[:5]
    shown = [line.split()[0] for line in text.splitlines()[3:]]
    assert shown == [row["node"] for row in strongest]
    found = json.loads(_out(capsys, "effects", *QUESTION, "--top", "5", "--json"))
    assert [row["node"] for row in found["nodes"]] == shown
    measured = {row["node"]: row["measured"] for row in json.loads(files[1].read_text())}
    assert all(measured[node] for node in shown) and not all(measured.values())


@pytest.mark.parametrize("command", ["trace", "effects"])
def test_an_estimate_is_said_in_place_of_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = [command, *QUESTION, "--method", "integrated-gradients", "--steps", "3", "--estimate"]
    file = tmp_path / "c.json"
    lines = _out(capsys, *question, "-o", str(file)).splitlines()
    assert not file.exists()
    found = json.loads(_out(capsys, *question, "--json"))
    assert [step["name"] for step in found["steps"]] == (["effects", "edges"] if command == "trace" else ["effects"])
    effects = found["steps"][0]
    assert lines[0].startswith("about ")
    assert lines[1].strip().startswith(f"effects: {effects['forward']:g} forward + {effects['backward']:g} backward, ")
    assert found["bytes"] > 0


def test_a_set_of_tasks_is_one_circuit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import circuitsae as cs

    spliced = cs.load("tiny")
    tasks = cs.task_set("ioi", spliced, 3, aligned=True)
    file = tmp_path / "joint.json"
    options = ["--preset", "tiny", "-n", "3", "--max-nodes", "16", "--min-count", "2"]
    text = _out(capsys, "aggregate", "ioi", *options, "-o", str(file))
    found, expected = Circuit.load(file), cs.trace_many(spliced, tuple(tasks), max_nodes=16, min_count=2)
    assert set(found) == set(expected)
    for key, data in expected.graph.nodes(data=True):
        assert found[key].get("effect") == data.get("effect")
        assert found[key].get("effect_std") == data.get("effect_std")
    assert "mean over 3 prompts" in text
    # Prompts of several lengths have no positions in common.
    rows = (
        ["The old keys", "The old key", " are", " is"],
        ["The keys to the cabinet", "The key to the cabinet", " are", " is"],
    )
    table = tmp_path / "tasks.jsonl"
    table.write_text(
        "\n".join(json.dumps(dict(zip(("clean", "patch", "answer", "foil"), row, strict=True))) for row in rows)
    )
    joint = Circuit.from_json(_out(capsys, "aggregate", str(table), "--preset", "tiny", "--max-nodes", "8", "--json"))
    assert joint.features and not any("@" in key for key in joint.features)


def test_ablating_does_what_trace_measured(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = Circuit.load(traced / "c.json")
    node = circuit.strongest(1)[0]
    done = json.loads(_out(capsys, "intervene", *QUESTION, "--ablate", node, "--json"))
    assert done["effect"] == pytest.approx(circuit[node]["measured_effect"], abs=1e-4)
    assert done["metric_after"] - done["metric_before"] == pytest.approx(done["effect"], abs=1e-6)


def test_a_saved_circuit_brings_its_question_and_its_prediction(
    traced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    circuit = Circuit.load(traced / "c.json")
    node = circuit.strongest(1)[0]
    file = str(traced / "c.json")
    text = _out(capsys, "intervene", "--circuit", file, "--ablate", node)
    assert f"predicts {circuit[node]['effect']:+.3f}" in text
    done = json.loads(_out(capsys, "intervene", "--circuit", file, "--ablate", node, "--json"))
    assert done["effect"] == pytest.approx(circuit[node]["measured_effect"], abs=1e-4)
    assert set(done["activations"]) >= set(circuit.features)


def test_scaling_by_two_and_adding_the_activation_are_one(traced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit = Circuit.load(traced / "c.json")
    node = circuit.strongest(1, kind="feature")[0]
    doubled = json.loads(_out(capsys, "intervene", *QUESTION, "--scale", f"{node}=2", "--json"))
    added = json.loads(_out(capsys, "intervene", *QUESTION, "--add", f"{node}={circuit[node]['activation']}", "--json"))
    assert doubled["effect"] == pytest.approx(added["effect"], abs=1e-4)
    assert abs(doubled["effect"]) > 1e-3


def test_token_ids_ask_the_same_question(capsys: pytest.CaptureFixture[str], traced: Path) -> None:
    about = Circuit.load(traced / "c.json").graph.graph
    ids = about["metric"]["token_ids"]
    prompt = " ".join(map(str, about["token_ids"]))
    question = [prompt, "--token-ids", "--answer", str(ids["answer"]), "--foil", str(ids["foil"]), "--preset", "tiny"]
    found = json.loads(_out(capsys, "effects", *question, "--json"))
    assert found["metric"] == pytest.approx(about["metric_value"], abs=1e-5)


def test_export_needs_no_model_and_loses_nothing(
    traced: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, copy = str(traced / "c.json"), tmp_path / "copy.json"
    _out(capsys, "export", file, "-o", str(copy), "-o", str(tmp_path / "c.graphml"), "-o", str(tmp_path / "c.dot"))
    assert Circuit.load(copy) == Circuit.load(file)
    assert {p.name for p in tmp_path.iterdir()} == {"copy.json", "c.graphml", "c.dot"}
    assert Circuit.load(file).strongest(1)[0] in _out(capsys, "export", file)


def test_presets_say_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in json.loads(_out(capsys, "presets", "--json"))["presets"]}
    assert rows["tiny"]["present"] is True
    assert rows["smollm2"]["skip_positions"] == [0]
    assert rows["tiny"]["summary"] in _out(capsys, "presets")
    assert "variance explained" in _out(capsys, "presets", "tiny")


def test_fetching_what_ships_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tiny is here: " in _out(capsys, "fetch", "tiny")


def test_doctor_finds_the_arithmetic_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(_out(capsys, "doctor", "tiny", "--json"))
    assert [row["state"] for row in found["checks"]] == ["right"] * 10
    assert "tiny" in found["about"]["presets here"]


_NODE = "blocks.1.hook_resid_post/3@2"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["trace", PROMPT, "--preset", "tinny", "--answer", " are"],
            "No preset is called 'tinny'; did you mean 'tiny'",
        ),
        (["trace", PROMPT, "--preset", "tiny"], "The metric 'logit' needs --answer"),
        (["aggregate", "ioi", "--preset", "tiny", "-n", "3", "--min-count", "4"], "min_count is 4; expected from 1 to"),
        (
            ["aggregate", "ioi", "--preset", "tiny", "--align", "positions"],
            "No alignment is called 'positions'; did you",
        ),
        (["trace", PROMPT, "--preset", "tiny", "--answer", " are is"], "The answer ' are is' is 2 tokens"),
        (["trace", *QUESTION, "--metric", "logit-dif"], "did you mean 'logit-diff'"),
        (["trace", *QUESTION, "--method", "attribution"], "did you mean 'attribution-patching'"),
        (["trace", *QUESTION, "--prune", "topk"], "did you mean 'top-k'"),
        (["trace", *QUESTION, "--baseline", "zeros"], "did you mean 'zero'"),
        (["trace", *QUESTION, "--gradient", "pass"], "did you mean 'pass-through'"),
        (["trace", *QUESTION, "--linearisation", "frosen"], "did you mean 'frozen'"),
        (["trace", *QUESTION, "--sites", "blocks.1.hook_resid_pots"], "did you mean 'blocks.1.hook_resid_post'"),
        (["trace", *QUESTION, "--method-option", "steps=3"], "'steps'"),
        (["trace", *QUESTION, "--method-option", "steps"], "expected NAME=VALUE"),
        (["trace", *QUESTION, "--metric-option", "answr=x"], "The metric 'logit-diff' has no 'answr'; it takes"),
        (["trace", *QUESTION, "--patch", "The key"], "equal lengths"),
        (["trace", "", *QUESTION[1:]], "The prompt is empty"),
        (["trace", "the " * 400, *QUESTION[1:]], "context window"),
        (["trace", *QUESTION, "--position", "99"], "Position 99 is outside the prompt"),
        (["trace", *QUESTION, "--reference", "{folder}/other.json"], "add --baseline mean"),
        (["trace", *QUESTION, "--baseline", "mean", "--reference", "{folder}/none.txt"], "Can't read the prompts in"),
        (["trace", "12 a", *QUESTION[1:], "--token-ids"], "'12 a' are not token ids"),
        (["trace", "1 999999", "--token-ids", "--preset", "tiny", "--answer", "3"], "outside the vocabulary"),
        (["trace", *QUESTION, "--device", "gpu7"], "The device 'gpu7' can't be used here"),
        (["trace", *QUESTION, "--model", "gpt2"], "--preset brings its own model"),
        (["trace", PROMPT, "--answer", " are", "--model", "gpt2"], "A model and dictionaries are given together"),
        (["trace", *QUESTION, "-o", "{folder}/c.jsn"], "tells no format"),
        (["trace", *QUESTION, "-o", "{folder}/none/c.json"], "there is no folder"),
        (["trace", *QUESTION, "-o", "{folder}/taken.json"], "it is a folder"),
        (["effects", *QUESTION, "-o", "{folder}/e.txt"], "expected it to end in .csv or .json"),
        (["intervene", *QUESTION], "No edit was given"),
        (["intervene", "--ablate", _NODE, "--preset", "tiny"], "No prompt was given"),
        (["intervene", *QUESTION, "--ablate", "blocks.1/3/4"], "is not a node key"),
        (["intervene", *QUESTION, "--ablate", "blocks.9.hook_resid_post/3@2"], "blocks.9.hook_resid_post"),
        (["intervene", *QUESTION, "--ablate", "blocks.1.hook_resid_post/99999@2"], "99999"),
        (["intervene", *QUESTION, "--scale", _NODE], "expected NODE=VALUE"),
        (["intervene", *QUESTION, "--set", f"{_NODE}=nan"], "expected NODE=VALUE"),
        (["intervene", *QUESTION, "--ablate", _NODE, "--errors", "cold"], "cold"),
        (["intervene", "--circuit", "{folder}/none.json", "--ablate", _NODE], "There is no file"),
        (["intervene", "--circuit", "{folder}/other.json", "--ablate", _NODE], "it is not JSON"),
        (["export", "{folder}/other.json", "-o", "{folder}/c.dot"], "it is not JSON"),
        (["export", "{folder}/newer.json", "-o", "{folder}/c.dot"], "newer circuitsae"),
        (["export", "{folder}/good.json", "--format", "graphm", "-o", "{folder}/c.dot"], "did you mean 'graphml'"),
        (["export", "{folder}/good.json", "--labels", "{folder}/none.csv", "-o", "{folder}/c.dot"], "no file"),
        (["serve", "--preset", "tny"], "did you mean 'tiny'"),
        (["presets", "tny"], "did you mean 'tiny'"),
        (["fetch", "smolm2"], "did you mean 'smollm2'"),
        (["doctor", "--preset", "tny"], "did you mean 'tiny'"),
    ],
)
def test_bad_input_is_one_sentence_status_2_and_no_file(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken.json").mkdir()
    (tmp_path / "other.json").write_text("{not json")
    (tmp_path / "newer.json").write_text('{"schema": "circuitsae/2", "graph": {}, "nodes": {}, "edges": {}}')
    Circuit(nx.DiGraph([("token@0", "metric", {"weight": 1.0})])).save(tmp_path / "good.json")
    before = sorted(tmp_path.rglob("*"))
    asked = [argument.replace("{folder}", str(tmp_path)) for argument in arguments]
    if asked[0] == "trace" and "-o" not in asked:
        asked += ["-o", str(tmp_path / ("out.json"))]
    status = run(asked)
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("circuitsae: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unwritable_place_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    monkeypatch.setattr("circuitsae.cli.models.spliced_of", lambda *_: pytest.fail("the model was loaded first"))
    assert run(["trace", *QUESTION, "-o", str(tmp_path / "c.json")]) == 2
    assert "permission denied" in capsys.readouterr().err


def test_what_is_missing_is_said_before_torch_is_imported() -> None:
    code = (
        "import sys; from circuitsae.cli.main import run; "
        "print([run(['trace']), run(['trace', 'The keys', '--foil', ' is'])], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[2, 2] False"
    assert "PROMPT" in done.stderr and "needs --answer" in done.stderr
