"""Random dictionaries of every architecture, and what they compute, written apart: dense, one feature at a time."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary

SAES = ("standard", "gated", "topk", "abstopk", "jumprelu")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder", "topk_transcoder")
CROSS_LAYER = ("cross_layer_transcoder", "jumprelu_cross_layer_transcoder", "skip_cross_layer_transcoder")
NORMALISATIONS = ("none", "expected_average_only_in", "constant_norm_rescale", "layer_norm")

HOOK_IN = "blocks.1.hook_resid_pre"
HOOK_OUT = "blocks.1.hook_mlp_out"
HOOK_OUTS = ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out")
D_IN, D_SAE, D_OUT, K = 7, 23, 5, 4


def random_tensors(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Returns weights none of which is zero, one or equal to another."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    transcodes = "transcoder" in architecture
    d_out = D_OUT if transcodes else D_IN
    outputs = (len(HOOK_OUTS),) if "cross_layer" in architecture else ()
    tensors = {"W_enc": normal(D_IN, D_SAE), "W_dec": normal(D_SAE, *outputs, d_out), "b_dec": normal(*outputs, d_out)}
    if architecture == "gated":
        return tensors | {"b_gate": normal(D_SAE), "b_mag": normal(D_SAE), "r_mag": 0.3 * normal(D_SAE)}
    tensors["b_enc"] = normal(D_SAE)
    if "jumprelu" in architecture:
        tensors["threshold"] = normal(D_SAE)  # negative ones too: relu still holds under them
    if "skip" in architecture:
        tensors["W_skip"] = normal(d_out, D_IN)
    return tensors


def random_dictionary(
    architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **cfg: Any
) -> Dictionary:
    """Returns a small dictionary of an architecture; `cfg` as for `Dictionary.from_tensors`."""
    if "topk" in architecture:
        cfg.setdefault("k", K)
    hook_outs = None
    if "transcoder" in architecture:
        hook_outs = HOOK_OUTS if "cross_layer" in architecture else (HOOK_OUT,)
    return Dictionary.from_tensors(
        architecture=architecture,
        hook_in=HOOK_IN,
        hook_outs=hook_outs,
        tensors=random_tensors(architecture, seed=seed, dtype=dtype),
        **cfg,
    )


def random_input(rows: int = 9, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns rows with a mean and a norm that are far from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(rows, D_IN, generator=generator, dtype=torch.float64) + 0.4).to(dtype)


class Answer(NamedTuple):
    """Dense activations [row, d_sae] and the reconstruction of every output [row, d_out]."""

    features: Tensor
    outputs: list[Tensor]


def naive(dictionary: Dictionary, x: Tensor) -> Answer:
    """Returns what a dictionary of `random_tensors` computes, one row and one feature at a time."""
    tensors = {name: dictionary.weights.view(name).to(x.dtype) for name in dictionary.weights.names}
    rows = [_naive_row(dictionary, tensors, row) for row in x]
    features = torch.stack([row[0] for row in rows])
    return Answer(features, [torch.stack([row[1][out] for row in rows]) for out in range(len(dictionary.hook_outs))])


def _naive_row(dictionary: Dictionary, tensors: dict[str, Tensor], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    config, architecture, d_in = dictionary.config, dictionary.architecture, x.shape[0]
    z, scale, shift = x.clone(), 1.0, 0.0
    if config.normalize_activations == "layer_norm":
        mean = float(x.sum()) / d_in
        deviation = math.sqrt(sum((float(v) - mean) ** 2 for v in x) / (d_in - 1))
        z, scale, shift = (x - mean) / (deviation + 1e-5), deviation, mean
    elif config.normalize_activations == "constant_norm_rescale":
        scale = math.sqrt(sum(float(v) ** 2 for v in x) / d_in)
        z = x / scale
    if config.apply_b_dec_to_input:
        z = z - tensors["b_dec"]
    u = [float(z @ tensors["W_enc"][:, i]) for i in range(dictionary.d_sae)]
    values = _naive_activation(dictionary, tensors, u)
    features = torch.tensor(values, dtype=x.dtype)
    outputs = []
    for out in range(len(dictionary.hook_outs)):
        is_cross = "cross_layer" in architecture
        b_dec = tensors["b_dec"][out] if is_cross else tensors["b_dec"]
        x_hat = b_dec.clone()
        for i, value in enumerate(values):
            row = tensors["W_dec"][i, out] if is_cross else tensors["W_dec"][i]
            x_hat = x_hat + value * (row / row.norm() if config.rescale_acts_by_decoder_norm else row)
        if "transcoder" not in architecture:
            x_hat = x_hat * scale + shift
        if "skip" in architecture and out == 0:
            x_hat = x_hat + tensors["W_skip"] @ x
        outputs.append(x_hat)
    return features, outputs


def _naive_activation(dictionary: Dictionary, tensors: dict[str, Tensor], u: list[float]) -> list[float]:
    architecture, config = dictionary.architecture, dictionary.config
    if architecture == "gated":
        magnitudes = [
            max(0.0, v * math.exp(float(tensors["r_mag"][i])) + float(tensors["b_mag"][i])) for i, v in enumerate(u)
        ]
        return [
            m if v + float(tensors["b_gate"][i]) > 0 else 0.0
            for i, (v, m) in enumerate(zip(u, magnitudes, strict=True))
        ]
    p = [v + float(tensors["b_enc"][i]) for i, v in enumerate(u)]
    if config.rescale_acts_by_decoder_norm:
        p = [v * float(tensors["W_dec"][i].norm()) for i, v in enumerate(p)]
    if "topk" in architecture:
        assert config.k is not None
        is_signed = architecture == "abstopk"
        order = sorted(range(len(p)), key=lambda i: -(abs(p[i]) if is_signed else p[i]))
        kept = set(order[: config.k])
        return [(v if is_signed else max(0.0, v)) if i in kept else 0.0 for i, v in enumerate(p)]
    if "jumprelu" in architecture:
        return [max(0.0, v) if v > float(tensors["threshold"][i]) else 0.0 for i, v in enumerate(p)]
    return [max(0.0, v) for v in p]
