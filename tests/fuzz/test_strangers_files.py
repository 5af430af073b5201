"""Any file gives a result or the package's own error: bytes of no kind, and good files with a few things changed."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsae.labels.footer import column_sizes
from tests.fuzz.seeds import SITE, good_files
from tests.fuzz.targets import TARGETS, survives


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A file for each target that it reads without complaint."""
    return good_files(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("name", TARGETS)
def test_each_target_reads_its_good_file(name: str, good: dict[str, bytes]) -> None:
    assert survives(TARGETS[name], good[name])


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30)
@given(data=st.binary(max_size=200))
def test_bytes_of_no_kind(name: str, data: bytes) -> None:
    survives(TARGETS[name], data)


@st.composite
def damage(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A few bytes changed, a piece cut out, or a piece put in somewhere else."""
    at, length = draw(st.floats(0, 1)), draw(st.integers(1, 40))
    new = draw(
        st.binary(min_size=1, max_size=8) | st.sampled_from([b"9" * 400, b"[" * 300, b"\x00", b'"', b"1e999", b"NaN"])
    )
    kind = draw(st.sampled_from(["change", "cut", "insert", "end", "repeat"]))

    def apply(data: bytes) -> bytes:
        start = int(at * len(data))
        return {
            "change": data[:start] + new + data[start + len(new) :],
            "cut": data[:start] + data[start + length :],
            "insert": data[:start] + new + data[start:],
            "end": data[:start],
            "repeat": data[:start] + data[start : start + length] * 2 + data[start + length :],
        }[kind]

    return apply


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=damage(), second=damage() | st.none())
def test_good_files_that_were_damaged(name: str, good: dict[str, bytes], first: Any, second: Any) -> None:
    data = first(good[name])
    survives(TARGETS[name], data if second is None else second(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["metric", "token@0", f"{SITE}/1@0", "__proto__", "../..", "blocks.0.x/1@*", 2**70, -(2**70), 10**400, 1e308, "\ud800"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("name", ["circuit", "circuit_tracer", "cytoscape", "json_labels", "tasks_json", "form"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_good_json_with_a_part_exchanged(name: str, good: dict[str, bytes], data: st.DataObject) -> None:
    document = json.loads(good[name])
    place: Any = document
    for _ in range(data.draw(st.integers(0, 6))):
        inner = place[data.draw(st.sampled_from(sorted(place)))] if isinstance(place, dict) and place else (
            place[data.draw(st.integers(0, len(place) - 1))] if isinstance(place, list) and place else None
        )  # fmt: skip
        if not isinstance(inner, dict | list) or not inner:
            break
        place = inner
    if isinstance(place, dict):
        key = data.draw(st.sampled_from(sorted(place)) | st.text(max_size=5))
        place[key] = data.draw(JSON)
    else:
        place[data.draw(st.integers(0, len(place) - 1))] = data.draw(JSON)
    survives(TARGETS[name], json.dumps(document).encode())


TYPES = st.sampled_from(
    [
        pa.string(), pa.large_string(), pa.binary(), pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.bool_(), pa.null(),
        pa.timestamp("us"), pa.date32(), pa.decimal128(20, 2), pa.list_(pa.int64()), pa.list_(pa.string()),
        pa.struct([("token", pa.string()), ("amount", pa.float32())]), pa.dictionary(pa.int32(), pa.string()),
        pa.list_(pa.struct([("tokens", pa.list_(pa.string())), ("peak", pa.int64())])), pa.map_(pa.string(), pa.int32()),
    ]
)  # fmt: skip
COLUMNS = ("site", "index", "label", "source", "promoted", "contexts", "density", "histogram", "bin_width", "address")


def _values(draw: st.DrawFn, kind: Any, count: int) -> Any:
    made = {
        "string": st.text(max_size=5), "large_string": st.text(max_size=5), "binary": st.binary(max_size=5),
        "int8": st.integers(-128, 127), "int64": st.integers(-(2**63), 2**63 - 1), "uint64": st.integers(0, 2**64 - 1),
        "float": st.floats(width=32), "bool": st.booleans(),
        "list<item: int64>": st.lists(st.integers(-5, 5), max_size=3), "list<item: string>": st.lists(st.text(max_size=3), max_size=3),
    }.get(str(kind), st.none())  # fmt: skip
    return pa.array(draw(st.lists(st.none() | made, min_size=count, max_size=count)), kind)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """A Parquet file with columns of the store's names and of any type."""
    count = draw(st.integers(0, 4))
    found = {name: _values(draw, draw(TYPES), count) for name in draw(st.sets(st.sampled_from(COLUMNS)))}
    found |= {"index": pa.array(range(count)), "label": _values(draw, pa.string(), count)}
    if draw(st.booleans()):
        found["site"] = pa.array([SITE] * count, pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(found), sink)
    return sink.getvalue().to_pybytes()


@settings(max_examples=30)
@given(tables())
def test_parquet_files_with_columns_of_any_type(data: bytes) -> None:
    survives(TARGETS["parquet"], data)


def test_a_footer_that_contradicts_itself_does_not_end_the_process(good: dict[str, bytes]) -> None:
    """A list of statistics gets one more number: pyarrow throws where nothing catches. Found by atheris."""
    data = good["parquet"]
    length = int.from_bytes(data[-8:-4], "little")
    body, footer = data[: -8 - length], data[-8 - length : -8]
    lists = [at for at in range(len(footer)) if footer[at] & 15 == 6 and footer[at] >> 4 in range(1, 14)]
    assert len(lists) > 20
    for at in lists:
        changed = footer[:at] + bytes([footer[at] + 16, 0]) + footer[at + 1 :]
        survives(TARGETS["parquet"], body + changed + len(changed).to_bytes(4, "little") + b"PAR1")


@settings(max_examples=20)
@given(counts=st.lists(st.integers(1, 30), min_size=1, max_size=4), group=st.integers(1, 20))
def test_sizes_in_the_footer_are_read_as_pyarrow_reads_them(counts: list[int], group: int) -> None:
    table = pa.table({f"c{n}": [[str(k)] * (k % 3) for k in range(max(counts))] for n in range(len(counts))})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.parquet"
        pq.write_table(table, path, row_group_size=group)
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
        theirs = [[g.column(n) for n in range(g.num_columns)] for g in groups]
        assert column_sizes(path) == [[(c.total_uncompressed_size, c.num_values) for c in row] for row in theirs]


@pytest.mark.parametrize("name", ["circuit", "csv", "loader_sparsify"])
def test_atheris_runs_a_target(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed")
    command = [sys.executable, "-m", "tests.fuzz", name, "-runs=300", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 300 runs" in done.stderr
