"""Frozen graphs against circuit-tracer's `attribute()`: the same random GPT-2-small-shaped model, dictionaries and nodes.

    python -m benchmarks.frozen [--tokens 16 64 128] [--nodes 1024 512 256] > frozen.json

Needs circuit-tracer and a transformer_lens that has HookedTransformer. Each side runs in a process of its own for its
peak memory, and both once more in one process, where the matrices are compared first and times are taken in turn. One
thread, float32, transcoders 24,576 wide with 50 features active a position. Seconds are the processor's, so that others on
the machine matter less.
"""

import copy
import importlib
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

import circuitsae as cs
from benchmarks.peers import circuit_tracer
from benchmarks.timing import parser_of, peak_mib, show
from circuitsae.attribution.contributions import EdgeBatch, FeatureTargets, Sources
from circuitsae.attribution.edges import EdgeEngine
from circuitsae.attribution.effects import make_context
from circuitsae.dictionaries.base import Dictionary

TOKENS, NODES = (16, 64, 128), (1024, 512, 256)
D_VOCAB = 50_257
HOOK_IN, HOOK_OUT = "hook_resid_mid", "hook_mlp_out"


class Shape(NamedTuple):
    """The model's layers and width, the transcoders' width, and how many of a layer's features are active a position."""

    n_layers: int = 12
    d_model: int = 768
    d_sae: int = 24_576
    active: int = 50


SMALL = Shape(2, 64, 256, 8)
SIDES = ("both", "ours", "theirs")


class Words:
    """The part of a tokenizer that circuit-tracer touches."""

    vocab_size, padding_side, name_or_path, all_special_ids = D_VOCAB, "right", "words", (3,)
    bos_token_id = eos_token_id = pad_token_id = unk_token_id = 3

    def decode(self, ids: Any) -> str:
        """Returns a string for token ids."""
        return str(ids)


def model(shape: Shape) -> tuple[Any, Any, Any]:
    """Returns the model, its configuration and circuit-tracer's transcoders, seeded."""
    lens = importlib.import_module("transformer_lens")
    cfg = lens.HookedTransformerConfig(
        n_layers=shape.n_layers,
        d_model=shape.d_model,
        d_head=64,
        n_heads=shape.d_model // 64,
        n_ctx=256,
        d_vocab=D_VOCAB,
        d_mlp=4 * shape.d_model,
        act_fn="gelu",
        model_name="random",
        device="cpu",
        seed=0,
    )
    single = importlib.import_module("circuit_tracer.transcoder.single_layer_transcoder")
    functions = importlib.import_module("circuit_tracer.transcoder.activation_functions")
    generator = torch.Generator().manual_seed(0)
    layers = {}
    with torch.no_grad():
        for layer in range(shape.n_layers):
            made = single.SingleLayerTranscoder(
                shape.d_model,
                shape.d_sae,
                functions.TopK(shape.active),
                layer,
                False,
                device=torch.device("cpu"),
                dtype=torch.float32,
            )
            for parameter in made.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03)
            layers[layer] = made.requires_grad_(False)
    return lens.HookedTransformer(cfg), cfg, single.TranscoderSet(layers, HOOK_IN, HOOK_OUT)


def theirs_of(plain: Any, cfg: Any, transcoders: Any) -> Any:
    """Returns circuit-tracer's replacement model, which takes the weights over."""
    name = "circuit_tracer.replacement_model.replacement_model_transformerlens"
    replacement = importlib.import_module(name).TransformerLensReplacementModel(
        copy.deepcopy(cfg)
    )  # it changes settings
    replacement.load_state_dict(plain.state_dict())
    replacement.tokenizer = Words()
    replacement._configure_replacement_model(transcoders)
    return replacement


def ours_of(plain: Any, transcoders: Any, shape: Shape) -> cs.SplicedModel:
    """Returns our model over the same tensors."""
    dictionaries = []
    for layer in range(shape.n_layers):
        their = transcoders.transcoders[layer]
        tensors = {"W_enc": their.W_enc.T, "b_enc": their.b_enc, "W_dec": their.W_dec, "b_dec": their.b_dec}
        dictionaries.append(
            Dictionary.from_tensors(
                architecture="topk_transcoder",
                hook_in=f"blocks.{layer}.{HOOK_IN}",
                hook_outs=f"blocks.{layer}.{HOOK_OUT}",
                tensors={name: tensor.detach() for name, tensor in tensors.items()},
                k=shape.active,
            )
        )
    return cs.SplicedModel(plain, dictionaries, skip_positions=[0])


def attribute(replacement: Any, tokens: list[int], n_nodes: int) -> Any:
    """Runs circuit-tracer."""
    run = importlib.import_module("circuit_tracer.attribution.attribute").attribute
    return run(torch.tensor(tokens), replacement, max_n_logits=1, batch_size=256, max_feature_nodes=n_nodes)


def edges(spliced: cs.SplicedModel, tokens: list[int], wanted: torch.Tensor) -> tuple[list[EdgeBatch], str]:
    """Returns the in-edges of features `[layer position index]` and of a metric, from every node there is."""
    context = make_context(spliced, cs.Task(tokens, metric=cs.Logit(4)))
    n_tokens = len(tokens)
    features, targets, number = [], [], n_tokens + 1
    for layer, nodes in enumerate(context.nodes):
        numbers = torch.arange(number, number + len(nodes.positions))
        number += len(numbers)
        features.append((torch.arange(len(numbers)), numbers))
        here = wanted[wanted[:, 0] == layer]
        d_sae = spliced.dictionaries[layer].d_sae
        key = nodes.positions * d_sae + nodes.indices
        at = torch.searchsorted(key, (here[:, 1] * d_sae + here[:, 2]).sort().values)
        totals = nodes.activations[at]
        targets.append(
            FeatureTargets(layer, nodes.positions[at], nodes.indices[at], totals, torch.ones_like(totals), numbers[at])
        )
    every = torch.arange(n_tokens)
    errors = {hook: (every, number + n * n_tokens + every) for n, hook in enumerate(spliced.written)}
    engine = EdgeEngine(
        spliced,
        context.run,
        context.nodes,
        context.baseline,
        context.readout,
        linearisation="frozen",
        sources=Sources(tuple(features), errors, (every, every), bias=n_tokens),
    )
    found = [engine.metric_edges(number + len(errors) * n_tokens), *engine.feature_edges(targets)]
    return found, engine.path


def difference(graph: Any, batches: list[EdgeBatch], n_tokens: int) -> float:
    """Returns the largest difference between their feature-to-feature edges and ours, relative to the largest."""
    first = n_tokens + 1  # of our feature numbers; theirs are in the same order: layer, position, index
    active = graph.active_features
    selected = graph.selected_features
    place = {(int(n) + first): row for row, n in enumerate(selected.tolist())}
    assert (active[1:, 0] >= active[:-1, 0]).all()
    count = len(selected)
    found = torch.zeros(count, count)
    for batch in batches[1:]:
        for target, source, value in zip(
            batch.targets.tolist(), batch.sources.tolist(), batch.contributions.tolist(), strict=True
        ):
            if source in place:
                found[place[target], place[source]] = value
    expected = graph.adjacency_matrix[:count, :count].float()
    return float((found - expected).abs().max() / expected.abs().max())


def compare(n_tokens: int, n_nodes: int, side: str, shape: Shape) -> dict[str, Any]:
    """Runs one job, both sides or one."""
    torch.set_num_threads(1)
    tokens = [3, *((n * 7919 + 11) % D_VOCAB for n in range(1, n_tokens))]  # theirs wants a special token first
    plain, cfg, transcoders = model(shape)
    generator = torch.Generator().manual_seed(1)
    result: dict[str, Any] = {}
    if side == "ours":
        spliced = ours_of(plain, transcoders, shape)
        active = [(n % shape.n_layers, 1 + n % (n_tokens - 1)) for n in range(n_nodes)]
        run = make_context(spliced, cs.Task(tokens, metric=cs.Logit(4))).run
        picked = []
        for layer in range(shape.n_layers):
            f = run.features[layer].features
            at = torch.randperm(len(f.rows), generator=generator)[: sum(a == layer for a, _ in active)]
            picked.append(torch.stack([torch.full_like(at, layer), f.rows[at], f.indices[at]], 1))
        del run
        loaded = peak_mib()
        edges(spliced, tokens, torch.cat(picked))
        return {"peak_mib": peak_mib() - loaded}
    replacement = theirs_of(plain, cfg, transcoders)
    if side == "theirs":
        with torch.no_grad():
            replacement(torch.tensor([tokens]))
        loaded = peak_mib()
        attribute(replacement, tokens, n_nodes)
        return {"peak_mib": peak_mib() - loaded}
    spliced = ours_of(plain, transcoders, shape)
    start = time.process_time()
    graph = attribute(replacement, tokens, n_nodes)
    result["theirs_seconds"] = time.process_time() - start
    wanted = graph.active_features[graph.selected_features]
    batches, result["path"] = edges(spliced, tokens, wanted)  # also tries the freezes, once a model
    result["difference"] = difference(graph, batches, n_tokens)
    start = time.process_time()
    edges(spliced, tokens, wanted)
    result["ours_seconds"] = time.process_time() - start
    result["ratio"] = result["theirs_seconds"] / result["ours_seconds"]
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="as many as --tokens")
    parser.add_argument("--side", choices=SIDES, help="one job in this process")
    args = parser.parse_args(arguments)
    if args.small:
        args.tokens, args.nodes = [6], [12]
    if len(args.tokens) != len(args.nodes):
        parser.error("--tokens and --nodes are as many; one job is one of each")
    try:
        circuit_tracer("attribution.attribute", "transcoder.single_layer_transcoder", "replacement_model")
        _ = importlib.import_module("transformer_lens").HookedTransformer
    except ImportError as error:
        parser.error(f"this needs circuit-tracer, and a transformer_lens with HookedTransformer (3.x): {error}")
    jobs = list(zip(args.tokens, args.nodes, strict=True))
    if args.side is not None:
        show([compare(*job, args.side, SMALL if args.small else Shape()) for job in jobs])
        return
    found = []
    for n_tokens, n_nodes in jobs:
        row: dict[str, Any] = {"tokens": n_tokens, "nodes": n_nodes}
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.frozen", "--tokens", str(n_tokens), "--nodes", str(n_nodes)]
            command += ["--side", side, *(["--small"] if args.small else [])]
            (output,) = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
            row |= output if side == "both" else {f"{side}_peak_mib": output["peak_mib"]}
        found.append(row)
    show(found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
