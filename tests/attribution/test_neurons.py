"""Neurons in place of dictionaries: against the model's own gradients and zeroed activations, by plain hooks."""

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae.attribution.effects import make_context, run_method
from circuitsae.cli.commands.doctor import check
from circuitsae.errors import InputError, UnknownNameError
from tests.attribution.architectures import N_LAYERS, TOKENS, bridge, dictionary

TASK = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
HOOKS = [f"blocks.{layer}.mlp.hook_post" for layer in range(N_LAYERS)]


def attach(family: str) -> cs.SplicedModel:
    return cs.load(model=bridge(family), dictionaries="neurons", prepend_bos=False)


def metric(model: object, hooks: object) -> Tensor:
    logits = model.run_with_hooks(torch.tensor([TOKENS]), return_type="logits", fwd_hooks=hooks)  # type: ignore[attr-defined]
    return logits[0, -1, 7] - logits[0, -1, 8]


@pytest.mark.parametrize("family", ["gpt2", "neox", "llama", "gemma2"])
def test_every_neuron_is_a_node_whose_effect_is_the_models_own(family: str) -> None:
    spliced = attach(family)
    assert list(spliced.sites) == HOOKS
    seen: dict[str, Tensor] = {}
    for name in HOOKS:

        def leaf(x: Tensor, hook: object, name: str = name) -> Tensor:
            seen[name] = x.detach().requires_grad_()
            return seen[name]

        metric(spliced.model, [(name, leaf)]).backward()
    context = make_context(spliced, TASK, method="attribution-patching", baseline="zero")
    effects = run_method(context)
    for block in effects.features():
        x, g = seen[block.site][0].detach(), seen[block.site].grad[0]  # type: ignore[index]
        assert len(block) == int((x != 0).sum())
        torch.testing.assert_close(block.effects, -(x * g)[block.positions, block.indices], rtol=1e-9, atol=1e-12)
    assert not any(block.activations.any() for block in effects.errors())  # nothing is left unexplained
    # of rows that are unit vectors, none is made
    assert not any(features.decoders.here() for features in context.run.features)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ablated_neurons_are_zeroed_neurons(family: str) -> None:
    spliced = attach(family)
    measured = cs.node_effects(spliced, TASK, method="ablation", baseline="zero", tokens=False)
    clean = metric(spliced.model, [])
    for block in measured.features():
        at = int(block.effects.abs().argmax())
        position, index = int(block.positions[at]), int(block.indices[at])  # type: ignore[index]

        def zero(x: Tensor, hook: object, position: int = position, index: int = index) -> Tensor:
            x = x.clone()
            x[0, position, index] = 0
            return x

        by_hand = metric(spliced.model, [(block.site, zero)]) - clean
        torch.testing.assert_close(block.effects[at], by_hand.detach(), rtol=1e-8, atol=1e-10)


def test_the_self_check_holds_on_neurons() -> None:
    wrong = [row for row in check(attach("gpt2"), [], lambda *_: True) if row["state"] != "right"]
    assert wrong == []


def test_neurons_stand_beside_dictionaries_and_at_chosen_sites() -> None:
    sae = dictionary("blocks.0.hook_resid_post", seed=0)
    both = cs.load(model=bridge("gpt2"), dictionaries=[sae, "neurons"], prepend_bos=False)
    assert list(both.sites) == ["blocks.0.hook_resid_post", *HOOKS]
    circuit = cs.trace(both, TASK, max_nodes=24)
    assert {circuit[key]["site"] for key in circuit.features} - set(HOOKS) == {"blocks.0.hook_resid_post"}
    one = cs.load(model=bridge("gpt2"), dictionaries=["neurons"], sites=HOOKS[1:], prepend_bos=False)
    assert list(one.sites) == HOOKS[1:]
    with pytest.raises(UnknownNameError, match=r"blocks\.7\.mlp\.hook_post"):
        cs.load(model=bridge("gpt2"), dictionaries="neurons", sites=["blocks.7.mlp.hook_post"])


def test_a_mixture_of_experts_has_no_neurons_to_attach() -> None:
    with pytest.raises(InputError, match=r"has no neurons that can be attached.*mixtures of experts"):
        attach("mixtral")
