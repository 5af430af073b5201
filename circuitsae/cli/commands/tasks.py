"""`circuitsae tasks`: which task sets there are, and their tasks in a model's own words."""

import argparse

from circuitsae.cli import evaluating, models, options
from circuitsae.cli.output import Console, quoted, table
from circuitsae.files import check_writable

DESCRIPTION = """\
Lists the task sets that can be drawn in a model's own words or, with a NAME, draws one: prompts with counterfactuals of
equal length, and answers and foils of one token each. The same name, model, number and seed give the same tasks.
"""

EXAMPLES = """\
examples:
  circuitsae tasks --preset tiny
  circuitsae tasks ioi -n 200 --seed 1 -o ioi.jsonl
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    evaluating.add_tasks(parser, optional=True)
    options.add_model(parser)
    result = parser.add_argument_group("result")
    result.add_argument("-o", "--output", metavar="FILE", help="write the tasks, as .jsonl or .csv")
    result.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Draws, writes, shows."""
    if args.output:
        check_writable(args.output)
    models.start_torch(args)
    if args.tasks is None and not (args.preset or args.model or args.dictionary):
        from circuitsae.presets import default_preset

        args.preset = default_preset().name  # the sets' names are not worth a download
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
    from circuitsae.task.sets import describe_sets

    if args.tasks is None:
        rows = describe_sets(spliced)
        if console.as_json:
            console.json(rows)
            return
        cells = [[r["name"], r["asks"].replace("`", "'"), r.get("problem", "")] for r in rows]
        for line in table(("name", "asks", "problem"), cells, "lll", console.width):
            console.print(line)
        return
    found = evaluating.task_set_of(args, spliced)
    evaluating.say(found, console)
    if args.output:
        found.write(args.output)
    records = found.records()
    if console.as_json:
        console.json(records)
    else:
        cells = [
            [str(r["clean"]), quoted(str(r["answer"])), quoted(str(r["foil"])), str(r.get("patch", ""))]
            for r in records
        ]
        for line in table(("prompt", "answer", "foil", "patch"), cells[: args.top], "llll", console.width):
            console.print(line)
    if args.output:
        from pathlib import Path

        console.wrote([Path(args.output)])
