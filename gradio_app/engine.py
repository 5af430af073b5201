"""What the app does: loads models, traces, measures. Plain data in, plain data out; nothing of gradio in here."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Any

from circuitsae.errors import CircuitsaeError, GraphFileError, InputError, TaskError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import LabelStore, label_circuit, preset_labels
from circuitsae.presets import find_preset, is_present
from gradio_app import cards, comparing, measuring
from gradio_app.forms import Form, one_token, problems, read_form
from gradio_app.jobs import Jobs, Tick
from gradio_app.settings import Settings
from gradio_app.store import Entry, Store

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel

log = logging.getLogger("circuitsae.app")

MAX_MODELS = 2
MAX_CONTEXTS = 6
RANDOM_SETS = 5


class Engine:
    """The models and circuits of one app, shared by everybody who uses it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.memory)
        self.jobs = Jobs(settings.deadline)
        self._models: OrderedDict[str, SplicedModel] = OrderedDict()
        self._loading: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._load = threading.Lock()
        self._labels: dict[str, LabelStore | None] = {}
        self._contexts: OrderedDict[tuple[str, str], measuring.Measured] = OrderedDict()

    # --- models ---

    def start(self) -> None:
        """Loads the first preset's model behind the page that is already there."""
        if self.settings.preset not in self._models:
            self._loading[self.settings.preset] = f"Loading {self.settings.preset}"
            threading.Thread(target=self._start, daemon=True, name="circuitsae-load").start()

    def _start(self) -> None:
        try:
            self.spliced(self.settings.preset)
        except CircuitsaeError:
            pass  # kept in `_failed`, and said by `status`
        except Exception as error:
            log.exception("The model of the preset %r could not be loaded.", self.settings.preset)
            self._failed[self.settings.preset] = f"{type(error).__name__} while loading; the app's log says more."

    def status(self, preset: str) -> dict[str, Any]:
        """Returns whether a preset's model is ready, and a few words about it."""
        if preset in self._models:
            return {"ready": True, "text": f"{preset} is ready"}
        if preset in self._loading:
            return {"ready": False, "text": f"{self._loading[preset]} ..."}
        if preset in self._failed:
            return {"ready": False, "failed": True, "text": self._failed[preset]}
        return {"ready": False, "text": f"{preset} will be loaded when it is needed"}

    def spliced(self, preset: str, tick: Tick | None = None) -> "SplicedModel":
        """Returns a preset's model, loading it at first use; of several, the last used two stay.

        Raises:
            CircuitsaeError: It can't be fetched or loaded.
        """
        if preset in self._models:
            self._models.move_to_end(preset)
            return self._models[preset]

        def progress(done: int, total: int, what: str) -> bool:
            share = f" ({100 * done // total}%)" if total else ""
            self._loading[preset] = f"{preset}: {what}{share}"
            return tick is None or tick(done, total, f"{preset}: {what}")

        self._loading.setdefault(preset, f"Loading {preset}")
        if tick is not None:
            tick(0, 0, f"Loading {preset}")
        with self._load:
            if preset in self._models:
                return self._models[preset]
            try:
                import circuitsae as cs

                spliced = cs.load(preset, progress=progress)
                spliced.model.requires_grad_(False)
            except CircuitsaeError as error:
                self._failed[preset] = str(error)
                raise
            finally:
                self._loading.pop(preset, None)
            self._failed.pop(preset, None)
            self._models[preset] = spliced
            while len(self._models) > MAX_MODELS:
                gone, _ = self._models.popitem(last=False)
                for key in [key for key in self._contexts if key[0] == gone]:
                    del self._contexts[key]
        return spliced

    def problems(self, given: dict[str, Any]) -> dict[str, str]:
        """Returns a sentence for each field that can't be used, as far as that can be told without waiting."""
        try:
            form = read_form(given, self.settings)
        except InputError as error:
            prompt = str(given.get("prompt") or "")
            return {"prompt" if not prompt.strip() or isinstance(error, TaskError) else "preset": str(error)}
        spliced = self._models.get(form.preset)
        return {} if spliced is None else problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)

    # --- circuits ---

    def shipped(self) -> Entry | None:
        """Returns the circuit that is shown at first: the first preset's, else another's that ships with the app."""
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

    def trace(self, form: Form, tick: Tick) -> Entry:
        """Traces what a form asks.

        Raises:
            CircuitsaeError: It can't be traced; the sentence says why.
        """
        form, circuit = self.circuit(form, tick)
        return self.store.add(circuit, form)

    def circuit(self, form: Form, tick: Tick) -> tuple[Form, Circuit]:
        """Returns the circuit of a form, and the form with its answers as the model reads them; see `trace`."""
        import circuitsae as cs

        spliced, form = self.asked(form, tick)
        tick(0, 0, "Tracing")
        circuit = cs.trace(spliced, form.task(), progress=tick, **form.options())
        store = self.labels(form.preset)
        if store is not None:
            label_circuit(circuit, store)
        return form, circuit

    def asked(self, form: Form, tick: Tick) -> "tuple[SplicedModel, Form]":
        """Returns the model of a form, and the form with its answers as that model reads them.

        Raises:
            CircuitsaeError: The model can't be loaded, or a field can't be used with it.
        """
        spliced = self.spliced(form.preset, tick)
        found = problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)
        if found:
            raise TaskError(next(iter(found.values())))
        if not form.answer:
            form = replace(form, answer=measuring.likeliest(spliced, form.prompt))
        words = {w: one_token(getattr(form, w), spliced.vocabulary, w) for w in ("answer", "foil") if getattr(form, w)}
        return spliced, replace(form, **words)

    def once(self, form: Form, tick: Tick) -> measuring.Measured:
        """Returns what interventions on a form's prompt need, for one call."""
        spliced, form = self.asked(form, tick)
        return measuring.Measured(spliced, form.task())

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

    def compare(self, id: str, prompt: str, tick: Tick) -> Entry:
        """Traces another prompt with the same question and returns both circuits as one graph."""
        entry = self._measurable(id)
        assert entry.form is not None
        other = read_form(entry.form.as_dict() | {"prompt": prompt, "patch": ""}, self.settings)
        base = entry.circuit
        if entry.form.patch:
            _, base = self.circuit(replace(entry.form, patch=""), tick)
        _, second = self.circuit(other, tick)
        union, colours = comparing.join_circuits(base, second)
        return self.store.add(union, None, colours=colours)

    # --- measuring ---

    def _measurable(self, id: str) -> Entry:
        entry = self.store.get(id)
        if entry.form is None:
            raise InputError("Nothing can be measured on this circuit: it does not say a prompt and model of this app.")
        return entry

    def measured(self, id: str, tick: Tick) -> measuring.Measured:
        """Returns what interventions on a circuit need; the clean run is kept for the next ones."""
        entry = self._measurable(id)
        assert entry.form is not None
        key = (entry.form.preset, id)
        if key in self._contexts:
            self._contexts.move_to_end(key)
            return self._contexts[key]
        spliced = self.spliced(entry.form.preset, tick)
        own = entry.circuit.graph.graph.get("dictionaries")
        if own and {d.get("fingerprint") for d in own} != {d["fingerprint"] for d in spliced.describe()}:
            raise InputError(f"This circuit was traced with other dictionaries than {entry.form.preset!r} has here.")
        made = measuring.Measured(spliced, entry.form.task(), entry.keys, entry.circuit)
        self._contexts[key] = made
        while len(self._contexts) > MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        return made

    def intervene(
        self, id: str, edits: Sequence[dict[str, Any]], options: dict[str, Any], tick: Tick
    ) -> dict[str, Any]:
        """Returns what an intervention does: the metric, the next tokens, every node's activation, before and after."""
        return self.measured(id, tick).intervene(edits, options)

    def measure(self, id: str, keys: Sequence[str], tick: Tick) -> Iterator[dict[str, float]]:
        """Yields measured effects of ablating nodes one at a time, in batches."""
        yield from self.measured(id, tick).effects(keys, tick)

    def faithfulness(self, id: str, keys: Sequence[str], errors: bool, tick: Tick) -> dict[str, Any]:
        """Returns the faithfulness of a set of nodes, and of random sets of as many."""
        return self.measured(id, tick).faithfulness(keys, RANDOM_SETS, tick, errors=errors)

    def continuation(
        self, id: str, edits: Sequence[dict[str, Any]], options: dict[str, Any], tick: Tick
    ) -> dict[str, Any]:
        """Returns how the model goes on, before and after an intervention."""
        return self.measured(id, tick).continuation(edits, options, tick)

    def card(self, id: str, key: str) -> list[dict[str, Any]]:
        """Returns what is known of a node besides its numbers, as sections of the drawing's panel."""
        entry = self.store.get(id)
        if entry.form is None or key not in entry.circuit.graph:
            return []
        spliced, store = self._models.get(entry.form.preset), self.labels(entry.form.preset)
        return cards.card_sections(spliced, store, entry.circuit, key)

    def labels(self, preset: str) -> LabelStore | None:
        """Returns the labels that come with a preset, `None` where there are none or they can't be read."""
        if preset not in self._labels:
            try:
                self._labels[preset] = preset_labels(preset)
            except CircuitsaeError as error:
                log.warning("The labels of the preset %r can't be used: %s", preset, error)
                self._labels[preset] = None
        return self._labels[preset]

    def presets_here(self) -> list[tuple[str, str]]:
        """Returns the presets that may be chosen, each with words for it."""
        return [
            (f"{name}" if is_present(find_preset(name)) else f"{name} (to be fetched)", name)
            for name in self.settings.presets
        ]
