"""The drawing's controller, as the page and the app use it: pins, groups, ways, overlays, state, pictures."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import pytest

from circuitsae.graph.circuit import Circuit
from tests.browser.opened import Opened
from tests.synthetic import synthetic_circuit

pytestmark = pytest.mark.browser

OpenPage = Callable[..., Opened]


@pytest.fixture(scope="module")
def strongest(circuit: Circuit) -> list[str]:
    return circuit.strongest(12, kind="feature")


def test_paths_are_those_that_python_finds(opened: Opened, circuit: Circuit) -> None:
    for source in [*circuit.tokens[3:6], *circuit.strongest(3)]:
        wanted = circuit.paths(source, "metric", k=4)
        found = opened.call("return view.paths(a, 'metric', 4);", source)
        # The drawing's numbers have five digits.
        assert [way["share"] for way in found] == pytest.approx([way.share for way in wanted], rel=1e-3)
        assert [(way["nodes"], way["sign"]) for way in found] == [(list(way.nodes), way.sign) for way in wanted]
    assert opened.call("return view.paths('metric', 'token@3');") == []


def test_a_way_is_listed_lit_and_kept_in_the_state(opened: Opened, circuit: Circuit) -> None:
    source = next(key for key in circuit.strongest(10, kind="feature") if circuit.paths(key, "metric"))
    opened.node(source).click(force=True)
    opened.page.get_by_role("button", name="Ways to the metric").click()
    way = opened.page.locator(".cg-way").first
    way.click()
    wanted = circuit.paths(source, "metric")[0]
    assert opened.page.locator(".cg-lit").count() == len(wanted.nodes)
    assert opened.call("return view.getState().way;") == list(wanted.nodes)
    assert way.get_attribute("aria-pressed") == "true"
    opened.page.keyboard.press("Escape")
    assert opened.call("return view.getState().way;") is None and opened.call("return view.selection();") == [source]


def test_ways_between_two_selected_nodes(opened: Opened, circuit: Circuit) -> None:
    source, target = next(
        (a, b) for a in circuit.strongest(10) for b in circuit.features if a != b and circuit.paths(a, b)
    )
    opened.node(target).click(force=True)
    opened.node(source).click(force=True, modifiers=["Shift"])
    opened.page.get_by_role("button", name="Ways between the two").click()
    ways = circuit.paths(source, target)
    assert opened.page.locator(".cg-way").count() == len(ways)


def test_pins_stay_whatever_the_threshold(opened: Opened, circuit: Circuit) -> None:
    weakest = circuit.strongest(10_000, kind="feature")[-1]
    opened.call("view.pin([a]); view.setThresholds({ nodes: 2, edges: 1 });", weakest)
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == 3
    assert opened.page.locator(".cg-ring.cg-pin").count() == 1
    opened.page.get_by_label("show only these").check()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == 1
    assert "only pinned" in opened.page.locator(".cg-reasons").text_content()
    opened.page.get_by_role("button", name="Unpin all").click()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == 2


def test_the_key_p_pins_what_is_selected(opened: Opened, strongest: list[str]) -> None:
    opened.node(strongest[0]).click(force=True)
    opened.page.keyboard.press("p")
    assert opened.call("return view.getState().pins;") == [strongest[0]]
    opened.page.keyboard.press("p")
    assert opened.call("return view.getState().pins;") == []


def test_a_group_is_one_item_with_summed_edges(opened: Opened, circuit: Circuit) -> None:
    graph = circuit.graph
    members = circuit.strongest(4, kind="feature")
    before = opened.page.locator(".cg-stage .cg-node").count()
    opened.call("view.group('movers', a);", members)
    assert opened.page.locator(".cg-stage .cg-node").count() == before - 3
    assert opened.page.locator(".cg-stage .cg-group").text_content() == "movers"
    inside = set(members)
    sums: dict[str, float] = {}
    for _, target, data in graph.out_edges(members, data=True):
        if target not in inside:
            sums[target] = sums.get(target, 0.0) + data["weight"]
    panel = opened.page.locator(".cg-panel section").nth(1)
    assert f"To ({len(sums)})" in panel.inner_text()
    largest = max(sums, key=lambda key: abs(sums[key]))
    shown = [row.locator(".cg-number").nth(1).inner_text() for row in panel.locator(".cg-link").all()]
    numbers = [float(text.replace("\u2212", "-").replace(",", "")) for text in shown]
    assert any(number == pytest.approx(sums[largest], rel=0.006) for number in numbers)
    effect = sum(graph.nodes[key]["effect"] for key in members)
    said = re.search(r"together ([\u2212+\d.,]+)", opened.text(".cg-panel")).group(1)
    assert float(said.replace("\u2212", "-").rstrip(",")) == pytest.approx(effect, rel=0.006)
    opened.page.get_by_label("Group's name").fill("name movers")
    opened.page.keyboard.press("Enter")
    opened.settle()
    assert opened.call("return view.getState().groups;") == [
        {"name": "name movers", "keys": sorted(members, key=list(_order(opened)).index)}
    ]
    opened.page.get_by_role("button", name="Ungroup").click()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-node").count() == before


def test_a_lasso_selects_what_is_within_and_g_groups_it(opened: Opened) -> None:
    box = opened.page.locator(".cg-stage").bounding_box()
    opened.page.keyboard.down("Shift")
    opened.page.mouse.move(box["x"] + box["width"] - 150, box["y"] + 60)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] - 60)
    opened.page.mouse.up()
    opened.page.keyboard.up("Shift")
    chosen = opened.call("return view.selection();")
    assert len(chosen) > 2 and all("/" in key for key in chosen)
    assert f"{len(chosen)} selected" in opened.text(".cg-panel")
    opened.page.locator(".cg-panel").get_by_role("button", name="Group", exact=True).click()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-group").count() == 1


def test_a_state_comes_back_and_goes_through_a_page(
    open_page: OpenPage, circuit: Circuit, strongest: list[str]
) -> None:
    opened = open_page(circuit)
    opened.call(
        "view.setThresholds({ nodes: 25, edges: 3 }); view.pin(a.slice(0, 2)); view.group('both', a.slice(2, 4)); "
        "view.setColour('activation'); view.select([a[5]]);",
        strongest,
    )
    opened.page.get_by_role("button", name="Zoom in").click()
    state = opened.call("return view.getState();")
    assert json.loads(json.dumps(state)) == state
    assert (state["nodes"], state["edges"], state["colour"]) == (25, 3, "activation")
    again = open_page(circuit, state=state)
    assert again.call("return view.getState();") == state
    drawn = "return [...document.querySelectorAll('.cg-stage g.cg-node')].map((g) => g.getAttribute('transform') + g.className.baseVal);"
    assert again.call(drawn) == opened.call(drawn)


@pytest.mark.parametrize(
    "state",
    [
        None,
        17,
        "state",
        [],
        {"nodes": "many", "edges": None, "pins": 3, "groups": [None, {"keys": 7}, {"name": {}, "keys": ["no"]}]},
        {"selected": ["nowhere", {"group": 9}, None, 5], "way": ["metric", "token@0"], "zoom": {"k": 0, "x": "a"}},
        {"nodes": -5, "edges": -1, "colour": "plaid", "table": "yes", "zoom": {"k": 1e9, "x": 1e12, "y": -1e12}},
    ],
)
def test_a_state_that_makes_no_sense_does_no_harm(open_page: OpenPage, circuit: Circuit, state: Any) -> None:
    opened = open_page(circuit, state=state)
    assert opened.page.locator(".cg-stage .cg-token").count() == len(circuit.tokens)
    opened.call("view.fit(); view.setState({ nodes: 5, edges: 'all' });")
    assert opened.page.locator(".cg-stage .cg-feature, .cg-stage .cg-error").count() == 5


def test_an_overlay_colours_before_after_and_change(opened: Opened, circuit: Circuit, strongest: list[str]) -> None:
    before = {key: circuit[key]["activation"] for key in circuit.features}
    after = dict(before)
    after[strongest[0]] = 0.0
    after[strongest[1]] *= 2
    marks = [{"key": strongest[0], "text": "\u00d70"}]
    opened.call("view.setOverlay(a);", {"before": before, "after": after, "marks": marks})
    assert opened.page.locator(".cg-field select").input_value() == "change"
    classes = {key: opened.node(key).get_attribute("class") for key in strongest[:3]}
    assert "cg-fell" in classes[strongest[0]] and "cg-rose" in classes[strongest[1]]
    assert "cg-same" in classes[strongest[2]]
    texts = opened.page.locator(".cg-texts text").all_text_contents()
    assert any(text.endswith("0%") for text in texts) and "200%" in texts and "\u00d70" in texts
    opened.call("view.setOverlay(null);")
    assert opened.page.locator(".cg-field select").input_value() == "effect"
    assert "cg-fell" not in opened.node(strongest[0]).get_attribute("class")


def test_an_overlay_of_kinds_has_a_legend(opened: Opened, strongest: list[str]) -> None:
    mode = {"id": "where", "name": "Where", "kind": "category", "names": ["both", "only A"], "values": {}}
    mode["values"] = {strongest[0]: 0, strongest[1]: 1}
    opened.call("view.setOverlay({ modes: [a] });", mode)
    assert "only A" in opened.text(".cg-legend")
    assert "cg-k1" in opened.node(strongest[1]).get_attribute("class")
    assert "cg-none" in opened.node(strongest[2]).get_attribute("class")


def test_the_controller_tells_of_selection_pins_groups_and_interventions(
    opened: Opened, circuit: Circuit, strongest: list[str]
) -> None:
    opened.page.evaluate(
        "() => { window.heard = []; const old = CircuitGraph.shown; const payload = old.circuit.about; old.destroy(); "
        "const view = CircuitGraph.mount(document.getElementById('circuit'), payload, { intervene: true }); "
        "CircuitGraph.shown = view; for (const type of ['select', 'pins', 'groups', 'intervene', 'state']) "
        "view.on(type, (detail) => window.heard.push([type, detail])); }"
    )
    opened.settle()
    opened.node(strongest[0]).click(force=True)
    opened.page.keyboard.press("p")
    opened.page.keyboard.press("a")
    opened.page.get_by_label("Scale slider").fill("0.5")
    opened.page.get_by_role("spinbutton").fill("-1")
    opened.page.keyboard.press("Tab")
    opened.page.get_by_label("How to change it").select_option("set")
    opened.page.get_by_label("Set to").fill("4")
    opened.page.keyboard.press("Enter")
    opened.call("view.group('g', a);", strongest[:2])
    heard = opened.page.evaluate("() => window.heard")
    assert ["select", {"keys": [strongest[0]]}] in heard and ["pins", {"keys": [strongest[0]]}] in heard
    asked = [{**detail, "value": detail.get("value")} for kind, detail in heard if kind == "intervene"]
    assert asked == [
        {"keys": [strongest[0]], "op": "ablate", "value": None},
        {"keys": [strongest[0]], "op": "scale", "value": 0.5},
        {"keys": [strongest[0]], "op": "scale", "value": -1},
        {"keys": [strongest[0]], "op": "set", "value": 4},
    ]
    assert any(kind == "groups" and detail["groups"][0]["name"] == "g" for kind, detail in heard)
    # Changes in quick succession are told once.
    assert 1 <= sum(kind == "state" for kind, _ in heard) < len(heard)


def test_a_payload_can_be_exchanged_and_leaves_nothing_of_the_old(opened: Opened, circuit: Circuit) -> None:
    from circuitsae.export.view import view_payload

    other = synthetic_circuit(seed=9, n_features=15)
    opened.call("view.select([a]);", circuit.strongest(1)[0])
    opened.call("view.setPayload(a);", view_payload(other))
    assert opened.page.locator(".cg-stage .cg-feature").count() == len(other.features)
    assert opened.call("return view.selection();") == [] and opened.page.locator(".cg-stage").count() == 1
    opened.page.keyboard.press("Escape")
    opened.node(other.strongest(1)[0]).click(force=True)
    assert opened.call("return view.selection();") == [other.strongest(1)[0]]


def test_destroy_takes_everything_away(opened: Opened) -> None:
    opened.page.evaluate("() => { CircuitGraph.shown.destroy(); document.body.classList.add('dark'); }")
    opened.page.mouse.move(300, 300)
    opened.page.keyboard.press("Escape")
    opened.page.wait_for_timeout(200)
    assert opened.page.locator(".cg").count() == 0


def test_the_theme_follows_the_host_or_is_set(opened: Opened) -> None:
    theme = "() => document.querySelector('.cg').dataset.theme"
    assert opened.page.evaluate(theme) == "light"
    opened.page.evaluate("() => document.body.classList.add('dark')")  # as Gradio has it
    opened.page.wait_for_timeout(50)
    assert opened.page.evaluate(theme) == "dark"
    opened.call("view.setTheme('light');")
    assert opened.page.evaluate(theme) == "light"


def test_the_svg_is_a_picture_of_its_own(opened: Opened, circuit: Circuit) -> None:
    svg = opened.call("return view.toSVG();")
    root = ElementTree.fromstring(svg)
    shapes = [element for element in root.iter() if element.tag.endswith("}circle")]
    assert len(shapes) >= len(circuit.features)
    assert all(element.get("fill") for element in shapes) and "var(" not in svg and "class=" not in svg
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("}text")]
    assert any(circuit.prompt in text for text in texts) and any("nodes, kept" in text for text in texts)
    assert "http://" not in svg.replace("http://www.w3.org/2000/svg", "")


def test_pictures_and_tables_are_saved_as_files(opened: Opened, circuit: Circuit) -> None:
    for name, suffix, start in [
        ("SVG picture", ".svg", b"<svg"),
        ("PNG picture", ".png", b"\x89PNG"),
        ("Nodes as CSV", ".nodes.csv", b"node,kind"),
        ("Edges as CSV", ".edges.csv", b"source,target"),
    ]:
        opened.page.locator(".cg-menu summary", has_text="Save").click()
        with opened.page.expect_download() as download:
            opened.page.get_by_role("menuitem", name=name).click()
        assert download.value.suggested_filename.startswith("when-mary-and-john")
        assert download.value.suggested_filename.endswith(suffix)
        with open(download.value.path(), "rb") as file:
            assert file.read().startswith(start)


def test_a_selection_among_many_nodes_draws_none_of_them_anew(open_page: OpenPage) -> None:
    """What a selection costs in time is measured by benchmarks.app; here, that it doesn't make 3,000 elements again."""
    opened = open_page(synthetic_circuit(seed=2, n_features=3000, n_edges=20_000, d_sae=30_000))
    assert "300 of 3,012 nodes" in opened.text(".cg-count-nodes")
    added, selected = opened.page.evaluate(
        """async () => {
          const view = CircuitGraph.shown;
          const keys = view.circuit.choosable.slice(0, 8).map((i) => view.circuit.key[i]);
          const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          view.setThresholds({ nodes: 3012, edges: 'all' });
          await frames();
          let added = 0;
          const watch = new MutationObserver((changes) => {
            for (const change of changes)
              for (const node of change.addedNodes) added += node.matches?.('g.cg-node') ? 1 : 0;
          });
          watch.observe(document.querySelector('.cg-stage'), { childList: true, subtree: true });
          for (const key of keys) {
            view.select([key]);
            await frames();
          }
          watch.disconnect();
          return [added, view.selection()];
        }"""
    )
    assert added == 0 and len(selected) == 1


def _order(opened: Opened) -> list[str]:
    return opened.call("return view.circuit.key;")
