"""The exported page in a real browser: opened from disk, used by mouse and keyboard, given hostile text."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuitsae.graph.circuit import Circuit
from tests.synthetic import synthetic_circuit

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path; CHROMIUM=... names one"),
]

HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'>${window.ran=1}{{window.ran=1}}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def circuit() -> Circuit:
    return synthetic_circuit(seed=4, n_features=80, n_edges=2000)


class Opened:
    """A page opened from disk, and what it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector(".cg-node")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def close(self, path: Path) -> None:
        """Closes the page and holds it to silence and to having asked for nothing but itself."""
        self.page.close()
        assert self.complaints == [] and self.requests == [path.as_uri()]


@pytest.fixture
def opened(browser: Any, circuit: Circuit, tmp_path: Path) -> Iterator[Opened]:
    (path,) = circuit.export(tmp_path / "circuit.html")
    opened = Opened(browser, path, viewport={"width": 1280, "height": 900})
    yield opened
    opened.close(path)


def test_it_shows_the_question_and_every_node(opened: Opened, circuit: Circuit) -> None:
    assert circuit.prompt in opened.text("h1")
    assert "logit of" in opened.text("header") and "5.29" in opened.text("header")
    features = len(circuit.features) + len(circuit.errors)
    assert opened.page.locator(".cg-feature, .cg-error").count() == features
    assert opened.page.locator(".cg-token").count() == len(circuit.tokens)
    assert opened.page.locator(".cg-bias").count() == 0
    painted = "() => new Set(document.querySelector('canvas').getContext('2d').getImageData(0,0,600,400).data).size"
    opened.page.wait_for_timeout(100)
    assert opened.page.evaluate(painted) > 10


def test_a_click_fills_the_panel_and_lights_the_neighbours(opened: Opened, circuit: Circuit) -> None:
    key = circuit.strongest(1, kind="feature")[0]
    opened.page.locator(f'g.cg-node[data-node="{_row(opened, key)}"]').click(force=True)
    panel = opened.text(".cg-panel")
    assert key in panel and "activation" in panel and "effect when ablated, predicted" in panel
    assert f"From ({circuit.graph.in_degree(key)})" in panel and f"To ({circuit.graph.out_degree(key)})" in panel
    graph = circuit.graph
    neighbours = {*graph.predecessors(key), *graph.successors(key)} - {"bias"}
    assert opened.page.locator(".cg-lit").count() == len(neighbours) + 1
    opened.page.keyboard.press("Escape")
    assert opened.page.locator(".cg-selected").count() == 0 and "Strongest nodes" in opened.text(".cg-panel")


def test_hovering_tells_what_a_node_is(opened: Opened, circuit: Circuit) -> None:
    key = circuit.strongest(1, kind="feature")[0]
    assert not opened.page.locator(".cg-tip").is_visible()
    opened.page.locator(f'g.cg-node[data-node="{_row(opened, key)}"]').hover(force=True)
    tip = opened.text(".cg-tip")
    assert f"/{circuit[key]['index']}" in tip and "activation" in tip


def test_the_bias_is_hidden_until_asked_for(opened: Opened) -> None:
    opened.page.get_by_label("bias edges").check()
    assert opened.page.locator(".cg-bias").count() == 1


def test_the_drawing_can_be_dragged_and_zoomed(opened: Opened) -> None:
    read = "() => document.querySelector('.cg-stage g').getAttribute('transform')"
    opened.page.wait_for_timeout(50)
    start = opened.page.evaluate(read)
    box = opened.page.locator(".cg-stage").bounding_box()
    x, y = box["x"] + 30, box["y"] + 30
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 50, y + 20)
    opened.page.mouse.up()
    opened.page.wait_for_timeout(50)
    dragged = opened.page.evaluate(read)
    opened.page.mouse.wheel(0, -200)
    opened.page.wait_for_timeout(50)
    zoomed = opened.page.evaluate(read)
    assert len({start, dragged, zoomed}) == 3
    opened.page.get_by_role("button", name="Fit").click()
    assert opened.page.locator(".cg-selected").count() == 0


def test_the_in_edges_are_the_circuits(opened: Opened, circuit: Circuit) -> None:
    key = circuit.strongest(1, kind="feature")[0]
    opened.page.locator(f'g.cg-node[data-node="{_row(opened, key)}"]').click(force=True)
    shown = opened.page.locator(".cg-panel section").first.locator(".cg-link .cg-number").first.inner_text()
    strongest = max((data for *_, data in circuit.graph.in_edges(key, data=True)), key=lambda data: abs(data["weight"]))
    read = [float(part.replace("\u2212", "-").replace(",", "")) for part in shown.split("\u00b7")]
    assert read == pytest.approx([strongest["contribution"], strongest["weight"]], rel=0.01)


def test_the_sliders_change_what_is_shown(opened: Opened) -> None:
    nodes, edges = opened.page.locator("input[type=range]").all()
    before = opened.text(".cg-count")
    nodes.fill("10")
    assert opened.page.locator(".cg-feature, .cg-error").count() == 10
    assert opened.text(".cg-count") != before and opened.text(".cg-count").startswith("10 of ")
    few = opened.page.locator(".cg-count").nth(1).inner_text()
    edges.fill("10")
    assert opened.page.locator(".cg-count").nth(1).inner_text().startswith("all:") and few.startswith("2 each")


def test_the_keyboard_moves_and_selects(opened: Opened) -> None:
    opened.page.locator('.cg-node[tabindex="0"]').focus()
    focused = "() => document.activeElement.dataset.node"
    first = opened.page.evaluate(focused)
    opened.page.keyboard.press("ArrowUp")
    second = opened.page.evaluate(focused)
    assert second not in (None, first)
    opened.page.keyboard.press("Enter")
    assert opened.page.locator(".cg-selected").get_attribute("data-node") == second


def test_search_marks_and_enter_selects_even_below_the_threshold(opened: Opened, circuit: Circuit) -> None:
    opened.page.locator("input[type=range]").first.fill("3")
    weakest = circuit.strongest(10_000, kind="feature")[-1]
    opened.page.locator("input[type=search]").fill(weakest)
    opened.page.keyboard.press("Enter")
    assert weakest in opened.text(".cg-panel")


def test_the_table_has_a_row_a_node_and_selects(opened: Opened, circuit: Circuit) -> None:
    opened.page.get_by_role("button", name="Table").click()
    assert opened.page.locator("tbody tr").count() == len(circuit.features) + len(circuit.errors)
    opened.page.locator("tbody button").first.click()
    assert circuit.strongest(1)[0] in opened.text(".cg-panel")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_has_no_sideways_scroll(browser: Any, circuit: Circuit, tmp_path: Path, scheme: str) -> None:
    (path,) = circuit.export(tmp_path / "circuit.html")
    opened = Opened(browser, path, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    colour = opened.page.evaluate("() => getComputedStyle(document.querySelector('.cg')).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    opened.close(path)


def test_hostile_text_runs_nothing_and_is_shown_as_it_is(browser: Any, tmp_path: Path) -> None:
    circuit = synthetic_circuit(seed=6, n_features=20)
    graph = circuit.graph
    for data in graph.nodes.values():
        if data["kind"] == "feature":
            data["label"] = HOSTILE
    tokens = [HOSTILE, *graph.graph["tokens"][1:]]
    metric = {"name": HOSTILE, "description": HOSTILE}
    graph.graph.update(tokens=tokens, prompt=HOSTILE, metric=metric, top_tokens=[[HOSTILE, 0.5]], method=HOSTILE)
    graph.graph["model"]["name"] = graph.graph["dictionaries"][0]["source"] = HOSTILE
    (path,) = Circuit(graph).export(tmp_path / "hostile.html")
    opened = Opened(browser, path)
    opened.page.locator(".cg-panel .cg-link").first.click()
    opened.page.locator("summary").click()
    opened.page.get_by_role("button", name="Table").click()
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("() => window.ran") is None
    assert opened.page.locator("img").count() == 0 and opened.page.locator("script").count() == 2
    assert HOSTILE in opened.text("h1") and HOSTILE in opened.text(".cg-panel")
    opened.close(path)


def test_an_empty_circuit_draws(browser: Any, tmp_path: Path) -> None:
    import networkx as nx

    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("metric")
    (path,) = Circuit(graph).export(tmp_path / "empty.html")
    opened = Opened(browser, path)
    assert "0 of 0 nodes" in opened.text(".cg-count")
    opened.close(path)


def _row(opened: Opened, key: str) -> str:
    """Returns the number that the drawing gives a node, by asking for it in words."""
    opened.page.locator("input[type=search]").fill(key)
    opened.page.keyboard.press("Enter")
    found = opened.page.locator(".cg-selected").get_attribute("data-node")
    opened.page.keyboard.press("Escape")
    return found
