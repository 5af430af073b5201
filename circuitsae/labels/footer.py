"""What a Parquet file's footer says of sizes, read without pyarrow.

pyarrow ends the whole process where a stranger's footer contradicts itself in a column's statistics (its
`RowGroupMetaData.column`, seen in version 26): what a column claims to unpack to is therefore read here. The footer is a
struct in Thrift's compact protocol (https://github.com/apache/parquet-format, parquet.thrift).
"""

import struct
from pathlib import Path
from typing import Any

_ROW_GROUPS, _COLUMNS, _CHUNK, _VALUES, _UNCOMPRESSED = (
    4,
    1,
    3,
    5,
    6,
)  # field numbers, from the outermost struct inwards
_DEEPEST = 32


def column_sizes(path: Path) -> list[list[tuple[int, int]]]:
    """Returns, for each row group and column, how many bytes it claims to unpack to and how many values it claims to hold.

    Raises:
        ValueError: The footer is damaged.
    """
    with path.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > end - 12:
            raise ValueError("its footer is damaged")
        file.seek(end - 8 - length)
        footer = _Reader(file.read(length)).struct()
    groups = _field(footer, _ROW_GROUPS, list)
    return [[_sizes(_field(column, _CHUNK, dict)) for column in _field(group, _COLUMNS, list)] for group in groups]


def _sizes(chunk: dict[int, Any]) -> tuple[int, int]:
    found = chunk.get(_UNCOMPRESSED), chunk.get(_VALUES)
    if not all(type(value) is int for value in found):
        raise ValueError("its footer does not say how large a column is")
    return found  # type: ignore[return-value]


def _field(within: Any, field: int, kind: type) -> Any:
    found = within.get(field) if isinstance(within, dict) else None
    if not isinstance(found, kind):
        raise ValueError(f"its footer lacks field {field}")
    return found


class _Reader:
    """Thrift's compact protocol: structs as dictionaries by field number, lists and sets as lists."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at, self._depth = data, 0, 0

    def struct(self) -> dict[int, Any]:
        found: dict[int, Any] = {}
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError("its footer is nested too deep")
        number = 0
        while (head := self._byte()) != 0:
            number = number + (head >> 4) if head >> 4 else self._signed()
            found[number] = head & 15 == 1 if head & 15 in (1, 2) else self._value(head & 15)
        self._depth -= 1
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2):  # a truth value in a list
            return self._byte() == 1
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return struct.unpack("<d", self._bytes(8))[0]
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            size = head >> 4 if head >> 4 < 15 else self._varint()
            if size > len(self._data) - self._at:
                raise ValueError("its footer ends too early")
            return [self._value(head & 15) for _ in range(size)]
        if kind == 11:
            size = self._varint()
            if size > len(self._data) - self._at:
                raise ValueError("its footer ends too early")
            kinds = self._byte() if size else 0
            return [(self._value(kinds >> 4), self._value(kinds & 15)) for _ in range(size)]
        if kind == 12:
            return self.struct()
        raise ValueError(f"its footer has a value of the unknown kind {kind}")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("its footer ends too early")
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("its footer has a number that is too long")
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
