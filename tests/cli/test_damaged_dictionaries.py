"""Dictionaries that can't be used, through the command: one sentence that names the folder, status 2, no file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from circuitsae.cli.main import run
from circuitsae.presets import find_preset, model_folder

TINY = find_preset("tiny")
WEIGHTS = "sae_weights.safetensors"


def _truncated(folder: Path) -> None:
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[: len(weights) // 2])


def _garbage(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"\xff" * 4096)


def _nan(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        weights[name][:, 5] = float("nan")  # a column, since only the rows of active features are ever read
        save_file(weights, folder / WEIGHTS)

    return damage


def _narrow(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    half = weights["W_dec"].shape[1] // 2
    weights["W_dec"], weights["W_enc"] = weights["W_dec"][:, :half].contiguous(), weights["W_enc"][:half].contiguous()
    weights["b_dec"] = weights["b_dec"][:half].contiguous()
    save_file(weights, folder / WEIGHTS)
    _configure(folder, d_in=half)


def _configure(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / "cfg.json").read_text())
    settings.update(changes)
    (folder / "cfg.json").write_text(json.dumps(settings))


def _elsewhere(folder: Path) -> None:
    settings = json.loads((folder / "cfg.json").read_text())
    settings["metadata"]["hook_name"] = "blocks.1.hook_resid_pots"
    (folder / "cfg.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncated, "sae"),
        (_garbage, "sae"),
        (_nan("W_enc"), "NaN"),
        (_nan("W_dec"), "NaN"),
        (_narrow, "width"),
        (_elsewhere, "blocks.1.hook_resid_post"),
        (lambda folder: _configure(folder, architecture="topkk"), "topk"),
        (lambda folder: (folder / "cfg.json").write_text("{"), "cfg.json"),
        (lambda folder: (folder / WEIGHTS).unlink(), WEIGHTS),
    ],
    ids=[
        "truncated",
        "garbage",
        "nan encoder",
        "nan decoder",
        "narrow",
        "no such hook point",
        "architecture",
        "settings",
        "no weights",
    ],
)
def test_a_damaged_dictionary_is_one_sentence(
    damage: Callable[[Path], object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [good] = [f for f in TINY.dictionary_folders() if f.name == "blocks.1.hook_resid_post"]
    folder = tmp_path / "sae"
    shutil.copytree(good, folder)
    damage(folder)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--model", str(model_folder(TINY)), "--dictionary", str(folder), "--answer", " are", "--foil", " is"]
    status = run(["trace", "The keys to the cabinet", *arguments, "-o", str(tmp_path / "c.json")])
    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("circuitsae: ")
    assert err.count("\n") == 1
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before
