"""Annotations are held to: tests run with shapes and types checked, so a wrong one doesn't stand."""

from collections.abc import Callable

import pytest
import torch
from jaxtyping import TypeCheckError

from circuitsae.attribution.blocks import position_blocks
from circuitsae.dictionaries.products import multiply
from circuitsae.evaluation.measuring import Cut
from circuitsae.interventions import Scale
from circuitsae.model.edits import FinalEdit

CALLS: list[Callable[[], object]] = [
    lambda: position_blocks(torch.zeros(2, 2, dtype=torch.long), 1),
    lambda: multiply(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, 2)),
    lambda: Cut(None, 2),  # type: ignore[arg-type]
    lambda: Scale(3, 1.0),  # type: ignore[arg-type]
    lambda: FinalEdit(0, 0, torch.zeros(2, 2)),
]


@pytest.mark.parametrize("call", CALLS, ids=["attribution", "dictionaries", "evaluation", "interventions", "model"])
def test_a_value_that_its_annotation_forbids_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.unchecked
def test_a_test_can_hand_over_what_annotations_forbid() -> None:
    assert Scale(3, 1.0).node == 3  # type: ignore[arg-type, comparison-overlap]
