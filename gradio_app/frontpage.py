"""The page as the server sends it, with what gradio would only bring once its own scripts run.

What gradio is given as `head` it puts into its configuration, and into the page when its frontend has started. The circuit
shown at first would wait for that; so it, the script that draws it and the style go into the document itself.
"""

import re
from collections.abc import Iterable
from typing import Any

from gradio_app.preload import link_header


class FrontPage:
    """ASGI middleware that completes the page and passes everything else on.

    Args:
        app: The app within.
        head: Markup for the page's head.
        files: Names of files, in gradio's folder of assets, that are announced in the header `Link`.
    """

    def __init__(self, app: Any, *, head: str, files: Iterable[str] = ()) -> None:
        self._app, self._head = app, head.encode()
        self._link = link_header(files).encode("latin-1")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        begun: dict[str, Any] | None = None  # the start of a document that is being collected
        parts: list[bytes] = []

        async def completing(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and _is_document(message):
                begun = message
            elif begun is None or message["type"] != "http.response.body":
                await send(message)
            else:
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    start, body = self._completed(begun, b"".join(parts))
                    await send(start)
                    await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, completing)

    def _completed(self, start: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        if b"<gradio-app" not in body:
            return start, body
        # Before the first script, and so before any style sheet that a script would wait for.
        place = re.search(rb"<script|</head>|<body", body)
        at = place.start() if place else 0
        body = body[:at] + self._head + body[at:]
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        headers += [(b"content-length", str(len(body)).encode()), *([(b"link", self._link)] if self._link else [])]
        return {**start, "headers": headers}, body


def _is_document(message: Any) -> bool:
    headers = dict(message.get("headers", []))
    html = headers.get(b"content-type", b"").startswith(b"text/html")
    return message["status"] == 200 and html and b"content-encoding" not in headers
