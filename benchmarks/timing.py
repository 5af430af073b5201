"""How all benchmarks measure: medians of whole calls, of whole processes, and a process's peak memory."""

import os
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence


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
