"""Node effects and whole traces as multiples of the model's own forward + backward pass, measured in one run.

    python -m benchmarks [PRESET] > trace.json

Every figure is the median of three; peak memory is what the process held above the loaded model.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch

import circuitsae as cs


def median_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def forward_and_backward(spliced: cs.SplicedModel, task: cs.Task) -> Callable[[], object]:
    """The bare model from the embeddings on, by TransformerLens' own hooks; weights need no gradient."""
    prepared = task.prepare(spliced.vocabulary)
    tokens = torch.tensor([prepared.tokens])

    def run() -> None:
        leaf: list[torch.Tensor] = []

        def at_embed(x: torch.Tensor, hook: object) -> torch.Tensor:
            leaf.append(x.detach().requires_grad_())
            return leaf[0]

        logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[("hook_embed", at_embed)])
        torch.autograd.grad(prepared.metric(logits[:, -1:]).sum(), leaf[0])

    return run


def main(preset: str) -> None:
    torch.set_num_threads(2)
    spliced = cs.load(preset)
    spliced.model.requires_grad_(False)
    task = cs.Task("When Mary and John went to the store, John gave a drink to", metric=cs.LogitDiff(" Mary", " John"))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bare = median_seconds(forward_and_backward(spliced, task))
    effects = median_seconds(lambda: cs.node_effects(spliced, task))
    circuit = median_seconds(lambda: cs.trace(spliced, task, max_nodes=256))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {
        "preset": preset,
        "tokens": len(task.prepare(spliced.vocabulary).tokens),
        "forward_backward_seconds": bare,
        "node_effects_ratio": effects / bare,
        "trace_ratio": circuit / bare,
        "peak_mib_above_model": (peak - loaded) / 1024,
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
