"""SAELens beside us: its objects taken as dictionaries, and its registry of releases read through its own converters.

sae_lens is optional (the extra `saelens`) and slow to import, so its objects are recognised by their class's module and
release names are read from its registry file; it is imported only to fetch and convert. What it had to convert is kept
in our format, so the next run reads rows on demand and doesn't need sae_lens.
"""

import importlib
import importlib.util
import os
import re
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import parse_config
from circuitsae.dictionaries.reader import CONFIG, WEIGHTS, read_folder, save_folder
from circuitsae.dictionaries.releases import registry_file
from circuitsae.dictionaries.weights import MemoryWeights
from circuitsae.errors import DictionaryError, FetchError, MissingExtraError, UnknownNameError
from circuitsae.folders import cache_folder

SCHEME = "saelens://"

_SUMMED = "mntss_clt_layer_transcoder"
"""SAELens' converter that adds up a cross-layer transcoder's decoders: right activations, wrong reconstruction."""


def is_saelens_object(given: object) -> bool:
    """Tells whether an object is a SAELens SAE or transcoder, without importing sae_lens."""
    ours = any(base.__module__.partition(".")[0] == "sae_lens" for base in type(given).__mro__)
    return ours and hasattr(given, "cfg") and hasattr(given, "state_dict")


def from_object(
    sae: Any, *, hook_in: str | None = None, hook_outs: Sequence[str] | None = None, source: str | None = None
) -> Dictionary:
    """Returns a SAELens SAE or transcoder as a dictionary that shares its weights.

    Weights of half precision are computed with in float32, where SAELens would compute in half precision. A training
    object is taken as the inference object that SAELens would save.

    Args:
        sae: The object.
        hook_in: Hook point it reads, where its metadata names none or another spelling is wanted.
        hook_outs: Hook points it writes, likewise.
        source: Where it is from, as circuits will record it.

    Raises:
        DictionaryError: Its architecture is not supported, or its metadata names no hook point.
    """
    tensors: dict[str, Any] = dict(sae.state_dict())
    if hasattr(sae.cfg, "get_inference_sae_cfg_dict"):
        cfg = sae.cfg.get_inference_sae_cfg_dict()
        sae.process_state_dict_for_saving_inference(tensors)
    else:
        cfg = sae.cfg.to_dict()
    metadata = dict(cfg.get("metadata") or {})
    metadata["sae_lens_version"] = metadata.get("sae_lens_version") or "6"  # whatever it was trained with, this is new
    config = parse_config(
        {**cfg, "metadata": metadata}, origin=f"The SAELens {type(sae).__name__}", hook_in=hook_in, hook_outs=hook_outs
    )
    weights = MemoryWeights(tensors, origin=f"the SAELens {type(sae).__name__} at {config.hook_in}")
    name = metadata.get("neuronpedia_id") or f"sae_lens {type(sae).__name__}"
    return Dictionary(config, weights, source=str(name) if source is None else source).to(sae.W_dec.device)


def from_release(
    release: str,
    sae_id: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    hook_in: str | None = None,
    hook_outs: Sequence[str] | None = None,
) -> Dictionary:
    """Returns a dictionary of SAELens' registry, fetched at first use.

    What is stored in SAELens' own format is read where huggingface_hub keeps it; everything else goes through SAELens'
    converter once and is kept in our format.

    Args:
        release: Name of the release, `gpt2-small-res-jb`.
        sae_id: Name of the dictionary in it, `blocks.8.hook_resid_pre`.
        folder: Where converted dictionaries are kept; by default `saelens` in the user's cache for circuitsae.
        hook_in: Another spelling of the hook point it reads.
        hook_outs: Other spellings of the hook points it writes.

    Raises:
        MissingExtraError: sae_lens is not installed and the dictionary not converted yet.
        UnknownNameError: There is no such release, or no such dictionary in it.
        FetchError: The download failed.
        DictionaryError: Its architecture is not supported.
    """
    source = f"{release}/{sae_id}"
    kept = (Path(folder) if folder is not None else cache_folder() / "saelens") / _safe(release) / _safe(sae_id)
    if not (kept / CONFIG).exists():
        native = _fetch(release, sae_id, kept)
        kept = native or kept
    return read_folder(kept, hook_in=hook_in, hook_outs=hook_outs, source=source)


@cache
def release_names() -> tuple[str, ...]:
    """Returns the names of SAELens' releases, read from its registry file; empty where it is not installed."""
    path = registry_file()
    if path is None:
        return ()
    return tuple(re.findall(r"^([\w.\-]+):\s*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


def _fetch(release: str, sae_id: str, kept: Path) -> Path | None:
    """Fetches a dictionary; returns huggingface_hub's folder if that can be read as it is, else fills `kept`."""
    if importlib.util.find_spec("sae_lens") is None:
        raise MissingExtraError(f"The dictionary {release}/{sae_id} of SAELens' registry", "sae_lens", "saelens")
    sae_lens: Any = importlib.import_module("sae_lens")
    loaders: Any = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    releases = loaders.get_pretrained_saes_directory()
    if release not in releases:
        raise UnknownNameError("release of SAELens", release, releases)
    entry = releases[release]
    if sae_id not in entry.saes_map:
        raise UnknownNameError(f"dictionary in the release {release}", sae_id, entry.saes_map)
    converter = loaders.get_conversion_loader_name(release)
    if converter == _SUMMED:
        raise DictionaryError(
            f"{release}/{sae_id} is one layer of a cross-layer transcoder, whose decoders SAELens adds up: that can't "
            "reconstruct anything. Load the cross-layer transcoder itself."
        )
    try:
        if converter == "sae_lens" and not entry.config_overrides and sae_id not in entry.norm_scaling_factor:
            from huggingface_hub import hf_hub_download

            files = [hf_hub_download(entry.repo_id, f"{entry.saes_map[sae_id]}/{name}") for name in (CONFIG, WEIGHTS)]
            return Path(files[0]).parent
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about model_from_pretrained_kwargs, which loading handles
            sae = sae_lens.SAE.from_pretrained(release, sae_id, device="cpu", dtype="float32")
    except OSError as error:  # huggingface_hub's errors are requests' or httpx's; both of these end here
        raise FetchError(f"{release}/{sae_id} ({entry.repo_id}) could not be fetched: {_first_line(error)}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("huggingface_hub", "httpx", "requests"):
            raise FetchError(
                f"{release}/{sae_id} ({entry.repo_id}) could not be fetched: {_first_line(error)}"
            ) from error
        raise
    with torch.no_grad():
        save_folder(from_object(sae, source=f"{release}/{sae_id}"), kept)
    return None


def _safe(name: str) -> Path:
    """Returns a name as a path inside the folder it is joined to."""
    return Path(*(part for part in re.split(r"[/\\]+", name) if part not in ("", ".", "..")))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
