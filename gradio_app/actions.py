"""What happens when something is pressed: handlers between the page and the service. None of them is public."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from circuitsae.errors import CancelledError, CircuitsaeError, InputError
from gradio_app.forms import read_form
from gradio_app.jobs import Done, Step, owner_of
from gradio_app.links import decode_state
from gradio_app.operations import OPERATIONS
from gradio_app.service import Service, log
from gradio_app.view import shown_as, update

FIELDS = ("preset", "prompt", "answer", "foil", "patch", "method", "linearisation", "nodes")

TO_FETCH = "The link asks for {preset}, which is not on this machine yet; press Trace to fetch it and trace."

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

    def __init__(self, service: Service) -> None:
        self.service = service

    def check(self, *values: Any) -> list[dict[str, Any]]:
        """Returns, for each field, whether it can be used; the sentence is shown beside it."""
        found = self.service.problems(dict(zip(FIELDS, values, strict=True)))
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
            asked = read_form(given, self.service.settings)
            yield [update(progress={"text": "Waiting for the model"}), *fields]
            for step in self.service.jobs.stream(caller(request), lambda progress: self.service.trace(asked, progress)):
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
            form = read_form(state.get("form") or {}, self.service.settings)
        except CircuitsaeError as error:
            yield [update(progress={"error": str(error)}), *skip]
            return
        fields = [getattr(form, name) for name in FIELDS]
        if not self.service.models.is_here(form.preset):
            yield [update(progress={"error": TO_FETCH.format(preset=form.preset)}), *fields]
            return
        yield [gr.skip(), *fields]
        yield from self._traced(form.as_dict(), request, {**state, "form": None})

    def operation(self, name: str) -> Callable[[Any, gr.Request], Iterator[Update]]:
        """Returns the handler of an operation that a pane asks for: its answer, or its parts, as they come."""
        operation = OPERATIONS[name]
        assert operation.to is not None
        to = operation.to

        def whole(value: Any, request: gr.Request) -> Iterator[Update]:
            asked = _asked(value, name)
            about = {"seq": asked["seq"], "id": asked["id"]}
            try:
                for step in self._work(name, asked, request):
                    if isinstance(step, Step):
                        yield update(progress=_progress(step))
                    else:
                        yield update(**{to: {**about, **step.value}, "progress": {"over": True}})
            except CancelledError:
                raise
            except Exception as error:
                yield update(**{to: {**about, "error": sentence(error)}})

        def in_parts(value: Any, request: gr.Request) -> Iterator[Update]:
            asked = _asked(value, name)
            last: dict[str, Any] = {"seq": asked["seq"], "id": asked["id"]}
            try:
                for step in self._work(name, asked, request):
                    if isinstance(step, Done):
                        last |= step.value
                        yield update(**{to: dict(last)})
            except CancelledError:
                pass
            yield update(**{to: {**last, "values": {}, "over": True}})

        return _said(in_parts if operation.streams else whole)

    def _work(self, name: str, asked: dict[str, Any], request: gr.Request) -> Iterator[Step | Done[Any]]:
        return self.service.jobs.stream(
            f"{caller(request)}/{name}", lambda progress: self.service.ask(name, asked["id"], asked, progress)
        )

    @_said
    def compare(self, value: Any, request: gr.Request) -> Iterator[Update]:
        """Traces a second prompt and shows both circuits as one graph."""
        asked = _asked(value, "compare")
        prompt = str(asked["prompt"])
        for step in self.service.jobs.stream(
            caller(request), lambda progress: self.service.compare(asked["id"], prompt, progress)
        ):
            if isinstance(step, Step):
                yield update(progress=_progress(step))
            else:
                yield update(shown={**shown_as(step.value), "comparesWith": asked["id"]}, progress={"over": True})

    def opened(self, value: Any) -> Iterator[list[Update]]:
        """Shows an uploaded circuit and fills the form with what it was traced from."""
        try:
            entry = self.service.store.get(_asked(value, "opened")["id"])
        except CircuitsaeError as error:
            yield [update(progress={"error": str(error)}), *[gr.skip()] * len(FIELDS)]
            return
        form = entry.form
        filled = [gr.skip() if form is None else getattr(form, name) for name in FIELDS]
        yield [update(shown=shown_as(entry), progress={"over": True}), *filled]

    def cancel(self, request: gr.Request) -> None:
        """Stops what this page has asked for."""
        self.service.jobs.cancel(caller(request))

    def halt(self, request: gr.Request) -> None:
        """Stops the measuring of nodes only."""
        self.service.jobs.cancel(f"{caller(request)}/measure")


def caller(request: gr.Request) -> str:
    """Returns who owns what a request asks for; gradio names the session of a call without one after the call."""
    session, client = request.session_hash, request.client
    alone = session is None or session == LocalContext.event_id.get(None)
    return owner_of(None if alone else session, None if client is None else client.host)


def _progress(step: Step) -> dict[str, Any]:
    return {"text": step.what, "done": step.done, "total": step.total}


def _asked(value: Any, event: str) -> dict[str, Any]:
    """Returns what an event asks for; the page's own script always says it."""
    asked = value.get(event) if isinstance(value, dict) else None
    if not isinstance(asked, dict) or not isinstance(asked.get("id"), str):
        raise InputError(f"The page asked for {event!r} without saying of what.")
    return {"seq": 0, "keys": [], "edits": [], "prompt": "", **asked}
