"""A dictionary's settings, and how SAELens' `cfg.json` of any age says them.

Sources: `SAEConfig` and its subclasses in `sae_lens/saes/*.py`, `handle_pre_6_0_config` in
`sae_lens/loading/pretrained_sae_loaders.py` (6.54).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from circuitsae.dictionaries.architectures import ARCHITECTURES, find_architecture
from circuitsae.dictionaries.normalisation import NORMALISATIONS
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.dictionaries.weights import Weights
from circuitsae.errors import DictionaryError

SETTINGS = (
    "k", "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm",
    "prepend_bos", "metadata",
)  # fmt: skip
"""What may be said of a dictionary beside its architecture, hook points and weights."""

_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
_METADATA = {
    "model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hook_name_out", "hook_names_out",
    "hook_head_index", "hook_head_index_out", "hf_hook_name", "hf_hook_name_out", "prepend_bos", "context_size",
    "seqpos_slice", "exclude_special_tokens", "dataset_path", "neuronpedia_id", "sae_lens_version",
    "sae_lens_training_version",
}  # fmt: skip


_SAID_ELSEWHERE = {"hook_name", "hook_name_out", "hook_names_out", "prepend_bos"}


@dataclass(frozen=True, slots=True)
class DictionaryConfig:
    """What a dictionary computes, its weights apart.

    Attributes:
        architecture: A key of `ARCHITECTURES`.
        hook_in: Hook point it reads.
        hook_outs: Hook points it writes: one, or several for a cross-layer transcoder.
        k: Features kept per row (topk and abstopk).
        apply_b_dec_to_input: Whether the decoder's bias is subtracted from the input.
        normalize_activations: One of `NORMALISATIONS`.
        reshape_activations: "hook_z" where the hook point's [head, d_head] is flattened to one vector, else "none".
        rescale_acts_by_decoder_norm: Whether activations are in units of their decoder row's norm (topk and abstopk).
        prepend_bos: Whether it was trained with a BOS token before the text.
        metadata: What else the file says of the dictionary, as it says it.
        declared: d_in, d_sae and d_out where the file gives them; checked against the weights.
    """

    architecture: str
    hook_in: str
    hook_outs: tuple[str, ...]
    k: int | None = None
    apply_b_dec_to_input: bool = False
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    rescale_acts_by_decoder_norm: bool = False
    prepend_bos: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)
    declared: dict[str, int] = field(default_factory=dict)

    def at(self, hook_in: str, hook_outs: Sequence[str]) -> "DictionaryConfig":
        """Returns the same settings at other hook points."""
        return replace(self, hook_in=hook_in, hook_outs=tuple(hook_outs))


def parse_config(
    cfg: Mapping[str, Any],
    *,
    origin: str,
    hook_in: str | None = None,
    hook_outs: Sequence[str] | None = None,
) -> DictionaryConfig:
    """Returns the settings in a `cfg.json`, of SAELens 6 or before.

    Args:
        cfg: The file's object.
        origin: What to call it in messages.
        hook_in: Hook point it reads; overrides the file.
        hook_outs: Hook points it writes; overrides the file.

    Raises:
        DictionaryError: The architecture is unknown or unsupported, a setting is not one of those possible, or a hook
            point is named neither here nor there.
    """
    cfg = {_RENAMED.get(k, k): v for k, v in cfg.items()}
    given = cfg
    nested = cfg.get("metadata")
    metadata = {k: v for k, v in cfg.items() if k in _METADATA} | (dict(nested) if isinstance(nested, Mapping) else {})
    if _is_before_6(metadata.get("sae_lens_version")):
        cfg = _modernise(cfg, str(metadata.get("hook_name") or ""))
    if metadata.get("hook_head_index") is not None:
        raise DictionaryError(
            f"{origin} is of one attention head (hook_head_index {metadata['hook_head_index']!r:.20}), which is not "
            "supported; expected a dictionary of the whole hook point."
        )
    activation, keywords = cfg.get("activation_fn"), cfg.get("activation_fn_kwargs")
    if activation not in (None, "relu", "topk", "jumprelu"):
        raise DictionaryError(f"{origin} asks for activation_fn {activation!r:.40}; expected relu, topk or jumprelu.")
    if isinstance(keywords, Mapping):
        name_unknown(keywords, "activation_fn_kwargs", origin)
    name = str(cfg.get("architecture", "standard"))
    architecture = find_architecture(name, origin)
    name_unknown(given, "saelens-folder", origin)  # of one that can't be traced no setting matters

    normalisation = cfg.get("normalize_activations") or "none"
    if normalisation not in NORMALISATIONS:
        raise DictionaryError(
            f"{origin} asks for normalize_activations {normalisation!r}; expected one of {', '.join(NORMALISATIONS)}."
        )
    applies_b_dec = cfg.get("apply_b_dec_to_input")
    if architecture.is_transcoder and applies_b_dec:
        raise DictionaryError(
            f"{origin} sets apply_b_dec_to_input, which a transcoder can't have: its b_dec belongs to the output."
        )
    k = cfg.get("k")
    if architecture.needs_k and (not isinstance(k, int) or isinstance(k, bool) or k < 1):
        raise DictionaryError(
            f"{origin} has the architecture {name!r} and k {k!r}; expected how many features a row keeps."
        )
    rescales = bool(cfg.get("rescale_acts_by_decoder_norm", False))
    if rescales and (not architecture.needs_k or architecture.is_cross_layer):
        raise DictionaryError(
            f"{origin} sets rescale_acts_by_decoder_norm, which only topk and abstopk dictionaries have."
        )

    hook_in = hook_in or metadata.get("hook_name")
    if not hook_in or not isinstance(hook_in, str):
        raise DictionaryError(f"{origin} names no hook point (hook_name); say which one it reads with hook_in=.")
    if hook_outs is None:
        named = metadata.get("hook_names_out") or metadata.get("hook_name_out")
        hook_outs = (
            [named] if isinstance(named, str) else named if named else None if architecture.is_transcoder else [hook_in]
        )
    if not hook_outs or not isinstance(hook_outs, (str, Sequence)) or not all(isinstance(h, str) for h in hook_outs):
        raise DictionaryError(
            f"{origin} is a transcoder and names no hook point that it writes (hook_name_out); give hook_outs=."
        )
    hook_outs = (hook_outs,) if isinstance(hook_outs, str) else tuple(hook_outs)
    if not architecture.is_transcoder and hook_outs != (hook_in,):
        raise DictionaryError(
            f"{origin} is an SAE, which writes where it reads ({hook_in}), not {', '.join(hook_outs)}."
        )
    if len(hook_outs) > 1 and not architecture.is_cross_layer:
        raise DictionaryError(
            f"{origin} has the architecture {name!r}, which writes one hook point, not {len(hook_outs)}."
        )

    reshape = cfg.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise DictionaryError(f"{origin} asks for reshape_activations {reshape!r}; expected 'none' or 'hook_z'.")
    if reshape == "hook_z" and metadata.get("hook_name") and reshape_at(str(metadata["hook_name"])) == "none":
        raise DictionaryError(
            f"{origin} asks for reshape_activations 'hook_z' at {metadata['hook_name']}, which is no hook_z."
        )
    bos = metadata.get("prepend_bos")
    return DictionaryConfig(
        architecture=name,
        hook_in=hook_in,
        hook_outs=hook_outs,
        k=int(k) if architecture.needs_k and k is not None else None,
        apply_b_dec_to_input=not architecture.is_transcoder and (applies_b_dec is None or bool(applies_b_dec)),
        normalize_activations=normalisation,
        reshape_activations=reshape,
        rescale_acts_by_decoder_norm=rescales,
        prepend_bos=True if bos is None else bool(bos),
        metadata={k: v for k, v in metadata.items() if v is not None and k not in _SAID_ELSEWHERE},
        declared={k: int(cfg[k]) for k in ("d_in", "d_sae", "d_out") if isinstance(cfg.get(k), int)},
    )


def check_tensors(config: DictionaryConfig, weights: Weights) -> tuple[int, int, int]:
    """Checks that just the architecture's tensors are there, in shapes that fit each other and the configuration.

    Returns:
        d_in, d_sae and d_out.

    Raises:
        DictionaryError: A tensor is missing, not used, or of the wrong shape; the message names it and what is right.
    """
    architecture, origin, names = ARCHITECTURES[config.architecture], weights.origin, set(weights.names)
    missing = [name for name in architecture.tensors if name not in names]
    if missing:
        raise DictionaryError(
            f"{origin} lacks {', '.join(missing)}, which the architecture {architecture.name!r} needs; "
            f"it holds {', '.join(sorted(names)) or 'nothing'}."
        )
    extra = sorted(names - set(architecture.tensors))
    if extra:
        fitting = [repr(a.name) for a in ARCHITECTURES.values() if set(a.tensors) == names]
        hint = f"; {' or '.join(fitting)} has just these tensors" if fitting else ""
        raise DictionaryError(
            f"{origin} holds {', '.join(extra)}, which the architecture {architecture.name!r} does not use{hint}."
        )
    encoder, decoder = weights.shape("W_enc"), weights.shape("W_dec")
    if len(encoder) != 2 or len(decoder) != (3 if architecture.is_cross_layer else 2) or 0 in encoder + decoder:
        layout = "[d_sae, output, d_out]" if architecture.is_cross_layer else "[d_sae, d_out]"
        raise DictionaryError(
            f"{origin} holds W_enc {list(encoder)} and W_dec {list(decoder)}; expected [d_in, d_sae] and {layout}."
        )
    (d_in, d_sae), d_out, outputs = encoder, decoder[-1], len(config.hook_outs)
    wanted = dict.fromkeys(architecture.activation.vectors, (d_sae,)) | {"W_skip": (d_out, d_in)}
    if architecture.is_cross_layer:
        wanted |= {"W_dec": (d_sae, outputs, d_out), "b_dec": (outputs, d_out)}
    else:
        wanted |= {"W_dec": (d_sae, d_out if architecture.is_transcoder else d_in), "b_dec": (d_out,)}
    for name in architecture.tensors:
        if name in wanted and weights.shape(name) != wanted[name]:
            raise DictionaryError(
                f"{name} in {origin} has the shape {list(weights.shape(name))}; "
                f"with W_enc {list(encoder)} and {outputs} output(s) it must be {list(wanted[name])}."
            )
    for name, declared in config.declared.items():
        actual = {"d_in": d_in, "d_sae": d_sae, "d_out": d_out}[name]
        if declared != actual and (name != "d_out" or architecture.is_transcoder):
            raise DictionaryError(
                f"The configuration of {origin} says {name} is {declared}; the weights have {actual}."
            )
    if config.k is not None and config.k > d_sae:
        raise DictionaryError(f"{origin} has {d_sae} features; k = {config.k} of them can't stay active.")
    return d_in, d_sae, d_out


def to_saelens(config: DictionaryConfig, d_in: int, d_sae: int, d_out: int, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the settings as a SAELens 6 `cfg.json`; the type to compute in is float32, or float64 if `dtype` is."""
    architecture = ARCHITECTURES[config.architecture]
    metadata = {**config.metadata, "hook_name": config.hook_in, "prepend_bos": config.prepend_bos}
    if architecture.is_cross_layer:
        metadata["hook_names_out"] = list(config.hook_outs)
    elif architecture.is_transcoder:
        metadata["hook_name_out"] = config.hook_outs[0]
    if _is_before_6(metadata.get("sae_lens_version")):
        metadata["sae_lens_version"] = "6.0.0"  # or SAELens would read what follows as the old format
    cfg: dict[str, Any] = {
        "architecture": config.architecture,
        "d_in": d_in,
        "d_sae": d_sae,
        **({"d_out": d_out} if architecture.is_transcoder else {}),
        "dtype": "float64" if dtype == torch.float64 else "float32",
        "device": "cpu",
        "apply_b_dec_to_input": config.apply_b_dec_to_input,
        "normalize_activations": config.normalize_activations,
        "reshape_activations": config.reshape_activations,
    }
    if architecture.needs_k:
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": config.rescale_acts_by_decoder_norm}
    return cfg | {"metadata": metadata}


def reshape_at(hook: str) -> Literal["hook_z", "none"]:
    """Returns `reshape_activations` of a dictionary at a hook point: attention heads' outputs go by two names."""
    return "hook_z" if hook.endswith(("_z", ".o.hook_in")) else "none"


def _is_before_6(version: Any) -> bool:
    """Like SAELens, takes a file without a version for an old one."""
    major = re.match(r"\d+", str(version or ""))
    return major is None or int(major[0]) < 6


def _modernise(cfg: Mapping[str, Any], hook_name: str) -> dict[str, Any]:
    """Returns an old configuration in the words of SAELens 6."""
    new = dict(cfg)
    new.setdefault("reshape_activations", "hook_z" if "hook_z" in hook_name else "none")
    keywords = new.get("activation_fn_kwargs")
    keywords = keywords if isinstance(keywords, Mapping) else {}
    if new.get("activation_fn") == "topk" and keywords.get("k") is not None:
        new["architecture"] = "topk"
    if new.get("architecture") == "topk" and keywords.get("k") is not None:
        new["k"] = keywords["k"]
    if isinstance(new.get("normalize_activations"), bool):
        new["normalize_activations"] = "expected_average_only_in" if new["normalize_activations"] else "none"
    return new
