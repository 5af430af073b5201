"""What is refused before anything reads it: foreign hosts and origins, files, bodies that are too large."""

import ipaddress
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

ALLOW = "'circuitsae serve --allow-host NAME' allows a name."
FOREIGN = "This app is not to be reached by the name {name!r}; " + ALLOW
ELSEWHERE = "A page of {name!r} may not use this app; " + ALLOW
NO_FILES = "This app takes no files."
TOO_LARGE = "The request has more than {limit:,} bytes, which is the limit here."


class Guard:
    """ASGI middleware that answers what is refused with a sentence, and passes everything else on.

    A page whose name was made to resolve to this machine (DNS rebinding) sends that name as `Host`; another site's page
    sends its own as `Origin`. Neither is a loopback name, and no address literal can be made to resolve elsewhere.

    Args:
        app: The app within.
        body_bytes: Bytes that a request's body may have.
        hosts: Names by which the app may be reached besides loopback names and, as `Host`, addresses; any when `None`.
    """

    def __init__(self, app: Any, *, body_bytes: int, hosts: Iterable[str] | None) -> None:
        self._app, self._limit = app, body_bytes
        self._hosts = None if hosts is None else frozenset(map(_plain, hosts))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        await self._app(scope, *self._counted(receive, send))

    def _refusal(self, path: str, headers: list[tuple[bytes, str]]) -> tuple[int, str] | None:
        if self._hosts is not None:
            for host in [value for name, value in headers if name == b"host"] or [""]:
                name = _name_of(f"//{host}")
                if not (self._known(name) or _address(name)):
                    return 403, FOREIGN.format(name=name)
            own = {_name_of(f"//{value}") for name, value in headers if name == b"host"}
            for origin in [value for name, value in headers if name == b"origin"]:
                name = _name_of(origin)
                if not (self._known(name) or (name and name in own)):
                    return 403, ELSEWHERE.format(name=name or origin)
        about = dict(headers)
        # Files would lie in the server's temporary folder; the page reads them itself and sends text.
        if path.rstrip("/").endswith("/upload") or about.get(b"content-type", "").lower().startswith("multipart/"):
            return 403, NO_FILES
        length = about.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._limit:
            return 413, TOO_LARGE.format(limit=self._limit)
        return None

    def _known(self, name: str) -> bool:
        assert self._hosts is not None
        if name == "localhost" or name.endswith(".localhost") or name in self._hosts:
            return True
        address = _address(name)
        return address is not None and address.is_loopback

    def _counted(self, receive: Any, send: Any) -> tuple[Any, Any]:
        """Returns a request's `receive`, which ends where the body is too large, and `send`, then not heard."""
        count, begun, refused = 0, False, False

        async def receiving() -> Any:
            nonlocal count, refused
            message = await receive()
            count += len(message.get("body") or b"")
            if count <= self._limit:
                return message
            if not refused:
                refused = True
                if not begun:
                    await _answer(send, 413, TOO_LARGE.format(limit=self._limit))
            return {"type": "http.disconnect"}

        async def sending(message: Any) -> None:
            nonlocal begun
            if not refused:
                begun = True
                await send(message)

        return receiving, sending


def _name_of(url: str) -> str:
    """Returns the host's name or address in a URL, as it is compared; empty where there is none."""
    try:
        return _plain(urlsplit(url).hostname or "")
    except ValueError:
        return ""


def _plain(name: str) -> str:
    return name.lower().strip("[]").removesuffix(".")


def _address(name: str) -> "ipaddress.IPv4Address | ipaddress.IPv6Address | None":
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


async def _answer(send: Any, status: int, sentence: str) -> None:
    body = sentence.encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
