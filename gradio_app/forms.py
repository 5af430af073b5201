"""What is asked: the form's fields as plain data, checked, and the task they become."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from circuitsae import registry
from circuitsae.errors import InputError, TaskError, UnknownNameError
from circuitsae.graph.schema import shown
from gradio_app.settings import Settings

if TYPE_CHECKING:
    from circuitsae.task.task import Task
    from circuitsae.task.vocabulary import Vocabulary

LINEARISATIONS = ("gradient", "frozen")
MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Form:
    """The fields of the form. An empty foil asks for the answer's logit alone, an empty patch for the zero baseline."""

    preset: str
    prompt: str
    answer: str = ""
    foil: str = ""
    patch: str = ""
    method: str = "auto"
    linearisation: str = "gradient"
    nodes: int = 256

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, JSON-able."""
        return asdict(self)

    def task(self) -> "Task":
        """Returns the task: the difference of two logits, or one logit where there is no foil."""
        import circuitsae as cs

        metric = cs.LogitDiff(self.answer, self.foil) if self.foil else cs.Logit(self.answer)
        return cs.Task(self.prompt, metric=metric, patch=self.patch or None)

    def options(self) -> dict[str, Any]:
        """Returns what `trace` is told besides the task."""
        return {"method": self.method, "linearisation": self.linearisation, "max_nodes": self.nodes}


def read_form(given: Any, settings: Settings) -> Form:
    """Returns the form that plain data describe, perhaps a stranger's link; what is missing is the default.

    Raises:
        InputError: It has no fields, a field of the wrong type, an unknown name, or a number out of range.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"The form is {shown(given)}; expected fields by name.")
    types: dict[str, type] = {f.name: int if f.name == "nodes" else str for f in fields(Form)}
    values: dict[str, Any] = {"preset": settings.preset, "prompt": ""}
    for name, value in given.items():
        if name not in types or value is None:
            continue
        if types[name] is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise InputError(f"The field {name!r} is {shown(value)}; expected {types[name].__name__}.")
        values[name] = value
    form = Form(**values)
    if form.preset not in settings.presets:
        raise UnknownNameError("preset", form.preset, settings.presets)
    for name in ("prompt", "patch", "answer", "foil"):
        if len(getattr(form, name)) > MAX_CHARACTERS:
            raise TaskError(f"The {name} has {len(getattr(form, name))} characters; at most {MAX_CHARACTERS} are read.")
    if not form.prompt.strip():
        raise TaskError("The prompt is empty; write a text that the model is to continue.")
    registry.find("methods", form.method)
    if form.linearisation not in LINEARISATIONS:
        raise UnknownNameError("linearisation", form.linearisation, LINEARISATIONS)
    if not 1 <= form.nodes <= settings.max_nodes:
        raise InputError(f"{shown(form.nodes)} nodes were asked for; expected 1 to {settings.max_nodes}.")
    return form


def one_token(text: str, vocabulary: "Vocabulary", what: str) -> str:
    """Returns an answer or foil as the model writes it: what was typed, or that with the space that begins a word.

    Raises:
        TaskError: It is several tokens either way.
    """
    try:
        token = vocabulary.token_id(text)
    except TaskError as error:
        try:
            token = vocabulary.token_id(" " + text.strip())
        except TaskError:
            raise TaskError(str(error).replace("The answer", f"The {what}", 1)) from None
    return vocabulary.string(token)


def problems(form: Form, vocabulary: "Vocabulary", settings: Settings, n_ctx: int | None = None) -> dict[str, str]:
    """Returns a sentence for each field that can't be used with a model."""
    found: dict[str, str] = {}
    limit = settings.max_tokens if n_ctx is None else min(settings.max_tokens, n_ctx)
    lengths: dict[str, int] = {}
    for name in ("prompt", "patch"):
        text = getattr(form, name)
        if not text and name == "patch":
            continue
        try:
            lengths[name] = len(vocabulary.encode(text))
        except TaskError as error:
            found[name] = str(error)
            continue
        if lengths[name] > limit:
            found[name] = f"The {name} is {lengths[name]} tokens long; at most {limit} are taken here."
    for name in ("answer", "foil"):
        text = getattr(form, name)
        if text:
            try:
                one_token(text, vocabulary, name)
            except TaskError as error:
                found[name] = str(error)
    if not found and form.answer and form.foil and form.answer.strip() == form.foil.strip():
        found["foil"] = f"The answer and the foil are both {form.answer.strip()!r}; expected two tokens, or no foil."
    if not found and len(set(lengths.values())) > 1:
        found["patch"] = (
            f"The prompt has {lengths['prompt']} tokens and the patch prompt {lengths['patch']}; expected as many."
        )
    return found
