"""circuit-tracer's transcoder sets: `config.yaml` and safetensors, one file a layer or a cross-layer transcoder.

Per layer, `layer_3.safetensors` holds W_enc [d_sae, d_in], W_dec [d_sae, d_out], b_enc, b_dec and what the architecture
adds; or the configuration lists a file for each layer, of this form or Gemma Scope's. Across layers, `W_enc_3.safetensors`
and `W_dec_3.safetensors` [d_sae, output, d_out] hold what layer 3 reads and what it writes to itself and all above. Rows
are read where they lie. Source: `circuit_tracer/transcoder/*.py`, `utils/hf_utils.py` (0.5.0).
"""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitsae.dictionaries import hub
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig
from circuitsae.dictionaries.loaders.gemma_scope import open_params
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.loaders.sites import hook_in_layer
from circuitsae.dictionaries.loaders.tensors import MixedWeights
from circuitsae.dictionaries.reader import SafetensorsFile
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError

_CONFIG = "config.yaml"
_LAYER = re.compile(r"(?:layer|W_enc|W_dec)_\d+\.safetensors")
_MAX_CONFIG = 1 << 20
_MAX_LAYERS = 1000
_RELU, _JUMPRELU, _TOPK = ("relu",), ("jumprelu", "jump_relu"), ("topk", "top_k")
_THRESHOLDS = ("activation_function.threshold", "threshold")


class CircuitTracer(Format):
    """A set of transcoders, one dictionary a layer."""

    name = "circuit-tracer"
    files = f"{_CONFIG} of a transcoder set"
    origin = "circuit-tracer: per layer (ReLU, JumpReLU, top-k), with skip, across layers; Gemma Scope 2's cross-layer transcoders"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the configuration and the layers' files."""
        return [_CONFIG, *sorted(filter(_LAYER.fullmatch, names))] if _CONFIG in names else []

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens every layer; files that the configuration names in other repositories of the hub are fetched.

        The hook points that are asked for are names within a block, one for all that are written.

        Raises:
            DictionaryError: The configuration or a file is damaged, or names files outside of the set's folder.
            FetchError: A file can't be fetched.
        """
        config = _read_yaml(folder.path / _CONFIG)
        origin = str(folder.path / _CONFIG)
        name_unknown(config, self.name, origin)
        activation, k = _activation(config, folder, origin)
        kind = config.get("model_kind")
        reads = folder.hook_in or config.get("feature_input_hook")
        writes = folder.hook_outs[0] if folder.hook_outs else config.get("feature_output_hook")
        if kind == "cross_layer_transcoder" and "transcoders" not in config:
            if activation == "topk":
                raise DictionaryError(
                    f"{origin} is a cross-layer transcoder with the activation topk, a form not supported."
                )
            return _cross_layer(folder, reads, writes, origin)
        if kind == "cross_layer_transcoder":
            return _listed_cross_layer(_layer_files(config, folder, origin), reads, writes, origin)
        if kind != "transcoder_set":
            raise DictionaryError(
                f"{origin} is of the kind {kind!r:.60}; expected model_kind: transcoder_set, or cross_layer_transcoder."
            )
        opened = []
        for layer, (path, where) in enumerate(_layer_files(config, folder, origin)):
            hooks = (hook_in_layer(reads, layer, origin), hook_in_layer(writes, layer, origin))
            opened.append(_per_layer(path, hooks, where, activation, k))
        return opened


def _activation(config: Mapping[str, Any], folder: Folder, origin: str) -> tuple[str | None, int | None]:
    """Returns the activation that a set's settings name, if they do, and how many features a row of top-k keeps."""
    said = config.get("activation", config.get("activation_function"))
    named = said.lower() if isinstance(said, str) else said
    if named is None and config.get("k") is None:
        return None, None
    if named is not None and named not in (*_RELU, *_JUMPRELU, *_TOPK):
        raise DictionaryError(
            f"{origin} asks for the activation {said!r:.60}, which is not known; expected relu, jumprelu or topk."
        )
    if named in _TOPK:
        return "topk", folder.kept(config.get("k"), origin)
    if config.get("k") is not None:
        raise DictionaryError(f"{origin} gives k and the activation {said!r:.60}; expected topk, or no k.")
    return ("jumprelu" if named in _JUMPRELU else "relu"), None


def _per_layer(
    path: Path, hooks: tuple[str, str], source: str, activation: str | None = None, k: int | None = None
) -> Dictionary:
    lies = None if path.suffix == ".npz" else SafetensorsFile(path)
    if lies is None or "w_enc" in lies.entries:
        if activation in ("topk", "relu"):
            raise DictionaryError(f"{path} is Gemma Scope's, which is JumpReLU, and the set says {activation}.")
        return open_params(path, hooks, source=source)
    file = lies
    tensors = {name: (file, name, name == "W_enc") for name in file.entries if name not in _THRESHOLDS}
    made = _threshold(file, next((name for name in _THRESHOLDS if name in file.entries), None), tensors)
    found = "jumprelu" if made or "threshold" in tensors else "relu"
    if activation not in (None, found) and not (activation == "topk" and found == "relu"):
        raise DictionaryError(
            f"{path} has {'a threshold' if found == 'jumprelu' else 'no threshold'}, and the set says {activation}."
        )
    prefix = {"relu": "", "jumprelu": "jumprelu_", "topk": "topk_"}[activation or found]
    config = DictionaryConfig(f"{prefix}{'skip_' if 'W_skip' in tensors else ''}transcoder", hooks[0], (hooks[1],), k=k)
    return Dictionary(config, MixedWeights(tensors, made), source=source)


def _cross_layer(folder: Folder, reads: Any, writes: Any, origin: str) -> list[Dictionary]:
    layers = sorted(int(name[6:-12]) for name in folder.names if name.startswith("W_enc_"))
    if not layers or layers != list(range(len(layers))):
        raise DictionaryError(
            f"{folder.path} has encoders for the layers {layers}; expected W_enc_0.safetensors and all after."
        )
    outs = [hook_in_layer(writes, layer, origin) for layer in layers]
    opened = []
    for layer in layers:
        encoder = SafetensorsFile(folder.path / f"W_enc_{layer}.safetensors")
        decoder = SafetensorsFile(folder.path / f"W_dec_{layer}.safetensors")
        known = {f"{name}_{layer}" for name in ("W_enc", "b_enc", "b_dec", "threshold")}
        for file, needed in (
            (encoder, (f"W_enc_{layer}", f"b_enc_{layer}", f"b_dec_{layer}")),
            (decoder, (f"W_dec_{layer}",)),
        ):
            if missing := [name for name in needed if name not in file.entries]:
                raise DictionaryError(f"{file.path} lacks {', '.join(missing)}.")
        if extra := sorted(set(encoder.entries) - known):
            raise DictionaryError(f"{encoder.path} holds {extra[0]}, which is not known of a cross-layer transcoder.")
        tensors = {
            "W_enc": (encoder, f"W_enc_{layer}", True),
            "b_enc": (encoder, f"b_enc_{layer}", False),
            "W_dec": (decoder, f"W_dec_{layer}", False),
        }
        # the bias of each output belongs to the layer that writes it first
        bias = encoder.view(f"b_dec_{layer}")
        b_dec = torch.zeros(len(layers) - layer, bias.numel(), dtype=bias.dtype)
        b_dec[0] = bias.reshape(-1)
        has_threshold = f"threshold_{layer}" in encoder.entries
        made = _threshold(encoder, f"threshold_{layer}" if has_threshold else None, tensors)
        kind = f"{'jumprelu_' if has_threshold else ''}cross_layer_transcoder"
        config = DictionaryConfig(kind, hook_in_layer(reads, layer, origin), tuple(outs[layer:]))
        opened.append(
            Dictionary(config, MixedWeights(tensors, {**made, "b_dec": b_dec}), source=f"{folder.source}#layer_{layer}")
        )
    return opened


def _listed_cross_layer(files: Sequence[tuple[Path, str]], reads: Any, writes: Any, origin: str) -> list[Dictionary]:
    """Opens Gemma Scope 2's: a file a layer, whose w_dec [d_sae, output, d_out] has a part for every layer of the model,
    of which those from its own upwards count; as circuit-tracer's `load_gemma_scope_2_clt` takes them."""
    outs = [hook_in_layer(writes, layer, origin) for layer in range(len(files))]
    opened = []
    for layer, (path, source) in enumerate(files):
        file = SafetensorsFile(path)
        entries = {name.lower(): name for name in file.entries}
        known = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold", "affine_skip_connection")
        if missing := [name for name in known[:5] if name not in entries]:
            raise DictionaryError(f"{path} lacks {', '.join(missing)}, which a cross-layer transcoder has.")
        if extra := sorted(set(entries) - set(known)):
            raise DictionaryError(f"{path} holds {extra[0]}, which is not known of a cross-layer transcoder.")
        decoder = file.view(entries["w_dec"])
        if decoder.ndim != 3 or decoder.shape[1] != len(files):
            raise DictionaryError(
                f"{path} has w_dec {list(decoder.shape)}; expected one part for each of the {len(files)} layers."
            )
        bias = file.view(entries["b_dec"])
        b_dec = torch.zeros(len(files) - layer, decoder.shape[-1], dtype=bias.dtype)
        b_dec[0] = bias.reshape(-1)
        tensors = {ours: (file, entries[ours.lower()], False) for ours in ("W_enc", "b_enc", "threshold")}
        has_skip = "affine_skip_connection" in entries
        if has_skip:
            tensors["W_skip"] = (file, entries["affine_skip_connection"], True)  # stored [d_in, d_out]
        kind = f"jumprelu_{'skip_' if has_skip else ''}cross_layer_transcoder"
        config = DictionaryConfig(kind, hook_in_layer(reads, layer, origin), tuple(outs[layer:]))
        weights = MixedWeights(tensors, {"W_dec": decoder[:, layer:], "b_dec": b_dec})
        opened.append(Dictionary(config, weights, source=source))
    return opened


def _threshold(
    file: SafetensorsFile, name: str | None, tensors: dict[str, tuple[SafetensorsFile, str, bool]]
) -> dict[str, Tensor]:
    """Takes a threshold as it lies, or spreads the one that all features share."""
    if name is None:
        return {}
    n_features = file.entries[tensors["b_enc"][1]].shape if "b_enc" in tensors else ()
    if file.entries[name].shape == n_features:
        tensors["threshold"] = (file, name, False)
        return {}
    threshold = file.view(name).reshape(-1)
    return {
        "threshold": threshold.expand(n_features).clone()
        if threshold.numel() == 1 and n_features
        else threshold.clone()
    }


def _layer_files(config: Mapping[str, Any], folder: Folder, origin: str) -> list[tuple[Path, str]]:
    """Returns each layer's file and where it is from."""
    listed = config.get("transcoders")
    if listed is None:
        layers = sorted(int(name[6:-12]) for name in folder.names if name.startswith("layer_"))
        if not layers or layers != list(range(len(layers))):
            raise DictionaryError(f"{folder.path} has the layers {layers}; expected layer_0.safetensors and all after.")
        files = [f"layer_{layer}.safetensors" for layer in layers]
        return [(folder.path / name, _within(folder.source, name)) for name in files]
    if not isinstance(listed, list) or not 0 < len(listed) <= _MAX_LAYERS:
        raise DictionaryError(f"{origin} lists {listed!r:.60} as transcoders; expected a file for each layer.")
    return [_listed_file(given, folder.path, folder.source, origin) for given in _fetched(listed, origin)]


def _fetched(listed: Sequence[Any], origin: str) -> list[str | tuple[Path, str]]:
    """Fetches the files that are named on the hub, repository by repository."""
    places: dict[int, hub.HubPath] = {}
    for layer, given in enumerate(listed):
        if not isinstance(given, str) or Path(given).suffix.partition("?")[0] not in (".safetensors", ".npz"):
            raise DictionaryError(
                f"{origin} lists {given!r:.80} as a transcoder; expected a .safetensors or .npz file."
            )
        if given.startswith(hub.SCHEME):
            places[layer] = hub.parse_path(given)
    found: dict[int, tuple[Path, str]] = {}
    for repository, revision in sorted({(p.repository, p.revision or "") for p in places.values()}):
        here = {n: p for n, p in places.items() if (p.repository, p.revision or "") == (repository, revision)}
        listing = hub.list_files(hub.HubPath(repository, "", revision or None))
        snapshot = hub.fetch_files(listing, [p.path for p in here.values()])
        for layer, place in here.items():
            found[layer] = (snapshot / place.path, str(hub.HubPath(repository, place.path, listing.commit)))
    return [found[layer] if layer in found else given for layer, given in enumerate(listed)]


def _listed_file(given: str | tuple[Path, str], folder: Path, source: str, origin: str) -> tuple[Path, str]:
    if not isinstance(given, str):
        return given
    if not hub.is_inside(given):
        raise DictionaryError(f"{origin} names {given!r:.80}, a file outside of its folder, which is not read.")
    path = folder / given
    if not path.is_file() and source.startswith(hub.SCHEME):
        place = hub.parse_path(source)
        listing = hub.list_files(place)
        inside = f"{place.path}/{given}" if place.path and not place.path.endswith(_CONFIG) else given
        path = hub.fetch_files(listing, [inside]) / inside
    return path, _within(source, given)


def _within(source: str, name: str) -> str:
    """Returns where a file of a set is from."""
    if not source.startswith(hub.SCHEME):
        return str(Path(source) / name)
    place = hub.parse_path(source)
    path = place.path.removesuffix(_CONFIG).rstrip("/")
    return str(place._replace(path=f"{path}/{name}" if path else name))


def _read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML file; one that refers to its own parts, as bombs do, is not read.

    Raises:
        DictionaryError: The file is missing, too long, not YAML, or no mapping.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it refers to its own parts")
            return super().compose_node(parent, index)

    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise DictionaryError(f"{path} has {path.stat().st_size} bytes, too many for a transcoder set's settings.")
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    except OSError as error:
        raise DictionaryError(f"{path} can't be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, AttributeError, TypeError) as error:
        line = " ".join(str(error).split())[:120] or type(error).__name__
        raise DictionaryError(f"{path} is not YAML: {line}.") from error
    if not isinstance(found, dict):
        raise DictionaryError(
            f"{path} holds a {type(found).__name__}; expected a mapping with a transcoder set's settings."
        )
    return found
