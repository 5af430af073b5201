"""HookedTransformer, where transformer_lens still has it (before 4), gives the same numbers by the same calls."""

import importlib.util

import pytest
import torch

import circuitsae as cs
from circuitsae.dictionaries.base import Dictionary

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformer_lens.HookedTransformer") is None,
    reason="transformer_lens 4 has no HookedTransformer",
)


def test_trace_on_hooked_transformer() -> None:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=12, d_head=8, n_heads=2, d_mlp=32, d_vocab=40, act_fn="gelu", dtype=torch.float64
    )
    model = HookedTransformer(cfg)

    def dictionary(hook: str, width: int = 16) -> Dictionary:
        shapes = {"W_enc": (width, 48), "W_dec": (48, width), "b_enc": (48,), "b_dec": (width,)}
        tensors = {name: torch.randn(shape, dtype=torch.float64) * 0.3 for name, shape in shapes.items()}
        return Dictionary.from_tensors(architecture="standard", hook_in=hook, tensors=tensors)

    hooks = ["blocks.0.attn.hook_z", "blocks.0.hook_resid_mid", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]
    spliced = cs.SplicedModel(model, [dictionary(h) for h in hooks])
    task = cs.Task([3, 14, 15, 9, 2, 6], metric=cs.LogitDiff(7, 8))
    with torch.no_grad():
        logits = model(torch.tensor([[3, 14, 15, 9, 2, 6]]))
    circuit = cs.trace(spliced, task, method="attribution-patching", max_nodes=24, measure=6)
    assert circuit.graph.graph["metric_value"] == pytest.approx(float(logits[0, -1, 7] - logits[0, -1, 8]), abs=1e-10)
    assert len(circuit.features) == 24 and circuit.graph.number_of_edges() > 24
    node = circuit.strongest(1, "feature")[0]
    step = 1e-5
    up, down = (cs.intervene(spliced, task, [cs.Add(node, s)]).metric_after for s in (step, -step))
    slope = (up - down) / (2 * step)
    assert circuit[node]["effect"] == pytest.approx(-slope * circuit[node]["activation"], rel=1e-4, abs=1e-8)
    # Its norm before attention fires for queries, keys and values.
    frozen = {"attention": "frozen", "normalisation": "frozen"}
    edit = [cs.Scale(node, 0.0)]
    assert cs.intervene(spliced, task, edit, **frozen).metric_after != cs.intervene(spliced, task, edit).metric_after
    mlps = cs.SplicedModel(model, [dictionary(f"blocks.{layer}.hook_mlp_out") for layer in range(2)])
    graph = cs.trace(mlps, task, max_nodes=12, linearisation="frozen")
    assert graph.graph.number_of_edges() > 12
