"""What a stranger's file may reach: each target takes bytes and gives a result or the package's own error.

Hypothesis runs them in `test_strangers_files.py`, atheris one at a time for as long as is wanted (`__main__.py`).
"""

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import circuitsae as cs
from circuitsae import registry
from circuitsae.errors import CircuitsaeError, InputError
from circuitsae.export.circuit_tracer import from_circuit_tracer
from circuitsae.export.tables import from_cytoscape
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.labels import read_labels
from circuitsae.labels.neuronpedia import NeuronpediaExport
from circuitsae.labels.parquet import ParquetLabels
from circuitsae.presets import read_preset
from circuitsae.task.reading import read_tasks
from circuitsae.task.vocabulary import Vocabulary
from gradio_app.exporting import FORMATS, export_files
from gradio_app.forms import read_form
from gradio_app.links import decode_state
from gradio_app.operations import read_edits
from gradio_app.settings import Settings
from tests.synthetic import synthetic_circuit

EXPORTERS = ("json", "node-link", "graphml", "gexf", "dot", "csv", "html", "svg", "circuit-tracer", "cytoscape")
SETTINGS = Settings("tiny", ("tiny", "smollm2"))


def circuit(data: bytes) -> None:
    """The saved form; what is read must be written and drawn too."""
    _show(Circuit.from_json(data))


def circuit_tracer(data: bytes) -> None:
    """circuit-tracer's graphs."""
    _show(from_circuit_tracer(data))


def cytoscape(data: bytes) -> None:
    """Cytoscape's elements."""
    _show(from_cytoscape(data))


def parquet(data: bytes) -> None:
    """Label stores: opened, every row looked at, every label searched."""
    with _file("labels.parquet", data) as path:
        store = ParquetLabels(path)
        for site, rows in list(store._index().items()):
            for index in list(rows)[:20]:
                found = store.describe(site, index)
                assert found is not None
                found.to_dict()
        store.search("a")


def csv(data: bytes) -> None:
    """Labels in CSV."""
    with _file("labels.csv", data) as path:
        read_labels(path)


def json_labels(data: bytes) -> None:
    """Labels in JSON."""
    with _file("labels.json", data) as path:
        read_labels(path)


def jsonl_labels(data: bytes) -> None:
    """Labels in JSON lines."""
    with _file("labels.jsonl", data) as path:
        read_labels(path)


def neuronpedia(data: bytes) -> None:
    """Neuronpedia's export, packed."""
    with _file("batch-0.jsonl.gz", data) as path:
        store = NeuronpediaExport(f"blocks.0.hook_mlp_out={path}", max_unpacked=1_000_000)
        store.label("blocks.0.hook_mlp_out", 0)


def neuronpedia_unpacked(data: bytes) -> None:
    """Neuronpedia's export, unpacked."""
    with _file("batch-0.jsonl", data) as path:
        store = NeuronpediaExport(f"blocks.0.hook_mlp_out={path}", max_unpacked=1_000_000)
        store.label("blocks.0.hook_mlp_out", 0)


def preset(data: bytes) -> None:
    """A preset's TOML file."""
    with _file("preset.toml", data) as path:
        read_preset(path)


def tasks_jsonl(data: bytes) -> None:
    """Task sets in JSON lines."""
    _tasks(data, "tasks.jsonl")


def tasks_json(data: bytes) -> None:
    """Task sets in a JSON list."""
    _tasks(data, "tasks.json")


def tasks_csv(data: bytes) -> None:
    """Task sets in CSV."""
    _tasks(data, "tasks.csv")


def tasks_parquet(data: bytes) -> None:
    """Task sets in Parquet."""
    _tasks(data, "tasks.parquet")


def link(data: bytes) -> None:
    """What stands after `?c=`, and the form in it."""
    state = decode_state(data.decode("latin-1"))
    read_form(state.get("form") or {}, SETTINGS)


def form(data: bytes) -> None:
    """A form's fields, interventions, and what the page shows, as JSON."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        raise InputError("It is not JSON.") from None
    asked = read_form(given, SETTINGS)
    for format in FORMATS:
        export_files(_circuit(), format, asked, given)
    read_edits(given.get("edits"))


@functools.cache
def _circuit() -> Circuit:
    return synthetic_circuit(seed=1, n_features=5, n_edges=12)


@functools.cache
def _vocabulary() -> Vocabulary:
    return cs.load("tiny", sites=("blocks.3.hook_resid_post",)).vocabulary


def _tasks(data: bytes, name: str) -> None:
    with _file(name, data) as path:
        read = read_tasks(path, _vocabulary())
        read.records()
        _ = read.fingerprint
        read.write(path.with_name("written.jsonl"))
        assert [t.prompt for t in read_tasks(path.with_name("written.jsonl"), _vocabulary())] == [
            t.prompt for t in read
        ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        *(circuit, circuit_tracer, cytoscape, parquet, csv),
        *(json_labels, jsonl_labels, neuronpedia, neuronpedia_unpacked, preset),
        *(tasks_jsonl, tasks_json, tasks_csv, tasks_parquet, link, form),
    )
}


def survives(target: Callable[[bytes], None], data: bytes) -> bool:
    """Runs a target and returns whether it gave a result; anything but that or the package's own error is raised."""
    try:
        target(data)
    except CircuitsaeError as error:
        assert str(error).strip()
        return False
    return True


class _file:
    """A file of its own for a moment."""

    def __init__(self, name: str, data: bytes) -> None:
        self._name, self._data = name, data

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / self._name
        path.write_bytes(self._data)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _show(found: Circuit) -> None:
    assert Circuit.from_json(found.to_json()) == found
    for name in EXPORTERS:
        registry.get("exporters", name)(found)
    found.report()
