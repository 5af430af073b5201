"""The kinds of nodes and the kinds of plugins, each in the order in which they are stored and shown."""

from typing import Literal, get_args

NodeKind = Literal["token", "bias", "feature", "error", "metric"]
NODE_KINDS: tuple[NodeKind, ...] = get_args(NodeKind)

PluginKind = Literal["metrics", "methods", "loaders", "pruners", "groupings", "exporters", "labels", "presets"]
PLUGIN_KINDS: tuple[PluginKind, ...] = get_args(PluginKind)
