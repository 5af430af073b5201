"""Models on ZeroGPU: here they are loaded on the CPU, to look things up in; what computes runs in a process with a GPU.

Everything that crosses is plain: settings, forms and circuits on the way there, progress, results and sentences back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from circuitsae.errors import CircuitsaeError, InputError
from circuitsae.graph.circuit import Circuit
from circuitsae.progress import Progress, report
from gradio_app.forms import Form
from gradio_app.jobs import Done, Jobs, Step
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
) -> Iterator[Step | Done[Any] | Refused]:
    """Does what a method of `Models` is asked, in the process that has the GPU, and yields progress and results."""
    work = getattr(_models(settings, device), name)
    try:
        yield from Jobs(settings.deadline).stream("gpu", lambda progress: work(*arguments, progress))
    except CircuitsaeError as error:  # such errors are made of more than their sentence, and would not come across
        yield Refused(str(error))


class BorrowedModels(Models):
    """The models of an app on ZeroGPU."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "cpu")

    def circuit(self, form: Form, progress: Progress) -> tuple[Form, Circuit]:
        """See `Models.circuit`."""
        return self._one("circuit", (form,), progress)

    def effects(self, form: Form, top: int, progress: Progress) -> list[dict[str, Any]]:
        """See `Models.effects`."""
        return self._one("effects", (form, top), progress)

    def intervene(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """See `Models.intervene`."""
        return self._one("intervene", (subject, edits, options), progress)

    def measure(self, subject: Subject, keys: Sequence[str], progress: Progress) -> Iterator[dict[str, float]]:
        """See `Models.measure`."""
        return self._all("measure", (subject, keys), progress)

    def faithfulness(self, subject: Subject, keys: Sequence[str], errors: bool, progress: Progress) -> dict[str, Any]:
        """See `Models.faithfulness`."""
        return self._one("faithfulness", (subject, keys, errors), progress)

    def continuation(
        self, subject: Subject, edits: Sequence[dict[str, Any]], options: dict[str, Any], progress: Progress
    ) -> dict[str, Any]:
        """See `Models.continuation`."""
        return self._one("continuation", (subject, edits, options), progress)

    def _one(self, name: str, arguments: tuple[Any, ...], progress: Progress) -> Any:
        return next(self._all(name, arguments, progress))

    def _all(self, name: str, arguments: tuple[Any, ...], progress: Progress) -> Iterator[Any]:
        for step in compute(self.settings, DEVICE, name, arguments):
            if isinstance(step, Refused):
                raise InputError(step.sentence)
            if isinstance(step, Step):
                report(progress, step.done, step.total, step.what)
            else:
                yield step.value
