"""What the page brings with it, so that less is asked for afterwards."""

import json
import re
from importlib import resources
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="the app needs the extra 'app'")

import circuitsae as cs
from gradio_app.preload import component_files, link_header
from gradio_app.store import Store
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
    entry = Store(10**9).add(circuit, None, pinned_as="first")
    head = page_head(entry)
    assert head.count("</script") == 1 and "<!--" not in head
    first = json.loads(re.search(r"CircuitApp\.first = (.*);\n</script>", head)[1])  # type: ignore[index]
    assert first["id"] == "first" and json.loads(first["payload"])["prompt"] == hostile
