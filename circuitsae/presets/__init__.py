"""Presets: a model and dictionaries that fit it, under one name, as a small TOML file that anyone can write.

Two models ship with the package, `tiny` and `smollm2`, with SAEs, transcoders or their own neurons; others come from a folder of TOML files
([preset_folders][circuitsae.presets.catalogue.preset_folders]) or from plugins. Listing them imports no torch.
"""

from circuitsae.presets.catalogue import (
    default_preset,
    find_preset,
    list_presets,
    preset_folders,
    preset_problems,
    reference_of,
)
from circuitsae.presets.fetching import fetch, is_present, model_folder
from circuitsae.presets.preset import Example, FolderModel, HubModel, Preset, WheelModel, read_preset

__all__ = [
    "Example",
    "FolderModel",
    "HubModel",
    "Preset",
    "WheelModel",
    "default_preset",
    "fetch",
    "find_preset",
    "is_present",
    "list_presets",
    "model_folder",
    "preset_folders",
    "preset_problems",
    "read_preset",
    "reference_of",
]
