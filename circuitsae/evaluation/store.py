"""A long evaluation's rows on disk as they come, so that a killed one goes on where it was."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from circuitsae.errors import InputError, MissingExtraError

Columns = dict[str, "np.ndarray[Any, Any]"]


class Store:
    """A folder that holds, for every task done, its rows as a Parquet file.

    A file is written under another name and then moved, so that it is there whole or not at all: a killed evaluation
    loses the task that it was at, nothing more. `plan.json` says what is evaluated; another evaluation can't go on there.

    Raises:
        InputError: The folder can't be used, or is of another evaluation; the message says in what they differ.
        MissingExtraError: pyarrow is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], plan: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise MissingExtraError("Keeping an evaluation's rows", "pyarrow", None) from error
        self._arrow: Any = pyarrow
        self._parquet: Any = pyarrow.parquet
        written = json.loads(json.dumps(plan))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / "plan.json"
            if path.exists():
                known = json.loads(path.read_text("utf-8"))
                for name in sorted({*known, *written}):
                    if known.get(name) != written.get(name):
                        raise InputError(
                            f"{str(folder)!r} holds another evaluation: its {name} was {str(known.get(name))[:80]}, now "
                            f"it is {str(written.get(name))[:80]}. Choose another folder, or remove that one."
                        )
            elif any(self.folder.iterdir()):
                raise InputError(f"{str(folder)!r} is not empty and holds no evaluation; expected a folder of its own.")
            else:
                self._write(path, json.dumps(written, indent=1).encode())
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{str(folder)!r} can't hold an evaluation: {error}.") from None

    def load(self, kind: str, number: int) -> Columns | None:
        """Returns the rows of one task, `None` where they are not there yet."""
        path = self._path(kind, number)
        if not path.exists():
            return None
        table = self._parquet.read_table(path)
        return {name: _array(table.column(name)) for name in table.column_names}

    def save(self, kind: str, number: int, columns: Columns) -> None:
        """Writes the rows of one task."""
        self.write_table(self._path(kind, number), columns)

    def write_table(self, path: Path, columns: Columns) -> None:
        """Writes a table, whole or not at all."""
        table = self._arrow.table({k: self._arrow.array(v) for k, v in columns.items()})
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            self._parquet.write_table(table, temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise InputError(f"{str(path)!r} can't be written: {error.strerror or error}.") from None

    def done(self, kind: str) -> int:
        """Returns how many tasks of a kind are there."""
        return sum(bool(re.fullmatch(rf"{kind}-\d+\.parquet", p.name)) for p in self.folder.iterdir())

    def clean(self) -> None:
        """Removes what a killed evaluation left half written."""
        for path in self.folder.glob(".*.part"):
            path.unlink(missing_ok=True)

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:06d}.parquet"

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        temporary.write_bytes(content)
        os.replace(temporary, path)


def _array(column: Any) -> "np.ndarray[Any, Any]":
    found = column.to_numpy()
    return found.astype(str) if found.dtype == object else found
