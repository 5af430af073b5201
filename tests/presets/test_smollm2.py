"""The preset `smollm2` on its real model, which has to be fetched beforehand: circuitsae fetch smollm2."""

import os

import pytest
import torch

import circuitsae as cs
from circuitsae.presets import find_preset, is_present

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def smollm2() -> cs.SplicedModel:
    with pytest.MonkeyPatch.context() as patch:
        # the user's own cache, which the other tests stay away from
        for name in ("CIRCUITSAE_CACHE", "CIRCUITSAE_SMOLLM2"):
            if name in _USERS:
                patch.setenv(name, _USERS[name])
            else:
                patch.delenv(name, raising=False)
        if not is_present(find_preset("smollm2")):
            pytest.skip("the model is not on this machine: circuitsae fetch smollm2")
        return cs.load("smollm2")


_USERS = {name: os.environ[name] for name in ("CIRCUITSAE_CACHE", "CIRCUITSAE_SMOLLM2") if name in os.environ}


@pytest.mark.parametrize(
    ("example", "difference"),
    [("indirect object", 5.29), ("agreement", 1.19), ("agreement, plural between", 2.45), ("capital", 5.21)],
)
def test_the_examples_are_answered_as_the_model_is_known_to(
    smollm2: cs.SplicedModel, example: str, difference: float
) -> None:
    (found,) = [e for e in find_preset("smollm2").examples if e.name == example]
    tokens = torch.tensor([smollm2.vocabulary.encode(found.prompt)])
    with torch.no_grad():
        logits = smollm2.model(tokens, return_type="logits")[0, -1]
    answer, foil = (smollm2.vocabulary.token_id(text or "") for text in (found.answer, found.foil))
    assert float(logits[answer] - logits[foil]) == pytest.approx(difference, abs=0.01)
    patched = smollm2.vocabulary.encode(found.patch or "")
    assert len(patched) == tokens.shape[1]


def test_the_dictionaries_fit_where_they_are_attached(smollm2: cs.SplicedModel) -> None:
    assert (
        (smollm2.skip_positions, smollm2.skip_sinks) == ((0,), 4.0)
        and smollm2.vocabulary.prepend_bos
        and smollm2.name == "smollm2"
    )
    assert smollm2.sites == tuple(f"blocks.{layer}.hook_resid_post" for layer in (2, 7, 12, 17, 22, 27))
    seen: dict[str, torch.Tensor] = {}
    hooks = [(site, lambda x, hook, site=site: seen.update({site: x[0, 1:]})) for site in smollm2.sites]
    text = "The old man walked to the store and bought a bottle of milk, because his wife had asked him to do so."
    with torch.no_grad():
        smollm2.model.run_with_hooks(torch.tensor([smollm2.vocabulary.encode(text)]), fwd_hooks=hooks)
    for dictionary in smollm2.dictionaries:
        x = seen[dictionary.site]
        encoding = dictionary.encode(x)
        unexplained = float((x - dictionary.decode(encoding)).pow(2).sum() / (x - x.mean(0)).pow(2).sum())
        assert unexplained < 2 * dictionary.metadata["heldout"]["fvu"], dictionary.site
        assert len(encoding.features.values) == 32 * len(x)
