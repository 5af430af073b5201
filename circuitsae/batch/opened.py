"""`open_batch`: what `run_batch` wrote, as circuits, tables, means and comparisons. Needs no torch."""

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.parquet

from circuitsae import names
from circuitsae.batch.tables import COLUMNS, SCHEMA, SETTINGS, circuit_of
from circuitsae.errors import GraphFileError, InputError, UnknownNameError
from circuitsae.extras import wanted
from circuitsae.files import read_whole
from circuitsae.graph.aggregation import aggregate
from circuitsae.graph.alignment import Align
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.comparison import Comparison, compare

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingTypeStubs]

parquet: Any = pyarrow.parquet

_LARGEST_SETTINGS = 2**26


def is_batch(folder: str | os.PathLike[str]) -> bool:
    """Tells whether a folder is one that `run_batch` wrote."""
    return (Path(folder) / SETTINGS).is_file()


def open_batch(folder: str | os.PathLike[str]) -> "Batch":
    """Opens a folder that `run_batch` wrote, whole or as far as it is.

    Raises:
        GraphFileError: It is no such folder, is damaged, or was written by a newer version.
    """
    return Batch(folder)


class Batch:
    """The circuits of many tasks. Iterating gives them in the order of the tasks, each read when its turn comes.

    Attributes:
        folder: Where they are.
        settings: What was asked for, of which model and tasks.

    Raises:
        GraphFileError: As for `open_batch`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not is_batch(folder):
            raise GraphFileError(f"{str(folder)!r} holds no {SETTINGS}; expected a folder that batch wrote.")
        try:
            self.settings: dict[str, Any] = json.loads(read_whole(self.folder / SETTINGS, _LARGEST_SETTINGS))
            schema = self.settings["schema"]
            self._n, self._per_file = int(self.settings["tasks"]["n"]), int(self.settings["tasks_per_file"])
            if self._per_file < 1:
                raise ValueError("tasks_per_file is less than 1")
        except (InputError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise GraphFileError(f"{str(self.folder / SETTINGS)!r} can't be read: {error}.") from None
        if schema != SCHEMA:
            raise GraphFileError(
                f"{str(folder)!r} has the schema {str(schema)[:80]!r}; this version reads {SCHEMA!r}: pip install -U "
                "circuitsae."
            )

    def __len__(self) -> int:
        """How many tasks there are, done or not."""
        return self._n

    def __repr__(self) -> str:
        return f"Batch({str(self.folder)!r}, {len(self.done)} circuits of {len(self)} tasks, {len(self.errors)} errors)"

    def __iter__(self) -> Iterator[Circuit]:
        return (self.circuit(number) for number in self.done)

    @cached_property
    def _tasks(self) -> dict[int, str | None]:
        """The tasks that are there, each with its error."""
        table = self._table("tasks", columns=["task", "error"])
        return dict(zip(table["task"].to_pylist(), table["error"].to_pylist(), strict=True))

    @property
    def done(self) -> list[int]:
        """The numbers of the tasks that have a circuit."""
        return [number for number, error in self._tasks.items() if error is None]

    @property
    def errors(self) -> dict[int, str]:
        """What became of tasks that have none: a sentence by number."""
        return {number: error for number, error in self._tasks.items() if error is not None}

    @property
    def missing(self) -> list[int]:
        """The numbers of the tasks that are still to be done."""
        return [number for number in range(len(self)) if number not in self._tasks]

    def circuit(self, task: int) -> Circuit:
        """Returns the circuit of one task, by its number: exactly what `trace` gave.

        Raises:
            InputError: It has none; the message says why.
            GraphFileError: A file is damaged.
        """
        if not 0 <= task < len(self):
            raise InputError(f"The batch has no task {task}; its tasks are 0 to {len(self) - 1}.")
        if task not in self._tasks:
            raise InputError(f"The batch has no task {task} yet; there are {len(self._tasks)} of 0 to {len(self) - 1}.")
        if (error := self._tasks[task]) is not None:
            raise InputError(f"Task {task} has no circuit: {error}")
        part = task // self._per_file
        row, nodes, edges = (
            self._read(self.folder / name / f"{part:06d}.parquet", name, filters=[("task", "==", task)])
            for name in ("tasks", "nodes", "edges")
        )
        try:
            return circuit_of(row.to_pylist()[0], nodes, edges)
        except (InputError, IndexError) as error:
            raise GraphFileError(f"{str(self.folder)!r}, task {task}: {error}") from None

    def to_dataframe(self, table: Literal["tasks", "nodes", "edges"] = "nodes") -> "DataFrame":
        """Returns a table of all tasks as a pandas DataFrame; its columns are those of docs/format.md.

        Raises:
            MissingExtraError: pandas is not installed.
            UnknownNameError: There is no such table.
            GraphFileError: A file is damaged.
        """
        if table not in COLUMNS:
            raise UnknownNameError("table", table, COLUMNS)
        wanted("pandas", "Tables of a batch")
        return self._table(table).to_pandas()

    def effects(self, value: str = "effect", *, align: Align = "position") -> "DataFrame":
        """Returns a number of every node on every prompt: a row a node, a column a task, NaN where a circuit lacks it.

        Args:
            value: A column of the table `nodes`: `effect` (the measured one where there is one, as in `aggregate`),
                `activation`, `measured_effect`, ...
            align: `"position"`, or `"sum"`: a feature's positions are added up, as in `aggregate`.

        Raises:
            MissingExtraError: pandas is not installed.
            UnknownNameError: There is no such number, or no such alignment.
            GraphFileError: A file is damaged.
        """
        numeric = [field.name for field in COLUMNS["nodes"] if field.type == pa.float64()]
        if value not in numeric:
            raise UnknownNameError("number of a node", value, numeric)
        if align not in ("position", "sum"):
            raise UnknownNameError("alignment of a table", align, ("position", "sum"))
        pandas = wanted("pandas", "Tables of a batch")
        columns = ["task", "node", value, *(["measured_effect"] if value == "effect" else [])]
        found = self._table("nodes", columns=columns).to_pandas()
        if value == "effect":
            found[value] = found["measured_effect"].fillna(found[value])
        found = found.dropna(subset=[value])
        if align == "sum":
            summed = {key: str(names.parse(key).at(None)) for key in found["node"].unique()}
            found["node"] = found["node"].map(summed)
        matrix = pandas.pivot_table(found, value, "node", "task", aggfunc="sum")
        return matrix.reindex(index=sorted(matrix.index, key=names.sort_key), columns=self.done)

    def aggregate(
        self, *, align: Align | None = None, slots: Sequence[Sequence[str]] | None = None, min_count: int = 1
    ) -> Circuit:
        """Returns the circuit averaged over all tasks that have one; see `aggregate`.

        Args:
            align: As there; by default `"position"` where all prompts have one length, else `"sum"`.
            slots, min_count: As there.

        Raises:
            InputError: No task has a circuit, or they can't be aligned so.
            GraphFileError: A file is damaged.
        """
        if align is None:
            tokens = self._table("tasks", columns=["tokens"])["tokens"]
            lengths = {len(row) for row in tokens.to_pylist() if row is not None}
            align = "position" if len(lengths) == 1 else "sum"
        return aggregate(self, align=align, slots=slots, min_count=min_count)

    def compare(self, other: "Batch", *, align: Align = "sum") -> Comparison:
        """Compares this batch's average with another's (b's less this one's); see `compare`.

        Args:
            other: Of the same model and dictionaries.
            align: `"sum"`, or `"position"` where the prompts of both have one length.

        Raises:
            InputError: They are of different models or dictionaries, or can't be aligned so.
            GraphFileError: A file is damaged.
        """
        return compare(self.aggregate(align=align), other.aggregate(align=align), align=align)

    def _table(self, name: str, **reading: Any) -> pa.Table:
        """Returns a table of the parts that are there whole: those whose tasks are."""
        parts = sorted((self.folder / "tasks").glob("[0-9]*.parquet"), key=lambda path: int(path.stem))
        tables = [self._read(self.folder / name / path.name, name, **reading) for path in parts]
        schema = COLUMNS[name]
        if "columns" in reading:
            schema = pa.schema([schema.field(column) for column in reading["columns"]])
        return pa.concat_tables([schema.empty_table(), *tables])

    def _read(self, path: Path, name: str, **reading: Any) -> pa.Table:
        try:
            if (there := parquet.read_schema(path)) != COLUMNS[name]:
                raise ValueError(f"its columns are {', '.join(there.names[:30])}, not those of {SCHEMA}")
            table = parquet.read_table(path, page_checksum_verification=True, **reading)
            return table.replace_schema_metadata(None)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise GraphFileError(
                f"{str(path)!r} can't be read: {str(error).splitlines()[0].removesuffix('.')}."
            ) from None
