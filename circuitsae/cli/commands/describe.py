"""`circuitsae describe`: what every feature is about, counted over a text and written once."""

import argparse
from pathlib import Path

from circuitsae.cli import models, options
from circuitsae.cli.output import Console, file_size, number, percent
from circuitsae.files import check_writable

DESCRIPTION = """\
Describes every feature of a preset's dictionaries by a text, and writes a Parquet store that traces, exports and the app
read labels from: tokens that the feature promotes and suppresses, the stretches of text on which it is most active, how
often and how strongly it is active. The text is read piece by piece; it may be long.
"""

EXAMPLES = """\
examples:
  circuitsae describe smollm2 --text book.txt --tokens 100000 -o labels.parquet
  circuitsae describe tiny --text stories.txt letters.txt -o tiny.parquet --contexts 10
  circuitsae trace "The keys to the cabinet" --answer " are" --foil " is" --labels labels.parquet
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("preset_name", nargs="?", metavar="PRESET", help="a name from 'circuitsae presets'")
    parser.add_argument("--text", nargs="+", required=True, metavar="FILE", help="plain text, UTF-8; several in turn")
    parser.add_argument(
        "-o", "--output", default="labels.parquet", metavar="FILE", help="where the store goes (%(default)s)"
    )
    group = parser.add_argument_group("how much")
    group.add_argument("--tokens", type=options.positive, metavar="N", help="tokens of text at most (all)")
    group.add_argument(
        "--length", type=options.positive, default=128, metavar="N", help="tokens of one sequence (%(default)s)"
    )
    group.add_argument(
        "--batch", type=options.positive, default=8, metavar="N", help="sequences run at once (%(default)s)"
    )
    group.add_argument(
        "--contexts", type=options.positive, default=5, metavar="N", help="contexts a feature (%(default)s)"
    )
    group.add_argument(
        "--promoted", type=options.positive, default=8, metavar="N", help="promoted tokens a feature (%(default)s)"
    )
    options.add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Counts, writes, shows a few."""
    check_writable(args.output)
    if args.preset_name is not None:
        args.preset = args.preset_name
    models.start_torch(args)
    from circuitsae.labels.describing import Recipe, describe

    recipe = Recipe(args.tokens, args.length, args.batch, args.contexts, tokens=args.promoted)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
        store = describe(spliced, args.text, args.output, recipe=recipe, progress=progress)
    path = Path(args.output)
    active, shown = 0, dict.fromkeys(store.sites)
    for description in store:
        active += bool(description.density)
        if description.contexts and shown[description.site] is None:
            shown[description.site] = description
    if console.as_json:
        console.json({"file": str(path), "bytes": path.stat().st_size, "features": len(store), "active": active})
        return
    console.print(
        f"{len(store):,} features of {len(store.sites)} sites, {active:,} of them active on {store.about['counted']:,} "
        f"tokens; {file_size(path.stat().st_size)}"
    )
    for description in filter(None, shown.values()):
        console.print()
        share, top = percent(description.density or 0.0), number(description.largest)
        console.text(f"{description.node}: {description.label} (active on {share}, up to {top})")
        console.text("  " + description.contexts[0].marked().replace("\n", " "))
    console.wrote([path])
