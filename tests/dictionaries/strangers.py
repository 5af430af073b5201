"""Sound folders of every format, to be damaged, and what is done with them then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.reader import CONFIG, WEIGHTS, save_folder
from circuitsae.errors import CircuitsaeError
from tests.dictionaries import formats


def _write_saelens(folder: Path) -> None:
    formats.write_gemma_scope(folder.with_name("params") / "params.npz")
    (dictionary,) = load_dictionary(folder.with_name("params"), hook_in="blocks.0.hook_x")
    save_folder(dictionary, folder)


FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "npz": ("params.npz", lambda folder: formats.write_gemma_scope(folder / "params.npz")),
    "packed npz": ("params.npz", lambda folder: formats.write_gemma_scope(folder / "params.npz", compressed=True)),
    "ae.pt": ("ae.pt", lambda folder: formats.write_dictionary_learning(folder, "AutoEncoder", config={"layer": 1})),
    "sparsify": ("sae.safetensors", formats.write_sparsify),
    "layer": ("layer_0.safetensors", lambda folder: formats.write_transcoder_set(folder, n_layers=1)),
    "cross-layer": ("W_enc_0.safetensors", lambda folder: formats.write_cross_layer(folder, n_layers=1)),
    "transcoder": (
        "final_sparse_autoencoder_x.pt",
        lambda folder: formats.write_transcoder_circuits(folder / "final_sparse_autoencoder_x.pt"),
    ),
    "saelens": (WEIGHTS, _write_saelens),
}
"""By kind, the weights' file and what writes a folder of that kind."""

SETTINGS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "sparsify": ("cfg.json", formats.write_sparsify),
    "dictionary_learning": (
        "config.json",
        lambda f: formats.write_dictionary_learning(f, "AutoEncoderTopK", config={}),
    ),
    "circuit-tracer": ("config.yaml", lambda folder: formats.write_transcoder_set(folder, n_layers=1)),
    "saelens": (CONFIG, _write_saelens),
}
"""By kind, the settings' file and what writes a folder of that kind."""


def use(folder: Path) -> str:
    """Loads and uses what is in a folder; returns what was said where it can't be."""
    try:
        for dictionary in load_dictionary(
            folder, **({} if _names_its_hooks(folder) else {"hook_in": "blocks.0.hook_x"})
        ):
            x = torch.ones(2, dictionary.d_in, dtype=dictionary.dtype)
            encoding = dictionary.encode(x)
            dictionary.decode(encoding, x)
            dictionary.decoder_rows(encoding.features.indices[:3])
            dictionary.release()
    except CircuitsaeError as error:
        assert "\n" not in str(error) and str(error).strip()
        return str(error)
    return ""


def _names_its_hooks(folder: Path) -> bool:
    return (folder / "config.yaml").exists()
