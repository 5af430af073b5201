"""Transcoders against circuit-tracer's own classes, in float64: per-layer ones and cross-layer ones."""

import importlib
from typing import Any

import pytest
import torch

from circuitsae.dictionaries.base import Dictionary

N_LAYERS, D_MODEL, D_SAE, N_POS = 4, 6, 17, 5
HOOK_OUTS = [f"blocks.{layer}.hook_mlp_out" for layer in range(N_LAYERS)]


@pytest.fixture(scope="module")
def transcoder() -> Any:
    """circuit-tracer's package of transcoders."""
    pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
    importlib.import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    return importlib.import_module("circuit_tracer.transcoder")


def fill(module: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if "threshold" in name:
                parameter.abs_()


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jump_relu"])
def test_cross_layer_transcoder_is_the_sum_of_its_layers(transcoder: Any, activation: str, has_skip: bool) -> None:
    theirs = transcoder.cross_layer_transcoder.CrossLayerTranscoder(
        N_LAYERS, D_SAE, D_MODEL, activation, has_skip, False, False, device=torch.device("cpu"), dtype=torch.float64
    )
    fill(theirs)
    prefix = "jumprelu_" if activation == "jump_relu" else ""
    layers = []
    for layer in range(N_LAYERS):
        outputs = N_LAYERS - layer
        b_dec = torch.zeros(outputs, D_MODEL, dtype=torch.float64)
        b_dec[0] = theirs.b_dec[layer]  # each output's bias belongs to the layer that writes it first
        tensors = {
            "W_enc": theirs.W_enc[layer].T,
            "b_enc": theirs.b_enc[layer],
            "W_dec": theirs.W_dec[layer],
            "b_dec": b_dec,
        }
        if prefix:
            tensors["threshold"] = theirs.activation_function.threshold[layer, 0]
        if has_skip:
            tensors["W_skip"] = theirs.W_skip[layer].T
        architecture = f"{prefix}{'skip_' if has_skip else ''}cross_layer_transcoder"
        hook_in = f"blocks.{layer}.hook_resid_mid"
        layers.append(
            Dictionary.from_tensors(
                architecture=architecture, hook_in=hook_in, hook_outs=HOOK_OUTS[layer:], tensors=tensors
            )
        )
    x = torch.randn(N_LAYERS, N_POS, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        activations = theirs.encode(x)
        expected = theirs.decode(activations.to_sparse(), x)
    encodings = [dictionary.encode(x[layer]) for layer, dictionary in enumerate(layers)]
    for layer, encoding in enumerate(encodings):
        assert (encoding.features.to_dense() - activations[layer]).abs().max() < 1e-12
    for out in range(N_LAYERS):
        total = sum(layers[i].decode(encodings[i], x[i], out - i) for i in range(out + 1))
        assert (total - expected[out]).abs().max() < 1e-11


@pytest.mark.parametrize("has_skip", [False, True])
@pytest.mark.parametrize("activation", ["relu", "jump_relu"])
def test_per_layer_transcoder(transcoder: Any, activation: str, has_skip: bool) -> None:
    functions = {"relu": torch.relu, "jump_relu": transcoder.activation_functions.JumpReLU(torch.zeros(D_SAE).double())}
    theirs = transcoder.single_layer_transcoder.SingleLayerTranscoder(
        D_MODEL, D_SAE, functions[activation], 0, has_skip, device=torch.device("cpu"), dtype=torch.float64
    )
    fill(theirs)
    tensors = {"W_enc": theirs.W_enc.T, "b_enc": theirs.b_enc, "W_dec": theirs.W_dec, "b_dec": theirs.b_dec}
    prefix = "jumprelu_" if activation == "jump_relu" else ""
    if prefix:
        tensors["threshold"] = theirs.activation_function.threshold
    if has_skip:
        tensors["W_skip"] = theirs.W_skip
    ours = Dictionary.from_tensors(
        architecture=f"{prefix}{'skip_' if has_skip else ''}transcoder",
        hook_in="blocks.0.hook_resid_mid",
        hook_outs=HOOK_OUTS[0],
        tensors=tensors,
    )
    x = torch.randn(N_POS, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours.encode(x).features.to_dense() - theirs.encode(x)).abs().max() < 1e-12
        assert (ours.decode(ours.encode(x), x) - theirs(x)).abs().max() < 1e-12
