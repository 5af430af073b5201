"""transcoder_circuits (Dunefsky, Chlenski, Nanda 2024): GPT-2's MLP transcoders, a `.pt` file a layer.

A file is a pickle of the run's configuration object and a state dict. The object's class is not needed: its attributes
are read into an empty stand-in, and nothing in the file is run. Source: `sae_training/sparse_autoencoder.py`; `b_dec` is
subtracted from the input, `b_dec_out` belongs to the output.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.tensors import PickledWeights, read_pickle, tensors_of
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError

_FILE = re.compile(r"final_sparse_autoencoder_.+\.pt")
_CONFIGS = ("sae_training.config.LanguageModelSAERunnerConfig",)


class TranscoderCircuits(Format):
    """Transcoders, one a file."""

    name = "transcoder-circuits"
    files = "final_sparse_autoencoder_*.pt"
    origin = "the GPT-2 transcoders of Dunefsky, Chlenski and Nanda"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns every file of a transcoder."""
        return sorted(n for n in names if _FILE.fullmatch(n) and not n.endswith("log_feature_sparsity.pt"))

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens each file.

        Raises:
            DictionaryError: A file is damaged, would run code, or is no transcoder.
        """
        where = folder.source.partition("@")
        opened = []
        for name in folder.names:
            itself = where[0].endswith(name) or len(folder.names) == 1
            of = folder.source if itself else f"{where[0]}/{name}{where[1]}{where[2]}"
            opened.append(_open(folder.path / name, of, folder.hook_in, folder.hook_outs))
        return opened


def _open(path: Path, source: str, hook_in: str | None, hook_outs: Sequence[str] | None) -> Dictionary:
    about = vars(_read(path)["cfg"])
    name_unknown(about, TranscoderCircuits.name, path)
    if about.get("is_sparse_connection"):
        raise DictionaryError(f"{path} is a sparse connection between two dictionaries, which is not supported.")
    if about.get("hook_point_head_index") is not None:
        raise DictionaryError(f"{path} reads one attention head, which is not supported.")
    if not about.get("is_transcoder"):
        raise DictionaryError(f"{path} is an SAE, not a transcoder; expected one of transcoder_circuits' transcoders.")
    reads, writes = hook_in or about.get("hook_point"), (hook_outs or [about.get("out_hook_point")])[0]
    if not all(isinstance(hook, str) and hook for hook in (reads, writes)):
        raise DictionaryError(f"{path} names no hook points; say them with hook_in= and hook_outs=.")
    config = DictionaryConfig(
        "transcoder",
        str(reads),
        (str(writes),),
        # HookedTransformer, with which these were trained, subtracts the mean of what a block writes
        metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}},
    )
    return Dictionary(config, PickledWeights(path, lambda: _tensors(path)), source=source)


def _tensors(path: Path) -> dict[str, Tensor]:
    stored = tensors_of(_read(path)["state_dict"], path)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "b_dec_out")
    if missing := [name for name in names if name not in stored]:
        raise DictionaryError(f"{path} lacks {', '.join(missing)}, which a transcoder has.")
    encoder, centre = stored["W_enc"], stored["b_dec"]
    if encoder.ndim != 2 or centre.shape != encoder.shape[:1]:
        raise DictionaryError(
            f"{path} holds W_enc {list(encoder.shape)} and b_dec {list(centre.shape)}, which don't fit."
        )
    folded = stored["b_enc"].double() - centre.double() @ encoder.double()  # once, in the precision that keeps it exact
    return {
        "W_enc": encoder,
        "W_dec": stored["W_dec"],
        "b_enc": folded.to(encoder.dtype),
        "b_dec": stored["b_dec_out"],
    }


def _read(path: Path) -> dict[str, Any]:
    found = read_pickle(path, inert=_CONFIGS)
    if not isinstance(found, dict) or not hasattr(found.get("cfg"), "__dict__") or "state_dict" not in found:
        raise DictionaryError(f"{path} holds no configuration and state dict, as a transcoder's file does.")
    return found
