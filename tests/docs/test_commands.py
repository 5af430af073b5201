"""The commands that the docs show: all of them parse, and those that need no other host run, page by page, as shown."""

import re
import shlex
from pathlib import Path

import pytest

from circuitsae.__main__ import main
from circuitsae.cli.main import COMMANDS, parser_of

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"```sh\n(.*?)```", re.S)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if BLOCK.search(page.read_text(encoding="utf-8"))
]
ELSEWHERE = ("gpt2", "your-name", "serve", "Mary")  # other hosts, a server that stays, a model to fetch


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of every command of a page's shell blocks, in order."""
    lines = [
        line for block in BLOCK.findall(page.read_text("utf-8")) for line in block.replace("\\\n", " ").splitlines()
    ]
    ours = [line.partition(" | ")[0] for line in lines if line.startswith("circuitsae ")]  # not what reads it
    return [shlex.split(line, comments=True)[1:] for line in ours]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_they_parse(page: Path) -> None:
    for command, *arguments in commands(page):
        assert command in COMMANDS
        parser_of(command).parse_args(arguments)


def test_there_are_some() -> None:
    assert len(PAGES) > 5 and sum(len(commands(page)) for page in PAGES) > 10


def _runs_here(command: list[str]) -> bool:
    return not any(word in argument for argument in command for word in ELSEWHERE)


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if any(map(_runs_here, commands(p)))],
    ids=lambda page: page.name,
)
def test_they_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    # What the pages take for granted: a book, labels of one's own, two circuits.
    (tmp_path / "book.txt").write_text("The old keys near the cabinet are here. The boy walks to the store. " * 20)
    (tmp_path / "mine.csv").write_text("node,label\nblocks.3.hook_resid_post/1,first\n")
    for name, noun in (("singular", "key"), ("plural", "keys")):
        if any(f"{name}.json" in command for command in commands(page)):
            trace = ["trace", f"The {noun} to the cabinet", "--answer", " are", "--foil", " is", "--preset", "tiny"]
            assert main([*trace, "--max-nodes", "8", "-o", f"{name}.json"]) == 0
    for command in filter(_runs_here, commands(page)):
        assert main(command) == 0, command
        for option in ("-o", "--html"):
            if option in command and command[command.index(option) + 1] != "-":  # stdout
                assert (tmp_path / command[command.index(option) + 1]).stat().st_size
    assert "Traceback" not in capsys.readouterr().err
