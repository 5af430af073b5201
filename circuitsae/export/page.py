"""The page that draws a circuit: one HTML file, opened from disk, that asks the network for nothing and runs no text."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from circuitsae.errors import InputError
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit

_IMPORT = re.compile(r'^import [^;"]*"([^"]+)";\n', re.MULTILINE)
_START = """
{
  const { payload, state } = JSON.parse(document.getElementById("circuit-data").textContent);
  CircuitGraph.shown = CircuitGraph.mount(document.getElementById("circuit"), payload, { header: true, state });
}
"""


@cache
def drawing_script() -> str:
    """Returns the drawing's JavaScript, which defines `CircuitGraph.mount(element, payload, options)`."""
    return joined_script("graph.js", resources.files("circuitsae.export").joinpath("assets"))


def joined_script(entry: str, *folders: Traversable) -> str:
    """Returns a JavaScript module and all that it imports as one script, which a page can hold.

    Each module comes once, after those that it imports; what imports and exports say goes, as all are in one function.
    So no two modules may give the same name to something at their top level, and no import may rename.

    Args:
        entry: The module's file name.
        folders: Where modules lie, looked up by their file names.
    """
    parts: dict[str, str] = {}

    def take(name: str) -> None:
        if name in parts:
            return
        parts[name] = ""
        text = next(file for folder in folders if (file := folder.joinpath(name)).is_file()).read_text("utf-8")
        for address in _IMPORT.findall(text):
            take(address.rpartition("/")[2])
        del parts[name]  # after those that it needs
        parts[name] = re.sub(r"^export (?=\w)", "", _IMPORT.sub("", text), flags=re.MULTILINE)

    take(entry)
    return '(() => {\n"use strict";\n' + "\n".join(parts.values()) + "})();\n"


@cache
def drawing_style() -> str:
    """Returns the drawing's CSS; every rule is about `.cg` and what is in it."""
    return _asset("graph.css")


def circuit_page(circuit: Circuit, state: Mapping[str, Any] | None = None) -> str:
    """Returns a page that draws the circuit and works without a network.

    The page's own policy allows just its one script and style, by their hashes. The circuit is data: JSON without
    `<`, `>` or `&`, which the script shows as text only. Size: 100 KB and 40 bytes an edge.

    Args:
        circuit: What is drawn.
        state: What the drawing's `getState` returned (docs/drawing.md): thresholds, pins, groups, selection, view. The
            page opens with it; what does not fit the circuit is passed over. The circuit's own pins and groups by default.

    Raises:
        InputError: The state is not JSON.
    """
    script, style = drawing_script() + _START, drawing_style() + _asset("page.css")
    # A picture is saved by drawing the page's own SVG, which the page names as a data: address.
    policy = (
        f"default-src 'none'; script-src {hash_source(script)}; style-src {hash_source(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    title = html.escape((circuit.prompt or "Circuit")[:200].encode("utf-8", "replace").decode())
    if state is None:
        state = {name: circuit.graph.graph[name] for name in ("pins", "groups") if name in circuit.graph.graph} or None
    try:
        data = embedded_json({"payload": view_payload(circuit), "state": state})
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"The page's state is not JSON: {error}.") from None
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title} - circuitsae</title>\n<style>{style}</style>\n</head>\n<body>\n"
        '<main id="circuit"><noscript>This drawing needs JavaScript.</noscript></main>\n'
        f'<script type="application/json" id="circuit-data">{data}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def embedded_json(value: object) -> str:
    """Returns JSON in ASCII that ends no script element and opens no comment, wherever in a page it stands.

    >>> embedded_json("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def hash_source(text: str) -> str:
    """Returns the source by which a page's policy allows one script or style: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("circuitsae.export").joinpath("assets", name).read_text("utf-8")
