"""Neuronpedia: its API as a loopback server speaks it, with answers of the shape that it gives, and its export files."""

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsae.errors import FetchError, InputError
from circuitsae.labels import open_labels
from circuitsae.labels.neuronpedia import (
    NeuronpediaExport,
    NeuronpediaLabels,
    description_of,
    neuronpedia_ids,
)

SITE = "blocks.8.hook_resid_pre"
SOURCE = "gpt2-small/8-res-jb"

# The parts of an answer of /api/feature/gpt2-small/8-res-jb/14057, shortened; texts are made up.
ANSWER: dict[str, Any] = {
    "modelId": "gpt2-small",
    "layer": "8-res-jb",
    "index": "14057",
    "sourceSetName": "res-jb",
    "maxActApprox": 38.25,
    "hasVector": False,
    "hookName": None,
    "neg_str": [" never", "ness"],
    "neg_values": [-0.75, -0.5],
    "pos_str": [" months", "days"],
    "pos_values": [1.25, 1.0],
    "frac_nonzero": 0.0025,
    "freq_hist_data_bar_heights": [12, 4, 1],
    "freq_hist_data_bar_values": [1.0, 3.0, 5.0],
    "logits_hist_data_bar_heights": [1],
    "logits_hist_data_bar_values": [0.5],
    "activations": [
        {"tokens": ["In", " May", "."], "values": [0, 38.25, 0], "maxValue": 38.25, "maxValueTokenIndex": 1},
        {"tokens": ["a"] * 100, "values": [0.0] * 70 + [40.5] + [0.5] * 29, "maxValue": 40.5, "maxValueTokenIndex": 70},
    ],
    "explanations": [
        {"id": "x", "description": " names of months ", "explanationModelName": "gpt-4o-mini", "typeName": "oai", "scores": []},
        {"id": "y", "description": "dates", "scores": []},
    ],
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Answers from a table of path to (status, headers, body); counts what it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[tuple[int, dict[str, str], bytes]]] = {}
        self.asked: list[tuple[str, str | None]] = []

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("x-api-key")))
        answers = self.server.answers.get(self.path, [(404, {}, b'{"error": "not found"}')])
        status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    monkeypatch.setattr("circuitsae.labels.neuronpedia.time.sleep", lambda seconds: None)
    server = Server()
    monkeypatch.setenv("CIRCUITSAE_NEURONPEDIA", server.base)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def _path(index: int) -> str:
    return f"/api/feature/{SOURCE}/{index}"


def test_a_features_label_and_all_that_is_known_of_it(server: Server) -> None:
    server.answers[_path(14057)] = [(200, {}, json.dumps(ANSWER).encode())]
    store = open_labels(f"neuronpedia:{SITE}={SOURCE}")
    found = store.describe(SITE, 14057)
    assert found is not None
    assert (found.label, found.source, found.density, found.largest) == (
        "names of months",
        "neuronpedia",
        0.0025,
        38.25,
    )
    assert found.promoted == ((" months", 1.25), ("days", 1.0)) and found.suppressed[0] == (" never", -0.75)
    assert (found.histogram, found.bin_width) == ((12, 4, 1), 2.0)
    assert found.address == "https://www.neuronpedia.org/gpt2-small/8-res-jb/14057"
    strongest, second = found.contexts
    assert strongest.activation == 40.5 and len(strongest.tokens) == 24 + 1 + 8 and strongest.peak == 24
    assert second.marked() == "In[[ May]]."


def test_an_answer_is_asked_for_once_also_by_a_later_program(server: Server) -> None:
    server.answers[_path(1)] = [(200, {}, json.dumps(ANSWER).encode())]
    first = NeuronpediaLabels(SOURCE)
    assert first.label(SITE, 1) == first.label(SITE, 1) == "names of months"
    again = NeuronpediaLabels(SOURCE)
    assert again.describe(SITE, 1) == first.describe(SITE, 1)
    assert len(server.asked) == 1
    assert NeuronpediaLabels(SOURCE, cache=None).label(SITE, 1) == "names of months"
    assert len(server.asked) == 2


def test_a_feature_that_is_not_there_has_no_label(server: Server) -> None:
    store = NeuronpediaLabels(SOURCE)
    assert store.describe(SITE, 7) is None and store.label("blocks.0.hook_resid_pre", 7) == ""
    assert [path for path, _ in server.asked] == [_path(7)]


def test_labels_of_many_features_at_once(server: Server) -> None:
    for index in range(6):
        answer = {**ANSWER, "explanations": [{"description": f"label {index}"}] if index else []}
        server.answers[_path(index)] = [(200, {}, json.dumps(answer).encode())]
    found = NeuronpediaLabels(SOURCE).labels([(SITE, n) for n in range(8)] + [("elsewhere", 1)])
    assert found == {(SITE, n): f"label {n}" for n in range(1, 6)}


def test_a_busy_server_is_asked_again(server: Server) -> None:
    good = (200, {}, json.dumps(ANSWER).encode())
    server.answers[_path(1)] = [(503, {}, b""), (429, {"Retry-After": "1"}, b""), good]
    assert NeuronpediaLabels(SOURCE).label(SITE, 1) == "names of months"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "sentence", "asked"),
    [
        ((500, {}, b""), "can't be reached: status 500", 4),
        ((403, {}, b""), "refuses .* set NEURONPEDIA_API_KEY", 1),
        ((400, {}, b""), "can't answer for .*: status 400", 1),
        ((200, {}, b"[1, 2]"), "something else than a feature", 1),
        ((200, {}, b"<html>"), "can't be reached: Expecting value", 4),
        ((200, {}, b"[" * 100_000), "nested too deep", 4),
        ((302, {"Location": "http://127.0.0.2:9/x"}, b""), "which is another host", 1),
    ],
)
def test_what_goes_wrong_is_said_in_a_sentence(server: Server, answer: Any, sentence: str, asked: int) -> None:
    server.answers[_path(1)] = [answer]
    with pytest.raises(FetchError, match=sentence):
        NeuronpediaLabels(SOURCE).label(SITE, 1)
    assert len(server.asked) == asked
    with pytest.raises(FetchError):
        NeuronpediaLabels(SOURCE).labels([(SITE, 1)])


def test_an_answer_over_the_limit_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitsae.labels.neuronpedia._LARGEST_ANSWER", 100)
    server.answers[_path(1)] = [(200, {}, b" " * 101)]
    with pytest.raises(FetchError, match="over 100 bytes"):
        NeuronpediaLabels(SOURCE).label(SITE, 1)


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitsae.labels.neuronpedia.time.sleep", lambda seconds: None)
    with pytest.raises(FetchError, match=r"Neuronpedia \(http://127\.0\.0\.1:9\) can't be reached"):
        NeuronpediaLabels(SOURCE, base="http://127.0.0.1:9", cache=None).label(SITE, 1)


def test_the_key_goes_to_the_server_and_into_no_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "sk-secret")
    server.answers[_path(1)] = [(200, {}, json.dumps(ANSWER).encode())]
    NeuronpediaLabels(SOURCE).label(SITE, 1)
    assert server.asked == [(_path(1), "sk-secret")]
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files and not any("sk-secret" in file.read_text() for file in files)


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("gpt2-small/8-res-jb", "blocks.8.hook_resid_pre"),
        ("gemma-2-2b/20-gemmascope-res-16k", "blocks.20.hook_resid_post"),
        ("gemma-2-2b/3-gemmascope-transcoder-16k", "blocks.3.hook_mlp_out"),
        ("gemma-2-2b/3-gemmascope-mlp-65k", "blocks.3.hook_mlp_out"),
        ("gemma-2-2b/3-gemmascope-att-16k", "blocks.3.attn.hook_z"),
    ],
)
def test_the_site_of_well_known_sources_is_known(name: str, site: str) -> None:
    assert NeuronpediaLabels(name).sources == {site: name}


@pytest.mark.parametrize(
    "name", ["", "gpt2-small", "a/b/c", "../../etc/passwd", "a/..", "a/b?c", "a/b#c", "gpt2-small/mystery", "x=a/b c"]
)
def test_names_that_are_no_source_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        NeuronpediaLabels(name)


def test_dictionaries_say_what_they_are_called_there() -> None:
    class Known:
        site = SITE
        metadata = {"neuronpedia_id": SOURCE}

    class Unknown:
        site = "other"
        metadata: dict[str, Any] = {}

    assert neuronpedia_ids([Known(), Unknown()]) == {SITE: SOURCE}
    assert NeuronpediaLabels(sites={SITE: SOURCE}).sources == {SITE: SOURCE}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(ANSWER)) | st.just("description"), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(ANSWER)), JSON, max_size=6))
def test_any_answer_gives_a_description(answer: dict[str, Any]) -> None:
    found = description_of({**ANSWER, **answer}, SITE, 1)
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A folder as Neuronpedia exports it: v1/MODEL/SOURCE/{explanations,features,activations}/batch-N.jsonl.gz."""
    folder = tmp_path / "v1" / "gpt2-small" / "8-res-jb"
    lines: dict[str, list[dict[str, Any]]] = {
        "explanations/batch-0": [{"index": str(n), "description": f"label {n}", "modelId": "gpt2-small"} for n in range(4)],
        "explanations/batch-10": [{"index": "10", "description": "ten"}, {"index": "3", "description": "a second one"}],
        "features/batch-0": [{**ANSWER, "index": str(n), "frac_nonzero": n / 100} for n in range(4)],
        "features/batch-10": [{**ANSWER, "index": "10"}],
        "activations/batch-0": [{**row, "index": "2"} for row in ANSWER["activations"]],
    }  # fmt: skip
    for name, rows in lines.items():
        file = folder / f"{name}.jsonl.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return folder


def test_export_files_are_a_store(exported: Path) -> None:
    store = open_labels(f"neuronpedia-export:{exported}")
    assert isinstance(store, NeuronpediaExport)
    assert [store.label(SITE, n) for n in (0, 3, 10, 11)] == ["label 0", "label 3", "ten", ""]
    assert store.labels([(SITE, 10), (SITE, 99), ("x", 1)]) == {(SITE, 10): "ten"}
    found = store.describe(SITE, 2)
    assert found is not None and found.density == 0.02 and found.label == "label 2" and len(found.contexts) == 2
    other = store.describe(SITE, 10)
    assert other is not None and other.contexts == () and other.promoted[0] == (" months", 1.25)
    assert store.describe(SITE, 99) is None and store.describe("x", 1) is None


def test_one_file_of_explanations_is_a_store(exported: Path) -> None:
    file = exported / "explanations" / "batch-0.jsonl.gz"
    store = NeuronpediaExport(f"{SITE}={file}")
    assert store.label(SITE, 1) == "label 1"
    with pytest.raises(InputError, match="does not say which site"):
        NeuronpediaExport(file)
    with pytest.raises(InputError, match="no folder or file"):
        NeuronpediaExport(exported / "nothing")


def test_a_zip_bomb_and_damage_are_refused(exported: Path) -> None:
    file = exported / "explanations" / "batch-0.jsonl.gz"
    file.write_bytes(gzip.compress(b" " * 20_000_000))
    with pytest.raises(InputError, match="which is refused"):
        NeuronpediaExport(exported).label(SITE, 0)
    file.write_bytes(gzip.compress(b"\n" * 3_000_000))
    with pytest.raises(InputError, match=r"over 1,000,000 bytes"):
        NeuronpediaExport(exported, max_unpacked=1_000_000).label(SITE, 0)
    for damaged in (b"not gzip", gzip.compress(b'{"index": "1"}')[:-9], gzip.compress(b"{"), gzip.compress(b"3")):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="batch-0"):
            NeuronpediaExport(exported).label(SITE, 0)
