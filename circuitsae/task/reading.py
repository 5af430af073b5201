"""Task sets from files: JSON Lines, a JSON list, CSV or Parquet, here or in a dataset on the hub."""

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from circuitsae.errors import FetchError, InputError, TaskError
from circuitsae.task.rows import NEEDED, Row, missing
from circuitsae.task.sets import TaskSet, vocabulary_of
from circuitsae.task.task import Task

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB = "hf://datasets/"

_PLACE = re.compile(rf"{HUB}(?P<repository>[\w.-]+/[\w.-]+)(?:/(?P<path>[^@]+?))?(?:@(?P<revision>[^@]+))?/?", re.ASCII)


def is_task_file(name: str) -> bool:
    """Tells whether a name is a file's or a place's on the hub, and not a shipped set's."""
    return name.startswith(HUB) or name.lower().endswith(SUFFIXES)


def read_tasks(
    path: str | os.PathLike[str], vocabulary: Any, name: str | None = None, *, n: int | None = None
) -> TaskSet:
    """Reads a task set: JSON Lines, a JSON list, CSV or Parquet with the columns clean, answer, foil, perhaps patch and case.

    A row that can't be used is left out; `problems` gives its line number and why. Prompts are text or lists of token ids,
    answers a text, an id, or a list of such. The columns of feature-circuits, EAP-IG and MIB are understood too
    (docs/tasks.md); `notes` says what was read otherwise than it stands, such as answers that are one token only with the
    leading space that the file leaves out, and names columns that are not used.

    Args:
        path: The file, whose suffix says which it is; or `hf://datasets/ORG/NAME/FILE@REVISION`, a file of a dataset on
            the hub (without FILE, its only one).
        vocabulary: A model's vocabulary, or the spliced model itself.
        name: What to call the set; the file's name by default.
        n: Rows after that many tasks are not looked at; all are by default.

    Raises:
        InputError: The file can't be read, is of another kind, or lacks a column.
        FetchError: The hub does not give it.
        TaskError: No row can be used; the message has the first reason.
    """
    given = os.fspath(path)
    path = _fetched(given) if given.startswith(HUB) else Path(path)
    vocabulary = vocabulary_of(vocabulary)
    readers: dict[str, Callable[[TextIO], Iterable[tuple[int, Any]]]] = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(f"{given!r} is no task set; expected a file that ends in {', '.join(SUFFIXES)}.")
    tasks: list[Task] = []
    cases: list[str] = []
    problems: list[str] = []
    notes: Counter[str] = Counter()

    def take(rows: Iterable[tuple[int, Any]]) -> None:
        for line, given_row in rows:
            try:
                row = Row(given_row, vocabulary)
            except InputError as error:
                problems.append(f"line {line}: {error}")
                continue
            tasks.append(row.task)
            cases.append(row.case)
            notes.update(dict.fromkeys(row.notes, 1))
            notes.update(dict.fromkeys((f"the column {column!r} is not used" for column in row.unused), 1))
            if len(tasks) == n:
                break

    try:
        with open(path, "rb") as content:
            source = {"file": path.name, "sha256": hashlib.file_digest(content, "sha256").hexdigest()}
        if path.suffix.lower() == ".parquet":
            take(_parquet(path))
        else:
            with open(path, encoding="utf-8-sig", newline="") as lines:
                take(readers[path.suffix.lower()](lines))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"{given!r} can't be read: {why}.") from None
    if not tasks:
        raise TaskError(f"{given!r} has no task that can be used: {problems[0] if problems else 'it is empty.'}")
    said = [
        f"{note[0].upper()}{note[1:]}{'' if count == len(tasks) else f' ({count:,} of {len(tasks):,} tasks)'}."
        for note, count in notes.items()
    ]
    source |= {"place": given} if given.startswith(HUB) else {}
    return TaskSet(name or path.stem, tuple(tasks), tuple(cases), tuple(problems), source, tuple(said))


def _jsonl(lines: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError):
            yield number, TaskError(f'it is not JSON; expected {{"clean": ..., "patch": ...}}, got {line[:60]!r}.')


def _json(lines: TextIO) -> Iterator[tuple[int, Any]]:
    """Yields a JSON list's rows; JSON Lines under this suffix, as feature-circuits has them, are read too."""
    text = lines.read()
    if not text.lstrip().startswith("["):
        yield from _jsonl(text.split("\n"))
        return
    try:
        yield from enumerate(json.loads(text), 1)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The task set is not JSON: {str(error) or 'it is nested too deep'}.") from None


def _csv(lines: TextIO) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        columns = list(reader.fieldnames or [])
    except csv.Error as error:
        raise InputError(f"The task set is not CSV: {error}.") from None
    _check(columns)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield reader.line_num, TaskError(f"it is not CSV: {error}.")
            return
        yield reader.line_num, {name: value for name, value in row.items() if name is not None}


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except OSError:
        raise
    except Exception as error:  # pyarrow's own errors share no base of theirs
        raise InputError(f"{str(path)!r} is no Parquet file: {str(error).splitlines()[0]}.") from None


def _check(columns: list[str]) -> None:
    if lacking := missing(columns):
        raise InputError(
            f"The task set has no column {' and no '.join(map(repr, lacking))}; expected {', '.join(NEEDED)}, got "
            f"{', '.join(map(repr, columns)) or 'an empty file'}."
        )


def _fetched(place: str) -> Path:
    """Returns a file of a dataset on the hub, fetched into the hub's cache."""
    match = _PLACE.fullmatch(place)
    if match is None:
        raise InputError(f"{place!r} is not a dataset's file; expected hf://datasets/ORG/NAME/FILE@REVISION.")
    import huggingface_hub

    repository, path, revision = match["repository"], match["path"], match["revision"]
    try:
        if path is None:
            there = huggingface_hub.HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
            files = [file for file in there if file.lower().endswith(SUFFIXES)]
            if len(files) != 1:
                listed = ", ".join(files[:10]) or "none that can be read"
                raise InputError(f"{place} has {len(files)} task files; say which: {listed}.")
            path = files[0]
        if not path.lower().endswith(SUFFIXES):
            raise InputError(f"{place} is no task set; expected a file that ends in {', '.join(SUFFIXES)}.")
        return Path(huggingface_hub.hf_hub_download(repository, path, repo_type="dataset", revision=revision))
    except InputError:
        raise
    except Exception as error:  # the hub's errors, and those of the HTTP library below it, change between versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        why = {401: "hf auth login first", 403: "accept its terms on its page first", 404: "there is no such file"}
        reason = why.get(status or 0) or (f"status {status}" if status else type(error).__name__)
        raise FetchError(f"The hub does not give {place}: {reason}.") from error
