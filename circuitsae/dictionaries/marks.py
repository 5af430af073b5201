"""What SAELens' registry says of releases whose own files do not say it (`pretrained_saes.yaml`, 6.54).

A release fetched by its place on the hub is then what `RELEASE/ID` gives.
"""

import re
from collections.abc import Mapping
from typing import Any

from circuitsae.errors import DictionaryError

_CENTRED: Mapping[str, Any] = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}

MARKS: Mapping[str, Mapping[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTRED,
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTRED,
    "tommmcgrath/gpt2-small-mlp-out-saes": _CENTRED,
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}
"""By repository: settings that replace those in `cfg.json`."""

FACTORS: Mapping[str, str] = {"tommmcgrath/gpt2-small-mlp-out-saes": "gpt2-small-mlp-tm"}
"""Repositories whose dictionaries expect activations scaled by a factor that the registry alone has: its release there."""

_PLACES = (re.compile(r"^hf://([^/@]+/[^/@]+)"), re.compile(r"models--([^/\\]+?)--([^/\\]+?)[/\\]snapshots"))


def marked(cfg: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Returns the settings in a `cfg.json`, with what the registry says of its repository.

    Args:
        cfg: The file's object.
        source: Where it is from: `hf://ORG/NAME/...`, or a path in the hub's cache.

    Raises:
        DictionaryError: The registry alone has a factor without which the numbers would be wrong.
    """
    repository = next(("/".join(match.groups()) for place in _PLACES if (match := place.search(source))), "")
    if repository in FACTORS and cfg.get("normalize_activations") not in (None, False, "none"):
        raise DictionaryError(
            f"{source} expects activations scaled by a factor that SAELens' registry alone has; open it as "
            f"{FACTORS[repository]}/ID, which needs sae_lens."
        )
    said = MARKS.get(repository, {})
    nested = cfg.get("metadata")
    if isinstance(nested, Mapping):
        inside = {name: value for name, value in said.items() if name == "model_from_pretrained_kwargs"}
        return {**cfg, **{n: v for n, v in said.items() if n not in inside}, "metadata": {**nested, **inside}}
    return {**cfg, **said}
