"""The benchmarks that the docs name: each explains itself and runs in its smallest form; no time is asserted."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import ablation, effects, evaluation, methods, products, pruning
from tests.browser.opened import CHROMIUM

ROOT = Path(__file__).parents[2]


def shown(capsys: pytest.CaptureFixture[str], run: Callable[[list[str]], None], *arguments: str) -> Any:
    run(["--small", *arguments])
    return json.loads(capsys.readouterr().out)


def test_the_docs_name_every_one_and_no_other() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"benchmarks\.(\w+)", pages)) | {"trace"}
    assert named == set(benchmarks.BENCHMARKS)
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__main__", "timing", "peers"}
    assert files | {"trace"} == set(benchmarks.BENCHMARKS)


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_each_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for needed in ("playwright", "gradio") if name == "app" else ():
        pytest.importorskip(needed, reason=f"the app's benchmark needs {needed}")
    module = importlib.import_module("benchmarks.__main__" if name == "trace" else f"benchmarks.{name}")
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0 and "--small" in capsys.readouterr().out


@pytest.mark.usefixtures("threads_put_back")
def test_effects_and_ablations_are_those_of_plain_hooks(capsys: pytest.CaptureFixture[str]) -> None:
    dense, integrated = shown(capsys, effects.main)
    for row in (dense, integrated):
        assert row["ratio"] > 0 and row["largest_difference"] <= 1e-3 * row["largest_effect"], row
    for row in shown(capsys, ablation.main):
        assert row["ratio"] > 0 and row["largest_difference"] <= 1e-3 * row["largest_effect"], row


@pytest.mark.usefixtures("threads_put_back")
def test_the_others_give_their_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, evaluation.main)["curve_over_its_forward_passes"] > 0
    rows = shown(capsys, methods.main, "--json")["prompts"]["agreement, one key"]
    assert [row["method"] for row in rows] == ["attribution-patching", "relp"]
    (row,) = shown(capsys, products.main)["rows"]
    assert row["torch_over_ours"] > 0 and row["difference"] < 1e-5
    assert shown(capsys, pruning.main)["kept_nodes"] > 0
    assert shown(capsys, benchmarks.main, "--prompt", "short")["trace_ratio"] > 0


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_app_is_measured_in_a_browser() -> None:
    pytest.importorskip("playwright")
    command = [sys.executable, "-m", "benchmarks.app", "--small"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert json.loads(done.stdout)["trace_ratio"] > 0


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_frozen_graph_is_circuit_tracers_own(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
    command = [sys.executable, "-m", "benchmarks.frozen", "--small", "--side", "both"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    if "HookedTransformer (3.x)" in done.stderr:
        pytest.skip("circuit-tracer needs an older transformer_lens than is installed here")
    assert not done.returncode, done.stderr
    (row,) = json.loads(done.stdout)
    assert row["ratio"] > 0 and row["difference"] < 1e-4, row


def test_all_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"products": [], "pruning": ["--tokens", "none"]})
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stopped:
        benchmarks.main(["all", "--small", "--json", str(tmp_path / "all.json")])
    found = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert stopped.value.code == 1 and list(found["results"]) == ["products"]
    assert "argument --tokens: invalid int value: 'none'" in found["failed"]["pruning"]
    assert found["processor"] and found["small"] and re.fullmatch(r"\d{4}-\d\d-\d\d", found["date"])
