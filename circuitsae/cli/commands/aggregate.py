"""`circuitsae aggregate`: the circuits of a set of tasks as one, with how far they spread."""

import argparse

from circuitsae.cli import circuits, evaluating, models, options
from circuitsae.cli.output import Console

DESCRIPTION = """\
Traces every task of a set and averages the circuits. Every number is a mean over the tasks, zero where a task's circuit
lacks the node; on each node and edge stand the number of circuits that have it and the standard deviation over all.
Given a folder that 'circuitsae batch' wrote, all of its circuits are averaged, and no model is loaded.
"""

EXAMPLES = """\
examples:
  circuitsae aggregate ioi -n 20 -o ioi.json --html ioi.html
  circuitsae aggregate agreement-rc -n 30 --align template --min-count 10
  circuitsae aggregate tasks.csv --align sum --max-nodes 100 -o tasks.json
  circuitsae aggregate FOLDER -o mean.json                     # of a batch
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    evaluating.add_tasks(parser, n=20)
    options.add_model(parser)
    options.add_attribution(parser)
    options.add_graph(parser)
    joint = parser.add_argument_group("aggregation")
    joint.add_argument(
        "--align",
        metavar="HOW",
        help="nodes are the same by position (default where all prompts have one length), by template (the tokens that "
        "all share, and what lies between), or sum (a feature's positions are one node; default elsewhere)",
    )
    circuits.add_min_count(joint)
    circuits.add_result(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Traces, averages, writes, shows."""
    from circuitsae.batch.opened import is_batch, open_batch

    outputs = circuits.outputs_of(args)
    if is_batch(args.tasks):
        joint = open_batch(args.tasks).aggregate(align=args.align, min_count=args.min_count)
        circuits.give(joint, args, outputs, joint.graph.graph.get("preset"), (), console)
        return
    settings = options.attribution_settings(args) | options.graph_settings(args)
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
        tasks = evaluating.task_set_of(args, spliced, aligned=args.align in (None, "position"))
        evaluating.say(tasks, console)

        import circuitsae

        lengths = {len(task.prepare(spliced.vocabulary).tokens) for task in tasks}
        align = args.align or ("position" if len(lengths) == 1 else "sum")
        cases = sorted(set(tasks.cases) - {""})
        if align == "position" and len(cases) > 1:
            console.note(
                f"The tasks are of {len(cases)} cases ({', '.join(cases[:6])}), in which a position may mean different "
                "things; --align template or sum, or one case at a time, keeps them apart."
            )
        circuit = circuitsae.trace_many(
            spliced, tuple(tasks), align=align, min_count=args.min_count, progress=progress, **settings
        )
    circuits.give(circuit, args, outputs, spliced.preset, spliced.dictionaries, console)
