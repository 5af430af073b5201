"""Other tools' formats: what is read computes what that tool computes, rows are read alone, and no stranger's code runs."""

import importlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.loaders.sites import hook_of
from circuitsae.dictionaries.loaders.tensors import ArchiveWeights
from circuitsae.dictionaries.reader import read_folder, save_folder
from circuitsae.errors import DictionaryError
from tests.dictionaries import formats
from tests.dictionaries.formats import D, Expected, M, normal, rows

CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder",
)  # fmt: skip


def one(spec: object, **options: Any) -> Dictionary:
    (dictionary,) = load_dictionary(spec, **options)
    return dictionary


def check(ours: Dictionary, expected: Expected, *, tolerance: float = 1e-11) -> None:
    """Compares with the other tool's formulas, and the parts that attribution uses with the whole."""
    x = rows()
    encoding = ours.encode(x)
    features = expected.encode(x)
    assert (features != 0).any() and (features == 0).any()
    assert (encoding.features.to_dense() - features).abs().max() < tolerance
    assert (ours.decode(encoding, x) - expected.decode(features, x)).abs().max() < tolerance
    active = encoding.features
    again = ours.pre_activations(x, active.rows, active.indices)
    assert (again - active.values).abs().max() < tolerance
    ours.release()
    assert (ours.encode(x).features.values - active.values).abs().max() < tolerance
    assert ours.fingerprint == ours.fingerprint and len(ours.fingerprint) == 64


# Gemma Scope


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("where", "reads", "writes"),
    [
        ("gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82", "blocks.12.hook_resid_post", None),
        ("gemma-scope-9b-it-mlp/layer_3/width_16k/canonical", "blocks.3.hook_mlp_out", None),
        ("gemma-scope-2b-pt-att/layer_0/width_65k/average_l0_5", "blocks.0.attn.hook_z", None),
        ("gemma-scope-2b-pt-transcoders/layer_7/w/l", "blocks.7.ln2.hook_normalized", "blocks.7.hook_mlp_out"),
    ],
)
def test_gemma_scope(where: str, reads: str, writes: str | None, compressed: bool, tmp_path: Path) -> None:
    expected = formats.write_gemma_scope(tmp_path / where / "params.npz", compressed=compressed)
    ours = one(tmp_path / where)
    assert (ours.hook_in, ours.hook_outs) == (reads, (writes or reads,))
    assert ours.architecture == ("jumprelu_transcoder" if writes else "jumprelu")
    assert ours.reshape_activations == ("hook_z" if reads.endswith("hook_z") else "none")
    check(ours, expected)
    assert one(tmp_path / where / "params.npz").hook_in == reads


def test_gemma_scopes_embedding_dictionary_is_put_where_the_scaled_embedding_is(tmp_path: Path) -> None:
    where = tmp_path / "gemma-scope-2b-pt-res" / "embedding" / "width_4k" / "average_l0_6"
    of_embedding = formats.write_gemma_scope(where / "params.npz")
    ours, root = one(where), D**0.5
    assert ours.hook_in == "blocks.0.hook_resid_pre"
    scaled = Expected(lambda x: of_embedding.encode(x / root), lambda f, x: root * of_embedding.decode(f, x))
    check(ours, scaled)


@pytest.mark.parametrize("has_skip", [False, True])
def test_gemma_scope_2_transcoders(has_skip: bool, tmp_path: Path) -> None:
    where = tmp_path / "gemma-scope-2-270m-pt" / "transcoder_all" / "layer_4_width_16k_l0_small_affine"
    expected = formats.write_gemma_scope_3(where / "params.safetensors", has_skip=has_skip)
    ours = one(where)
    assert (ours.hook_in, ours.hook_outs) == ("blocks.4.mlp.hook_in", ("blocks.4.hook_mlp_out",))
    check(ours, expected)


def test_gemma_scope_2_saes(tmp_path: Path) -> None:
    where = tmp_path / "gemma-scope-2-1b-pt" / "resid_post" / "layer_13_width_65k_l0_medium"
    expected = formats.write_gemma_scope_3(where / "params.safetensors", has_skip=False)
    assert one(where).hook_in == "blocks.13.hook_resid_post"
    check(one(where), expected)


def test_a_gemma_scope_file_in_a_folder_of_another_name_asks_for_the_hook_point(tmp_path: Path) -> None:
    expected = formats.write_gemma_scope(tmp_path / "mine" / "params.npz")
    with pytest.raises(DictionaryError, match=r"does not say what it was trained on, .*; say it with hook_in="):
        load_dictionary(tmp_path / "mine")
    ours = one(tmp_path / "mine", hook_in="blocks.1.hook_resid_post")
    check(ours, expected)
    assert one(f"gemma-scope:{tmp_path / 'mine'}", hook_in="h").hook_in == "h"


def test_single_precision_is_computed_with_in_single_precision(tmp_path: Path) -> None:
    for dtype in ("float32", "float16"):
        expected = formats.write_gemma_scope(tmp_path / dtype / "params.npz", dtype=dtype)
        ours = one(tmp_path / dtype, hook_in="h")
        assert ours.dtype == torch.float32
        x = rows().float()
        assert (ours.encode(x).features.to_dense() - expected.encode(x.double())).abs().max() < 0.02


def test_of_an_archive_only_the_rows_that_are_wanted_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    formats.write_gemma_scope(tmp_path / "a" / "params.npz")
    ours = one(tmp_path / "a", hook_in="h")
    taken: list[tuple[int, ...]] = []
    whole = ArchiveWeights._tensor
    monkeypatch.setattr(
        ArchiveWeights, "_tensor", lambda self, name, array: taken.append(array.shape) or whole(self, name, array)
    )
    assert ours.decoder_rows(torch.tensor([3, 8])).shape == (2, D)
    assert taken == [(2, D)]
    with np.load(tmp_path / "a" / "params.npz") as theirs:
        assert np.array_equal(ours.decoder_rows(torch.tensor([3])).numpy()[0], theirs["W_dec"][3])


def test_it_can_be_saved_as_saelens_keeps_dictionaries(tmp_path: Path) -> None:
    expected = formats.write_gemma_scope(tmp_path / "a" / "params.npz")
    saved = save_folder(one(tmp_path / "a", hook_in="h"), tmp_path / "b")
    check(read_folder(saved), expected)


# dictionary_learning


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning(kind: str, tmp_path: Path) -> None:
    config = {"layer": 3, "lm_name": "org/m", "k": formats.K, "submodule_name": "mlp_out_layer_3"}
    expected = formats.write_dictionary_learning(tmp_path / "trainer_0", kind, config=config)
    ours = one(tmp_path / "trainer_0")
    assert (ours.hook_in, ours.metadata) == ("blocks.3.hook_mlp_out", {"model_name": "org/m"})
    check(ours, expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learnings_own_files(kind: str, tmp_path: Path) -> None:
    """Saved by the package itself, in single precision."""
    pytest.importorskip("dictionary_learning", reason="dictionary_learning is not installed here")
    where = {
        "AutoEncoderTopK": "top_k",
        "BatchTopKSAE": "batch_top_k",
        "MatryoshkaBatchTopKSAE": "matryoshka_batch_top_k",
    }
    module = f"trainers.{where[kind]}" if kind in where else "dictionary"
    made = getattr(importlib.import_module(f"dictionary_learning.{module}"), kind)
    options: dict[str, Any] = {"k": formats.K} if kind in where else {}
    if kind.startswith("Matryoshka"):
        options["group_sizes"] = [10, M - 10]
    theirs = made(D, M, **options)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(normal(*parameter.shape, seed=len(name), dtype=torch.float32))
            if "threshold" in name:
                parameter.abs_()
        if kind in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
            theirs.threshold.fill_(0.3)
    torch.save(theirs.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": kind, "layer": 1, "k": formats.K, "submodule_name": "resid_post_layer_1"}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer}))
    ours, x = one(tmp_path), rows().float()
    with torch.no_grad():
        assert (ours.encode(x).features.to_dense() - theirs.encode(x)).abs().max() < 1e-5
        assert (ours.decode(ours.encode(x)) - theirs(x)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder"])
def test_an_old_folder_without_a_configuration_is_known_by_its_tensors(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "dictionaries" / "pythia-70m-deduped" / "attn_out_layer4" / "10_32768"
    expected = formats.write_dictionary_learning(folder, kind)
    ours = one(folder)
    assert ours.hook_in == "blocks.4.hook_attn_out"
    check(ours, expected)


def test_what_dictionary_learning_does_not_say_is_asked_for(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path / "a", "AutoEncoder")
    with pytest.raises(DictionaryError, match=r"does not say what it was trained on: .* say it with hook_in="):
        load_dictionary(tmp_path / "a")
    assert one(tmp_path / "a", hook_in="h").hook_in == "h"
    formats.write_dictionary_learning(tmp_path / "b", "AutoEncoderTopK")
    with pytest.raises(DictionaryError, match=r"two kinds; expected config\.json beside it"):
        load_dictionary(tmp_path / "b", hook_in="h")
    formats.write_dictionary_learning(tmp_path / "c", "AutoEncoder", config={"dict_class": "Strange"})
    with pytest.raises(DictionaryError, match=r"of the class 'Strange', which is not supported; expected one of AutoE"):
        load_dictionary(tmp_path / "c", hook_in="h")
    formats.write_dictionary_learning(tmp_path / "d", "AutoEncoder", config={"layer": 2})
    assert one(tmp_path / "d").hook_in == "blocks.2.hook_resid_post"


def test_releases_of_feature_circuits_are_read_as_a_whole_in_the_order_of_the_model(tmp_path: Path) -> None:
    for name in ("embed", "resid_out_layer0", "mlp_out_layer0", "attn_out_layer0", "resid_out_layer1"):
        formats.write_dictionary_learning(tmp_path / name / "10_32768", "AutoEncoder")
    assert {d.site for d in load_dictionary(tmp_path)} == {
        "hook_embed", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    }  # fmt: skip


# sparsify


@pytest.mark.parametrize(
    ("folder", "cfg", "reads", "writes"),
    [
        ("layers.3", {}, "blocks.3.hook_resid_post", None),
        ("layers.3.mlp", {}, "blocks.3.hook_mlp_out", None),
        ("gpt_neox.layers.3.attention", {}, "blocks.3.hook_attn_out", None),
        ("h.2.mlp", {"transcode": True}, "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"),
        ("layers.2.mlp", {"transcode": True, "skip_connection": True}, "blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out"),
        ("embed_tokens", {}, "hook_embed", None),
    ],
)
def test_sparsify(folder: str, cfg: dict[str, Any], reads: str, writes: str | None, tmp_path: Path) -> None:
    expected = formats.write_sparsify(tmp_path / folder, **cfg)
    ours = one(tmp_path / folder)
    assert (ours.hook_in, ours.hook_outs) == (reads, (writes or reads,))
    check(ours, expected)


@pytest.mark.parametrize("options", [{}, {"transcode": True}, {"transcode": True, "skip_connection": True}])
def test_sparsifys_own_files(options: dict[str, Any], tmp_path: Path) -> None:
    sparsify = pytest.importorskip("sparsify", reason="sparsify is not installed here")
    config = sparsify.SparseCoderConfig(num_latents=M, k=formats.K, **options)
    theirs = sparsify.SparseCoder(D, config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(normal(*parameter.shape, seed=len(name), dtype=torch.float32))
    theirs.save_to_disk(tmp_path / "layers.1.mlp")
    ours, x = one(tmp_path / "layers.1.mlp"), rows().float()
    with torch.no_grad():
        assert (ours.decode(ours.encode(x), x) - theirs(x, x).sae_out).abs().max() < 1e-5


def test_what_sparsify_may_ask_for_and_is_not_supported(tmp_path: Path) -> None:
    formats.write_sparsify(tmp_path / "layers.1", activation="groupmax")
    with pytest.raises(DictionaryError, match="activation 'groupmax', which is not supported; expected topk"):
        load_dictionary(tmp_path / "layers.1")
    formats.write_sparsify(tmp_path / "layers.2", k=0)
    with pytest.raises(DictionaryError, match="has k 0; expected how many features"):
        load_dictionary(tmp_path / "layers.2")
    formats.write_sparsify(tmp_path / "mine")
    with pytest.raises(DictionaryError, match=r"is not named after a module \(layers\.3, layers\.3\.mlp\)"):
        load_dictionary(tmp_path / "mine")


def test_old_signed_dictionaries_keep_the_largest_of_either_sign(tmp_path: Path) -> None:
    formats.write_sparsify(tmp_path / "layers.0", signed=True)
    ours, x = one(tmp_path / "layers.0"), rows()
    stored = load_file(tmp_path / "layers.0" / "sae.safetensors")
    u = (x - stored["b_dec"]) @ stored["encoder.weight"].T + stored["encoder.bias"]
    kept = u.abs().topk(formats.K).indices
    assert torch.allclose(ours.encode(x).features.to_dense(), torch.zeros_like(u).scatter(-1, kept, u.gather(-1, kept)))


# circuit-tracer


@pytest.mark.parametrize("threshold", ["", "activation_function.threshold", "threshold"])
@pytest.mark.parametrize("has_skip", [False, True])
def test_circuit_tracers_sets(threshold: str, has_skip: bool, tmp_path: Path) -> None:
    expected = formats.write_transcoder_set(tmp_path / "set", threshold=threshold, has_skip=has_skip)
    found = load_dictionary(tmp_path / "set")
    assert [d.hook_in for d in found] == [f"blocks.{layer}.hook_resid_mid" for layer in range(3)]
    assert [d.site for d in found] == [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    assert found[1].source == str(tmp_path / "set" / "layer_1.safetensors")
    for ours, of_layer in zip(found, expected, strict=True):
        check(ours, of_layer)


def test_layers_are_in_their_order_and_all_there(tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path / "set", n_layers=11)
    found = load_dictionary(tmp_path / "set")
    assert [d.site for d in found] == [f"blocks.{layer}.hook_mlp_out" for layer in range(11)]
    (tmp_path / "set" / "layer_4.safetensors").unlink()
    with pytest.raises(
        DictionaryError, match=r"has the layers \[0, 1, 2, 3, 5, .*; expected layer_0\.safetensors and all"
    ):
        load_dictionary(tmp_path / "set")


def test_a_threshold_that_all_features_share(tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path / "set", n_layers=1)
    path = tmp_path / "set" / "layer_0.safetensors"
    state = load_file(path)
    save_file(state | {"activation_function.threshold": torch.tensor(0.4, dtype=torch.float64)}, path)
    ours, x = one(tmp_path / "set"), rows()
    u = x @ state["W_enc"].T + state["b_enc"]
    assert torch.allclose(ours.encode(x).features.to_dense(), formats.jump(u, torch.tensor(0.4)))


@pytest.mark.parametrize("has_threshold", [False, True])
def test_cross_layer_transcoders(has_threshold: bool, tmp_path: Path) -> None:
    state = formats.write_cross_layer(tmp_path / "clt", has_threshold=has_threshold)
    found, x = load_dictionary(tmp_path / "clt"), rows()
    assert [d.hook_in for d in found] == [f"blocks.{layer}.hook_resid_mid" for layer in range(3)]
    assert found[1].hook_outs == ("blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out")
    assert found[1].is_cross_layer and len({d.fingerprint for d in found}) == 3
    outputs: list[Tensor] = [state[f"b_dec_{layer}"].expand(len(x), D) for layer in range(3)]
    for layer, ours in enumerate(found):
        u = x @ state[f"W_enc_{layer}"].T + state[f"b_enc_{layer}"]
        features = formats.jump(u, state[f"threshold_{layer}"]) if has_threshold else torch.relu(u)
        assert (ours.encode(x).features.to_dense() - features).abs().max() < 1e-12
        for out in range(3 - layer):
            outputs[layer + out] = outputs[layer + out] + features @ state[f"W_dec_{layer}"][:, out]
    for out in range(3):
        total = sum(found[i].decode(found[i].encode(x), x, out - i) for i in range(out + 1))
        assert (total - outputs[out]).abs().max() < 1e-11
    assert found[0].decoder_rows(torch.tensor([2]), 2).equal(state["W_dec_0"][2:3, 2])


def test_circuit_tracers_own_files(tmp_path: Path) -> None:
    pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
    cross = importlib.import_module("circuit_tracer.transcoder.cross_layer_transcoder")
    theirs = cross.CrossLayerTranscoder(
        3, M, D, "jump_relu", False, False, False, device=torch.device("cpu"), dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.copy_(normal(*parameter.shape, seed=len(name), dtype=torch.float32))
            if "threshold" in name:
                parameter.abs_()
    theirs.to_safetensors(str(tmp_path / "clt"))
    formats.write_yaml(tmp_path / "clt", {"model_kind": "cross_layer_transcoder"})
    found, x = load_dictionary(tmp_path / "clt"), rows(4).float()
    with torch.no_grad():
        expected = theirs.decode(theirs.encode(x.expand(3, -1, -1)).to_sparse())
    for out in range(3):
        total = sum(found[i].decode(found[i].encode(x), x, out - i) for i in range(out + 1))
        assert (total - expected[out]).abs().max() < 1e-4


def test_circuit_tracers_own_sets(tmp_path: Path) -> None:
    pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
    single = importlib.import_module("circuit_tracer.transcoder.single_layer_transcoder")
    layers = {n: single.SingleLayerTranscoder(D, M, torch.relu, n, True, device=torch.device("cpu"), dtype=torch.float32)
              for n in range(2)}  # fmt: skip
    with torch.no_grad():
        for n, layer in layers.items():
            for parameter in layer.parameters():
                parameter.copy_(normal(*parameter.shape, seed=n, dtype=torch.float32))
    single.TranscoderSet(layers, "mlp.hook_in", "hook_mlp_out").to_safetensors(str(tmp_path / "set"))
    formats.write_yaml(tmp_path / "set", {"feature_input_hook": "mlp.hook_in"})
    for ours, theirs in zip(load_dictionary(tmp_path / "set"), layers.values(), strict=True):
        x = rows().float()
        assert ours.hook_in == f"blocks.{theirs.layer_idx}.mlp.hook_in"
        with torch.no_grad():
            assert (ours.decode(ours.encode(x), x) - theirs(x)).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_kind": "lorsa"}, "is of the kind 'lorsa'; expected model_kind: transcoder_set"),
        ({"feature_input_hook": "a/../b"}, r"names 'a/\.\./b' as a hook point"),
        ({"feature_output_hook": 7}, "names 7 as a hook point"),
        ({"transcoders": ["../../secret.safetensors"]}, "a file outside of its folder, which is not read"),
        ({"transcoders": ["/etc/shadow.npz"]}, "a file outside of its folder, which is not read"),
        ({"transcoders": ["layer_0.pt"]}, r"lists 'layer_0\.pt' as a transcoder; expected a \.safetensors or \.npz"),
        ({"transcoders": {"a": 1}}, "lists .* as transcoders; expected a file for each layer"),
        ({"transcoders": []}, "lists .* as transcoders; expected a file for each layer"),
        ({"model_kind": "cross_layer_transcoder", "transcoders": ["a"]}, "lists 'a' as a transcoder"),
        ({"model_kind": "cross_layer_transcoder"}, r"has encoders for the layers \[\]"),
    ],
)
def test_a_sets_configuration_is_not_trusted(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path / "set", n_layers=1, **config)
    (tmp_path / "secret.safetensors").write_bytes((tmp_path / "set" / "layer_0.safetensors").read_bytes())
    with pytest.raises(DictionaryError, match=said) as caught:
        load_dictionary(tmp_path / "set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "[" * 400,
        "a: b: c",
        "- 1\n",
        "!!python/object/apply:os.system ['true']",
        "a: \x00",
        "",
    ],
)
def test_yaml_that_is_a_bomb_or_none_is_said_so(text: str, tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path / "set", n_layers=1)
    (tmp_path / "set" / "config.yaml").write_text(text)
    with pytest.raises(DictionaryError, match=r"config\.yaml (is not YAML|holds a)") as caught:
        load_dictionary(tmp_path / "set")
    assert "\n" not in str(caught.value)


# transcoder_circuits


def test_transcoder_circuits_without_its_classes(tmp_path: Path) -> None:
    paths = [tmp_path / f"final_sparse_autoencoder_gpt2-small_blocks.{n}.ln2.hook_normalized_24576.pt" for n in (10, 2)]
    for path, layer in zip(paths, (10, 2), strict=True):
        expected = formats.write_transcoder_circuits(path, layer)
    (tmp_path / "final_sparse_autoencoder_gpt2-small_log_feature_sparsity.pt").write_bytes(b"")
    found = load_dictionary(tmp_path)
    assert [d.hook_in for d in found] == ["blocks.2.ln2.hook_normalized", "blocks.10.ln2.hook_normalized"]
    for ours in (*found, one(paths[0])):
        check(ours, expected)
        assert ours.metadata["model_from_pretrained_kwargs"] == {"center_writing_weights": True}
    assert one(paths[1]).site == "blocks.2.hook_mlp_out"


# Strangers' files


def _formats_with_pickles(tmp_path: Path) -> list[tuple[Path, Any]]:
    gpt2 = tmp_path / "t" / "final_sparse_autoencoder_x.pt"
    return [
        (tmp_path / "p", lambda mark: formats.malicious_torch_file(tmp_path / "p" / "ae.pt", mark)),
        (tmp_path / "q", lambda mark: formats.plain_pickle(tmp_path / "q" / "ae.pt", mark)),
        (gpt2.parent, lambda mark: formats.malicious_torch_file(gpt2, mark)),
        (tmp_path / "n", lambda mark: formats.malicious_npz(tmp_path / "n" / "params.npz", mark)),
    ]


@pytest.mark.parametrize("case", range(4))
def test_no_pickle_is_ever_run(case: int, tmp_path: Path) -> None:
    folder, write = _formats_with_pickles(tmp_path)[case]
    mark = tmp_path / "it-ran"
    write(mark)
    with pytest.raises(DictionaryError, match=r"nothing of it was run|not loaded|holds") as caught:
        load_dictionary(folder, hook_in="h")
    assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_stand_in_has_no_code_to_call(tmp_path: Path) -> None:
    """A pickle that uses the one allowed name to call something gets nowhere either."""
    path = tmp_path / "final_sparse_autoencoder_x.pt"
    formats.write_transcoder_circuits(path)
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(n for n in parts if n.endswith("data.pkl"))
    parts[name] = b"cposix\nsystem\n(S'touch " + str(tmp_path / "it-ran").encode() + b"'\ntR."
    with zipfile.ZipFile(path, "w") as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    with pytest.raises(DictionaryError):
        load_dictionary(path)
    assert not (tmp_path / "it-ran").exists()


def test_an_archive_that_is_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    formats.bomb_npz(tmp_path / "a" / "params.npz")
    assert (tmp_path / "a" / "params.npz").stat().st_size < 1 << 20
    with pytest.raises(DictionaryError, match=r"would unpack from \d+ to \d+ bytes, which no weights do"):
        load_dictionary(tmp_path / "a", hook_in="h")


def test_a_torch_file_with_compressed_parts_is_not_unpacked(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path / "a", "AutoEncoder")
    path = tmp_path / "a" / "ae.pt"
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(DictionaryError, match="not a file that torch wrote: parts of it are compressed or overlap"):
        load_dictionary(path, hook_in="h")


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path / "a", "AutoEncoder")
    path = tmp_path / "a" / "ae.pt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"bias": torch.zeros(1).expand(1 << 40)}, path)
    with pytest.raises(DictionaryError, match=r"bias in .* claims \d+ numbers, more than the file holds"):
        load_dictionary(path, hook_in="h")


def test_what_zipfile_itself_stumbles_over_is_said_too(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path / "a", "AutoEncoder")
    path = tmp_path / "a" / "ae.pt"
    content = bytearray(path.read_bytes())
    locator = content.rindex(b"PK\x06\x07")  # of the zip64 directory
    content[locator + 16 : locator + 20] = (7).to_bytes(4, "little")  # disks in all
    path.write_bytes(content)
    with pytest.raises(DictionaryError, match="is not a readable torch file: zipfiles that span multiple disks"):
        load_dictionary(path, hook_in="h")


def test_a_file_that_changed_under_a_dictionary_is_said_so(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path / "a", "AutoEncoder")
    ours = one(tmp_path / "a", hook_in="h")
    ours.encode(rows())
    ours.release()
    torch.save({"encoder.weight": normal(M, D)}, tmp_path / "a" / "ae.pt")
    with pytest.raises(DictionaryError, match=r"ae\.pt has changed since it was opened; open the dictionary again"):
        ours.encode(rows())


@pytest.mark.parametrize("cut", [0, 10, 300, -40])
@pytest.mark.parametrize("form", ["npz", "ae", "layer", "sae"])
def test_truncated_files_are_said_so(form: str, cut: int, tmp_path: Path) -> None:
    formats.write_gemma_scope(tmp_path / "npz" / "params.npz")
    formats.write_dictionary_learning(tmp_path / "ae", "AutoEncoder")
    formats.write_transcoder_set(tmp_path / "layer", n_layers=1)
    formats.write_sparsify(tmp_path / "sae" / "layers.0")
    path = {"npz": "params.npz", "ae": "ae.pt", "layer": "layer_0.safetensors", "sae": "layers.0/sae.safetensors"}[form]
    whole = (tmp_path / form / path).read_bytes()
    (tmp_path / form / path).write_bytes(whole[:cut])
    with pytest.raises(DictionaryError) as caught:
        load_dictionary(tmp_path / form, **({} if form == "layer" else {"hook_in": "h"}))
    assert "\n" not in str(caught.value)


def test_not_a_number_is_said_by_file_and_tensor(tmp_path: Path) -> None:
    params = {
        "W_enc": normal(D, M),
        "W_dec": normal(M, D),
        "b_enc": normal(M),
        "b_dec": normal(D),
        "threshold": normal(M),
    }
    params["W_enc"][2, 3] = float("nan")
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "params.npz", **{n: v.numpy() for n, v in params.items()})
    with pytest.raises(DictionaryError, match=r"W_enc in .*params\.npz holds NaN or infinity"):
        one(tmp_path / "a", hook_in="h").encode(rows())


def test_other_arrays_are_not_weights(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    np.savez(tmp_path / "a" / "params.npz", W_enc=np.arange(4))
    with pytest.raises(DictionaryError, match=r"W_enc\.npy in .* holds int64; expected floating-point numbers"):
        load_dictionary(tmp_path / "a", hook_in="h")
    np.savez(tmp_path / "a" / "params.npz", W_enc=np.zeros((2, 2)))
    with pytest.raises(
        DictionaryError, match="lacks W_dec, b_enc, b_dec, threshold, which a dictionary of Gemma Scope"
    ):
        load_dictionary(tmp_path / "a", hook_in="h")


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("resid_post_layer_12", "blocks.12.hook_resid_post"), ("resid_pre_layer_2", "blocks.2.hook_resid_pre"),
        ("residual_mid_layer_2", "blocks.2.hook_resid_mid"), ("attn_layer_5", "blocks.5.hook_attn_out"),
        ("attention_out_layer5", "blocks.5.hook_attn_out"), ("model.layers.9.self_attn", "blocks.9.hook_attn_out"),
        ("transformer.h.11", "blocks.11.hook_resid_post"), ("10_32768", None), ("embedding", "hook_embed"), ("", None),
    ],
)  # fmt: skip
def test_hook_points_from_other_tools_names(name: str, hook: str | None) -> None:
    assert hook_of(name) == hook
