"""What the app does: circuits on people's screens, and what is done to them. Nothing of gradio in here."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import resources
from typing import Any

from circuitsae.errors import CircuitsaeError, GraphFileError, InputError, TaskError
from circuitsae.graph.circuit import Circuit
from circuitsae.presets import find_preset, is_present
from circuitsae.progress import Progress
from gradio_app import cards, comparing, zero
from gradio_app.borrowed import BorrowedModels
from gradio_app.forms import Form, problems, read_form
from gradio_app.jobs import Jobs
from gradio_app.models import Models
from gradio_app.settings import Settings
from gradio_app.store import Entry, Store

log = logging.getLogger("circuitsae.app")


class Engine:
    """The circuits of one app, and who computes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.memory)
        self.jobs = Jobs(settings.deadline)
        self.models: Models = BorrowedModels(settings) if zero.is_there() else Models(settings)

    def problems(self, given: dict[str, Any]) -> dict[str, str]:
        """Returns a sentence for each field that can't be used, as far as that can be told without waiting."""
        try:
            form = read_form(given, self.settings)
        except InputError as error:
            prompt = str(given.get("prompt") or "")
            return {"prompt" if not prompt.strip() or isinstance(error, TaskError) else "preset": str(error)}
        spliced = self.models.there(form.preset)
        return {} if spliced is None else problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)

    # --- circuits ---

    @cached_property
    def shipped(self) -> Entry | None:
        """The circuit that is shown at first: the first preset's, else another's that ships with the app."""
        for preset in dict.fromkeys([self.settings.preset, *self.settings.presets]):
            file = resources.files("gradio_app").joinpath("circuits", f"{preset}.json")
            if file.is_file():
                circuit = Circuit.from_json(file.read_bytes())
                return self.store.add(circuit, self.form_of(circuit), pinned_as=f"shipped-{preset}")
        return None

    def form_of(self, circuit: Circuit) -> Form | None:
        """Returns what a circuit was traced from, `None` where that is nothing that this app can ask."""
        about = circuit.graph.graph
        metric, options = about.get("metric") or {}, about.get("options") or {}
        if metric.get("name") not in ("logit", "logit-diff") or not isinstance(metric.get("answer"), str):
            return None
        if metric.get("position") not in (None, len(about.get("tokens", [])) - 1):
            return None  # the form asks about the last position
        given = {
            "preset": about.get("preset", ""),
            "prompt": about.get("prompt"),
            "answer": metric["answer"],
            "foil": metric.get("foil", ""),
            "patch": about.get("patch", ""),
            "method": about.get("method", "attribution-patching"),
            "linearisation": about.get("linearisation", "gradient"),
            "nodes": options.get("max_nodes") or self.settings.max_nodes,
        }
        try:
            return read_form(given, self.settings)
        except CircuitsaeError:
            return None

    def trace(self, form: Form, progress: Progress) -> Entry:
        """Traces what a form asks.

        Raises:
            CircuitsaeError: It can't be traced; the sentence says why.
        """
        form, circuit = self.models.circuit(form, progress)
        return self.store.add(circuit, form)

    def open(self, text: str | bytes) -> Entry:
        """Takes in a saved circuit, perhaps a stranger's.

        Raises:
            GraphFileError: It is not one, or too large.
            InputError: This app takes none.
        """
        limit = self.settings.upload_bytes
        if not limit:
            raise InputError("This app takes no uploads.")
        if len(text) > limit:
            raise GraphFileError(f"The file has {len(text):,} bytes; at most {limit:,} are read here.")
        circuit = Circuit.from_json(text)
        return self.store.add(circuit, self.form_of(circuit))

    def compare(self, id: str, prompt: str, progress: Progress) -> Entry:
        """Traces another prompt with the same question and returns both circuits as one graph."""
        entry = self._measurable(id)
        assert entry.form is not None
        other = read_form(entry.form.as_dict() | {"prompt": prompt, "patch": ""}, self.settings)
        base = entry.circuit
        if entry.form.patch:
            _, base = self.models.circuit(replace(entry.form, patch=""), progress)
        _, second = self.models.circuit(other, progress)
        union, colours = comparing.join_circuits(base, second)
        return self.store.add(union, None, colours=colours)

    # --- measuring ---

    def _measurable(self, id: str) -> Entry:
        entry = self.store.get(id)
        if entry.form is None:
            raise InputError("Nothing can be measured on this circuit: it does not say a prompt and model of this app.")
        return entry

    def intervene(
        self, id: str, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """Returns what an intervention on a circuit does; see `Models.intervene`."""
        return self.models.intervene(self._measurable(id), edits, options, progress)

    def measure(self, id: str, keys: Sequence[str], progress: Progress) -> Iterator[dict[str, float]]:
        """Yields measured effects of a circuit's nodes, in batches; see `Models.measure`."""
        yield from self.models.measure(self._measurable(id), keys, progress)

    def faithfulness(self, id: str, keys: Sequence[str], errors: bool, progress: Progress) -> dict[str, Any]:
        """Returns the faithfulness of a set of a circuit's nodes; see `Models.faithfulness`."""
        return self.models.faithfulness(self._measurable(id), keys, errors, progress)

    def continuation(
        self, id: str, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """Returns how the model goes on after a circuit's prompt; see `Models.continuation`."""
        return self.models.continuation(self._measurable(id), edits, options, progress)

    def card(self, id: str, key: str) -> list[dict[str, Any]]:
        """Returns what is known of a node besides its numbers, as sections of the drawing's panel."""
        entry = self.store.get(id)
        if entry.form is None or key not in entry.circuit.graph:
            return []
        spliced, store = self.models.there(entry.form.preset), self.models.labels(entry.form.preset)
        return cards.card_sections(spliced, store, entry.circuit, key)

    def presets_here(self) -> list[tuple[str, str]]:
        """Returns the presets that may be chosen, each with words for it."""
        return [
            (f"{name}" if is_present(find_preset(name)) else f"{name} (to be fetched)", name)
            for name in self.settings.presets
        ]
