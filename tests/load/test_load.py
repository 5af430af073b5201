"""The app for the public under many users at once, hostile ones among them: all that honest ones ask is answered."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app needs the extra 'app'")
httpx = pytest.importorskip("httpx", reason="the app needs the extra 'app'")

PROMPT = "The keys to the cabinet"
LOOKUPS = 6
PATIENCE = 120.0
ROOM = 512 * 2**20  # the store's budget, and as much again for sessions and what the allocator keeps


def _await(work: Coroutine[Any, Any, Any]) -> Any:
    """Returns what a coroutine gives, run in a thread of its own: playwright's loop may be running in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@dataclass
class App:
    """An app that runs, and what its users saw."""

    url: str
    pid: int
    preset: str
    view: int = 0
    functions: dict[str, int] = field(default_factory=dict)
    lookups: list[float] = field(default_factory=list)
    traces: list[float] = field(default_factory=list)

    def memory(self) -> int:
        """Returns the bytes that its process holds, without the pages of weights that it has mapped from files.

        Nought where the system does not say so.
        """
        status = Path(f"/proc/{self.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:")), 0)

    async def look_up(self, client: Any, name: str, asked: Any) -> Any:
        """Returns what a look-up answers."""
        body = {"data": asked, "component_id": self.view, "session_hash": "anybody", "fn_name": name}
        answer = await client.post("/gradio_api/component_server", json=body)
        answer.raise_for_status()
        return answer.json()

    def question(self, session: str | None) -> dict[str, Any]:
        """Returns a request for a trace."""
        data = [self.preset, PROMPT, " are", " is", "", "attribution-patching", "gradient", 16]
        return {"data": data, "fn_index": self.functions["trace"], "session_hash": session}

    async def trace(self, client: Any, session: str) -> dict[str, Any]:
        """Asks for a trace as a page or a client does, and returns its answer."""
        (await client.post("/gradio_api/queue/join", json=self.question(session))).raise_for_status()
        async for message in _messages(client, session):
            if message["msg"] == "process_completed":
                assert message["success"], message
                return message["output"]["data"][0]
        raise AssertionError("The app ended the answer before it was complete.")


async def _messages(client: Any, session: str) -> AsyncIterator[dict[str, Any]]:
    async with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


@pytest.fixture(
    params=["tiny", pytest.param("smollm2", marks=[pytest.mark.smollm2, pytest.mark.slow])], ids=["tiny", "smollm2"]
)
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    """An app for the public in a process of its own, its model loaded; killed at the end, which frees its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "circuitsae", "serve", "--public", "--no-browser"]
    command += ["--preset", request.param, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    found = App(f"http://127.0.0.1:{port}", process.pid, request.param)
    try:
        _wait(found, process)
        yield found
        process.kill()
        process.wait(30)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


def _wait(app: App, process: "subprocess.Popen[bytes]") -> None:
    async def ready() -> bool:
        async with httpx.AsyncClient(base_url=app.url, timeout=PATIENCE) as client:
            config = (await client.get("/config")).json()
            app.view = next(c["id"] for c in config["components"] if c["props"].get("server_fns"))
            app.functions = {d["api_name"]: d["id"] for d in config["dependencies"]}
            return bool((await app.look_up(client, "status", app.preset))["ready"])

    for _ in range(600):
        assert process.poll() is None
        try:
            if _await(ready()):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("The app was not ready in time.")


async def _honest(app: App, client: Any, number: int) -> None:
    """Looks things up, traces, looks more things up."""
    shipped = f"shipped-{app.preset}"
    for turn in range(LOOKUPS):
        if turn == LOOKUPS // 2:
            began = time.monotonic()
            circuit = await app.trace(client, f"honest-{number}")
            app.traces.append(time.monotonic() - began)
            assert circuit["schema"].startswith("circuitsae/") and circuit["nodes"]
        began = time.monotonic()
        if turn % 2:
            assert await app.look_up(client, "status", app.preset)
        else:
            assert "payload" in await app.look_up(client, "circuit", shipped)
        app.lookups.append(time.monotonic() - began)
        await asyncio.sleep(0.05)


async def _hostile(app: App, client: Any) -> None:
    """Asks and never reads; asks without a session; sends too much; sends files; exports without end."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(400):
            yield b"x" * 2**16

    async def refused(status: int, path: str, **body: Any) -> None:
        try:
            answer = await client.post(path, **body)
        except httpx.TransportError:  # the app closed the connection while more was being sent
            return
        assert answer.status_code == status

    async def too_much() -> None:
        await refused(413, "/gradio_api/queue/join", content=endless())

    async def file() -> None:
        await refused(403, "/gradio_api/upload", files={"files": b"x" * 2**16})

    unread = [client.post("/gradio_api/queue/join", json=app.question("unread")) for _ in range(12)]
    alone = [client.post("/gradio_api/call/trace", json={"data": app.question(None)["data"]}) for _ in range(12)]
    exports = [
        app.look_up(client, "files", {"id": f"shipped-{app.preset}", "format": ("html", "graphml")[n % 2]})
        for n in range(40)
    ]
    await asyncio.gather(*unread, *alone, *exports, *(too_much() for _ in range(5)), *(file() for _ in range(5)))


async def _everybody(app: App, users: int) -> None:
    limits = httpx.Limits(max_connections=400)

    def client() -> Any:
        return httpx.AsyncClient(base_url=app.url, timeout=PATIENCE, limits=limits)

    # Clients of their own: a connection that the app closed on the one is not to be given to the other.
    async with client() as hostile, client() as honest:
        await asyncio.gather(_hostile(app, hostile), *(_honest(app, honest, number) for number in range(users)))


def test_honest_users_are_answered_whatever_others_do(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    users = 50 if app.preset == "tiny" else 25
    before, began = app.memory(), time.monotonic()
    _await(_everybody(app, users))
    grown, took = app.memory() - before, time.monotonic() - began
    with capsys.disabled():
        quick, slow = sorted(app.lookups), sorted(app.traces)
        sys.stdout.write(
            f"\n{users} users on {app.preset}, {took:.1f} s: look-ups p50 {1000 * quick[len(quick) // 2]:.0f} ms, "
            f"p95 {1000 * quick[int(0.95 * len(quick))]:.0f} ms; traces p50 {slow[len(slow) // 2]:.1f} s, "
            f"at most {slow[-1]:.1f} s; {grown / 2**20:+.0f} MB\n"
        )
    assert len(app.lookups) == LOOKUPS * users and len(app.traces) == users
    assert grown < ROOM
