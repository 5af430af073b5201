"""What computes: models by preset, and all that is asked of them. Plain data goes in and comes out."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from circuitsae.errors import CircuitsaeError, InputError, TaskError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import LabelStore, label_circuit, preset_labels
from circuitsae.progress import Progress, report
from gradio_app import measuring
from gradio_app.forms import Form, one_token, problems
from gradio_app.settings import Settings
from gradio_app.store import Entry

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel

log = logging.getLogger("circuitsae.app")

MAX_MODELS = 2
MAX_CONTEXTS = 6
RANDOM_SETS = 5

Subject = Entry | Form
"""What is measured: a circuit on the screen, or what a program asks once."""


class Models:
    """The models of one app, shared by everybody who uses it."""

    def __init__(self, settings: Settings, device: str | None = None) -> None:
        self.settings = settings
        self._device = device
        self._models: OrderedDict[str, SplicedModel] = OrderedDict()
        self._loading: dict[str, str] = {}
        self._failed: dict[str, str] = {}
        self._load = threading.Lock()
        self._labels: dict[str, LabelStore | None] = {}
        self._contexts: OrderedDict[tuple[str, str], measuring.Measured] = OrderedDict()

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

    def spliced(self, preset: str, progress: Progress | None = None) -> "SplicedModel":
        """Returns a preset's model, loading it at first use; of several, the last used two stay.

        Raises:
            CircuitsaeError: It can't be fetched or loaded.
        """
        if preset in self._models:
            self._models.move_to_end(preset)
            return self._models[preset]

        def told(done: int, total: int, what: str) -> object:
            share = f" ({100 * done // total}%)" if total else ""
            self._loading[preset] = f"{preset}: {what}{share}"
            return progress is None or progress(done, total, f"{preset}: {what}")

        self._loading.setdefault(preset, f"Loading {preset}")
        report(progress, 0, 0, f"Loading {preset}")
        with self._load:
            if preset in self._models:
                return self._models[preset]
            try:
                import circuitsae as cs

                spliced = cs.load(preset, device=self._device, progress=told)
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

    def there(self, preset: str) -> "SplicedModel | None":
        """Returns a preset's model if it is loaded."""
        return self._models.get(preset)

    def labels(self, preset: str) -> LabelStore | None:
        """Returns the labels that come with a preset, `None` where there are none or they can't be read."""
        if preset not in self._labels:
            try:
                self._labels[preset] = preset_labels(preset)
            except CircuitsaeError as error:
                log.warning("The labels of the preset %r can't be used: %s", preset, error)
                self._labels[preset] = None
        return self._labels[preset]

    # --- computing ---

    def circuit(self, form: Form, progress: Progress) -> tuple[Form, Circuit]:
        """Traces what a form asks; returns the form with its answers as the model reads them, and the circuit.

        Raises:
            CircuitsaeError: It can't be traced; the sentence says why.
        """
        import circuitsae as cs

        spliced, form = self.asked(form, progress)
        report(progress, 0, 0, "Tracing")
        circuit = cs.trace(spliced, form.task(), progress=progress, **form.options())
        store = self.labels(form.preset)
        if store is not None:
            label_circuit(circuit, store)
        return form, circuit

    def asked(self, form: Form, progress: Progress) -> "tuple[SplicedModel, Form]":
        """Returns the model of a form, and the form with its answers as that model reads them.

        Raises:
            CircuitsaeError: The model can't be loaded, or a field can't be used with it.
        """
        spliced = self.spliced(form.preset, progress)
        found = problems(form, spliced.vocabulary, self.settings, spliced.n_ctx)
        if found:
            raise TaskError(next(iter(found.values())))
        if not form.answer:
            form = replace(form, answer=measuring.likeliest(spliced, form.prompt))
        words = {w: one_token(getattr(form, w), spliced.vocabulary, w) for w in ("answer", "foil") if getattr(form, w)}
        return spliced, replace(form, **words)

    def effects(self, form: Form, top: int, progress: Progress) -> list[dict[str, Any]]:
        """Returns the nodes that move the metric most, as records."""
        import circuitsae as cs

        spliced, form = self.asked(form, progress)
        found = cs.node_effects(spliced, form.task(), method=form.method, progress=progress)
        return found.strongest(top, kinds=("feature", "error"))

    def measured(self, subject: Subject, progress: Progress) -> measuring.Measured:
        """Returns what interventions need; a circuit's clean run is kept for the next ones."""
        if isinstance(subject, Form):
            spliced, form = self.asked(subject, progress)
            return measuring.Measured(spliced, form.task())
        form = subject.form
        assert form is not None
        key = (form.preset, subject.id)
        if key in self._contexts:
            self._contexts.move_to_end(key)
            return self._contexts[key]
        spliced = self.spliced(form.preset, progress)
        own = subject.circuit.graph.graph.get("dictionaries")
        if own and {d.get("fingerprint") for d in own} != {d["fingerprint"] for d in spliced.describe()}:
            raise InputError(f"This circuit was traced with other dictionaries than {form.preset!r} has here.")
        made = measuring.Measured(spliced, form.task(), subject.keys, subject.circuit)
        self._contexts[key] = made
        while len(self._contexts) > MAX_CONTEXTS:
            self._contexts.popitem(last=False)
        return made

    def intervene(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """Returns what an intervention does: the metric, the next tokens, every node's activation, before and after."""
        return self.measured(subject, progress).intervene(edits, options)

    def measure(self, subject: Subject, keys: Sequence[str], progress: Progress) -> Iterator[dict[str, float]]:
        """Yields measured effects of ablating nodes one at a time, in batches."""
        yield from self.measured(subject, progress).effects(keys, progress)

    def faithfulness(self, subject: Subject, keys: Sequence[str], errors: bool, progress: Progress) -> dict[str, Any]:
        """Returns the faithfulness of a set of nodes, and of random sets of as many."""
        return self.measured(subject, progress).faithfulness(keys, RANDOM_SETS, progress, errors=errors)

    def continuation(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """Returns how the model goes on, before and after an intervention."""
        return self.measured(subject, progress).continuation(edits, options, progress)
