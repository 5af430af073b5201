"""`gradient="through-dictionary"` against SAELens: gradients of HookedSAETransformer with use_error_term, in float64."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.dictionaries import saelens
from circuitsae.errors import SpliceError, UnknownNameError
from tests.attribution.architectures import bridge

pytestmark = pytest.mark.saelens

D_MODEL, D_SAE, K = 12, 30, 5
TOKENS = [3, 17, 5, 9, 28]
SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post", "blocks.2.hook_attn_out")


@pytest.fixture(scope="module")
def sae_lens() -> Any:
    """The package, imported once; it takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", reason="sae_lens (extra saelens) is not installed here")


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Their weights have torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def autoencoder(
    sae_lens: Any, architecture: str, hook: str, seed: int, normalisation: str = "none", d_in: int = D_MODEL
) -> Any:
    """A random one of theirs."""
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    settings: dict[str, Any] = {"d_in": d_in, "d_sae": D_SAE, "dtype": "float64", "device": "cpu"}
    settings["normalize_activations"] = normalisation
    if architecture == "topk":
        settings["k"] = K
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name=hook, prepend_bos=True)
    sae = sae_class(config_class(**settings, metadata=metadata))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
            if "threshold" in name:
                parameter.abs_()
    return sae


def transformer(sae_lens: Any) -> Any:
    """A random HookedSAETransformer."""
    cfg = importlib.import_module("transformer_lens").HookedTransformerConfig(
        n_layers=3,
        d_model=D_MODEL,
        d_head=6,
        n_heads=2,
        n_ctx=16,
        d_vocab=30,
        d_mlp=24,
        act_fn="gelu",
        dtype=torch.float64,
        device="cpu",
        seed=0,
    )
    model = sae_lens.HookedSAETransformer(cfg)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def sae_bridge(sae_lens: Any) -> Any:
    """A random SAETransformerBridge, made of a TransformerBridge as its own boot_transformers does."""
    from sae_lens.analysis.sae_transformer_bridge import SAETransformerBridge

    model = bridge("gpt2")
    model.__class__, model._acts_to_saes, model._transcoder_output_hooks = SAETransformerBridge, {}, {}
    return model


@pytest.mark.parametrize("make", [transformer, sae_bridge])
def test_a_model_to_which_saes_are_attached_later_asks_for_a_new_splice(sae_lens: Any, make: Any) -> None:
    """Whichever hook point theirs is attached to: what the model computes is no longer what it was."""
    model = make(sae_lens)
    mine, other = (autoencoder(sae_lens, "standard", hook, 3, d_in=model.cfg.d_model) for hook in SITES[1:3])
    spliced = cs.SplicedModel(model, [saelens.from_object(mine)])
    task = cs.Task(TOKENS, metric=cs.LogitDiff(4, 7))
    before = cs.node_effects(spliced, task).metric
    for sae in (mine, other):
        model.add_sae(sae)
        with pytest.raises(SpliceError, match=r"changed since dictionaries were attached.*new SplicedModel"):
            cs.node_effects(spliced, task)
        if sae is mine:
            with pytest.raises(UnknownNameError, match="hook point of this model"):
                cs.SplicedModel(model, [saelens.from_object(mine)])
        model.reset_saes()
        with pytest.raises(SpliceError, match=r"changed since dictionaries were attached.*new SplicedModel"):
            cs.node_effects(spliced, task)
        spliced = cs.SplicedModel(model, [saelens.from_object(mine)])
        assert cs.node_effects(spliced, task).metric == pytest.approx(before, abs=1e-12)


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk", "gated"])
def test_effects_are_their_gradients_times_the_change(sae_lens: Any, architecture: str, normalisation: str) -> None:
    model = transformer(sae_lens)
    saes = [autoencoder(sae_lens, architecture, hook, seed, normalisation) for seed, hook in enumerate(SITES, 10)]

    spliced = cs.SplicedModel(model, [saelens.from_object(sae) for sae in saes])
    task = cs.Task(TOKENS, metric=cs.LogitDiff(4, 7))
    effects = cs.node_effects(
        spliced, task, method="attribution-patching", gradient="through-dictionary", baseline="zero"
    )

    for sae in saes:
        model.add_sae(sae, use_error_term=True)
    activations: dict[str, torch.Tensor] = {}
    hooks = [
        (f"{hook}.hook_sae_{what}", lambda x, hook, key=(hook, what): activations.__setitem__(str(key), x))
        for hook in SITES
        for what in ("acts_post", "output")
    ]
    logits = model.run_with_hooks(torch.tensor([TOKENS]), fwd_hooks=hooks)
    metric = logits[0, -1, 4] - logits[0, -1, 7]
    found = torch.autograd.grad(metric, list(activations.values()))
    gradients = dict(zip(activations, found, strict=True))
    model.reset_saes()

    assert effects.metric == pytest.approx(metric.item(), abs=1e-10)
    for hook, sae in zip(SITES, saes, strict=True):
        block = next(b for b in effects.features() if b.site == hook)
        assert block.indices is not None and len(block) > 10
        theirs = activations[str((hook, "acts_post"))][0]
        mine = torch.zeros_like(theirs)
        mine[block.positions, block.indices] = block.activations
        assert (mine - theirs).abs().max() < 1e-10
        expected = -(gradients[str((hook, "acts_post"))][0] * theirs)
        mine = torch.zeros_like(theirs)
        mine[block.positions, block.indices] = block.effects
        assert expected.abs().max() > 1e-3
        assert (mine - expected).abs().max() < 1e-10
        errors = next(b for b in effects.errors() if b.site == hook)
        output = activations[str((hook, "output"))][0].detach()
        with torch.no_grad():
            error = output - sae.decode(sae.encode(output))  # what is written is what was read: the error is added
        expected = -(gradients[str((hook, "output"))][0] * error).sum(-1)
        assert (errors.effects - expected).abs().max() < 1e-10
