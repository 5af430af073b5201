"""Task sets: many tasks of one kind, from a seeded template; from files they are read by `circuitsae.task.reading`.

Every task has a counterfactual of equal length, an answer and a foil of one token each, so that faithfulness and its like
are means over comparable prompts. What can't be used is left out and said, never silently.
"""

import csv
import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from circuitsae.errors import InputError, TaskError, UnknownNameError
from circuitsae.files import replacing
from circuitsae.task.metrics import LogitDiff
from circuitsae.task.rows import NEEDED, cell
from circuitsae.task.task import Task
from circuitsae.task.templates import TEMPLATES, Drawn, Words
from circuitsae.task.vocabulary import Vocabulary

_DRAWS_PER_TASK = 50


@dataclass(frozen=True)
class TaskSet:
    """Tasks of one kind. A sequence of [Task][circuitsae.task.task.Task]s; `evaluate` takes it as it is.

    Attributes:
        name: What reports call it.
        tasks: Each with a logit difference, and (but for rows of a file that have none) a patch prompt of equal length.
        cases: What kind each task is (`abba`, `plural`), empty where nothing was said.
        problems: What was left out and why, a sentence each; rows of a file with their line number.
        source: Where it is from, JSON-able: the template, `n` and `seed`, or the file and its sha256.
        notes: What of a file was read otherwise than it stands, or not used, a sentence each.
    """

    name: str
    tasks: tuple[Task, ...]
    cases: tuple[str, ...]
    problems: tuple[str, ...]
    source: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    @overload
    def __getitem__(self, at: int) -> Task: ...
    @overload
    def __getitem__(self, at: slice) -> "TaskSet": ...
    def __getitem__(self, at: int | slice) -> "Task | TaskSet":
        """Returns one task, or a set of some of them."""
        if isinstance(at, slice):
            return replace(self, tasks=self.tasks[at], cases=self.cases[at])
        return self.tasks[at]

    def of_case(self, case: str) -> "TaskSet":
        """Returns the tasks of one case.

        Raises:
            UnknownNameError: There is none of that case.
        """
        if case not in self.cases:
            raise UnknownNameError(f"case of {self.name}", case, sorted(set(self.cases)))
        chosen = [n for n, c in enumerate(self.cases) if c == case]
        return replace(self, tasks=tuple(self.tasks[n] for n in chosen), cases=tuple(self.cases[n] for n in chosen))

    def records(self) -> list[dict[str, Any]]:
        """Returns a plain record a task: clean, patch where there is one, answer, foil, case."""
        rows = []
        for task, case in zip(self.tasks, self.cases, strict=True):
            assert isinstance(task.metric, LogitDiff)
            row: dict[str, Any] = {
                "clean": _plain(task.prompt),
                **({} if task.patch is None else {"patch": _plain(task.patch)}),
                "answer": _plain(task.metric.answer),
                "foil": _plain(task.metric.foil),
            }
            rows.append(row | ({"case": case} if case else {}))
        return rows

    @property
    def fingerprint(self) -> str:
        """The sha256 of the tasks themselves, hexadecimal: equal tasks in equal order, wherever they are from."""
        return hashlib.sha256(json.dumps(self.records(), sort_keys=True, allow_nan=False).encode()).hexdigest()

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the tasks as JSONL or CSV, by the suffix; `read_tasks` reads both.

        Raises:
            InputError: Another suffix, or a folder that is not there.
        """
        path = Path(path)
        rows = self.records()
        if path.suffix not in (".jsonl", ".csv"):
            raise InputError(f"Task sets are written as .jsonl or .csv; {path.name!r} ends in neither.")
        with (
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            if path.suffix == ".jsonl":
                file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
            else:
                table = csv.DictWriter(file, [*NEEDED, "case"], restval="")
                table.writeheader()
                table.writerows({k: cell(v) for k, v in row.items()} for row in rows)

    @property
    def mostly_bad(self) -> bool:
        """Whether more rows of a file were left out than taken."""
        return sum(problem.startswith("line ") for problem in self.problems) > len(self.tasks)


def task_set(name: str, vocabulary: Any, n: int = 100, seed: int = 0, *, aligned: bool = False) -> TaskSet:
    """Returns `n` different tasks of a shipped kind, drawn from its seeded templates.

    Only words of the model's own vocabulary are used, those that differ between prompt and patch and all answers being
    single tokens. The same name, vocabulary, `n`, `seed` and `aligned` give the same tasks.

    Args:
        name: `ioi`, `agreement-simple`, `agreement-nounpp`, `agreement-within-rc`, `agreement-rc`, `greater-than`,
            `capitals` or `pronouns`.
        vocabulary: A model's vocabulary, or the spliced model itself.
        n: How many. Where the vocabulary has words for fewer, there are fewer, and `problems` says so.
        seed: Of the draws.
        aligned: Only tasks of one form and length, so that a position means the same in all of them; for circuits whose
            nodes have positions.

    Raises:
        UnknownNameError: No set is called that.
        TaskError: The vocabulary lacks the words, or there is no tokenizer.

    >>> import circuitsae as cs
    >>> tasks = task_set("ioi", cs.load("tiny"), n=2, seed=1)
    >>> len(tasks), tasks.problems
    (2, ())
    """
    if name not in TEMPLATES:
        raise UnknownNameError("task set", name, TEMPLATES)
    if n < 1:
        raise InputError(f"n is {n}; expected at least one task.")
    vocabulary = vocabulary_of(vocabulary)
    words, r = Words(vocabulary), random.Random(f"{name} {seed}")
    found: dict[Drawn, Task] = {}
    unfit = 0
    form: tuple[str, int] | None = None
    for _ in range(_DRAWS_PER_TASK * n):
        try:
            drawn = TEMPLATES[name](words, r)
        except (IndexError, ValueError):  # a list of words is empty, or too short to sample from
            raise TaskError(
                f"This model's vocabulary lacks single-token words for the task set {name!r}; there are also "
                f"{', '.join(k for k in TEMPLATES if k != name)}."
            ) from None
        if drawn in found:
            continue
        sizes = words.size(drawn.clean), words.size(drawn.patch)
        if sizes[0] != sizes[1] or not sizes[0] or not (words.single(drawn.answer) and words.single(drawn.foil)):
            unfit += 1
            continue
        if aligned:
            form = form or (drawn.form, sizes[0])
            if (drawn.form, sizes[0]) != form:
                continue
        found[drawn] = Task(drawn.clean, metric=LogitDiff(drawn.answer, drawn.foil), patch=drawn.patch)
        if len(found) == n:
            break
    if not found:
        raise TaskError(
            f"No task of the set {name!r} fits this model's vocabulary: of {unfit} drawn, each had an answer of several "
            "tokens, an unknown word, or a patch prompt of another length."
        )
    short = [f"{n} tasks were asked for; this vocabulary gave {len(found)} different ones."] if len(found) < n else []
    return TaskSet(
        name,
        tuple(found.values()),
        tuple(d.case for d in found),
        tuple(short),
        {"template": name, "n": n, "seed": seed, "aligned": aligned},
    )


def describe_sets(vocabulary: Any, seed: int = 0) -> list[dict[str, Any]]:
    """Returns, for every shipped set, its name, what it asks, and an example from this vocabulary (or why there is none)."""
    rows: list[dict[str, Any]] = []
    for name, template in TEMPLATES.items():
        row: dict[str, Any] = {"name": name, "asks": (template.__doc__ or "").split("\n")[0].rstrip(".")}
        try:
            row |= {"example": task_set(name, vocabulary, 1, seed).records()[0]}
        except TaskError as error:
            row |= {"problem": str(error)}
        rows.append(row)
    return rows


def by_length(tasks: Sequence[Task], vocabulary: Vocabulary) -> dict[int, int]:
    """Returns how many tasks there are of each length in tokens, ascending."""
    return dict(sorted(Counter(len(vocabulary.encode(t.prompt)) for t in tasks).items()))


def vocabulary_of(given: Any) -> Vocabulary:
    """Returns a model's vocabulary, given itself or the spliced model."""
    vocabulary = getattr(given, "vocabulary", given)
    if not isinstance(vocabulary, Vocabulary):
        raise InputError(f"{type(given).__name__} is no vocabulary; expected a spliced model or its .vocabulary.")
    return vocabulary


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int) else list(value)
