"""`circuitsae push`: circuits as a dataset on the Hugging Face hub."""

import argparse
import os
from pathlib import Path

from circuitsae.cli.output import Console, file_size
from circuitsae.errors import InputError

DESCRIPTION = """\
Uploads saved circuits to a dataset repository of the Hugging Face hub: the graphs, a page and a picture of each, tables
for the hub's viewer, and a card that says what they explain and how they were traced. The repository is made where
there is none. With --folder, writes the same files there and asks no network.
"""

EXAMPLES = """\
examples:
  circuitsae push keys.json names.json --to someone/circuits --private
  circuitsae push keys.json --folder dataset --licence cc-by-4.0
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("circuit", nargs="+", metavar="CIRCUIT", help="files that trace wrote; named as they are")
    parser.add_argument("--to", metavar="NAME/DATASET", help="the dataset's repository")
    parser.add_argument("--folder", metavar="FOLDER", help="write the dataset here, in place of an upload")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument(
        "--licence", metavar="NAME", help="the card's licence, as the hub abbreviates it: cc-by-4.0 ..."
    )
    parser.add_argument("--message", default="Circuits", metavar="TEXT", help="the commit's (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Reads, uploads or writes.

    Raises:
        InputError: A file is no circuit, two are called the same, or it is not said where to.
        FetchError: The hub can't be reached, or refuses.
    """
    from circuitsae.export.publishing import push_dataset, write_dataset
    from circuitsae.graph.circuit import Circuit

    if (args.to is None) == (args.folder is None):
        raise InputError("Say where the circuits go: either --to NAME/DATASET, or --folder FOLDER.")
    circuits: dict[str, Circuit] = {}
    for path in args.circuit:
        name = Path(path).name.removesuffix(".json")
        if name in circuits:
            raise InputError(f"Two of the circuits are called {name!r}; rename one of the files.")
        circuits[name] = Circuit.load(path)
    if args.folder is not None:
        files = write_dataset(circuits, args.folder, args.licence)
        size = sum(os.stat(file).st_size for file in files)
        result = {"folder": args.folder, "files": [str(file) for file in files], "bytes": size}
        text = f"{args.folder} holds {len(circuits)} circuits in {len(files)} files, {file_size(size)}"
    else:
        address = push_dataset(circuits, args.to, private=args.private, licence=args.licence, message=args.message)
        result, text = {"address": address, "circuits": list(circuits)}, address
    if console.as_json:
        console.json(result)
    else:
        console.print(text)
