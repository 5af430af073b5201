"""A trace that is stopped holds on to nothing: not to its tape, not to what it had computed."""

import gc
import warnings
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import CancelledError

TASK = cs.Task("Mary and John went to", metric=cs.LogitDiff(" Mary", " John"))


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny")


def held() -> int:
    """Returns the bytes of all tensors that are alive."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
        storages = [x.untyped_storage() for x in tensors if x.device.type == "cpu"]
    found = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(found.values())


@pytest.mark.parametrize(
    ("settings", "where", "stop"),
    [
        ({}, "targets", False),
        ({"linearisation": "frozen"}, "targets", KeyboardInterrupt),
        ({"method": "atp-star"}, "backward passes", False),
        ({"method": "integrated-gradients", "steps": 2}, "sites", KeyboardInterrupt),
        ({"method": "auto"}, "ablations", False),
    ],
    ids=["edges", "frozen", "atp-star", "integrated-gradients", "auto"],
)
def test_a_stopped_trace_frees_what_it_held(
    spliced: cs.SplicedModel, settings: dict[str, Any], where: str, stop: Any
) -> None:
    for _ in range(2):  # what is kept with the model is kept from now on
        cs.trace(spliced, TASK, max_nodes=8, **settings)
    before, during = held(), 0

    def progress(done: int, total: int, what: str) -> object:
        nonlocal during
        if what != where:
            return True
        during = held()
        if stop is KeyboardInterrupt:
            raise KeyboardInterrupt
        return stop

    stopped = False
    try:  # not pytest.raises, which keeps the traceback and with it every frame's variables
        cs.trace(spliced, TASK, max_nodes=8, progress=progress, **settings)
    except (CancelledError, KeyboardInterrupt):
        stopped = True
    assert stopped
    assert during > before
    assert held() <= before
