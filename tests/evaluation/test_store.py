"""A killed evaluation goes on where it was, and its table is that of one that was not killed."""

import os
import signal
import subprocess
import sys
import warnings
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
    (folder / ".circuitsae-0123456789ab.part").mkdir()
    (folder / ".circuitsae-0123456789ab.part" / "rows-000003.parquet").write_bytes(b"half")
    resumed = _evaluate(folder)
    assert {n: (folder / n).read_bytes() for n in kept} == kept
    assert not list(folder.glob(".*"))
    np.testing.assert_allclose(
        resumed.metrics, _evaluate(None).metrics, rtol=1e-9, atol=1e-12
    )  # another process's threads
    assert resumed.cells == _evaluate(folder).cells
    again = _evaluate(folder)
    assert again.about["passes"]["forward"] == 0
    assert np.array_equal(again.metrics, resumed.metrics)
    with pytest.raises(InputError, match="holds another evaluation, with another value of 'options'"):
        _evaluate(folder, seed=6)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        Store(tmp_path, {})
    with pytest.raises(InputError, match="can't hold"):
        Store(tmp_path / "mine.txt", {})
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_damaged_rows_are_done_again_and_named(tmp_path: Path) -> None:
    """Empty, cut, with a byte changed, of another plan, or with other columns: never an error, never a wrong number."""
    pytest.importorskip("pyarrow")
    rows = {"metric": np.linspace(0.0, 1.0, 40), "what": np.array(["full", "kept"] * 20)}
    store = Store(tmp_path / "run", {"seed": 1})
    store.save("rows", 3, rows)
    path = tmp_path / "run" / "rows-000003.parquet"
    good = path.read_bytes()
    assert {name: column.tolist() for name, column in (store.load("rows", 3) or {}).items()} == {
        name: column.tolist() for name, column in rows.items()
    }
    Store(tmp_path / "other", {"seed": 2}).save("rows", 3, rows)
    renamed = good.replace(b"metric", b"netric")
    for content in (b"", good[:100], good[:-1], b"text", renamed, (tmp_path / "other" / path.name).read_bytes()):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match="rows-000003.parquet' is damaged or of another evaluation"):
            assert store.load("rows", 3) is None
    for at in range(0, len(good), 11):  # a byte that says nothing of the rows may change
        path.write_bytes(good[:at] + bytes([good[at] ^ 64]) + good[at + 1 :])
        with warnings.catch_warnings(action="ignore"):
            found = store.load("rows", 3)
        assert found is None or {k: v.tolist() for k, v in found.items()} == {k: v.tolist() for k, v in rows.items()}
    path.write_bytes(good)
    assert store.load("rows", 3) is not None


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_rows_are_kept_when_their_plan_is_lost(content: bytes | None, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder, rows = tmp_path / "run", {"metric": np.arange(3.0)}
    Store(folder, {"seed": 1}).save("rows", 0, rows)
    (folder / "plan.json").unlink()
    if content is not None:
        (folder / "plan.json").write_bytes(content)
    assert Store(folder, {"seed": 1}).load("rows", 0) is not None
    with pytest.raises(InputError, match="another value of 'seed': 1 there, 2 here"):
        Store(folder, {"seed": 2})
