"""`circuitsae evaluate`: what a circuit is worth on a set of tasks."""

import argparse
from typing import TYPE_CHECKING, Any

from circuitsae.cli import evaluating, models, options
from circuitsae.cli.output import Console, table
from circuitsae.files import check_writable

if TYPE_CHECKING:
    from circuitsae.evaluation.result import Evaluation

DESCRIPTION = """\
Measures a circuit: faithfulness (what of the answer is left when everything else is ablated), completeness (what is left
when just the circuit is), and the curve over circuits of growing size with its areas CPR and CMD, beside orders by
activation and by chance. Without a circuit, nodes are taken in the order of their predicted effects.
"""

EXAMPLES = """\
examples:
  circuitsae evaluate ioi --preset tiny -n 20
  circuitsae evaluate tasks.jsonl --circuit keys.json --edges --minimality 10 -o keys.evaluation.json
  circuitsae evaluate agreement-rc -n 500 --store run-1          # goes on from there if it is stopped
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    evaluating.add_tasks(parser)
    options.add_model(parser)
    evaluating.add_evaluation(parser)
    group = parser.add_argument_group("circuit")
    group.add_argument(
        "--circuit", metavar="FILE", help="a circuit that trace wrote; of aligned tasks, or summed over positions"
    )
    group.add_argument("--edges", action="store_true", help="also measure what remains when only its edges transmit")
    group.add_argument(
        "--minimality", type=evaluating.count, default=0, metavar="N", help="leave out its N strongest nodes in turn"
    )
    group.add_argument(
        "--positions", action="store_true", help="without a circuit: a node is a feature at one position"
    )
    result = parser.add_argument_group("result")
    result.add_argument("-o", "--output", metavar="FILE", help="write everything that was measured, as JSON")
    result.add_argument(
        "--store", metavar="FOLDER", help="keep rows as they come (Parquet), and go on from there when called again"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Evaluates, writes, shows."""
    from circuitsae.graph.circuit import Circuit

    if args.output:
        check_writable(args.output)
    circuit = None if args.circuit is None else Circuit.load(args.circuit)
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)
        tasks = evaluating.task_set_of(args, spliced, aligned=args.positions)
        evaluating.say(tasks, console)

        import circuitsae

        found = circuitsae.evaluate(
            spliced,
            tasks,
            circuit,
            positions=True if args.positions else None,
            edges=args.edges,
            minimality=args.minimality,
            store=args.store,
            progress=progress,
            **evaluating.evaluation_of(args),
        )
    if args.output:
        found.save(args.output)
    if console.as_json:
        console.json(found.summary())
    else:
        show(found, console)
    if args.output:
        from pathlib import Path

        console.wrote([Path(args.output)])


def show(found: "Evaluation", console: Console) -> None:
    """Prints the numbers."""
    about = found.about
    console.heading(f"{about['tasks']['name']}: {found.metrics.shape[1]} prompts, {about['n_nodes']:,} nodes")
    rows: list[list[str]] = [["metric", str(found.metric)], ["metric, all ablated", str(found.empty_metric)]]
    for name, value in (
        ("faithfulness", found.faithfulness), ("completeness", found.completeness),
        ("faithfulness of its edges", found.edge_faithfulness),
    ):  # fmt: skip
        if value is not None:
            rows.append([name, str(value)])
    for line in table(("", ""), rows, "ll", console.width)[1:]:
        console.print(line)
    console.print()
    cells: list[list[str]] = []
    for name, curve in found.curves.items():
        points = [p for p in curve.points if p.size]
        best = next((p for p in points if (p.faithfulness.value or 0) >= 0.9), None)
        cells.append(
            [
                name,
                str(curve.cpr),
                str(curve.cmd),
                "" if best is None else f"{best.size:,} of {_whole(about, curve.of):,}",
            ]
        )
    for line in table(("order", "CPR", "CMD", "0.9 faithful with"), cells, "llll", console.width):
        console.print(line)
    if found.minimality:
        console.print()
        cells = [[m.node, str(m.marginal)] for m in found.minimality]
        for line in table(("node", "lost without it"), cells, "ll", console.width):
            console.print(line)
    lost = found.undefined_prompts()
    if lost:
        console.note(
            f"On {len(lost)} prompts ablating everything hardly moves the metric; their own ratios are undefined."
        )


def _whole(about: Any, of: str) -> int:
    return int(about["n_edges" if of == "edges" else "n_nodes"])
