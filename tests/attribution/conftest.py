"""`tiny` in float64: real dictionaries, and arithmetic in which two roads to one number can be told apart."""

import pytest
import torch

import circuitsae as cs


@pytest.fixture(scope="session")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64, skip_positions=[])


@pytest.fixture(scope="session")
def transcoders() -> cs.SplicedModel:
    return cs.load("tiny-transcoders", dtype=torch.float64, skip_positions=[])


@pytest.fixture
def task() -> cs.Task:
    return cs.Task("When Mary and John went to the store, John gave a drink to", metric=cs.LogitDiff(" Mary", " John"))


@pytest.fixture
def patched() -> cs.Task:
    return cs.Task(
        "When Mary and John went to the store, John gave a drink to",
        metric=cs.LogitDiff(" Mary", " John"),
        patch="When Mary and John went to the store, Mary gave a drink to",
    )
