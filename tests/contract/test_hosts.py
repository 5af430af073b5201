"""No file names the host of a package registry: what is installed from where is the user's to say."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTRIES = re.compile(
    "|".join(("py" + r"pi\.", "python" + "hosted", "npm" + r"js\.", "yarn" + r"pkg\.", "crates" + r"\.io", "ana" + r"conda\."))
)  # fmt: skip


def test_no_file_names_a_registry() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout by git")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert len(files) > 100
    found = [str(file.relative_to(ROOT)) for file in files if file.is_file() and REGISTRIES.search(file.read_text("utf-8", "ignore"))]  # fmt: skip
    assert not found
