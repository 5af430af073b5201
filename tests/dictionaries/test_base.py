"""Every architecture against the naive reference in `reference.py`, in float64, and its slopes against differences."""

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from circuitsae.dictionaries import base
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.cache import CACHE
from circuitsae.dictionaries.neurons import identity_dictionary
from circuitsae.errors import DictionaryError, InputError
from tests.dictionaries import reference
from tests.dictionaries.reference import naive, random_dictionary, random_input, random_tensors

VARIANTS = [
    *itertools.product(reference.SAES, reference.NORMALISATIONS, (True, False), (False,)),
    *itertools.product(("topk", "abstopk"), reference.NORMALISATIONS, (True, False), (True,)),
    *itertools.product(reference.TRANSCODERS + reference.CROSS_LAYER, reference.NORMALISATIONS, (False,), (False,)),
]
every_variant = pytest.mark.parametrize(("architecture", "normalisation", "b_dec_in", "rescaled"), VARIANTS)


def variant(architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool) -> Dictionary:
    return random_dictionary(
        architecture,
        normalize_activations=normalisation,
        apply_b_dec_to_input=b_dec_in,
        rescale_acts_by_decoder_norm=rescaled,
    )


@pytest.fixture
def no_cache() -> Iterator[None]:
    """Keeps no converted weights for the length of a test."""
    before = CACHE.budget
    CACHE.budget = 0
    yield
    CACHE.budget = before


@every_variant
def test_encoding_and_reconstruction_equal_the_naive_reference(
    architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool
) -> None:
    dictionary, x = variant(architecture, normalisation, b_dec_in, rescaled), random_input()
    expected = naive(dictionary, x)
    encoding = dictionary.encode(x)
    assert torch.equal(encoding.features.to_dense() != 0, expected.features != 0)
    assert (encoding.features.to_dense() - expected.features).abs().max() < 1e-10
    assert 0 < encoding.features.n_active < x.shape[0] * dictionary.d_sae
    for out, x_hat in enumerate(expected.outputs):
        assert (dictionary.decode(encoding, x, out) - x_hat).abs().max() < 1e-10


@every_variant
def test_reconstruction_is_scaled_rows_plus_bias_plus_skip(
    architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool
) -> None:
    dictionary, x = variant(architecture, normalisation, b_dec_in, rescaled), random_input()
    encoding = dictionary.encode(x)
    scale = torch.ones(x.shape[0], dtype=x.dtype) if encoding.scale is None else encoding.scale
    for out, x_hat in enumerate(naive(dictionary, x).outputs):
        rows = dictionary.decoder_rows(torch.arange(dictionary.d_sae), out)
        skip = dictionary.skip(x, out)
        total = scale[:, None] * (encoding.features.to_dense() @ rows) + encoding.biases[out]
        assert (total + (0 if skip is None else skip) - x_hat).abs().max() < 1e-10


@every_variant
def test_pre_activations_equal_values_where_active_and_have_their_slope(
    architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool
) -> None:
    dictionary, x = variant(architecture, normalisation, b_dec_in, rescaled), random_input(4)
    features = dictionary.encode(x).features
    pre = dictionary.pre_activations(x, features.rows, features.indices)
    assert (pre - features.values).abs().max() < 1e-10
    leaf = x.clone().requires_grad_()
    values = dictionary.pre_activations(leaf, features.rows, features.indices)
    directions = torch.eye(features.n_active, dtype=x.dtype)
    (gradient,) = torch.autograd.grad(values, leaf, directions, is_grads_batched=True)
    entry = torch.arange(features.n_active)
    step = 1e-6  # none of the reference's active features changes its state within it
    for coordinate in range(dictionary.d_in):
        moved = torch.zeros_like(x)
        moved[:, coordinate] = step  # rows don't depend on each other
        above, below = naive(dictionary, x + moved), naive(dictionary, x - moved)
        slope = (above.features - below.features)[features.rows, features.indices] / (2 * step)
        assert (gradient[entry, features.rows, coordinate] - slope).abs().max() < 1e-6
    gradient[entry, features.rows] = 0
    assert not gradient.any()


@pytest.mark.parametrize("architecture", ["gated", "topk", "jumprelu_transcoder"])
def test_few_features_of_many_rows_are_gathered_to_the_same_numbers(architecture: str) -> None:
    dictionary, x = random_dictionary(architecture, normalize_activations="layer_norm"), random_input(300)
    rows, indices = torch.tensor([7, 299, 7, 0]), torch.tensor([3, 3, 22, 0])
    gathered_leaf, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    gathered = dictionary.pre_activations(gathered_leaf, rows, indices)
    every = dictionary.pre_activations(leaf, *torch.cartesian_prod(torch.arange(300), torch.arange(23)).T)
    picked = every.reshape(300, 23)[rows, indices]
    assert (gathered - picked).abs().max() < 1e-12
    weights = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64)
    (one,), (other,) = (
        torch.autograd.grad((v * weights).sum(), at) for v, at in ((gathered, gathered_leaf), (picked, leaf))
    )
    assert (one - other).abs().max() < 1e-12 and int((one.abs().sum(-1) > 0).sum()) == 3


@pytest.mark.parametrize("normalisation", ["layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu_transcoder"])
def test_frozen_pre_activations_hold_the_normalisation(architecture: str, normalisation: str) -> None:
    dictionary, x = random_dictionary(architecture, normalize_activations=normalisation), random_input()
    features = dictionary.encode(x).features
    leaf = x.clone().requires_grad_()
    values = dictionary.pre_activations(leaf, features.rows, features.indices, frozen=True)
    assert (values - features.values).abs().max() < 1e-10
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    scale = x.std(-1, keepdim=True) + 1e-5 if normalisation == "layer_norm" else x.norm(dim=-1, keepdim=True) / 7**0.5
    directions, _ = dictionary.encoder_rows(features.indices)
    expected = torch.zeros_like(x).index_add(0, features.rows, directions) / scale
    assert (gradient - expected).abs().max() < 1e-10


@every_variant
def test_encoder_rows_give_pre_activations_of_normalised_input(
    architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool
) -> None:
    dictionary, x = variant(architecture, normalisation, b_dec_in, rescaled), random_input()
    features = dictionary.encode(x).features
    directions, bias = dictionary.encoder_rows(features.indices)
    pre = (directions * dictionary.normalise(x)[features.rows]).sum(-1) + bias
    assert (pre - features.values).abs().max() < 1e-10


@every_variant
def test_reconstruct_has_the_gradient_through_the_dictionary(
    architecture: str, normalisation: str, b_dec_in: bool, rescaled: bool
) -> None:
    dictionary, x = variant(architecture, normalisation, b_dec_in, rescaled), random_input(3)
    features = dictionary.encode(x).features
    step = 1e-6
    for out in range(len(dictionary.hook_outs)):
        leaf = x.clone().requires_grad_()
        x_hat = dictionary.reconstruct(leaf, features, out)
        assert (x_hat - naive(dictionary, x).outputs[out]).abs().max() < 1e-10
        weights = torch.linspace(-1, 1, x_hat.numel(), dtype=x.dtype).reshape(x_hat.shape)
        (gradient,) = torch.autograd.grad((x_hat * weights).sum(), leaf)
        for coordinate in range(dictionary.d_in):
            moved = torch.zeros_like(x)
            moved[:, coordinate] = step  # rows don't depend on each other
            above, below = (naive(dictionary, x + sign * moved).outputs[out] for sign in (1, -1))
            slope = ((above - below) * weights).sum(-1) / (2 * step)
            assert (slope - gradient[:, coordinate]).abs().max() < 1e-6


@pytest.mark.parametrize("architecture", [*reference.SAES, "transcoder", "cross_layer_transcoder"])
@pytest.mark.parametrize("n_rows", [6, 300])  # below and above the switch from one dense product to gathering
def test_project_is_the_product_with_decoder_rows(architecture: str, n_rows: int) -> None:
    dictionary = random_dictionary(architecture)
    vectors = torch.randn(n_rows, dictionary.d_out, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for k in (0, 1, 40, 400):
        generator = torch.Generator().manual_seed(k)
        rows, indices = torch.randint(n_rows, (k,), generator=generator), torch.randint(23, (k,), generator=generator)
        for out in range(len(dictionary.hook_outs)):
            expected = (dictionary.decoder_rows(indices, out) * vectors[rows]).sum(-1)
            assert torch.allclose(dictionary.project(vectors, rows, indices, out), expected, atol=1e-12)


@pytest.mark.parametrize("architecture", reference.SAES + reference.TRANSCODERS + reference.CROSS_LAYER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_precision_is_lifted_before_computing(architecture: str, dtype: torch.dtype) -> None:
    dictionary, x = random_dictionary(architecture, dtype=dtype), random_input()
    encoding = dictionary.encode(x)
    expected = naive(dictionary, x)
    assert encoding.features.values.dtype == torch.float64
    assert (encoding.features.to_dense() - expected.features).abs().max() < 1e-10
    assert (dictionary.decode(encoding, x) - expected.outputs[0]).abs().max() < 1e-10
    single = dictionary.encode(x.float())
    assert single.features.values.dtype == torch.float32 and single.biases[0].dtype == torch.float32
    assert (single.features.to_dense() - expected.features).abs().max() < 1e-4
    assert dictionary.encode(x.to(torch.bfloat16)).features.values.dtype == torch.float32
    assert dictionary.decoder_rows(torch.tensor([1])).dtype == torch.float32
    assert dictionary.to(dtype=torch.float64).decoder_rows(torch.tensor([1])).dtype == torch.float64


@pytest.mark.parametrize(
    ("architecture", "rescaled"),
    [(name, False) for name in reference.SAES + reference.TRANSCODERS + reference.CROSS_LAYER]
    + [("topk", True), ("abstopk", True)],
)
@pytest.mark.parametrize("block", [8, 200, 3000])
@pytest.mark.usefixtures("no_cache")
def test_streaming_gives_what_the_whole_encoder_gives(
    architecture: str, rescaled: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dictionary = random_dictionary(architecture, dtype=torch.float32, rescale_acts_by_decoder_norm=rescaled)
    x = random_input()
    expected = naive(dictionary, x)
    for bound in ("BLOCK_BYTES", "RANGE_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(base, bound, block)
    encoding = dictionary.encode(x)
    assert (encoding.features.to_dense() - expected.features).abs().max() < 1e-10
    assert bool((encoding.features.keys[1:] > encoding.features.keys[:-1]).all())
    assert (dictionary.decode(encoding, x) - expected.outputs[0]).abs().max() < 1e-10
    assert (dictionary.reconstruct(x, encoding.features) - expected.outputs[0]).abs().max() < 1e-10
    assert CACHE.used == 0


@contextlib.contextmanager
def allocations() -> Iterator[list[int]]:
    """Gives, at its end, the bytes of everything allocated in between, also inside of torch's own operations."""
    sizes: list[int] = []
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        yield sizes
    sizes += [event.self_cpu_memory_usage for event in profile.function_events]


@pytest.mark.parametrize("architecture", ["standard", "gated", "jumprelu", "topk"])
@pytest.mark.usefixtures("no_cache")
def test_no_tensor_of_a_streamed_dictionary_exceeds_the_block(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    d_in, d_sae, block = 64, 4096, 64 << 10
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(d_in, d_sae, generator=generator).half(),  # 1 MB as float32
        "W_dec": torch.randn(d_sae, d_in, generator=generator).half(),
        "b_dec": torch.zeros(d_in).half(),
    } | {name: torch.full((d_sae,), -20.0).half() for name in base.ARCHITECTURES[architecture].activation.vectors}
    for name in {"r_mag", "b_enc"} & set(tensors) if architecture in ("gated", "topk") else ():
        tensors[name].zero_()
    dictionary = Dictionary.from_tensors(architecture=architecture, hook_in="h", tensors=tensors, k=20)
    for bound in ("BLOCK_BYTES", "RANGE_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(base, bound, block)
    x = torch.randn(64, d_in, generator=generator)
    with allocations() as sizes:
        encoding = dictionary.encode(x)
        dictionary.decode(encoding)
        dictionary.project(x, encoding.features.rows, encoding.features.indices)
    indices = 8 * encoding.features.n_active
    assert 0 < indices < 1 << 18
    assert max(sizes) <= max(block, indices), f"a tensor of {max(sizes)} bytes was made"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("layout", ["rows", "columns", "part of a wider one"])
@pytest.mark.parametrize("cached", [True, False])
def test_nothing_copies_a_weight_however_it_lies_in_memory(
    cached: bool, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def laid(matrix: Tensor) -> Tensor:
        if layout == "part of a wider one":
            return torch.cat([matrix, matrix], 1)[:, : matrix.shape[1]]
        return matrix if layout == "rows" else matrix.T.contiguous().T

    d_in, d_sae = 64, 4096
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(2, d_in, d_sae, generator=generator).to(dtype)
    tensors = {"W_enc": laid(weights[0]), "W_dec": laid(weights[1].T)}
    tensors |= {"b_enc": torch.full((d_sae,), -20.0), "b_dec": torch.zeros(d_in)}
    dictionary = Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=tensors)
    for bound in ("BLOCK_BYTES", "RANGE_BYTES", "PIECE_BYTES"):
        monkeypatch.setattr(base, bound, 32 << 10)
    monkeypatch.setattr(CACHE, "_budget", (1 << 30) if cached else 0)
    x = torch.randn(8, d_in, generator=generator)
    for _ in range(2):
        expected = dictionary.encode(x).features  # what the cache keeps of a converted weight, it has by now
    some = torch.arange(5, d_sae, 100)
    with allocations() as sizes:
        features = dictionary.encode(x).features
        rows, biases = dictionary.encoder_rows(some)
        decoders = dictionary.decoder_rows(some)
        dictionary.encode_only(x, some)
        dictionary.weighted_sum(features)
        dictionary.project(x, features.rows, features.indices)
        dictionary.pre_activations(x, features.rows, features.indices)
        dictionary.reconstruct(x, features)
    assert torch.equal(features.keys, expected.keys) and features.n_active > 50
    assert torch.equal(rows, weights[0].float().T[some]) and bool((biases == -20).all())
    assert torch.equal(decoders, weights[1].float().T[some]) and rows.is_contiguous() and decoders.is_contiguous()
    assert 0 < max(sizes) < d_in * d_sae, f"{max(sizes)} bytes were allocated at once"  # half of one in half precision


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("architecture", ["standard", "topk", "cross_layer_transcoder"])
def test_few_rows_and_nothing_active(architecture: str, rows: int) -> None:
    tensors = random_tensors(architecture)
    tensors["b_enc"].fill_(-1e3)
    hook_outs = reference.HOOK_OUTS if "cross" in architecture else None
    dictionary = Dictionary.from_tensors(
        architecture=architecture, hook_in="h", hook_outs=hook_outs, tensors=tensors, k=4
    )
    x = random_input(rows)
    encoding = dictionary.encode(x)
    assert encoding.features.n_active == 0 and encoding.features.n_rows == rows
    for out in range(len(dictionary.hook_outs)):
        assert torch.equal(dictionary.decode(encoding, x, out), encoding.biases[out].expand(rows, -1))
        assert torch.equal(dictionary.reconstruct(x, encoding.features, out), encoding.biases[out].expand(rows, -1))
    none = torch.zeros(0, dtype=torch.int64)
    assert dictionary.pre_activations(x, none, none).shape == (0,)
    assert dictionary.project(x.new_zeros(rows, dictionary.d_out), none, none).shape == (0,)
    assert dictionary.encoder_rows(none)[0].shape == (0, dictionary.d_in)


def test_a_row_of_zeros_is_not_turned_into_nan() -> None:
    x = random_input(2)
    x[0] = 0
    for normalisation in ("constant_norm_rescale", "layer_norm"):
        dictionary = random_dictionary("standard", normalize_activations=normalisation)
        assert bool(dictionary.decode(dictionary.encode(x)).isfinite().all())


def test_a_feature_without_a_decoder_row_stays_silent_when_rescaled() -> None:
    tensors = random_tensors("topk")
    tensors["W_dec"][3] = 0
    tensors["b_enc"][3] = 1e3  # it would win in every row
    dictionary = Dictionary.from_tensors(
        architecture="topk", hook_in="h", tensors=tensors, k=4, rescale_acts_by_decoder_norm=True
    )
    features = dictionary.encode(random_input()).features
    assert 3 not in features.indices.tolist()
    assert not dictionary.decoder_rows(torch.tensor([3])).any()


def test_neurons_are_their_own_reconstruction() -> None:
    neurons = identity_dictionary("blocks.0.attn.hook_z", 7)
    x = random_input().requires_grad_()
    with torch.no_grad():
        x[2, 3] = 0
    encoding = neurons.encode(x)
    assert encoding.features.n_active == x.numel() - 1
    assert torch.equal(neurons.decode(encoding, x), x.detach())
    assert torch.equal(neurons.reconstruct(x, encoding.features), x)
    rows, indices = encoding.features.rows, encoding.features.indices
    assert torch.equal(neurons.pre_activations(x, rows, indices), encoding.features.values)
    assert torch.equal(neurons.project(x, rows, indices), encoding.features.values)
    assert torch.equal(neurons.decoder_rows(torch.tensor([6, 0])), torch.eye(7)[[6, 0]])
    directions, bias = neurons.encoder_rows(torch.tensor([2]), dtype=torch.float64)
    assert torch.equal(directions, torch.eye(7, dtype=torch.float64)[[2]]) and not bias.any()
    assert neurons.skip(x) is None and neurons.reshape_activations == "hook_z"
    assert len(neurons.fingerprint) == 64 and neurons.fingerprint != identity_dictionary("h", 8).fingerprint
    with pytest.raises(InputError, match=r"Feature 7 is not in the dictionary"):
        neurons.pre_activations(x, torch.tensor([0]), torch.tensor([7]))
    with pytest.raises(InputError, match="0 is no width"):
        identity_dictionary("h", 0)


def test_sites_and_outputs() -> None:
    sae, transcoder = random_dictionary("standard"), random_dictionary("skip_transcoder")
    crossing = random_dictionary("skip_cross_layer_transcoder")
    assert (sae.site, sae.hook_outs) == (reference.HOOK_IN, (reference.HOOK_IN,))
    assert (transcoder.site, transcoder.hook_in) == (reference.HOOK_OUT, reference.HOOK_IN)
    assert (crossing.site, crossing.hook_outs) == (reference.HOOK_IN, reference.HOOK_OUTS)
    assert len(crossing.encode(random_input()).biases) == 3
    assert crossing.skip(random_input(), 1) is None
    with pytest.raises(InputError, match=r"There is no output 3: the dictionary at blocks.1.hook_resid_pre writes"):
        crossing.decoder_rows(torch.tensor([0]), 3)


def test_fingerprint_is_of_the_weights_alone() -> None:
    one, same, other = (random_dictionary("topk", seed=seed, k=k) for seed, k in ((0, 4), (0, 5), (1, 4)))
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert len(one.fingerprint) == 64


def test_skip_is_differentiable_in_the_raw_input() -> None:
    dictionary, x = random_dictionary("skip_transcoder", normalize_activations="layer_norm"), random_input()
    leaf = x.clone().requires_grad_()
    skip = dictionary.skip(leaf)
    assert skip is not None
    (gradient,) = torch.autograd.grad(skip.sum(), leaf)
    assert torch.allclose(gradient, random_tensors("skip_transcoder")["W_skip"].sum(0).expand_as(x))


def test_encoding_leaves_no_graph_and_the_weights_alone() -> None:
    dictionary = random_dictionary("gated")
    before = {name: dictionary.weights.view(name).clone() for name in dictionary.weights.names}
    x = random_input().requires_grad_()
    copy = x.detach().clone()
    encoding = dictionary.encode(x)
    assert not encoding.features.values.requires_grad and not encoding.biases[0].requires_grad
    assert torch.equal(x.detach(), copy)
    assert all(torch.equal(dictionary.weights.view(name), tensor) for name, tensor in before.items())


@pytest.mark.parametrize("shape", [(3, 8), (3, 6)])
def test_input_of_another_width_is_refused_with_both(shape: tuple[int, int]) -> None:
    dictionary = random_dictionary("standard")
    with pytest.raises(DictionaryError, match=rf"reads rows of 7 numbers; got shape \[3, {shape[1]}\]"):
        dictionary.encode(torch.zeros(shape))
    with pytest.raises(
        DictionaryError, match=rf"reads 7 numbers per position, but blocks.1.hook_resid_pre has {shape[1]}"
    ):
        dictionary.check_width(shape[1])
    with pytest.raises(DictionaryError, match=r"writes 5 numbers per position, but blocks.1.hook_mlp_out has 6"):
        random_dictionary("transcoder").check_width(7, 6)
    dictionary.check_width(7, 7)


@pytest.mark.parametrize("call", ["decoder_rows", "encoder_rows"])
@pytest.mark.parametrize("index", [-1, 23])
def test_feature_outside_the_dictionary_is_named(call: str, index: int) -> None:
    with pytest.raises(InputError, match=rf"Feature {index} is not in the dictionary at .*, which has 0 to 22"):
        getattr(random_dictionary("standard"), call)(torch.tensor([3, index]))


def test_encoding_of_another_dictionary_is_not_decoded() -> None:
    neurons = identity_dictionary("h", 7)
    with pytest.raises(InputError, match=r"An encoding over 7 features can't be decoded by a dictionary of 23"):
        random_dictionary("standard").decode(neurons.encode(random_input()))


def damaged(name: str, change: str) -> dict[str, Tensor]:
    tensors = random_tensors("standard")
    if change == "missing":
        del tensors[name]
    elif change == "narrow":
        tensors[name] = tensors[name][..., :-1]
    else:
        tensors[name] = torch.ones(23)
    return tensors


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("b_enc", "missing", "lacks b_enc, which the architecture 'standard' needs; it holds W_dec, W_enc, b_dec"),
        ("threshold", "extra", "holds threshold, which the architecture 'standard' does not use; 'jumprelu'"),
        (
            "b_enc",
            "narrow",
            r"b_enc in .* has the shape \[22\]; with W_enc \[7, 23\] and 1 output\(s\) it must be \[23\]",
        ),
        (
            "W_dec",
            "narrow",
            r"W_dec in .* has the shape \[23, 6\]; with W_enc \[7, 23\] and 1 output\(s\) it must be \[23, 7\]",
        ),
        ("W_enc", "narrow", r"W_dec in .* has the shape \[23, 7\]; with W_enc \[7, 22\]"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, change: str, message: str) -> None:
    with pytest.raises(DictionaryError, match=message):
        Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=damaged(name, change))


def test_weights_that_are_not_finite_are_named_when_they_are_read() -> None:
    tensors = random_tensors("standard", dtype=torch.float32)
    tensors["W_dec"][4, 2] = float("nan")
    dictionary = Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=tensors)
    dictionary.encode(random_input())
    dictionary.decoder_rows(torch.tensor([3, 5]))
    with pytest.raises(DictionaryError, match="W_dec in the dictionary at h holds NaN or infinity"):
        dictionary.decoder_rows(torch.tensor([3, 4]))
    tensors["W_enc"][1, 1] = float("inf")
    dictionary = Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=tensors)
    with pytest.raises(DictionaryError, match="W_enc in the dictionary at h holds NaN or infinity"):
        dictionary.encode(random_input())


def test_largest_finite_weights_are_no_infinity() -> None:
    tensors = random_tensors("standard", dtype=torch.float32)
    tensors["W_dec"].fill_(torch.finfo(torch.float32).max)  # their sum is infinite, they are not
    dictionary = Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=tensors)
    assert dictionary.decoder_rows(torch.arange(23)).shape == (23, 7)


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", reference.SAES + reference.TRANSCODERS + reference.CROSS_LAYER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_same_numbers_on_cuda(architecture: str, dtype: torch.dtype) -> None:
    dictionary, x = random_dictionary(architecture, dtype=dtype), random_input()
    expected = naive(dictionary, x)
    dictionary.to("cuda", torch.float64)
    on_device = x.cuda()
    encoding = dictionary.encode(on_device)
    assert encoding.features.values.is_cuda and dictionary.decoder_rows(torch.tensor([1])).is_cuda
    assert (encoding.features.to_dense().cpu() - expected.features).abs().max() < 1e-10
    assert (dictionary.decode(encoding, on_device).cpu() - expected.outputs[0]).abs().max() < 1e-10
    features = encoding.features
    pre = dictionary.pre_activations(on_device, features.rows, features.indices)
    assert (pre - features.values).abs().max() < 1e-10
    vectors = torch.randn(x.shape[0], dictionary.d_out, dtype=x.dtype, device="cuda")
    rows = dictionary.decoder_rows(features.indices)
    products = (rows * vectors[features.rows]).sum(-1)
    assert (dictionary.project(vectors, features.rows, features.indices) - products).abs().max() < 1e-10
    assert (dictionary.reconstruct(on_device, features).cpu() - expected.outputs[0]).abs().max() < 1e-10
