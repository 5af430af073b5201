"""What the app refuses before anything reads it: foreign names and pages, files, bodies that are too large."""

import asyncio
from typing import Any

import pytest

from gradio_app.guard import Guard

LIMIT = 1000


def ask(
    headers: dict[str, str],
    *,
    hosts: list[str] | None = None,
    path: str = "/gradio_api/queue/join",
    chunks: tuple[bytes, ...] = (b"{}",),
) -> tuple[int, str, int]:
    """Returns the answer's status and text, and how many bytes of the body the app within was given."""
    given = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    given.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[Any] = []
    read = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        while True:
            message = await receive()
            read += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"within"})

    async def receive() -> Any:
        return given.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }
    asyncio.run(Guard(app, body_bytes=LIMIT, hosts=hosts)(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    return sent[0]["status"], sent[1]["body"].decode(), read


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST.:1", "a.localhost", "192.168.0.7"]
)
def test_loopback_names_and_addresses_reach_the_local_app(host: str) -> None:
    assert ask({"host": host}, hosts=[])[:2] == (200, "within")
    assert ask({"host": host, "origin": f"http://{host}"}, hosts=[])[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:7860", "", "[::1", "a@b"]
)
@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/join", "/gradio_api/mcp/"])
def test_a_foreign_name_for_this_machine_is_refused(host: str, path: str) -> None:
    status, text, read = ask({"host": host}, hosts=[], path=path)
    assert (status, read) == (403, 0) and "--allow-host" in text


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://6.6.6.6", "http://localhost@evil.example", "x"]
)
def test_another_sites_page_is_refused(origin: str) -> None:
    status, text, read = ask({"host": "127.0.0.1:7860", "origin": origin}, hosts=[])
    assert (status, read) == (403, 0) and "--allow-host" in text


def test_a_name_that_is_allowed_is_a_host_and_an_origin() -> None:
    headers = {"host": "My-Box.local:7860", "origin": "http://my-box.local:7860"}
    assert ask(headers, hosts=["my-box.local"])[0] == 200
    assert ask(headers, hosts=["other.local"])[0] == 403
    assert ask({"host": "localhost", "origin": "http://my-box.local"}, hosts=["my-box.local"])[0] == 200


def test_an_app_for_the_public_has_any_name() -> None:
    assert ask({"host": "somebody-app.hf.space", "origin": "https://huggingface.co"})[0] == 200


@pytest.mark.parametrize("length", ["1001", "99999999999999999999", "-1", "many", "²"])
def test_a_body_that_says_it_is_too_large_is_not_read(length: str) -> None:
    status, text, read = ask({"content-length": length})
    assert (status, read) == (413, 0) and "1,000 bytes" in text


def test_a_body_that_does_not_say_its_length_is_counted() -> None:
    status, text, read = ask({}, chunks=(b"x" * 400,) * 50)
    assert (status, read) == (413, 800) and "1,000 bytes" in text
    assert ask({}, chunks=(b"x" * 400, b"x" * 400, b"x" * 200)) == (200, "within", 1000)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/gradio_api/upload", "text/plain"),
        ("/gradio_api/upload/", "multipart/form-data; boundary=x"),
        ("/gradio_api/component_server", "Multipart/form-data; boundary=x"),
    ],
)
def test_files_are_taken_nowhere(path: str, kind: str) -> None:
    assert ask({"host": "localhost", "content-type": kind}, path=path, hosts=[]) == (403, "This app takes no files.", 0)
