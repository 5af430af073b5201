"""Learned masks: the gates' model is the engine's, and training finds a circuit that chance does not."""

import numpy as np
import pytest
import torch

import circuitsae as cs
from circuitsae.errors import InputError
from circuitsae.evaluation.learned import learn_mask, masked_metric
from circuitsae.evaluation.measuring import Cut, measure_cuts
from circuitsae.evaluation.prompts import Prompts
from circuitsae.evaluation.ranking import Owners, Ranking
from circuitsae.evaluation.survey import summarise, survey_prompt
from tests.attribution.architectures import TOKENS, bridge, dictionary


@pytest.mark.parametrize("positioned", [False, True])
def test_gates_at_0_and_1_give_the_metric_of_that_circuit(
    spliced: cs.SplicedModel, agreement: cs.TaskSet, positioned: bool
) -> None:
    prompts, owners = Prompts(spliced, agreement.tasks), Owners.of(spliced, positioned)
    table = summarise(owners, [survey_prompt(prompts, n, owners, None, True) for n in range(len(prompts))]).table
    order = np.random.default_rng(0).permutation(len(table))
    for size in (0, len(table) // 2, len(table)):
        mask = torch.zeros(len(table), dtype=torch.float64)
        mask[order[:size]] = 1
        (measured,) = measure_cuts(prompts[0], table, [Cut(Ranking("any", order), size)])
        assert float(masked_metric(prompts[0], table, mask)) == pytest.approx(measured, abs=1e-9)


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
def test_gates_gradient_goes_through_the_statistics_of_what_dictionaries_read(normalisation: str) -> None:
    sites = [f"blocks.{n}.hook_resid_post" for n in range(2)]
    made = [dictionary(site, seed=n, normalize_activations=normalisation) for n, site in enumerate(sites)]
    spliced = cs.SplicedModel(bridge("gpt2"), made, prepend_bos=False)
    prompts, owners = Prompts(spliced, (cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)),)), Owners.of(spliced, True)
    table = summarise(owners, [survey_prompt(prompts, 0, owners, None, True)]).table
    generator = torch.Generator().manual_seed(0)
    mask = 0.3 + 0.4 * torch.rand(len(table), generator=generator, dtype=torch.float64)
    direction = torch.randn(len(table), generator=generator, dtype=torch.float64)

    def value(step: float) -> float:
        return float(masked_metric(prompts[0], table, mask + step * direction))

    leaf = mask.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(masked_metric(prompts[0], table, leaf), leaf)
    assert float(gradient @ direction) == pytest.approx((value(1e-6) - value(-1e-6)) / 2e-6, rel=1e-5)


def test_training_finds_a_circuit_of_the_size_asked_for(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    learned = learn_mask(spliced, agreement, 60, steps=8, batch=2, positions=True)
    assert len(learned.scores) == 60
    assert len(learned.losses) == len(learned.sizes) == 8
    assert learned.sizes[-1] < learned.sizes[0]
    found = cs.evaluate(spliced, agreement, learned.scores, grid=(1.0,), compare=(), complement=False)
    assert found.faithfulness is not None
    assert found.faithfulness.value is not None
    assert found.faithfulness.value > 0.5
    assert learn_mask(spliced, agreement, 60, steps=2, batch=2, positions=True).losses == learned.losses[:2]


@pytest.mark.parametrize("options", [{"size": 0}, {"size": 10**6}, {"size": 5, "steps": 0}, {"size": 5, "rate": -1.0}])
def test_what_can_not_be_trained_is_said(spliced: cs.SplicedModel, agreement: cs.TaskSet, options: dict) -> None:
    with pytest.raises(InputError):
        learn_mask(spliced, agreement[:1], **options)
