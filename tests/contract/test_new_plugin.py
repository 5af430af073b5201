"""`circuitsae plugins new`: what it writes installs, is found by its entry points, and passes its own tests."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuitsae.cli.main import run
from circuitsae.cli.scaffold import write_plugin
from circuitsae.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plugin("bird-song", tmp_path_factory.mktemp("new") / "birds")


@pytest.fixture(scope="module")
def environment(written: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where pip has installed it, without a network and without touching this environment."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    command = [*pip, "install", "--no-deps", "--no-index", "--no-build-isolation", f"--target={target}", str(written)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(target)])}


def test_its_own_tests_pass(written: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(written)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=written)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_its_names_work_on_the_command_line(environment: dict[str, str]) -> None:
    arguments = ["trace", "The old keys", "--preset", "tiny", "--answer", " are", "--metric", "bird-song-margin"]
    options = [
        "--method",
        "bird-song-shuffled",
        "--method-option",
        "seed=3",
        "--max-nodes",
        "8",
        "--json",
        "--labels",
        "none",
    ]
    command = [sys.executable, "-m", "circuitsae", *arguments, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)["graph"]
    assert (about["method"], about["metric"]["name"]) == ("bird-song-shuffled", "bird-song-margin")
    assert about["options"]["seed"] == 3


def test_nothing_of_the_template_is_left_in_it(written: Path) -> None:
    for file in written.rglob("*"):
        if file.is_file():
            assert "@name@" not in file.read_text() and "@package@" not in file.read_text()
    assert (written / "src" / "circuitsae_bird_song" / "methods.py").is_file()


def test_it_is_written_where_it_is_asked_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["plugins", "new", "mine", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == "circuitsae-mine" and "pyproject.toml" in found["files"]
    assert run(["plugins", "new", "mine"]) == 2
    assert "is there and not empty" in capsys.readouterr().err
    assert run(["plugins", "new"]) == 2
    assert "has no name" in capsys.readouterr().err
    assert run(["plugins", "metrics", "more"]) == 2
    assert "are for a new plugin" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "Bird", "bird_song", "../x", "a--b", "-a", "1a", "a/b", "x" * 61])
def test_names_that_can_not_be_used_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be used"):
        write_plugin(name, tmp_path / "x")
    with pytest.raises(InputError, match="Can't write"):
        write_plugin("a", tmp_path / "no" / "where" / ("y" * 300))
    assert list(tmp_path.rglob("*.tmp")) == [] and not (tmp_path / "x").exists()
