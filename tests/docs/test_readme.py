"""README's example prints what README says that it prints."""

import re
import shlex
from pathlib import Path

import pytest

from circuitsae.cli.main import run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?%?")


def test_the_first_output_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, said = re.findall(r"```sh\n(circuitsae trace[^\n]+)\n```\n\n```text\n(.*?)```", README, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    assert run([*shlex.split(command)[1:], "--quiet"]) == 0
    printed = capsys.readouterr().out
    for ours, theirs in zip(said.strip().splitlines(), printed.strip().splitlines(), strict=True):
        assert NUMBER.sub("#", " ".join(ours.split())) == NUMBER.sub("#", " ".join(theirs.split()))
        numbers = [[float(n.strip("%").replace(",", "")) for n in NUMBER.findall(line)] for line in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=0.02)  # three digits, rounded on another processor
