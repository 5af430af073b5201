"""Every architecture against sae_lens itself, in float32: its objects, its files, and ours opened by it."""

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsae.dictionaries import saelens
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import load_dictionary
from circuitsae.dictionaries.reader import read_folder, save_folder, write_safetensors
from circuitsae.errors import DictionaryError, FetchError, MissingExtraError, UnknownNameError
from tests.dictionaries.reference import D_IN, D_OUT, D_SAE, HOOK_OUT, K, random_input, random_tensors

SAES = ("standard", "gated", "topk", "abstopk", "jumprelu")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
NORMALISATIONS = ("none", "expected_average_only_in", "covariance_whitening", "constant_norm_rescale", "layer_norm")


@pytest.fixture(scope="session")
def sae_lens() -> Any:
    """The package, imported once; it takes some seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("sae_lens", reason="sae_lens (extra saelens) is not installed here")


def theirs(sae_lens: Any, architecture: str, *, dtype: str = "float32", hook: str = "h", **cfg: Any) -> Any:
    """Returns a sae_lens object with the reference's random weights."""
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    metadata: dict[str, Any] = {"hook_name": hook, "prepend_bos": True}
    settings = {"d_in": D_IN, "d_sae": D_SAE, "dtype": dtype, "device": "cpu", **cfg}
    if "transcoder" in architecture:
        metadata["hook_name_out"] = HOOK_OUT
        settings |= {"d_out": D_OUT, "apply_b_dec_to_input": False}
    if "topk" in architecture:
        settings.setdefault("k", K)
    sae = sae_class(config_class(**settings, metadata=sae_lens.saes.sae.SAEMetadata(**metadata)))
    sae.load_state_dict(random_tensors(architecture, dtype=sae.dtype))
    return sae


def assert_same(ours: Dictionary, sae: Any, x: torch.Tensor, *, tolerance: float = 1e-5) -> None:
    """Compares activations and reconstruction; the tolerance is relative to the largest."""
    with torch.no_grad():
        features = sae.encode(x)
        features = features.to_dense() if features.is_sparse else features
        x_hat = sae(x)
    encoding = ours.encode(x.flatten(-2) if x.ndim == 3 else x)
    mine = encoding.features.to_dense()
    assert torch.equal(mine != 0, features != 0)
    assert 0 < encoding.features.n_active < mine.numel()
    assert (mine - features).abs().max() <= tolerance * features.abs().max()
    decoded = ours.decode(encoding, x.flatten(-2) if x.ndim == 3 else x).reshape(x_hat.shape)
    assert (decoded - x_hat).abs().max() <= tolerance * x_hat.abs().max()


@pytest.mark.saelens
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("b_dec_in", [True, False])
@pytest.mark.parametrize("architecture", SAES)
def test_saes_equal_sae_lens(sae_lens: Any, architecture: str, b_dec_in: bool, normalisation: str) -> None:
    sae = theirs(sae_lens, architecture, apply_b_dec_to_input=b_dec_in, normalize_activations=normalisation)
    ours = saelens.from_object(sae)
    assert (ours.architecture, ours.hook_in, ours.d_in, ours.d_sae) == (architecture, "h", D_IN, D_SAE)
    assert_same(ours, sae, random_input(50, dtype=torch.float32))


@pytest.mark.saelens
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_transcoders_equal_sae_lens(sae_lens: Any, architecture: str, normalisation: str) -> None:
    sae = theirs(sae_lens, architecture, normalize_activations=normalisation)
    ours = saelens.from_object(sae)
    assert (ours.hook_in, ours.hook_outs, ours.d_out) == ("h", (HOOK_OUT,), D_OUT)
    assert_same(ours, sae, random_input(50, dtype=torch.float32))


@pytest.mark.saelens
@pytest.mark.parametrize("normalisation", ["none", "layer_norm"])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_decoder_norm_rescaling_equals_sae_lens(sae_lens: Any, architecture: str, normalisation: str) -> None:
    sae = theirs(sae_lens, architecture, rescale_acts_by_decoder_norm=True, normalize_activations=normalisation)
    assert_same(saelens.from_object(sae), sae, random_input(50, dtype=torch.float32))


@pytest.mark.saelens
@pytest.mark.parametrize("k", [1, 3, D_SAE])
@pytest.mark.parametrize("architecture", ["topk", "abstopk"])
def test_ties_are_broken_as_sae_lens_breaks_them(sae_lens: Any, architecture: str, k: int) -> None:
    sae = theirs(sae_lens, architecture, k=k, apply_b_dec_to_input=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in sae.state_dict().items():
            tensor.copy_(torch.randint(-1, 2, tensor.shape, generator=generator) if name != "b_dec" else tensor)
    x = torch.randint(-1, 2, (60, D_IN), generator=generator).float()
    assert_same(saelens.from_object(sae), sae, x, tolerance=1e-6)


@pytest.mark.saelens
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_hook_z_is_flattened_as_sae_lens_flattens_it(sae_lens: Any, architecture: str) -> None:
    hook = "blocks.0.attn.hook_z"
    sae = theirs(sae_lens, architecture, hook=hook, reshape_activations="hook_z", normalize_activations="layer_norm")
    ours = saelens.from_object(sae)
    assert ours.reshape_activations == "hook_z"
    assert_same(ours, sae, random_input(20, dtype=torch.float32).reshape(20, D_IN, 1))


@pytest.mark.saelens
@pytest.mark.parametrize("architecture", [*SAES, *TRANSCODERS])
def test_files_of_sae_lens_are_read(sae_lens: Any, architecture: str, tmp_path: Path) -> None:
    sae = theirs(sae_lens, architecture)
    sae.save_model(tmp_path)
    ours = read_folder(tmp_path)
    assert_same(ours, sae, random_input(50, dtype=torch.float32))
    assert (ours.architecture, ours.prepend_bos) == (architecture, True)


@pytest.mark.saelens
@pytest.mark.parametrize("architecture", [*SAES, *TRANSCODERS])
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_files_of_ours_are_read_by_sae_lens(
    sae_lens: Any, architecture: str, dtype: torch.dtype | None, tmp_path: Path
) -> None:
    original = saelens.from_object(theirs(sae_lens, architecture, normalize_activations="layer_norm"))
    save_folder(original, tmp_path, dtype=dtype)
    sae = sae_lens.SAE.load_from_disk(tmp_path)
    assert sae.cfg.architecture() == architecture
    assert_same(read_folder(tmp_path), sae, random_input(50, dtype=torch.float32))


OLD = {
    "hook_point": "blocks.1.hook_resid_pre",
    "hook_point_layer": 1,
    "d_in": D_IN,
    "d_sae": D_SAE,
    "dtype": "float32",
    "model_name": "gpt2-small",
}


@pytest.mark.saelens
@pytest.mark.parametrize(
    ("extra", "architecture"),
    [
        ({}, "standard"),
        ({"normalize_activations": True, "prepend_bos": False}, "standard"),
        ({"normalize_activations": None, "apply_b_dec_to_input": False}, "standard"),
        ({"architecture": "gated", "normalize_activations": "layer_norm"}, "gated"),
        ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}}, "topk"),
        ({"activation_fn": "topk", "activation_fn_kwargs": {"k": 5}, "sae_lens_version": "5.9.1"}, "topk"),
        ({"architecture": "topk", "activation_fn_kwargs": {"k": 2}, "hook_name": "blocks.1.attn.hook_z"}, "topk"),
        ({"architecture": "jumprelu", "activation_fn": "relu", "sae_lens_version": "4.0.0"}, "jumprelu"),
        ({"scaling_factor": 1.0}, "standard"),
    ],
)
def test_configurations_from_before_version_6_mean_what_sae_lens_reads(
    sae_lens: Any, extra: dict[str, Any], architecture: str, tmp_path: Path
) -> None:
    tensors = random_tensors(architecture, dtype=torch.float32)
    if extra.pop("scaling_factor", None):
        tensors["scaling_factor"] = torch.ones(D_SAE)
    write_safetensors(tmp_path / "sae_weights.safetensors", tensors)
    (tmp_path / "cfg.json").write_text(json.dumps({**OLD, **extra}))
    ours = read_folder(tmp_path)
    sae = sae_lens.SAE.load_from_disk(tmp_path)
    assert ours.architecture == sae.cfg.architecture() == architecture
    assert ours.hook_in == sae.cfg.metadata.hook_name
    assert ours.prepend_bos == sae.cfg.metadata.prepend_bos
    assert ours.reshape_activations == sae.cfg.reshape_activations
    assert ours.config.normalize_activations == sae.cfg.normalize_activations
    assert ours.config.apply_b_dec_to_input == sae.cfg.apply_b_dec_to_input
    x = random_input(50, dtype=torch.float32)
    assert_same(ours, sae, x[..., None] if ours.reshape_activations == "hook_z" else x)


@pytest.mark.saelens
@pytest.mark.parametrize(
    ("architecture", "becomes"),
    [
        ("standard", "standard"),
        ("topk", "topk"),
        ("jumprelu", "jumprelu"),
        ("gated", "gated"),
        ("batchtopk", "jumprelu"),
    ],
)
def test_training_objects_are_taken_as_they_would_be_saved(
    sae_lens: Any, architecture: str, becomes: str, tmp_path: Path
) -> None:
    training_class, config_class = sae_lens.registry.get_sae_training_class(architecture)
    extra = {"k": K} if "topk" in architecture else {}
    metadata = sae_lens.saes.sae.SAEMetadata(hook_name="h")
    trained = training_class(config_class(d_in=D_IN, d_sae=D_SAE, metadata=metadata, **extra))
    with torch.no_grad():
        for name, tensor in random_tensors(becomes, dtype=torch.float32).items():
            if name in trained.state_dict():
                trained.state_dict()[name].copy_(tensor)
    if architecture == "batchtopk":
        trained.topk_threshold.fill_(0.7)
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    ours = saelens.from_object(trained)
    trained.save_inference_model(tmp_path)
    assert ours.architecture == becomes
    assert_same(ours, sae_lens.SAE.load_from_disk(tmp_path), random_input(50, dtype=torch.float32))
    assert all(torch.equal(trained.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.saelens
def test_objects_share_their_weights_and_keep_their_names(sae_lens: Any) -> None:
    sae = theirs(sae_lens, "standard")
    (ours,) = load_dictionary(sae)
    assert ours.weights.view("W_enc").data_ptr() == sae.W_enc.data_ptr()
    assert ours.source == "sae_lens StandardSAE"
    assert saelens.from_object(sae, hook_in="blocks.0.hook_in").hook_outs == ("blocks.0.hook_in",)
    half = saelens.from_object(theirs(sae_lens, "standard", dtype="bfloat16"))
    assert half.encode(random_input(dtype=torch.float32)).features.values.dtype == torch.float32


@pytest.mark.saelens
@pytest.mark.parametrize("architecture", ["temporal", "matching_pursuit"])
def test_objects_that_can_not_be_traced_are_refused(sae_lens: Any, architecture: str) -> None:
    sae_class, config_class = sae_lens.registry.get_sae_class(architecture)
    sae = sae_class(config_class(d_in=8, d_sae=512, metadata=sae_lens.saes.sae.SAEMetadata(hook_name="h")))
    with pytest.raises(DictionaryError, match=f"has the architecture '{architecture}', which can't be traced"):
        saelens.from_object(sae)


@pytest.mark.saelens
def test_an_object_without_a_hook_point_asks_for_it(sae_lens: Any) -> None:
    sae = theirs(sae_lens, "standard")
    sae.cfg.metadata.hook_name = None
    with pytest.raises(DictionaryError, match=r"The SAELens StandardSAE names no hook point .* with hook_in="):
        saelens.from_object(sae)
    assert saelens.from_object(sae, hook_in="h").site == "h"


@pytest.mark.saelens
def test_release_names_are_those_of_the_registry(sae_lens: Any) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    assert set(saelens.release_names()) == set(get_pretrained_saes_directory())


@pytest.mark.saelens
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt2-smal-res-jb/blocks.8.hook_resid_pre", "did you mean 'gpt2-small-res-jb/blocks.8.hook_resid_pre'"),
        ("gpt2-small-res-jb/blocks.8.hook_resid_pr", "No dictionary in the release gpt2-small-res-jb is called"),
        ("gpt2-small-res-jb", "there is 'blocks.0.hook_resid_pre'"),
        ("saelens://gpt2-small-res-jv/x", "No release of SAELens is called 'gpt2-small-res-jv'; did you mean"),
    ],
)
def test_misspelt_releases_and_ids_get_near_matches(sae_lens: Any, spec: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        load_dictionary(spec)


@pytest.mark.saelens
def test_a_summed_cross_layer_transcoder_is_refused(sae_lens: Any, tmp_path: Path) -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    release, entry = next(
        (name, entry)
        for name, entry in get_pretrained_saes_directory().items()
        if entry.conversion_func == saelens._SUMMED
    )
    with pytest.raises(DictionaryError, match="one layer of a cross-layer transcoder"):
        saelens.from_release(release, next(iter(entry.saes_map)), folder=tmp_path)


@pytest.mark.saelens
def test_a_release_is_converted_once_and_then_read_lazily(
    sae_lens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = theirs(sae_lens, "jumprelu", normalize_activations="none")
    fetched: list[tuple[Any, ...]] = []

    def from_pretrained(*given: Any, **options: Any) -> Any:
        fetched.append(given)
        return sae

    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", from_pretrained)
    release, sae_id = "gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical"
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(tmp_path))
    (first,) = load_dictionary(f"{release}/{sae_id}")
    (again,) = load_dictionary(f"{release}/{sae_id}")
    assert fetched == [(release, sae_id)]
    assert first.source == again.source == f"{release}/{sae_id}"
    assert first.fingerprint == again.fingerprint
    assert (tmp_path / "saelens" / release / sae_id / "cfg.json").exists()
    assert_same(again, sae, random_input(50, dtype=torch.float32))


@pytest.mark.saelens
def test_a_release_that_can_not_be_fetched_says_so(sae_lens: Any, tmp_path: Path) -> None:
    for spec in (
        "gpt2-small-res-jb/blocks.8.hook_resid_pre",
        "gemma-scope-2b-pt-res-canonical/layer_20/width_16k/canonical",
    ):
        release, _, sae_id = spec.partition("/")
        with pytest.raises(FetchError, match=rf"{spec} \(.*\) could not be fetched"):
            saelens.from_release(release, sae_id, folder=tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_without_sae_lens_a_release_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    monkeypatch.setattr(saelens.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"needs sae_lens, which is not installed: pip install 'circuitsae\[saelens\]'"
    ):
        saelens.from_release("gpt2-small-res-jb", "blocks.8.hook_resid_pre", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_objects_of_other_packages_are_no_saelens_objects() -> None:
    assert not saelens.is_saelens_object(torch.nn.Linear(2, 2))
    assert not saelens.is_saelens_object("sae_lens")
    pretended = type("SAE", (), {"__module__": "sae_lens_like.saes", "cfg": None, "state_dict": dict})
    assert not saelens.is_saelens_object(pretended())
    real = type("SAE", (types.SimpleNamespace,), {"__module__": "sae_lens.saes.sae"})
    derived = type("Mine", (real,), {"__module__": "my_project"})
    assert saelens.is_saelens_object(derived(cfg=1, state_dict=dict))


SHIPPED = sorted(Path(saelens.__file__).parents[1].glob("presets/*/**/sae_weights.safetensors"))


@pytest.mark.parametrize("weights", SHIPPED, ids=lambda p: f"{p.parents[1].name}-{p.parent.name}")
def test_what_the_presets_ship_opens_in_sae_lens(sae_lens: Any, weights: Path) -> None:
    sae, ours = sae_lens.SAE.load_from_disk(weights.parent), read_folder(weights.parent)
    assert (sae.cfg.metadata.hook_name, sae.cfg.architecture()) == (ours.hook_in, ours.architecture)
    assert saelens.from_object(sae).hook_outs == ours.hook_outs
