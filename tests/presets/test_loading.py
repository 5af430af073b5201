import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.dictionaries.reader import read_folder
from circuitsae.errors import DictionaryError, FetchError, InputError, UnknownNameError
from circuitsae.presets import fetch, find_preset, model_folder, read_preset

TINY = find_preset("tiny")


@pytest.fixture(scope="module")
def tiny() -> cs.SplicedModel:
    return cs.load("tiny")


def test_a_preset_brings_model_dictionaries_and_how_they_are_used(tiny: cs.SplicedModel) -> None:
    assert (tiny.name, tiny.preset, tiny.n_layers, tiny.skip_positions) == ("tiny", "tiny", 4, (0,))
    parts = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
    assert tiny.sites == tuple(f"blocks.{layer}.{part}" for layer in range(4) for part in parts)
    assert tiny.vocabulary.prepend_bos and tiny.vocabulary.encode("Mary")[0] == tiny.vocabulary.bos_token_id
    assert next(tiny.model.parameters()).dtype == torch.float32


def test_the_bridge_computes_what_transformers_computes(tiny: cs.SplicedModel) -> None:
    from transformers import GPT2LMHeadModel

    reference = GPT2LMHeadModel.from_pretrained(model_folder(TINY), dtype=torch.float32).eval()
    tokens = torch.tensor([tiny.vocabulary.encode("When Mary and John went to the store, John gave a drink to")])
    with torch.no_grad():
        torch.testing.assert_close(
            tiny.model(tokens, return_type="logits"), reference(tokens).logits, rtol=0, atol=1e-5
        )


def test_transcoders_read_what_the_mlp_gets() -> None:
    spliced = cs.load("tiny-transcoders")
    assert spliced.sites == tuple(f"blocks.{layer}.hook_mlp_out" for layer in range(4))
    seen: dict[str, torch.Tensor] = {}
    mlp = spliced.model.blocks[2].mlp
    handle = mlp.register_forward_hook(lambda module, args, out: seen.update(given=args[0]))
    tokens = torch.tensor([spliced.vocabulary.encode("The keys to the cabinet")])
    hook = (spliced.dictionaries[2].hook_in, lambda x, hook: seen.update(read=x))
    with torch.no_grad():
        spliced.model.run_with_hooks(tokens, fwd_hooks=[hook])
    handle.remove()
    assert torch.equal(seen["given"], seen["read"])


def test_sites_choose_among_the_presets_dictionaries() -> None:
    spliced = cs.load("tiny", sites=["blocks.2.hook_resid_post", "blocks.0.hook_mlp_out"])
    assert spliced.sites == ("blocks.0.hook_mlp_out", "blocks.2.hook_resid_post")
    with pytest.raises(
        UnknownNameError, match=r"'blocks\.2\.hook_resid_pst'; did you mean 'blocks\.2\.hook_resid_post'"
    ):
        cs.load("tiny", sites=["blocks.2.hook_resid_pst"])


def test_arguments_replace_parts_of_the_preset(tiny: cs.SplicedModel) -> None:
    folder = TINY.dictionary_folders()[0]
    spliced = cs.load(
        "tiny", model=tiny.model, dictionaries=[folder], skip_positions=[], prepend_bos=False, name="other"
    )
    assert spliced.model is tiny.model and spliced.sites == ("blocks.0.hook_attn_out",)
    assert (spliced.skip_positions, spliced.name, spliced.vocabulary.prepend_bos) == ((), "other", False)


def test_model_and_dictionaries_are_enough() -> None:
    folder = model_folder(TINY)
    given = [str(TINY.dictionary_folders()[0]), read_folder(TINY.dictionary_folders()[1])]
    spliced = cs.load(model=folder, dictionaries=given, dtype="float64")
    assert spliced.sites == ("blocks.0.hook_attn_out", "blocks.0.hook_mlp_out")
    assert (spliced.preset, spliced.skip_positions) == (None, ())
    assert next(spliced.model.parameters()).dtype == torch.float64
    with torch.no_grad():
        assert spliced.model(torch.tensor([[1, 2]]), return_type="logits").dtype == torch.float64
    assert spliced.vocabulary.prepend_bos  # as the dictionaries' configurations say


def test_a_users_preset_is_fetched_and_loaded(small_llama: Any, preset_file: Path) -> None:
    from safetensors.torch import save_file

    sae = preset_file.parent / "sae"
    sae.mkdir()
    shapes = {"W_enc": (32, 8), "b_enc": (8,), "W_dec": (8, 32), "b_dec": (32,)}
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, sae / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": 32, "d_sae": 8, "metadata": {"hook_name": "blocks.1.hook_resid_post"}}
    (sae / "cfg.json").write_text(json.dumps(config))
    fetch(read_preset(preset_file), source=small_llama.gguf)
    for name in ("small", preset_file):
        spliced = cs.load(name)
        tokens = torch.tensor([spliced.vocabulary.encode("Mary gave John")])
        assert tokens.tolist()[0] == [1, *small_llama.tokenizer.encode("Mary gave John").ids]
        with torch.no_grad():
            logits = spliced.model(tokens, return_type="logits")
        torch.testing.assert_close(logits, small_llama.model(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({}, InputError, "Nothing to load was named"),
        ({"model": "gpt2"}, InputError, r"dictionaries=\[\.\.\.\] is missing"),
        ({"dictionaries": ["a"]}, InputError, r"model=\.\.\. is missing"),
        ({"preset": "tny"}, UnknownNameError, "did you mean 'tiny'"),
        ({"preset": "tiny", "device": "abacus"}, InputError, "The device 'abacus' can't be used here"),
        ({"preset": "tiny", "dtype": "float31"}, UnknownNameError, "did you mean 'float32'"),
        ({"preset": "tiny", "dtype": torch.int64}, UnknownNameError, "No floating-point type is called 'int64'"),
        ({"preset": "tiny", "model": "./none"}, InputError, "There is no folder none to load a model from"),
        ({"preset": "tiny", "model": "org/none"}, FetchError, "hf://org/none was not fetched before"),
        ({"preset": "tiny", "dictionaries": "one"}, InputError, r"expected dictionaries=\[\.\.\.\]"),
        ({"preset": "tiny", "dictionaries": []}, DictionaryError, "No dictionary was given"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_sentence(
    arguments: dict[str, Any], error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(error, match=said) as caught:
        cs.load(**arguments)
    assert "\n" not in str(caught.value)


def test_a_loaded_model_takes_no_loading_options(tiny: cs.SplicedModel) -> None:
    with pytest.raises(InputError, match="this one is loaded already"):
        cs.load("tiny", model=tiny.model, dtype="float64")


def test_a_damaged_model_folder_is_said_so(tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder(TINY), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="can't be loaded as a model: "):
        cs.load("tiny", model=folder)
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(InputError, match="can't be loaded as a model: "):
        cs.load("tiny", model=folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder(TINY), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="can't be loaded as a model: "):
        cs.load("tiny", model=folder)


_OFFLINE = """
import socket, sys

def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError("no network in this test")

asked = []
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
if sys.argv[1] == "lean":
    from circuitsae.model import lean
    lean.start()
import torch
import circuitsae as cs
spliced = cs.load("tiny")
tokens = torch.tensor([spliced.vocabulary.encode("The keys to the cabinet")])
logits = spliced.model(tokens, return_type="logits")
logits[0, -1].sum().backward()
assert asked == [], asked
heavy = [name for name in ("torch._dynamo", "datasets", "pandas", "torch.distributed.tensor") if name in sys.modules]
import datasets, pandas, torch._dynamo
assert pandas.DataFrame([1]).shape == (1, 1)
from transformer_lens.utilities.hf_utils import load_dataset
assert datasets.__file__ and torch._dynamo.__file__ and torch.distributed.is_available()
assert torch.compiler.disable(lambda x: x + 1)(1) == 2
try:
    load_dataset("nothing/such")  # the placeholder's place was taken by the real function
except Exception as error:
    assert "nothing/such" in str(error), error
print(logits.detach().double().sum().item(), len(heavy))
"""


@pytest.mark.slow
def test_a_lean_start_changes_nothing_but_the_time_and_no_start_asks_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    results = {}
    for how in ("lean", "plain"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _OFFLINE, how], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Loading weights" not in done.stderr
        results[how] = done.stdout.split()[-2:]
    assert results["lean"][0] == results["plain"][0]
    if int(importlib.metadata.version("transformer_lens").split(".")[0]) >= 4:
        assert (results["lean"][1], results["plain"][1]) == ("0", "4")
