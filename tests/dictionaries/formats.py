"""Small dictionaries in other tools' formats, written by hand, and what they compute, straight from those tools' formulas.

Each writer returns what is expected: activations and reconstruction as functions of the input, in float64.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

D, M, K = 6, 17, 3


class Expected(NamedTuple):
    """What a dictionary computes: dense activations of an input, and the reconstruction from both."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor, Tensor], Tensor]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Returns a random tensor."""
    generator = torch.Generator().manual_seed(sum(shape) * 1000 + len(shape) * 100 + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def rows(n: int = 5) -> Tensor:
    """Returns an input."""
    return normal(n, D, seed=77)


def top_k(u: Tensor, k: int) -> Tensor:
    """Returns the k largest of each row, relu'd, the others 0."""
    values, indices = torch.relu(u).topk(k, dim=-1)
    return torch.zeros_like(u).scatter(-1, indices, values)


def jump(u: Tensor, threshold: Tensor) -> Tensor:
    """Returns JumpReLU."""
    return torch.relu(u) * (u > threshold)


def write_gemma_scope(path: Path, *, compressed: bool = False, dtype: str = "float64", **extra: Any) -> Expected:
    """Writes a `params.npz` as Gemma Scope's."""
    params = {
        "W_enc": normal(D, M), "W_dec": normal(M, D), "b_enc": normal(M), "b_dec": normal(D),
        "threshold": normal(M, seed=1).abs() / 2,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    save(path, **{name: value.numpy().astype(dtype) for name, value in params.items()}, **extra)
    return Expected(
        lambda x: jump(x @ params["W_enc"] + params["b_enc"], params["threshold"]),
        lambda f, x: f @ params["W_dec"] + params["b_dec"],
    )


def write_gemma_scope_3(path: Path, *, has_skip: bool) -> Expected:
    """Writes a `params.safetensors` as Gemma Scope 2's."""
    params = {
        "w_enc": normal(D, M), "w_dec": normal(M, D), "b_enc": normal(M), "b_dec": normal(D),
        "threshold": normal(M, seed=1).abs() / 2,
    }  # fmt: skip
    if has_skip:
        params["affine_skip_connection"] = normal(D, D)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(params, path)
    skip = params.get("affine_skip_connection", torch.zeros(D, D, dtype=torch.float64))
    return Expected(
        lambda x: jump(x @ params["w_enc"] + params["b_enc"], params["threshold"]),
        lambda f, x: f @ params["w_dec"] + params["b_dec"] + x @ skip,
    )


def linear(out: int, given: int, seed: int = 0) -> Tensor:
    """Returns a `torch.nn.Linear`'s weight."""
    return normal(out, given, seed=seed)


def write_dictionary_learning(folder: Path, kind: str, *, config: Mapping[str, Any] | None = None) -> Expected:
    """Writes `ae.pt` (and `config.json` where one is given) as dictionary_learning's class of that name."""
    e, d = linear(M, D), linear(D, M, seed=3)
    b_enc, b_dec = normal(M), normal(D)
    threshold = torch.tensor(0.2, dtype=torch.float64)
    number = torch.tensor(K, dtype=torch.int)
    if kind == "AutoEncoder":
        state = {"bias": b_dec, "encoder.weight": e, "encoder.bias": b_enc, "decoder.weight": d}
        expected = Expected(lambda x: torch.relu((x - b_dec) @ e.T + b_enc), lambda f, x: f @ d.T + b_dec)
    elif kind == "AutoEncoderNew":
        state = {"encoder.weight": e, "encoder.bias": b_enc, "decoder.weight": d, "decoder.bias": b_dec}
        expected = Expected(lambda x: torch.relu(x @ e.T + b_enc), lambda f, x: f @ d.T + b_dec)
    elif kind == "GatedAutoEncoder":
        r_mag, gate, mag = 0.3 * normal(M, seed=5), normal(M, seed=6), normal(M, seed=7)
        state = {
            "decoder_bias": b_dec, "r_mag": r_mag, "gate_bias": gate, "mag_bias": mag, "encoder.weight": e,
            "decoder.weight": d,
        }  # fmt: skip
        expected = Expected(
            lambda x: ((x - b_dec) @ e.T + gate > 0) * torch.relu(r_mag.exp() * ((x - b_dec) @ e.T) + mag),
            lambda f, x: f @ d.T + b_dec,
        )
    elif kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        state = {
            "b_dec": b_dec, "k": number, "threshold": threshold, "encoder.weight": e, "encoder.bias": b_enc,
            "decoder.weight": d,
        }  # fmt: skip
        expected = Expected(
            (lambda x: top_k((x - b_dec) @ e.T + b_enc, K))
            if kind == "AutoEncoderTopK"
            else (lambda x: jump((x - b_dec) @ e.T + b_enc, threshold)),
            lambda f, x: f @ d.T + b_dec,
        )
    else:
        each = normal(M, seed=9).abs() / 2
        state = {"W_enc": e.T.contiguous(), "b_enc": b_enc, "W_dec": d.T.contiguous(), "b_dec": b_dec}
        if kind == "JumpReluAutoEncoder":
            state["threshold"] = each
            expected = Expected(lambda x: jump(x @ e.T + b_enc, each), lambda f, x: f @ d.T + b_dec)
        else:
            state |= {"k": number, "threshold": threshold, "group_sizes": torch.tensor([M - 7, 7])}
            expected = Expected(lambda x: jump((x - b_dec) @ e.T + b_enc, threshold), lambda f, x: f @ d.T + b_dec)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "ae.pt")
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"trainer": {"dict_class": kind, **config}, "buffer": {}}))
    return expected


def write_sparsify(folder: Path, **cfg: Any) -> Expected:
    """Writes `cfg.json` and `sae.safetensors` as sparsify's."""
    e, w, b_enc, b_dec = linear(M, D), normal(M, D, seed=4), normal(M), normal(D)
    settings = {
        "activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": M, "k": K,
        "multi_topk": False, "skip_connection": False, "transcode": False, "d_in": D,
    }  # fmt: skip
    settings |= cfg
    tensors = {"encoder.weight": e, "encoder.bias": b_enc, "W_dec": w, "b_dec": b_dec}
    if settings["skip_connection"]:
        tensors["W_skip"] = normal(D, D)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps(settings))
    centre = 0 * b_dec if settings["transcode"] else b_dec
    skip = tensors.get("W_skip", torch.zeros(D, D, dtype=torch.float64))
    return Expected(lambda x: top_k((x - centre) @ e.T + b_enc, settings["k"]), lambda f, x: f @ w + b_dec + x @ skip.T)


def write_transcoder_set(
    folder: Path, n_layers: int = 3, *, threshold: str = "", has_skip: bool = False, **config: Any
) -> list[Expected]:
    """Writes a set of per-layer transcoders as circuit-tracer's `to_safetensors`; `threshold` names that tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    expected = []
    for layer in range(n_layers):
        state = {
            "W_enc": normal(M, D, seed=layer),
            "W_dec": normal(M, D, seed=10 + layer),
            "b_enc": normal(M, seed=layer),
        }
        state["b_dec"] = normal(D, seed=layer)
        if threshold:
            state[threshold] = normal(M, seed=20 + layer).abs() / 2
        if has_skip:
            state["W_skip"] = normal(D, D, seed=layer)
        save_file(state, folder / f"layer_{layer}.safetensors")
        expected.append(_transcoder(state, state.get(threshold), state.get("W_skip")))
    write_yaml(folder, config)
    return expected


def _transcoder(state: Mapping[str, Tensor], threshold: Tensor | None, skip: Tensor | None) -> Expected:
    at = torch.tensor(0.0) if threshold is None else threshold
    through = torch.zeros(D, D, dtype=torch.float64) if skip is None else skip
    return Expected(
        lambda x: jump(x @ state["W_enc"].T + state["b_enc"], at),
        lambda f, x: f @ state["W_dec"] + state["b_dec"] + x @ through.T,
    )


def write_cross_layer(folder: Path, n_layers: int = 3, *, has_threshold: bool = False, **config: Any) -> dict[str, Any]:
    """Writes a cross-layer transcoder as circuit-tracer's; returns its tensors by their names there."""
    folder.mkdir(parents=True, exist_ok=True)
    everything: dict[str, Any] = {}
    for layer in range(n_layers):
        state = {f"W_enc_{layer}": normal(M, D, seed=layer), f"b_enc_{layer}": normal(M, seed=layer)}
        state[f"b_dec_{layer}"] = normal(D, seed=layer)
        if has_threshold:
            state[f"threshold_{layer}"] = normal(M, seed=20 + layer).abs() / 2
        decoder = {f"W_dec_{layer}": normal(M, n_layers - layer, D, seed=layer)}
        save_file(state, folder / f"W_enc_{layer}.safetensors")
        save_file(decoder, folder / f"W_dec_{layer}.safetensors")
        everything |= state | decoder
    write_yaml(folder, {"model_kind": "cross_layer_transcoder", **config})
    return everything


def write_yaml(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a set's `config.yaml`."""
    import yaml

    whole = {
        "model_name": "org/model", "model_kind": "transcoder_set", "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out", "scan": "org/set", **config,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))


def write_transcoder_circuits(path: Path, layer: int = 8) -> Expected:
    """Writes a file as transcoder_circuits: a pickled object of that package's class, and a state dict.

    The class is made for the writing alone, so that the reader can't have it.
    """
    import sys
    import types

    state = {"W_enc": normal(D, M), "b_enc": normal(M), "W_dec": normal(M, D), "b_dec": normal(D)}
    state["b_dec_out"] = normal(D, seed=8)
    module = types.ModuleType("sae_training.config")
    kind = type("LanguageModelSAERunnerConfig", (), {"__module__": "sae_training.config"})
    module.LanguageModelSAERunnerConfig = kind  # type: ignore[attr-defined]
    cfg = kind()
    vars(cfg).update(
        model_name="gpt2-small", hook_point=f"blocks.{layer}.ln2.hook_normalized", is_transcoder=True, d_in=D, d_sae=M,
        out_hook_point=f"blocks.{layer}.hook_mlp_out", d_out=D, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    package = types.ModuleType("sae_training")
    sys.modules["sae_training"], sys.modules["sae_training.config"] = package, module
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"cfg": cfg, "state_dict": state}, path)
    finally:
        del sys.modules["sae_training"], sys.modules["sae_training.config"]
    return Expected(
        lambda x: torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]),
        lambda f, x: f @ state["W_dec"] + state["b_dec_out"],
    )


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def malicious_torch_file(path: Path, mark: Path) -> None:
    """Writes a file as torch does, whose pickle makes `mark` when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"encoder.weight": normal(M, D), "trap": Malicious(mark)}, path)


def malicious_npz(path: Path, mark: Path) -> None:
    """Writes an archive with an array of objects, whose pickle makes `mark` when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trap = np.empty(1, dtype=object)
    trap[0] = Malicious(mark)
    np.savez(path, W_enc=normal(D, M).numpy(), threshold=trap)


def bomb_npz(path: Path, nbytes: int = 200 << 20) -> None:
    """Writes an archive with a member that unpacks to a thousand times its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (nbytes // 4,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("W_enc.npy", "w") as member:
        member.write(header.getvalue())
        for _ in range(nbytes >> 20):
            member.write(bytes(1 << 20))


def plain_pickle(path: Path, mark: Path) -> None:
    """Writes a bare pickle, as torch's oldest files began, that makes `mark` when it is run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(Malicious(mark)))
