"""Models on ZeroGPU, whose computing runs in another process: here that is a process without a GPU."""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the app needs the extra 'app'")

from circuitsae.errors import CancelledError, InputError
from gradio_app import borrowed, zero
from gradio_app.forms import Form
from gradio_app.service import Models, Service
from gradio_app.settings import make_settings

FORM = Form("tiny", "The old keys", "are", "", nodes=16)


def quiet(done: int, total: int, what: str) -> bool:
    return True


def everything(*arguments: Any) -> list[Any]:
    return list(borrowed.compute(*arguments))


@pytest.fixture(scope="module")
def there() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        yield pool


@pytest.fixture
def service(there: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(zero, "_spaces", object())
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    monkeypatch.setattr(borrowed, "DEVICE", "cpu")
    monkeypatch.setattr(borrowed, "compute", lambda *given: iter(there.submit(everything, *given).result()))
    return Service(make_settings("tiny"))


def test_what_crosses_is_what_is_computed_here(service: Service) -> None:
    here = Service(service.settings)
    here._parts = Models(service.settings).parts
    ours, theirs = service.trace(FORM, quiet), here.trace(FORM, quiet)
    assert service.models.there("tiny") is None  # nothing was loaded on this side
    assert ours.form == theirs.form and ours.form.answer == " are"
    effects = dict(ours.circuit.graph.nodes(data="effect", default=0.0))
    assert effects == pytest.approx(dict(theirs.circuit.graph.nodes(data="effect", default=0.0)), rel=1e-4, abs=1e-6)
    key = next(key for key, kind in ours.circuit.graph.nodes(data="kind") if kind == "feature")
    edits = [{"key": key, "op": "ablate"}]
    found, wanted = (s.ask("intervene", o.id, {"edits": edits}, quiet) for s, o in ((service, ours), (here, theirs)))
    assert found["metric_after"] == pytest.approx(wanted["metric_after"], rel=1e-4)
    effect = wanted["metric_after"] - wanted["metric_before"]
    *_, last = service.ask("measure", ours.id, {"keys": [key]}, quiet)
    assert last["values"] == {key: pytest.approx(effect, abs=1e-4)}
    assert service.ask("faithfulness", ours.id, {"keys": [key]}, quiet)["size"] == 1
    assert service.ask("continuation", ours.id, {"edits": edits}, quiet)["before"]
    assert len(service.compute("effects", FORM, {"top": 5}, quiet)) == 5


def test_a_refusal_and_a_cancel_cross_too(service: Service) -> None:
    with pytest.raises(InputError, match="'are is' is 2 tokens"):
        service.trace(Form("tiny", "The old keys", "are is", "", nodes=16), quiet)
    with pytest.raises(CancelledError):
        service.trace(FORM, lambda done, total, what: False)


def test_a_space_without_zerogpu_computes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zero, "_spaces", object())
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    service = Service(make_settings("tiny"))
    assert service._parts == service.models.parts
