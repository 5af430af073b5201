"""Label stores as Parquet files (`circuitsae-labels/1`, docs/labels.md): a row a feature, read a few rows at a time.

A store may be a stranger's: its footer is read with limits, what it says of its sizes
is checked before anything is unpacked, and so is what came out before it becomes Python objects.
"""

import json
import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from circuitsae.errors import InputError
from circuitsae.files import replacing
from circuitsae.graph.schema import shown
from circuitsae.labels.footer import column_sizes
from circuitsae.labels.records import Context, Description

compute: Any = pyarrow.compute  # made at run time, and parquet's types are wrong
parquet: Any = pyarrow.parquet

SCHEMA = "circuitsae-labels/1"
ROWS_A_GROUP = 256
"""Rows written together, and so read together: the price of looking at one feature."""

_LARGEST_FILE = 8 << 30
_LARGEST_FOOTER = 64 << 20
_LARGEST_GROUP = 256 << 20  # bytes, unpacked, as the footer says
_MOST_ROWS = 50_000_000
_MOST_VALUES = 8_000_000  # of one column in one row group
_LONGEST_TEXT = 10_000
_MOST_IN_A_ROW = 65_536
_GROUPS_KEPT = 8
_NEEDED = ("site", "index", "label")
_REPEATED = ("site", "label", "source", "address", "contexts.list.element.tokens.list.element")


class ParquetLabels:
    """A label store in a Parquet file; see `open_labels`.

    Only the columns `site`, `index` and `label` are needed, so a table of labels from anywhere will do; rows in any
    order. Opening reads the footer; the first question reads those three columns' first two; a description reads the
    one row group that holds it, and the last few stay in memory.

    Attributes:
        name: The file's name.
        about: What the file says about itself: model, text, how many tokens were counted, dictionaries.

    Raises:
        InputError: The file can't be read, is not Parquet, lacks a column, or says it is larger than the limits.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = self.path.name
        try:
            size = self.path.stat().st_size
            if size > _LARGEST_FILE:
                raise self._wrong(f"it has {size:,} bytes; {_LARGEST_FILE:,} are allowed")
            limits = {"thrift_string_size_limit": _LARGEST_FOOTER, "thrift_container_size_limit": 1_000_000}
            with parquet.ParquetFile(self.path, **limits) as file:
                metadata = file.metadata
                leaves = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
            # Repeated texts stay one text and numbers that refer to it: what a short file stands for may be very long.
            repeated = [leaf for leaf in _REPEATED if leaves.count(leaf) == 1]
            self._file = parquet.ParquetFile(
                self.path, metadata=metadata, memory_map=True, read_dictionary=repeated, **limits
            )
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"There is no file {str(self.path)!r}.") from None
        except Exception as error:  # pyarrow's errors have no common root
            raise self._wrong(_first_line(error)) from None
        self._lock = threading.RLock()
        self._groups: OrderedDict[int, Any] = OrderedDict()
        self._rows: dict[str, dict[int, int]] | None = None
        self._labels: list[str] | None = None
        self._check_footer()
        try:
            self._sizes = column_sizes(self.path)
        except (ValueError, OSError) as error:
            raise self._wrong(str(error)) from None
        if len(self._sizes) != self._file.metadata.num_row_groups:
            raise self._wrong("its footer counts its row groups in two ways")
        self.about = self._about()

    def __len__(self) -> int:
        """How many features it has."""
        return self._file.metadata.num_rows

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self):,} features>"

    @property
    def sites(self) -> list[str]:
        """The sites that it has features of."""
        return list(self._index())

    @property
    def columns(self) -> list[str]:
        """The names of its columns."""
        return list(self._file.schema_arrow.names)

    def label(self, site: str, index: int) -> str:
        """Returns a feature's label, empty where there is none."""
        row = self._index().get(site, {}).get(index)
        return "" if row is None else self._label_column()[row]

    def labels(self, features: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Returns the labels of those of many features that have one."""
        return {(site, index): label for site, index in features if (label := self.label(site, index))}

    def search(self, text: str, site: str | None = None, limit: int = 50) -> list[tuple[str, int, str]]:
        """Returns (site, index, label) of features whose label holds a text, in any case, as stored."""
        wanted, column, found = text.casefold(), self._label_column(), []
        for name, rows in self._index().items():
            if site is None or name == site:
                for index, row in rows.items():
                    if wanted in column[row].casefold():
                        found.append((name, index, column[row]))
                        if len(found) >= limit:
                            return found
        return found

    def describe(self, site: str, index: int) -> Description | None:
        """Returns all that is known of a feature, `None` where nothing is.

        Raises:
            InputError: The row is damaged.
        """
        row = self._index().get(site, {}).get(index)
        return None if row is None else self._description(row)

    def __iter__(self) -> Iterator[Description]:
        """Yields every description, as stored, a row group at a time."""
        for row in range(len(self)):
            yield self._description(row)

    def _description(self, row: int) -> Description:
        group = bisect_right(self._starts, row) - 1
        table = self._group(group)
        try:
            record: dict[str, Any] = table.slice(row - self._starts[group], 1).to_pylist()[0]
            return _description_of(record)
        except InputError as error:
            raise self._wrong(f"row {row}: {error}") from None
        except Exception as error:  # text that is not UTF-8, columns of other types: a stranger's file may hold any
            raise self._wrong(f"row {row}: {_first_line(error)}") from None

    def _group(self, number: int) -> Any:
        with self._lock:
            if number not in self._groups:
                self._check_group(number)
                table = self._read(lambda: self._file.read_row_group(number, columns=self._known_columns()))
                _check_lengths(table, self._wrong)
                self._groups[number] = table
                if len(self._groups) > _GROUPS_KEPT:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(number)
            return self._groups[number]

    def _index(self) -> dict[str, dict[int, int]]:
        """Reads, once, which row holds which feature."""
        with self._lock:
            if self._rows is None:
                table = self._column_table(["site", "index"])
                rows: dict[str, dict[int, int]] = {}
                sites, indices = table.column("site").to_pylist(), table.column("index").to_pylist()
                for row, (site, index) in enumerate(zip(sites, indices, strict=True)):
                    if not isinstance(site, str) or type(index) is not int or index < 0:
                        raise self._wrong(f"row {row} names no feature: site {shown(site)}, index {shown(index)}")
                    rows.setdefault(site, {}).setdefault(index, row)
                self._rows = rows
            return self._rows

    def _label_column(self) -> list[str]:
        with self._lock:
            if self._labels is None:
                column = self._column_table(["label"]).column("label").to_pylist()
                self._labels = [text[:_LONGEST_TEXT] if isinstance(text, str) else "" for text in column]
            return self._labels

    def _column_table(self, columns: list[str]) -> Any:
        tables = []
        for number in range(self._file.metadata.num_row_groups):
            self._check_group(number)
            table = self._read(lambda number=number: self._file.read_row_group(number, columns=columns))
            _check_lengths(table, self._wrong)
            tables.append(table)
        if not tables:
            return self._read(lambda: self._file.read(columns=columns))
        return self._read(lambda: pa.concat_tables(tables).unify_dictionaries())

    def _read(self, reading: Any) -> Any:
        try:
            return reading()
        except Exception as error:  # damaged pages show themselves as pyarrow's own errors, or as OSError
            raise self._wrong(_first_line(error)) from None

    def _known_columns(self) -> list[str]:
        return [name for name in _fields() if name in self._file.schema_arrow.names]

    def _check_footer(self) -> None:
        metadata, names = self._file.metadata, self._file.schema_arrow.names
        for name in _NEEDED:
            if names.count(name) != 1:
                raise self._wrong(
                    f"expected one column {name!r}; there is {', '.join(map(shown, names[:20])) or 'none'}"
                )
        for name, fits in (("site", _is_text), ("index", pa.types.is_integer), ("label", _is_text)):
            if not fits(self._file.schema_arrow.field(name).type):
                raise self._wrong(f"the column {name!r} holds {self._file.schema_arrow.field(name).type}")
        if metadata.num_rows > _MOST_ROWS:
            raise self._wrong(f"it says {metadata.num_rows:,} rows; {_MOST_ROWS:,} are allowed")
        self._starts = [0]
        for number in range(metadata.num_row_groups):
            self._starts.append(self._starts[-1] + metadata.row_group(number).num_rows)
        if self._starts[-1] != metadata.num_rows or any(
            b < a for a, b in zip(self._starts, self._starts[1:], strict=False)
        ):
            raise self._wrong("its row groups do not add up to its rows")

    def _check_group(self, number: int) -> None:
        """Refuses a row group that says it unpacks to more than the limits, before a byte of it is unpacked."""
        group = self._file.metadata.row_group(number)
        columns = self._sizes[number]
        size = max([group.total_byte_size, *(size for size, _ in columns)])
        values = max((values for _, values in columns), default=0)
        if size > _LARGEST_GROUP or values > _MOST_VALUES:
            raise self._wrong(
                f"its row group {number} unpacks to {size:,} bytes and {values:,} values a column; {_LARGEST_GROUP:,} and "
                f"{_MOST_VALUES:,} are allowed"
            )

    def _about(self) -> dict[str, Any]:
        raw = (self._file.schema_arrow.metadata or {}).get(b"circuitsae")
        if raw is None:
            return {}
        try:
            about = json.loads(raw) if len(raw) < 1_000_000 else None
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise self._wrong("what it says about itself is not a JSON object")
        schema = about.get("schema")
        if schema != SCHEMA:
            raise self._wrong(f"expected the schema {SCHEMA!r}; it says {shown(schema)}: pip install -U circuitsae")
        return about

    def _wrong(self, what: str) -> InputError:
        return InputError(f"The labels in {str(self.path)!r} can't be used: {what}.")


def write_store(
    path: str | os.PathLike[str], descriptions: Iterable[Description], about: Mapping[str, Any] | None = None
) -> int:
    """Writes descriptions as a Parquet store, whole or not at all, and returns how many there were.

    Rows are written a few hundred at a time, so that memory does not grow with them.

    Args:
        path: Where to.
        descriptions: One a feature, best ordered by site and index.
        about: Kept in the file; JSON-able.

    Raises:
        InputError: The path can't be written, or `about` holds NaN or infinity.
    """
    path = Path(path)
    try:
        header = {"circuitsae": json.dumps({"schema": SCHEMA, **(about or {})}, allow_nan=False)}
    except ValueError:
        raise InputError(
            "What is said about the store holds NaN or infinity, which JSON can't; expected numbers."
        ) from None
    schema = pa.schema(list(_fields().values()), metadata=header)
    count = 0
    with replacing(path) as temporary:
        with parquet.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=9,
            use_dictionary=True,
            write_statistics=["site", "index"],
            store_schema=True,
        ) as writer:
            rows: list[Description] = []
            for description in descriptions:
                rows.append(description)
                if len(rows) == ROWS_A_GROUP:
                    writer.write_table(_table(schema, rows))
                    count += len(rows)
                    rows = []
            if rows or not count:
                writer.write_table(_table(schema, rows))
                count += len(rows)
    return count


def _table(schema: Any, rows: Sequence[Description]) -> Any:
    return pa.Table.from_pylist(
        [
            {
                "site": d.site,
                "index": d.index,
                "label": _clean(d.label),
                "source": _clean(d.source),
                "promoted": [{"token": _clean(t), "amount": a} for t, a in d.promoted],
                "suppressed": [{"token": _clean(t), "amount": a} for t, a in d.suppressed],
                "contexts": [
                    {"tokens": [_clean(t) for t in c.tokens], "activations": list(c.activations), "peak": c.peak}
                    for c in d.contexts
                ],
                "density": d.density,
                "mean": d.mean,
                "largest": d.largest,
                "histogram": list(d.histogram),
                "bin_width": d.bin_width,
                "address": _clean(d.address),
            }
            for d in rows
        ],
        schema=schema,
    )


def _clean(text: str) -> str:
    """Parquet's text is UTF-8, which has no half surrogate pairs."""
    return text.encode("utf-8", "replace").decode()


def _fields() -> dict[str, Any]:
    pairs = pa.list_(pa.struct([("token", pa.string()), ("amount", pa.float32())]))
    contexts = pa.list_(
        pa.struct([("tokens", pa.list_(pa.string())), ("activations", pa.list_(pa.float32())), ("peak", pa.int32())])
    )
    types = {
        "site": pa.string(), "index": pa.int64(), "label": pa.string(), "source": pa.string(), "promoted": pairs,
        "suppressed": pairs, "contexts": contexts, "density": pa.float64(), "mean": pa.float32(),
        "largest": pa.float32(), "histogram": pa.list_(pa.int32()), "bin_width": pa.float32(), "address": pa.string(),
    }  # fmt: skip
    return {name: pa.field(name, kind) for name, kind in types.items()}


def _check_lengths(table: Any, wrong: Any) -> None:
    """Refuses texts and rows over the limits while they are still arrow's: a short file can stand for very long ones."""

    def check(array: Any, name: str) -> None:
        kind = array.type
        if pa.types.is_dictionary(kind):
            check(array.dictionary, name)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            longest = compute.max(compute.list_value_length(array)).as_py()
            if longest is not None and longest > _MOST_IN_A_ROW:
                raise wrong(f"the column {name!r} has {longest:,} values in a row; {_MOST_IN_A_ROW:,} are allowed")
            check(array.values, name)
        elif pa.types.is_struct(kind):
            for n in range(kind.num_fields):
                check(array.field(n), name)
        elif _is_text(kind):
            longest = compute.max(compute.binary_length(array)).as_py()
            if longest is not None and longest > 4 * _LONGEST_TEXT:
                raise wrong(f"the column {name!r} has a text of {longest:,} bytes; {4 * _LONGEST_TEXT:,} are allowed")

    for name in table.column_names:
        for chunk in table.column(name).chunks:
            check(chunk, name)


def _description_of(record: Mapping[str, Any]) -> Description:
    """Returns a row as a description. A stranger's table may have only some of the columns, in other types."""

    def text(name: str) -> str:
        value = record.get(name)
        return value[:_LONGEST_TEXT] if isinstance(value, str) else ""

    def pairs(name: str) -> tuple[tuple[str, float], ...]:
        rows = record.get(name) or ()
        return tuple((row["token"] or "", _number(row["amount"]) or 0.0) for row in rows if row)

    contexts = []
    for row in record.get("contexts") or ():
        tokens = tuple(token or "" for token in row["tokens"] or ())
        activations = tuple(_number(value) or 0.0 for value in row["activations"] or ())
        peak = row["peak"]
        if len(tokens) != len(activations) or not isinstance(peak, int) or not 0 <= peak < len(tokens):
            raise InputError(
                f"a context has {len(tokens)} tokens, {len(activations)} activations and its peak at {peak}"
            )
        contexts.append(Context(tokens, activations, peak))
    return Description(
        site=record["site"],
        index=record["index"],
        label=text("label"),
        source=text("source"),
        promoted=pairs("promoted"),
        suppressed=pairs("suppressed"),
        contexts=tuple(contexts),
        density=_number(record.get("density")),
        mean=_number(record.get("mean")),
        largest=_number(record.get("largest")),
        histogram=tuple(max(int(n or 0), 0) for n in record.get("histogram") or ()),
        bin_width=_number(record.get("bin_width")),
        address=text("address"),
    )


def _number(value: Any) -> float | None:
    """Returns a finite number; float32 widened to the shortest decimal that stands for it."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        return None
    return float(f"{value:.7g}")


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _first_line(error: BaseException) -> str:
    line = (str(error).strip() or type(error).__name__).split("\n")[0]
    return (line[:1].lower() + line[1:])[:200].rstrip(".")
