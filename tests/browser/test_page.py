"""The exported page in a real browser: opened from disk, used by mouse and keyboard, given hostile text."""

from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest

from circuitsae.graph.circuit import Circuit
from tests.browser.opened import Opened
from tests.synthetic import synthetic_circuit

pytestmark = pytest.mark.browser

HOSTILE = "</script><script>window.ran=1</script><img src=x onerror='window.ran=1'>${window.ran=1}{{window.ran=1}}"
OpenPage = Callable[..., Opened]


def read_number(text: str) -> float:
    """Returns the number that the page wrote."""
    return float(text.replace("\u2212", "-").replace(",", ""))


def test_it_shows_the_question_and_every_node(opened: Opened, circuit: Circuit) -> None:
    assert circuit.prompt in opened.text("h1")
    assert "logit of" in opened.text("header") and "5.29" in opened.text("header")
    features = len(circuit.features) + len(circuit.errors)
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == features
    assert opened.page.locator(".cg-stage .cg-token").count() == len(circuit.tokens)
    assert opened.page.locator(".cg-stage .cg-bias").count() == 0
    painted = "() => new Set(document.querySelector('canvas').getContext('2d').getImageData(0,0,600,400).data).size"
    assert opened.page.evaluate(painted) > 10


def test_no_two_nodes_lie_over_each_other_and_layers_rise(opened: Opened, circuit: Circuit) -> None:
    places = opened.call(
        "const at = {}; for (const g of document.querySelectorAll('.cg-stage g.cg-node')) "
        "{ const b = g.getBoundingClientRect(); at[view.circuit.key[g.dataset.node]] = "
        "[b.x + b.width / 2, b.y + b.height / 2, b.width]; } return at;"
    )
    spots = [(round(x), round(y)) for x, y, _ in places.values()]
    assert len(set(spots)) == len(spots)
    heights: dict[int, list[float]] = {}
    for key in circuit.features:
        heights.setdefault(circuit[key]["layer"], []).append(places[key][1])
    layers = sorted(heights)
    assert all(min(heights[a]) > max(heights[b]) for a, b in zip(layers, layers[1:], strict=False))
    assert places["metric"][1] < min(heights[layers[-1]])
    assert all(places[token][1] > max(heights[layers[0]]) for token in circuit.tokens)
    columns = [places[token][0] for token in circuit.tokens]
    assert columns == sorted(columns)


def test_a_click_fills_the_panel_and_lights_the_neighbours(opened: Opened, circuit: Circuit) -> None:
    key = circuit.strongest(1, kind="feature")[0]
    opened.node(key).click(force=True)
    panel = opened.text(".cg-panel")
    assert key in panel and "Activation" in panel and "Effect, predicted" in panel and "Effect, measured" in panel
    assert f"From ({circuit.graph.in_degree(key)})" in panel and f"To ({circuit.graph.out_degree(key)})" in panel
    neighbours = {*circuit.graph.predecessors(key), *circuit.graph.successors(key)} - {"bias"}
    assert opened.page.locator(".cg-lit").count() == len(neighbours) + 1
    opened.page.keyboard.press("Escape")
    assert opened.page.locator(".cg-selected").count() == 0 and "Strongest nodes" in opened.text(".cg-panel")


def test_the_edges_in_the_panel_are_the_circuits_sorted_by_sign_and_share(opened: Opened, circuit: Circuit) -> None:
    key = max(circuit.features, key=circuit.graph.in_degree)
    opened.node(key).click(force=True)
    for more in opened.page.locator(".cg-panel section").first.get_by_text("Show").all():
        more.click()
    edges = [data for _, _, data in circuit.graph.in_edges(key, data=True)]
    total = sum(abs(data["contribution"]) for data in edges)
    wanted = sorted(edges, key=lambda data: (data["contribution"] < 0, -abs(data["contribution"])))
    rows = opened.page.locator(".cg-panel section").first.locator(".cg-link").all()
    assert len(rows) == len(wanted)
    for row, data in zip(rows, wanted, strict=True):
        contribution, weight, share = [cell.inner_text() for cell in row.locator(".cg-number").all()]
        assert read_number(contribution) == pytest.approx(data["contribution"], rel=0.006)
        assert read_number(weight) == pytest.approx(data["weight"], rel=0.006)
        part = 100 * abs(data["contribution"]) / total
        assert float(share.strip("<%")) == pytest.approx(part, abs=0.51 if part >= 10 else 0.06)


def test_hovering_tells_what_a_node_is_and_lights_its_edges(opened: Opened, circuit: Circuit) -> None:
    key = circuit.strongest(1, kind="feature")[0]
    assert not opened.page.locator(".cg-tip").is_visible()
    opened.node(key).hover(force=True)
    tip = opened.text(".cg-tip")
    assert f"/{circuit[key]['index']}" in tip and "activation" in tip
    assert opened.page.locator(".cg-lit").count() > 1 and opened.page.locator(".cg-ring.cg-hover").count() == 1
    opened.page.mouse.move(5, 5)
    assert opened.page.locator(".cg-lit").count() == 0 and not opened.page.locator(".cg-tip").is_visible()


def test_the_same_feature_elsewhere_is_ringed_and_listed(opened: Opened, circuit: Circuit) -> None:
    places: dict[tuple[str, int], list[str]] = {}
    for key in circuit.features:
        places.setdefault((circuit[key]["site"], circuit[key]["index"]), []).append(key)
    keys = max(places.values(), key=len)
    assert len(keys) > 1
    opened.node(keys[0]).click(force=True)
    opened.page.mouse.move(5, 5)
    assert opened.page.locator(".cg-ring.cg-elsewhere").count() == len(keys) - 1
    opened.page.locator(".cg-panel button.cg-chip").first.click()
    assert opened.call("return view.selection();")[0] in keys[1:]


def test_the_bias_is_hidden_until_asked_for(opened: Opened) -> None:
    opened.page.get_by_label("bias", exact=True).check()
    assert opened.page.locator(".cg-stage .cg-bias").count() == 1


def test_the_drawing_can_be_dragged_zoomed_and_fitted(opened: Opened) -> None:
    def zoom() -> str:
        opened.page.wait_for_timeout(60)
        return opened.page.evaluate("() => document.querySelector('.cg-stage svg > g').getAttribute('transform')")

    start = zoom()
    box = opened.page.locator(".cg-stage").bounding_box()
    x, y = box["x"] + 200, box["y"] + 20
    opened.page.mouse.move(x, y)
    opened.page.mouse.down()
    opened.page.mouse.move(x + 50, y + 20)
    opened.page.mouse.up()
    dragged = zoom()
    opened.page.keyboard.down("Control")
    opened.page.mouse.wheel(0, -200)
    opened.page.keyboard.up("Control")
    zoomed = zoom()
    opened.page.get_by_role("button", name="Zoom in").click()
    assert len({start, dragged, zoomed, zoom()}) == 4
    opened.page.get_by_role("button", name="Fit", exact=True).click()
    assert zoom() == start and opened.page.locator(".cg-selected").count() == 0


def test_the_sliders_change_what_is_shown_and_say_so(opened: Opened, circuit: Circuit) -> None:
    nodes, edges = opened.page.locator(".cg-slider input").all()
    choosable = len(circuit.features) + len(circuit.errors)
    opened.call("view.setThresholds({ nodes: 10, edges: 2 });")
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == 10
    assert opened.text(".cg-count-nodes").startswith(f"10 of {choosable} nodes, kept ")
    assert f"{choosable - 10} weaker nodes" in opened.page.locator(".cg-reasons").text_content()
    few = opened.text(".cg-count-edges")
    assert "2 into each" in few
    shown = {*circuit.strongest(10), *circuit.tokens, "metric"}
    inside = circuit.graph.subgraph(shown)
    drawn = sum(min(2, inside.in_degree(key)) for key in shown)
    assert few.startswith(f"{drawn} of {inside.number_of_edges()} edges")
    edges.fill("10")
    opened.settle()
    assert opened.text(".cg-count-edges").endswith("100% of |weight|") and opened.text(".cg-count-edges") != few
    nodes.fill("1000")
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == choosable


def test_kept_counts_what_the_trace_left_out(opened: Opened, circuit: Circuit) -> None:
    known = circuit.graph.graph["kept"]["effect_share"]
    assert f"kept {known:.0%} of |effect|" in opened.text(".cg-count-nodes")
    reasons = opened.page.locator(".cg-reasons").text_content()
    missing = circuit.graph.graph["kept"]["candidates"] - len(circuit.features) - len(circuit.errors)
    assert f"{missing} candidates left out" in reasons and "max_nodes" in reasons


def test_the_keyboard_moves_selects_and_clears(opened: Opened, circuit: Circuit) -> None:
    opened.page.locator('.cg-node[tabindex="0"]').focus()
    focused = "() => CircuitGraph.shown.circuit.key[document.activeElement.dataset.node]"
    first = opened.page.evaluate(focused)
    assert first == circuit.strongest(1)[0]
    opened.page.keyboard.press("ArrowUp")
    second = opened.page.evaluate(focused)
    assert second not in (None, first) and opened.page.locator('.cg-node[tabindex="0"]').count() == 1
    opened.page.keyboard.press("Enter")
    assert opened.call("return view.selection();") == [second]
    assert second.split("/")[1].split("@")[0] in opened.text(".cg-live")
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("Shift+Enter")
    assert len(opened.call("return view.selection();")) == 2
    opened.page.keyboard.press("Escape")
    assert opened.call("return view.selection();") == []
    opened.page.keyboard.press("/")
    assert opened.page.evaluate("() => document.activeElement.type") == "search"


def test_alt_arrow_follows_the_strongest_edge(opened: Opened, circuit: Circuit) -> None:
    key = max(circuit.features, key=circuit.graph.out_degree)
    opened.node(key).evaluate("(element) => element.focus()")
    opened.page.keyboard.press("Alt+ArrowUp")
    target = max(circuit.graph.out_edges(key, data=True), key=lambda edge: abs(edge[2]["weight"]))[1]
    assert opened.page.evaluate("() => CircuitGraph.shown.circuit.key[document.activeElement.dataset.node]") == target


def test_the_focus_stays_in_the_panel_when_its_links_are_followed(opened: Opened) -> None:
    link = opened.page.locator(".cg-panel .cg-link").first
    link.focus()
    opened.page.keyboard.press("Enter")
    assert opened.page.evaluate("() => document.activeElement.closest('.cg-panel') !== null")


def test_search_marks_and_enter_selects_even_below_the_threshold(opened: Opened, circuit: Circuit) -> None:
    opened.call("view.setThresholds({ nodes: 3, edges: 2 });")
    weakest = circuit.strongest(10_000, kind="feature")[-1]
    assert opened.node(weakest).count() == 0
    opened.page.locator("input[type=search]").fill(weakest)
    opened.page.keyboard.press("Enter")
    opened.settle()
    assert weakest in opened.text(".cg-panel") and opened.node(weakest).count() == 1
    opened.page.keyboard.press("Escape")
    opened.settle()
    assert opened.node(weakest).count() == 0


def test_search_finds_labels_and_walks_its_list(opened: Opened, circuit: Circuit) -> None:
    label = next(data["label"] for _, data in circuit.graph.nodes(data=True) if "label" in data)
    field = opened.page.locator("input[type=search]")
    field.fill(label[:12].upper())
    options = opened.page.locator("[role=option]")
    assert options.count() > 0 and opened.page.locator(".cg-ring.cg-match").count() >= options.count()
    field.press("ArrowDown")
    assert opened.page.locator("[role=option][aria-selected=true]").count() == 1
    field.press("Enter")
    assert label in opened.text(".cg-panel")


def test_the_table_has_a_row_a_node_sorts_and_selects(opened: Opened, circuit: Circuit) -> None:
    opened.page.get_by_role("button", name="Table").click()
    rows = opened.page.locator(".cg-table tbody tr")
    assert rows.count() == len(circuit.features) + len(circuit.errors)
    rows.first.locator("button").click()
    assert circuit.strongest(1)[0] in opened.text(".cg-panel")
    opened.page.locator("th button", has_text="activation").click()
    shown = [read_number(text) for text in opened.page.locator("tbody td:nth-child(5)").all_inner_texts()]
    assert shown == sorted(shown, reverse=True) and len(shown) > 2
    opened.page.get_by_role("button", name="Edges", exact=True).click()
    assert rows.count() == int(opened.text(".cg-count-edges").split(" of ")[0])


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_and_theme_fits_the_window(open_page: OpenPage, circuit: Circuit, width: int, scheme: str) -> None:
    opened = open_page(circuit, viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") <= width
    colour = opened.page.evaluate("() => getComputedStyle(document.querySelector('.cg')).backgroundColor")
    assert (colour == "rgb(255, 255, 255)") == (scheme == "light")
    # What is drawn can be read: no token smaller than ten pixels, no two nodes nearer than ten.
    size = opened.call(
        "const t = document.querySelector('.cg-stage .cg-token text'); "
        "return parseFloat(getComputedStyle(t).fontSize) * t.getScreenCTM().a;"
    )
    assert size >= 10
    opened.page.locator(".cg-panel .cg-link").first.click()
    opened.settle()
    box = opened.node(circuit.strongest(1)[0]).bounding_box()
    panel = opened.page.locator(".cg-panel").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0
    # On a narrow screen the details lie over the lower half: the node stays above them.
    assert box["x"] + box["width"] <= panel["x"] if width > 700 else box["y"] + box["height"] <= panel["y"]


def test_hostile_text_runs_nothing_and_is_shown_as_it_is(open_page: OpenPage) -> None:
    circuit = synthetic_circuit(seed=6, n_features=20)
    graph = circuit.graph
    for data in graph.nodes.values():
        if data["kind"] == "feature":
            data["label"] = HOSTILE
    tokens = [HOSTILE, *graph.graph["tokens"][1:]]
    metric = {"name": HOSTILE, "description": HOSTILE}
    graph.graph.update(tokens=tokens, prompt=HOSTILE, metric=metric, top_tokens=[[HOSTILE, 0.5]], method=HOSTILE)
    graph.graph["model"]["name"] = graph.graph["dictionaries"][0]["source"] = HOSTILE
    opened = open_page(Circuit(graph), state={"groups": [{"name": HOSTILE, "keys": circuit.features[:3]}]})
    opened.page.locator(".cg-panel .cg-link").first.click()
    for summary in opened.page.locator("header summary").all():
        summary.click()
    opened.node(circuit.features[5]).hover(force=True)
    opened.call(
        "const key = view.selection()[0]; view.setCard(key, [{ title: a, text: a, tokens: [[a, 1]], contexts: [[[a, 1]]] }]); "
        "view.setOverlay({ modes: [{ id: 'x', name: a, kind: 'category', names: [a], values: { [key]: 0 } }], "
        "marks: [{ key, text: a }] });",
        HOSTILE,
    )
    svg = opened.call("return view.toSVG();")
    assert opened.call("return view.toPNG(0.5).then((blob) => blob.size);") > 1000
    opened.page.get_by_role("button", name="Table").click()
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("() => window.ran") is None
    assert opened.page.locator("img").count() == 0 and opened.page.locator("script").count() == 2
    assert "<script" not in svg and "<img" not in svg
    assert HOSTILE in opened.text("h1") and HOSTILE in opened.text(".cg-panel")


def test_an_empty_circuit_draws(open_page: OpenPage) -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_node("metric")
    opened = open_page(Circuit(graph))
    assert "0 of 0 nodes" in opened.text(".cg-count-nodes")


def test_a_circuit_without_positions_draws(open_page: OpenPage) -> None:
    graph: nx.DiGraph[str] = nx.DiGraph()
    for index in range(30):
        graph.add_edge("token", f"blocks.0.hook_mlp_out/{index}", weight=-0.5 - index)
        graph.add_edge(f"blocks.0.hook_mlp_out/{index}", "metric", weight=-0.25)
        graph.nodes[f"blocks.0.hook_mlp_out/{index}"]["effect"] = -0.25
    opened = open_page(Circuit(graph))
    assert opened.page.locator(".cg-stage .cg-feature").count() == 30
    assert "30 of 30 nodes" in opened.text(".cg-count-nodes")


def test_a_long_prompt_folds_columns_without_nodes(open_page: OpenPage) -> None:
    tokens = [f" w{n}" for n in range(150)]
    graph: nx.DiGraph[str] = nx.DiGraph(tokens=tokens)
    for position in (3, 80, 149):
        graph.add_edge(f"blocks.1.hook_resid_post/7@{position}", "metric", weight=-1.0, contribution=1.0)
    opened = open_page(Circuit(graph))
    axis = opened.page.locator(".cg-axis text").all_text_contents()
    assert len(axis) < 20 and any(text.startswith("+76") for text in axis)


def test_the_page_opens_from_its_file_without_scripts(browser: Any, circuit: Circuit, tmp_path: Any) -> None:
    (path,) = circuit.export(tmp_path / "c.html")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert "JavaScript" in page.locator("noscript").inner_text()
    context.close()


def test_a_notebook_shows_the_drawing_in_a_frame_of_its_own(browser: Any, circuit: Circuit, tmp_path: Any) -> None:
    path = tmp_path / "notebook.html"
    path.write_text(f"<!DOCTYPE html><body>{circuit.show(height=600)._repr_html_()}</body>", encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 700})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(path.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator(".cg-panel .cg-link").first.click()
    assert circuit.strongest(1)[0] in frame.locator(".cg-panel").inner_text()
    page.close()
    assert complaints == []
