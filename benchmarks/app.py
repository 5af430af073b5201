"""The app's speed in a real browser, as ratios to what it can't be faster than, measured in one run.

    python -m benchmarks.app [PRESET] > app.json

First paint, and the form that can be filled, against an empty gradio page's; click to paint of a selection at 300 and
3,000 nodes; click to measured effect against the model's own forward pass; Trace to painted circuit against the same
trace by the library.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import gradio as gr
import torch
from playwright.sync_api import sync_playwright

import circuitsae as cs
from benchmarks.timing import parser_of, show
from gradio_app.app import build, launch_options
from gradio_app.settings import make_settings
from tests.browser.opened import ARGUMENTS, CHROMIUM
from tests.synthetic import synthetic_circuit

PROMPT = "When Mary and John went to the store, John gave a drink to"
REPEATS = 5

SELECT = """async () => {
  const view = CircuitApp.shown.view;
  const keys = view.circuit.choosable.slice(0, 9).map((i) => view.circuit.key[i]);
  const frames = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const times = [];
  for (const key of keys) {
    const start = performance.now();
    view.select([key]);
    await frames();
    times.push(performance.now() - start);
  }
  return times.sort((a, b) => a - b)[4];
}"""

PAINTED = """(selector) => {
  const look = () => {
    if (!document.querySelector(selector)) return;
    changes.disconnect();
    requestAnimationFrame(() => setTimeout(() => (window.painted = performance.now()))); // once that frame is drawn
  };
  const changes = new MutationObserver(look);
  changes.observe(document, { childList: true, subtree: true });
}"""


def launch(demo: Any, options: dict[str, Any]) -> str:
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", **options)
    return address


def seconds_to(browser: Any, address: str, wanted: str) -> float:
    """Returns the median time from navigation until something is there and painted, in seconds, by the page's clock."""
    taken = []
    for _ in range(REPEATS):
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.add_init_script(f"({PAINTED})({wanted!r})")
        page.goto(address)
        page.wait_for_function("window.painted")
        taken.append(page.evaluate("window.painted") / 1000)
        page.close()
    return statistics.median(taken)


def forward_seconds(spliced: cs.SplicedModel) -> float:
    ids = torch.tensor([spliced.vocabulary.encode(PROMPT)])
    taken = []
    with torch.no_grad():
        for _ in range(REPEATS):
            start = time.perf_counter()
            spliced.model(ids)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("preset", nargs="?", default="smollm2")
    args = parser.parse_args(arguments)
    preset = "tiny" if args.small else args.preset
    with gr.Blocks(analytics_enabled=False) as empty:
        gr.Textbox(label="Prompt")
    settings = make_settings(preset)
    demo, service = build(settings)
    spliced = service.models.spliced(preset)
    for nodes, edges in ((300, 2000), (3000, 20_000)):
        circuit = synthetic_circuit(seed=2, n_features=nodes, n_edges=edges, d_sae=30_000)
        service.store.add(circuit, None, pinned_as=f"bench-{nodes}")
    shipped = service.shipped
    nodes_kept = shipped.form.nodes if shipped is not None and shipped.form is not None else 256  # as the form begins
    own = launch(demo, launch_options(demo, service))
    bare = launch(empty, {"footer_links": [], "ssr_mode": False})
    result: dict[str, Any] = {"preset": preset, "gradio": gr.__version__}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        result["empty_page_seconds"] = seconds_to(browser, bare, "textarea")
        result["first_paint_ratio"] = seconds_to(browser, own, ".cw .cg-node") / result["empty_page_seconds"]
        result["form_ratio"] = seconds_to(browser, own, "#ca-prompt textarea") / result["empty_page_seconds"]
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(own)
        page.wait_for_selector("#circuit-view .cw .cg-node")
        for nodes in (300, 3000):
            page.evaluate(f"CircuitApp.shown.show({{ id: 'bench-{nodes}', form: null }})")
            page.wait_for_function(f"CircuitApp.shown.shown.id === 'bench-{nodes}'")
            page.evaluate(f"CircuitApp.shown.view.setThresholds({{ nodes: {nodes + 100}, edges: 2 }})")
            page.wait_for_timeout(500)
            result[f"selection_ms_{nodes}"] = page.evaluate(SELECT)

        task = cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John"))
        library, app = [], []
        for label, text in (("Prompt", PROMPT), ("Answer", " Mary"), ("rather than", " John")):
            page.get_by_label(label, exact=True).fill(text)
        for _ in range(3):
            start = time.perf_counter()
            cs.trace(spliced, task, method="attribution-patching", max_nodes=nodes_kept)
            library.append(time.perf_counter() - start)
            before = page.evaluate("CircuitApp.shown.shown.id")
            start = time.perf_counter()
            page.get_by_role("button", name="Trace").click()
            page.wait_for_function(f"CircuitApp.shown.root.dataset.circuit !== {before!r}")
            app.append(time.perf_counter() - start)
        result["trace_seconds"] = statistics.median(library)
        result["trace_ratio"] = statistics.median(app) / result["trace_seconds"]

        forward = forward_seconds(spliced)
        keys = page.evaluate(
            "(() => { const c = CircuitApp.shown.view.circuit; return c.choosable.slice(0, 6).map((i) => c.key[i]); })()"
        )
        clicks = []
        for key in keys:
            page.evaluate("CircuitApp.shown.clear()")
            page.evaluate(f"CircuitApp.shown.put([{key!r}], 'ablate')")
            page.wait_for_function("CircuitApp.shown.result && !CircuitApp.shown.flying")
            page.wait_for_timeout(100)
            clicks.append(float(page.evaluate("CircuitApp.shown.root.dataset.measuredMs")))
        result["forward_seconds"] = forward
        # The first click makes the clean run that all others share.
        result["first_click_to_measured_ms"] = clicks[0]
        result["click_to_measured_ms"] = statistics.median(clicks[1:])
        result["click_to_measured_over_limit"] = result["click_to_measured_ms"] / (3000 * forward + 150)
        browser.close()
    demo.close(verbose=False)
    empty.close(verbose=False)
    show(result)


if __name__ == "__main__":
    main()
