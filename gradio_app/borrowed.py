"""Computing on ZeroGPU: models here lie on the CPU, to look things up in; what computes runs in a process with a GPU.

Everything that crosses is plain: settings, what is asked and its arguments on the way there, progress, results and
sentences back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from circuitsae.errors import CircuitsaeError, InputError
from circuitsae.progress import Progress, report
from gradio_app.forms import Form
from gradio_app.jobs import Done, Jobs, Step
from gradio_app.operations import Asked
from gradio_app.settings import Settings
from gradio_app.zero import SECONDS, on_gpu

if TYPE_CHECKING:
    from gradio_app.service import Models

DEVICE = "cuda"


@dataclass(frozen=True)
class Refused:
    """What a person is told instead of a result."""

    sentence: str


@cache
def _models(settings: Settings, device: str) -> "Models":
    from gradio_app.service import Models

    return Models(settings, device)


@on_gpu(duration=SECONDS)
def compute(
    settings: Settings, device: str, name: str, asked: Asked, given: Mapping[str, Any]
) -> Iterator[Step | Done[Any] | Refused]:
    """Does an operation in the process that has the GPU, and yields progress and results."""
    models = _models(settings, device)
    try:
        yield from Jobs(settings.deadline).stream("gpu", lambda progress: models.parts(name, asked, given, progress))
    except CircuitsaeError as error:  # such errors are made of more than their sentence, and would not come across
        yield Refused(str(error))


class Borrowed:
    """Does operations on a borrowed GPU."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def parts(
        self, name: str, asked: Asked, given: Mapping[str, Any], progress: Progress
    ) -> Iterator[tuple[Form, Any]]:
        """See `Models.parts`."""
        for step in compute(self.settings, DEVICE, name, asked, dict(given)):
            if isinstance(step, Refused):
                raise InputError(step.sentence)
            if isinstance(step, Step):
                report(progress, step.done, step.total, step.what)
            else:
                yield step.value
