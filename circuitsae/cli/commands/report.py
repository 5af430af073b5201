"""`circuitsae report`: a task set from tracing to evaluation, as one page that a person can read who was not there."""

import argparse
import json
from pathlib import Path

from circuitsae.cli import circuits, evaluating, models, options
from circuitsae.cli.commands.evaluate import show
from circuitsae.cli.output import Console
from circuitsae.files import check_writable

DESCRIPTION = """\
Traces tasks of a set (--circuits of them), joins the circuits, measures what the joint circuit is worth, and writes one
HTML page with the circuit, the curves beside their baselines, predicted against measured effects, and where it is all from;
and the same as JSON. The page opens from disk and asks the network for nothing.
"""

EXAMPLES = """\
examples:
  circuitsae report ioi --preset tiny -n 20 -o ioi.html
  circuitsae report tasks.jsonl --circuits 50 --max-nodes 200 -o tasks.html
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    evaluating.add_tasks(parser)
    options.add_model(parser)
    evaluating.add_evaluation(parser)
    graph = parser.add_argument_group("circuit")
    graph.add_argument(
        "--circuits", type=options.positive, default=10, metavar="N", help="tasks to trace (%(default)s)"
    )
    graph.add_argument(
        "--max-nodes", type=options.positive, default=128, metavar="N", help="features kept of each (%(default)s)"
    )
    graph.add_argument(
        "--measure", type=evaluating.count, default=24, metavar="N", help="nodes of each to really ablate (%(default)s)"
    )
    circuits.add_min_count(graph)
    graph.add_argument("--edges", action="store_true", help="also measure what remains when only its edges transmit")
    graph.add_argument(
        "--minimality", type=evaluating.count, default=0, metavar="N", help="leave out its N strongest nodes in turn"
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o", "--output", metavar="FILE", help="the page (TASKS.report.html); the JSON is put beside it"
    )
    result.add_argument(
        "--store", metavar="FOLDER", help="keep the evaluation's rows as they come, and go on from there"
    )
    result.add_argument("--title", metavar="TEXT", help="the page's heading")


def run(args: argparse.Namespace, console: Console) -> None:
    """Traces, evaluates, writes."""
    page = Path(args.output or f"{Path(args.tasks).stem}.report.html")
    data = page.with_suffix(".json")
    for path in (page, data):
        check_writable(path)
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
        tasks = evaluating.task_set_of(args, spliced, aligned=True)
        evaluating.say(tasks, console)

        import circuitsae
        from circuitsae.evaluation.page import report_page
        from circuitsae.files import write_whole
        from circuitsae.graph.aggregation import aggregate

        chosen = evaluating.evaluation_of(args)
        # Effects are of what nodes are set to when traced; a task's own patch prompt is the nearest there is to "resample".
        baseline = chosen["baseline"] if chosen["baseline"] in ("zero", "patch") else None
        traced = []
        for done, task in enumerate(tasks.tasks[: args.circuits]):
            traced.append(
                circuitsae.trace(spliced, task, baseline=baseline, max_nodes=args.max_nodes, measure=args.measure)
            )
            progress(done + 1, min(args.circuits, len(tasks)), "circuits")
        one_length = len({len(c.tokens) for c in traced}) == 1
        joint = aggregate(traced, align="position" if one_length else "sum", min_count=min(args.min_count, len(traced)))
        found = circuitsae.evaluate(
            spliced,
            tasks,
            joint,
            edges=args.edges,
            minimality=args.minimality,
            store=args.store,
            progress=progress,
            **chosen,
        )
    text = report_page(joint, found, tasks.records()[:8], args.title, traced)
    whole = {
        "evaluation": json.loads(found.to_json()),
        "circuit": json.loads(joint.to_json()),
        "tasks": tasks.records(),
    }
    write_whole({page: text.encode(), data: json.dumps(whole, allow_nan=False).encode()})
    if console.as_json:
        console.json(found.summary())
    else:
        show(found, console)
    console.wrote([page, data])
