"""Node effects, whole traces, memory and the command's cold start, as multiples of what they are measured against.

    python -m benchmarks [PRESET] > trace.json

Times are the median of three in one run, divided by the bare model's forward + backward pass over the same prompt; peak
memory is what each job's own process held above the loaded model. The cold start is a whole `circuitsae trace` on
`tiny`, divided by a process that only imports torch and transformer_lens.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import circuitsae as cs
from benchmarks.timing import median_seconds, peak_mib, seconds_of

PROMPT = "When Mary and John went to the store, John gave a drink to"
# Ten times as long, and still decided by its last sentence.
STORY = (
    "It was a quiet morning in the village. The baker had opened his shop before the sun came up, and the smell of "
    "bread went down the street. A dog slept in front of the door. Two boys came by with a cart, and an old woman "
    "asked them to carry her basket up the hill. They did so, and she gave each of them an apple. At noon the rain "
    "began. Everybody ran inside, and the square was empty for an hour. Then the sun came back and the market opened "
    "again. There were fish from the river, cheese from the farms, and a man who sold clocks that did not work. "
    "Nobody bought one, but many people stopped to listen to him. " + PROMPT
)
PROMPTS = {"short": PROMPT, "long": STORY}
THREADS = 2
MAX_NODES = 256


def main(preset: str) -> None:
    """Prints every figure as JSON."""
    result: dict[str, Any] = {"preset": preset, "torch": torch.__version__, "threads": THREADS}
    for name in PROMPTS:
        # Each in a process of its own, whose peak memory is then that of this job.
        job = [sys.executable, "-m", "benchmarks", preset, name]
        result[name] = json.loads(subprocess.run(job, check=True, stdout=subprocess.PIPE).stdout)
    result["cold_start"] = cold_start()
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


def measure(preset: str, prompt: str) -> dict[str, float]:
    """Measures one prompt in this process, which has done nothing else yet."""
    torch.set_num_threads(THREADS)
    spliced = cs.load(preset)
    task = cs.Task(prompt, metric=cs.LogitDiff(" Mary", " John"))
    for weight in spliced.model.parameters():
        weight.sum()  # mapped from its file, a weight is in memory only once it has been read
    loaded = peak_mib()
    cs.node_effects(spliced, task)
    effects_peak = peak_mib() - loaded
    circuit = cs.trace(spliced, task, max_nodes=MAX_NODES)
    trace_peak = peak_mib() - loaded
    bare = median_seconds(forward_and_backward(spliced, task))
    return {
        "tokens": len(task.prepare(spliced.vocabulary).tokens),
        "edges": circuit.graph.number_of_edges(),
        "forward_backward_seconds": bare,
        "node_effects_ratio": median_seconds(lambda: cs.node_effects(spliced, task)) / bare,
        "trace_ratio": median_seconds(lambda: cs.trace(spliced, task, max_nodes=MAX_NODES)) / bare,
        "node_effects_peak_mib": effects_peak,
        "trace_peak_mib": trace_peak,
    }


def cold_start() -> dict[str, float]:
    """Measures the command from nothing to a written circuit against the imports alone."""
    with tempfile.TemporaryDirectory() as folder:
        trace = [sys.executable, "-m", "circuitsae", "trace", "--preset", "tiny", "the key to the cabinets"]
        trace += ["--answer", "is", "--foil", "are", "--output", str(Path(folder) / "circuit.json")]
        imports = [sys.executable, "-c", "import torch, transformer_lens"]
        whole, bare = seconds_of(trace), seconds_of(imports)
    return {"trace_seconds": whole, "import_seconds": bare, "ratio": whole / bare}


def forward_and_backward(spliced: cs.SplicedModel, task: cs.Task) -> Callable[[], object]:
    """Returns the bare model from the embeddings on, by TransformerLens' own hooks; weights need no gradient."""
    prepared = task.prepare(spliced.vocabulary)
    tokens = torch.tensor([prepared.tokens])
    spliced.model.requires_grad_(False)

    def run() -> None:
        leaf: list[torch.Tensor] = []

        def at_embed(x: torch.Tensor, hook: object) -> torch.Tensor:
            leaf.append(x.detach().requires_grad_())
            return leaf[0]

        logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[("hook_embed", at_embed)])
        torch.autograd.grad(prepared.metric(logits[:, -1:]).sum(), leaf[0])

    return run


if __name__ == "__main__":
    if len(sys.argv) > 2:
        json.dump(measure(sys.argv[1], PROMPTS[sys.argv[2]]), sys.stdout)
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
