"""A trace that is stopped in the middle leaves nothing attached to the model."""

import pytest

import circuitsae as cs
from circuitsae.errors import CancelledError


@pytest.mark.parametrize("stop", [False, KeyboardInterrupt])
@pytest.mark.parametrize(
    ("linearisation", "at"), [("gradient", "targets"), ("frozen", "targets"), ("gradient", "ablations")]
)
def test_a_stopped_trace_leaves_no_hook(spliced: cs.SplicedModel, stop: object, linearisation: str, at: str) -> None:
    task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))

    seen: list[str] = []

    def progress(done: int, total: int, what: str) -> object:
        seen.append(what)
        if what != at:
            return True
        if stop is KeyboardInterrupt:
            raise KeyboardInterrupt
        return stop

    with pytest.raises((CancelledError, KeyboardInterrupt)):
        cs.trace(spliced, task, max_nodes=8, linearisation=linearisation, progress=progress)
    assert seen[-1] == at
    assert all(not p.fwd_hooks and not p.bwd_hooks for p in spliced.model.hook_dict.values())


def test_the_reference_prompts_of_a_mean_can_be_cancelled(spliced: cs.SplicedModel) -> None:
    task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
    reference = ["The keys to the door", "The key to the cabinet", "The cats of the house"]
    with pytest.raises(CancelledError, match="after 2 of 3 reference prompts"):
        cs.node_effects(
            spliced, task, baseline="mean", reference=reference, progress=lambda done, total, what: done < 2
        )
