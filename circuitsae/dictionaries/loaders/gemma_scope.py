"""Gemma Scope: `params.npz` (Gemma 2) and `params.safetensors` (Gemma 3), JumpReLU SAEs and transcoders.

The files hold w_enc [d_in, d_sae], w_dec [d_sae, d_out], b_enc, b_dec and threshold; what they were trained on is told by
the names of the repository and the folder alone. Sources: arXiv 2408.05147; SAELens reads the same names
(`get_gemma_2_config_from_hf`, `get_gemma_3_config_from_hf`).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig, reshape_at
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.tensors import Archive, ArchiveWeights, MixedWeights
from circuitsae.dictionaries.reader import SafetensorsFile, read_json
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.dictionaries.weights import Weights
from circuitsae.errors import DictionaryError

_FILES = ("params.npz", "params.safetensors")
_CONFIG = "config.json"
_MODULES = {
    "output": "hook_resid_post",
    "self_attn.o_proj.input": "attn.hook_z",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
"""Gemma 3's modules, as Gemma Scope 2's settings name them."""

_TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


class GemmaScope(Format):
    """A dictionary of Gemma Scope."""

    name = "gemma-scope"
    files = " or ".join(_FILES)
    origin = "Gemma Scope 1 and 2"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the one file, and Gemma Scope 2's settings if they lie beside it."""
        found = [name for name in _FILES if name in names][:1]
        return [*found, _CONFIG] if found and _CONFIG in names else found

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens it; rows and columns are read in place.

        Raises:
            DictionaryError: The file is damaged, or neither the place's name nor `hook_in` tells the hook point.
        """
        path = folder.path / folder.names[0]
        said = read_json(folder.path / _CONFIG) if _CONFIG in folder.names else {}
        named = _said(said, f"{folder.path / _CONFIG}")
        hooks = folder.hooks or _hooks(f"{folder.source}/{folder.path.as_posix()}") or named
        if hooks is None:
            raise DictionaryError(
                f"{path} does not say what it was trained on, and its folders are not named as Gemma "
                "Scope's are (gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82); say it with hook_in=."
            )
        found = open_params(path, hooks, source=folder.source)
        if "affine_connection" in said and bool(said["affine_connection"]) != ("W_skip" in found.weights.names):
            raise DictionaryError(
                f"{folder.path / _CONFIG} says affine_connection {said['affine_connection']!r:.40}, and {path.name} has "
                f"{'an' if 'W_skip' in found.weights.names else 'no'} affine_skip_connection."
            )
        return [found]


def _said(settings: Mapping[str, Any], origin: str) -> tuple[str, str] | None:
    """Returns the hook points that Gemma Scope 2's settings name, if they are known."""
    name_unknown(settings, GemmaScope.name, origin)
    if settings.get("architecture", "jump_relu") != "jump_relu":
        raise DictionaryError(f"{origin} says the architecture {settings['architecture']!r:.40}; expected jump_relu.")
    hooks = []
    reads = settings.get("hf_hook_point_in")
    for name in (reads, settings.get("hf_hook_point_out") or reads):
        match = (
            re.fullmatch(r"(?:model\.|language_model\.)*layers\.(\d+)\.(.+)", name) if isinstance(name, str) else None
        )
        if match is None or match[2] not in _MODULES:
            return None
        hooks.append(f"blocks.{int(match[1])}.{_MODULES[match[2]]}")
    return hooks[0], hooks[1]


def open_params(path: Path, hooks: Sequence[str], *, source: str) -> Dictionary:
    """Opens one file of parameters.

    Args:
        path: The `.npz` or `.safetensors` file.
        hooks: The hook point that it reads, and those that it writes; the same one for an SAE.
        source: Where it is from, as circuits record it.

    Raises:
        DictionaryError: It is damaged.
    """
    is_transcoder = hooks[0] != hooks[1]
    if path.suffix == ".npz":
        weights, has_skip = _from_archive(path, is_embedding=hooks[0] == _EMBEDDING), False
    else:
        weights, has_skip = _from_safetensors(path)
    kind = f"jumprelu_{'skip_' if has_skip else ''}transcoder" if is_transcoder else "jumprelu"
    config = DictionaryConfig(
        architecture=kind,
        hook_in=hooks[0],
        hook_outs=tuple(hooks[1:]),
        reshape_activations=reshape_at(hooks[0]),
    )
    return Dictionary(config, weights, source=source)


_EMBEDDING = "blocks.0.hook_resid_pre"
"""What Gemma's first block reads is its embedding times the root of the width; the SAE read the embedding itself."""


def _from_archive(path: Path, *, is_embedding: bool) -> Weights:
    archive = Archive(path)
    by_name = {name.lower().replace("_", ""): name for name in archive.members}
    names = {
        ours: by_name[ours.lower().replace("_", "")] for ours in _TENSORS if ours.lower().replace("_", "") in by_name
    }
    missing = [name for name in _TENSORS if name not in names]
    if missing:
        held = ", ".join(sorted(archive.members)) or "nothing"
        raise DictionaryError(
            f"{path} lacks {', '.join(missing)}, which a dictionary of Gemma Scope has; it holds {held}."
        )
    factors = None
    if is_embedding and len(archive.members[names["W_enc"]].shape) == 2:
        root = archive.members[names["W_enc"]].shape[0] ** 0.5
        factors = {"W_enc": 1 / root, "W_dec": root, "b_dec": root}
    return ArchiveWeights(archive, names, factors)


def _from_safetensors(path: Path) -> tuple[Weights, bool]:
    file = SafetensorsFile(path)
    found = {name.lower(): name for name in file.entries}
    tensors = {ours: (file, found[ours.lower()], False) for ours in _TENSORS if ours.lower() in found}
    skip = found.get("affine_skip_connection")
    if skip is not None:
        tensors["W_skip"] = (file, skip, True)  # stored [d_in, d_out]
    return MixedWeights(tensors), skip is not None


def _hooks(place: str) -> tuple[str, str] | None:
    """Returns what a place's name says that the dictionary reads and writes."""
    match = re.search(r"layer_(\d+)", place)
    if match is None:
        return (_EMBEDDING, _EMBEDDING) if re.search(r"-res/.*embedding", place) else None
    block = f"blocks.{int(match[1])}"
    if "gemma-scope-2-" in place:
        parts = {
            "transcoder": (f"{block}.mlp.hook_in", f"{block}.hook_mlp_out"), "resid_post": f"{block}.hook_resid_post",
            "attn_out": f"{block}.attn.hook_z", "mlp_out": f"{block}.hook_mlp_out",
        }  # fmt: skip
    else:
        parts = {
            "-transcoders": (f"{block}.ln2.hook_normalized", f"{block}.hook_mlp_out"),
            "-res": f"{block}.hook_resid_post", "-att": f"{block}.attn.hook_z", "-mlp": f"{block}.hook_mlp_out",
        }  # fmt: skip
    for part, hook in parts.items():
        if re.search(re.escape(part) + r"(?![a-z])", place) or (part.isidentifier() and part in place):
            return (hook, hook) if isinstance(hook, str) else hook
    return None
