"""A page opened from disk in a real browser, and what it said and asked for."""

import os
import shutil
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
# Without these Chromium asks its maker's servers for updates while a test watches for requests.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Opened:
    """A page opened from disk, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".cg-node")
        self.path = path
        self.settle()

    def settle(self) -> None:
        """Waits until nodes have glided to their places."""
        self.page.wait_for_timeout(250)

    def text(self, selector: str) -> str:
        """Returns the text of the first element that fits, as a reader sees it."""
        return self.page.locator(selector).first.inner_text()

    def call(self, code: str, *arguments: Any) -> Any:
        """Returns what `code` gives, a function's body to which `view` is the drawing's controller."""
        found = self.page.evaluate(
            f"(a) => {{ const view = CircuitGraph.shown; {code} }}", arguments[0] if arguments else None
        )
        self.settle()
        return found

    def node(self, key: str) -> Any:
        """Returns the element that draws a node."""
        row = self.page.evaluate("(key) => CircuitGraph.shown.circuit.row.get(key)", key)
        return self.page.locator(f'g.cg-node[data-node="{row}"]')

    def close(self) -> None:
        """Closes the page and holds it to silence and to having asked for nothing but itself."""
        self.page.close()
        assert self.complaints == []
        assert [url for url in self.requests if not url.startswith(("data:", "blob:"))] == [self.path.as_uri()]
