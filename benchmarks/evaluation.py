"""A faithfulness curve of ten sizes as a multiple of the forward passes that it consists of, measured in one run.

    python -m benchmarks.evaluation [PRESET] [--tasks 100] [--repeats 3] > evaluation.json

The passes are the model's own, bare, in batches as large: eleven for every prompt (nine sizes, the given circuit's own and
the empty circuit; all nodes are the clean run), and two for the clean run with its baseline's. Medians,
interleaved.
"""

import statistics
import time
from collections.abc import Sequence

import torch

import circuitsae as cs
from benchmarks.timing import parser_of, show
from circuitsae.evaluation.evaluator import GRID


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("preset", nargs="?", default="smollm2")
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(arguments)
    preset, n, repeats = ("tiny", 2, 1) if args.small else (args.preset, args.tasks, args.repeats)
    torch.set_num_threads(1)
    spliced = cs.load(preset)
    tasks = cs.task_set("ioi", spliced, n=n, aligned=True)
    scores = {
        r["node"]: abs(r["effect"])
        for r in cs.node_effects(spliced, tasks[0], method="attribution-patching").strongest(100)
    }
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
    show(result)


if __name__ == "__main__":
    main()
