"""Releases that are one torch file a dictionary, known by their files' names.

| file | from | computes |
| --- | --- | --- |
| `...-SAE-lN.pt`, `.pth` | Goodfire's Llama SAEs, qresearch's of DeepSeek R1 | ReLU of blocks.N.hook_resid_post |
| `layerN.sae.pt` | Qwen Scope; the repository's name ends in `L0_K` | top-k of blocks.N.hook_resid_post |
| `NAME.pt` beside `NAME_cfg.json` | Kissane et al.'s attention SAEs of GPT-2 | ReLU of blocks.N.attn.hook_z, flattened |

Source: SAELens' converters of the same names (`loading/pretrained_sae_loaders.py`, 6.54). No code in a file is run.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig, reshape_at
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.tensors import PickledWeights, read_pickle, tensors_of
from circuitsae.dictionaries.reader import read_json
from circuitsae.errors import DictionaryError

_RESIDUAL = re.compile(r".+-SAE-l(\d+)\.pth?")
_QWEN = re.compile(r"layer(\d+)\.sae\.pt")
_CONFIG = "_cfg.json"
_NAMES = {
    "W_enc": ("encoder_linear.weight", "encoder.weight", "W_enc"),
    "W_dec": ("decoder_linear.weight", "decoder.weight", "W_dec"),
    "b_enc": ("encoder_linear.bias", "encoder.bias", "b_enc"),
    "b_dec": ("decoder_linear.bias", "decoder.bias", "b_dec"),
}


class Checkpoints(Format):
    """One torch file a dictionary."""

    name = "checkpoints"
    files = "NAME-SAE-lN.pt, layerN.sae.pt, or NAME.pt and NAME_cfg.json"
    origin = "Goodfire, DeepSeek R1 (qresearch), Qwen Scope, Kissane et al.'s attention SAEs of GPT-2"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns every file of a known name, and the configurations beside them."""
        found: list[str] = []
        for name in sorted(names):
            config = name.removesuffix(".pt") + _CONFIG
            if _RESIDUAL.fullmatch(name) or _QWEN.fullmatch(name):
                found.append(name)
            elif name.endswith(".pt") and config in names:
                found += [name, config]
        return found

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens each file.

        Raises:
            DictionaryError: A file is damaged, would run code, or lacks a tensor; or nothing tells k.
        """
        weights = [name for name in folder.names if not name.endswith(_CONFIG)]
        return [_open(folder, name, alone=len(weights) == 1) for name in weights]


def _open(folder: Folder, name: str, *, alone: bool) -> Dictionary:
    path = folder.path / name
    where, at, revision = folder.source.partition("@")
    source = folder.source if alone or where.endswith(name) else f"{where}/{name}{at}{revision}"
    k, applies, turned = None, False, True
    if match := _RESIDUAL.fullmatch(name):
        architecture, hook = "standard", f"blocks.{int(match[1])}.hook_resid_post"
    elif match := _QWEN.fullmatch(name):
        architecture, hook = "topk", f"blocks.{int(match[1])}.hook_resid_post"
        named = re.search(r"-L0_(\d+)", folder.source + str(folder.path))
        k = folder.kept(int(named[1]) if named and folder.k is None else None, path)
    else:
        cfg = read_json(folder.path / (name.removesuffix(".pt") + _CONFIG))
        architecture, hook, applies, turned = "standard", cfg.get("act_name"), True, False
        if not isinstance(hook, str) or not hook:
            hook = folder.hook_in or ""
        if not hook:
            raise DictionaryError(f"{path} names no hook point (act_name); say it with hook_in=.")
    hook = folder.hook_in or hook
    config = DictionaryConfig(
        architecture,
        hook,
        tuple(folder.hook_outs or (hook,)),
        k=k,
        apply_b_dec_to_input=applies,
        reshape_activations=reshape_at(hook),
    )
    read = lambda: _tensors(tensors_of(read_pickle(path), path), path, turned)  # noqa: E731
    return Dictionary(config, PickledWeights(path, read), source=source)


def _tensors(stored: Mapping[str, Tensor], path: Path, turned: bool) -> dict[str, Tensor]:
    """Returns the tensors by our names, those that `torch.nn.Linear` keeps turned round."""
    found: dict[str, Tensor] = {}
    for ours, theirs in _NAMES.items():
        name = next((name for name in theirs if name in stored), None)
        if name is None:
            raise DictionaryError(f"{path} lacks {ours}; it holds {', '.join(sorted(stored)) or 'nothing'}.")
        found[ours] = stored[name].T if turned and stored[name].ndim == 2 else stored[name]
    return found
