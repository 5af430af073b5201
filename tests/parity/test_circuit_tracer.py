"""`compat="circuit-tracer"`: its adjacency matrices, computed by its own `attribute` on tiny random models, in float64."""

import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import circuitsae as cs
from benchmarks.peers import circuit_tracer
from circuitsae import names
from circuitsae.dictionaries.base import Dictionary

N_LAYERS, D_MODEL, D_SAE, K = 3, 16, 24, 6
TOKENS = [3, 17, 5, 9, 28, 11]
HOOK_IN, HOOK_OUT = "hook_resid_mid", "hook_mlp_out"


class Words:
    """The part of a tokenizer that their code touches."""

    vocab_size, padding_side, name_or_path = 30, "right", "words"
    all_special_ids = (3,)
    bos_token_id = eos_token_id = pad_token_id = unk_token_id = 3

    def decode(self, ids: Any) -> str:
        return str(ids)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """circuit-tracer, imported once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("circuit_tracer", reason="circuit-tracer is not installed here")
        return circuit_tracer(
            "attribution.attribute",
            "transcoder.cross_layer_transcoder",
            "replacement_model.replacement_model_transformerlens",
        )


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Their matrices have torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def configuration(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "n_layers": N_LAYERS,
        "d_model": D_MODEL,
        "d_head": 8,
        "n_heads": 2,
        "n_ctx": 16,
        "d_vocab": 30,
        "d_mlp": 32,
        "act_fn": "gelu",
        "model_name": "random",
        "dtype": torch.float64,
        "device": "cpu",
        "seed": 0,
    }
    return importlib.import_module("transformer_lens").HookedTransformerConfig(**(settings | changes))


def fill(module: torch.nn.Module, seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "threshold" in name:
                parameter.abs_()


def models(
    theirs: Any, transcoders: Any, dictionaries: list[Dictionary], **changes: Any
) -> tuple[Any, cs.SplicedModel]:
    """Their replacement model and ours, of equal weights."""
    cfg = configuration(**changes)
    plain = importlib.import_module("transformer_lens").HookedTransformer(cfg)
    fill(plain, 1, 0.3)
    lens = theirs.replacement_model.replacement_model_transformerlens
    weights = {name: value.clone() for name, value in plain.state_dict().items()}
    replacement = lens.TransformerLensReplacementModel(configuration(**changes))
    replacement.load_state_dict(weights)
    replacement.tokenizer = Words()
    replacement._configure_replacement_model(transcoders)
    return replacement, cs.SplicedModel(plain, dictionaries)


def per_layer(theirs: Any, activation: str, has_skip: bool) -> tuple[Any, list[Dictionary]]:
    functions = theirs.transcoder.activation_functions
    layers, ours = {}, []
    for layer in range(N_LAYERS):
        function = {
            "relu": torch.relu,
            "jump_relu": functions.JumpReLU(torch.zeros(D_SAE)),
            "topk": functions.TopK(K),
        }[activation]
        transcoder = theirs.transcoder.single_layer_transcoder.SingleLayerTranscoder(
            D_MODEL, D_SAE, function, layer, has_skip, device=torch.device("cpu"), dtype=torch.float64
        )
        fill(transcoder, 10 + layer, 0.3)
        tensors = {
            "W_enc": transcoder.W_enc.T,
            "b_enc": transcoder.b_enc,
            "W_dec": transcoder.W_dec,
            "b_dec": transcoder.b_dec,
        }
        settings: dict[str, Any] = {}
        prefix = {"relu": "", "jump_relu": "jumprelu_", "topk": "topk_"}[activation]
        if activation == "jump_relu":
            tensors["threshold"] = transcoder.activation_function.threshold
        if activation == "topk":
            settings["k"] = K
        if has_skip:
            tensors["W_skip"] = transcoder.W_skip
        ours.append(
            Dictionary.from_tensors(
                architecture=f"{prefix}{'skip_' if has_skip else ''}transcoder",
                hook_in=f"blocks.{layer}.{HOOK_IN}",
                hook_outs=f"blocks.{layer}.{HOOK_OUT}",
                tensors={name: tensor.detach().clone() for name, tensor in tensors.items()},
                **settings,
            )
        )
        layers[layer] = transcoder
    return theirs.transcoder.single_layer_transcoder.TranscoderSet(layers, HOOK_IN, HOOK_OUT), ours


def cross_layer(theirs: Any, activation: str, has_skip: bool) -> tuple[Any, list[Dictionary]]:
    transcoder = theirs.transcoder.cross_layer_transcoder.CrossLayerTranscoder(
        N_LAYERS, D_SAE, D_MODEL, activation, has_skip, False, False, device=torch.device("cpu"), dtype=torch.float64
    )
    fill(transcoder, 20, 0.3)
    transcoder.feature_input_hook, transcoder.feature_output_hook = HOOK_IN, HOOK_OUT
    prefix = "jumprelu_" if activation == "jump_relu" else ""
    ours = []
    for layer in range(N_LAYERS):
        b_dec = torch.zeros(N_LAYERS - layer, D_MODEL)
        b_dec[0] = transcoder.b_dec[layer].detach()
        tensors = {
            "W_enc": transcoder.W_enc[layer].T,
            "b_enc": transcoder.b_enc[layer],
            "W_dec": transcoder.W_dec[layer],
            "b_dec": b_dec,
        }
        if prefix:
            tensors["threshold"] = transcoder.activation_function.threshold[layer, 0]
        if has_skip:
            tensors["W_skip"] = transcoder.W_skip[layer].T
        ours.append(
            Dictionary.from_tensors(
                architecture=f"{prefix}{'skip_' if has_skip else ''}cross_layer_transcoder",
                hook_in=f"blocks.{layer}.{HOOK_IN}",
                hook_outs=[f"blocks.{out}.{HOOK_OUT}" for out in range(layer, N_LAYERS)],
                tensors={name: tensor.detach().clone() for name, tensor in tensors.items()},
            )
        )
    return transcoder, ours


def as_matrix(circuit: cs.Circuit, graph: Any, spliced: cs.SplicedModel) -> torch.Tensor:
    """Our edges in their rows and columns: features, errors by layer and position, tokens, logits."""
    keys = [
        names.feature(spliced.sites[layer], index, position)
        for layer, position, index in graph.active_features.tolist()
    ]
    keys += [names.error(f"blocks.{at}.{HOOK_OUT}", p) for at in range(N_LAYERS) for p in range(len(TOKENS))]
    keys += [names.token(p) for p in range(len(TOKENS))]
    keys += [names.logit(target.vocab_idx, len(TOKENS) - 1) for target in graph.logit_targets]
    number = {key: n for n, key in enumerate(keys)}
    assert set(circuit.graph) <= {*keys, "bias"}
    matrix = torch.zeros(len(keys), len(keys))
    for source, target, contribution in circuit.graph.edges(data="contribution"):
        if source != "bias":
            matrix[number[target], number[source]] = contribution
    return matrix


CASES = [
    ("per-layer", "relu", False, {}),
    ("per-layer", "jump_relu", False, {}),
    ("per-layer", "topk", False, {}),
    ("per-layer", "relu", True, {}),
    (
        "per-layer",
        "jump_relu",
        True,
        {"positional_embedding_type": "rotary", "rotary_dim": 8, "normalization_type": "RMS"},
    ),
    ("per-layer", "relu", False, {"output_logits_soft_cap": 2.0}),  # Gemma 2: its targets are the logits before the cap
    ("cross-layer", "relu", False, {}),
    ("cross-layer", "jump_relu", False, {"n_key_value_heads": 1}),
    ("cross-layer", "relu", True, {}),
]


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")  # theirs
@pytest.mark.parametrize(("kind", "activation", "has_skip", "changes"), CASES)
def test_adjacency_equals_theirs(
    theirs: Any, kind: str, activation: str, has_skip: bool, changes: dict[str, Any]
) -> None:
    make = per_layer if kind == "per-layer" else cross_layer
    transcoders, dictionaries = make(theirs, activation, has_skip)
    replacement, spliced = models(theirs, transcoders, dictionaries, **changes)
    graph = theirs.attribution.attribute.attribute(torch.tensor(TOKENS), replacement, batch_size=64, max_n_logits=5)
    circuit = cs.trace(spliced, cs.Task(TOKENS, metric=cs.Logit(4)), compat="circuit-tracer", max_logits=5)
    matrix = as_matrix(circuit, graph, spliced)
    expected = graph.adjacency_matrix
    assert matrix.shape == expected.shape and int((expected != 0).sum()) > 200
    assert (matrix - expected).abs().max() < 1e-10
    for target, probability in zip(graph.logit_targets, graph.logit_probabilities.tolist(), strict=True):
        node = circuit[names.logit(target.vocab_idx, len(TOKENS) - 1)]
        assert node["probability"] == pytest.approx(probability, abs=1e-12)
    scores = importlib.import_module("circuit_tracer.graph").compute_graph_scores(graph)
    if kind == "cross-layer" and has_skip:  # pruning sees the matrix only: once, through all of trace
        pruned = cs.trace(
            spliced,
            cs.Task(TOKENS, metric=cs.Logit(4)),
            compat="circuit-tracer",
            max_logits=5,
            prune="influence",
            node_threshold=0.7,
            edge_threshold=0.9,
        )
        kept = pruned.graph.graph["kept"]
        assert (kept["replacement_score"], kept["completeness_score"]) == pytest.approx(scores, abs=1e-10)
        result = importlib.import_module("circuit_tracer.graph").prune_graph(graph, 0.7, 0.9)
        found, clear = as_matrix(pruned, graph, spliced), expected.abs() > 1e-12  # what is 0 may be rounding to either
        assert torch.equal((found != 0) & clear, result.edge_mask & clear)
        assert found[~clear].abs().max() < 1e-10
