"""dictionary_learning: `ae.pt`, a state dict, and `config.json`, what it was trained with.

Each class of that package (`dictionary.py`, `trainers/*.py`) is told by `trainer.dict_class`, or by its tensors where an
old folder has no configuration. Activations are as stored: that package's `normalize_decoder` is not applied.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.sites import hook_of
from circuitsae.dictionaries.loaders.tensors import PickledWeights, read_pickle, tensors_of
from circuitsae.dictionaries.reader import read_json
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError

_WEIGHTS, _CONFIG = "ae.pt", "config.json"
_PARTS = ("trainer", "buffer", "eval_results", "eval")

_ARCHITECTURES = {
    "AutoEncoder": "standard", "AutoEncoderNew": "standard", "GatedAutoEncoder": "gated", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
"""By class. BatchTopK dictionaries use their threshold once trained, which makes them JumpReLU ones."""

_KEEPS_INPUT = ("AutoEncoderNew", "JumpReluAutoEncoder")
"""Those that do not subtract the decoder's bias from the input."""

_NAMES = {
    "W_enc": ("encoder.weight", "W_enc"), "W_dec": ("decoder.weight", "W_dec"), "b_enc": ("encoder.bias", "b_enc"),
    "b_dec": ("bias", "b_dec", "decoder.bias", "decoder_bias"), "b_gate": ("gate_bias",), "b_mag": ("mag_bias",),
    "r_mag": ("r_mag",), "threshold": ("threshold",),
}  # fmt: skip


class DictionaryLearning(Format):
    """A dictionary as dictionary_learning's trainers save it."""

    name = "dictionary-learning"
    files = f"{_WEIGHTS} and {_CONFIG}"
    origin = "dictionary_learning, feature-circuits, SAEBench, andyrdt's"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the weights, and the configuration if there is one."""
        return [name for name in (_WEIGHTS, _CONFIG) if name in names] if _WEIGHTS in names else []

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens it. The pickle is read without running anything in it.

        Raises:
            DictionaryError: The files are damaged or hold more than tensors, the class is not one of that package's, or
                nothing tells the hook point.
        """
        path = folder.path / _WEIGHTS
        config = read_json(folder.path / _CONFIG) if _CONFIG in folder.names else {}
        trainer = config.get("trainer")
        trainer = trainer if isinstance(trainer, Mapping) else {}
        stored = tensors_of(read_pickle(path), path)
        kind = _class(trainer, stored, path)
        architecture = _ARCHITECTURES[kind]
        name_unknown(trainer, self.name, folder.path / _CONFIG)
        name_unknown((key for key in config if key not in _PARTS), self.name, folder.path / _CONFIG)
        k = trainer.get("k", int(stored["k"]) if "k" in stored and stored["k"].numel() == 1 else None)
        k = folder.kept(k, path) if architecture == "topk" else None
        _check_io(config.get("buffer"), folder)
        hook = folder.hook_in or _hook(trainer, f"{folder.source}/{folder.path.as_posix()}", folder.path)
        settings = DictionaryConfig(
            architecture=architecture,
            hook_in=hook,
            hook_outs=tuple(folder.hook_outs or (hook,)),
            k=k,
            apply_b_dec_to_input=kind not in _KEEPS_INPUT,
            metadata={"model_name": trainer["lm_name"]} if isinstance(trainer.get("lm_name"), str) else {},
        )
        weights = PickledWeights(path, lambda: _tensors(tensors_of(read_pickle(path), path), architecture))
        return [Dictionary(settings, weights, source=folder.source)]


def _check_io(buffer: Any, folder: Folder) -> None:
    """Refuses what was trained on what a module reads, where nothing says the hook point."""
    io = buffer.get("io", "out") if isinstance(buffer, Mapping) else "out"
    if io != "out" and folder.hook_in is None:
        raise DictionaryError(
            f"{folder.path / _CONFIG} says that it was trained with io {io!r:.40} of its module, not on what that writes; "
            "say the hook point with hook_in=, for a transcoder hook_outs= too."
        )


def _class(trainer: Mapping[str, Any], stored: Mapping[str, Tensor], path: Path) -> str:
    named = trainer.get("dict_class")
    if named is not None:
        if not isinstance(named, str) or named not in _ARCHITECTURES:
            known = ", ".join(_ARCHITECTURES)
            raise DictionaryError(
                f"{path} is of the class {named!r:.60}, which is not supported; expected one of {known}."
            )
        return str(named)
    for tensor, kind in (("gate_bias", "GatedAutoEncoder"), ("group_sizes", "MatryoshkaBatchTopKSAE")):
        if tensor in stored:
            return kind
    if "k" in stored:
        raise DictionaryError(
            f"{path} is a top-k dictionary, of which there are two kinds; expected {_CONFIG} beside it to tell which."
        )
    if "threshold" in stored:
        return "JumpReluAutoEncoder"
    return "AutoEncoderNew" if "decoder.bias" in stored else "AutoEncoder"


def _tensors(stored: Mapping[str, Tensor], architecture: str) -> dict[str, Tensor]:
    """Returns the tensors by our names: encoder and decoder are `torch.nn.Linear`s there, so stored transposed."""
    found: dict[str, Tensor] = {}
    for ours, theirs in _NAMES.items():
        if ours == "threshold" and architecture != "jumprelu":
            continue  # AutoEncoderTopK saves one and does not use it
        for name in theirs:
            if name in stored:
                found[ours] = stored[name].T if name.endswith(".weight") else stored[name]
                break
    if "threshold" in found and found["threshold"].ndim == 0 and "W_enc" in found:
        found["threshold"] = torch.full((found["W_enc"].shape[-1],), float(found["threshold"]))
    return found


def _hook(trainer: Mapping[str, Any], place: str, folder: Path) -> str:
    named = trainer.get("submodule_name")
    for name in (named, *reversed(place.split("/"))):
        if isinstance(name, str) and name and (hook := hook_of(name)):
            return hook
    layer = trainer.get("layer")
    if isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 and not named:
        return f"blocks.{layer}.hook_resid_post"  # what that package trains on unless told otherwise
    raise DictionaryError(
        f"{folder} does not say what it was trained on: neither trainer.submodule_name in {_CONFIG} nor a folder's name "
        "such as resid_post_layer_3 does; say it with hook_in=."
    )
