"""The presets that ship with the package."""

from pathlib import Path

from circuitsae.presets.preset import read_preset

_HERE = Path(__file__).parent

SMOLLM2 = read_preset(_HERE / "smollm2.toml")
SMOLLM2_NEURONS = read_preset(_HERE / "smollm2-neurons.toml")
TINY = read_preset(_HERE / "tiny.toml")
TINY_TRANSCODERS = read_preset(_HERE / "tiny-transcoders.toml")
TINY_NEURONS = read_preset(_HERE / "tiny-neurons.toml")
GPT2_SMALL = read_preset(_HERE / "gpt2-small.toml")
GPT2_SMALL_TRANSCODERS = read_preset(_HERE / "gpt2-small-transcoders.toml")
PYTHIA_70M_DEDUPED = read_preset(_HERE / "pythia-70m-deduped.toml")
GEMMA_2_2B = read_preset(_HERE / "gemma-2-2b.toml")
GEMMA_2_2B_TRANSCODERS = read_preset(_HERE / "gemma-2-2b-transcoders.toml")
