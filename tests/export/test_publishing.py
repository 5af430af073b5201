"""The hub's dataset: what is in its folder, its card, and the upload as a loopback hub sees it."""

import base64
import csv
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from circuitsae.cli.main import run
from circuitsae.errors import FetchError, InputError
from circuitsae.export.publishing import dataset_card, push_dataset, write_dataset
from circuitsae.graph.circuit import Circuit
from tests.synthetic import synthetic_circuit


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload talks to; keeps the files that were committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.tokens: set[str | None] = set()
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("authorization"))
        answer: dict[str, Any] = {}
        base = f"http://127.0.0.1:{self.server.server_port}"
        if self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            answer = {"url": f"{base}/datasets/someone/circuits"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif self.path.startswith("/api/datasets/someone/circuits/preupload/main"):
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif self.path.startswith("/api/datasets/someone/circuits/commit/main"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    self.server.messages.append(line["value"]["summary"])
                else:
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = "0" * 40
            answer = {"commitUrl": f"{base}/datasets/someone/circuits/commit/{oid}", "commitOid": oid, "hookOutput": ""}
        self._send(self.server.status, answer)

    def do_GET(self) -> None:
        self._send(self.server.status, {"id": "someone/circuits", "sha": "0" * 40, "siblings": []})

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield hub
    hub.shutdown()
    hub.server_close()
    thread.join()


@pytest.fixture(scope="module")
def circuits() -> dict[str, Circuit]:
    return {"names": synthetic_circuit(seed=1, n_features=12), "keys": synthetic_circuit(seed=2, n_features=8)}


def test_circuits_arrive_on_the_hub_as_they_are(hub: Hub, circuits: dict[str, Circuit], tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{hub.server_port}"
    address = push_dataset(
        circuits, "someone/circuits", private=True, licence="mit", message="two", token="hf_test", endpoint=endpoint
    )
    assert address == f"{endpoint}/datasets/someone/circuits"
    assert hub.made[0]["type"] == "dataset" and (
        hub.made[0].get("private") is True or hub.made[0].get("visibility") == "private"
    )
    assert hub.messages == ["two"] and hub.tokens == {"Bearer hf_test"}
    parts = [("circuits", "json"), ("pages", "html"), ("pictures", "svg"), ("nodes", "csv"), ("edges", "csv")]
    expected = {f"{folder}/{name}.{suffix}" for name in circuits for folder, suffix in parts}
    assert set(hub.files) == expected | {"README.md"}
    for name, circuit in circuits.items():
        assert Circuit.from_json(hub.files[f"circuits/{name}.json"]) == circuit
        rows = list(csv.DictReader(hub.files[f"edges/{name}.csv"].decode().splitlines()))
        assert len(rows) == circuit.graph.number_of_edges()


@pytest.mark.parametrize(("status", "sentence"), [(401, "hf auth login"), (403, "status 403"), (409, "status 409")])
def test_a_hub_that_refuses_is_said(hub: Hub, circuits: dict[str, Circuit], status: int, sentence: str) -> None:
    hub.status = status
    if status == 409:  # the repository is there already, which is fine; then the commit is refused
        sentence = "status"
    with pytest.raises(FetchError, match=sentence):
        push_dataset(circuits, "someone/circuits", token="hf_test", endpoint=f"http://127.0.0.1:{hub.server_port}")


def test_a_hub_that_is_not_there_is_said(
    hub: Hub, circuits: dict[str, Circuit], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FetchError, match="The upload to someone/circuits failed: "):
        push_dataset(circuits, "someone/circuits", token="hf_test", endpoint="http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        push_dataset(circuits, "someone/circuits", token="hf_test", endpoint="http://127.0.0.1:9")


def test_the_card_says_what_each_circuit_is(circuits: dict[str, Circuit]) -> None:
    card = dataset_card(circuits, "cc-by-4.0")
    head = card.split("---")[1]
    assert '"config_name": "nodes", "data_files": "nodes/*.csv"' in head and 'license: "cc-by-4.0"' in head
    for name, circuit in circuits.items():
        assert f"![{name}](pictures/{name}.svg)" in card
        assert f"- prompt: ` {circuit.prompt} `" in card


def test_text_in_the_card_stays_text() -> None:
    circuit = synthetic_circuit(seed=1, n_features=4)
    circuit.graph.graph["prompt"] = "```\n---\n# <script>alert(1)</script> ![x](http://evil) `` |"
    card = dataset_card({"a": circuit})
    (line,) = [line for line in card.splitlines() if "evil" in line]
    assert line == "- prompt: ```` ``` --- # <script>alert(1)</script> ![x](http://evil) `` | ````"


def test_the_folder_alone_can_be_written(circuits: dict[str, Circuit], tmp_path: Path, capsys: Any) -> None:
    for name, circuit in circuits.items():
        circuit.save(tmp_path / f"{name}.json")
    paths = [str(tmp_path / f"{name}.json") for name in circuits]
    assert run(["push", *paths, "--folder", str(tmp_path / "out"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 11
    assert Circuit.load(tmp_path / "out" / "circuits" / "keys.json") == circuits["keys"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--folder", "x", "--to", "a/b"], "either --to"),
        ([], "either --to"),
        (["--to", "circuits"], "no dataset's name"),
        (["--folder", "x", "--licence", "a: b"], "can't be used"),
    ],
)
def test_arguments_that_can_not_be_used(
    arguments: list[str], sentence: str, circuits: dict[str, Circuit], tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    circuits["keys"].save("keys.json")
    assert run(["push", "keys.json", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_names_that_would_leave_the_folder_are_refused(circuits: dict[str, Circuit], tmp_path: Path) -> None:
    for name in ("../x", "a/b", ".hidden", "", "x" * 200):
        with pytest.raises(InputError, match="can't be a file's"):
            write_dataset({name: circuits["keys"]}, tmp_path / "d")
    with pytest.raises(InputError, match="at least one"):
        write_dataset({}, tmp_path / "d")
    assert not (tmp_path / "d").exists()
