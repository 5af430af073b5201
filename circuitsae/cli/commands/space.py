"""`circuitsae space`: the app as a Hugging Face Space."""

import argparse
import tempfile
from pathlib import Path

from circuitsae.cli.output import Console, file_size
from circuitsae.cli.space import build_folder, check_name, find_settings, push, read_settings, summary

DESCRIPTION = """\
Builds the folder of a Hugging Face Space (app.py, pinned requirements, README, the package), creates or updates the Space,
and waits until it runs; where it does not, the end of its log is shown. What it is like stands in spaces.yaml.
"""

EXAMPLES = """\
examples:
  circuitsae space push your-name/circuitsae --dry-run --folder built
  circuitsae space push your-name/circuitsae
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("action", choices=["push"], help="create or update the Space")
    parser.add_argument("name", metavar="ORG/NAME", help="the Space's name")
    parser.add_argument("--dry-run", action="store_true", help="build the folder, ask the hub nothing")
    parser.add_argument("--folder", metavar="FOLDER", help="build here, and keep it")
    parser.add_argument("--settings", metavar="FILE", help="another file than spaces.yaml")
    parser.add_argument("--private", action="store_true", help="only you see it, if it is made now")
    parser.add_argument("--no-wait", action="store_true", help="don't wait until it runs")


def run(args: argparse.Namespace, console: Console) -> None:
    """Builds and pushes it.

    Raises:
        InputError: The name, the settings or the folder can't be used.
        MissingExtraError: What the app needs is not installed.
        FetchError: Nobody is logged in, or the hub refuses.
        CircuitsaeError: The Space does not come to run.
    """
    check_name(args.name)
    settings = read_settings(find_settings(args.settings))
    with tempfile.TemporaryDirectory(prefix="circuitsae-space-") as temporary:
        folder = Path(args.folder).expanduser() if args.folder is not None else Path(temporary) / "space"
        files = build_folder(settings, folder)
        built = {"space": args.name, "hardware": settings.hardware, **summary(files, folder)}
        url = None
        if not args.dry_run:
            wait = None if args.no_wait else 1800
            url = push(args.name, settings, folder, is_private=args.private, wait=wait, say=console.note)
        if console.as_json:
            console.json(built | {"url": url, "folder": args.folder})
            return
        console.print(f"{built['files']} files, {file_size(built['bytes'])}, {len(built['requirements'])} requirements")
        if url is not None:
            console.print(f"{args.name} is at {url}")
        elif args.folder is not None:
            console.print(f"Built in {folder}; try it there with: python app.py")
        else:
            console.print("Nothing was pushed (--dry-run); --folder keeps what is built.")
