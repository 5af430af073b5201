"""The page: a prompt and an answer in; the drawing that the HTML export has too, and the strongest features, out."""

import html
import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import gradio as gr

import circuitsae as cs
from circuitsae import registry
from circuitsae.errors import CircuitsaeError
from circuitsae.model.spliced import SplicedModel
from circuitsae.presets import default_preset, find_preset, list_presets

_COLUMNS = ["node", "token", "activation", "effect", "label"]
_one_at_a_time = threading.Lock()


def serve(preset: str | None = None, host: str = "127.0.0.1", port: int | None = None, browser: bool = False) -> None:
    """Starts the app and stays until it is stopped.

    Raises:
        UnknownNameError: No preset is called that.
    """
    demo = build(find_preset(preset).name if preset else default_preset().name)
    demo.launch(server_name=host, server_port=port, inbrowser=browser, share=False, ssr_mode=False)


def build(preset: str) -> gr.Blocks:
    """Returns the app, with a preset chosen."""
    presets = [p.name for p in list_presets()]
    with gr.Blocks(title="circuitsae", analytics_enabled=False, fill_width=True) as demo:
        gr.Markdown("# circuitsae\nWhich features of the model make it give this answer rather than that one?")
        with gr.Row():
            chosen = gr.Dropdown(presets, value=preset, label="Preset", scale=1)
            prompt = gr.Textbox(_PROMPT, label="Prompt", scale=4)
            answer = gr.Textbox(" Mary", label="Answer", info="one token, with its space", scale=1)
            foil = gr.Textbox(" John", label="Foil", info="empty: the answer alone", scale=1)
            nodes = gr.Slider(16, 512, 128, step=16, label="Nodes kept", scale=1)
        with gr.Row():
            go = gr.Button("Trace", variant="primary")
            stop = gr.Button("Cancel")
        status = gr.Textbox(label="Status", interactive=False, lines=2)
        page = gr.HTML(label="Circuit")
        table = gr.Dataframe(headers=_COLUMNS, label="Strongest features", interactive=False)
        inputs = [chosen, prompt, answer, foil, nodes]
        running = go.click(trace, inputs, [status, page, table], api_name="trace", concurrency_limit=1)
        stop.click(None, cancels=[running], api_visibility="private")
    return demo


def trace(
    preset: str,
    prompt: str,
    answer: str,
    foil: str,
    nodes: float,
    progress: gr.Progress = gr.Progress(),  # noqa: B008
) -> Iterator[tuple[str, Any, Any]]:
    """Traces a circuit: a line about it, the drawing as HTML, and the table of its strongest features."""
    yield f"Tracing with {preset} ...", gr.skip(), gr.skip()
    try:
        with _one_at_a_time:
            spliced = _spliced(preset)
            metric = cs.LogitDiff(answer, foil) if foil else cs.Logit(answer)
            circuit = cs.trace(
                spliced,
                cs.Task(prompt, metric=metric),
                max_nodes=int(nodes),
                progress=lambda done, total, what: progress((done, total), desc=what),
            )
            drawing = registry.get("exporters", "html")(circuit)
    except CircuitsaeError as error:
        raise gr.Error(html.escape(str(error)), title="") from error
    rows = [_row(key, circuit[key]) for key in circuit.strongest(30, kind="feature")]
    yield "\n".join(circuit.report(0).splitlines()[:4]), _framed(drawing), rows


def _row(key: str, about: dict[str, Any]) -> list[str]:
    numbers = [f"{about[name]:.4g}" if name in about else "" for name in ("activation", "effect")]
    return [key, about.get("token", ""), *numbers, about.get("label", "")]


@lru_cache(maxsize=1)
def _spliced(preset: str) -> SplicedModel:
    return cs.load(preset)


def _framed(page: str | bytes) -> str:
    """Returns a whole page as a frame that may run its own script and reach nothing of this one."""
    text = page.decode() if isinstance(page, bytes) else page
    style = "width: 100%; height: 80vh; border: 0"
    return f'<iframe sandbox="allow-scripts" title="Circuit" style="{style}" srcdoc="{html.escape(text)}"></iframe>'


_PROMPT = "When Mary and John went to the store, John gave a drink to"
