"""The named endpoints, for gradio_client and, with `--mcp`, for language models: typed, described, plain data."""

import json
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.events import api

from circuitsae.errors import CircuitsaeError, InputError
from circuitsae.graph.circuit import Circuit
from circuitsae.progress import Progress
from gradio_app.actions import caller
from gradio_app.exporting import export_files
from gradio_app.forms import Form, read_form
from gradio_app.jobs import AT_ONCE
from gradio_app.service import Service


def add_endpoints(service: Service) -> None:
    """Adds the endpoints to the app that is being built."""

    def run(given: dict[str, Any] | None, work: Callable[[Form, Progress], Any]) -> Any:
        """Reads the form, does the work in its turn, and says what is wrong in one sentence.

        The sentence goes to programs: no page shows it, so nothing is escaped in it.
        """
        try:
            request = LocalContext.request.get()
            assert request is not None
            form = Form("", "") if given is None else read_form(_fields(given), service.settings)
            return service.jobs.run(caller(request), lambda progress: work(form, progress))
        except CircuitsaeError as error:
            raise gr.Error(str(error), title="", print_exception=False) from error

    def trace(
        preset: str,
        prompt: str,
        answer: str = "",
        foil: str = "",
        patch: str = "",
        method: str = "auto",
        linearisation: str = "gradient",
        nodes: int = 256,
    ) -> dict[str, Any]:
        """Traces the circuit behind a language model's next token: which dictionary features act on it, and how.

        Args:
            preset: The model and its dictionaries, such as "tiny" or "smollm2".
            prompt: The text that the model continues.
            answer: The next token to explain, such as " are"; empty for the likeliest one.
            foil: The token it is set against, such as " is"; empty to explain the answer's logit alone.
            patch: A counterfactual prompt of as many tokens; features are compared with their values on it. May be empty.
            method: How effects are predicted.
            linearisation: "gradient", or "frozen" to hold attention patterns and normalisation constant.
            nodes: How many features to keep at most.

        Returns:
            The circuit in the format circuitsae/1 (docs/format.md): `Circuit.from_json(json.dumps(result))` reads it.
        """
        return run(locals(), lambda form, progress: json.loads(service.circuit(form, progress)[1].to_json()))

    def intervene(
        preset: str,
        prompt: str,
        answer: str,
        foil: str,
        edits: list[dict[str, Any]],
        patch: str = "",
        errors: str = "live",
        attention: str = "free",
    ) -> dict[str, Any]:
        """Sets nodes of the model to other values, all at once, and returns what that really changes.

        Args:
            preset: The model and its dictionaries, such as "tiny".
            prompt: The text that the model continues.
            answer: The next token whose logit is the metric, such as " are".
            foil: The token whose logit is subtracted, such as " is"; may be empty.
            edits: A list such as [{"key": "blocks.3.hook_resid_post/120@5", "op": "scale", "value": 0.5}]; op is
                ablate (to the baseline, no value), scale, set or add.
            patch: A counterfactual prompt of as many tokens whose values ablated nodes get; empty for zero.
            errors: "live", or "frozen" to hold error nodes at their clean values.
            attention: "free", or "frozen" to hold attention patterns at those of the unchanged prompt.

        Returns:
            The metric before and after, its change (effect), the KL divergence of the next-token distributions, and the
            likeliest next tokens, with the answer and the foil, as rows of text, probability before and after, logit
            before and after, and "answer", "foil" or "".
        """
        given = locals()

        def work(form: Form, progress: Progress) -> dict[str, Any]:
            found = service.compute(
                "intervene", form, {"edits": edits, "errors": errors, "attention": attention}, progress
            )
            effect = found["metric_after"] - found["metric_before"]
            return {name: found[name] for name in ("metric_before", "metric_after", "kl", "next")} | {"effect": effect}

        return run(given, work)

    def ablate(preset: str, prompt: str, answer: str, foil: str, nodes: list[str], patch: str = "") -> dict[str, Any]:
        """Measures what ablating nodes does to the metric: all of them together, and each by itself.

        Args:
            preset: The model and its dictionaries, such as "tiny".
            prompt: The text that the model continues.
            answer: The next token whose logit is the metric, such as " are".
            foil: The token whose logit is subtracted, such as " is"; may be empty.
            nodes: Keys of nodes, such as ["blocks.3.hook_resid_post/120@5"].
            patch: A counterfactual prompt of as many tokens whose values ablated nodes get; empty for zero.

        Returns:
            `effect` (together), `effects` (by node), metric before and after.
        """
        given = locals()

        def work(form: Form, progress: Progress) -> dict[str, Any]:
            together = service.compute(
                "intervene", form, {"edits": [{"key": key, "op": "ablate"} for key in nodes]}, progress
            )
            alone: dict[str, float] = {}
            for part in service.compute("measure", form, {"keys": nodes}, progress):
                alone |= part["values"]
            before, after = together["metric_before"], together["metric_after"]
            return {"metric_before": before, "metric_after": after, "effect": after - before, "effects": alone}

        return run(given, work)

    def effects(
        preset: str,
        prompt: str,
        answer: str = "",
        foil: str = "",
        patch: str = "",
        method: str = "auto",
        top: int = 30,
    ) -> list[dict[str, Any]]:
        """Returns the nodes that move the metric most: the predicted change when each is set to its baseline.

        Args:
            preset: The model and its dictionaries, such as "tiny".
            prompt: The text that the model continues.
            answer: The next token to explain; empty for the likeliest one.
            foil: The token it is set against; may be empty.
            patch: A counterfactual prompt of as many tokens; may be empty.
            method: How effects are computed; "ablation" measures them.
            top: How many nodes.

        Returns:
            Records of node, kind, site, index, position, token, activation, baseline, effect; strongest first.
        """
        given = locals()

        def work(form: Form, progress: Progress) -> list[dict[str, Any]]:
            return service.compute("effects", form, {"top": top}, progress)

        return run(given, work)

    def export(circuit: dict[str, Any], format: str = "graphml") -> dict[str, str]:
        """Turns a traced circuit into files of another format.

        Args:
            circuit: What `trace` returned.
            format: json, graphml, gexf, csv, dot, html (a page that opens from disk) or python (a program).

        Returns:
            The files' contents by name.
        """

        def work(form: Form, progress: Progress) -> dict[str, str]:
            text = json.dumps(circuit)
            if len(text) > (service.settings.upload_bytes or 4 * 2**20):
                raise InputError(f"The circuit has {len(text):,} bytes, more than are read here.")
            read = Circuit.from_json(text)
            return export_files(read, format, service.form_of(read), {})

        return run(None, work)

    for function in (trace, intervene, ablate, effects, export):
        api(function, api_name=function.__name__, concurrency_id="model", concurrency_limit=AT_ONCE)


def _fields(arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns those of a function's arguments that are fields of the form."""
    fields = ("preset", "prompt", "answer", "foil", "patch", "method", "linearisation", "nodes")
    return {name: arguments[name] for name in fields if name in arguments and not isinstance(arguments[name], list)}
