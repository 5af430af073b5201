"""`circuitsae batch`: the circuits of a set of tasks of any size, as a folder of tables."""

import argparse

from circuitsae.cli import evaluating, models, options
from circuitsae.cli.output import Console, counted

DESCRIPTION = """\
Traces every task of a set into a folder of Parquet tables (tasks, nodes, edges), which pandas, polars, DuckDB and
circuitsae.open_batch read. Called again on the same folder it does what is missing. A task that can't be traced is a row
with the reason; where that is most of them, the status is 1.
"""

EXAMPLES = """\
examples:
  circuitsae batch ioi -n 200 --preset tiny -o ioi --workers 2
  circuitsae batch tasks.parquet -o run-1 --shard 3/8            # on a cluster: see docs/scale.md
  circuitsae aggregate run-1 -o mean.json
  circuitsae export run-1 --task 7 -o seventh.html
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    evaluating.add_tasks(parser, n=None)
    options.add_model(parser)
    options.add_attribution(parser)
    options.add_graph(parser)
    group = parser.add_argument_group("batch")
    group.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to; made if it is not there")
    group.add_argument(
        "--shard",
        type=shard,
        default=(1, 1),
        metavar="I/N",
        help="only the I-th of N parts of the work; the others share the folder",
    )
    group.add_argument(
        "--workers", type=options.positive, default=1, metavar="N", help="processes, each with a model (%(default)s)"
    )
    group.add_argument(
        "--per-file", type=options.positive, metavar="N", help="tasks written together; by default up to 1,000 files"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Traces, writes, says what there is."""
    settings = options.attribution_settings(args) | options.graph_settings(args)
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
        tasks = evaluating.task_set_of(args, spliced)
        evaluating.say(tasks, console)

        import circuitsae

        batch = circuitsae.run_batch(
            spliced,
            tasks,
            args.output,
            shard=args.shard,
            workers=args.workers,
            per_file=args.per_file,
            progress=progress,
            **settings,
        )
    errors, done, missing = batch.errors, len(batch.done), len(batch.missing)
    if 2 * len(errors) > done + len(errors):
        console.error(f"Most tasks have no circuit; the first: {next(iter(errors.values()))}")
        console.status = 1
    if console.as_json:
        console.json({"folder": args.output, "tasks": len(batch), "done": done, "missing": missing, "errors": errors})
        return
    console.print(f"{args.output}: {counted(done, 'circuit', 'circuits')} of {counted(len(batch), 'task', 'tasks')}")
    if missing:
        console.print(f"still to be done: {missing:,}")
    for number, error in list(errors.items())[:10]:
        console.text(f"task {number}: {error}")
    if len(errors) > 10:
        console.print(f"and {len(errors) - 10:,} other tasks without a circuit")


def shard(text: str) -> tuple[int, int]:
    """Returns `I/N` as two whole numbers."""
    first, slash, last = text.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no part of the work; expected I/N with I from 1 to N, such as 3/8"
        )
    return int(first), int(last)
