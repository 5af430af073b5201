"""The page: a form above, the circuit below, and what is wired to what."""

from typing import Any

import gradio as gr

from circuitsae import registry
from circuitsae.presets import find_preset
from gradio_app.actions import FIELDS, Actions
from gradio_app.api import add_endpoints
from gradio_app.forms import LINEARISATIONS, Form
from gradio_app.jobs import AT_ONCE
from gradio_app.operations import OPERATIONS
from gradio_app.service import Service
from gradio_app.view import circuit_view

EXAMPLES = "Try an example"
MODEL_EVENTS: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "concurrency_id": "model",
    "concurrency_limit": AT_ONCE,
    "trigger_mode": "multiple",  # a question asked while an answer is coming in is not to be dropped
}
TRACE_EVENTS: dict[str, Any] = {**MODEL_EVENTS, "trigger_mode": "once"}


def build_page(service: Service) -> gr.Blocks:
    """Returns the app."""
    actions = Actions(service)
    settings = service.settings
    entry = service.shipped
    form = entry.form if entry is not None and entry.form is not None else _first_example(settings.preset)
    with gr.Blocks(title="circuitsae", analytics_enabled=False, fill_width=True) as demo:
        with gr.Row(elem_classes="ca-head"):
            gr.HTML(
                "<h1>circuitsae</h1><p>Which features of the model make it give this answer rather than that one?</p>",
                js_on_load=None,
                elem_classes="ca-title",
            )
            chosen = gr.Dropdown(
                service.presets_here(), value=form.preset, label="Model", container=False, min_width=150, scale=0
            )
            example = gr.Dropdown(
                _choices(settings.preset), value=EXAMPLES, label="Examples", container=False, min_width=190, scale=0
            )  # fmt: skip
            dark = gr.Button("Theme", size="sm", min_width=70, scale=0, elem_classes="ca-quiet")
        with gr.Row(elem_classes="ca-form", equal_height=True):
            prompt = gr.Textbox(form.prompt, label="Prompt", scale=6, min_width=300, max_lines=4, elem_id="ca-prompt")
            answer = gr.Textbox(form.answer, label="Answer", scale=1, min_width=110, placeholder="the likeliest")
            foil = gr.Textbox(form.foil, label="rather than", scale=1, min_width=110, placeholder="any")
            go = gr.Button("Trace", variant="primary", scale=0, min_width=96, elem_id="ca-trace")
            stop = gr.Button("Cancel", scale=0, min_width=86, elem_id="ca-cancel")
        with gr.Accordion("Options", open=bool(form.patch), elem_classes="ca-options"), gr.Row():
            patch = gr.Textbox(
                form.patch, label="Patch prompt", scale=4, min_width=280,
                info="nodes are set to their values on it, in place of zero; as many tokens",
            )  # fmt: skip
            method = gr.Dropdown(
                registry.names("methods"),
                value=form.method,
                label="Method",
                info="auto measures the strongest",
                min_width=170,
            )
            linear = gr.Dropdown(
                list(LINEARISATIONS), value=form.linearisation, label="Edges", info="attention free or frozen", min_width=130
            )  # fmt: skip
            nodes = gr.Slider(
                16, settings.max_nodes, value=form.nodes, step=16, label="Nodes kept", info="at most", min_width=170
            )
        view = circuit_view(service, entry)

        fields = [chosen, prompt, answer, foil, patch, method, linear, nodes]
        assert len(fields) == len(FIELDS)
        outputs = [view, *fields]
        gr.on(
            [go.click, prompt.submit, answer.submit, foil.submit, patch.submit],
            actions.trace, fields, outputs, validator=actions.check, api_name="page_trace", **TRACE_EVENTS,
        )  # fmt: skip
        demo.load(actions.restore, None, outputs, api_name="page_restore", **MODEL_EVENTS)
        # Not `input`: that fires when the list is left, too, and would overwrite what has been typed.
        filled = example.select(
            lambda preset, name: _fill(preset, name), [chosen, example], [prompt, answer, foil, patch],
            api_visibility="private", show_progress="hidden", queue=False,
        )  # fmt: skip
        filled.then(actions.trace, fields, outputs, api_name="page_example", **MODEL_EVENTS)
        chosen.change(
            lambda preset: gr.Dropdown(_choices(preset), value=EXAMPLES), chosen, example,
            api_visibility="private", show_progress="hidden", queue=False,
        )  # fmt: skip
        asked = {name: actions.operation(name) for name, operation in OPERATIONS.items() if operation.to}
        for event, handler in {**asked, "compare": actions.compare}.items():
            getattr(view, event)(handler, view, view, api_name=f"page_{event}", **MODEL_EVENTS)
        view.opened(
            actions.opened, view, outputs, api_name="page_opened", api_visibility="private", show_progress="hidden"
        )
        view.halt(actions.halt, None, None, api_visibility="private", queue=False)
        stop.click(actions.cancel, None, None, api_visibility="private", queue=False)
        dark.click(None, None, None, js="() => CircuitApp.toggleDark()", api_visibility="private")
        demo.unload(actions.cancel)  # whoever has gone away wants no answer
        add_endpoints(service)
    return demo


def _examples(preset: str) -> dict[str, Form]:
    found: dict[str, Form] = {}
    for one in find_preset(preset).examples:
        name = one.name or one.prompt[:40]
        found[name] = Form(preset, one.prompt, one.answer, one.foil or "")
        if one.patch:
            found[f"{name}, against a patch"] = Form(preset, one.prompt, one.answer, one.foil or "", one.patch)
    return found


def _choices(preset: str) -> list[str]:
    return [EXAMPLES, *_examples(preset)]


def _fill(preset: str, name: str | None) -> list[Any]:
    form = _examples(preset).get(name or "")
    if form is None:
        return [gr.skip()] * 4
    return [form.prompt, form.answer, form.foil, form.patch]


def _first_example(preset: str) -> Form:
    examples = _examples(preset)
    return next(iter(examples.values())) if examples else Form(preset, "The capital of France is")
