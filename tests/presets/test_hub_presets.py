"""The presets of models on the hub: names and shapes against SAELens' registry, and loaded from a loopback hub in small."""

import importlib
import importlib.util
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.hub import parse_path
from circuitsae.dictionaries.loaders.gemma_scope import _hooks
from circuitsae.dictionaries.reader import save_folder
from circuitsae.errors import FetchError, InputError
from circuitsae.model.centring import centre_writing_weights, is_centred
from circuitsae.presets import HubModel, Preset, fetch, find_preset, is_present, model_folder
from tests.dictionaries import formats
from tests.hub.fixtures import hub, settle
from tests.hub.server import Hub

__all__ = ["hub", "settle"]

NAMES = ("gpt2-small", "gpt2-small-transcoders", "pythia-70m-deduped", "gemma-2-2b", "gemma-2-2b-transcoders")

# By preset: layers, width, features of a dictionary, parameters of the model, bytes of a parameter on the hub.
SHAPES = {
    "gpt2-small": (12, 768, 24_576, 124_439_808, 4),
    "gpt2-small-transcoders": (12, 768, 24_576, 124_439_808, 4),
    "pythia-70m-deduped": (6, 512, 32_768, 70_426_624, 2),
    "gemma-2-2b": (26, 2_304, 16_384, 2_614_341_888, 4),
    "gemma-2-2b-transcoders": (26, 2_304, 16_384, 2_614_341_888, 4),
}
RELEASES = {
    "gpt2-small": ("gpt2-small-res-jb",),
    "pythia-70m-deduped": ("pythia-70m-deduped-res-sm", "pythia-70m-deduped-att-sm", "pythia-70m-deduped-mlp-sm"),
    "gemma-2-2b": ("gemma-scope-2b-pt-res-canonical",),
    "gemma-2-2b-transcoders": ("gemma-scope-2b-pt-transcoders",),
}


def registry() -> dict[str, Any]:
    """SAELens' registry, from its file."""
    found = importlib.util.find_spec("sae_lens")
    if found is None:
        pytest.skip("sae_lens is not installed here")
    import yaml

    path = Path(next(iter(found.submodule_search_locations or ()))) / "pretrained_saes.yaml"
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_preset_takes_follows_from_its_shapes(name: str) -> None:
    preset = find_preset(name)
    n_layers, width, features, parameters, itemsize = SHAPES[name]
    assert isinstance(preset.model, HubModel)
    counts = {"gpt2-small": n_layers + 1, "pythia-70m-deduped": 3 * n_layers + 1}
    assert len(preset.dictionaries) == len(set(preset.dictionaries)) == counts.get(name, n_layers)
    of_dictionary = 4 * (2 * width * features + 2 * features + 2 * width)
    expected = parameters * itemsize + len(preset.dictionaries) * of_dictionary
    assert preset.download == preset.disk == pytest.approx(expected, rel=0.03)  # GPT-2's file has masks too
    # single precision in memory, mapped dictionaries (Gemma Scope's are read by rows), and what Python and torch take
    mapped = 0 if "gemma" in name else len(preset.dictionaries) * of_dictionary
    assert preset.memory > 4 * parameters + mapped + 0.5e9
    assert preset.gated == ("gemma" in name)
    assert preset.licence and preset.origin.startswith("https://huggingface.co/")
    card = preset.card_text()
    assert name in card and "**Memory.**" in card and "**Licences.**" in card


@pytest.mark.parametrize("name", RELEASES)
def test_the_dictionaries_are_those_of_saelens_registry(name: str) -> None:
    releases = registry()
    listed = {}
    for release in RELEASES[name]:
        about = releases[release]
        listed |= {f"hf://{about['repo_id']}/{one['path']}": (release, one["id"]) for one in about["saes"]}
        assert about["model"] in str(find_preset(name).model.repository).replace("openai-community/gpt2", "gpt2-small")  # type: ignore[union-attr]
    preset = find_preset(name)
    assert set(preset.dictionaries) <= set(listed)
    ids = [listed[one][1] for one in preset.dictionaries]
    n_layers = SHAPES[name][0]
    if name == "gpt2-small":
        assert ids == [f"blocks.{n}.hook_resid_pre" for n in range(n_layers)] + ["blocks.11.hook_resid_post"]
        kwargs = releases["gpt2-small-res-jb"]["config_overrides"]["model_from_pretrained_kwargs"]
        assert kwargs == {"center_writing_weights": True} and preset.center_writing_weights
    elif name == "pythia-70m-deduped":
        parts = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")
        sites = [f"blocks.{n}.{part}" for n in range(n_layers) for part in parts]
        assert ids == ["blocks.0.hook_resid_pre", *sites]
    else:
        assert [int(re.findall(r"layer_(\d+)/width_16k/", one)[0]) for one in ids] == list(range(n_layers))


@pytest.mark.saelens
@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-2-2b-transcoders"])
def test_hook_points_and_widths_are_as_saelens_says(name: str) -> None:
    pytest.importorskip("sae_lens", reason="sae_lens is not installed here")
    loaders: Any = importlib.import_module("sae_lens.loading.pretrained_sae_loaders")
    says = {
        "gemma-2-2b": loaders.get_gemma_2_config_from_hf,
        "gemma-2-2b-transcoders": loaders.get_gemma_2_transcoder_config_from_hf,
    }[name]
    _, width, features, _, _ = SHAPES[name]
    for given in find_preset(name).dictionaries:
        place = parse_path(given)
        cfg = says(place.repository, place.path, "cpu")
        hooks = _hooks(given)
        assert hooks is not None and hooks[0] == cfg["hook_name"] and hooks[1] == cfg.get("hook_name_out", hooks[0])
        assert (cfg["d_in"], cfg["d_sae"]) == (width, features)


@pytest.fixture(autouse=True)
def no_user_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITSAE_PRESETS", str(tmp_path / "presets"))


def tokenizer_files(words: str) -> dict[str, bytes]:
    """A tokenizer of whole words, with a BOS token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {"<bos>": 0, **{word: n + 1 for n, word in enumerate(dict.fromkeys(re.findall(r" ?\w+", words)))}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(__import__("tokenizers").Regex(r" ?\w+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<bos>"])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "unk_token": "<bos>"}
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}


WORDS = "The keys key to the cabinet are is When Mary and John went to the store John gave a drink to"
N_LAYERS, WIDTH, FEATURES = 2, formats.D, formats.M


def model(kind: str) -> Any:
    """A random model of a preset's architecture, two layers of six dimensions."""
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
    )

    torch.manual_seed(0)
    if "gpt2" in kind:
        config: Any = GPT2Config(
            vocab_size=32, n_positions=32, n_embd=WIDTH, n_layer=N_LAYERS, n_head=2, bos_token_id=0
        )
        made: Any = GPT2LMHeadModel(config)
        with torch.no_grad():  # an initial model's biases are 0, and its LayerNorms do nothing
            for parameter in made.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return made.eval()
    if "pythia" in kind:
        config = GPTNeoXConfig(
            vocab_size=32, hidden_size=WIDTH, num_hidden_layers=N_LAYERS, num_attention_heads=1, intermediate_size=12,
            max_position_embeddings=32, bos_token_id=0,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config).eval()
    config = Gemma2Config(
        vocab_size=32, hidden_size=WIDTH, num_hidden_layers=N_LAYERS, num_attention_heads=1, num_key_value_heads=1,
        intermediate_size=12, head_dim=6, max_position_embeddings=32, query_pre_attn_scalar=6, bos_token_id=0,
        sliding_window=16,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def served(preset: Preset, hub: Hub, folder: Path, *, gated: bool = False) -> None:
    """Puts a small model and small dictionaries on the hub under a preset's names."""
    assert isinstance(preset.model, HubModel)
    made = model(preset.name)
    made.save_pretrained(folder / "model")
    files = {p.name: p.read_bytes() for p in (folder / "model").iterdir()}
    files |= {"pytorch_model.bin": b"never wanted", "onnx/model.safetensors": b"nor this"}
    hub.add(preset.model.repository, files | tokenizer_files(WORDS), gated=gated)
    repositories: dict[str, dict[str, bytes]] = {}
    for given in preset.dictionaries:
        place = parse_path(given)
        layer = _layer(given)
        if layer >= N_LAYERS:
            continue
        path = folder / "dictionaries" / place.repository / place.path
        if preset.name == "gpt2-small-transcoders":
            formats.write_transcoder_circuits(path, layer)
        elif preset.name.startswith("gemma"):
            formats.write_gemma_scope(path / "params.npz", dtype="float32")
        else:
            hook = place.path if preset.name == "gpt2-small" else _pythia_hook(place.path)
            tensors = {n: t.float() for n, t in formats_sae().items()}
            save_folder(Dictionary.from_tensors(architecture="standard", hook_in=hook, tensors=tensors), path)
        repositories.setdefault(place.repository, {})
    for repository in repositories:
        root = folder / "dictionaries" / repository
        hub.add(repository, {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()})


def formats_sae() -> dict[str, torch.Tensor]:
    normal = formats.normal
    return {"W_enc": normal(WIDTH, FEATURES), "W_dec": normal(FEATURES, WIDTH), "b_enc": normal(FEATURES),
            "b_dec": normal(WIDTH)}  # fmt: skip


def _layer(given: str) -> int:
    found = re.search(r"layer_(\d+)/|blocks\.(\d+)|/(\d+)-(?:res|att|mlp)", given)
    return 0 if found is None else int(next(group for group in found.groups() if group is not None))


def _pythia_hook(path: str) -> str:
    layer, part, _ = path.split("-")
    if layer == "e":
        return "blocks.0.hook_resid_pre"
    return f"blocks.{layer}.{ {'res': 'hook_resid_post', 'att': 'hook_attn_out', 'mlp': 'hook_mlp_out'}[part] }"


def small(preset: Preset) -> Preset:
    """The preset with the dictionaries of the first two layers."""
    import dataclasses

    kept = tuple(given for given in preset.dictionaries if _layer(given) < N_LAYERS)
    return dataclasses.replace(preset, dictionaries=kept)


SITES = {
    "gpt2-small": ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"],
    "gpt2-small-transcoders": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"],
    "gemma-2-2b": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
    "gemma-2-2b-transcoders": ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"],
    "pythia-70m-deduped": [
        "blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out", "blocks.0.hook_resid_post",
        "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out", "blocks.1.hook_resid_post",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_fetched_loaded_and_traced(name: str, hub: Hub, tmp_path: Path) -> None:
    preset = small(find_preset(name))
    served(preset, hub, tmp_path / "made")
    assert not is_present(preset) and model_folder(preset) is None
    fetch(preset)
    assert is_present(preset)
    asked = [path for _, path, _ in hub.requests]
    assert not [path for path in asked if path.endswith((".bin", "onnx/model.safetensors"))]
    hub.close()  # the rest needs no network
    spliced = cs.load(preset)
    assert list(spliced.sites) == SITES[name]
    assert spliced.vocabulary.prepend_bos == (name != "pythia-70m-deduped")
    circuit = cs.trace(spliced, cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is")), max_nodes=16)
    assert circuit.strongest(4, kind="feature")
    about, repository = circuit.graph.graph["model"], preset.model.repository  # type: ignore[union-attr]
    assert about["name"] == repository and len(about["revision"]) == 40
    by_place = cs.load(model=model_folder(preset), dictionaries=preset.dictionaries[:1])
    assert (by_place.name, by_place.revision) == (repository, about["revision"])
    tokens = torch.tensor([spliced.vocabulary.encode("The keys to the cabinet")])
    with torch.no_grad():
        ours = spliced.model(tokens, return_type="logits")
        theirs = model(name)(tokens).logits
    assert (ours - theirs).abs().max() < 1e-4  # centred or not, the model is the same


def test_a_gated_model_says_how_to_log_in_and_is_had_by_who_is(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = small(find_preset("gemma-2-2b"))
    served(preset, hub, tmp_path / "made", gated=True)
    with pytest.raises(
        FetchError, match=r"accepted its terms: do so on https://huggingface.co/google/gemma-2-2b, then log"
    ):
        cs.load(preset)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert list(cs.load(preset).sites) == SITES["gemma-2-2b"]
    # the token goes to the hub in its header and is written nowhere
    written = [p for p in tmp_path.rglob("*") if p.is_file() and hub.token.encode() in p.read_bytes()]
    assert written == []


def test_a_model_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub.add("org/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(FetchError, match=r"hf://org/old can't be used: it has no \*\.safetensors"):
        cs.load(model="org/old", dictionaries=[Dictionary.from_tensors(
            architecture="standard", hook_in="blocks.0.hook_resid_pre", tensors=formats_sae())])  # fmt: skip
    assert not hub.gets("pytorch_model.bin")


def test_centred_writing_weights_leave_the_logits_and_centre_the_stream() -> None:
    plain, centred = model("gpt2").double(), model("gpt2").double()
    centre_writing_weights(centred)
    tokens = torch.tensor([[0, 3, 7, 2, 9]])
    with torch.no_grad():
        one = plain(tokens, output_hidden_states=True)
        other = centred(tokens, output_hidden_states=True)
    assert (one.logits - other.logits).abs().max() < 1e-12
    for before, after in zip(one.hidden_states[:-1], other.hidden_states[:-1], strict=True):  # the last is normed
        assert (before.mean(-1)).abs().max() > 0.01
        assert after.mean(-1).abs().max() < 1e-14
        assert (before - before.mean(-1, keepdim=True) - after).abs().max() < 1e-13


def test_only_gpt2_is_centred() -> None:
    with pytest.raises(InputError, match=r"centred in GPT-2 models, .* not in a GPTNeoXForCausalLM"):
        centre_writing_weights(model("pythia"))


def test_dictionaries_that_were_trained_on_a_centred_model_get_one(tmp_path: Path) -> None:
    made = model("gpt2")
    made.save_pretrained(tmp_path / "model")
    for file, content in tokenizer_files(WORDS).items():
        (tmp_path / "model" / file).write_bytes(content)
    path = tmp_path / "final_sparse_autoencoder_x.pt"
    formats.write_transcoder_circuits(path, 1)
    spliced = cs.load(model=tmp_path / "model", dictionaries=[path])
    seen: list[torch.Tensor] = []
    hook = ("blocks.1.hook_resid_pre", lambda x, hook: seen.append(x))
    with torch.no_grad():
        spliced.model.run_with_hooks(torch.tensor([[0, 3, 5]]), fwd_hooks=[hook])
    assert seen[0].mean(-1).abs().max() < 1e-6

    # the same model, loaded already: fit where it was centred, else said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cs.load(model=spliced.model, dictionaries=[path])
    with pytest.warns(UserWarning, match=r"hook_mlp_out were trained on a model with centred writing weights"):
        plain = cs.load(model=tmp_path / "model", dictionaries=[path], center_writing_weights=False)
    with pytest.warns(UserWarning, match=r"features will be wrong"):
        cs.load(model=plain.model, dictionaries=[path])
    with pytest.raises(InputError, match=r"this one is loaded already: give its folder"):
        cs.load(model=plain.model, dictionaries=[path], center_writing_weights=True)


def test_a_model_is_centred_where_it_is_asked_for(tmp_path: Path) -> None:
    model("gpt2").save_pretrained(tmp_path)
    for file, content in tokenizer_files(WORDS).items():
        (tmp_path / file).write_bytes(content)
    sae = Dictionary.from_tensors(architecture="standard", hook_in="blocks.0.hook_resid_pre", tensors=formats_sae())
    for asked in (None, True):
        spliced = cs.load(model=tmp_path, dictionaries=[sae], center_writing_weights=asked)
        assert is_centred(spliced.model) is bool(asked)


def test_transcoders_in_circuit_tracers_format_give_the_same_circuit(tmp_path: Path) -> None:
    """tiny's own, written as a circuit-tracer set: another file format is not another circuit."""
    from safetensors.torch import save_file

    from circuitsae.dictionaries.reader import read_folder

    preset = find_preset("tiny-transcoders")
    for layer, given in enumerate(preset.dictionaries):
        weights = read_folder(given).weights
        state = {name: weights.view(name).float().contiguous() for name in ("W_dec", "b_enc", "b_dec")}
        state["W_enc"] = weights.view("W_enc").float().T.contiguous()
        state["activation_function.threshold"] = weights.view("threshold").float().contiguous()
        save_file(state, tmp_path / f"layer_{layer}.safetensors")
    formats.write_yaml(tmp_path, {"feature_input_hook": "mlp.hook_in"})
    task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
    found = []
    for dictionaries in (preset.dictionaries, [tmp_path]):
        spliced = cs.load(preset, dictionaries=dictionaries)
        circuit = cs.trace(spliced, task, max_nodes=24)
        found.append({key: circuit[key]["effect"] for key in circuit.strongest(24, kind="feature")})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for key, effect in found[0].items():
        assert found[1][key] == pytest.approx(effect, rel=1e-4, abs=1e-6)
