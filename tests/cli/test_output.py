"""What the command shows."""

import io
import json
import sys

import pytest

from circuitsae.cli.output import Console, file_size, number, percent, printable, quoted, table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_token_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b]0;owned\x07b\n\u202e") == "a\\x1b]0;owned\\x07b\\n\\u202e"
    assert quoted(" é") == '" é"'
    [_, line] = table(("key",), [("\x1b[2J",)], "l")
    assert line == "\\x1b[2J"


def test_table_leaves_empty_columns_out_and_keeps_within_the_width() -> None:
    lines = table(("node", "measured", "label"), [("a/1@2", "", "colours"), ("a/10@2", "", "a long label")], "lrl", 16)
    assert lines == ["node    label", "a/1@2   colours", "a/10@2  a long …"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (-0.5, "-0.500"), (0.0004, "4.00e-04"), (1234567.0, "1.23e+06"), (None, "")]
)
def test_number_always_shows_digits_that_matter(value: float | None, text: str) -> None:
    assert number(value) == text


def test_shares_and_sizes_read_well() -> None:
    assert [percent(s) for s in (1.0, 0.314, 0.0314, 0.0)] == ["100 %", "31 %", "3.1 %", "0.0 %"]
    assert [file_size(n) for n in (0, 999, 1500, 5_900_000, 538_090_408)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "5.9 MB",
        "538 MB",
    ]


def test_stdout_holds_only_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(as_json=True)
    with console.only_results_on_stdout():
        print("Loaded pretrained model into HookedTransformer")  # noqa: T201
        console.json({"effect": 1})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"effect": 1}
    assert "Loaded pretrained model" in err


def test_bars_are_drawn_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitsae.cli.output._DELAY", 0)
    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with Console().progress() as progress:
            for done in range(3):
                progress(done, 2, "edges")
        assert ("edges" in stream.getvalue()) is drawn


def test_quiet_draws_and_notes_nothing_but_still_says_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    console = Console(quiet=True)
    with console.progress() as progress:
        progress(1, 2, "edges")
    console.note("fetching")
    assert stream.getvalue() == ""
    console.error("no.")
    assert stream.getvalue() == "circuitsae: no.\n"


def test_headings_are_bold_on_a_terminal_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for setting, text in ((None, "\033[1mhead\033[0m\n"), ("1", "head\n")):
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.delenv("NO_COLOR", raising=False)
        if setting:
            monkeypatch.setenv("NO_COLOR", setting)
        Console().heading("head")
        assert stream.getvalue() == text
