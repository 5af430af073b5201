"""Node effects against the ways they are computed elsewhere: the same random model, dictionaries and results.

    python -m benchmarks.effects [--tokens 16 64 128] [--threads 1] [--jobs dense integrated] [--width 24576]

A random model of GPT-2 small's shape with random TopK dictionaries, 50 of 24,576 features active a position.

- `dense`: attribution patching over the 12 residual sites against the notebook's way: each dictionary spliced in by a hook
  as dense activations with the error added back, one forward and one backward pass, gradients of all activations.
- `integrated`: integrated gradients, 10 steps of the rule `left`, at the attention, MLP and residual sites of every layer
  against feature-circuits' way: for each site and step a forward pass with the site's dense activations moved, and a
  backward pass to them.

The effects are compared first. Seconds are the processor's, in turns with the model's own forward + backward pass, so that
others on the machine matter less.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

import circuitsae as cs
from benchmarks.ablation import gpt2_small
from benchmarks.timing import parser_of, show

STEPS = 10
POINTS = {"dense": ("hook_resid_post",), "integrated": ("hook_attn_out", "hook_mlp_out", "hook_resid_post")}
Effects = dict[str, Tensor]  # by site, [pos, d_sae + 1]: the features', then the error node's


class Peer:
    """Dense effects by plain hooks, with each dictionary's weights as they are."""

    def __init__(self, spliced: cs.SplicedModel, tokens: Tensor, metric: Callable[[Tensor], Tensor]) -> None:
        self.model, self.sites, self.tokens, self.metric = spliced.model, spliced.sites, tokens, metric
        everything = {site: torch.arange(spliced.dictionary(site).d_sae) for site in spliced.sites}
        self.rows = {site: spliced.dictionary(site).decoder_rows(every) for site, every in everything.items()}
        self.encoders = {site: rows.T.contiguous() for site, rows in self.rows.items()}
        self.k = 50

    def run(self, hooks: list[tuple[str, Any]]) -> Tensor:
        logits = self.model.run_with_hooks(self.tokens, return_type="logits", fwd_hooks=hooks)
        return self.metric(logits[:, -1:]).sum()

    def encode(self, site: str, x: Tensor) -> Tensor:
        before = x @ self.encoders[site]
        top = before.topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter(-1, top.indices, top.values.relu())

    def dense(self) -> Effects:
        """Returns gradient times (0 - value), all sites spliced at once."""
        kept: dict[str, tuple[Tensor, Tensor]] = {}

        def splice(site: str) -> tuple[str, Any]:
            def hook(x: Tensor, hook: object) -> Tensor:
                with torch.no_grad():
                    acts = self.encode(site, x)
                    error = x - acts @ self.rows[site]
                # Pass-through: the gradient reaches x as it would without the splice.
                acts, error = acts.requires_grad_(), error.requires_grad_()
                kept[site] = (acts, error)
                made = acts @ self.rows[site] + error
                return x + made - made.detach()

            return site, hook

        metric = self.run([splice(site) for site in self.sites])
        grads = torch.autograd.grad(metric, [t for pair in kept.values() for t in pair])
        return {site: _joined(pair, grads[2 * n : 2 * n + 2]) for n, (site, pair) in enumerate(kept.items())}

    def integrated(self) -> Effects:
        """Returns the gradient averaged on the way to zero, times (0 - value), one site and step at a time."""
        clean: dict[str, Tensor] = {}

        def read(site: str) -> tuple[str, Any]:
            return site, lambda x, hook: clean.setdefault(site, x.detach())

        with torch.no_grad():
            self.run([read(site) for site in self.sites])
            states = {}
            for site, x in clean.items():
                acts = self.encode(site, x)
                states[site] = (acts, x - acts @ self.rows[site])
        found = {}
        for site, (acts, error) in states.items():
            total = [torch.zeros_like(acts), torch.zeros_like(error)]
            for step in range(STEPS):
                part = [(t * (1 - step / STEPS)).requires_grad_() for t in (acts, error)]
                metric = self.run([(site, lambda x, hook, p=part, s=site: p[0] @ self.rows[s] + p[1])])
                total = [t + g for t, g in zip(total, torch.autograd.grad(metric, part), strict=True)]
            found[site] = _joined((acts, error), [t / STEPS for t in total])
        return found


def _joined(pair: tuple[Tensor, Tensor], grads: Any) -> Tensor:
    acts, error = pair
    return torch.cat([-grads[0] * acts, -(grads[1] * error).sum(-1, keepdim=True)], -1)[0].detach()


def compare(effects: cs.NodeEffects, dense: Effects) -> dict[str, float]:
    """Returns the largest difference and the largest effect over all nodes, and the share of nodes that differ.

    Those are TopK's last ones: two features that are nearly as active change places by rounding.
    """
    differences, sizes = [], []
    for r in effects.records(("feature", "error")):
        theirs = dense[r["site"]][r["position"], -1 if r["kind"] == "error" else r["index"]]
        differences.append(abs(r["effect"] - float(theirs)))
        sizes.append(abs(r["effect"]))
    limit = 1e-5 * max(sizes)
    return {
        "largest_effect": max(sizes),
        "largest_difference": max(differences),
        "differ": sum(d > limit for d in differences) / len(differences),
    }


def seconds(runs: dict[str, Callable[[], Any]], turns: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Returns median processor seconds of some things, done in turns, and what they gave."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    given: dict[str, Any] = {}
    for _ in range(turns):
        for name, run in runs.items():
            start = time.process_time()
            given[name] = run()
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(times) for name, times in taken.items()}, given


def measure(spliced: cs.SplicedModel, job: str, n_tokens: int) -> dict[str, Any]:
    """Returns one row of the result."""
    draw = random.Random(0)
    ids = [draw.randrange(50_000) for _ in range(n_tokens)]
    task, tokens = cs.Task(ids, metric=cs.LogitDiff(1, 2)), torch.tensor([ids])
    metric = task.prepare(spliced.vocabulary).metric
    peer = Peer(spliced, tokens, metric)

    def bare() -> None:
        first: list[Tensor] = []

        def start(x: Tensor, hook: object) -> Tensor:
            first.append(x.detach().requires_grad_())
            return first[0]

        torch.autograd.grad(peer.run([("blocks.0.hook_resid_pre", start)]), first)

    if job == "dense":
        ours, theirs = lambda: cs.node_effects(spliced, task, method="attribution-patching"), peer.dense
    else:
        options = {"steps": STEPS, "rule": "left", "tokens": False}
        ours = lambda: cs.node_effects(spliced, task, method="integrated-gradients", **options)  # noqa: E731
        theirs = peer.integrated
    turns = 5 if job == "dense" else 1
    for run in (bare, *([ours] if turns > 1 else [])):  # the first call of each warms up
        run()
    passes, _ = seconds({"bare": bare}, 5)
    taken, given = seconds({"ours": ours, "theirs": theirs} | ({"bare": bare} if turns > 1 else {}), turns)
    taken = passes | taken
    return {
        "job": job,
        "tokens": n_tokens,
        "forward_backward_seconds": taken["bare"],
        "ours_over_forward_backward": taken["ours"] / taken["bare"],
        "theirs_over_forward_backward": taken["theirs"] / taken["bare"],
        "ratio": taken["theirs"] / taken["ours"],
    } | compare(given["ours"], given["theirs"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the jobs and prints their rows."""
    parser = parser_of(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=24_576)
    parser.add_argument("--jobs", nargs="+", choices=list(POINTS), default=list(POINTS))
    args = parser.parse_args(arguments)
    if args.small:
        args.tokens, args.width = [4], 128
    torch.set_num_threads(args.threads)
    rows = []
    for job in args.jobs:
        spliced = gpt2_small(args.width, points=POINTS[job], small=args.small)
        rows += [measure(spliced, job, n) for n in args.tokens]
        del spliced
    show(rows)


if __name__ == "__main__":
    main()
