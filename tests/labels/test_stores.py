"""Label stores: what is written comes back, what is a stranger's is checked, and circuits get their labels."""

import json
import math
from pathlib import Path
from typing import Any

import networkx as nx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import circuitsae as cs
from circuitsae import registry
from circuitsae.errors import InputError, PluginError, UnknownNameError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import Context, Description, Mapped, label_circuit, open_labels, preset_labels
from circuitsae.labels.parquet import ParquetLabels, write_store

SITE = "blocks.3.hook_mlp_out"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
AMOUNTS = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False).map(lambda x: float(f"{x:.3g}"))
PAIRS = st.lists(st.tuples(TEXTS, AMOUNTS), max_size=3).map(tuple)


@st.composite
def contexts(draw: st.DrawFn) -> Context:
    tokens = draw(st.lists(TEXTS, min_size=1, max_size=5))
    values = draw(st.lists(AMOUNTS, min_size=len(tokens), max_size=len(tokens)))
    return Context(tuple(tokens), tuple(values), draw(st.integers(0, len(tokens) - 1)))


DESCRIPTIONS = st.builds(
    Description,
    site=st.sampled_from(["blocks.0.hook_mlp_out", "blocks.10.hook_resid_post"]),
    index=st.integers(0, 2**40),
    label=TEXTS,
    source=TEXTS,
    promoted=PAIRS,
    suppressed=PAIRS,
    contexts=st.lists(contexts(), max_size=3).map(tuple),
    density=st.none() | st.floats(0, 1).map(lambda x: float(f"{x:.3g}")),
    mean=st.none() | AMOUNTS,
    largest=st.none() | AMOUNTS,
    histogram=st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
    bin_width=st.none() | AMOUNTS,
    address=TEXTS,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(DESCRIPTIONS, max_size=6, unique_by=lambda d: (d.site, d.index)))
def test_descriptions_come_back_exactly(tmp_path: Path, rows: list[Description]) -> None:
    path = tmp_path / "s.parquet"
    assert write_store(path, rows, {"text": "x"}) == len(rows)
    store = ParquetLabels(path)
    assert list(store) == rows and len(store) == len(rows) and store.about["text"] == "x"
    for row in rows:
        assert store.describe(row.site, row.index) == row and store.label(row.site, row.index) == row.label
        assert json.loads(json.dumps(row.to_dict()))["node"] == f"{row.site}/{row.index}"


def test_a_feature_is_read_with_the_rows_beside_it_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.parquet"
    write_store(path, (Description(SITE, n, f"label {n}") for n in range(1000)))
    store = ParquetLabels(path)
    read: list[int] = []
    original = store._file.read_row_group

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(original.__self__, name)

        def read_row_group(self, number: int, columns: list[str]) -> Any:
            if "contexts" in columns:
                read.append(number)
            return original(number, columns=columns)

    monkeypatch.setattr(store, "_file", Watched())
    for index in (999, 998, 700, 999):
        found = store.describe(SITE, index)
        assert found is not None and found.label == f"label {index}"
    assert read == [3, 2]
    assert store.describe(SITE, 1000) is None and store.describe("nowhere", 0) is None


def test_search_finds_labels_in_any_case(tmp_path: Path) -> None:
    write_store(tmp_path / "s.parquet", [Description(SITE, 0, "Months"), Description(SITE, 1, "years")])
    store = ParquetLabels(tmp_path / "s.parquet")
    assert store.search("month") == [(SITE, 0, "Months")]
    assert store.search("", limit=1) == [(SITE, 0, "Months")] and store.search("month", site="other") == []


def test_any_table_with_site_index_and_label_is_a_store(tmp_path: Path) -> None:
    table = pa.table({"label": ["b", None], "index": pa.array([5, 1], pa.uint16()), "site": pa.array([SITE] * 2).dictionary_encode(), "more": [1, 2]})  # fmt: skip
    pq.write_table(table, tmp_path / "mine.parquet")
    store = open_labels(tmp_path / "mine.parquet")
    assert store.label(SITE, 5) == "b" and store.label(SITE, 1) == ""
    found = store.describe(SITE, 5)
    assert found is not None and found.contexts == () and found.density is None


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"site": [SITE], "index": [1]}, "expected one column 'label'"),
        ({"site": [SITE], "index": ["1"], "label": ["x"]}, "the column 'index' holds string"),
        ({"site": [3], "index": [1], "label": ["x"]}, "the column 'site' holds int64"),
        ({"site": [SITE], "index": [-1], "label": ["x"]}, "names no feature"),
        ({"site": pa.array([None], pa.string()), "index": [1], "label": ["x"]}, "names no feature"),
        ({"site": [SITE], "index": [1], "label": ["x" * 50_000]}, "a text of 50,000 bytes"),
        (
            {"site": [SITE], "index": [1], "label": ["x"], "histogram": [[0] * 70_000]},
            "70,000 values in a row",
        ),
        (
            {"site": [SITE], "index": [1], "label": ["x"], "contexts": [[{"tokens": ["a"], "activations": [], "peak": 0}]]},
            "1 tokens, 0 activations",
        ),
        (
            {"site": [SITE], "index": [1], "label": ["x"], "contexts": [[{"tokens": ["a"], "activations": [1.0], "peak": 9}]]},
            "its peak at 9",
        ),
    ],
)  # fmt: skip
def test_a_table_that_is_no_store_is_refused_in_words(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(InputError, match=sentence):
        store = ParquetLabels(tmp_path / "s.parquet")
        store.label(SITE, 1)
        store.describe(SITE, 1)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    """A megabyte of text, referred to a million times by a dictionary: kilobytes on disk, a terabyte unpacked."""
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["a" * 1_000_000]))
    table = pa.table({"site": pa.array([SITE] * 1_000_000), "index": range(1_000_000), "label": long})
    pq.write_table(table.slice(0, 10), tmp_path / "s.parquet", compression="zstd")
    with pytest.raises(InputError, match="text of 1,000,000 bytes"):
        ParquetLabels(tmp_path / "s.parquet").label(SITE, 0)
    zeros = pa.table({"site": [SITE], "index": [0], "label": ["x"], "histogram": [[0] * 9_000_000]})
    pq.write_table(zeros, tmp_path / "z.parquet", compression="zstd")
    assert (tmp_path / "z.parquet").stat().st_size < 50_000
    with pytest.raises(InputError, match="9,000,000 values a column"):
        ParquetLabels(tmp_path / "z.parquet").label(SITE, 0)


def test_a_store_of_a_later_version_asks_for_an_update(tmp_path: Path) -> None:
    table = pa.table({"site": [SITE], "index": [0], "label": ["x"]})
    pq.write_table(table.replace_schema_metadata({"circuitsae": '{"schema": "circuitsae-labels/2"}'}), tmp_path / "s.parquet")  # fmt: skip
    with pytest.raises(InputError, match="pip install -U"):
        ParquetLabels(tmp_path / "s.parquet")


def test_a_store_that_can_not_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    def rows() -> Any:
        yield Description(SITE, 0, "x")
        raise InputError("stopped")

    with pytest.raises(InputError, match="stopped"):
        write_store(tmp_path / "s.parquet", rows())
    with pytest.raises(InputError, match="Can't write"):
        write_store(tmp_path / "no" / "s.parquet", [])
    assert list(tmp_path.iterdir()) == []


def _circuit() -> Circuit:
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=["a", "b"])
    graph.add_edge(f"{SITE}/7@0", "metric", weight=1.0)
    graph.add_edge(f"{SITE}/7@1", "metric", weight=1.0)
    graph.add_edge(f"{SITE}/8@1", "metric", weight=1.0)
    graph.add_edge(f"{SITE}/error@1", "metric", weight=1.0)
    return Circuit(graph)


def test_a_circuits_features_get_their_labels(tmp_path: Path) -> None:
    circuit = _circuit()
    circuit[f"{SITE}/8@1"]["label"] = "kept"
    assert label_circuit(circuit, open_labels({f"{SITE}/7": "months"})) == 2
    assert [circuit[key].get("label") for key in (f"{SITE}/7@0", f"{SITE}/7@1", f"{SITE}/8@1")] == ["months", "months", "kept"]  # fmt: skip
    assert "label" not in circuit[f"{SITE}/error@1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", f"node,label\n{SITE}/7,months\n"),
        ("l.tsv", f"site\tindex\tlabel\n{SITE}\t7\tmonths\n"),
        ("l.json", json.dumps({f"{SITE}/7": "months"})),
        ("l.jsonl", json.dumps({"site": SITE, "index": 7, "label": "months"})),
    ],
)
def test_tables_are_stores_by_their_suffix(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    store = open_labels(tmp_path / name)
    assert store.name == name and store.labels([(SITE, 7), (SITE, 8)]) == {(SITE, 7): "months"}
    assert store.describe(SITE, 7) == Description(SITE, 7, "months", name)
    assert open_labels(store) is store


def test_what_is_no_source_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in one of \.csv, .*\.parquet"):
        open_labels("labels.txt")
    with pytest.raises(UnknownNameError, match="did you mean 'neuronpedia'"):
        open_labels("neuronpedi:x")
    with pytest.raises(InputError, match="There is no file"):
        open_labels(tmp_path / "none.parquet")
    with pytest.raises(InputError, match="is not a feature's key"):
        open_labels({"metric": "x"})
    registry.register("labels", "wrong", lambda rest: 3)
    try:
        with pytest.raises(PluginError, match="gave int"):
            open_labels("wrong:")
    finally:
        registry.unregister("labels", "wrong")


def test_a_strangers_source_is_opened_by_its_name() -> None:
    registry.register("labels", "loud", lambda rest: Mapped({(SITE, 7): rest.upper()}))
    try:
        assert open_labels("loud:hello").label(SITE, 7) == "HELLO"
    finally:
        registry.unregister("labels", "loud")


@pytest.mark.parametrize("preset", ["tiny", "tiny-transcoders", "smollm2"])
def test_shipped_presets_have_labels_for_every_feature(preset: str) -> None:
    from circuitsae.dictionaries.loaders import load_dictionary
    from circuitsae.presets import find_preset

    store = preset_labels(preset)
    assert isinstance(store, ParquetLabels)
    dictionaries = [d for given in find_preset(preset).dictionaries for d in load_dictionary(given)]
    assert store.sites == [d.site for d in dictionaries]
    assert len(store) == sum(d.d_sae for d in dictionaries)
    assert {d["site"]: d["fingerprint"] for d in store.about["dictionaries"]} == {d.site: d.fingerprint for d in dictionaries}  # fmt: skip
    found = store.describe(dictionaries[-1].site, 0)
    assert found is not None and len(found.promoted) > 3 and len(found.suppressed) > 3
    labelled = sum(bool(store.label(d.site, index)) for d in dictionaries for index in range(d.d_sae))
    assert labelled > 0.6 * len(store)
    assert store.path.stat().st_size < 8_000_000


def test_a_traced_circuit_names_what_its_features_are_active_on() -> None:
    spliced = cs.load("tiny")
    circuit = cs.trace(spliced, cs.Task("The old keys", metric=cs.LogitDiff(" are", " is")), max_nodes=16)
    store = preset_labels(spliced.preset)
    assert store is not None
    assert label_circuit(circuit, store) == len(circuit.features)
    for key in circuit.features:
        found = store.describe(circuit[key]["site"], circuit[key]["index"])
        assert found is not None and found.label == circuit[key]["label"]
        assert found.largest is not None and math.isfinite(found.largest)
    assert preset_labels(None) is None
