"""Labels from the command line: the preset's own, a file's, none, and what happens when they can't be had."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from circuitsae.cli.labelling import label
from circuitsae.cli.main import run
from circuitsae.cli.output import Console
from circuitsae.errors import InputError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import preset_labels
from circuitsae.labels.parquet import ParquetLabels
from circuitsae.presets import find_preset, read_preset

TRACE = ["trace", "The old keys", "--preset", "tiny", "--answer", " are", "--foil", " is", "--max-nodes", "6"]


def test_trace_labels_by_the_presets_own_store(tmp_path: Path) -> None:
    assert run([*TRACE, "--quiet", "-o", str(tmp_path / "c.json")]) == 0
    circuit, store = Circuit.load(tmp_path / "c.json"), preset_labels("tiny")
    assert store is not None
    for key in circuit.features:
        assert circuit[key]["label"] == store.label(circuit[key]["site"], circuit[key]["index"]) != ""


def test_describe_writes_a_store_that_export_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("The old keys are here. The zyzzyva is not. " * 30)
    store = tmp_path / "s.parquet"
    options = ["--sites", "blocks.3.hook_mlp_out", "--tokens", "150", "--contexts", "2", "--promoted", "3", "--json"]
    assert run(["describe", "tiny", "--text", str(tmp_path / "t.txt"), "-o", str(store), *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["features"] == 512 and 0 < said["active"] < 512 and said["bytes"] == store.stat().st_size
    read = ParquetLabels(store)
    assert read.about["counted"] == 150 and max(len(d.contexts) for d in read) == 2
    # the circuit is traced without labels, then gets them from the store
    assert run([*TRACE, "--quiet", "--labels", "none", "-o", str(tmp_path / "c.json")]) == 0
    bare = Circuit.load(tmp_path / "c.json")
    assert not any("label" in bare[key] for key in bare.features)
    capsys.readouterr()
    assert run(["export", str(tmp_path / "c.json"), "--labels", str(store), "--json"]) == 0
    labelled = Circuit.from_json(capsys.readouterr().out)
    for key in bare.features:
        known = read.label(bare[key]["site"], bare[key]["index"])
        assert labelled[key].get("label", "") == known


@pytest.mark.parametrize("source", ["labels.txt", "nowhere.csv", "nowhere.parquet", "mystery:x"])
def test_a_source_that_was_asked_for_and_can_not_be_used_is_an_error(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    circuit = Circuit.from_json(
        '{"schema":"circuitsae/1","graph":{},"nodes":{"key":["metric"]},"edges":{"source":[],"target":[],"weight":[]}}'
    )
    circuit.save(tmp_path / "c.json")
    assert run(["export", str(tmp_path / "c.json"), "--labels", source]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_labels_that_nobody_asked_for_fail_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    circuit = Circuit.from_json(
        '{"schema":"circuitsae/1","graph":{},"nodes":{"key":["blocks.3.hook_mlp_out/1@0","metric"]},'
        '"edges":{"source":[0],"target":[1],"weight":[1.0]}}'
    )
    without = dataclasses.replace(find_preset("tiny"), labels="gone.parquet")
    monkeypatch.setattr("circuitsae.presets.find_preset", lambda preset: without)
    label(circuit, None, "tiny", Console())
    assert "No labels: There is no file 'gone.parquet'." in capsys.readouterr().err
    label(circuit, None, None, Console())
    assert capsys.readouterr().err == "" and "label" not in circuit["blocks.3.hook_mlp_out/1@0"]


def test_a_preset_names_its_labels_by_path_or_by_source(tmp_path: Path) -> None:
    text = 'name = "mine"\nsummary = "x"\ndictionaries = ["./d"]\nlabels = {}\n[model]\nhub = "a/b"\n'
    path = tmp_path / "mine.toml"
    path.write_text(text.format('"./l.csv"'))
    (tmp_path / "l.csv").write_text("node,label\nblocks.0.hook_mlp_out/3,three\n")
    preset = read_preset(path)
    assert preset.labels == str((tmp_path / "l.csv").resolve())
    store = preset_labels(preset)
    assert store is not None and store.label("blocks.0.hook_mlp_out", 3) == "three"
    path.write_text(text.format('"neuronpedia:gpt2-small/8-res-jb"'))
    assert read_preset(path).labels == "neuronpedia:gpt2-small/8-res-jb"
    path.write_text(text.format("3"))
    with pytest.raises(InputError, match="labels is 3; expected text"):
        read_preset(path)
    assert preset_labels(dataclasses.replace(find_preset("tiny"), labels="")) is None


def test_reading_labels_needs_no_torch() -> None:
    code = (
        "import sys; from circuitsae.labels import open_labels, preset_labels; store = preset_labels('tiny'); "
        "assert store.label(store.sites[-1], 253); assert open_labels('neuronpedia:gpt2-small/8-res-jb').sources; "
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
