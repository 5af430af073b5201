"""What is computed does not depend on the mode that torch is in where it is asked for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import circuitsae as cs


def _effects(spliced: cs.SplicedModel, task: cs.Task) -> Any:
    return [r["effect"] for r in cs.node_effects(spliced, task).records()]


def _circuit(spliced: cs.SplicedModel, task: cs.Task) -> Any:
    circuit = cs.trace(spliced, task, max_nodes=12, method="auto")
    return [*circuit.graph.nodes(data=True)], [*circuit.graph.edges(data=True)]


def _changed(spliced: cs.SplicedModel, task: cs.Task) -> Any:
    return cs.intervene(spliced, task, [cs.Ablate("blocks.1.hook_resid_post/error@2")]).metric_after


def _evaluated(spliced: cs.SplicedModel, task: cs.Task) -> Any:
    tasks = cs.task_set("agreement-simple", spliced, n=2)
    return cs.evaluate(spliced, tasks, grid=(0.5,), n_random=1, bootstrap=10).metrics.tolist()


def _loaded(spliced: cs.SplicedModel, task: cs.Task) -> Any:
    return _effects(cs.load("tiny", dtype=torch.float64, skip_positions=[]), task)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("ask", [_effects, _circuit, _changed, _evaluated, _loaded])
def test_the_callers_mode_changes_nothing(
    spliced: cs.SplicedModel, task: cs.Task, mode: Callable[[], Any], ask: Callable[[cs.SplicedModel, cs.Task], Any]
) -> None:
    expected = ask(spliced, task)
    with mode():
        assert ask(spliced, task) == expected
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
