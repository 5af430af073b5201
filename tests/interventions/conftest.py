"""`tiny` in float64, as the engine's tests have it."""

import pytest
import torch

import circuitsae as cs

PROMPT = "When Mary and John went to the store, John gave a drink to"
PATCH = "When Mary and John went to the store, Mary gave a drink to"


@pytest.fixture(scope="session")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64, skip_positions=[])


@pytest.fixture(scope="session")
def transcoders() -> cs.SplicedModel:
    return cs.load("tiny-transcoders", dtype=torch.float64, skip_positions=[])


@pytest.fixture
def task() -> cs.Task:
    return cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John"))


@pytest.fixture
def patched() -> cs.Task:
    return cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John"), patch=PATCH)
