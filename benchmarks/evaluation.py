"""A faithfulness curve of ten sizes as a multiple of the forward passes that it consists of, measured in one run.

    python -m benchmarks.evaluation [PRESET] [TASKS] [REPEATS] > evaluation.json

The passes are the model's own, bare, in batches as large: eleven for every prompt (nine sizes, the given circuit's own and
the empty circuit; all nodes are the clean run), and two for the clean run with its baseline's. Median of REPEATS (3),
interleaved.
"""

import json
import statistics
import sys
import time

import torch

import circuitsae as cs
from circuitsae.evaluation.evaluator import GRID


def main(preset: str, n: int, repeats: int = 3) -> None:
    torch.set_num_threads(1)
    spliced = cs.load(preset)
    tasks = cs.task_set("ioi", spliced, n=n, aligned=True)
    scores = {r["node"]: abs(r["effect"]) for r in cs.node_effects(spliced, tasks[0]).strongest(100)}
    prepared = [t.prepare(spliced.vocabulary) for t in tasks]
    ratios, seconds = [], []
    passes: dict[str, float] = {}
    for _ in range(repeats):
        start = time.perf_counter()
        found = cs.evaluate(spliced, tasks, scores, method=None, compare=(), complement=False)
        curve = time.perf_counter() - start
        passes = found.about["passes"]
        start = time.perf_counter()
        with torch.no_grad():
            for task in prepared:
                for batch in ([task.tokens, task.patch_tokens], [task.tokens] * (len(GRID) + 1)):
                    spliced.hooked.forward(torch.tensor(batch), logits_at=[len(task.tokens) - 1])
        bare = time.perf_counter() - start
        ratios.append(curve / bare)
        seconds.append(curve)
    result = {
        "preset": preset,
        "prompts": n,
        "sizes": len(GRID),
        "curve_seconds": statistics.median(seconds),
        "curve_over_its_forward_passes": statistics.median(ratios),
        "passes": passes,
    }
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "smollm2", *map(int, sys.argv[2:] or ["100"]))
