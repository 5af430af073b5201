"""A circuit in circuit-tracer's own viewer. Its page loads libraries from other hosts: here npm's packages answer."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from circuitsae.export.circuit_tracer import write_viewer_folder
from tests.synthetic import synthetic_circuit

pytestmark = [pytest.mark.browser]

PACKAGES = ("d3@7.9.0", "d3-collection@1.0.7", "d3-jetpack@2.0.19", "dagre@0.8.5", "pako@2.1.0")
# Which file of those packages stands for which script of the page; what is not listed is not needed.
SCRIPTS = {
    "d3.js": [("d3", "dist/d3.js"), ("d3-collection", "dist/d3-collection.js")],
    "jetpack_2024-07-20.js": [("d3-jetpack", "build/d3-jetpack.js")],
    "dagre.min.js": [("dagre", "dist/dagre.min.js")],
    "pako.min.js": [("pako", "dist/pako.min.js")],
}

# The page's jetpack is a later one than npm's: there the chart that conventions() gives draws its axes itself.
ADAPTED = b"""
{
  const conventions = d3.conventions;
  d3.conventions = c => {
    c = conventions(c);
    c.drawAxis = svg => d3.drawAxis({ ...c, svg: svg ?? c.svg });
    return c;
  };
}
"""


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"{command[0]} can't fetch what the viewer needs: {error}")
    if done.returncode:
        pytest.skip(f"{command[0]} can't fetch what the viewer needs: {done.stderr.strip()[-200:]}")


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The libraries by the name that the page asks for; skipped where npm's registry can't be reached."""
    folder = tmp_path_factory.mktemp("npm")
    _run(["npm", "pack", "--silent", *PACKAGES], folder)
    found = {name: b";\n".join(_member(folder, *part) for part in parts) for name, parts in SCRIPTS.items()}
    found["jetpack_2024-07-20.js"] += b";\n" + ADAPTED
    return found


def _member(folder: Path, package: str, member: str) -> bytes:
    (archive,) = folder.glob(f"{package}-[0-9]*.tgz")
    with tarfile.open(archive) as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None
        return file.read()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """circuit-tracer's wheel, whose page is in it; skipped where the package index can't be reached."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--timeout=10", "--retries=0"]
    _run([*pip, "download", "--no-deps", "--only-binary=:all:", "circuit-tracer==0.5.0"], folder)
    (wheel,) = folder.glob("*.whl")
    return zipfile.ZipFile(io.BytesIO(wheel.read_bytes()))


def _answer(viewer: zipfile.ZipFile, libraries: dict[str, bytes], data: Path) -> Callable[[Any], None]:
    members = set(viewer.namelist())

    def answer(route: Any) -> None:
        address = urlsplit(route.request.url)
        name = address.path.rpartition("/")[2]
        if address.hostname != "viewer.test":
            known = name in libraries or address.path.endswith(".js")
            body = libraries.get(name, b"")
            route.fulfill(status=200 if known else 404, body=body, content_type="text/javascript")
            return
        kept = data / name
        if address.path.startswith(("/data/", "/graph_data/")) and kept.is_file():
            route.fulfill(body=kept.read_bytes(), content_type="application/json")
            return
        member = "circuit_tracer/frontend/assets" + address.path
        if member in members:
            kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
            route.fulfill(body=viewer.read(member), content_type=kinds.get(name.rpartition(".")[2], "text/plain"))
        else:
            route.fulfill(status=404, body=b"")

    return answer


def test_a_circuit_opens_in_circuit_tracers_viewer(
    browser: Any, viewer: zipfile.ZipFile, libraries: dict[str, bytes], tmp_path: Path
) -> None:
    circuit = synthetic_circuit(seed=6, n_features=30)
    graph = circuit.graph
    hostile = "<img src=x onerror='window.ran = 1'>"
    graph.nodes[circuit.features[0]]["label"] = hostile
    for key in circuit.features:
        graph.nodes[key]["influence"] = abs(graph.nodes[key]["effect"])
    path = write_viewer_folder(circuit, tmp_path, slug="ours")
    document = json.loads(path.read_text())
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.route("**/*", _answer(viewer, libraries, tmp_path))
    try:
        page.goto("http://viewer.test/index.html?slug=ours")
        page.wait_for_function("document.querySelector('.link-graph')?.innerText.includes('●')", timeout=20_000)
        marks = page.locator(".link-graph").first.inner_text()
        assert sum(marks.count(mark) for mark in "●◆■") == len(document["nodes"])
        assert all(token.strip() in marks for token in document["metadata"]["prompt_tokens"])
        # a node that is clicked shows its connections and its label, which is text there
        node_id = next(row["node_id"] for row in document["nodes"] if row["clerp"] == hostile)
        page.goto(f"http://viewer.test/index.html?slug=ours&clickedId={node_id}")
        page.wait_for_function(
            "document.querySelector('.node-connections')?.innerText.includes('onerror')", timeout=20_000
        )
        assert hostile in page.locator(".node-connections").inner_text()
        picture = page.screenshot()
        (tmp_path / "viewer.png").write_bytes(picture)
        assert page.evaluate("window.ran") is None
        # features' own pages are not part of a graph file, so the viewer finds none
        assert not [error for error in errors if "JSON" not in error], errors
        assert len(picture) > 30_000  # a drawing and its lists, not an empty page
    finally:
        context.close()
