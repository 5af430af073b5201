"""What the app does: circuits on people's screens, models and sessions behind them. Nothing of gradio in here."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Any

from circuitsae.errors import CircuitsaeError, GraphFileError, InputError, TaskError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import LabelStore, label_circuit, preset_labels
from circuitsae.presets import find_preset, is_present
from circuitsae.progress import Progress
from gradio_app import borrowed, cards, comparing, zero
from gradio_app.forms import Form, one_token, problems, read_form
from gradio_app.jobs import Jobs
from gradio_app.operations import OPERATIONS, Asked, read_arguments
from gradio_app.settings import Settings
from gradio_app.store import Entry, Store

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.session import Session

log = logging.getLogger("circuitsae.app")

MAX_MODELS = 2
MAX_SESSIONS = 6
SURELY = 2.0  # how often over the deadline an estimate has to be: it is timed while others work
SESSION_BYTES = 128 * 2**20


class Models:
    """The models of one app, shared by everybody who uses it, and the sessions on them.

    Args:
        settings: What the app may do.
        device: Where models are loaded; where the preset says when `None`.
    """

    def __init__(self, settings: Settings, device: str | None = None) -> None:
        self.settings = settings
        self._device = device
        self._models: OrderedDict[str, SplicedModel] = OrderedDict()
        self._loading: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._load = threading.Lock()
        self._sessions: OrderedDict[tuple[Any, ...], Session] = OrderedDict()

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

    def there(self, preset: str) -> "SplicedModel | None":
        """Returns a preset's model if it is loaded."""
        return self._models.get(preset)

    def is_here(self, preset: str) -> bool:
        """Returns whether a preset's model can be had without fetching anything."""
        return preset in self._models or preset in self._loading or is_present(find_preset(preset))

    def spliced(self, preset: str, progress: Progress | None = None) -> "SplicedModel":
        """Returns a preset's model, loading it at first use; of several, the last used two stay.

        Raises:
            CircuitsaeError: It can't be fetched or loaded.
        """
        if preset in self._models:
            self._models.move_to_end(preset)
            return self._models[preset]

        def loading(done: int, total: int, what: str) -> object:
            share = f" ({100 * done // total}%)" if total else ""
            self._loading[preset] = f"{preset}: {what}{share}"
            return progress is None or progress(done, total, f"{preset}: {what}")

        self._loading.setdefault(preset, f"Loading {preset}")
        if progress is not None:
            progress(0, 0, f"Loading {preset}")
        with self._load:
            if preset in self._models:
                return self._models[preset]
            try:
                import circuitsae as cs

                spliced = cs.load(preset, device=self._device, progress=loading)
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
                for key in [key for key in self._sessions if key[0] == gone]:
                    del self._sessions[key]
        return spliced

    def compute(self, name: str, asked: Asked, given: Mapping[str, Any], progress: Progress) -> tuple[Form, Any]:
        """Does an operation; returns what it gives, and the form with its answers as the model reads them.

        Raises:
            CircuitsaeError: The model can't be loaded, a field or an argument can't be used with it, or whatever the
                operation says.
        """
        operation = OPERATIONS[name]
        arguments = read_arguments(operation.arguments, given)
        form, session = self._session(asked, progress)
        if name in ("trace", "effects") and form.method != Form.method:
            self._check_time(session, form, graph=name == "trace")
        return form, operation.compute(session, replace(asked, form=form), arguments, progress)

    def parts(
        self, name: str, asked: Asked, given: Mapping[str, Any], progress: Progress
    ) -> Iterator[tuple[Form, Any]]:
        """Yields what an operation gives: its parts where it gives them one by one, else one."""
        form, found = self.compute(name, asked, given, progress)
        for part in found if OPERATIONS[name].streams else (found,):
            yield form, part

    def _check_time(self, session: "Session", form: Form, *, graph: bool) -> None:
        """Refuses what can't end before the deadline, by what it takes at least, however slow the machine just was.

        Raises:
            InputError: It can't.
        """
        options = form.options() if graph else {"method": form.method}
        steps = session.estimate(graph=graph, **options).steps
        seconds = sum(step.seconds for step in steps if not step.at_most)
        if seconds > SURELY * self.settings.deadline:
            raise InputError(
                f"{form.method!r} would take about {seconds:.0f} seconds on this prompt; at most {self.settings.deadline:g} "
                "are given here. A shorter prompt or another method takes less."
            )

    def _session(self, asked: Asked, progress: Progress) -> "tuple[Form, Session]":
        """Returns the session of a question, with what has been computed for it before."""
        from circuitsae.session import Session

        spliced = self.spliced(asked.form.preset, progress)
        if asked.fingerprints and asked.fingerprints != {d["fingerprint"] for d in spliced.describe()}:
            raise InputError(f"This circuit was traced with other dictionaries than {asked.form.preset!r} has here.")
        form = self._understood(asked.form, spliced)
        baseline = asked.baseline or ("patch" if form.patch else "zero")
        key = (form.preset, form.prompt, form.answer, form.foil, form.patch, baseline)
        if key not in self._sessions:
            self._sessions[key] = Session(spliced, form.task(), baseline=baseline, memory=SESSION_BYTES)
        self._sessions.move_to_end(key)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return form, self._sessions[key]

    def _understood(self, form: Form, spliced: "SplicedModel") -> Form:
        """Returns a form with its answers as a model reads them."""
        found = problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)
        if found:
            raise TaskError(next(iter(found.values())))
        if not form.answer:
            form = replace(form, answer=likeliest(spliced, form.prompt))
        words = {w: one_token(getattr(form, w), spliced.vocabulary, w) for w in ("answer", "foil") if getattr(form, w)}
        return replace(form, **words)


class Service:
    """The circuits of one app, and who computes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(settings.memory)
        self.jobs = Jobs(settings.deadline)
        self.models = Models(settings, "cpu" if zero.is_there() else None)
        self._parts = borrowed.Borrowed(settings).parts if zero.is_there() else self.models.parts
        self._labels: dict[str, LabelStore | None] = {}

    # --- computing ---

    def compute(self, name: str, subject: "Entry | Form", given: Mapping[str, Any], progress: Progress) -> Any:
        """Returns what an operation gives for a circuit or a form; an iterator where it gives its answer in parts.

        Raises:
            InputError: The circuit does not say a prompt and model of this app, or an argument can't be used.
            CircuitsaeError: Whatever the operation says.
        """
        parts = (part for _, part in self._parts(name, _asked(subject), given, progress))
        return parts if OPERATIONS[name].streams else next(parts)

    def ask(self, name: str, id: str, given: Mapping[str, Any], progress: Progress) -> Any:
        """Returns what an operation gives for the circuit of an id; see `compute`."""
        return self.compute(name, self.store.get(id), given, progress)

    def circuit(self, form: Form, progress: Progress, *, predicted: bool = False) -> tuple[Form, Circuit]:
        """Traces what a form asks; returns the form with its answers as the model reads them, and the circuit.

        Args:
            form: What is asked.
            progress: Called with how far it is.
            predicted: Whether the method `auto` only predicts.

        Raises:
            CircuitsaeError: It can't be traced; the sentence says why.
        """
        form, circuit = next(iter(self._parts("trace", Asked(form), {"predicted": predicted}, progress)))
        store = self.labels(form.preset)
        if store is not None:
            label_circuit(circuit, store)
        return form, circuit

    def trace(self, form: Form, progress: Progress) -> Entry:
        """Traces what a form asks, for the page: with the method `auto` it has the strongest nodes measured afterwards.

        Raises:
            CircuitsaeError: It can't be traced; the sentence says why.
        """
        form, circuit = self.circuit(form, progress, predicted=True)
        return self.store.add(circuit, form)

    def compare(self, id: str, prompt: str, progress: Progress) -> Entry:
        """Traces another prompt with the same question and returns both circuits as one graph."""
        entry = self.store.get(id)
        form = _asked(entry).form
        other = read_form(form.as_dict() | {"prompt": prompt, "patch": ""}, self.settings)
        base = entry.circuit
        if form.patch:
            _, base = self.circuit(replace(form, patch=""), progress, predicted=True)
        _, second = self.circuit(other, progress, predicted=True)
        comparing.check_lengths(base, second)
        union, colours = comparing.join_circuits(base, second)
        return self.store.add(union, None, colours=colours)

    # --- looking things up ---

    def problems(self, given: dict[str, Any]) -> dict[str, str]:
        """Returns a sentence for each field that can't be used, as far as that can be told without waiting."""
        try:
            form = read_form(given, self.settings)
        except InputError as error:
            prompt = str(given.get("prompt") or "")
            return {"prompt" if not prompt.strip() or isinstance(error, TaskError) else "preset": str(error)}
        spliced = self.models.there(form.preset)
        return {} if spliced is None else problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)

    def labels(self, preset: str) -> LabelStore | None:
        """Returns the labels that come with a preset, `None` where there are none or they can't be read."""
        if preset not in self._labels:
            try:
                self._labels[preset] = preset_labels(preset)
            except CircuitsaeError as error:
                log.warning("The labels of the preset %r can't be used: %s", preset, error)
                self._labels[preset] = None
        return self._labels[preset]

    def card(self, id: str, key: str) -> list[dict[str, Any]]:
        """Returns what is known of a node besides its numbers, as sections of the drawing's panel."""
        entry = self.store.get(id)
        if entry.form is None or key not in entry.circuit.graph:
            return []
        spliced, store = self.models.there(entry.form.preset), self.labels(entry.form.preset)
        return cards.card_sections(spliced, store, entry.circuit, key)

    def presets_here(self) -> list[tuple[str, str]]:
        """Returns the presets that may be chosen, each with words for it."""
        return [
            (f"{name}" if is_present(find_preset(name)) else f"{name} (to be fetched)", name)
            for name in self.settings.presets
        ]

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


def _asked(subject: Entry | Form) -> Asked:
    """Returns what an operation is about.

    Raises:
        InputError: The circuit does not say a prompt and model of this app.
    """
    if isinstance(subject, Form):
        return Asked(subject)
    if subject.form is None:
        raise InputError("Nothing can be measured on this circuit: it does not say a prompt and model of this app.")
    about = subject.circuit.graph.graph
    baseline = about.get("baseline")
    fingerprints = frozenset(str(d.get("fingerprint")) for d in about.get("dictionaries") or ())
    return Asked(subject.form, tuple(subject.keys), baseline if baseline in ("zero", "patch") else None, fingerprints)


def likeliest(spliced: "SplicedModel", prompt: str) -> str:
    """Returns the token that the model would write next."""
    import torch

    from circuitsae.model.runs import Readout, forward

    ids = spliced.vocabulary.encode(prompt)
    with torch.no_grad():
        captured = forward(spliced, torch.tensor([ids], device=spliced.device), Readout(None, len(ids)))
    assert captured.logits is not None
    return spliced.vocabulary.string(int(captured.logits[0, -1].argmax()))
