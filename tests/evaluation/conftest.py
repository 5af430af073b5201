"""`tiny` in float64, so that two roads to one number can be told apart, and small sets of its tasks."""

import pytest
import torch

import circuitsae as cs


@pytest.fixture(scope="session")
def spliced() -> cs.SplicedModel:
    sites = ("blocks.0.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.2.hook_attn_out", "blocks.3.hook_resid_post")
    return cs.load("tiny", dtype=torch.float64, sites=sites)


@pytest.fixture(scope="session")
def transcoders() -> cs.SplicedModel:
    sites = ("blocks.0.hook_mlp_out", "blocks.3.hook_mlp_out")
    return cs.load("tiny-transcoders", dtype=torch.float64, sites=sites)


@pytest.fixture(scope="session")
def agreement(spliced: cs.SplicedModel) -> cs.TaskSet:
    return cs.task_set("agreement-nounpp", spliced, n=3, aligned=True)


@pytest.fixture(scope="session")
def names(spliced: cs.SplicedModel) -> cs.TaskSet:
    return cs.task_set("ioi", spliced, n=2, aligned=True)
