"""Work that is not lost and numbers that say what they are: the form, the basket, the tabs, links, a server that goes."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import networkx as nx
import pytest

import circuitsae as cs
from tests.browser.app import App

pytestmark = pytest.mark.browser

OpenApp = Callable[..., App]
ROOT = Path(__file__).parents[2]


def test_leaving_the_list_of_examples_does_nothing(app: App) -> None:
    app.page.get_by_label("Examples").click()
    app.page.get_by_role("option", name="capital", exact=True).click()
    app.wait("view.circuit.about.prompt === 'The capital of France is'")
    app.ablate(app.strongest()[0])
    app.measured()
    prompt = app.page.get_by_label("Prompt", exact=True)
    prompt.fill("The largest planet")
    circuit = app.ask("app.shown.id")
    # Into the list and out of it again, by Tab and by a click elsewhere.
    app.page.get_by_label("Examples").focus()
    app.page.keyboard.press("Tab")
    app.page.get_by_label("Examples").click()
    prompt.click()
    app.page.wait_for_timeout(700)
    assert prompt.input_value() == "The largest planet"
    assert app.ask("app.shown.id") == circuit and app.ask("app.basket.edits.length") == 1


def test_answer_and_foil_are_always_there_with_their_logits(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    assert [row.split()[-1] for row in app.page.locator(".cw-asked th").all_inner_texts()] == ["answer", "foil"]
    key = app.strongest()[0]
    app.ablate(key)
    app.measured()
    result = cs.intervene(
        cs.load("tiny"), cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is")), [cs.Ablate(key)]
    )
    rows = app.ask("app.result.next.filter((row) => row[5])")
    assert {row[5] for row in rows} == {"answer", "foil"}
    for text, before, after, from_logit, to_logit, _ in rows:
        token = result.vocabulary.token_id(text)
        assert before == pytest.approx(float(result.logits_before.softmax(-1)[token]), rel=1e-3)
        assert after == pytest.approx(float(result.logits_after.softmax(-1)[token]), rel=1e-3)
        assert [from_logit, to_logit] == pytest.approx(
            [float(result.logits_before[token]), float(result.logits_after[token])], abs=1e-3
        )
    shown = app.page.locator(".cw-asked").all_inner_texts()
    assert len(shown) == 2 and all("\u2192" in text for text in shown)
    # A bar is as long as the probability, not as the largest of them.
    width = app.page.locator(".cw-asked .cw-was").first.evaluate("(bar) => bar.style.width")
    assert float(width.removesuffix("%")) == pytest.approx(100 * next(row[1] for row in rows if row[5] == "answer"))


def test_several_nodes_of_a_chain_are_predicted_through_the_graph(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    entry = app.ask("app.shown.id")
    payload: dict[str, Any] = json.loads(app.ask("JSON.stringify(view.circuit.about)"))
    assert entry and payload["nodes"]
    graph, key = _graph(app)
    # The strongest feature, one that feeds it, and one that feeds that.
    top = max((i for i in graph if graph.nodes[i]["kind"] == "feature"), key=lambda i: abs(graph.nodes[i]["effect"]))
    chain = [top]
    while len(chain) < 3:
        below = [i for i in graph.predecessors(chain[0]) if graph.nodes[i]["kind"] == "feature"]
        chain.insert(0, max(below, key=lambda i: abs(graph.edges[i, chain[0]]["contribution"])))
    app.ask(f"app.put({json.dumps([key[i] for i in chain])}, 'ablate')")
    app.measured()
    # The same by hand: what is left to take from each once those before it have moved it.
    moved: dict[int, float] = {}
    total = 0.0
    for i in nx.topological_sort(graph):
        node = graph.nodes[i]
        given = 0.0
        for source in graph.predecessors(i):
            edge = graph.edges[source, i]
            if moved.get(source):
                share = edge["contribution"] / node["activation"] if node["kind"] == "feature" else edge["weight"] / (node["effect"] or float("inf"))  # fmt: skip
                given += moved[source] * share
        if i in chain:
            total += (1 - given) * node["effect"]
            moved[i] = 1.0
        else:
            moved[i] = given
    plain = sum(graph.nodes[i]["effect"] for i in chain)
    assert app.number("predicted") == pytest.approx(total, rel=0.01)
    assert app.number("sum") == pytest.approx(plain, rel=0.01)
    assert abs(total - plain) > 0.01 * abs(plain)


def _graph(app: App) -> tuple[nx.DiGraph, list[str]]:
    """Returns the circuit on the screen by rows, and its keys."""
    found = app.ask(
        "(() => { const c = view.circuit, list = (a) => Array.from(a, (v) => (Number.isNaN(v) ? 0 : v)); return "
        "{ kind: c.kind, key: c.key, effect: list(c.effect), activation: list(c.activation), source: list(c.source), "
        "target: list(c.target), weight: list(c.weight), contribution: list(c.contribution) }; })()"
    )
    graph = nx.DiGraph()
    for i, kind in enumerate(found["kind"]):
        graph.add_node(i, kind=kind, effect=found["effect"][i], activation=found["activation"][i])
    for source, target, weight, contribution in zip(
        found["source"], found["target"], found["weight"], found["contribution"], strict=True
    ):
        graph.add_edge(source, target, weight=weight, contribution=contribution)
    return graph, found["key"]


def test_scaling_what_reads_zero_gets_a_reason(app: App) -> None:
    first, second = app.strongest(2)
    app.ask(f"app.put([{json.dumps(first)}], 'ablate')")
    app.measured()
    app.ask(f"app.put([{json.dumps(second)}], 'scale', 2)")
    app.wait("app.result && app.basket.edits.length === 2")
    # A run in which the second reads 0: as measured, but for that.
    app.ask(
        f"(() => {{ const i = view.circuit.row.get({json.dumps(second)}); app.result.after[i] = 0; app.apply(app.result); }})()"
    )
    name = app.ask(f"view.circuit.name(view.circuit.row.get({json.dumps(second)}))")
    assert app.page.locator(".cw-reason").inner_text().startswith(f"{name} is 0 there once ")


def test_the_ways_are_in_the_history_and_a_slider_is_one_step(app: App) -> None:
    key = app.strongest()[0]
    app.node(key).click(force=True)
    app.page.get_by_label("Scale slider").focus()
    for _ in range(5):
        app.page.keyboard.press("ArrowLeft")
    app.wait("app.basket.edits.length === 1 && app.basket.edits[0].value === 0.75")
    app.page.get_by_label("Error nodes").select_option("frozen")
    app.wait("app.options.errors === 'frozen'")
    app.page.get_by_role("button", name="Undo").click()
    assert app.ask("app.options.errors") == "live" and app.page.get_by_label("Error nodes").input_value() == "live"
    assert app.ask("app.basket.edits") == [{"key": key, "op": "scale", "value": 0.75}]
    app.page.get_by_role("button", name="Undo").click()
    assert app.ask("app.basket.edits") == [] and not app.ask("app.basket.canUndo")


def test_pins_are_counted_once(app: App) -> None:
    app.tab("Pinned set")
    app.page.get_by_role("button", name="Pin the 20 strongest").click()
    pins = app.ask("view.getState().pins")
    error = app.ask("view.circuit.key.find((key, i) => view.circuit.kind[i] === 'error')")
    app.ask(f"(view.pin([{json.dumps(pins[-1])}], false), view.pin([{json.dumps(error)}]))")
    errors = sum("/error" in key for key in app.ask("view.getState().pins"))
    assert errors >= 1
    app.page.get_by_role("button", name="Measure, errors kept").click()
    app.wait("app.faithful")
    text = app.page.locator(".cw-pane").inner_text()
    assert (
        text.count("20 nodes pinned") == 2
        and f": {20 - errors} of the " in text
        and f"The other {errors} pinned" in text
    )


def test_prompts_of_unequal_length_are_not_compared(app: App) -> None:
    app.trace("The keys to the cabinet", " are", " is")
    shown = app.ask("app.shown.id")
    app.tab("Compare")
    app.page.get_by_label("Second prompt").fill("The old keys to the cabinet")
    app.page.keyboard.press("Enter")
    app.page.locator(".cw-problem", has_text="expected as many").wait_for()
    assert app.ask("app.shown.id") == shown
    # Of two that can be compared, it is said whose each number is, in colours that are not those of sign.
    app.page.get_by_label("Second prompt").fill("The key to the cabinet")
    app.page.keyboard.press("Enter")
    app.wait("app.shown.comparesWith")
    app.ask("view.select([view.circuit.key[view.circuit.choosable[0]]])")
    numbers = app.page.locator(".cg-numbers").inner_text()
    assert "Activation in A, in B" in numbers and "Effect in A, in B" in numbers
    colours = app.page.locator(".cw .cg").first.evaluate(
        "(root) => ['k0', 'k1', 'k2', 'up', 'down'].map((name) => getComputedStyle(root).getPropertyValue(`--cg-${name}`).trim())"
    )
    assert len(set(colours)) == 5


def test_what_is_wrong_with_a_field_does_not_move_the_page(app: App) -> None:
    top = app.page.locator(".cw").bounding_box()["y"]
    app.page.get_by_label("Answer", exact=True).fill("are is")
    app.page.get_by_role("button", name="Trace").click()
    app.page.locator(".ca-form").get_by_text("The answer 'are is' is 2 tokens").wait_for()
    assert app.page.locator(".cw").bounding_box()["y"] == pytest.approx(top, abs=1)


def test_a_reload_brings_everything_back_from_the_address_and_the_browser(app: App) -> None:
    assert "?c=" not in app.page.url
    app.trace("The keys to the cabinet", " are", " is")
    first, second = app.strongest(2)
    app.ablate(first)
    app.measured()
    app.ask(f"view.pin([{json.dumps(second)}])")
    app.page.wait_for_url("**/?c=*")
    app.page.wait_for_timeout(600)
    # Without the app: the browser has the circuit, its pins and what was predicted.
    app.page.route("**/assets/*.js", lambda route: route.abort())
    app.page.reload(wait_until="commit")
    app.wait("app.shown.kept")
    assert app.ask("view.circuit.about.prompt") == "The keys to the cabinet"
    assert app.ask("view.getState().pins") == [second] and app.number("predicted")
    assert "Restored from this browser" in app.page.locator(".cw-told").inner_text()
    # With it: the same circuit, measured.
    app.page.unroute("**/assets/*.js")
    app.page.reload()
    app.wait("!app.shown.kept && app.result")
    assert app.ask("app.basket.edits") == [{"key": first, "op": "ablate"}] and app.ask("view.getState().pins") == [
        second
    ]
    assert app.page.get_by_label("Prompt", exact=True).input_value() == "The keys to the cabinet"
    app.page.get_by_role("button", name="Start afresh").click()
    app.wait("app.shown.id === 'shipped-tiny'")
    app.complaints.clear()  # the browser's own, of what was aborted


def test_two_tabs_do_not_disturb_one_another(app: App, open_app: OpenApp) -> None:
    other = open_app()
    app.trace("The keys to the cabinet", " are", " is")
    other.trace("The old keys", " are", " is")
    app.ablate(app.strongest()[0])
    other.ablate(other.strongest()[0])
    app.measured()
    other.measured()
    assert app.ask("view.circuit.about.prompt") == "The keys to the cabinet"
    assert other.ask("view.circuit.about.prompt") == "The old keys"


@pytest.fixture
def server() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """A function that starts an app of its own at one port, again and again; whatever runs at the end is ended."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "gradio_app", "--preset", "tiny", "--port", "7971", "--no-browser"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        for _ in range(240):
            try:
                urllib.request.urlopen("http://127.0.0.1:7971/", timeout=5).read()
                return started[-1]
            except OSError:
                time.sleep(0.5)
        raise AssertionError("the app did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_server_that_goes_is_missed_at_once_and_found_again(
    browser: Any, server: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = server()
    app = App(browser, "http://127.0.0.1:7971")
    app.trace("The keys to the cabinet", " are", " is")
    key = app.strongest()[0]
    app.page.wait_for_timeout(600)
    process.send_signal(signal.SIGSTOP)  # it measures, and then is gone
    app.ablate(key)
    process.kill()
    process.wait()
    started = time.monotonic()
    app.page.locator(".cw-problem", has_text="can't be reached").wait_for()
    assert time.monotonic() - started < 10
    server()
    app.page.wait_for_function("() => window.CircuitApp && CircuitApp.shown && CircuitApp.shown.result", timeout=90_000)
    assert app.ask("app.basket.edits") == [{"key": key, "op": "ablate"}]
    assert app.ask("view.circuit.about.prompt") == "The keys to the cabinet"
    app.context.close()
