"""Llama Scope: `hyperparams.json` with `checkpoints/final.safetensors`, JumpReLU SAEs with one threshold for all features.

Activations are scaled to a mean norm of the root of the width before the encoder, and the output is scaled back; the
factor is folded into the weights, and into the threshold, as SAELens does it (`llama_scope_sae_huggingface_loader` and
`fold_activation_norm_scaling_factor`, 6.54). Source of the SAEs: arXiv 2410.20526.
"""

from collections.abc import Collection
from typing import Any

import torch

from circuitsae.dictionaries import hub
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.tensors import PickledWeights
from circuitsae.dictionaries.reader import SafetensorsFile, read_json
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError

_CONFIG, _WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
_NAMES = {
    "W_enc": "encoder.weight", "W_dec": "decoder.weight", "b_enc": "encoder.bias", "b_dec": "decoder.bias",
}  # fmt: skip


class LlamaScope(Format):
    """A dictionary of Llama Scope."""

    name = "llama-scope"
    files = f"{_CONFIG} and {_WEIGHTS}"
    origin = "Llama Scope"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the settings; the weights lie in a folder below."""
        return [_CONFIG] if _CONFIG in names else []

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens it.

        Raises:
            DictionaryError: The files are damaged, or say something else than a JumpReLU SAE.
            FetchError: The weights can't be fetched.
        """
        origin = str(folder.path / _CONFIG)
        said = read_json(folder.path / _CONFIG)
        name_unknown(said, self.name, origin)
        if said.get("act_fn", "jumprelu") != "jumprelu" or said.get("use_glu_encoder"):
            raise DictionaryError(
                f"{origin} asks for act_fn {said.get('act_fn')!r:.40}; expected jumprelu without gates."
            )
        hook, writes = folder.hook_in or said.get("hook_point_in"), said.get("hook_point_out")
        if not isinstance(hook, str) or (folder.hook_in is None and writes not in (None, hook)):
            raise DictionaryError(
                f"{origin} names the hook points {hook!r:.60} and {writes!r:.60}; expected one, an SAE's."
            )
        threshold = _number(said.get("jump_relu_threshold"), "jump_relu_threshold", origin)
        norms = said.get("dataset_average_activation_norm")
        norm = _number(
            norms.get("in") if isinstance(norms, dict) else None, "dataset_average_activation_norm.in", origin
        )
        file = SafetensorsFile(_weights(folder))
        if missing := [name for name in _NAMES.values() if name not in file.entries]:
            raise DictionaryError(f"{file.path} lacks {', '.join(missing)}.")
        if extra := sorted(set(file.entries) - set(_NAMES.values())):
            raise DictionaryError(f"{file.path} holds {extra[0]}, which is not known of Llama Scope.")
        weights = PickledWeights(file.path, lambda: _folded(file, threshold, norm))
        config = DictionaryConfig(
            "jumprelu", hook, tuple(folder.hook_outs or (hook,)), metadata={"model_name": "meta-llama/Llama-3.1-8B"}
        )
        return [Dictionary(config, weights, source=folder.source)]


def _folded(file: SafetensorsFile, threshold: float, norm: float) -> dict[str, torch.Tensor]:
    """Returns the tensors by our names, the scaling folded in; halves are widened first, so that it rounds nothing."""
    stored = {ours: file.view(theirs) for ours, theirs in _NAMES.items()}
    stored = {name: tensor.float() if tensor.dtype.itemsize < 4 else tensor for name, tensor in stored.items()}
    factor = stored["W_enc"].shape[-1] ** 0.5 / norm
    return {
        "W_enc": stored["W_enc"].T * factor,
        "W_dec": stored["W_dec"].T / factor,
        "b_enc": stored["b_enc"].clone(),
        "b_dec": stored["b_dec"] / factor,
        "threshold": torch.full_like(stored["b_enc"], threshold * factor),
    }


def _weights(folder: Folder) -> Any:
    path = folder.path / _WEIGHTS
    if path.is_file() or not folder.source.startswith(hub.SCHEME):
        return path
    place = hub.parse_path(folder.source)
    listing = hub.list_files(place)
    inside = f"{place.path.removesuffix(_CONFIG).rstrip('/')}/{_WEIGHTS}".lstrip("/")
    return hub.fetch_files(listing, [inside]) / inside


def _number(value: Any, name: str, origin: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise DictionaryError(f"{origin} has {name} {value!r:.60}; expected a number above 0.")
    return float(value)
