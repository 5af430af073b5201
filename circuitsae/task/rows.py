"""One row of a task file as a task: the columns of this package and of others that publish such files.

docs/tasks.md has the table. A row says prompt, counterfactual, answer and foil; what it says otherwise is either one of the
names below, or named as not used.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from circuitsae.errors import TaskError
from circuitsae.task.metrics import LogitDiff
from circuitsae.task.task import Task
from circuitsae.task.vocabulary import Vocabulary

NEEDED = ("clean", "patch", "answer", "foil")

COLUMNS: dict[str, tuple[str, ...]] = {
    "clean": ("clean", "prompt", "clean_prefix"),
    "patch": ("patch", "patch_prefix", "corrupted"),
    "answer": ("answer", "clean_answer", "correct_idx", "clean_answer_idx", "country_idx"),
    "foil": ("foil", "patch_answer", "incorrect_idx", "corrupted_answer_idx", "corrupted_country_idx"),
    "case": ("case",),
}
"""Names that a column may have: this package's, feature-circuits', EAP-IG's; `..._idx` are token ids."""

YEARS = ("label", "year")
"""The year of a greater-than task, in place of answer and foil: its last two digits are what the next token is set against."""

COUNTERFACTUALS = ("s2_io_flip_counterfactual", "symbol_counterfactual", "random_counterfactual")
"""MIB's counterfactual of each kind of task, which stands for the patch prompt where there is no column of that name."""

_MIB = ("metadata", "choices", "answerKey", "template", "label")


class Row:
    """A row as a task, and what was done to make it one.

    Args:
        given: The row: column to value; texts of a CSV file are understood too.
        vocabulary: The model's, by which answers are single tokens.

    Attributes:
        task: The task.
        case: Which kind it is of, or nothing.
        notes: What was read otherwise than it stands, a sentence each without the row's own words.
        unused: Columns that are not understood.

    Raises:
        TaskError: It lacks something, something is of the wrong kind, or an answer is not one token either way.
    """

    def __init__(self, given: Any, vocabulary: Vocabulary) -> None:
        if isinstance(given, TaskError):
            raise given
        if not isinstance(given, dict):
            raise TaskError(f"it is a {type(given).__name__}; expected an object with {', '.join(NEEDED)}.")
        self.notes: list[str] = []
        self._vocabulary = vocabulary
        row = _flat({str(name): value for name, value in given.items()}, self.notes)
        found: dict[str, Any] = {}
        for name, aliases in COLUMNS.items():
            column = next((a for a in aliases if row.get(a) not in (None, "")), None)
            if column is None and name in NEEDED and name != "patch":
                raise TaskError(f"it has no {name!r}; expected {', '.join(NEEDED)}.")
            found[name] = None if column is None else _value(row[column], column, name)
        known = {*YEARS, *_MIB, *(alias for aliases in COLUMNS.values() for alias in aliases)}
        self.unused = [n for n in given if n and n not in known and not n.endswith("_counterfactual")]
        ids = isinstance(found["clean"], list)
        answer, foil = (self._answer(name, found[name], ids) for name in ("answer", "foil"))
        self.task = Task(found["clean"], metric=LogitDiff(answer, foil), patch=found["patch"])
        self.case = str(found["case"] or "")
        self.task.prepare(vocabulary)

    def _answer(self, name: str, value: Any, ids: bool) -> Any:
        """Returns one answer or several, each as it stands where it is one token, else with or without the space."""
        if isinstance(value, list):
            if not value:
                raise TaskError(f"its {name!r} is an empty list; expected at least one answer.")
            several = dict.fromkeys(self._answer(name, one, ids) for one in value)
            return next(iter(several)) if len(several) == 1 else tuple(several)
        if ids and isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value)
        if not isinstance(value, str) or not value:
            return value
        other = value[1:] if value.startswith(" ") else f" {value}"
        here, there = self._token(value), self._token(other) if other else None
        if here is None and there is not None:
            self.notes.append("answers that are one token only with a leading space, or without, were taken so")
            return other
        if there not in (None, here) and not value.startswith(" "):
            self.notes.append(
                "answers without a leading space were taken as they stand; with one, they are other tokens"
            )
        return value

    def _token(self, text: str) -> int | None:
        try:
            return self._vocabulary.token_id(text)
        except TaskError:
            return None


def missing(columns: Collection[str]) -> list[str]:
    """Returns what a table with such columns can't say."""
    lacking = [name for name in NEEDED if not set(COLUMNS[name]) & set(columns)]
    return [name for name in lacking if name == "clean" or (name != "patch" and not set(YEARS) & set(columns))]


def cell(value: Any) -> str:
    """Returns a value as a cell of a table, which `Row` reads back: token ids and several answers as JSON lists.

    Raises:
        TaskError: A text would be read as such a list.
    """
    if not isinstance(value, str):
        return json.dumps(list(value) if isinstance(value, list | tuple) else [value], allow_nan=False)
    if _listed(value) is not None:
        raise TaskError(f"The text {value[:60]!r} would be read as a list from a .csv file; write a .jsonl file.")
    return value


def _flat(row: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Returns a row with what MIB's and EAP-IG's files say in other ways under this package's names."""
    for name in ("metadata", "choices", *COUNTERFACTUALS):
        if isinstance(row.get(name), str) and row[name].startswith("{"):  # a table's cell
            try:
                row[name] = json.loads(row[name])
            except ValueError:
                continue
    present = [
        n for n, v in row.items() if n.endswith("_counterfactual") and isinstance(v, Mapping) and v.get("prompt")
    ]
    other: Mapping[str, Any] = {}
    if not any(row.get(a) not in (None, "") for a in COLUMNS["patch"]) and present:
        name = next((n for n in COUNTERFACTUALS if n in present), present[0])
        other = row[name]
        row["patch"] = other["prompt"]
        if len(present) > 1:
            notes.append(f"the patch prompt is the {name}")
    if any(row.get(a) not in (None, "") for a in (*COLUMNS["answer"], *COLUMNS["foil"])):
        return row
    names = row.get("metadata")
    if isinstance(names, Mapping) and isinstance(names.get("indirect_object"), str) and "subject" in names:
        return row | {"answer": f" {names['indirect_object']}", "foil": f" {names['subject']}"}
    if isinstance(row.get("choices"), Mapping):
        return row | {"answer": _choice(row), "foil": _choice(other)}
    if other and row.get("label") not in (None, ""):
        return row | {"answer": str(row["label"]), "foil": str(other.get("label", ""))}
    year = next((str(row[name]) for name in YEARS if row.get(name) not in (None, "")), None)
    if year is not None:
        if not (year.isascii() and year.isdigit() and len(year) in (1, 2, 4)) or int(year[-2:]) == 99:
            raise TaskError(f"its year is {year!r}; expected two or four digits, the last two below 99.")
        notes.append("the answers are all two digits above the year's, the foils the others, the mean logit of each")
        first = int(year[-2:]) + 1
        return row | {
            "answer": [f"{n:02d}" for n in range(first, 100)],
            "foil": [f"{n:02d}" for n in range(first)],
        }
    return row


def _choice(row: Mapping[str, Any]) -> str:
    """Returns the letter of the right one of several choices."""
    try:
        return str(row["choices"]["label"][int(row["answerKey"])])
    except (KeyError, IndexError, TypeError, ValueError):
        raise TaskError(
            "its 'choices' and 'answerKey' do not name a choice; expected {'label': [...]} and a row."
        ) from None


def _value(value: Any, column: str, name: str) -> Any:
    if isinstance(value, str) and (listed := _listed(value)) is not None:
        value = listed
    if isinstance(value, str) and column.endswith("_idx"):
        if not (value.isascii() and value.isdigit()):
            raise TaskError(f"its {column!r} is {value[:60]!r}; expected a token id.")
        return int(value)
    if name in ("clean", "patch"):
        if not isinstance(value, str) and not (isinstance(value, list) and all(_is_id(i) for i in value)):
            raise TaskError(f"its {name!r} is {str(value)[:60]!r}; expected text, or a list of token ids.")
    elif name in ("answer", "foil"):
        if not all(isinstance(one, str) or _is_id(one) for one in (value if isinstance(value, list) else [value])):
            raise TaskError(f"its {name!r} is {str(value)[:60]!r}; expected text, a token id, or a list of such.")
    return value


def _listed(text: str) -> list[Any] | None:
    """Returns the list of texts or ids that a table's cell holds, `None` where it is plain text."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if all(_is_id(one) or isinstance(one, str) for one in found) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
