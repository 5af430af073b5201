"""EleutherAI's sparsify (once called sae): `cfg.json` and `sae.safetensors`, top-k SAEs and (skip) transcoders.

A folder is named after the module that was read: `layers.3` is a block, `layers.3.mlp` a part of one. Source:
`sparsify/sparse_coder.py` and `fused_encoder.py` (1.3.3).
"""

import re
from collections.abc import Collection
from pathlib import Path

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.sites import hook_of
from circuitsae.dictionaries.reader import CONFIG, FileWeights, SafetensorsFile, plain, read_json
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError

_WEIGHTS = "sae.safetensors"
_NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec", "decoder.bias": "b_dec"}


class Sparsify(Format):
    """A dictionary as sparsify's `save_to_disk` writes it."""

    name = "sparsify"
    files = f"{CONFIG} and {_WEIGHTS}"
    origin = "EleutherAI's sparsify"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the two files."""
        return [name for name in (CONFIG, _WEIGHTS) if name in names] if _WEIGHTS in names else []

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens it.

        Raises:
            DictionaryError: The files are damaged, the activation is not top-k, or nothing tells the hook point.
        """
        cfg = read_json(folder.path / CONFIG)
        file = SafetensorsFile(folder.path / _WEIGHTS)
        origin = str(folder.path / CONFIG)
        name_unknown(cfg, self.name, origin)
        activation = cfg.get("activation", "topk")
        if activation != "topk":
            raise DictionaryError(
                f"{origin} asks for the activation {activation!r:.60}, which is not supported; expected topk."
            )
        k = folder.kept(cfg.get("k"), origin)
        is_transcoder, has_skip = bool(cfg.get("transcode")), "W_skip" in map(plain, file.entries)
        if bool(cfg.get("skip_connection")) != has_skip:
            raise DictionaryError(
                f"{origin} has skip_connection {cfg.get('skip_connection')!r:.60}, and the weights "
                f"{'a' if has_skip else 'no'} W_skip."
            )
        if is_transcoder and cfg.get("signed"):
            raise DictionaryError(f"{origin} is a transcoder with signed activations, which is not supported.")
        if is_transcoder:
            architecture = f"topk_{'skip_' if has_skip else ''}transcoder"
        else:
            architecture = "abstopk" if cfg.get("signed") else "topk"
        hooks = folder.hooks or _hooks(folder.path, folder.source, is_transcoder)
        tensors = {}
        for name, entry in file.entries.items():
            is_turned = name.endswith(".weight") and len(entry.shape) == 2  # as torch.nn.Linear keeps them
            tensors[_NAMES.get(plain(name), plain(name))] = (file, name, is_turned)
        config = DictionaryConfig(
            architecture=architecture,
            hook_in=hooks[0],
            hook_outs=hooks[1:],
            k=k,
            apply_b_dec_to_input=not is_transcoder,
            declared={"d_in": cfg["d_in"]} if isinstance(cfg.get("d_in"), int) else {},
        )
        return [Dictionary(config, FileWeights(tensors), source=folder.source)]


def _hooks(folder: Path, source: str, is_transcoder: bool) -> tuple[str, ...]:
    """Returns what the module of the folder's name reads and writes; an SAE is of what it writes."""
    names = (re.split(r"[/\\]", source.partition("@")[0].rstrip("/"))[-1], folder.name)
    hook = next((hook for name in names if (hook := hook_of(name))), None)
    if hook is None:
        raise DictionaryError(
            f"{folder} is not named after a module (layers.3, layers.3.mlp), so nothing says what it was trained on; say "
            "it with hook_in=."
        )
    if not is_transcoder:
        return hook, hook
    block, _, part = hook.rpartition(".")
    read = {"hook_mlp_out": "mlp.hook_in", "hook_attn_out": "attn.hook_in", "hook_resid_post": "hook_resid_pre"}.get(
        part
    )
    if read is None:
        raise DictionaryError(
            f"{folder} is a transcoder of {hook}; say what it reads and writes with hook_in= and hook_outs=."
        )
    return f"{block}.{read}", hook
