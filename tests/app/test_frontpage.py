"""What the page brings with it, so that less is asked for afterwards."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app needs the extra 'app'")

import circuitsae as cs
from gradio_app.frontpage import FrontPage
from gradio_app.preload import component_files, link_header
from gradio_app.service import Service
from gradio_app.settings import make_settings
from gradio_app.view import page_head

KINDS = frozenset({"html", "textbox", "dropdown", "button", "slider"})


def test_the_announced_files_are_there_and_belong_to_the_components() -> None:
    folder = resources.files("gradio").joinpath("templates", "frontend", "assets")
    files = component_files(KINDS)
    assert all(folder.joinpath(name).is_file() for name in files)
    # This gradio's bundle is read: with each kind there is more.
    known = [len(component_files(frozenset(sorted(KINDS)[:n]))) for n in range(len(KINDS) + 1)]
    assert known == sorted(set(known)) and known[0] > 0
    assert component_files(frozenset({"no-such-kind"})) == component_files(frozenset())


def test_scripts_and_styles_are_announced_each_in_its_way() -> None:
    assert link_header(["a.js", "b.css"]) == (
        "<./assets/a.js>; rel=modulepreload, <./assets/b.css>; rel=preload; as=style; crossorigin"
    )


def test_the_first_circuit_comes_with_the_page_whatever_its_text_says() -> None:
    circuit = cs.Circuit.from_json(Path("gradio_app/circuits/tiny.json").read_bytes())
    circuit.graph.graph["prompt"] = hostile = "</script><script>window.ran = 1</script><!--"
    service = Service(make_settings("tiny"))
    service.__dict__["shipped"] = service.store.add(circuit, None, pinned_as="first")  # in the place of the cached one
    head = page_head(service)
    assert head.count("</script") == 1 and head.count("</style") == 1 and "<!--" not in head
    first = json.loads(re.search(r"CircuitApp\.first = (.*);\n</script>", head)[1])  # type: ignore[index]
    assert first["id"] == first["shown"]["id"] == "first" and json.loads(first["payload"])["prompt"] == hostile


def _answer(
    parts: list[bytes], *, status: int = 200, method: str = "GET", **headers: str
) -> tuple[dict[str, str], bytes]:
    """Returns the headers and body that come out of the middleware around an app that answers with these."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        for number, part in enumerate(parts):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts) - 1})

    async def send(message: Any) -> None:
        sent.append(message)

    page = FrontPage(app, head="<style>own</style>", files=["a.js"])
    with pytest.raises(StopIteration):  # it never waits, so no event loop is needed: another may be running here
        page({"type": "http", "method": method, "path": "/"}, None, send).send(None)
    assert sent[0]["type"] == "http.response.start"
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return found, b"".join(m["body"] for m in sent[1:])


HTML = "text/html; charset=utf-8"
PAGE = b"<html><head><meta><script>1</script></head><body><gradio-app></gradio-app></body></html>"


@pytest.mark.parametrize("cut", [0, 5, 40, len(PAGE)])
def test_the_page_is_completed_before_its_first_script_however_it_is_sent(cut: int) -> None:
    headers, body = _answer([PAGE[:cut], PAGE[cut:]], content_type=HTML, content_length=str(len(PAGE)))
    assert body == PAGE.replace(b"<script>", b"<style>own</style><script>")
    assert headers == {
        "content-type": HTML,
        "content-length": str(len(body)),
        "link": "<./assets/a.js>; rel=modulepreload",
    }


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"<html><body>a file</body></html>", {"content_type": HTML}),
        (PAGE, {"content_type": "application/json"}),
        (PAGE, {"content_type": HTML, "status": 404}),
        (PAGE, {"content_type": HTML, "content_encoding": "br"}),
        (b"", {"content_type": HTML, "method": "HEAD"}),
    ],
)
def test_what_is_not_the_page_is_passed_on_as_it_is(body: bytes, options: dict[str, Any]) -> None:
    headers, given = _answer([body], **options)
    assert given == body and "link" not in headers
