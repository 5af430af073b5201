"""A killed evaluation goes on where it was, and its table is that of one that was not killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import circuitsae as cs
from circuitsae.errors import InputError
from circuitsae.evaluation.store import Store

_SCRIPT = """
import sys, time
import circuitsae as cs
sites = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
spliced = cs.load("tiny", dtype="float64", sites=sites)
tasks = cs.task_set("agreement-simple", spliced, n=6)
def slowly(done, total, what):
    print(done, flush=True)
    if done >= 9:
        time.sleep(60)
cs.evaluate(spliced, tasks, grid=(0.1, 1.0), n_random=1, seed=5, store=sys.argv[1], progress=slowly)
"""


def _evaluate(store: Path | None, seed: int = 5) -> cs.Evaluation:
    spliced = cs.load("tiny", dtype="float64", sites=("blocks.1.hook_resid_post", "blocks.3.hook_resid_post"))
    tasks = cs.task_set("agreement-simple", spliced, n=6)
    return cs.evaluate(spliced, tasks, grid=(0.1, 1.0), n_random=1, seed=seed, store=store)


def test_a_killed_evaluation_goes_on_and_gives_the_same_table(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(cs.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, str(folder)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "9":  # six surveyed, three measured; the fourth is in flight
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    kept = {p.name: p.read_bytes() for p in folder.glob("*.parquet")}
    assert len([n for n in kept if n.startswith("survey-")]) == 6
    assert len([n for n in kept if n.startswith("rows-")]) == 3
    (folder / ".rows-000003.parquet.1.part").write_bytes(b"half")
    resumed = _evaluate(folder)
    assert {n: (folder / n).read_bytes() for n in kept} == kept
    assert not list(folder.glob(".*.part"))
    np.testing.assert_allclose(
        resumed.metrics, _evaluate(None).metrics, rtol=1e-9, atol=1e-12
    )  # another process's threads
    assert resumed.cells == _evaluate(folder).cells
    again = _evaluate(folder)
    assert again.about["passes"]["forward"] == 0
    assert np.array_equal(again.metrics, resumed.metrics)
    with pytest.raises(InputError, match="holds another evaluation: its options was"):
        _evaluate(folder, seed=6)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        Store(tmp_path, {})
    with pytest.raises(InputError, match="can't hold"):
        Store(tmp_path / "mine.txt", {})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
