"""Writes docs/cli.md from the parsers, and the table of formats in docs/loaders.md from the loaders themselves.

Run by `make fix`; a test holds the files to what this gives.
"""

import os
from pathlib import Path

from circuitsae.cli.main import COMMANDS, parser_of
from circuitsae.dictionaries.loaders.plugin import formats

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


FORMATS = ("<!-- formats: written by docs/generate.py -->\n", "\n<!-- end of formats -->")


def loaders_page(page: str) -> str:
    """Returns docs/loaders.md with its table of formats as the loaders are."""
    rows = [f"| `{form.name}` | {form.files} | {' '.join(form.origin.split())} |" for form in formats()]
    before, after = page.split(FORMATS[0])[0], page.split(FORMATS[1])[1]
    return "\n".join(
        [before + FORMATS[0], "| name | files | from |", "| --- | --- | --- |", *rows, FORMATS[1][1:] + after]
    )


if __name__ == "__main__":
    loaders = Path(__file__).with_name("loaders.md")
    loaders.write_text(loaders_page(loaders.read_text(encoding="utf-8")), encoding="utf-8")
    Path(__file__).with_name("cli.md").write_text(cli_page(), encoding="utf-8")
