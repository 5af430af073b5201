"""The app through its own server: it starts, its named endpoints give what the library gives, errors are sentences."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

import circuitsae as cs

gradio = pytest.importorskip("gradio", reason="the app needs the extra 'app'")
gradio_client = pytest.importorskip("gradio_client", reason="the app needs the extra 'app'")

MCP = importlib.util.find_spec("mcp") is not None
PROMPT = "The keys to the cabinet"
ASKED = ("tiny", PROMPT, " are", " is")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an app started as a person starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "circuitsae", "serve", "--preset", "tiny", "--port", str(port), "--no-browser"]
    command += ["--mcp"] if MCP else []
    app = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert app.poll() is None, f"the app ended: {app.stdout.read().decode() if app.stdout else ''}"
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield url
        _end(app)
        with socket.socket() as probe:  # one process: once it has gone nothing listens any more
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if app.poll() is None:
            os.killpg(app.pid, signal.SIGKILL)


def _end(app: "subprocess.Popen[bytes]") -> None:
    """Ends the process that was started, and no other, as a service manager does."""
    app.terminate()
    app.wait(timeout=30)
    if app.stdout:
        app.stdout.close()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return gradio_client.Client(address, verbose=False)


@pytest.fixture(scope="module")
def traced(client: Any) -> dict[str, Any]:
    return client.predict(*ASKED, nodes=24, api_name="/trace")


def test_the_page_comes_at_once_and_names_no_other_host(address: str) -> None:
    page = urllib.request.urlopen(address, timeout=60).read().decode()
    assert "CircuitGraph" in page and "fonts.googleapis" not in page


def test_the_page_announces_its_parts_and_nothing_else_does(address: str) -> None:
    with urllib.request.urlopen(address, timeout=60) as page:
        named = re.findall(r"<\./(assets/[^>]+)>", page.headers["Link"])
    assert len(named) > 20
    for name in named[:: len(named) // 5]:
        with urllib.request.urlopen(f"{address}/{name}", timeout=60) as file:
            assert file.status == 200 and "Link" not in file.headers


@pytest.mark.parametrize("path", ["/", "/gradio_api/info", *(["/gradio_api/mcp/schema"] if MCP else [])])
def test_a_name_that_was_made_to_resolve_here_is_refused(address: str, path: str) -> None:
    for headers in ({"Host": "evil.example:7860"}, {"Origin": "https://evil.example"}):
        status, text = _refused(urllib.request.Request(address + path, headers=headers))
        assert status == 403 and "--allow-host" in text


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("upload", {"Content-Type": "multipart/form-data; boundary=x"}, 403),
        ("queue/join", {"Content-Length": str(2**30)}, 413),
        ("run/trace", {"Content-Type": "application/json"}, 404),  # past the queue
    ],
)
def test_files_large_bodies_and_calls_past_the_queue_are_refused(
    address: str, path: str, headers: dict[str, str], status: int
) -> None:
    body = json.dumps({"data": [*ASKED, "", "attribution-patching", "gradient", 16]}).encode()
    assert _refused(urllib.request.Request(f"{address}/gradio_api/{path}", body, headers, method="POST"))[0] == status


def _refused(request: urllib.request.Request) -> tuple[int, str]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    with refused.value as answer:
        return answer.code, answer.read().decode()


def test_only_named_endpoints_are_public_and_all_are_described(client: Any) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/trace", "/intervene", "/ablate", "/effects", "/export"}
    for about in endpoints.values():
        assert about["description"] and all(p["label"] for p in about["parameters"])


@pytest.mark.skipif(not MCP, reason="mcp is not installed")
def test_the_endpoints_are_tools_of_an_mcp_server(address: str) -> None:
    tools = json.load(urllib.request.urlopen(f"{address}/gradio_api/mcp/schema", timeout=60))
    assert {tool["name"] for tool in tools} == {"trace", "intervene", "ablate", "effects", "export"}
    trace = next(tool for tool in tools if tool["name"] == "trace")["inputSchema"]
    assert trace["properties"]["prompt"]["description"] == "The text that the model continues."
    assert "prompt" in trace["required"] and "patch" not in trace["required"]


def test_trace_gives_a_circuit_that_the_library_reads(traced: dict[str, Any]) -> None:
    circuit = cs.Circuit.from_json(json.dumps(traced))
    assert circuit.prompt == PROMPT and len(circuit.features) <= 24
    assert circuit.graph.graph["metric_value"] == pytest.approx(2.98, abs=0.01)


def test_ablate_and_intervene_agree(client: Any, traced: dict[str, Any]) -> None:
    nodes = cs.Circuit.from_json(json.dumps(traced)).strongest(2, kind="feature")
    together = client.predict(*ASKED, nodes, api_name="/ablate")
    assert set(together["effects"]) == set(nodes)
    one = client.predict(*ASKED, [{"key": nodes[0], "op": "ablate"}], api_name="/intervene")
    assert one["effect"] == pytest.approx(together["effects"][nodes[0]], abs=1e-4)
    assert one["metric_after"] - one["metric_before"] == pytest.approx(one["effect"])
    assert all(len(row) == 6 for row in one["next"])
    assert {row[5] for row in one["next"]} == {"answer", "foil", ""}


def test_effects_lists_the_strongest(client: Any) -> None:
    records = client.predict(*ASKED, top=5, api_name="/effects")
    sizes = [abs(record["effect"]) for record in records]
    assert len(records) == 5 and sizes == sorted(sizes, reverse=True)


def test_export_gives_files(client: Any, traced: dict[str, Any]) -> None:
    files = client.predict(traced, "csv", api_name="/export")
    assert sorted(name.split(".", 1)[1] for name in files) == ["edges.csv", "nodes.csv"]
    program = client.predict(traced, "python", api_name="/export")
    assert "cs.LogitDiff(' are', ' is')" in next(iter(program.values()))


@pytest.mark.parametrize(
    ("arguments", "api_name", "text"),
    [
        (("tiny", PROMPT, "are is", " is"), "/trace", "2 tokens"),
        (("tinny", PROMPT, " are", " is"), "/trace", "did you mean"),
        (("tiny", " ", " are", " is"), "/effects", "prompt is empty"),
        ((*ASKED, [{"key": "nonsense", "op": "ablate"}]), "/intervene", "nonsense"),
        (({"schema": "x"}, "csv"), "/export", "schema"),
    ],
)
def test_bad_input_is_said_in_one_sentence(client: Any, arguments: tuple[Any, ...], api_name: str, text: str) -> None:
    with pytest.raises(gradio_client.exceptions.AppError, match=text):
        client.predict(*arguments, api_name=api_name)


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from circuitsae.cli.main import run

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve"]) == 1
    assert "pip install 'circuitsae[app]'" in capsys.readouterr().err
