"""Plugins: one registry for the eight kinds of thing that others may add.

A plugin is registered under a kind and a name, as a `"module:attribute"` string (imported when first used) or, by the
decorator, as the object itself. The built-ins go through the same call as a stranger's. Other distributions name theirs
by entry points in the groups `circuitsae.metrics`, `.methods`, `.loaders`, `.pruners`, `.groupings`, `.exporters`,
`.labels` and `.presets`. Listing imports nothing; a plugin that fails to import is named in a
[PluginError][circuitsae.errors.PluginError] and takes nothing else down.

>>> @register("pruners", "keep-nothing")
... def keep_nothing(graph):
...     "Drops every node."
>>> get("pruners", "keep-nothing") is keep_nothing
True
>>> unregister("pruners", "keep-nothing")
"""

import importlib
import importlib.metadata
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from circuitsae.builtins import ROWS
from circuitsae.errors import InputError, PluginError, UnknownNameError
from circuitsae.kinds import PLUGIN_KINDS, PluginKind

Kind = PluginKind
KINDS = PLUGIN_KINDS

T = TypeVar("T")


@dataclass
class Plugin:
    """One registered name. `target` is `"module:attribute"` until first use, then the object."""

    kind: Kind
    name: str
    target: Any
    distribution: str = "circuitsae"
    summary: str = ""
    extra: dict[str, Any] = field(default_factory=dict[str, Any])

    def load(self) -> Any:
        """Returns the object, importing it at first use.

        Raises:
            PluginError: The import fails; the message names the plugin and its distribution.
        """
        if isinstance(self.target, str):
            module, _, attribute = self.target.partition(":")
            try:
                loaded = importlib.import_module(module)
                for part in attribute.split(".") if attribute else ():
                    loaded = getattr(loaded, part)
            except Exception as error:
                if isinstance(error, PluginError):
                    raise
                raise PluginError(
                    f"The plugin {self.name!r} ({self.kind}, from {self.distribution}) can't be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self.target = loaded
        return self.target


_plugins: dict[tuple[str, str], Plugin] = {}
_discovered = False
_clashes: list[str] = []
_lock = threading.RLock()


@overload
def register(kind: Kind, name: str, target: None = None, **info: Any) -> Callable[[T], T]: ...
@overload
def register(kind: Kind, name: str, target: T, **info: Any) -> T: ...


def register(
    kind: Kind, name: str, target: Any = None, *, summary: str = "", distribution: str | None = None, **extra: Any
) -> Any:
    """Registers a plugin, or returns a decorator that does.

    Args:
        kind: One of `KINDS`.
        name: What users call it; lower case, unique in its kind.
        target: `"module:attribute"`, imported at first use, or the object itself.
        summary: One line for listings, so that listing need not import.
        distribution: Who provides it; the object's module's top package by default.
        **extra: Kept on the plugin (an exporter's `suffix`, say), readable without importing it.

    Raises:
        InputError: The kind is unknown, or the name is taken by something else.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of plugin", kind, KINDS)
    if target is None:

        def decorate(decorated: T) -> T:
            return register(kind, name, decorated, summary=summary, distribution=distribution, **extra)

        return decorate
    if distribution is None:
        module = target if isinstance(target, str) else str(getattr(target, "__module__", "") or "?")
        distribution = module.partition(":")[0].partition(".")[0]
    if not summary and not isinstance(target, str):
        summary = (getattr(target, "__doc__", "") or "").strip().split("\n")[0]
    with _lock:
        taken = _plugins.get((kind, name))
        if taken is not None and taken.target is not target and taken.target != target:
            raise InputError(f"The name {name!r} is taken among the {kind} (by {taken.distribution}); choose another.")
        if taken is None:
            _plugins[kind, name] = Plugin(kind, name, target, distribution, summary, extra)
    return target


def unregister(kind: Kind, name: str) -> None:
    """Takes a name out again; unknown names are ignored."""
    with _lock:
        _plugins.pop((kind, name), None)


def find(kind: Kind, name: str) -> Plugin:
    """Returns the record under a name, without importing the plugin.

    Raises:
        UnknownNameError: Nothing is registered under it; the message gives near matches.
    """
    _discover()
    plugin = _plugins.get((kind, name))
    if plugin is None:
        raise UnknownNameError(kind.removesuffix("s"), name, names(kind))
    return plugin


def get(kind: Kind, name: str) -> Any:
    """Returns the plugin under a name, importing it at first use.

    Raises:
        UnknownNameError: Nothing is registered under it.
        PluginError: It can't be imported.
    """
    return find(kind, name).load()


def names(kind: Kind) -> list[str]:
    """Returns the registered names of a kind, sorted."""
    return [p.name for p in plugins(kind)]


def plugins(kind: Kind | None = None) -> list[Plugin]:
    """Returns the records of a kind, or of all, sorted; nothing is imported."""
    _discover()
    found = [p for p in _plugins.values() if kind is None or p.kind == kind]
    return sorted(found, key=lambda p: (KINDS.index(p.kind), p.name))


def problems() -> list[str]:
    """Returns one sentence for each entry point that clashes with a name already taken."""
    _discover()
    return list(_clashes)


def _discover() -> None:
    """Registers the built-ins and other distributions' entry points, once."""
    global _discovered
    with _lock:
        if _discovered:
            return
        _discovered = True
        for row in ROWS:
            register(row.kind, row.name, row.target, summary=row.summary, distribution="circuitsae", **row.extra)
        for kind in KINDS:
            for entry in importlib.metadata.entry_points(group=f"circuitsae.{kind}"):
                provider = entry.dist.name if entry.dist else "?"
                try:
                    register(kind, entry.name, entry.value, distribution=provider)
                except InputError as error:
                    _clashes.append(f"{provider}: {error}")
