"""Long work's rows on disk as they come, so that what was killed goes on where it was."""

import contextlib
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
from numpy.typing import NDArray
from pyarrow import parquet

from circuitsae.errors import InputError
from circuitsae.files import is_temporary, reason_of, remove_leftovers, replacing, write_whole

Columns = dict[str, NDArray[Any]]


class Planned:
    """A folder that belongs to one piece of work: a file in it says which, and another can't go on there.

    Args:
        folder: It is made if it is not there, and what processes that died left in it goes.
        plan: What the work is, JSON-able.
        work: What it is called in messages.
        name: The file's name.
        ours: Names that may be there before the plan is, as a regular expression.

    Raises:
        InputError: The folder can't be used, or is of other work; the message says in what they differ.
    """

    def __init__(
        self, folder: str | os.PathLike[str], plan: Mapping[str, Any], *, work: str, name: str, ours: str
    ) -> None:
        self.folder = Path(folder)
        written = json.loads(json.dumps(plan, allow_nan=False))
        self.plan = json.dumps(written, sort_keys=True, allow_nan=False).encode()
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
            if not path.exists() and not all(
                is_temporary(p) or re.fullmatch(ours, p.name) for p in self.folder.iterdir()
            ):
                raise InputError(f"{str(folder)!r} is not empty and holds no {work}; expected a folder of its own.")
            known = _plan_in(path)
            if known is None:
                write_whole({path: json.dumps(written, indent=1, allow_nan=False).encode()})
                return
        except OSError as error:
            raise InputError(f"{str(folder)!r} can't hold the {work}: {reason_of(error)}.") from None
        for name in sorted({*known, *written}):
            if known.get(name) != written.get(name):
                raise InputError(
                    f"{str(folder)!r} holds another {work}, with another value of {name!r}: {_differing(known, written, name)} "
                    f"there, {_differing(written, known, name)} here. Choose another folder, or remove that one."
                )


class Store(Planned):
    """A folder that holds, for every task done, its rows as a Parquet file.

    A killed evaluation loses the task that it was at, nothing more. `plan.json` says what is evaluated. Each file of rows
    holds a checksum of the plan and of the rows: what is damaged is done again.

    Raises:
        InputError: The folder can't be used, or is of another evaluation; the message says in what they differ.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        super().__init__(folder, plan, work="evaluation", name="plan.json", ours=r"(survey|rows)-\d{6,}\.parquet")

    def load(self, kind: str, number: int) -> Columns | None:
        """Returns the rows of one task, `None` where they are not there yet or not as this evaluation wrote them."""
        path = self._path(kind, number)
        if not path.exists():
            return None
        with contextlib.suppress(OSError, ValueError, pyarrow.ArrowException):
            table = parquet.read_table(path)
            found = _arrays(table)
            if (table.schema.metadata or {}).get(b"sha256") == self._sha256(found):
                return found
        warnings.warn(f"{str(path)!r} is damaged or of another evaluation; that task is done again.", stacklevel=2)
        return None

    def save(self, kind: str, number: int, columns: Columns) -> None:
        """Writes the rows of one task, whole or not at all."""
        table = pyarrow.table({k: pyarrow.array(v) for k, v in columns.items()})
        table = table.replace_schema_metadata({"sha256": self._sha256(_arrays(table))})
        with replacing(self._path(kind, number)) as temporary:
            parquet.write_table(table, temporary)

    def _sha256(self, columns: Columns) -> bytes:
        found = hashlib.sha256(self.plan)
        for name, column in columns.items():
            found.update(f"{name} {column.dtype} ".encode())
            found.update(column.tobytes())
        return found.hexdigest().encode()

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:06d}.parquet"


def _differing(plan: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    """Returns one plan's value as text; of an object, the part in which the other differs."""
    mine, theirs = plan.get(name), other.get(name)
    if isinstance(mine, dict) and isinstance(theirs, dict):
        mine = {key: value for key, value in mine.items() if key not in theirs or theirs[key] != value}
    return str(mine)[:80]


def _plan_in(path: Path) -> dict[str, Any] | None:
    """Returns the plan in a file; `None` where there is none, or it is damaged: each file of rows tells its own."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else None
    return None


def _arrays(table: Any) -> Columns:
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return {name: c.astype(str) if c.dtype == object else c for name, c in columns.items()}
