"""Every Python block of README and docs runs, page by page, and what a comment says that a line gives is what it gives.

A block after `<!-- not run: REASON -->` needs something that tests don't have, a download for instance; it must compile.
"""

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?P<before><!-- not run: [^>]+ -->\n\n?)?^```python\n(?P<code>.*?)^```$", re.S | re.M)


@dataclass
class Block:
    code: str
    line: int
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(m["code"], text[: m.start("code")].count("\n"), m["before"] is None) for m in BLOCK.finditer(text)]


def promised(code: str) -> dict[int, Any]:
    """Returns the literal that the comment after each line's code is, where it is one."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            try:
                found[token.start[0]] = ast.literal_eval(token.string.lstrip("# "))
            except (ValueError, SyntaxError):
                continue
    return found


def run(code: str, namespace: dict[str, Any], where: str, line: int) -> None:
    """Runs a block statement by statement and holds it to its comments."""
    tree = ast.parse(code, where)
    ast.increment_lineno(tree, line)
    comments = {number + line: value for number, value in promised(code).items()}
    for statement in tree.body:
        expected = comments.get(statement.end_lineno or 0)
        if isinstance(statement, ast.Expr) and expected is not None:
            value = eval(compile(ast.Expression(statement.value), where, "eval"), namespace)
            assert value == approximately(expected), f"{where}:{statement.lineno}"
        else:
            exec(compile(ast.Module([statement], []), where, "exec"), namespace)


def approximately(value: Any) -> Any:
    """Numbers in docs are rounded: three digits have to agree."""
    if isinstance(value, float):
        return pytest.approx(value, rel=2e-2, abs=5e-3)
    if isinstance(value, (list, tuple)) and any(isinstance(v, (float, list, tuple)) for v in value):
        return type(value)(approximately(v) for v in value)
    return value


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_blocks_run_and_give_what_they_say(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if block.runs:
            run(block.code, namespace, page.name, block.line)
        else:
            compile(block.code, page.name, "exec")


def test_the_runner_sees_a_wrong_number(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n```python\nx = 1.5\nx * 2  # 3.0\n```\n\n<!-- not run: because -->\n```python\nfail()\n```\n"
    )
    first, second = blocks_of(page)
    run(first.code, {}, "page", first.line)
    assert first.runs and not second.runs
    with pytest.raises(AssertionError, match="page:5"):
        run(first.code.replace("3.0", "3.2"), {}, "page", first.line)
