"""Models on ZeroGPU: here they are loaded on the CPU, to look things up in; what computes runs in a process with a GPU.

Everything that crosses is plain: settings, forms and circuits on the way there, progress, results and sentences back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from circuitsae.errors import CancelledError, CircuitsaeError, InputError
from circuitsae.graph.circuit import Circuit
from gradio_app.forms import Form
from gradio_app.jobs import Done, Jobs, Progress, Tick
from gradio_app.models import Models, Subject
from gradio_app.settings import Settings
from gradio_app.zero import SECONDS, on_gpu

DEVICE = "cuda"


@dataclass(frozen=True)
class Refused:
    """What a person is told instead of a result."""

    sentence: str


@cache
def _models(settings: Settings, device: str) -> Models:
    return Models(settings, device)


@on_gpu(duration=SECONDS)
def compute(
    settings: Settings, device: str, name: str, arguments: tuple[Any, ...]
) -> Iterator[Progress | Done[Any] | Refused]:
    """Does what a method of `Models` is asked, in the process that has the GPU, and yields progress and results."""
    work = getattr(_models(settings, device), name)
    try:
        yield from Jobs(settings.deadline).stream("gpu", lambda tick: work(*arguments, tick))
    except CircuitsaeError as error:  # such errors are made of more than their sentence, and would not come across
        yield Refused(str(error))


class BorrowedModels(Models):
    """The models of an app on ZeroGPU."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "cpu")

    def circuit(self, form: Form, tick: Tick) -> tuple[Form, Circuit]:
        """See `Models.circuit`."""
        return self._one("circuit", (form,), tick)

    def effects(self, form: Form, top: int, tick: Tick) -> list[dict[str, Any]]:
        """See `Models.effects`."""
        return self._one("effects", (form, top), tick)

    def intervene(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], tick: Tick
    ) -> dict[str, Any]:
        """See `Models.intervene`."""
        return self._one("intervene", (subject, edits, options), tick)

    def measure(self, subject: Subject, keys: Sequence[str], tick: Tick) -> Iterator[dict[str, float]]:
        """See `Models.measure`."""
        return self._all("measure", (subject, keys), tick)

    def faithfulness(self, subject: Subject, keys: Sequence[str], errors: bool, tick: Tick) -> dict[str, Any]:
        """See `Models.faithfulness`."""
        return self._one("faithfulness", (subject, keys, errors), tick)

    def continuation(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], tick: Tick
    ) -> dict[str, Any]:
        """See `Models.continuation`."""
        return self._one("continuation", (subject, edits, options), tick)

    def _one(self, name: str, arguments: tuple[Any, ...], tick: Tick) -> Any:
        return next(self._all(name, arguments, tick))

    def _all(self, name: str, arguments: tuple[Any, ...], tick: Tick) -> Iterator[Any]:
        for step in compute(self.settings, DEVICE, name, arguments):
            if isinstance(step, Refused):
                raise InputError(step.sentence)
            if isinstance(step, Progress):
                if not tick(step.done, step.total, step.what):
                    raise CancelledError("Cancelled.")
            else:
                yield step.value
