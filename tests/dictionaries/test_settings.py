"""What a file says that changes numbers is read, refused or named: never passed over. A case a format."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.marks import MARKS, marked
from circuitsae.dictionaries.settings import name_unknown
from circuitsae.errors import DictionaryError
from tests.dictionaries import formats
from tests.dictionaries.formats import D, Expected, K, M, jump, normal, rows, top_k
from tests.dictionaries.test_loaders_formats import check, one


def saelens(folder: Path, **more: Any) -> Dictionary:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": normal(D, M), "W_dec": normal(M, D), "b_enc": normal(M), "b_dec": normal(D)}
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {"architecture": "standard", "d_in": D, "d_sae": M, "hook_name": "blocks.0.hook_resid_pre", "lr": 1e-3}
    (folder / "cfg.json").write_text(json.dumps(cfg | more))
    return one(folder)


@pytest.mark.parametrize("has_skip", [False, True])
def test_a_set_of_top_k_transcoders_keeps_k_features(has_skip: bool, tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path, has_skip=has_skip, activation="topk", k=K)
    for layer, found in enumerate(load_dictionary(tmp_path)):
        state = {name: tensor.double() for name, tensor in load_file(tmp_path / f"layer_{layer}.safetensors").items()}
        skip = state.get("W_skip", torch.zeros(D, D, dtype=torch.float64))
        check(
            found,
            Expected(
                lambda x, s=state: top_k(x @ s["W_enc"].T + s["b_enc"], K),
                lambda f, x, s=state, w=skip: f @ s["W_dec"] + s["b_dec"] + x @ w.T,
            ),
        )
        assert len(found.encode(rows()).features.values) <= K * len(rows())


def test_k_is_given_where_a_set_does_not_say_it(tmp_path: Path) -> None:
    formats.write_transcoder_set(tmp_path, activation="topk")
    with pytest.raises(DictionaryError, match=r"has k None; .* say it with k="):
        load_dictionary(tmp_path)
    assert [found.config.k for found in load_dictionary(tmp_path, k=2)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("config", "threshold", "said"),
    [
        ({"activation": "gelu"}, "", "the activation 'gelu', which is not known"),
        ({"activation": "relu", "k": 3}, "", "gives k and the activation 'relu'"),
        ({"k": 3}, "", "gives k and the activation None"),
        ({"activation": "jumprelu"}, "", "has no threshold, and the set says jumprelu"),
        ({"activation": "topk", "k": 3}, "threshold", "has a threshold, and the set says topk"),
        ({"activation": "topk", "k": 0}, "", "has k 0"),
    ],
)
def test_a_sets_activation_is_what_its_tensors_say(
    config: dict[str, Any], threshold: str, said: str, tmp_path: Path
) -> None:
    formats.write_transcoder_set(tmp_path, threshold=threshold, **config)
    with pytest.raises(DictionaryError, match=said):
        load_dictionary(tmp_path)


@pytest.mark.parametrize(
    "form",
    ["saelens-folder", "sparsify", "dictionary-learning", "circuit-tracer", "transcoder-circuits", "llama-scope"],
)
def test_every_format_names_what_it_does_not_know(form: str, tmp_path: Path) -> None:
    def write(**more: Any) -> Any:
        if form == "saelens-folder":
            return saelens(tmp_path / "a", **more)
        if form == "sparsify":
            formats.write_sparsify(tmp_path / "layers.3", **more)
        elif form == "dictionary-learning":
            config = {"layer": 3, "lm_name": "org/model", **more}
            formats.write_dictionary_learning(tmp_path / "resid_post_layer_3", "AutoEncoder", config=config)
        elif form == "circuit-tracer":
            formats.write_transcoder_set(tmp_path, **more)
        elif form == "llama-scope":
            write_llama_scope(tmp_path, **more)
        else:
            formats.write_transcoder_circuits(tmp_path / "final_sparse_autoencoder_x.pt", **more)
        return load_dictionary(tmp_path)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write()
    if form != "transcoder-circuits":
        with pytest.warns(UserWarning, match=r"says 'wholly_new', which is not known here"):
            write(wholly_new=3)


def test_a_name_is_said_on_one_line_however_it_is_written() -> None:
    with pytest.warns(
        UserWarning, match=r"^cfg\.json says '\\n', 'a{59}, 'b', .* and more, which is not known here"
    ) as caught:
        name_unknown(["\n", "a" * 10**6, *("b" * n for n in range(1, 8))], "activation_fn_kwargs", "cfg.json")
    assert len(str(caught[0].message)) < 600


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"activation_fn": "tanh-relu"}, "activation_fn 'tanh-relu'"),
        ({"hook_head_index": 3}, "one attention head"),
    ],
)
def test_settings_of_saelens_that_are_not_computed_are_refused(cfg: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=said):
        saelens(tmp_path, **cfg)


def test_what_a_module_reads_is_not_taken_for_what_it_writes(tmp_path: Path) -> None:
    formats.write_dictionary_learning(tmp_path, "AutoEncoder", config={"submodule_name": "mlp_out_layer_3"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"buffer": {"io": "in"}}))
    with pytest.raises(DictionaryError, match=r"io 'in' .* hook_in="):
        load_dictionary(tmp_path)
    assert one(tmp_path, hook_in="blocks.3.mlp.hook_in").hook_in == "blocks.3.mlp.hook_in"


def test_a_skip_connection_is_there_or_not(tmp_path: Path) -> None:
    formats.write_sparsify(tmp_path / "layers.3.mlp", transcode=True)
    config = json.loads((tmp_path / "layers.3.mlp/cfg.json").read_text())
    (tmp_path / "layers.3.mlp/cfg.json").write_text(json.dumps(config | {"skip_connection": True}))
    with pytest.raises(DictionaryError, match="skip_connection True, and the weights no W_skip"):
        load_dictionary(tmp_path)


def test_what_torch_compile_puts_before_names_is_taken_off(tmp_path: Path) -> None:
    expected = formats.write_dictionary_learning(tmp_path / "a/resid_post_layer_3", "AutoEncoder")
    path = tmp_path / "a/resid_post_layer_3/ae.pt"
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in torch.load(path).items()}, path)
    check(one(tmp_path / "a"), expected)
    features = saelens(tmp_path / "b").encode(rows()).features.to_dense()
    weights = tmp_path / "b/sae_weights.safetensors"
    save_file({f"_orig_mod.{name}": tensor for name, tensor in load_file(weights).items()}, weights)
    assert (one(tmp_path / "b").encode(rows()).features.to_dense() == features).all()


# The registry's marks


@pytest.mark.parametrize("repository", MARKS)
@pytest.mark.parametrize("nested", [False, True])
def test_what_the_registry_says_of_a_release_is_known_by_its_place(repository: str, nested: bool) -> None:
    cfg: dict[str, Any] = {"metadata": {"model_from_pretrained_kwargs": None}} if nested else {"d_in": 3}
    for source in (f"hf://{repository}/a@b", f"/c/models--{repository.replace('/', '--')}/snapshots/1/a"):
        found = marked(cfg, source)
        inside = found["metadata"] if nested else found
        for name, value in MARKS[repository].items():
            assert (inside if name == "model_from_pretrained_kwargs" else found)[name] == value
    assert marked(cfg, "hf://someone/else/a") == cfg


def test_marks_are_the_registrys(tmp_path: Path) -> None:
    directory = pytest.importorskip("sae_lens.loading.pretrained_saes_directory", reason="sae_lens is not installed")
    releases = directory.get_pretrained_saes_directory().values()
    for release in releases:
        said = dict(getattr(release, "config_overrides", None) or {})
        said.pop("dataset_path", None)
        if said and "temporal" not in release.repo_id:
            assert MARKS[release.repo_id] == said


def test_a_factor_that_is_the_registrys_alone_is_said(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match="open it as gpt2-small-mlp-tm/ID"):
        marked({"normalize_activations": True}, "hf://tommmcgrath/gpt2-small-mlp-out-saes/x@1")


# Releases that are one file, or have a form of their own


def write_llama_scope(folder: Path, **more: Any) -> Expected:
    w_enc, w_dec, b_enc, b_dec = normal(M, D), normal(D, M), normal(M), normal(D)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    names = {"encoder.weight": w_enc, "decoder.weight": w_dec, "encoder.bias": b_enc, "decoder.bias": b_dec}
    save_file(names, folder / "checkpoints/final.safetensors")
    hook = "blocks.5.hook_resid_post"
    said = {
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.4,
        "hook_point_in": hook,
        "hook_point_out": hook,
        "d_model": D,
    }
    norms = {"dataset_average_activation_norm": {"in": 5.0, "out": 5.0}, "norm_activation": "dataset-wise"}
    (folder / "hyperparams.json").write_text(json.dumps(said | norms | more))
    scale = D**0.5 / 5.0
    threshold = torch.tensor(0.4 * scale, dtype=torch.float64)
    return Expected(
        lambda x: jump((x * scale) @ w_enc.T + b_enc, threshold), lambda f, x: (f @ w_dec.T + b_dec) / scale
    )


def test_llama_scope(tmp_path: Path) -> None:
    expected = write_llama_scope(tmp_path / "Llama3_1-8B-Base-L5R-8x")
    found = one(tmp_path)
    check(found, expected)
    assert found.hook_in == "blocks.5.hook_resid_post" and not found.config.apply_b_dec_to_input
    for wrong in ({"jump_relu_threshold": None}, {"act_fn": "topk"}, {"hook_point_out": "blocks.5.hook_mlp_out"}):
        write_llama_scope(tmp_path / "Llama3_1-8B-Base-L5R-8x", **wrong)
        with pytest.raises(DictionaryError):
            load_dictionary(tmp_path)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("Llama-3.1-8B-Instruct-SAE-l19.pth", "er_linear."), ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", "er.")],
)
def test_llama_saes_of_one_file(name: str, prefix: str, tmp_path: Path) -> None:
    e, d, b_enc, b_dec = normal(M, D), normal(D, M), normal(M), normal(D)
    state = {
        f"encod{prefix}weight": e,
        f"encod{prefix}bias": b_enc,
        f"decod{prefix}weight": d,
        f"decod{prefix}bias": b_dec,
    }
    torch.save(state, tmp_path / name)
    found = one(tmp_path / name)
    check(found, Expected(lambda x: torch.relu(x @ e.T + b_enc), lambda f, x: f @ d.T + b_dec))
    assert found.hook_in == "blocks.19.hook_resid_post"


def test_qwen_scope(tmp_path: Path) -> None:
    e, d, b_enc, b_dec = normal(M, D), normal(D, M), normal(M), normal(D)
    for folder in ("SAE-Res-Qwen3-1.7B-Base-W32K-L0_3", "mine"):
        (tmp_path / folder).mkdir()
        for layer in (10, 2):
            state = {"W_enc": e, "W_dec": d, "b_enc": b_enc, "b_dec": b_dec}
            torch.save(state, tmp_path / folder / f"layer{layer}.sae.pt")
    opened = load_dictionary(tmp_path / "SAE-Res-Qwen3-1.7B-Base-W32K-L0_3")
    assert [found.hook_in for found in opened] == ["blocks.2.hook_resid_post", "blocks.10.hook_resid_post"]
    check(opened[0], Expected(lambda x: top_k(x @ e.T + b_enc, 3), lambda f, x: f @ d.T + b_dec))
    with pytest.raises(DictionaryError, match="say it with k="):
        load_dictionary(tmp_path / "mine")
    assert load_dictionary(tmp_path / "mine", k=2)[0].config.k == 2


def test_attention_saes_of_gpt2(tmp_path: Path) -> None:
    state = {"W_enc": normal(D, M), "W_dec": normal(M, D), "b_enc": normal(M), "b_dec": normal(D)}
    torch.save(state, tmp_path / "gpt2-small_L0_Hcat_z.pt")
    (tmp_path / "gpt2-small_L0_Hcat_z_cfg.json").write_text(json.dumps({"act_name": "blocks.0.attn.hook_z"}))
    found = one(tmp_path)
    check(
        found,
        Expected(
            lambda x: torch.relu((x - state["b_dec"]) @ state["W_enc"] + state["b_enc"]),
            lambda f, x: f @ state["W_dec"] + state["b_dec"],
        ),
    )
    assert found.hook_in == "blocks.0.attn.hook_z" and found.config.reshape_activations == "hook_z"


def test_gemma_scope_2s_own_settings_are_read(tmp_path: Path) -> None:
    expected = formats.write_gemma_scope_3(tmp_path / "params.safetensors", has_skip=False)
    said = {"architecture": "jump_relu", "model_name": "gemma-v3-270m-pt", "width": 16384, "l0": 10, "type": "sae"}
    for module, hook in [
        ("output", "hook_resid_post"),
        ("self_attn.o_proj.input", "attn.hook_z"),
        ("post_feedforward_layernorm.output", "hook_mlp_out"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(said | {"hf_hook_point_in": f"model.layers.7.{module}"}))
        found = one(tmp_path)
        assert found.hook_in == f"blocks.7.{hook}"
    check(found, expected)
    reads = {"hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output"}
    writes = {"hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output"}
    (tmp_path / "config.json").write_text(json.dumps(said | reads | writes))
    assert (
        one(tmp_path).config.architecture == "jumprelu_transcoder" and one(tmp_path).hook_in == "blocks.7.mlp.hook_in"
    )
    for wrong, sentence in [
        ({"architecture": "relu"}, "expected jump_relu"),
        ({"affine_connection": True}, "no affine"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(said | reads | writes | wrong))
        with pytest.raises(DictionaryError, match=sentence):
            one(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(said | reads | writes | {"wholly_new": 1}))
    with pytest.warns(UserWarning, match="wholly_new"):
        one(tmp_path)


@pytest.mark.parametrize("has_skip", [False, True])
def test_gemma_scope_2s_cross_layer_transcoders_by_their_configuration(has_skip: bool, tmp_path: Path) -> None:
    n_layers, states = 3, []
    for layer in range(n_layers):
        state = {
            "w_enc": normal(D, M, seed=layer), "w_dec": normal(M, n_layers, D, seed=layer), "b_enc": normal(M, seed=layer),
            "b_dec": normal(D, seed=layer), "threshold": normal(M, seed=layer).abs() / 2,
        }  # fmt: skip
        if has_skip:
            state["affine_skip_connection"] = normal(D, D, seed=layer)
        save_file(state, tmp_path / f"layer_{layer}_width_16k.safetensors")
        states.append(state)
    listed = [f"layer_{layer}_width_16k.safetensors" for layer in range(n_layers)]
    formats.write_yaml(tmp_path, {"model_kind": "cross_layer_transcoder", "transcoders": listed})
    opened = load_dictionary(tmp_path)
    for layer, found in enumerate(opened):
        state = states[layer]
        x = rows()
        encoding = found.encode(x)
        features = jump(x @ state["w_enc"] + state["b_enc"], state["threshold"])
        assert (encoding.features.to_dense() - features).abs().max() < 1e-11
        for out in range(layer, n_layers):
            expected = features @ state["w_dec"][:, out]
            if out == layer:
                expected = expected + state["b_dec"] + (x @ state["affine_skip_connection"] if has_skip else 0)
            assert (found.decode(encoding, x, out - layer) - expected).abs().max() < 1e-11
    formats.write_yaml(tmp_path, {"model_kind": "cross_layer_transcoder", "transcoders": listed[:2]})
    with pytest.raises(DictionaryError, match="one part for each of the 2 layers"):
        load_dictionary(tmp_path)
