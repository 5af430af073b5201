"""What is on the screen as files: the circuit in any export format, the page with its interventions, a Python program."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from circuitsae import registry
from circuitsae.errors import UnknownNameError
from circuitsae.export.page import circuit_page
from circuitsae.graph.circuit import Circuit
from gradio_app.forms import Form
from gradio_app.operations import read_edits

FORMATS = ("json", "graphml", "gexf", "csv", "dot", "html", "python")


def export_files(circuit: Circuit, format: str, form: Form | None, shown: Mapping[str, Any]) -> dict[str, str]:
    """Returns a circuit's files in a format, by name.

    Args:
        circuit: The circuit.
        format: One of `FORMATS`.
        form: What was asked, for the Python program.
        shown: What the page shows besides: the drawing's `state`, its `overlay` and `note`, the interventions' `edits`
            and `options`.

    Raises:
        UnknownNameError: There is no such format.
    """
    if format not in FORMATS:
        raise UnknownNameError("format", format, FORMATS)
    stem = re.sub("[^a-z0-9]+", "-", circuit.prompt.lower()).strip("-")[:40] or "circuit"
    if format == "python":
        return {f"{stem}.py": python_program(circuit, form, shown)}
    if format == "html":
        state = {**_table(shown, "state"), "overlay": shown.get("overlay"), "note": shown.get("note")}
        return {f"{stem}.html": circuit_page(circuit, state)}
    content = registry.get("exporters", format)(circuit)
    parts = content if isinstance(content, Mapping) else {registry.find("exporters", format).extra["suffix"]: content}
    return {stem + ending: part.decode() if isinstance(part, bytes) else part for ending, part in parts.items()}


def python_program(circuit: Circuit, form: Form | None, shown: Mapping[str, Any]) -> str:
    """Returns a program that computes what is on the screen: the circuit, and the interventions in the basket."""
    if form is None:
        return (
            "import circuitsae as cs\n\n"
            "# This circuit came from a file, which says no prompt and model that this app has.\n"
            'circuit = cs.Circuit.load("circuit.json")\nprint(circuit.report())\n'
        )
    metric = f"cs.LogitDiff({form.answer!r}, {form.foil!r})" if form.foil else f"cs.Logit({form.answer!r})"
    patch = f",\n    patch={form.patch!r}" if form.patch else ""
    settings = {**form.options(), "method": circuit.graph.graph.get("method", form.method)}
    if form.method == "auto" != settings["method"]:
        settings["measure"] = 24  # the page has had as many measured
    options = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    lines = [
        "import circuitsae as cs",
        "",
        f"spliced = cs.load({form.preset!r})",
        f"task = cs.Task(\n    {form.prompt!r},\n    metric={metric}{patch},\n)",
        f"circuit = cs.trace(spliced, task, {options})",
        "print(circuit.report())",
    ]
    edits = read_edits(shown.get("edits") or [])
    if edits:
        frozen = [name for name in ("errors", "attention") if _table(shown, "options").get(name) == "frozen"]
        ways = "".join(f", {name}='frozen'" for name in frozen)
        lines += [
            "",
            "edits = [",
            *(f"    cs.{_written(edit)}," for edit in edits),
            "]",
            f"result = cs.intervene(spliced, task, edits{ways}, circuit=circuit)",
            'print(f"metric {result.metric_before:.4g} -> {result.metric_after:.4g}, effect {result.effect:+.4g}")',
            "print(result.top_tokens(5))",
        ]
    pins = _table(shown, "state").get("pins")
    pins = [key for key in pins if isinstance(key, str) and key in circuit] if isinstance(pins, list) else []
    if pins:
        lines += ["", f"pinned = circuit.subgraph({sorted(pins)!r})", "print(len(pinned), 'pinned nodes')"]
    return "\n".join(lines) + "\n"


def _table(shown: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = shown.get(name)
    return found if isinstance(found, Mapping) else {}


def _written(edit: Any) -> str:
    values: Sequence[Any] = [getattr(edit, name) for name in ("node", "by", "value") if hasattr(edit, name)]
    return f"{type(edit).__name__}({', '.join(repr(value) for value in values)})"
