"""The presets that ship with the package."""

from pathlib import Path

from circuitsae.presets.preset import read_preset

_HERE = Path(__file__).parent

SMOLLM2 = read_preset(_HERE / "smollm2.toml")
TINY = read_preset(_HERE / "tiny.toml")
TINY_TRANSCODERS = read_preset(_HERE / "tiny-transcoders.toml")
