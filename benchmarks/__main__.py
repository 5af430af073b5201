"""Node effects, whole traces, memory and the command's cold start, as multiples of what they are measured against.

    python -m benchmarks [PRESET] > trace.json
    python -m benchmarks all --json FILE

Times are the median of three in one run, divided by the bare model's forward + backward pass over the same prompt; peak
memory is what each job's own process held above the loaded model. The cold start is a whole `circuitsae trace` on
`tiny`, divided by a process that only imports torch and transformer_lens. `all` runs every benchmark there is.
"""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import circuitsae as cs
from benchmarks.timing import median_seconds, parser_of, peak_mib, seconds_of, show
from circuitsae.files import replacing

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
BENCHMARKS: dict[str, list[str]] = {
    "trace": [],
    "frozen": [],
    "effects": [],
    "ablation": [],
    "evaluation": [],
    "methods": ["--json"],
    "products": [],
    "pruning": [],
    "app": [],
}
"""Every benchmark, with what makes it print JSON."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON, or has all benchmarks write theirs into one file."""
    parser = parser_of(__doc__)
    parser.add_argument("preset", nargs="?", default="smollm2", help="or `all`, for every benchmark")
    parser.add_argument("--json", type=Path, metavar="FILE", help="with `all`: where to")
    parser.add_argument("--prompt", choices=PROMPTS, help="one of the prompts, in this process")
    args = parser.parse_args(arguments)
    if (args.preset == "all") != (args.json is not None):
        parser.error("all benchmarks write to a file: python -m benchmarks all --json FILE")
    small = ["--small"] if args.small else []
    if args.preset == "all":
        sys.exit(run_all(args.json, small))
    preset, nodes, prompts = ("tiny", 8, ["short"]) if args.small else (args.preset, MAX_NODES, list(PROMPTS))
    if args.prompt is not None:
        show(measure(preset, PROMPTS[args.prompt], nodes))
        return
    result: dict[str, Any] = {"preset": preset, "torch": torch.__version__, "threads": THREADS}
    for name in prompts:
        # Each in a process of its own, whose peak memory is then that of this job.
        job = [sys.executable, "-m", "benchmarks", args.preset, "--prompt", name, *small]
        result[name] = json.loads(subprocess.run(job, check=True, stdout=subprocess.PIPE).stdout)
    if not args.small:
        result["cold_start"] = cold_start()
    show(result)


def run_all(file: Path, small: Sequence[str]) -> int:
    """Runs every benchmark, each in a process of its own, and writes what they give to a file; those that fail are named."""
    results, failed = {}, {}
    for name, options in BENCHMARKS.items():
        module = "benchmarks" if name == "trace" else f"benchmarks.{name}"
        done = subprocess.run([sys.executable, "-m", module, *options, *small], capture_output=True, text=True)
        if done.returncode:
            failed[name] = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            sys.stderr.write(f"{name}: {failed[name]}\n")
        else:
            results[name] = json.loads(done.stdout)
    about = {
        "date": datetime.date.today().isoformat(),
        "processor": processor(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformer_lens", "numpy")},
        "small": bool(small),
    }
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({**about, "results": results, "failed": failed}, indent=1), encoding="utf-8")
    return 1 if failed else 0


def processor() -> str:
    """Returns the processor's name and what its vector units can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def measure(preset: str, prompt: str, max_nodes: int) -> dict[str, float]:
    """Measures one prompt in this process, which has done nothing else yet."""
    torch.set_num_threads(THREADS)
    spliced = cs.load(preset)
    task = cs.Task(prompt, metric=cs.LogitDiff(" Mary", " John"))
    for weight in spliced.model.parameters():
        weight.sum()  # mapped from its file, a weight is in memory only once it has been read
    loaded = peak_mib()
    cs.node_effects(spliced, task, method="attribution-patching")
    effects_peak = peak_mib() - loaded
    circuit = cs.trace(spliced, task, method="attribution-patching", max_nodes=max_nodes)
    trace_peak = peak_mib() - loaded
    bare = median_seconds(forward_and_backward(spliced, task))
    return {
        "tokens": len(task.prepare(spliced.vocabulary).tokens),
        "edges": circuit.graph.number_of_edges(),
        "forward_backward_seconds": bare,
        "node_effects_ratio": median_seconds(lambda: cs.node_effects(spliced, task, method="attribution-patching"))
        / bare,
        "trace_ratio": median_seconds(
            lambda: cs.trace(spliced, task, method="attribution-patching", max_nodes=max_nodes)
        )
        / bare,
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
    main()
