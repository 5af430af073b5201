"""`load`: from a name to a model with its dictionaries attached."""

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.neurons import NEURONS, identity_dictionary
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.model import lean, points
from circuitsae.model.centring import centre_writing_weights, is_centred
from circuitsae.model.hooks import HookedModel, Watch
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.presets.catalogue import find_preset, reference_of
from circuitsae.presets.fetching import fetch_from_hub, fetch_model
from circuitsae.presets.preset import HubModel, Preset
from circuitsae.progress import Progress

_NOT_CENTRED = (
    "The dictionaries of {} were trained on a model with centred writing weights, and this one's are not: their features "
    "will be wrong. Give the model by name or folder, with which it is centred, or center_writing_weights=True."
)


@in_own_mode
def load(
    preset: str | os.PathLike[str] | Preset | None = None,
    *,
    model: Any = None,
    dictionaries: Iterable[Any] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    tokenizer: Any = None,
    sites: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
    skip_sinks: float | None = None,
    prepend_bos: bool | None = None,
    center_writing_weights: bool | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> SplicedModel:
    """Loads a model and attaches dictionaries to it.

    A preset's model is fetched first if it is not there yet. From a local folder nothing is asked of any network.

        spliced = cs.load("smollm2")
        spliced = cs.load(model="gpt2", dictionaries=["gpt2-small-res-jb/blocks.8.hook_resid_pre", "some/folder"])

    Args:
        preset: A preset's name or TOML file; `circuitsae presets` lists them. The arguments below replace its parts.
        model: A folder, a repository of the Hugging Face hub (its safetensors are fetched into the hub's cache), or a
            TransformerLens model that is loaded already.
        dictionaries: Folders, names that a loader knows, `Dictionary` or sae_lens objects; or `"neurons"`: every MLP's
            neurons are the features, for a model that has no dictionaries (docs/neurons.md).
        device: Where to compute; CUDA where there is a device, else the CPU.
        dtype: The model's arithmetic, float32 by default.
        tokenizer: A transformers tokenizer in place of the model's own.
        sites: Attaches only the dictionaries of these sites.
        skip_positions: Positions at which no dictionary is applied; none by default, a preset may have its own.
        skip_sinks: Nor where a vector has more than this many times the median norm, see `SplicedModel`.
        prepend_bos: Whether text gets a BOS token; what the preset or the dictionaries say by default.
        center_writing_weights: Whether a GPT-2 is loaded as HookedTransformer centres it (`circuitsae.model.centring`);
            what the preset, the dictionaries or SAELens' registry say by default.
        name: What saved circuits call the model.
        progress: Called while fetching, with work done, work in all, and a word; returning `False` cancels.

    Raises:
        UnknownNameError: No preset, dictionary or site is called that; the message gives near matches.
        InputError: Neither a preset nor model and dictionaries are given, or one of them can't be used.
        DictionaryError: A dictionary is damaged or does not fit the model.
        FetchError: The model can't be fetched.
    """
    given = {name: value for name, value in locals().items() if name != "progress"}
    chosen = None if preset is None else find_preset(preset if isinstance(preset, (str, Preset)) else Path(preset))
    if chosen is None and (model is None or dictionaries is None):
        lacking = "dictionaries=[...]" if model is not None else "model=..." if dictionaries is not None else None
        raise InputError(
            f"{lacking} is missing; a model and dictionaries for it are given together."
            if lacking
            else 'Nothing to load was named; expected a preset, such as load("tiny"), or model= and dictionaries=.'
        )
    wanted = dictionaries if dictionaries is not None else chosen.dictionaries  # type: ignore[union-attr]
    wanted = [NEURONS] if isinstance(wanted, str) and wanted == NEURONS else _listed(wanted)
    neurons = any(isinstance(one, str) and one == NEURONS for one in wanted)
    attached = [d for one in wanted if not (isinstance(one, str) and one == NEURONS) for d in load_dictionary(one)]
    if not neurons:
        attached = _of_sites(attached, sites)
    wanting = [dictionary.site for dictionary in attached if _wants_centred(dictionary)]
    centred = (chosen is not None and chosen.center_writing_weights) or bool(wanting)
    if center_writing_weights is not None:
        if wanting and not center_writing_weights:
            warnings.warn(_NOT_CENTRED.format(", ".join(wanting[:3])), stacklevel=3)
        centred = center_writing_weights
    folder: Path | None = None
    if model is None:
        assert chosen is not None
        source, folder = chosen.model, fetch_model(chosen, progress)
        loaded = _boot(folder, device, dtype, tokenizer, centred)
        name = name or (source.repository if isinstance(source, HubModel) else chosen.name)
    elif isinstance(model, (str, os.PathLike)):
        folder = _local(model)
        loaded = _boot(folder, device, dtype, tokenizer, centred)
        name = name or (_place(folder)[0] if _place(folder)[0] else Path(model).name)
    else:
        if device is not None or dtype is not None or tokenizer is not None:
            raise InputError(
                "device=, dtype= and tokenizer= are for models that are loaded here; this one is loaded already."
            )
        if center_writing_weights:
            raise InputError(
                "center_writing_weights= is for models that are loaded here; this one is loaded already: give its folder "
                "or repository."
            )
        loaded = model
        if wanting and center_writing_weights is None and not is_centred(model):
            warnings.warn(_NOT_CENTRED.format(", ".join(wanting[:3])), stacklevel=3)
    if neurons:
        attached = _of_sites([*attached, *_neurons(loaded)], sites)
    if chosen is not None:
        skip_positions = chosen.skip_positions if skip_positions is None else skip_positions
        skip_sinks = chosen.skip_sinks if skip_sinks is None else skip_sinks
        prepend_bos = chosen.prepend_bos if prepend_bos is None else prepend_bos
    spliced = SplicedModel(
        loaded,
        attached,
        skip_positions=skip_positions or (),
        skip_sinks=skip_sinks,
        name=name,
        prepend_bos=prepend_bos,
        preset=None if chosen is None else reference_of(chosen),
    )
    spliced.revision = None if folder is None else _place(folder)[1]
    named = [model, *(dictionaries if isinstance(dictionaries, list | tuple) else [dictionaries])]
    if tokenizer is None and all(one is None or isinstance(one, str | os.PathLike) for one in named):
        spliced.loading = given
    return spliced


def _listed(given: Any) -> list[Any]:
    if isinstance(given, (str, bytes, os.PathLike, Dictionary)):
        raise InputError("Dictionaries are given as a list; expected dictionaries=[...], not one alone.")
    return list(given)


def _neurons(model: Any) -> list[Dictionary]:
    """Returns a dictionary of every MLP's neurons: what its last product is given, after the nonlinearity and the gate.

    Raises:
        InputError: The model has no such MLPs.
    """
    hooked = HookedModel(model)
    seen: dict[str, torch.Tensor] = {}
    inside = [points.of(layer, "mlp.hook_post") for layer in range(hooked.n_layers)]
    after = [points.of(layer, "hook_mlp_out") for layer in range(hooked.n_layers)]
    tokens = torch.arange(1, 4, device=hooked.device)[None]
    with torch.no_grad():
        hooked.forward(tokens, [(name, Watch(seen, name)) for name in (*inside, *after) if hooked.has(name)])
    # A mixture of experts has the hook point too, and it is what all of them together give.
    found = [
        identity_dictionary(name, seen[name].shape[-1])
        for name, out in zip(inside, after, strict=True)
        if name in seen and not (out in seen and torch.equal(seen[name], seen[out]))
    ]
    if not found:
        raise InputError(
            f"{hooked.family} has no neurons that can be attached: no MLP of it has them at 'mlp.hook_post' (mixtures of "
            "experts have none). Give dictionaries for it."
        )
    return [*found]


def _of_sites(opened: list[Dictionary], sites: Sequence[str] | None) -> list[Dictionary]:
    """Returns the dictionaries of the sites that are asked for."""
    if sites is None:
        return opened
    if isinstance(sites, str):
        sites = [sites]
    known = [dictionary.site for dictionary in opened]
    for site in sites:
        if site not in known:
            raise UnknownNameError("site of these dictionaries", site, known)
    return [dictionary for dictionary in opened if dictionary.site in sites]


def _local(model: str | os.PathLike[str]) -> Path:
    """Returns the folder of a model that is named by folder or by repository."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if isinstance(model, os.PathLike) or model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model:
        raise InputError(f"There is no folder {path} to load a model from.")
    return fetch_from_hub(HubModel(model))


def _place(folder: Path) -> tuple[str | None, str | None]:
    """Returns repository and commit of a folder in the hub's cache, else nothing."""
    parts = folder.absolute().parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None, None
    return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]


def _wants_centred(dictionary: Dictionary) -> bool:
    """Whether a dictionary was trained on a model whose writing weights were centred."""
    said = dictionary.metadata.get("model_from_pretrained_kwargs")
    return isinstance(said, dict) and said.get("center_writing_weights") is True


def _boot(folder: Path, device: Any, dtype: Any, tokenizer: Any, centred: bool = False) -> Any:
    """Loads a folder's model as a TransformerBridge: no network, no pickle, no code from the folder."""
    at, arithmetic = _device(device), _dtype(dtype)
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _without_bars(), lean.building():
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
            # eager: TransformerLens shows attention patterns, which the fused kernels never make
            hf_model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=arithmetic, attn_implementation="eager", use_safetensors=True, **safe
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The folder {folder} can't be loaded as a model: {_first_line(error)}") from error
    if centred:
        centre_writing_weights(hf_model)
    hf_model.eval().to(at)
    try:
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=hf_model, tokenizer=tokenizer, dtype=arithmetic, device=at
        )
    except (ValueError, KeyError) as error:
        raise InputError(f"TransformerLens has no bridge to {type(hf_model).__name__}: {_first_line(error)}") from error


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {str(device)!r} can't be used here: {_first_line(error)}") from error


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    known = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    if found not in known:
        raise UnknownNameError("floating-point type", str(dtype).removeprefix("torch."), [str(k)[6:] for k in known])
    return found


@contextlib.contextmanager
def _without_bars() -> Iterator[None]:
    """Keeps transformers from drawing progress bars, for what takes no time."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
