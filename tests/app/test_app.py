"""The app as it is: it starts, traces through its own API, and says what is wrong in one sentence."""

import html
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

import pytest

gradio = pytest.importorskip("gradio", reason="the app needs the extra 'app'")
gradio_client = pytest.importorskip("gradio_client", reason="the app needs the extra 'app'")

PROMPT = "The keys to the cabinet"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an app started as a person starts it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "circuitsae", "serve", "--preset", "tiny", "--port", str(port), "--no-browser"]
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
    finally:
        _end(app)


def _end(app: "subprocess.Popen[bytes]") -> None:
    """Ends the app and the process that it runs in."""
    os.killpg(app.pid, signal.SIGTERM)
    app.wait(timeout=30)
    if app.stdout:
        app.stdout.close()


def test_trace_gives_the_drawing_and_the_strongest_features(address: str) -> None:
    client = gradio_client.Client(address, verbose=False)
    status, page, table = client.predict("tiny", PROMPT, " are", " is", 64, api_name="/trace")
    assert "logit of ' are' minus logit of ' is' = 2.98" in status
    assert page.startswith('<iframe sandbox="allow-scripts"')
    assert PROMPT in html.unescape(page)
    assert table["headers"][0] == "node"
    assert len(table["data"]) == 30
    assert table["data"][0][0] == "blocks.3.hook_resid_post/120@5"


def test_bad_input_is_said_in_one_sentence(address: str) -> None:
    client = gradio_client.Client(address, verbose=False)
    with pytest.raises(gradio_client.exceptions.AppError, match="2 tokens"):
        client.predict("tiny", PROMPT, " are is", " is", 64, api_name="/trace")


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from circuitsae.cli.main import run

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["serve"]) == 1
    assert "pip install 'circuitsae[app]'" in capsys.readouterr().err
