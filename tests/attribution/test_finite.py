"""Numbers that are not finite are refused at every door, with the place where they begin and what helps."""

from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.errors import NotFiniteError
from tests.attribution.architectures import TOKENS, bridge, dictionary

TASK = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
SITE = "blocks.0.hook_resid_post"


def broken(dtype: torch.dtype, change: Any) -> cs.SplicedModel:
    model = bridge("gpt2", dtype)
    with torch.no_grad():
        change(model.original_model.transformer.h[1])
    return cs.SplicedModel(model, [dictionary(SITE)], prepend_bos=False)


def overflow(block: Any) -> None:
    for parameter in block.mlp.parameters():
        parameter.mul_(1e4)


def nan(block: Any) -> None:
    next(block.mlp.parameters())[0, 0] = torch.nan


DOORS = {
    "effects": lambda s: cs.node_effects(s, TASK),
    "trace": lambda s: cs.trace(s, TASK),
    "intervene": lambda s: cs.intervene(s, TASK, [cs.Ablate(f"{SITE}/error@2")]),
    "evaluate": lambda s: cs.evaluate(s, [TASK]),
    "measure": lambda s: cs.Session(s, TASK).measure([f"{SITE}/error@2"]),
    "faithfulness": lambda s: cs.Session(s, TASK).faithfulness([f"{SITE}/error@2"]),
    "scan_ablation": lambda s: cs.scan_ablation(s, TASK),
    "scan_activity": lambda s: cs.scan_activity(s, [TOKENS]),
    "scan_scales": lambda s: cs.scan_scales(s, TASK, f"{SITE}/error@2"),
    "generate": lambda s: cs.generate(s, TOKENS, [cs.Ablate(f"{SITE}/error@2")], max_new_tokens=2),
}


@pytest.mark.parametrize("door", DOORS)
def test_an_overflow_is_refused_with_its_first_place(door: str) -> None:
    spliced = broken(torch.float16, overflow)
    with pytest.raises(
        NotFiniteError, match=r"first activation .* 'blocks\.1\.(hook_mlp_out|mlp\..*)'.*float16.*bfloat16"
    ):
        DOORS[door](spliced)


def test_a_weight_that_is_nan_is_named() -> None:
    with pytest.raises(NotFiniteError, match=r"its weight '.*mlp.*' \(float32\) is not"):
        cs.node_effects(broken(torch.float32, nan), TASK)


def test_values_that_overflow_are_told_from_a_broken_model() -> None:
    spliced = broken(torch.float32, lambda block: None)
    with pytest.raises(NotFiniteError, match="with what this run changes"):
        cs.intervene(spliced, TASK, [cs.Set(f"{SITE}/3@2", 1e39)])


def test_a_metric_that_is_not_finite_is_refused_and_a_ruled_out_token_is_not() -> None:
    spliced = broken(torch.float32, lambda block: None)

    def ruled_out(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([7]), -torch.inf)[:, -1].log_softmax(-1)[:, 7]

    with pytest.raises(NotFiniteError, match=r"The metric is not finite \(ruled_out"):
        cs.node_effects(spliced, cs.Task(TOKENS, metric=ruled_out))
