"""Ablating nodes in batches that share the clean run, against one forward pass a node.

    python -m benchmarks.ablation [--tokens 16 64 128] [--nodes 500] [--threads 1] [--jobs sites site]

A random model of GPT-2 small's shape, with a random TopK dictionary (50 active a position) where each of its 12 layers
ends. `sites`: nodes drawn from all sites; `site`: nodes of the middle site. The peer adds the node's vector by a hook and
runs the model; it is timed on some of the nodes, in between parts of ours, and the effects of those are compared. Seconds
are the processor's, so that others on the machine matter less.
"""

import random
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import circuitsae as cs
from benchmarks.timing import parser_of, show
from circuitsae import names
from circuitsae.attribution.effects import make_context
from circuitsae.attribution.exact import measure_nodes

TINY = Path(cs.__file__).parent / "presets" / "tiny" / "model"


def gpt2_small(
    width: int = 4096, k: int = 50, points: tuple[str, ...] = ("hook_resid_post",), *, small: bool = False
) -> cs.SplicedModel:
    """Returns the random model with a dictionary at the end of each layer, or at other points of it.

    A `small` one has two layers, and is narrow.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_embd=64, n_head=2) if small else GPT2Config()
    d_model = config.n_embd
    config._attn_implementation = "eager"
    hf_model = GPT2LMHeadModel(config).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY, local_files_only=True)  # never used: prompts are token ids
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu")
    model.requires_grad_(False)
    dictionaries = []
    for hook in (f"blocks.{layer}.{point}" for layer in range(config.n_layer) for point in points):
        rows = torch.nn.functional.normalize(torch.randn(width, d_model), dim=-1)
        tensors = {
            "W_enc": rows.T.contiguous(),
            "W_dec": rows,
            "b_enc": torch.zeros(width),
            "b_dec": torch.zeros(d_model),
        }
        dictionaries.append(cs.Dictionary.from_tensors(architecture="topk", hook_in=hook, tensors=tensors, k=k))
    return cs.SplicedModel(model, dictionaries, name="random GPT-2 small")


def one_by_one(spliced: cs.SplicedModel, task: cs.Task, tokens: Tensor, changes: list[tuple[str, int, Tensor]]) -> Any:
    """The peer: one whole forward pass a node."""
    metric = task.prepare(spliced.vocabulary).metric
    found = []
    for hook_name, position, vector in changes:

        def add(x: Tensor, hook: object, position: int = position, vector: Tensor = vector) -> Tensor:
            x[:, position] += vector
            return x

        with torch.no_grad():
            logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(hook_name, add)])
        found.append(float(metric(logits[:, -1:])[0]))
    return found


def measure(spliced: cs.SplicedModel, job: str, n_tokens: int, n_nodes: int, n_peer: int) -> dict[str, Any]:
    """Returns one row of the result."""
    draw = random.Random(0)
    ids = [draw.randrange(50_000) for _ in range(n_tokens)]
    task, tokens = cs.Task(ids, metric=cs.LogitDiff(1, 2)), torch.tensor([ids])
    sites = spliced.sites if job == "sites" else [spliced.sites[(len(spliced.sites) - 1) // 2]]
    chosen_from = spliced if job == "sites" else spliced.restrict(sites)
    records = [r for r in cs.node_effects(chosen_from, task, method="attribution-patching").records(("feature",))]
    records = draw.sample(records, min(n_nodes, len(records)))
    keys = [r["node"] for r in records]
    checked = draw.sample(range(len(keys)), min(n_peer, len(keys)))
    changes = []
    for n in checked:
        node = names.parse(keys[n])
        row = spliced.dictionary(str(node.site)).decoder_rows(torch.tensor([node.index]))[0]
        assert isinstance(node.position, int)
        changes.append((str(node.site), node.position, -records[n]["activation"] * row))
    clean = one_by_one(spliced, task, tokens, [(spliced.sites[0], 0, torch.zeros(spliced.d_model))])[0]
    # Both sides in turns: a busy machine slows both.
    ours, theirs, peer = 0.0, 0.0, []
    measured: list[float] = []
    third = -(-len(changes) // 3)
    for turn in range(3):
        start = time.process_time()
        peer += one_by_one(spliced, task, tokens, changes[turn * third : (turn + 1) * third])
        theirs += time.process_time() - start
        if turn < 2:
            start = time.process_time()
            context = make_context(chosen_from, task, method="ablation", baseline="zero")
            measured = measure_nodes(context, keys)
            ours += (time.process_time() - start) / 2
    difference = max(abs(measured[n] - (value - clean)) for n, value in zip(checked, peer, strict=True))
    per_node = theirs / len(changes)
    return {
        "job": job,
        "tokens": n_tokens,
        "nodes": len(keys),
        "seconds_a_node": ours / len(keys),
        "peer_seconds_a_node": per_node,
        "ratio": per_node * len(keys) / ours,
        "largest_difference": difference,
        "largest_effect": max(map(abs, measured)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the jobs and prints their rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--peer-nodes", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", nargs="+", choices=["sites", "site"], default=["sites", "site"])
    args = parser.parse_args(arguments)
    width = 4096
    if args.small:
        args.tokens, args.nodes, args.peer_nodes, width = [4], 20, 3, 128
    torch.set_num_threads(args.threads)
    spliced = gpt2_small(width, small=args.small)
    rows = [
        measure(spliced, job, n_tokens, args.nodes, args.peer_nodes) for job in args.jobs for n_tokens in args.tokens
    ]
    show(rows)


if __name__ == "__main__":
    main()
