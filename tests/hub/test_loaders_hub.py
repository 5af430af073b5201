"""`hf://ORG/NAME/PATH@REVISION`: every format from a loopback hub, only what is wanted of it, and sets across repositories."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.reader import save_folder
from circuitsae.errors import DictionaryError, FetchError, InputError, UnknownNameError
from circuitsae.presets import find_preset, model_folder
from tests.dictionaries import formats
from tests.dictionaries.reference import random_tensors
from tests.hub.fixtures import environment
from tests.hub.server import Hub

ROOT = Path(__file__).parents[2]


def serve(hub: Hub, folder: Path, name: str = "org/saes", **options: Any) -> str:
    """Puts a folder's files on the hub."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return hub.add(name, {**files, "README.md": b"---\nlicense: mit\n---\n"}, **options)


def saelens_folder(folder: Path, layer: int = 3) -> None:
    tensors = random_tensors("standard", seed=layer)
    hook = f"blocks.{layer}.hook_resid_post"
    save_folder(Dictionary.from_tensors(architecture="standard", hook_in=hook, tensors=tensors), folder)
    (folder / "sparsity.safetensors").write_bytes(b"not wanted")


def config(folder: Path) -> None:
    trainer = {"layer": 3, "k": 3, "submodule_name": "resid_post_layer_3"}
    formats.write_dictionary_learning(folder, "AutoEncoderTopK", config=trainer)


WRITERS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "saelens": ("blocks.3.hook_resid_post", saelens_folder, "blocks.3.hook_resid_post"),
    "gemma": ("layer_3/w/l", lambda p: formats.write_gemma_scope(p / "params.npz"), "blocks.3.hook_resid_post"),
    "dictionary_learning": ("r/trainer_0", config, "blocks.3.hook_resid_post"),
    "sparsify": ("layers.3", formats.write_sparsify, "blocks.3.hook_resid_post"),
    "set": ("set", lambda p: formats.write_transcoder_set(p, n_layers=1), "blocks.0.hook_mlp_out"),
    "clt": ("clt", lambda p: formats.write_cross_layer(p, n_layers=1), "blocks.0.hook_mlp_out"),
}


@pytest.mark.parametrize("form", WRITERS)
def test_each_format_is_fetched_and_read(form: str, hub: Hub, tmp_path: Path) -> None:
    where, write, site = WRITERS[form]
    name = "google/gemma-scope-2b-pt-res" if form == "gemma" else "org/saes"
    write(tmp_path / "made" / where)
    commit = serve(hub, tmp_path / "made", name)
    (found,) = load_dictionary(f"hf://{name}/{where}")
    assert found.site == site
    assert found.source.startswith(f"hf://{name}/{where}") and found.source.partition("#")[0].endswith(f"@{commit}")
    (local,) = load_dictionary(tmp_path / "made" / where, hook_in=found.hook_in if form == "gemma" else None)
    assert found.fingerprint == local.fingerprint
    x = formats.normal(4, found.d_in, seed=5).to(found.dtype)
    torch.testing.assert_close(found.encode(x).features.to_dense(), local.encode(x).features.to_dense())
    assert not [path for _, path, _ in hub.requests if path.endswith(("README.md", "sparsity.safetensors"))]
    hub.close()  # what was fetched is there without the hub
    (again,) = load_dictionary(f"hf://{name}/{where}@{commit}")
    assert again.fingerprint == local.fingerprint


def test_a_whole_repository_is_read_in_the_order_of_layers(hub: Hub, tmp_path: Path) -> None:
    for layer in (10, 2):
        saelens_folder(tmp_path / "made" / f"l{layer}", layer)
    commit = serve(hub, tmp_path / "made")
    found = load_dictionary("hf://org/saes")
    assert [d.site for d in found] == ["blocks.2.hook_resid_post", "blocks.10.hook_resid_post"]
    assert found[0].source == f"hf://org/saes/l2@{commit}"


def test_of_a_folder_with_a_transcoder_in_each_file_one_is_named(hub: Hub, tmp_path: Path) -> None:
    names = [f"final_sparse_autoencoder_gpt2-small_blocks.{n}.ln2.hook_normalized_24576.pt" for n in range(3)]
    for layer, name in enumerate(names):
        formats.write_transcoder_circuits(tmp_path / "made" / name, layer)
    serve(hub, tmp_path / "made")
    (found,) = load_dictionary(f"hf://org/saes/{names[1]}")
    assert found.site == "blocks.1.hook_mlp_out" and f"/{names[1]}@" in found.source
    assert not hub.gets(names[0])
    assert [d.site for d in load_dictionary("hf://org/saes")] == [f"blocks.{n}.hook_mlp_out" for n in range(3)]


def test_a_set_may_lie_in_other_repositories(hub: Hub, tmp_path: Path) -> None:
    paths = [f"layer_{n}/width_16k/average_l0_{n}/params.npz" for n in range(2)]
    for path in paths:
        formats.write_gemma_scope(tmp_path / "params" / path)
    commit = serve(hub, tmp_path / "params", "google/gemma-scope-2b-pt-transcoders")
    listed = [f"hf://google/gemma-scope-2b-pt-transcoders/{path}" for path in paths]
    listed[1] += "?revision=main"
    (tmp_path / "set").mkdir()
    formats.write_yaml(tmp_path / "set", {"feature_input_hook": "ln2.hook_normalized", "transcoders": listed})
    serve(hub, tmp_path / "set", "mwhanna/gemma-scope-transcoders")
    found = load_dictionary("hf://mwhanna/gemma-scope-transcoders")
    assert [d.hook_in for d in found] == ["blocks.0.ln2.hook_normalized", "blocks.1.ln2.hook_normalized"]
    assert found[1].source == f"hf://google/gemma-scope-2b-pt-transcoders/{paths[1]}@{commit}"
    assert len(load_dictionary(tmp_path / "set")) == 2


def test_a_set_may_name_its_own_files(hub: Hub, tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path / "made" / "set", n_layers=1)
    (tmp_path / "made" / "set" / "deeper").mkdir()
    (tmp_path / "made" / "set" / "layer_0.safetensors").rename(tmp_path / "made" / "set" / "deeper" / "a.safetensors")
    formats.write_yaml(tmp_path / "made" / "set", {"transcoders": ["deeper/a.safetensors"]})
    commit = serve(hub, tmp_path / "made")
    (found,) = load_dictionary("hf://org/saes/set")
    assert found.source == f"hf://org/saes/set/deeper/a.safetensors@{commit}"


def test_a_whole_release_is_not_fetched_by_mistake(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/saes", {f"layer_{n}/w/params.npz": b"" for n in range(70)})
    with pytest.raises(
        DictionaryError, match=r"holds 70 dictionaries, a whole release; name one, such as hf://org/saes/l"
    ):
        load_dictionary("hf://org/saes")
    assert not hub.gets("params.npz")


def test_what_is_not_there_is_said_with_what_is_near(hub: Hub, tmp_path: Path) -> None:
    saelens_folder(tmp_path / "made" / "blocks.3.hook_resid_post")
    serve(hub, tmp_path / "made")
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.3\.hook_resid_post'"):
        load_dictionary("hf://org/saes/blocks.3.hook_resid_pst")
    with pytest.raises(FetchError, match=r"The hub has no file or folder hf://org/saes/qqqqqq"):
        load_dictionary("hf://org/saes/qqqqqq")
    with pytest.raises(InputError, match="is not a place on the hub"):
        load_dictionary("hf://org")
    hub.add("org/model", {"model.safetensors": b"x", "config.json": b"{}"})
    with pytest.raises(
        DictionaryError, match=r"no dictionary in hf://org/model or below it; expected folders with .*found"
    ):
        load_dictionary("hf://org/model")


def test_a_path_that_leads_out_of_the_repository_is_not_listed(hub: Hub, tmp_path: Path) -> None:
    """A hub that lists `../../x` does not make us write there."""
    hub.add("org/saes", {"../../../evil/params.npz": b"x", "a/params.npz": b"y"})
    with pytest.raises(DictionaryError, match=r"params\.npz is not a readable \.npz file"):
        load_dictionary("hf://org/saes", hook_in="h")
    assert not hub.gets("evil/params.npz")


def test_one_format_can_be_asked_alone(hub: Hub, tmp_path: Path) -> None:
    config(tmp_path / "made" / "a")
    serve(hub, tmp_path / "made")
    (found,) = load_dictionary("dictionary-learning:hf://org/saes/a")
    assert found.architecture == "topk"
    with pytest.raises(DictionaryError, match=r"expected folders with cfg\.json and sae\.safetensors, found"):
        load_dictionary("sparsify:hf://org/saes/a")


def test_a_gated_dictionary_says_how_to_log_in(hub: Hub, tmp_path: Path) -> None:
    saelens_folder(tmp_path / "made")
    serve(hub, tmp_path / "made", gated=True)
    with pytest.raises(
        FetchError, match=r"only to those who have accepted its terms: .* then log in \(hf auth login\)"
    ):
        load_dictionary("hf://org/saes")


@pytest.mark.saelens
def test_a_release_of_saelens_is_fetched_through_its_registry(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through sae_lens' own converter, which asks the same hub; kept in our format, so that the hub is asked once."""
    pytest.importorskip("sae_lens", reason="sae_lens is not installed here")
    spec = "gpt2-small-res-jb/blocks.8.hook_resid_pre"
    tensors = random_tensors("standard", seed=8, dtype=torch.float32)
    made = Dictionary.from_tensors(architecture="standard", hook_in="blocks.8.hook_resid_pre", tensors=tensors)
    folder = save_folder(made, tmp_path / "made" / "blocks.8.hook_resid_pre")
    old = {"hook_point": made.hook_in, "hook_point_layer": 8, "d_in": made.d_in, "d_sae": made.d_sae}  # as it is there
    old |= {
        "dtype": "torch.float32",
        "device": "cpu",
        "model_name": "gpt2-small",
        "dataset_path": "d",
        "context_size": 8,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    serve(hub, tmp_path / "made", "jbloom/GPT2-Small-SAEs-Reformatted")
    (found,) = load_dictionary(spec)
    assert (found.source, found.hook_in) == (spec, "blocks.8.hook_resid_pre")
    assert found.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    x = formats.normal(4, found.d_in, seed=5).float()
    assert torch.allclose(found.encode(x).features.to_dense(), made.encode(x).features.to_dense(), atol=1e-6)
    hub.close()
    (again,) = load_dictionary(spec)
    assert again.fingerprint == found.fingerprint


def test_from_the_command_line_with_the_hub_that_the_environment_names(hub: Hub, tmp_path: Path) -> None:
    """As a user has it: HF_ENDPOINT, HF_HOME, nothing patched."""
    model = find_preset("tiny")
    folder = model_folder(model)
    assert folder is not None
    hub.add("org/tiny", {path.name: path.read_bytes() for path in folder.iterdir()})
    sae = Path(model.dictionaries[2])
    hub.add("org/tiny-saes", {f"saes/{sae.name}/{path.name}": path.read_bytes() for path in sae.iterdir()})
    where = environment(hub, tmp_path)
    command = [sys.executable, "-m", "circuitsae", "effects", "The old keys", "--answer", " are", "--foil", " is"]
    command += ["--model", "org/tiny", "--dictionary", f"hf://org/tiny-saes/saes/{sae.name}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=where, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["nodes"]
    assert (tmp_path / "hf_home" / "hub" / "models--org--tiny-saes").is_dir()
