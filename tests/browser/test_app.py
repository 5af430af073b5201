"""The app as a person uses it: the first minute, by mouse and by keyboard, at three widths, light and dark."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import circuitsae as cs
from circuitsae.graph.circuit import Circuit
from tests.browser.app import App, served
from tests.node import ROOT, install

pytestmark = pytest.mark.browser

OpenApp = Callable[..., App]
PICTURES = os.environ.get("CIRCUITSAE_PICTURES")  # a folder: the suite leaves the pictures of the docs there
HOSTILE = "<img src=x onerror='window.ran=1'>${window.ran=1}{{window.ran=1}}</script><script>window.ran=1</script>"


def picture(app: App, name: str) -> None:
    """Leaves a picture for the docs where the environment names a folder."""
    if PICTURES:
        app.page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_the_first_minute(app: App) -> None:
    # A circuit is there at load; its strongest node is ablated, and prediction and measurement stand side by side.
    assert app.ask("app.shown.id") == "shipped-tiny"
    key = app.strongest()[0]
    picture(app, "app-start")
    app.ablate(key)
    effect = app.ask(f"view.circuit.effect[view.circuit.row.get({json.dumps(key)})]")
    assert app.number("predicted") == pytest.approx(effect, rel=0.006)
    app.measured()
    before, after = app.ask("[app.result.metric_before, app.result.metric_after]")
    assert app.number("measured") == pytest.approx(after - before, rel=0.006)
    assert app.number("metric") == pytest.approx(after, rel=0.006)
    # The next token, before and after, as bars; the nodes coloured by what changed.
    assert app.page.locator(".cw-tokens thead").inner_text().split() == ["next", "token", "before", "after", "logit"]
    assert app.page.locator(".cg-stage .cg-fell, .cg-stage .cg-rose").count() > 1
    assert app.page.get_by_label("Colour").input_value() == "change"
    picture(app, "app-ablated")
    # Undo.
    app.page.keyboard.press("z")
    app.wait("!app.basket.edits.length")
    assert app.page.locator(".cg-stage .cg-fell, .cg-stage .cg-rose").count() == 0
    # One's own prompt; then a link that brings it all back.
    app.trace("The old keys", " are", " is")
    assert "logit of ' are' minus logit of ' is'" in app.page.locator(".cw-question").inner_text()
    app.page.get_by_role("button", name="Copy link").first.click()
    app.wait("app.root.dataset.link")
    assert app.ask("app.root.dataset.link").startswith(app.address + "/?c=")


def test_a_link_restores_question_basket_options_pins_and_view(app: App, open_app: OpenApp) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    first, second = app.strongest(2)
    app.ablate(first)
    app.measured()
    app.page.get_by_label("Error nodes").select_option("frozen")
    app.measured()
    app.ask(f"view.pin([{json.dumps(second)}])")
    app.ask("view.setThresholds({ nodes: 20, edges: 3 })")
    app.tab("Pinned set")
    app.page.get_by_role("button", name="Copy link").first.click()
    app.wait("app.root.dataset.link")
    other = open_app(app.ask("app.root.dataset.link").removeprefix(app.address))
    other.wait("app.result && app.shown.id !== 'shipped-tiny'")
    assert other.page.get_by_label("Prompt").input_value() == "The keys to the cabinet"
    assert other.ask("app.basket.edits") == [{"key": first, "op": "ablate"}]
    assert other.ask("app.options.errors") == "frozen" and other.ask("app.tab") == "set"
    assert other.ask("view.getState().pins") == [second]
    assert other.ask("view.getThresholds()") == {"nodes": 20, "edges": 3}
    assert other.number("measured") == app.number("measured")


def test_a_damaged_link_is_said_and_the_shipped_circuit_stays(open_app: OpenApp) -> None:
    app = open_app("/?c=eJyNkEFPwzAM")
    app.page.locator(".cw-problem", has_text="link is damaged").wait_for()
    assert app.page.locator(".cg-stage .cg-feature").count() > 10


def test_the_first_circuit_is_there_before_gradio_is_and_what_is_asked_of_it_is_not_lost(
    browser: Any, app: App
) -> None:
    # The page as a slow line brings it: gradio's scripts don't come yet.
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    held: list[Any] = []
    holding = True
    page.route("**/assets/*.js", lambda route: held.append(route) if holding else route.continue_())
    page.goto(app.address, wait_until="commit")
    page.wait_for_selector(".ca-early .cw .cg-node")
    assert page.locator("#circuit-view").count() == 0
    top = page.locator(".cw").first.bounding_box()["y"]
    key = page.evaluate(
        "(() => { const { circuit } = CircuitApp.shown.view; return circuit.key[circuit.choosable[0]]; })()"
    )
    page.evaluate("(key) => CircuitApp.shown.view.select([key])", key)
    page.get_by_role("button", name="Ablate", exact=True).click()
    assert "waiting for the model" in page.locator(".cw-measured b").inner_text()
    page.locator(".cg-stage").focus()
    # Now they do: the circuit goes to its place, stays what it is, and is measured.
    holding = False
    for route in held:
        route.continue_()
    page.wait_for_selector("#circuit-view .cw .cg-node")
    assert page.locator(".ca-early, #ca-early-style").count() == 0 and page.locator(".cw").count() == 1
    page.wait_for_function("CircuitApp.shown.result", timeout=60_000)
    assert page.evaluate("CircuitApp.shown.view.selection()[0]") == key
    assert page.evaluate("CircuitApp.shown.root.contains(document.activeElement)")
    assert page.locator(".cw").bounding_box()["y"] == pytest.approx(top, abs=4)
    page.close()


def test_a_page_whose_rest_does_not_come_says_so(browser: Any, app: App) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.clock.install()
    page.route("**/assets/*.js", lambda route: route.abort())
    page.goto(app.address, wait_until="commit")
    page.wait_for_selector(".ca-early .cw .cg-node")
    page.clock.fast_forward(31_000)
    assert "has not come" in page.get_by_role("alert").inner_text()
    page.unroute("**/assets/*.js")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector("#circuit-view .cw .cg-node")
    page.close()


def test_several_nodes_scaled_set_and_added(app: App) -> None:
    first, second, third = app.strongest(3)
    app.node(first).click(force=True)
    app.page.locator(".cg-intervene input[type=range]").fill("0.5")
    app.wait("app.basket.edits.length === 1")
    assert app.page.get_by_label("Scale by").input_value() == "0.5"
    app.node(second).click(force=True)
    app.page.get_by_label("How to change it").select_option("set")
    app.page.get_by_label("Set to").fill("3")
    app.page.keyboard.press("Enter")
    app.node(third).click(force=True)
    app.page.get_by_label("How to change it").select_option("add")
    app.page.get_by_label("Add", exact=True).fill("-0.25")
    app.page.keyboard.press("Enter")
    edits = [{"key": first, "op": "scale", "value": 0.5}, {"key": second, "op": "set", "value": 3}, {"key": third, "op": "add", "value": -0.25}]  # fmt: skip
    assert app.ask("app.basket.edits") == edits
    app.wait("app.result && !app.flying")
    row = "view.circuit.row.get"
    activation, slope = {}, {}
    for key in (first, second, third):
        i = f"{row}({json.dumps(key)})"
        activation[key] = app.ask(f"view.circuit.activation[{i}]")
        slope[key] = app.ask(f"view.circuit.effect[{i}]") / -activation[key]
    wanted = slope[first] * -0.5 * activation[first] + slope[second] * (3 - activation[second]) - 0.25 * slope[third]
    assert app.ask("app.summary().plain") == pytest.approx(wanted, rel=0.01)  # beside it: through the graph
    assert app.number("predicted") == pytest.approx(app.ask("app.summary().predicted"), rel=0.01)
    spliced = cs.load("tiny")
    form = app.ask("app.shown.form")
    task = cs.Task(form["prompt"], metric=cs.LogitDiff(form["answer"], form["foil"]))
    result = cs.intervene(spliced, task, [cs.Scale(first, 0.5), cs.Set(second, 3), cs.Add(third, -0.25)])
    assert app.number("measured") == pytest.approx(result.effect, rel=0.006)
    assert "interaction" in app.page.locator(".cw-gap").inner_text()
    # Back and forth, one at a time, then everything away.
    app.page.get_by_role("button", name="Undo").click()
    assert app.ask("app.basket.edits") == edits[:2]
    app.page.get_by_role("button", name="Redo").click()
    assert app.ask("app.basket.edits") == edits
    assert app.ask("Boolean(app.result)")  # known from before, at once
    app.page.get_by_role("button", name="Take").first.click()
    assert app.ask("app.basket.edits") == edits[1:]
    app.page.get_by_role("button", name="Clear", exact=True).click()
    assert app.ask("app.basket.edits") == [] and app.page.locator(".cw-numbers").count() == 0


def test_what_is_typed_outlives_an_answer_that_comes_meanwhile(app: App) -> None:
    key = app.strongest()[0]
    redraw = "(view.setMeasured({}), view.setSayings({}))"
    app.node(key).click(force=True)
    app.page.get_by_label("How to change it").select_option("add")
    app.ask(redraw)
    app.page.get_by_label("Add", exact=True).press("ControlOrMeta+a")
    app.page.keyboard.type("-0.2")
    app.ask(redraw)
    assert app.ask("app.basket.edits.length") == 0
    app.page.keyboard.press("Enter")
    assert app.ask("app.basket.edits") == [{"key": key, "op": "add", "value": -0.2}]
    app.measured()
    # Leaving the field counts too, and what is left half done for one node is not said of the next.
    app.page.get_by_label("Add", exact=True).fill("-0.3")
    app.ask(redraw)
    app.page.keyboard.press("Tab")
    assert app.ask("app.basket.edits") == [{"key": key, "op": "add", "value": -0.3}]
    app.page.get_by_label("How to change it").select_option("set")
    app.node(app.strongest(2)[1]).click(force=True)
    assert app.page.get_by_label("Scale by").input_value() == "1"


def test_error_nodes_and_tokens_are_scaled_but_not_set(app: App) -> None:
    token = app.ask("view.circuit.key[view.circuit.kind.indexOf('token') + 2]")
    app.node(token).click(force=True)
    assert app.page.get_by_label("How to change it").count() == 0
    app.page.get_by_role("button", name="Ablate", exact=True).click()
    app.measured()
    assert abs(app.number("measured")) > 0


def test_answers_that_come_late_are_not_shown_for_another_basket(app: App) -> None:
    """Clicks in quick succession: what stands at the end is measured for what is in the basket then."""
    for key in app.strongest(5):
        app.ask(f"app.put([{json.dumps(key)}], 'ablate')")
    app.wait("app.result && !app.flying")
    shown = app.ask("app.result.metric_after")
    app.ask("app.results.clear()")
    app.ask("app.carryOut()")
    app.wait("app.result && !app.flying")
    assert app.ask("app.result.metric_after") == pytest.approx(shown, abs=1e-5)
    assert app.ask("app.basket.edits.length") == 5


def test_predictions_are_checked_and_a_point_selects_its_node(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    app.tab("Predicted vs measured")
    app.wait("!app.turns && !app.measuring")  # the first ones have been measured of themselves
    app.page.get_by_role("button", name="of the 30 strongest").click()
    app.wait("app.measured.size >= 30 && !app.measuring")
    assert app.page.locator(".cw-point").count() == app.ask("app.measured.size")
    said = app.page.locator(".cw-lead b").inner_text()
    found = app.ask("[...app.measured].map(([key, y]) => [view.circuit.effect[view.circuit.row.get(key)], y])")
    assert float(said.removeprefix("r = ").replace("\u2212", "-")) == pytest.approx(_correlation(found), abs=0.01)
    picture(app, "app-measured")
    app.page.locator(".cw-point").nth(3).click(force=True)
    assert app.ask("view.selection().length") == 1
    assert app.page.locator(".cw-point.cw-chosen").count() == 1
    assert "measured" in app.page.locator(".cg-panel").inner_text()
    # What is measured can be a colour of the drawing, too.
    app.page.get_by_label("Colour").select_option("measured")
    app.tab("Effects by position")
    app.page.get_by_label("Effects shown").select_option("measured")
    filled = app.page.locator(".cw-cell", has_not_text="\u00b7").count()
    assert filled >= 20
    app.page.locator(".cw-cell", has_not_text="\u00b7").first.click()
    assert app.page.locator(".cw-cell.cw-chosen").count() == 1


def test_the_strongest_are_measured_of_themselves_and_the_list_follows(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    assert app.ask("view.circuit.about.method") == "attribution-patching"  # painted at once
    last = app.ask("view.circuit.choosable.at(-1)")
    chosen = app.ask(f"view.circuit.key[{last}]")
    app.ask(f"view.select([{json.dumps(chosen)}])")
    app.wait("!app.turns && !app.measuring")
    assert app.ask("view.selection()") == [chosen]
    assert app.ask("app.root.querySelector('.cw-status').textContent") == ""
    app.ask("view.select([])")
    rows = app.page.locator(".cg-panel .cg-number").all_inner_texts()[:10]
    assert len(rows) == 10 and not any("\u2248" in row for row in rows)
    sizes = [abs(float(row.replace("\u2212", "-"))) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    spliced, strongest = cs.load("tiny"), app.ask("view.circuit.choosable.slice(0, 10).map((i) => view.circuit.key[i])")
    task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
    for key, size in zip(strongest, sizes, strict=True):
        assert size == pytest.approx(abs(cs.intervene(spliced, task, [cs.Ablate(key)]).effect), rel=0.01)
    assert app.ask("view.circuit.choosable.some((i) => view.circuit.predicted(i))")


def test_measuring_by_itself_can_be_cancelled(app: App) -> None:
    app.trace("When Mary and John went to the store, John gave a drink to", " Mary", " John")
    app.page.get_by_role("button", name="Cancel", exact=True).click()
    app.wait("!app.turns && !app.measuring")
    assert app.ask("app.measured.size") < app.ask("view.circuit.choosable.length")


def test_measuring_can_be_stopped(app: App) -> None:
    app.tab("Predicted vs measured")
    # Each six times, or all would be measured before a hand finds the button; some are measured in what ships.
    shipped = app.ask("app.measured.size")
    app.ask("app.measure(view.circuit.choosable.flatMap((i) => Array(6).fill(view.circuit.key[i])))")
    app.page.evaluate(
        """(shipped) => new Promise((done) => {
          const look = setInterval(() => {
            const stop = document.querySelector('[title="Stop measuring"]');
            if (!stop || CircuitApp.shown.measured.size <= shipped) return;
            clearInterval(look);
            stop.click();
            done();
          }, 5);
        })""",
        shipped,
    )
    app.wait("!app.measuring")
    measured = app.ask("app.measured.size")
    assert shipped < measured < app.ask("view.circuit.choosable.length")
    app.page.wait_for_timeout(500)
    assert app.ask("app.measured.size") == measured


def test_the_pinned_set_is_measured_against_random_ones(app: App) -> None:
    app.tab("Pinned set")
    app.page.get_by_role("button", name="Pin the 20 strongest").click()
    app.page.get_by_role("button", name="Measure, errors kept").click()
    app.wait("app.faithful")
    assert app.page.locator(".cw-random").count() == 5 and app.page.locator(".cw-set").count() == 1
    # Error nodes among them are kept anyway, and do not count.
    features = sum("/error" not in key for key in app.ask("view.getState().pins"))
    assert f"20 nodes pinned: {features} of the " in app.page.locator(".cw-pane").inner_text()


def test_two_prompts_are_one_graph(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    first = app.ask("app.shown.id")
    app.tab("Compare")
    app.page.get_by_label("Second prompt").fill("The key to the cabinet")
    app.page.keyboard.press("Enter")
    app.wait("app.shown.comparesWith")
    app.settle()
    picture(app, "app-compared")
    counts = [int(text.split()[0]) for text in app.page.locator(".cw-counts li").all_inner_texts()]
    assert sum(counts) == app.ask("view.circuit.choosable.length") and all(counts)
    assert [app.page.locator(f".cg-stage .cg-k{k}").count() > 0 for k in range(3)] == [True] * 3
    assert app.page.get_by_role("button", name="Ablate", exact=True).count() == 0
    app.page.get_by_role("button", name="Back to A").click()
    app.wait(f"app.shown.id === {json.dumps(first)}")


def test_the_model_writes_on_before_and_after(app: App) -> None:
    app.ablate(app.strongest()[0])
    app.measured()
    app.page.get_by_role("button", name="Let the model write on").click()
    app.wait("app.written")
    assert app.page.locator(".cw-written p").count() == 2


def test_files_are_downloaded_and_opened_again(app: App, open_app: OpenApp, browser: Any, tmp_path: Path) -> None:
    key = app.strongest()[0]
    app.ablate(key)
    app.measured()
    app.page.keyboard.press("p")
    app.tab("Keep")
    saved: dict[str, Path] = {}
    for name in (
        "Circuit (JSON)",
        "Page that opens from disk",
        "Python program",
        "GraphML",
        "Graphviz",
        "Picture (SVG)",
    ):
        with app.page.expect_download() as download:
            app.page.get_by_role("button", name=name).click()
        saved[name] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[name])
    assert f"cs.Ablate('{key}')" in saved["Python program"].read_text()
    circuit = cs.Circuit.load(saved["Circuit (JSON)"])
    # The page has the pins and the interventions in it, and needs nobody.
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(saved["Page that opens from disk"].as_uri())
    page.wait_for_selector(".cg-node")
    assert page.evaluate("CircuitGraph.shown.getState().pins") == [key]
    assert "ablated" in page.locator(".cg-note").inner_text()
    assert page.locator(".cg-stage .cg-fell, .cg-stage .cg-rose").count() > 1
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    page.close()
    # A circuit that was saved comes back and fills the form.
    other = open_app()
    other.trace("The keys to the cabinet", " are", " is")
    other.tab("Keep")
    other.page.get_by_label("A saved circuit").set_input_files(saved["Circuit (JSON)"])
    other.wait(f"view.circuit.about.prompt === {json.dumps(circuit.prompt)}")
    other.page.wait_for_function(
        f"() => document.querySelector('#ca-prompt textarea').value === {json.dumps(circuit.prompt)}"
    )
    other.page.get_by_label("A saved circuit").set_input_files(
        {"name": "x.json", "mimeType": "application/json", "buffer": b'{"schema": "no"}'}
    )
    other.page.locator(".cw-problem", has_text="can't be read").wait_for()
    assert other.ask("view.circuit.about.prompt") == circuit.prompt


def test_a_bad_field_is_said_beside_it_and_the_circuit_stays(app: App) -> None:
    app.page.get_by_label("Answer", exact=True).fill("are is")
    app.page.get_by_role("button", name="Trace").click()
    form = app.page.locator(".ca-form")
    form.get_by_text("The answer 'are is' is 2 tokens").wait_for()
    assert app.ask("app.shown.id") == "shipped-tiny" and app.page.locator(".cg-stage .cg-feature").count() > 10
    app.page.get_by_label("Prompt", exact=True).fill(" ")
    app.page.get_by_role("button", name="Trace").click()
    form.get_by_text("The prompt is empty").wait_for()


def test_an_example_is_traced_at_once(app: App) -> None:
    app.page.get_by_label("Examples").click()
    app.page.get_by_role("option", name="capital", exact=True).click()
    app.wait("view.circuit.about.prompt === 'The capital of France is'")


def test_the_keyboard_alone_is_enough(app: App) -> None:
    page = app.page
    page.get_by_label("Prompt", exact=True).focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("The keys to the cabinet")
    page.keyboard.press("Tab")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(" are")
    page.keyboard.press("Tab")
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type(" is")
    page.keyboard.press("Enter")
    app.wait("view.circuit.about.prompt === 'The keys to the cabinet'")
    app.settle()
    for _ in range(60):  # on to the drawing, whose nodes are one stop
        page.keyboard.press("Tab")
        if page.evaluate("() => Boolean(document.activeElement.closest('.cg-stage g.cg-node'))"):
            break
    page.keyboard.press("Enter")
    assert app.ask("view.selection().length") == 1
    page.keyboard.press("a")
    app.measured()
    assert "measured" in page.locator(".cg-live").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    page.keyboard.press("a")
    app.wait("app.basket.edits.length === 2 && app.result")
    page.keyboard.press("z")
    page.keyboard.press("Shift+Z")
    assert app.ask("app.basket.edits.length") == 2
    page.get_by_role("tab", name="Next token").focus()
    page.keyboard.press("ArrowRight")
    assert app.ask("app.tab") == "scatter"


@pytest.mark.parametrize("width", [1280, 768, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_width_in_light_and_dark(open_app: OpenApp, width: int, theme: str) -> None:
    app = open_app(
        f"/?__theme={theme}", viewport={"width": width, "height": 844}, color_scheme=theme, has_touch=width == 390
    )  # type: ignore[arg-type]
    assert app.page.locator(".cw").get_attribute("data-theme") == theme
    assert app.page.locator(".cw .cg").get_attribute("data-theme") == theme
    # Nothing is wider than the window, and the drawing has room.
    assert app.page.evaluate("document.documentElement.scrollWidth") <= width
    box = app.page.locator(".cg-stage").bounding_box()
    assert box["width"] >= min(width - 40, 560) and box["height"] >= 300
    key = app.strongest()[0]
    app.ask(f"view.select([{json.dumps(key)}])")
    app.settle()
    app.page.get_by_role("button", name="Ablate", exact=True).click()
    app.measured()
    assert app.page.locator(".cw-measured b").inner_text().startswith(("+", "\u2212"))
    picture(app, f"app-{width}-{theme}")
    assert _serious(app) == []


def test_axe_finds_nothing_serious_in_any_tab(app: App) -> None:
    if _axe() is None:
        pytest.skip("axe-core comes from npm, which can't be reached; AXE= names its axe.min.js")
    app.ask(f"view.select([{json.dumps(app.strongest()[0])}])")
    app.ask(f"view.pin({json.dumps(app.strongest(3))})")
    for name in ("Predicted vs measured", "Effects by position", "Pinned set", "Compare", "Keep"):
        app.tab(name)
        assert _serious(app) == []
    app.page.get_by_role("button", name="Table", exact=True).click()
    assert _serious(app) == []


def test_hostile_text_runs_nowhere(app: App, tmp_path: Path) -> None:
    circuit = cs.Circuit.from_json(Path("gradio_app/circuits/tiny.json").read_bytes())
    graph = circuit.graph
    graph.graph["prompt"] = HOSTILE
    graph.graph["tokens"] = [HOSTILE] * len(graph.graph["tokens"])
    graph.graph["top_tokens"] = [[HOSTILE, 0.5]]
    graph.graph["metric"] = {**graph.graph["metric"], "description": HOSTILE}
    for _, data in graph.nodes(data=True):
        if data["kind"] == "feature":
            data["label"] = HOSTILE
    circuit.save(tmp_path / "hostile.json")
    app.tab("Keep")
    app.page.get_by_label("A saved circuit").set_input_files(tmp_path / "hostile.json")
    app.wait("view.circuit.about.prompt.startsWith('<img')")
    for name in ("Next token", "Predicted vs measured", "Effects by position", "Pinned set", "Compare"):
        app.tab(name)
        app.page.wait_for_timeout(50)
    app.ask(f"view.select([{json.dumps(app.strongest()[0])}])")
    app.page.get_by_role("button", name="Table", exact=True).click()
    # In the form, as a prompt and as answers: what is wrong with them is said as text.
    for label in ("Prompt", "Answer", "rather than"):
        app.page.get_by_label(label, exact=True).fill(HOSTILE)
    app.page.get_by_role("button", name="Trace").click()
    app.page.wait_for_timeout(1500)
    assert app.page.evaluate("window.ran") is None
    assert app.page.locator("img[src=x]").count() == 0


def test_a_lost_app_is_said_and_the_page_goes_on(app: App) -> None:
    app.page.route("**/gradio_api/**", lambda route: route.abort())
    app.tab("Keep")
    app.page.get_by_role("button", name="GraphML").click()
    app.page.locator(".cw-problem", has_text="can't be reached").wait_for()
    app.page.unroute("**/gradio_api/**")
    with app.page.expect_download():
        app.page.get_by_role("button", name="Try again").click()
    app.ablate(app.strongest()[0])
    app.measured()
    app.complaints.clear()  # the browser's own, of what was aborted


@pytest.fixture(scope="module")
def real_app(browser: Any) -> Iterator[str]:
    """The address of an app with `smollm2`, whose model is loaded behind the page."""
    from circuitsae.presets import find_preset, is_present

    if not is_present(find_preset("smollm2")):
        pytest.skip("smollm2's model is not fetched")
    with served("smollm2") as (address, service):
        service.models.start()
        yield address


@pytest.mark.smollm2
@pytest.mark.parametrize(("width", "theme"), [(1280, "light"), (768, "dark"), (390, "light"), (1280, "dark")])
def test_the_first_minute_on_a_real_model(browser: Any, real_app: str, width: int, theme: str) -> None:
    options = {"viewport": {"width": width, "height": 900}, "has_touch": width == 390, "color_scheme": theme}
    app = App(browser, real_app, f"/?__theme={theme}", **options)
    app.page.set_default_timeout(240_000)
    try:
        assert app.ask("app.shown.id") == "shipped-smollm2"
        key = app.strongest()[0]
        app.ask(f"view.select([{json.dumps(key)}])") if width < 700 else app.node(key).click(force=True)
        app.page.get_by_role("button", name="Ablate", exact=True).click()
        app.measured()
        before, after = app.ask("[app.result.metric_before, app.result.metric_after]")
        assert app.number("measured") == pytest.approx(after - before, rel=0.006, abs=1e-6)
        shipped = Circuit.load(Path(__file__).parents[2] / "gradio_app" / "circuits" / "smollm2.json")[key]
        assert app.number("predicted") == pytest.approx(shipped["effect"], rel=0.01)
        assert app.number("measured") == pytest.approx(shipped["measured_effect"], rel=0.02)
        picture(app, "app-smollm2" if (width, theme) == (1280, "light") else f"app-smollm2-{width}-{theme}")
        assert app.page.evaluate("document.documentElement.scrollWidth") <= width
        assert _serious(app) == []
        app.page.locator(".cw-basket").get_by_role("button", name="Undo").click()
        assert app.ask("app.basket.edits.length") == 0
        app.trace(["The capital of Italy is", "The capital of Spain is"][width > 700], " Rome", " Paris")
        app.ask(f"view.select([{json.dumps(app.strongest()[0])}])")
        app.page.get_by_role("button", name="Ablate", exact=True).click()
        app.measured()
        app.page.get_by_role("button", name="Copy link").first.click()
        app.wait("app.root.dataset.link")
    finally:
        app.close()


def _correlation(pairs: list[list[float]]) -> float:
    n = len(pairs)
    a, b = sum(x for x, _ in pairs) / n, sum(y for _, y in pairs) / n
    ab = sum((x - a) * (y - b) for x, y in pairs)
    return ab / (sum((x - a) ** 2 for x, _ in pairs) * sum((y - b) ** 2 for _, y in pairs)) ** 0.5


@functools.cache
def _axe() -> str | None:
    """Returns axe's script: the file that AXE names, else the one that package.json pins; `None` where npm can't have it."""
    if named := os.environ.get("AXE"):
        return named
    return None if install() else str(ROOT / "node_modules" / "axe-core" / "axe.min.js")


def _serious(app: App) -> list[str]:
    """Returns what axe finds that is serious; nothing where axe is not there, which a test of its own says."""
    script = _axe()
    if script is None:
        return []
    app.page.add_script_tag(path=script)
    found = app.page.evaluate("async () => (await axe.run(document)).violations")
    return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
