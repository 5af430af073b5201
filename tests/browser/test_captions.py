"""What is written at the nodes: nothing covers anything else, and it says what an intervention did."""

from collections.abc import Callable
from typing import Any

import pytest

from circuitsae.graph.circuit import Circuit
from tests.browser.opened import Opened
from tests.synthetic import synthetic_circuit

pytestmark = pytest.mark.browser

OVERLAY = """const rows = view.circuit.choosable, key = (i) => view.circuit.key[i];
  const before = Array.from(view.circuit.activation);
  const after = before.map((value, i) => (i % 3 ? value : value * 0.4));
  view.setOverlay({ before, after, metric: [2.31, 0.88], marks: rows.slice(0, 8).map((i) => ({ key: key(i), text: '\\u00d70' })) });"""
CAPTIONS = """() => [...document.querySelectorAll('.cg-texts text')].map((text) => {
  const { left, right, top, bottom } = text.getBoundingClientRect();
  return { text: text.textContent, left, right, top, bottom };
})"""


@pytest.fixture(scope="module")
def large() -> Circuit:
    return synthetic_circuit(seed=3, n_features=300)


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_no_two_captions_overlap(open_page: Callable[..., Opened], large: Circuit, width: int) -> None:
    opened = open_page(large, viewport={"width": width, "height": 900})
    opened.call(f"view.pin(view.circuit.choosable.slice(0, 40).map((i) => view.circuit.key[i])); {OVERLAY}")
    captions = opened.page.evaluate(CAPTIONS)
    assert len(captions) > 15
    assert any(one["text"] == "\u00d70" for one in captions) and any(one["text"].endswith("%") for one in captions)
    for n, a in enumerate(captions):
        for b in captions[:n]:
            apart = (
                a["right"] <= b["left"] or b["right"] <= a["left"] or a["bottom"] <= b["top"] or b["bottom"] <= a["top"]
            )
            assert apart, (a, b)


def test_the_metric_says_before_and_after(opened: Opened) -> None:
    pill = opened.page.locator(".cg-stage .cg-metric text")
    plain = pill.text_content()
    assert plain is not None and plain.startswith("metric")
    opened.call(OVERLAY)
    assert pill.text_content() == "2.31 \u2192 0.88"
    box, text = opened.page.locator(".cg-stage .cg-metric rect").bounding_box(), pill.bounding_box()
    assert box["x"] <= text["x"] and text["x"] + text["width"] <= box["x"] + box["width"]
    svg = opened.call("return view.toSVG();")
    assert "with interventions 0.88" in svg and ">unchanged<" in svg
    opened.call("view.setOverlay(null);")
    assert pill.text_content() == plain


def test_where_nothing_else_changed_the_colours_stay(opened: Opened) -> None:
    opened.call(
        "const before = Array.from(view.circuit.activation); const after = before.slice(); const i = view.circuit.choosable[0];"
        "after[i] = 0; view.setOverlay({ before, after, marks: [{ key: view.circuit.key[i], text: '\\u00d70' }] });"
    )
    assert opened.page.get_by_label("Colour").input_value() == "effect"
    assert "no other node changed" in opened.text(".cg-legend")


def test_a_group_gets_a_name_keeps_the_focus_and_shows_its_change(opened: Opened) -> None:
    first, second = opened.call("return view.circuit.choosable.slice(0, 2).map((i) => view.circuit.key[i]);")
    opened.node(first).click(force=True)
    opened.node(second).click(force=True, modifiers=["Shift"])
    opened.node(second).focus()
    opened.page.keyboard.press("g")
    # What is typed is the name, and the keyboard goes on in the drawing.
    opened.page.keyboard.type("movers")
    opened.page.keyboard.press("Enter")
    opened.settle()
    group = opened.page.locator(".cg-stage .cg-group")
    assert group.text_content() == "movers"
    assert group.evaluate("(element) => element === document.activeElement")
    opened.call(
        "const before = Array.from(view.circuit.activation); const after = before.map((v, i) => (a.includes(view.circuit.key[i]) ? 0 : v));"
        "view.setOverlay({ before, after, marks: a.map((key) => ({ key, text: '\\u00d70' })) }); view.setColour('change');",
        [first, second],
    )
    texts = opened.page.locator(".cg-texts text").all_text_contents()
    assert "\u00d70" in texts and "0%" in texts
    assert "cg-fell" in group.get_attribute("class")


def test_a_search_without_matches_says_so(opened: Opened) -> None:
    opened.page.get_by_label("Search nodes").fill("zzzz")
    assert opened.text(".cg-found") == "Nothing found"


def test_the_metric_can_not_be_ablated_and_the_keys_are_listed(
    open_page: Callable[..., Opened], circuit: Circuit
) -> None:
    opened = open_page(circuit)
    opened.page.evaluate(
        "() => { const old = CircuitGraph.shown, payload = old.circuit.about; old.destroy(); CircuitGraph.shown = "
        "CircuitGraph.mount(document.getElementById('circuit'), payload, { intervene: true, keys: [['Z', 'undo']] }); }"
    )
    opened.call("view.select(['metric']);")
    assert opened.page.get_by_role("button", name="Ablate", exact=True).count() == 0
    opened.page.keyboard.press("Escape")
    opened.page.locator(".cg-stage").click(position={"x": 300, "y": 5})
    opened.page.get_by_label("Keys", exact=True).click()
    keys = opened.text(".cg-keys")
    assert "undo" in keys and "ablate" in keys


def test_several_nodes_by_touch(open_page: Callable[..., Opened], circuit: Circuit) -> None:
    opened = open_page(circuit, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = opened.page
    first, second, third = opened.call(
        "return view.circuit.choosable.filter((i) => view.circuit.position[i] === view.circuit.tokens.length - 1)"
        ".slice(0, 3).map((i) => view.circuit.key[i]);"
    )

    def middle(key: str) -> tuple[float, float]:
        opened.call("view.fit();")
        box: Any = opened.node(key).bounding_box()
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    # A long press adds to the selection.
    for key in (first, second):
        x, y = middle(key)
        page.evaluate(
            """([x, y]) => new Promise((done) => {
              const at = { clientX: x, clientY: y, pointerId: 7, pointerType: 'touch', bubbles: true, button: 0 };
              const svg = document.querySelector('.cg-stage > svg');
              svg.dispatchEvent(new PointerEvent('pointerdown', at));
              setTimeout(() => (svg.dispatchEvent(new PointerEvent('pointerup', at)), done()), 700);
            })""",
            [x, y],
        )
    assert opened.call("return view.selection();") == [first, second]
    opened.call("view.select([]);")
    # So does each tap in the select mode, and a group is made without a keyboard.
    page.get_by_role("button", name="Select", exact=True).tap()
    for key in (first, second, third):
        page.touchscreen.tap(*middle(key))
        opened.settle()
    assert opened.call("return view.selection();") == [first, second, third]
    page.locator(".cg-panel").get_by_role("button", name="Group", exact=True).tap()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-group").count() == 1


def test_a_wall_of_edges_is_not_drawn(open_page: Callable[..., Opened]) -> None:
    opened = open_page(synthetic_circuit(seed=2, n_features=600, n_edges=40_000))
    opened.call("view.setThresholds({ nodes: 612, edges: 'all' });")
    assert opened.text(".cg-count-edges").startswith("12,000 of ")
    assert "12,000" in opened.page.locator(".cg-reasons").text_content()
