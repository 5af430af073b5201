"""From a name or path to a label store, and from a store to labels on a circuit's nodes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitsae import names, registry
from circuitsae.errors import InputError, PluginError
from circuitsae.graph.circuit import Circuit
from circuitsae.labels.records import LabelStore, Mapped

if TYPE_CHECKING:
    from circuitsae.presets import Preset


def open_labels(source: "str | os.PathLike[str] | Mapping[Any, str] | LabelStore", **options: Any) -> LabelStore:
    """Returns a label store.

        open_labels("labels.parquet")                            # what `circuitsae describe` wrote
        open_labels("mine.csv")                                  # a table: node (or site and index) and label
        open_labels("neuronpedia:blocks.8.hook_resid_pre=gpt2-small/8-res-jb")
        open_labels({"blocks.3.hook_mlp_out/17": "months"})

    Args:
        source: A file, `NAME:REST` with the name of a plugin of the group `labels`, labels by feature key or by
            (site, index), or a store, which is returned as it is.
        **options: The plugin's own.

    Raises:
        UnknownNameError: No plugin has that name.
        InputError: The file can't be used, or its suffix means no plugin.
        MissingExtraError: The plugin needs a package that is not installed.
    """
    if isinstance(source, Mapping):
        return Mapped({_feature(key): label for key, label in source.items()})
    if isinstance(source, LabelStore):
        return source
    text = os.fspath(source)
    name, colon, rest = text.partition(":")
    if name in registry.names("labels") and not Path(text).exists():
        plugin = registry.find("labels", name)
    elif colon and "/" not in name and "\\" not in name and "." not in name and len(name) > 1:
        plugin = registry.find("labels", name)  # says which there are
    else:
        plugin, rest = _by_suffix(text), text
    store = plugin.load()(rest, **options)
    if not isinstance(store, LabelStore):
        raise PluginError(
            f"The plugin {plugin.name!r} (labels, from {plugin.distribution}) gave {type(store).__name__}; expected an "
            "object with name, label, describe and labels."
        )
    return store


def label_circuit(circuit: Circuit, store: LabelStore) -> int:
    """Sets `label` on a circuit's features.

    In place; what the store does not know stays as it is. Returns how many got one.
    """
    nodes = circuit.graph.nodes
    found = store.labels({(nodes[key]["site"], nodes[key]["index"]) for key in circuit.features})
    count = 0
    for key in circuit.features:
        if label := found.get((nodes[key]["site"], nodes[key]["index"])):
            nodes[key]["label"] = label
            count += 1
    return count


def preset_labels(preset: "str | Preset | None") -> LabelStore | None:
    """Returns the label store that comes with a preset, `None` where there is no preset, or none with it.

    Raises:
        UnknownNameError: No preset is called that.
        InputError: The store can't be used.
        MissingExtraError: It needs a package that is not installed.
    """
    from circuitsae.presets import find_preset

    if preset is None:
        return None
    source = find_preset(preset).labels
    return open_labels(source) if source else None


def _by_suffix(path: str) -> registry.Plugin:
    by_suffix = {suffix: plugin for plugin in registry.plugins("labels") for suffix in plugin.extra.get("suffixes", ())}
    fitting = [suffix for suffix in by_suffix if path.lower().endswith(suffix)]
    if not fitting:
        known = ", ".join(sorted(by_suffix))
        named = ", ".join(f"{name}:" for name in registry.names("labels"))
        raise InputError(
            f"{path!r} tells no source of labels; expected a file that ends in one of {known}, or one of {named} first."
        )
    return by_suffix[max(fitting, key=len)]


def _feature(key: Any) -> tuple[str, int]:
    if isinstance(key, tuple):
        site, index = key
        return str(site), int(index)
    node = names.parse(str(key))
    if node.kind != "feature" or node.site is None or node.index is None:
        raise InputError(f"{str(key)[:80]!r} is not a feature's key, such as 'blocks.3.hook_mlp_out/17'.")
    return node.site, node.index
