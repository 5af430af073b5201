"""All presets by name: shipped with the package, from plugins, and the user's own."""

import os
from pathlib import Path
from typing import Any

from circuitsae import registry
from circuitsae.errors import CircuitsaeError, InputError, PluginError, UnknownNameError
from circuitsae.folders import settings_folder
from circuitsae.presets.preset import Preset, read_preset


def preset_folders() -> list[Path]:
    """Returns the folders whose TOML files are presets: `$CIRCUITSAE_PRESETS`, or `presets` in the settings' folder."""
    named = os.environ.get("CIRCUITSAE_PRESETS")
    return [Path(p).expanduser() for p in named.split(os.pathsep) if p] if named else [settings_folder() / "presets"]


def list_presets() -> list[Preset]:
    """Returns all presets that can be read, the user's own last; imports no torch, asks no network.

    One that can't be read is left out here and told of by [preset_problems][circuitsae.presets.preset_problems].
    """
    return list(_collect()[0].values())


def preset_problems() -> list[str]:
    """Returns one sentence for each preset that can't be read, or whose name is taken."""
    return list(_collect()[1].values())


def find_preset(name: str | Path | Preset) -> Preset:
    """Returns the preset of a name, or the one in a TOML file given by its path.

    Raises:
        UnknownNameError: None is called that; the message gives near matches.
        InputError: Its file can't be used.
        PluginError: It is a plugin's, and the plugin is broken.
    """
    if isinstance(name, Preset):
        return name
    if isinstance(name, Path) or name.endswith(".toml"):
        return read_preset(name)
    found, problems = _collect()
    if name in found:
        return found[name]
    if name in registry.names("presets"):
        return _as_preset(registry.find("presets", name))
    if name in problems:
        raise InputError(problems[name])
    raise UnknownNameError("preset", name, found, hint="All are listed by: circuitsae presets.")


def reference_of(preset: Preset) -> str:
    """Returns what `find_preset` finds a preset by again: its name, or the path of its file where its name does not."""
    found = _collect()[0].get(preset.name)
    return (
        str(preset.source)
        if preset.source is not None and (found is None or found.source != preset.source)
        else preset.name
    )


def default_preset() -> Preset:
    """Returns what is used when none is named: `smollm2`, a real language model, once it is there, else `tiny`."""
    from circuitsae.presets.fetching import is_present

    smollm2 = find_preset("smollm2")
    return smollm2 if is_present(smollm2) else find_preset("tiny")


def _collect() -> tuple[dict[str, Preset], dict[str, str]]:
    """Returns presets by name, and by name (or file name) a sentence for each that is broken."""
    found: dict[str, Preset] = {}
    problems: dict[str, str] = {}
    for plugin in registry.plugins("presets"):
        try:
            found[plugin.name] = _as_preset(plugin)
        except CircuitsaeError as error:
            problems[plugin.name] = str(error)
    for folder in preset_folders():
        for path in sorted(folder.glob("*.toml")):
            try:
                preset = read_preset(path)
            except InputError as error:
                problems[path.stem] = str(error)
                continue
            taken = found.get(preset.name)
            if taken is None:
                found[preset.name] = preset
            else:
                where = taken.source or "a plugin"
                problems[str(path)] = (
                    f"The preset file {path}: the name {preset.name!r} is taken by {where}; choose another."
                )
    return found, problems


def _as_preset(plugin: registry.Plugin) -> Preset:
    """A plugin's target is a `Preset`, or the path of its TOML file."""
    made: Any = plugin.load()
    if isinstance(made, Preset):
        return made
    if isinstance(made, (str, Path)):
        return read_preset(made)
    raise PluginError(
        f"The plugin {plugin.name!r} (presets, from {plugin.distribution}) is {type(made).__name__}; "
        "expected a circuitsae.presets.Preset or the path of its TOML file."
    )
