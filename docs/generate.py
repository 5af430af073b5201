"""Writes docs/cli.md from the parsers themselves. Run by `make fix`; a test holds the file to what this gives."""

import os
from pathlib import Path

from circuitsae.cli.main import COMMANDS, parser_of

HEAD = """\
# Command line

<!-- written by docs/generate.py: change the parsers and run `make fix` -->

Results go to stdout or into files, notes and progress bars to stderr. The exit status is 0, 1 where the work failed, or
2 where an argument can't be used; then nothing is left behind, and stderr has one sentence that says why.
"""


def cli_page() -> str:
    """Returns the page: the help of every command."""
    os.environ["COLUMNS"] = "100"  # argparse wraps to the terminal's width
    parts = [HEAD]
    for command, summary in COMMANDS.items():
        text = parser_of(command).format_help().rstrip()
        parts.append(f"## circuitsae {command}\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(cli_page(), encoding="utf-8")
