"""The app in a real browser: one server for all tests, a page of its own for each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TIMEOUT = 60_000


@contextmanager
def served(preset: str) -> Iterator[tuple[str, Any]]:
    """Serves an app of a preset; gives its address and its service, which has loaded no model yet."""
    from gradio_app.app import build, launch_options
    from gradio_app.settings import make_settings

    demo, service = build(make_settings(preset))
    options = launch_options(demo, service)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **options)
    yield address.rstrip("/"), service
    demo.close(verbose=False)


class App:
    """A page that shows the app, and what it said and asked for."""

    def __init__(self, browser: Any, address: str, query: str = "", **options: Any) -> None:
        options = {"viewport": {"width": 1280, "height": 900}} | options
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.address = address
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))
        self.page.goto(address + query)
        self.page.wait_for_selector("#circuit-view .cw .cg-stage .cg-node")
        self.settle()

    def _hear(self, message: Any) -> None:
        # The browser itself reports a form that was refused (422); everything else is a fault.
        if message.type in ("error", "warning") and "422" not in message.text:
            self.complaints.append(message.text)

    def _note(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.foreign.append(url)

    def settle(self) -> None:
        """Waits until nodes have glided to their places."""
        self.page.wait_for_timeout(250)

    def ask(self, code: str) -> Any:
        """Returns what an expression gives, in which `app` is the workbench and `view` the drawing's controller."""
        return self.page.evaluate(f"() => {{ const app = CircuitApp.shown, view = app.view; return ({code}); }}")

    def wait(self, code: str) -> None:
        """Waits until such an expression holds."""
        self.page.wait_for_function(
            f"() => {{ const app = window.CircuitApp && CircuitApp.shown, view = app && app.view; return view && ({code}); }}"
        )

    def strongest(self, n: int = 1) -> list[str]:
        """Returns the keys of the strongest features that are drawn."""
        return self.ask(
            f"view.circuit.choosable.filter((i) => view.circuit.kind[i] === 'feature').slice(0, {n}).map((i) => view.circuit.key[i])"
        )

    def node(self, key: str) -> Any:
        """Returns the element that draws a node."""
        return self.page.locator(
            f'.cg-stage g.cg-node[data-node="{self.ask(f"view.circuit.row.get({json.dumps(key)})")}"]'
        )

    def trace(self, prompt: str, answer: str = "", foil: str = "") -> None:
        """Fills the form and traces, by the keyboard's Enter."""
        before = self.ask("app.shown.id")
        for label, text in (("Prompt", prompt), ("Answer", answer), ("rather than", foil)):
            self.page.get_by_label(label, exact=True).fill(text)
        self.page.get_by_role("button", name="Trace").click()
        self.wait(f"app.shown.id !== {json.dumps(before)}")
        self.settle()

    def ablate(self, key: str) -> None:
        """Selects a node and ablates it."""
        self.node(key).click(force=True)
        self.page.get_by_role("button", name="Ablate", exact=True).click()

    def measured(self) -> None:
        """Waits for what was measured."""
        self.wait("app.result")

    def number(self, name: str) -> float:
        """Returns a number of the basket's line, by its name."""
        text = self.page.locator(f".cw-{name} b").inner_text()
        return float(text.replace("\u2212", "-").replace(",", "").split()[-1])

    def tab(self, name: str) -> None:
        """Opens one of the tabs."""
        self.page.get_by_role("tab", name=name).click()

    def close(self) -> None:
        """Closes the page and holds it to silence and to having asked nobody else for anything."""
        self.context.close()
        assert self.complaints == [], self.complaints
        assert self.foreign == []
