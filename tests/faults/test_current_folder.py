"""What lies in the current folder by chance is never run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import circuitsae


def test_serve_runs_nothing_that_lies_in_the_current_folder(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the app needs the extra 'app'")
    for name in ("gradio_app", "gradio", "torch", "pip"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w'); raise SystemExit(3)")
    environment = {**os.environ, "PYTHONPATH": str(Path(circuitsae.__file__).parents[1])}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "circuitsae", "serve", "--preset", "tiny", "--port", port, "--no-browser"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 1 and "The app can't listen there" in done.stderr, done.stderr
