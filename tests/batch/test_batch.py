"""A batch holds what trace gives, whoever worked on it and however often it was stopped; and it is opened without us."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.dataset
import pyarrow.parquet
import pytest

import circuitsae as cs
from circuitsae.cli.main import run as command
from circuitsae.errors import CancelledError, GraphFileError, InputError, UnknownNameError
from circuitsae.graph.schema import known_effect
from tests.faults.test_files import largest_file

SITES = ("blocks.1.hook_resid_post", "blocks.3.hook_resid_post")
OPTIONS: dict[str, Any] = {"max_nodes": 8, "measure": 1}
PLURAL = cs.LogitDiff(" are", " is")


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", sites=SITES)


@pytest.fixture(scope="module")
def tasks() -> Sequence[cs.Task]:
    prompts = ("The keys to the cabinet", "The key to the cabinets", "The keys to the box", "The old keys to the")
    good = [cs.Task(prompt, PLURAL) for prompt in prompts]
    return [*good[:2], cs.Task("The keys", cs.LogitDiff(" aardvark", " is")), *good[2:]]


@pytest.fixture(scope="module")
def folder(spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed batch of five tasks, the third of which can't be traced, in files of two."""
    folder = tmp_path_factory.mktemp("batch") / "whole"
    cs.run_batch(spliced, tasks, folder, per_file=2, **OPTIONS)
    return folder


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables without the moments at which circuits were made."""
    found = {name: pd.read_parquet(folder / name) for name in ("tasks", "nodes", "edges")}
    about = [json.loads(text) if isinstance(text, str) else {} for text in found["tasks"]["about"]]
    found["tasks"]["about"] = [json.dumps({k: v for k, v in one.items() if k != "created"}) for one in about]
    return found


def assert_equal_tables(a: Path, b: Path) -> None:
    mine, others = tables(a), tables(b)
    for name in mine:
        pd.testing.assert_frame_equal(mine[name], others[name], rtol=1e-5, atol=1e-7)


def test_every_circuit_is_what_trace_gives(folder: Path, spliced: cs.SplicedModel, tasks: Sequence[cs.Task]) -> None:
    batch = cs.open_batch(folder)
    assert (len(batch), batch.done, batch.missing) == (5, [0, 1, 3, 4], []) and list(batch.errors) == [2]
    assert "aardvark" in batch.errors[2]
    for number in batch.done:
        found, wanted = batch.circuit(number), cs.trace(spliced, tasks[number], **OPTIONS)
        wanted.graph.graph["created"] = found.graph.graph["created"]
        assert found == wanted and list(found) == list(wanted)
    with pytest.raises(InputError, match=r"Task 2 has no circuit: .*[^.]*aardvark"):
        batch.circuit(2)
    with pytest.raises(InputError, match="no task 5; its tasks are 0 to 4"):
        batch.circuit(5)


def test_the_tables_are_read_without_us(folder: Path) -> None:
    nodes = pyarrow.dataset.dataset(folder / "nodes").to_table(columns=["task", "node", "effect"])
    assert sorted(set(nodes["task"].to_pylist())) == [0, 1, 3, 4]
    batch = cs.open_batch(folder)
    edges = pd.read_parquet(folder / "edges")
    circuit = batch.circuit(3)
    mine = edges[edges["task"] == 3].set_index(["source", "target"])["weight"].to_dict()
    assert mine == {(u, v): data["weight"] for u, v, data in circuit.graph.edges(data=True)}
    rows = pd.read_parquet(folder / "tasks").set_index("task")
    assert rows.loc[3, "prompt"] == "The keys to the box" and rows.loc[2, "metric_value"] != rows.loc[2, "metric_value"]
    assert rows.loc[3, "metric_value"] == circuit.graph.graph["metric_value"]
    frame = batch.to_dataframe("nodes")
    assert frame.equals(pd.read_parquet(folder / "nodes"))


def test_nodes_by_prompts_means_and_comparisons(folder: Path) -> None:
    batch = cs.open_batch(folder)
    matrix = batch.effects()
    assert list(matrix.columns) == batch.done
    for number, circuit in zip(batch.done, batch, strict=True):
        wanted = {key: known_effect(data) for key, data in circuit.graph.nodes(data=True) if "effect" in data}
        assert matrix[number].dropna().to_dict() == wanted
    summed = batch.effects("activation", align="sum")
    mean, others = batch.aggregate(align="sum"), cs.aggregate(list(batch), align="sum")
    others.graph.graph["created"] = mean.graph.graph["created"]
    assert mean == others
    for key in mean.features:
        assert summed.loc[key].fillna(0).mean() == pytest.approx(mean[key]["activation"])
    assert batch.aggregate().graph.graph["aggregate"]["align"] in ("position", "sum")
    assert cs.aggregate(batch, align="template")["metric"]["count"] == 4
    same = batch.compare(batch)
    assert not same.only_a and not same.only_b and len(same.shared) > 0
    with pytest.raises(UnknownNameError, match="effect"):
        batch.effects("effekt")


def test_a_second_call_does_what_is_missing_and_nothing_twice(
    folder: Path, spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    with pytest.raises(CancelledError):
        cs.run_batch(spliced, tasks, place, per_file=2, progress=lambda done, total, what: done < 3, **OPTIONS)
    assert cs.open_batch(place).missing == [2, 3, 4]
    (place / "nodes" / ".circuitsae-0123456789ab.part").mkdir()
    kept = {path: path.stat().st_mtime_ns for path in place.rglob("*0000.parquet")}
    (place / "nodes" / "000001.parquet").write_bytes(b"of a part that was killed between two renames")
    cs.run_batch(spliced, tasks, place, per_file=2, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and len(kept) == 3
    assert not list(place.rglob(".*"))
    assert_equal_tables(place, folder)
    monkeypatch.setattr("circuitsae.batch.running.trace", lambda *args, **options: pytest.fail("it was traced again"))
    cs.run_batch(spliced, tasks, place, per_file=2, **OPTIONS)
    changed: list[tuple[dict[str, Any], Sequence[cs.Task], str]] = [
        (OPTIONS | {"max_nodes": 9}, tasks, "settings"),
        (OPTIONS, tasks[:2], "tasks"),
    ]
    for options, other, name in changed:
        with pytest.raises(InputError, match=f"holds another batch, with another value of '{name}'"):
            cs.run_batch(spliced, other, place, per_file=2, **options)


def test_shards_merge_by_being_in_one_folder(
    folder: Path, spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path
) -> None:
    for i in (3, 1):
        cs.run_batch(spliced, tasks, tmp_path / "run", per_file=2, shard=(i, 3), **OPTIONS)
    assert cs.open_batch(tmp_path / "run").missing == [2, 3]
    cs.run_batch(spliced, tasks, tmp_path / "other", per_file=2, shard=(2, 3), **OPTIONS)
    shutil.copytree(tmp_path / "other", tmp_path / "run", dirs_exist_ok=True)
    assert_equal_tables(tmp_path / "run", folder)
    with pytest.raises(InputError, match="shard is 4/3"):
        cs.run_batch(spliced, tasks, tmp_path / "run", per_file=2, shard=(4, 3), **OPTIONS)


@pytest.mark.slow
def test_workers_give_the_same_tables(
    folder: Path, spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path
) -> None:
    found = cs.run_batch(spliced, tasks, tmp_path / "run", per_file=2, workers=2, **OPTIONS)
    assert found.done == [0, 1, 3, 4]
    assert_equal_tables(tmp_path / "run", folder)


def test_workers_are_refused_what_they_can_not_load(spliced: cs.SplicedModel, tmp_path: Path) -> None:
    tasks = [cs.Task("The keys", PLURAL)] * 2
    with pytest.raises(InputError, match="Workers load the model themselves"):
        cs.run_batch(spliced.skipping([0]), tasks, tmp_path / "run", workers=2)


def test_damaged_parts_are_done_again_and_never_read(
    folder: Path, spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path
) -> None:
    place = tmp_path / "run"
    shutil.copytree(folder, place)
    for name, content in (("tasks", b"PAR1 no"), ("nodes", b"")):
        path = place / name / "000000.parquet"
        path.write_bytes(content)
        with pytest.raises(GraphFileError, match="can't be read"):
            _ = cs.open_batch(place).circuit(0)
        with pytest.warns(UserWarning, match="is damaged or of another batch; its tasks are done again"):
            cs.run_batch(spliced, tasks, place, per_file=2, **OPTIONS)
        assert_equal_tables(place, folder)
    path = place / "nodes" / "000000.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes([content[200] ^ 8]) + content[201:])  # in a page: its checksum tells
    with pytest.raises(GraphFileError, match="can't be read"):
        cs.open_batch(place).circuit(0)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (None, "holds no settings.json"),
        ("{", "can't be read"),
        ('{"schema": "circuitsae.batch/2", "tasks": {"n": 1}, "tasks_per_file": 1}', "pip install -U"),
        ('{"schema": "circuitsae.batch/1", "tasks": {"n": 1}, "tasks_per_file": 0}', "less than 1"),
    ],
)
def test_a_folder_that_is_no_batch_is_said(settings: str | None, text: str, tmp_path: Path) -> None:
    if settings is not None:
        (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(GraphFileError, match=text):
        cs.open_batch(tmp_path)


def test_other_columns_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "nodes" / "000000.parquet"
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table.rename_columns(["task", "knot", *table.column_names[2:]]), path)
    with pytest.raises(GraphFileError, match="its columns are task, knot"):
        cs.open_batch(tmp_path / "run").circuit(0)


def test_what_no_task_can_be_traced_with_is_said_before_anything_is_written(
    spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path
) -> None:
    wrong: list[dict[str, Any]] = [
        *({"max_nodes": 0}, {"baseline": "nil"}, {"gradient": "x"}, {"method": "magic"}, {"prune": "nothing"}),
        *({"linearisation": "x"}, {"targets": "x"}, {"compat": "x"}, {"sites": ["x"]}),
    ]
    for options in wrong:
        with pytest.raises(InputError):
            cs.run_batch(spliced, tasks, tmp_path / "run", **options)
    with pytest.raises(InputError, match="There is no task"):
        cs.run_batch(spliced, [], tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_written_is_said_and_what_was_done_stays(
    spliced: cs.SplicedModel, tasks: Sequence[cs.Task], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="can't hold the batch"):
        cs.run_batch(spliced, tasks, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("x")
    with pytest.raises(InputError, match="not empty and holds no batch"):
        cs.run_batch(spliced, tasks, tmp_path / "mine")
    with pytest.raises(CancelledError):
        cs.run_batch(spliced, tasks, tmp_path / "run", progress=lambda done, total, what: done < 1, **OPTIONS)
    with largest_file(3000), pytest.raises(InputError, match=r"Can't write .*[fF]ile too large"):
        cs.run_batch(spliced, tasks, tmp_path / "run", **OPTIONS)
    assert cs.open_batch(tmp_path / "run").done == [0] and not list((tmp_path / "run").rglob(".*"))


def test_memory_is_flat_in_the_number_of_tasks(folder: Path) -> None:
    """No circuit of a batch outlives the next but one: neither iterating nor averaging holds them."""
    import weakref

    alive: list[weakref.ref[cs.Circuit]] = []

    def watched() -> Any:
        for circuit in cs.open_batch(folder):
            assert sum(one() is not None for one in alive) <= 2
            alive.append(weakref.ref(circuit))
            yield circuit

    cs.aggregate(watched(), align="sum")
    assert len(alive) == 4


def _rows(good: int, bad: int) -> str:
    row = {"clean": "The keys to the cabinet", "answer": " are", "foil": " is"}
    return "".join(json.dumps(row) + "\n" for _ in range(good)) + '{"clean": "The keys"}\n' * bad


def test_the_command_traces_averages_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tasks.jsonl").write_text(_rows(2, 1))
    run = str(tmp_path / "run")
    given = [str(tmp_path / "tasks.jsonl"), "--preset", "tiny", "--max-nodes", "4", "--sites", *SITES]
    assert command(["batch", *given, "-o", run, "--json", "--shard", "1/1"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"folder": run, "tasks": 2, "done": 2, "missing": 0, "errors": {}}
    assert "line 3: it has no 'answer'" in shown.err
    assert command(["aggregate", run, "--json", "--labels", "none"]) == 0
    assert json.loads(capsys.readouterr().out)["graph"]["aggregate"]["prompts"] == 2
    assert command(["export", run, "--task", "1", "-o", str(tmp_path / "c.json")]) == 0
    assert cs.Circuit.load(tmp_path / "c.json") == cs.open_batch(run).circuit(1)
    assert command(["export", run]) == 2 and "say which with --task" in capsys.readouterr().err
    assert command(["export", str(tmp_path / "c.json"), "--task", "1"]) == 2
    assert command(["batch", *given, "-o", run, "--shard", "2/1"]) == 2


def test_mostly_bad_rows_are_a_failure_though_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks.jsonl").write_text(_rows(1, 2))
    run = str(tmp_path / "run")
    arguments = [
        "batch",
        str(tmp_path / "tasks.jsonl"),
        "--preset",
        "tiny",
        "--max-nodes",
        "4",
        "--sites",
        *SITES,
        "-o",
        run,
    ]
    assert command(arguments) == 1
    assert "2 rows of tasks can't be used, and only 1 can" in capsys.readouterr().err
    assert cs.open_batch(run).done == [0]
    (tmp_path / "tasks.jsonl").write_text(_rows(2, 0))
    assert command([*arguments[:-1], str(tmp_path / "patched"), "--baseline", "patch"]) == 1  # none has a patch prompt
    assert "Most tasks have no circuit; the first: The baseline 'patch' needs" in capsys.readouterr().err
