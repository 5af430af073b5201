"""The drawing as a part of the page: `CircuitGraph` in a `gr.HTML`, and how the two sides speak.

The page's side sets `value` (what is wanted) and triggers an event; the answer comes as one of the properties `shown`,
`progress`, `overlay`, `measured`, `answer`. Circuits themselves are fetched by the server function `circuit`: as a
property each would be copied several times (docs/app.md). No text goes through a template.
"""

import functools
import itertools
import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import gradio as gr
from anyio import CapacityLimiter, to_thread

from circuitsae.errors import CircuitsaeError
from circuitsae.export.page import drawing_style, joined_script
from gradio_app.exporting import export_files
from gradio_app.operations import OPERATIONS
from gradio_app.service import Service, log

if TYPE_CHECKING:
    from gradio_app.store import Entry

EVENTS = (*(name for name, operation in OPERATIONS.items() if operation.to), "compare", "opened", "halt")
LOOKUPS, EXPORTS = 8, 2  # threads
_count = itertools.count(1)


@cache
def page_style() -> str:
    """Returns the page's style sheet."""
    style = drawing_style() + _asset("app.css")
    assert "</style" not in style
    return style


def page_head(service: Service) -> str:
    """Returns what stands in the page's head: the scripts, the circuit shown at first, and the style that it is drawn in.

    All of it is there before gradio's own scripts run, so that the circuit can be drawn while they do.
    """
    folders = [resources.files(package).joinpath("assets") for package in ("gradio_app", "circuitsae.export")]
    scripts = joined_script("workbench.js", *folders)
    entry = service.shipped
    if entry is not None:
        first = json.dumps(
            {
                "id": entry.id,
                "payload": entry.payload,
                "colours": entry.colours,
                "shown": shown_as(entry),
                "limits": _limits(service),
            },
            allow_nan=False,
        )
        scripts += "CircuitApp.first = " + first.replace("<", "\\u003c") + ";\n"
    assert "</script" not in scripts
    return f'<style id="ca-early-style">\n{page_style()}</style>\n<script>\n{scripts}</script>'


def circuit_view(service: Service, entry: "Entry | None") -> gr.HTML:
    """Returns the component that shows circuits and what is done to them."""
    named = ", ".join(f'"{event}"' for event in EVENTS)  # gradio finds the events' names in the script
    return gr.HTML(
        None,
        html_template='<div class="cw-mount"></div>',
        js_on_load=f"CircuitApp.mount(element, {{ props, server, trigger, watch, events: [{named}] }});",
        server_functions=_lookups(service),
        elem_id="circuit-view",
        apply_default_css=False,
        shown=None if entry is None else shown_as(entry),
        progress=None,
        overlay=None,
        measured=None,
        answer=None,
        limits=_limits(service),
    )


def _limits(service: Service) -> dict[str, Any]:
    return {"uploads": service.settings.upload_bytes, "preset": service.settings.preset}


def shown_as(entry: "Entry", restore: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns the property `shown`: which circuit to fetch, what was asked, and perhaps a state to take up."""
    form = None if entry.form is None else entry.form.as_dict()
    return {"id": entry.id, "form": form, "restore": restore}


def update(**properties: Any) -> Any:
    """Returns an update of the component. Each property gets a number, so that equal answers are heard too."""
    numbered: dict[str, Any] = {name: {**value, "n": next(_count)} for name, value in properties.items()}
    return gr.HTML(**numbered)


def _lookups(service: Service) -> list[Any]:
    """The server functions: short look-ups that wait in no queue. Each gets one argument, from whoever calls it.

    They have threads of their own: those of gradio wait for the model. So have exports, which may take seconds.
    """

    def circuit(id: Any = None) -> dict[str, Any]:
        try:
            entry = service.store.get(id)
        except CircuitsaeError as error:
            return {"error": str(error)}
        return {"payload": entry.payload, "colours": entry.colours}

    def card(asked: Any = None) -> list[dict[str, Any]]:
        try:
            return service.card(str(asked["id"]), str(asked["key"]))
        except (CircuitsaeError, KeyError, TypeError):
            return []

    def status(preset: Any = None) -> dict[str, Any]:
        known = preset if preset in service.settings.presets else service.settings.preset
        return service.models.status(known)

    def files(asked: Any = None) -> dict[str, Any]:
        try:
            entry = service.store.get(asked["id"])
            return {"files": export_files(entry.circuit, asked["format"], entry.form, asked.get("shown") or {})}
        except CircuitsaeError as error:
            return {"error": str(error)}
        except Exception:
            log.exception("An export failed.")
            return {"error": "The file could not be made; the app's log says why."}

    def upload_circuit(text: Any = None) -> dict[str, Any]:
        try:
            return {"id": service.open(text if isinstance(text, str) else "").id}
        except CircuitsaeError as error:
            return {"error": str(error)}

    quick, slow = CapacityLimiter(LOOKUPS), CapacityLimiter(EXPORTS)
    threads = {circuit: quick, card: quick, status: quick, files: slow, upload_circuit: slow}
    return [_threaded(look_up, limiter) for look_up, limiter in threads.items()]


def _threaded(look_up: Callable[[Any], Any], limiter: CapacityLimiter) -> Callable[..., Any]:
    """Returns a look-up that is done in a thread, as many at once as a limiter lets."""

    @functools.wraps(look_up)
    async def threaded(asked: Any = None) -> Any:
        return await to_thread.run_sync(look_up, asked, limiter=limiter)

    return threaded


def _asset(name: str) -> str:
    return resources.files("gradio_app").joinpath("assets", name).read_text("utf-8")
