"""The command as a whole: help, versions, unknown words, exit status, and how errors are said."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from circuitsae import __version__
from circuitsae.cli import main
from circuitsae.cli.main import COMMANDS, parser_of, run
from circuitsae.errors import CircuitsaeError, InputError


def _command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "circuitsae", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["presets"], ["plugins", "metrics"], ["trace", "--help"]]
)
def test_light_commands_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from circuitsae.cli.main import run; status = run(sys.argv[1:]);"
        "print(*sys.modules, file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    loaded = set(done.stderr.split())
    assert "circuitsae.cli.main" in loaded
    assert not {"torch", "transformers", "transformer_lens", "gradio", "pandas"} & loaded


def test_help_lists_every_command_and_version_is_the_packages() -> None:
    help_text = _command("--help").stdout
    for command, summary in COMMANDS.items():
        assert f"{command} " in help_text
        assert summary in help_text
    assert _command("--version").stdout == f"circuitsae {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_every_option(command: str) -> None:
    for action in parser_of(command)._actions:
        assert action.help, f"{command} {action.option_strings or action.dest} has no help"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trcae"], "No command is called 'trcae'; did you mean 'trace'?"),
        (["--json"], "--json comes after a command; 'circuitsae --help' lists them."),
        (["plugins", "--chekc"], "unrecognized arguments: --chekc ('circuitsae plugins --help' lists the options)."),
        (["plugins", "metric"], "No kind of plugin is called 'metric'; did you mean 'metrics'?"),
        (["trace"], "the following arguments are required: PROMPT ('circuitsae trace --help' lists the options)."),
        (
            ["trace", "a", "--max-nodes", "0"],
            "argument --max-nodes: 0 is too small; expected at least 1 ('circuitsae trace --help' lists the options).",
        ),
    ],
)
def test_a_bad_argument_is_one_sentence_and_status_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"circuitsae: {sentence}\n")


def _raises(error: BaseException) -> Callable[..., None]:
    def command(*_: object) -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("Give a number."), 2, "circuitsae: Give a number.\n"),
        (CircuitsaeError("The download\nstopped."), 1, "circuitsae: The download stopped.\n"),
        (KeyboardInterrupt(), 1, "circuitsae: stopped.\n"),
        (
            ZeroDivisionError("division by zero"),
            1,
            "circuitsae: unexpected ZeroDivisionError: division by zero (--traceback shows where).\n",
        ),
    ],
)
def test_whatever_goes_wrong_is_said_in_one_line(
    error: BaseException,
    status: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("circuitsae.cli.commands.plugins.run", _raises(error))
    assert run(["plugins"]) == status
    assert capsys.readouterr().err == sentence


def test_traceback_is_shown_when_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("circuitsae.cli.commands.plugins.run", _raises(ZeroDivisionError("division by zero")))
    assert run(["plugins", "--traceback"]) == 1
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("circuitsae: unexpected ZeroDivisionError: division by zero\n")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m circuitsae plugins --json | head -c 1", shell=True, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("{", "")


def test_help_of_a_command_comes_by_either_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "plugins"]) == 0
    first = capsys.readouterr().out
    assert run(["plugins", "--help"]) == 0
    assert capsys.readouterr().out == first
    assert main.DESCRIPTION not in first
