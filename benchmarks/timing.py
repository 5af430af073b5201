"""What all benchmarks share: medians of whole calls, of whole processes, a process's peak memory, arguments and output."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any


def median_seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Returns the median time of some runs after one that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def seconds_of(command: Sequence[str]) -> float:
    """Returns the median time of a whole process."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return median_seconds(lambda: subprocess.run(command, check=True, env=dict(os.environ), **quiet))  # type: ignore[call-overload]


def peak_mib() -> float:
    """Returns the most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Returns a benchmark's parser, which tells what its module's docstring does."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--small", action="store_true", help="the smallest shapes: shows that it works, measures nothing"
    )
    return parser


def show(result: Any) -> None:
    """Prints every figure as JSON."""
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")
