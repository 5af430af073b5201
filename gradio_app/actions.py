"""What happens when something is pressed: handlers between the page and the engine. None of them is public."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from circuitsae.errors import CancelledError, CircuitsaeError, InputError
from gradio_app.engine import Engine, log
from gradio_app.forms import read_form
from gradio_app.jobs import Done, Step
from gradio_app.links import decode_state
from gradio_app.view import shown_as, update

FIELDS = ("preset", "prompt", "answer", "foil", "patch", "method", "linearisation", "nodes")

Update = Any


def sentence(error: BaseException) -> str:
    """Returns what a person is told of an error: the package's own sentence, else its kind, with the rest in the log."""
    if isinstance(error, CircuitsaeError):
        return str(error)
    log.exception("An action failed.", exc_info=error)
    return f"Something went wrong ({type(error).__name__}); the app's log says more."


def _said(handler: Callable[..., Iterator[Update]]) -> Callable[..., Iterator[Update]]:
    """Turns an error of a handler into the property `progress`, which the page shows; what was there stays."""

    @functools.wraps(handler)
    def guarded(*args: Any, **named: Any) -> Iterator[Update]:
        try:
            yield from handler(*args, **named)
        except CancelledError:
            yield update(progress={"cancelled": True})
        except Exception as error:
            yield update(progress={"error": sentence(error)})

    return guarded


class Actions:
    """The handlers of one app."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def check(self, *values: Any) -> list[dict[str, Any]]:
        """Returns, for each field, whether it can be used; the sentence is shown beside it."""
        found = self.engine.problems(dict(zip(FIELDS, values, strict=True)))
        return [gr.validate(name not in found, found.get(name, "")) for name in FIELDS]

    def trace(
        self,
        preset: Any,
        prompt: Any,
        answer: Any,
        foil: Any,
        patch: Any,
        method: Any,
        linearisation: Any,
        nodes: Any,
        request: gr.Request,
    ) -> Iterator[list[Update]]:
        """Traces what the form asks and shows the circuit; the last one stays if that fails."""
        values = (preset, prompt, answer, foil, patch, method, linearisation, nodes)
        yield from self._traced(dict(zip(FIELDS, values, strict=True)), request, None)

    def _traced(self, given: dict[str, Any], request: gr.Request, restore: Any) -> Iterator[list[Update]]:
        fields = [gr.skip()] * len(FIELDS)
        try:
            asked = read_form(given, self.engine.settings)
            yield [update(progress={"text": "Waiting for the model"}), *fields]
            for step in self.engine.jobs.stream(_owner(request), lambda progress: self.engine.trace(asked, progress)):
                if isinstance(step, Step):
                    yield [update(progress=_progress(step)), *fields]
                    continue
                form = step.value.form
                assert form is not None
                view = update(shown=shown_as(step.value, restore), progress={"over": True})
                yield [view, *(getattr(form, name) for name in FIELDS)]
        except CancelledError:
            yield [update(progress={"cancelled": True}), *fields]
        except Exception as error:
            yield [update(progress={"error": sentence(error)}), *fields]

    def restore(self, request: gr.Request) -> Iterator[list[Update]]:
        """Brings back what a link holds: traces anew, then the page takes up the rest."""
        link = dict(request.query_params).get("c")
        skip = [gr.skip()] * len(FIELDS)
        if not isinstance(link, str) or not link:
            yield [gr.skip(), *skip]
            return
        try:
            state = decode_state(link)
            form = read_form(state.get("form") or {}, self.engine.settings)
        except CircuitsaeError as error:
            yield [update(progress={"error": str(error)}), *skip]
            return
        yield [gr.skip(), *(getattr(form, name) for name in FIELDS)]
        yield from self._traced(form.as_dict(), request, {**state, "form": None})

    @_said
    def intervene(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Carries out the basket and answers with an overlay."""
        asked = _asked(value, "intervene")
        yield from self._answers(
            request,
            asked,
            "overlay",
            lambda progress: self.engine.intervene(asked["id"], asked["edits"], asked, progress),
        )

    @_said
    def measure(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Measures nodes one at a time and answers as they come."""
        asked = _asked(value, "measure")
        keys = [str(key) for key in asked["keys"]]
        total, found = len(keys), {}
        work = self.engine.jobs.stream(
            f"{_owner(request)}/measure", lambda progress: self.engine.measure(asked["id"], keys, progress)
        )
        try:
            yield update(measured={"seq": asked["seq"], "id": asked["id"], "done": 0, "total": total, "values": {}})
            for step in work:
                if isinstance(step, Done):
                    found |= step.value
                    new = {
                        "seq": asked["seq"],
                        "id": asked["id"],
                        "done": len(found),
                        "total": total,
                        "values": step.value,
                    }
                    yield update(measured=new)
        except CancelledError:
            yield update(measured={"seq": asked["seq"], "id": asked["id"], "done": len(found), "total": total, "values": {}, "over": True})  # fmt: skip
            return
        yield update(measured={"seq": asked["seq"], "id": asked["id"], "done": total, "total": total, "values": {}, "over": True})  # fmt: skip

    @_said
    def faithfulness(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Measures the pinned nodes as a set."""
        asked = _asked(value, "faithfulness")
        keys, errors = [str(key) for key in asked["keys"]], bool(asked.get("errors"))
        yield from self._answers(
            request, asked, "answer", lambda progress: self.engine.faithfulness(asked["id"], keys, errors, progress)
        )

    @_said
    def continuation(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Lets the model write on, before and after the basket."""
        asked = _asked(value, "continuation")
        yield from self._answers(
            request,
            asked,
            "answer",
            lambda progress: self.engine.continuation(asked["id"], asked["edits"], asked, progress),
        )

    @_said
    def compare(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Traces a second prompt and shows both circuits as one graph."""
        asked = _asked(value, "compare")
        prompt = str(asked["prompt"])
        for step in self.engine.jobs.stream(
            _owner(request), lambda progress: self.engine.compare(asked["id"], prompt, progress)
        ):
            if isinstance(step, Step):
                yield update(progress=_progress(step))
            else:
                yield update(shown={**shown_as(step.value), "comparesWith": asked["id"]}, progress={"over": True})

    def opened(self, value: Any) -> Iterator[list[Update]]:
        """Shows an uploaded circuit and fills the form with what it was traced from."""
        try:
            entry = self.engine.store.get(_asked(value, "opened")["id"])
        except CircuitsaeError as error:
            yield [update(progress={"error": str(error)}), *[gr.skip()] * len(FIELDS)]
            return
        form = entry.form
        filled = [gr.skip() if form is None else getattr(form, name) for name in FIELDS]
        yield [update(shown=shown_as(entry), progress={"over": True}), *filled]

    def cancel(self, request: gr.Request) -> None:
        """Stops what this page has asked for."""
        self.engine.jobs.cancel(_owner(request))

    def halt(self, request: gr.Request) -> None:
        """Stops the measuring of nodes only."""
        self.engine.jobs.cancel(f"{_owner(request)}/measure")

    def _answers(
        self, request: gr.Request, asked: dict[str, Any], to: str, work: Callable[..., Any]
    ) -> Iterator[Update]:
        about = {"seq": asked["seq"], "id": asked["id"]}
        try:
            for step in self.engine.jobs.stream(f"{_owner(request)}/{to}", work):
                if isinstance(step, Step):
                    yield update(progress=_progress(step))
                else:
                    yield update(**{to: {**about, **step.value}, "progress": {"over": True}})
        except CancelledError:
            raise
        except Exception as error:
            yield update(**{to: {**about, "error": sentence(error)}})


def _owner(request: gr.Request) -> str:
    return str(request.session_hash or "api")


def _progress(step: Step) -> dict[str, Any]:
    return {"text": step.what, "done": step.done, "total": step.total}


def _asked(value: Any, event: str) -> dict[str, Any]:
    """Returns what an event asks for; the page's own script always says it."""
    asked = value.get(event) if isinstance(value, dict) else None
    if not isinstance(asked, dict) or not isinstance(asked.get("id"), str):
        raise InputError(f"The page asked for {event!r} without saying of what.")
    return {"seq": 0, "keys": [], "edits": [], "prompt": "", **asked}
