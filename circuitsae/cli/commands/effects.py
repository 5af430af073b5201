"""`circuitsae effects`: every node's effect, without the graph."""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

from circuitsae.cli import models, options
from circuitsae.cli.output import Console, number, quoted, table
from circuitsae.errors import InputError
from circuitsae.files import check_writable

if TYPE_CHECKING:
    from circuitsae.attribution.effects import NodeEffects

DESCRIPTION = """\
Lists by how much the metric changes when a node is set to its baseline, for every active feature, error node and token
at every site. The default method, auto, predicts them and really ablates the strongest nodes; attribution-patching only
predicts, in one forward and one backward pass; ablation measures all.
"""

EXAMPLES = """\
examples:
  circuitsae effects "The keys to the cabinet" --answer " are" --foil " is" --top 20
  circuitsae effects "The keys to the cabinet" --answer " are" --foil " is" --kind feature error -o effects.csv
  circuitsae effects "The keys to the cabinet" --answer " are" --foil " is" --method-option passes=20
  circuitsae effects "The keys to the cabinet" --answer " are" --foil " is" --method ablation --json
"""

KINDS = ("feature", "error", "token")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    options.add_task(parser)
    options.add_model(parser)
    options.add_attribution(parser)
    result = parser.add_argument_group("result")
    result.add_argument(
        "--kind", nargs="+", choices=KINDS, default=["feature"], help="kinds of nodes to list (feature)"
    )
    options.add_estimate(result)
    result.add_argument("--top", type=options.positive, default=20, metavar="N", help="rows to show (%(default)s)")
    result.add_argument(
        "-o", "--output", action="append", default=[], metavar="FILE", help="write all rows: .csv or .json; repeatable"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Computes, writes, shows."""
    for path in args.output:
        if Path(path).suffix not in (".csv", ".json"):
            raise InputError(f"The file name {path!r} tells no format; expected it to end in .csv or .json.")
        check_writable(path)
    settings = options.attribution_settings(args)
    models.start_torch(args)
    task = options.task_of(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        if args.estimate:
            console.cost(circuitsae.estimate(spliced, task, graph=False, **settings))
            return
        effects = circuitsae.node_effects(spliced, task, progress=progress, **settings)
    for path in args.output:
        _write(effects, args.kind, Path(path))
    strongest = effects.strongest(args.top, kinds=args.kind)
    if console.as_json:
        console.json(
            {
                "metric": effects.metric,
                "method": effects.method,
                "baseline": effects.baseline,
                "gradient": effects.gradient,
                "passes": dict(effects.passes),
                "notes": list(effects.notes),
                "nodes": strongest,
            }
        )
    else:
        total = sum(len(block) for block in effects.blocks if block.kind in args.kind)
        rows = [
            (
                row["node"],
                quoted(row["token"]),
                number(row["activation"]),
                number(row["baseline"]),
                number(row["effect"], signed=True),
                "measured" if row["measured"] else "predicted",
            )
            for row in strongest
        ]
        console.print(f"metric {number(effects.metric)}; {min(args.top, total):,} of {total:,} nodes, strongest first")
        measured = sum(int(b.measured.sum()) for b in effects.blocks if b.measured is not None)
        if measured:
            console.print(f"{measured:,} effects were measured, the others are predicted")
        for line in table(("node", "token", "activation", "baseline", "effect", ""), rows, "llrrrl", console.width):
            console.print(line)
    for note in effects.notes:
        console.note(note)
    console.wrote([Path(path) for path in args.output])


def _write(effects: "NodeEffects", kinds: list[str], path: Path) -> None:
    from circuitsae.files import write_whole

    rows = list(effects.records(kinds))
    if path.suffix == ".json":
        text = json.dumps(rows, allow_nan=False)
    else:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(
            buffer,
            ["node", "kind", "site", "index", "position", "token", "activation", "baseline", "effect", "measured"],
        )
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_whole({path: text.encode()})
