"""Commands that write, killed at any moment, on a full disk, and twice at once."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import circuitsae


def test_killed_commands_leave_whole_files_and_the_next_run_cleans_up() -> None:
    """42 kills; more by hand: python -m tests.faults --kills 500."""
    root = Path(circuitsae.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "tests.faults", "--kills", "42"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=590)
    assert done.returncode == 0, done.stderr[-4000:]
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert seen[-1]["killed"] >= 20 and len(seen) == 13 - (importlib.util.find_spec("gradio") is None)


@pytest.mark.parametrize("arguments", [["presets"], ["presets", "--json"], ["--help"]])
def test_a_full_disk_below_stdout_is_said_in_a_sentence(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "circuitsae", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == "circuitsae: The result can't be written to stdout: no space left on device.\n"


def test_a_full_disk_below_stderr_costs_no_result() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "circuitsae", "presets", "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True, timeout=120)
    assert done.returncode == 0 and json.loads(done.stdout)
