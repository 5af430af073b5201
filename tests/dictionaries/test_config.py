"""Settings: what is refused and in which words, and that no file whatever gets past as something else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsae.dictionaries.architectures import ARCHITECTURES
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import parse_config
from circuitsae.dictionaries.reader import CONFIG, read_folder, save_folder
from circuitsae.errors import DictionaryError, UnknownNameError
from tests.dictionaries.reference import random_dictionary, random_input, random_tensors

NEW: dict[str, Any] = {
    "architecture": "standard",
    "d_in": 7,
    "d_sae": 23,
    "metadata": {"hook_name": "blocks.0.hook_resid_pre", "sae_lens_version": "6.1.0"},
}


def with_metadata(**more: Any) -> dict[str, Any]:
    return {"metadata": {**NEW["metadata"], **more}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "standart"},
            "has the unknown architecture 'standart'; did you mean 'standard'\\? Supported are",
        ),
        ({"architecture": "temporal"}, "'temporal', which can't be traced: its features depend on earlier positions"),
        (
            {"architecture": "matching_pursuit"},
            "which can't be traced: .*; supported are standard, gated, topk, abstopk",
        ),
        (
            {"architecture": "batchtopk"},
            "for training only: save it with save_inference_model, which makes it a jumprelu",
        ),
        ({"normalize_activations": "unit"}, "asks for normalize_activations 'unit'; expected one of none, expected_"),
        ({"architecture": "topk"}, "has the architecture 'topk' and k None; expected how many features a row keeps"),
        ({"architecture": "topk", "k": 0}, "'topk' and k 0"),
        ({"architecture": "topk", "k": True}, "'topk' and k True"),
        ({"architecture": "topk", "k": "32"}, "'topk' and k '32'"),
        ({"rescale_acts_by_decoder_norm": True}, "sets rescale_acts_by_decoder_norm, which only topk and abstopk"),
        ({"architecture": "transcoder"}, r"is a transcoder and names no hook point that it writes \(hook_name_out\)"),
        ({"architecture": "transcoder", "apply_b_dec_to_input": True}, "which a transcoder can't have"),
        ({"metadata": {"sae_lens_version": "6.1.0"}}, r"names no hook point \(hook_name\); .* with hook_in="),
        ({"reshape_activations": "hook_q"}, "asks for reshape_activations 'hook_q'; expected 'none' or 'hook_z'"),
        ({"reshape_activations": "hook_z"}, "'hook_z' at blocks.0.hook_resid_pre, which is no hook_z"),
        (with_metadata(hook_names_out=["a", "b"]), "is an SAE, which writes where it reads"),
        (
            {"architecture": "transcoder", **with_metadata(hook_names_out=["a", "b"])},
            "has the architecture 'transcoder', which writes one hook point, not 2",
        ),
        ({"d_in": 8}, "says d_in is 8; the weights have 7"),
        ({"d_sae": 24}, "says d_sae is 24; the weights have 23"),
        ({"architecture": "topk", "k": 24}, "has 23 features; k = 24 of them can't stay active"),
    ],
)
def test_settings_that_can_not_be(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_folder(random_dictionary("standard"), tmp_path)
    (tmp_path / CONFIG).write_text(json.dumps({**NEW, **change}))
    with pytest.raises(DictionaryError, match=message) as caught:
        read_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_settings_are_taken_from_the_new_format_and_default_as_in_sae_lens() -> None:
    config = parse_config(NEW, origin="x")
    assert (config.hook_in, config.hook_outs) == ("blocks.0.hook_resid_pre", ("blocks.0.hook_resid_pre",))
    assert config.apply_b_dec_to_input and config.prepend_bos
    assert config.normalize_activations == config.reshape_activations == "none"
    assert config.at("a", ["b"]).hook_outs == ("b",)
    named = parse_config({**NEW, **with_metadata(prepend_bos=False, neuronpedia_id="a/b")}, origin="x")
    assert not named.prepend_bos and named.metadata["neuronpedia_id"] == "a/b"


def test_a_version_is_needed_to_be_new() -> None:
    old = {"hook_point": "blocks.0.attn.hook_z", "normalize_activations": True}
    config = parse_config(old, origin="x")
    assert config.reshape_activations == "hook_z" and config.normalize_activations == "expected_average_only_in"
    with pytest.raises(DictionaryError, match="normalize_activations True"):
        parse_config({**NEW, "normalize_activations": True}, origin="x")


@pytest.mark.parametrize(
    ("old", "architecture", "k"),
    [
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "topk", 3),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}, "architecture": "gated"}, "topk", 5),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 2}, "sae_lens_version": "5.9.1"}, "topk", 2),
        ({"activation_fn": "relu", "activation_fn_kwargs": {"k": 2}, "sae_lens_version": "5.9.1"}, "standard", None),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 2}, "sae_lens_version": "6.0.0"}, "standard", None),
    ],
)
def test_topk_of_before_version_6_is_found_in_the_activation(
    old: dict[str, Any], architecture: str, k: int | None
) -> None:
    config = parse_config({"hook_point": "h", **old}, origin="x")
    assert (config.architecture, config.k) == (architecture, k)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_in_the_table_works(architecture: str) -> None:
    dictionary = random_dictionary(architecture)
    x = random_input()
    for out in range(len(dictionary.hook_outs)):
        assert dictionary.decode(dictionary.encode(x), x, out).shape == (9, dictionary.d_out)


def test_a_misspelt_setting_is_not_ignored() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'normalize_activations'"):
        random_dictionary("standard", normalise_activations="layer_norm")


def test_a_tensor_too_many_points_to_the_architecture_that_has_it() -> None:
    with pytest.raises(DictionaryError, match=r"holds W_skip, which .* 'transcoder' does not use; 'skip_transcoder'"):
        Dictionary.from_tensors(
            architecture="transcoder", hook_in="a", hook_outs="b", tensors=random_tensors("skip_transcoder")
        )


def test_matrices_of_other_dimensions_are_refused() -> None:
    tensors = random_tensors("cross_layer_transcoder")
    with pytest.raises(DictionaryError, match=r"W_dec \[23, 3, 5\]; expected \[d_in, d_sae\] and \[d_sae, d_out\]"):
        Dictionary.from_tensors(architecture="transcoder", hook_in="a", hook_outs="b", tensors=tensors)
    with pytest.raises(DictionaryError, match=r"2 output\(s\) it must be \[23, 2, 5\]"):
        Dictionary.from_tensors(
            architecture="cross_layer_transcoder", hook_in="a", hook_outs=["b", "c"], tensors=tensors
        )
    empty = {name: tensor[..., :0] for name, tensor in random_tensors("standard").items()}
    with pytest.raises(DictionaryError, match=r"holds W_enc \[7, 0\]"):
        Dictionary.from_tensors(architecture="standard", hook_in="a", tensors=empty)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(list(ARCHITECTURES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "architecture", "d_in", "d_sae", "d_out", "k", "metadata", "hook_name", "hook_point", "hook_name_out",
    "prepend_bos", "hook_names_out",
    "normalize_activations", "apply_b_dec_to_input", "reshape_activations", "rescale_acts_by_decoder_norm",
    "activation_fn", "activation_fn_str", "activation_fn_kwargs", "sae_lens_version",
])  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*which is not known here")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    changes=st.dictionaries(KEYS, JSON, max_size=4), inner=st.dictionaries(KEYS, JSON, max_size=3), is_old=st.booleans()
)
def test_any_configuration_gives_a_dictionary_or_our_own_error(
    changes: dict[str, Any], inner: dict[str, Any], is_old: bool, tmp_path: Path
) -> None:
    if not (tmp_path / CONFIG).exists():
        save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    cfg = {**NEW, "metadata": {**NEW["metadata"], **inner}, **changes}
    if is_old:
        cfg = {"hook_point": "blocks.0.hook_resid_pre", "activation_fn_str": "topk", **inner, **changes}
    (tmp_path / CONFIG).write_text(json.dumps(cfg))
    try:
        dictionary = read_folder(tmp_path)
        x = random_input(2)
        dictionary.decode(dictionary.encode(x), x)
        save_folder(dictionary, tmp_path / "again")
        again = read_folder(tmp_path / "again").config
        for said in (again, dictionary.config):
            said.metadata.pop("sae_lens_version", None)  # an old one is raised
            said.declared.clear()
        assert repr(again) == repr(dictionary.config)  # NaN equals itself here
    except DictionaryError as error:
        assert str(tmp_path) in str(error)
