"""`run_batch`: one task after another into a folder of tables, in parts that are written whole."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import torch

from circuitsae import __version__
from circuitsae.batch.opened import Batch, open_batch
from circuitsae.batch.tables import COLUMNS, SCHEMA, SETTINGS, TABLES, circuit_tables, table_of, task_row
from circuitsae.errors import CancelledError, CircuitsaeError, InputError, TaskError
from circuitsae.evaluation.evaluator import about_tasks
from circuitsae.evaluation.store import Planned
from circuitsae.files import reason_of, remove_leftovers, replacing
from circuitsae.graph.circuit import Circuit
from circuitsae.model.loading import load
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.sets import TaskSet
from circuitsae.task.task import Task
from circuitsae.tracing.steps import prepare, settings_of, trace

parquet: Any = pyarrow.parquet

_FILES = 1000  # of each table, at most, where nothing else is asked for


def run_batch(
    spliced: SplicedModel,
    tasks: TaskSet | Sequence[Task],
    folder: str | os.PathLike[str],
    *,
    shard: tuple[int, int] = (1, 1),
    workers: int = 1,
    per_file: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Batch:
    """Traces every task into a folder of Parquet tables, from which `open_batch` gives circuits, tables and means.

    Tasks are numbered from 0. Those of one file are written together, whole; a call on a folder that is there does what is
    missing and nothing twice, and what was killed loses the tasks of the file that it was at. A task that can't be traced
    is a row with the reason, and the others go on. The tables are the same however the work was divided.

    Args:
        spliced: The model with its dictionaries.
        tasks: Prompts, each with its metric.
        folder: Where to; docs/format.md says what is there.
        shard: `(i, n)`, i from 1 to n: only the i-th of n parts of the work, which other calls share in this folder.
        workers: How many processes to work in; each loads the model itself, and torch's threads are divided among them.
        per_file: Tasks of one file; by default so many that there are at most 1,000 files of each table.
        progress: Called with tasks done, their number and a word; returning `False` cancels.
        **options: Passed to `trace`.

    Raises:
        InputError: There are no tasks, the folder can't be written or is of another batch, an option is out of range, or
            workers are asked for with a model that was not loaded from files by `load`.
        UnknownNameError: No method, baseline or other plugin is called that.
        CircuitsaeError: A worker died; the next call goes on from there.

    Example:
        >>> import tempfile, circuitsae as cs
        >>> spliced = cs.load("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     batch = cs.run_batch(spliced, cs.task_set("ioi", spliced, n=2), folder, max_nodes=4)
        ...     batch.done, len(batch.circuit(1).features)
        ([0, 1], 4)
    """
    if not tasks:
        raise InputError("There is no task; expected at least one.")
    if not 1 <= shard[0] <= shard[1]:
        raise InputError(f"shard is {shard[0]}/{shard[1]}; expected i/n with i from 1 to n.")
    for name, value in (("workers", workers), ("per_file", per_file)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1.")
    _check_settings(spliced, tasks, options)
    per_file = per_file or -(-len(tasks) // _FILES)
    plan = _plan_of(spliced, tasks, options, per_file)
    place = Planned(folder, plan, work="batch", name=SETTINGS, ours="nodes|edges|tasks")
    cases = tasks.cases if isinstance(tasks, TaskSet) else ("",) * len(tasks)
    job = _Job(place.folder, hashlib.sha256(place.plan).hexdigest(), tuple(tasks), cases, per_file, options)
    job.make_folders()
    mine = range(shard[0] - 1, -(-len(tasks) // per_file), shard[1])
    missing = [part for part in mine if not job.is_done(part)]
    done, total = sum(len(job.tasks_of(part)) for part in mine), 0
    total, done = done, done - sum(len(job.tasks_of(part)) for part in missing)
    if workers == 1 or len(missing) < 2:
        for part in missing:
            job.write(spliced, part, partial(report, progress, total=total, what="tasks"), done)
            done += len(job.tasks_of(part))
    else:
        for part in _in_workers(spliced, job, missing, min(workers, len(missing))):
            done += len(job.tasks_of(part))
            report(progress, done, total, "tasks")
    return open_batch(folder)


@dataclass(frozen=True)
class _Job:
    """What a process has to know to do any part of a batch.

    Attributes:
        folder: Where to.
        plan: sha256 of the plan, which each file of tasks holds.
        tasks, cases: All of them.
        per_file: Tasks of a part.
        options: Of `trace`.
    """

    folder: Path
    plan: str
    tasks: Sequence[Task]
    cases: Sequence[str]
    per_file: int
    options: Mapping[str, Any]

    def tasks_of(self, part: int) -> range:
        return range(part * self.per_file, min((part + 1) * self.per_file, len(self.tasks)))

    def path(self, table: str, part: int) -> Path:
        return self.folder / table / f"{part:06d}.parquet"

    def make_folders(self) -> None:
        try:
            for name in TABLES:
                (self.folder / name).mkdir(exist_ok=True)
                remove_leftovers(self.folder / name)
        except OSError as error:
            raise InputError(f"{str(self.folder)!r} can't hold the batch: {reason_of(error)}.") from None

    def is_done(self, part: int) -> bool:
        """Whether a part is there, of this plan, and of the sizes that its file of tasks says."""
        path = self.path("tasks", part)
        if not path.exists():
            return False
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):
            table = parquet.read_table(path, page_checksum_verification=True)
            said = table.schema.metadata or {}
            sizes = {name: self.path(name, part).stat().st_size for name in ("nodes", "edges")}
            if (
                said.get(b"plan") == self.plan.encode()
                and json.loads(said[b"sizes"]) == sizes
                and table.column("task").to_pylist() == list(self.tasks_of(part))
            ):
                return True
        warnings.warn(f"{str(path)!r} is damaged or of another batch; its tasks are done again.", stacklevel=3)
        return False

    def write(self, spliced: SplicedModel, part: int, reported: Any = None, done: int = 0) -> None:
        """Traces a part's tasks and writes its files; nodes and edges are in their places before the tasks are."""
        rows = []
        with contextlib.ExitStack() as places:
            paths = {name: places.enter_context(replacing(self.path(name, part))) for name in reversed(TABLES)}
            with _writer(paths["nodes"], "nodes") as nodes, _writer(paths["edges"], "edges") as edges:
                for at, number in enumerate(self.tasks_of(part)):
                    if reported is not None:
                        reported(done + at)
                    circuit, error = self._traced(spliced, number)
                    prompt = self.tasks[number].prompt
                    prompt = prompt if isinstance(prompt, str) else None
                    rows.append(task_row(number, self.cases[number], prompt, circuit, error))
                    if circuit is not None:
                        tables = circuit_tables(number, circuit)
                        nodes.write_table(tables["nodes"])
                        edges.write_table(tables["edges"])
            sizes = {name: paths[name].stat().st_size for name in ("nodes", "edges")}
            table = table_of("tasks", rows)
            said = {"schema": SCHEMA, "plan": self.plan, "sizes": json.dumps(sizes, allow_nan=False)}
            with _writer(paths["tasks"], "tasks", said) as writer:
                writer.write_table(table.replace_schema_metadata(said))

    def _traced(self, spliced: SplicedModel, number: int) -> tuple[Circuit | None, str | None]:
        try:
            return trace(spliced, self.tasks[number], **self.options), None
        except CancelledError:
            raise
        except CircuitsaeError as error:
            return None, " ".join(str(error).split())
        except Exception as error:  # one task must not cost all others
            return None, f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"[:500]


def _writer(path: Path, table: str, metadata: Mapping[str, str] | None = None) -> Any:
    """Returns a Parquet writer: a group of rows a task, so that one circuit is read alone, and a checksum a page."""
    schema = COLUMNS[table].with_metadata(dict(metadata or {"schema": SCHEMA}))
    return parquet.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True)


def _check_settings(spliced: SplicedModel, tasks: Iterable[Task], options: Mapping[str, Any]) -> None:
    """Says before anything is written what no task can be traced with."""
    if "progress" in options:
        raise InputError("progress is the batch's own.")
    settings_of(options)
    for task in tasks:
        with contextlib.suppress(TaskError):
            prepare(spliced, task, options)
            return


def _plan_of(spliced: SplicedModel, tasks: Any, options: Mapping[str, Any], per_file: int) -> dict[str, Any]:
    plan = {
        "schema": SCHEMA,
        "package_version": __version__,
        "model": {
            "name": spliced.name,
            "revision": spliced.revision,
            "preset": spliced.preset,
            "dtype": str(spliced.hooked.dtype).removeprefix("torch."),
            "skip_positions": list(spliced.skip_positions),
            "skip_sinks": spliced.skip_sinks,
        },
        "dictionaries": {d.site: d.fingerprint for d in spliced.dictionaries},
        "tasks": about_tasks(tasks),
        "settings": settings_of(options),
        "tasks_per_file": per_file,
    }
    try:
        json.dumps(plan, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"An option can't be written down: {error}; expected numbers, texts and lists.") from None
    return plan


_worker: tuple[SplicedModel, _Job] | None = None


def _in_workers(spliced: SplicedModel, job: _Job, parts: Sequence[int], n: int) -> Iterator[int]:
    """Yields the numbers of parts as they are done, by processes that load the model themselves."""
    if spliced.loading is None:
        raise InputError(
            "Workers load the model themselves, and this one can't be loaded again; expected what load gives from "
            "names and folders, or workers=1."
        )
    threads = max(1, torch.get_num_threads() // n)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(n, context, _start, (dict(spliced.loading), _identity(spliced), job, threads))
    try:
        futures: dict[Future[str], int] = {pool.submit(_do, part): part for part in parts}
        for future in as_completed(futures):
            if problem := future.result():
                raise InputError(problem)
            yield futures[future]
    except BrokenProcessPool as error:
        raise CircuitsaeError(
            "A worker could not start or died, of too little memory perhaps; what was done is kept, and the same call "
            "goes on from there."
        ) from error
    except (AttributeError, TypeError) as error:  # what pickle says
        raise InputError(f"The tasks can't be sent to other processes: {error}; expected workers=1.") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(loading: dict[str, Any], identity: Any, job: _Job, threads: int) -> None:
    """Makes a process ready: it ends when the one that asked for it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    torch.set_num_threads(threads)
    spliced = load(**loading)
    if _identity(spliced) != identity:
        raise InputError("The model's files are not what they were when it was loaded.")
    global _worker
    _worker = spliced, job


def _do(part: int) -> str:
    """Does a part, and returns what keeps it from being written: exceptions with more than a text can't be sent."""
    assert _worker is not None
    spliced, job = _worker
    try:
        job.write(spliced, part)
    except CircuitsaeError as error:
        return str(error)
    return ""


def _identity(spliced: SplicedModel) -> Any:
    return [(d.site, d.fingerprint) for d in spliced.dictionaries], spliced.skip_positions, spliced.skip_sinks
