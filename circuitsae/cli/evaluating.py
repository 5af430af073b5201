"""Options of the commands that work on task sets, and what they become."""

import argparse
from typing import TYPE_CHECKING, Any

from circuitsae.cli import options
from circuitsae.cli.output import Console

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.task.sets import TaskSet


def add_tasks(parser: argparse.ArgumentParser, *, optional: bool = False, n: int | None = 100) -> None:
    """Adds the task set; without `n`, a file is read to its end."""
    parser.add_argument(
        "tasks",
        nargs="?" if optional else None,
        metavar="TASKS",
        help="a name from 'circuitsae tasks', a .jsonl, .json, .csv or .parquet file with columns clean, patch, answer, "
        "foil, or hf://datasets/...; see docs/tasks.md",
    )
    group = parser.add_argument_group("tasks")
    group.add_argument(
        "-n",
        type=options.positive,
        default=n,
        metavar="N",
        help="tasks to draw, or read at most (%(default)s)" if n else "tasks to draw (100), or read at most (all)",
    )
    group.add_argument("--seed", type=count, default=0, metavar="N", help="of all that is drawn (%(default)s)")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Adds how circuits are measured."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--baseline", metavar="NAME", help="what ablated nodes are set to: patch (default), zero, mean or resample"
    )
    group.add_argument(
        "--errors",
        default="default",
        metavar="NAME",
        help="error nodes are nodes like others (default), keep or remove",
    )
    group.add_argument("--start-layer", type=count, default=0, metavar="N", help="layers below are never ablated")
    group.add_argument(
        "--grid", nargs="+", type=float, metavar="X", help="shares of all nodes to measure, ascending (MIB's)"
    )
    group.add_argument("--no-complement", action="store_true", help="leave completeness out, which is half of the work")
    group.add_argument(
        "--compare", nargs="*", default=["activation", "random"], metavar="ORDER",
        help="orders to set it against: activation random (both by default), effect",
    )  # fmt: skip
    group.add_argument(
        "--random", type=options.positive, default=3, metavar="N", help="random orders, averaged (%(default)s)"
    )
    group.add_argument(
        "--bootstrap", type=count, default=1000, metavar="N", help="draws for the intervals (%(default)s)"
    )


def task_set_of(args: argparse.Namespace, spliced: "SplicedModel", *, aligned: bool = False) -> "TaskSet":
    """Returns the task set that the options name.

    Raises:
        InputError: A file that can't be read.
        UnknownNameError: No set is called that.
        TaskError: The model's vocabulary lacks the words.
    """
    from circuitsae.task.reading import is_task_file, read_tasks
    from circuitsae.task.sets import task_set

    if is_task_file(args.tasks):
        return read_tasks(args.tasks, spliced, n=args.n)
    return task_set(args.tasks, spliced, args.n or 100, args.seed, aligned=aligned)


def say(tasks: "TaskSet", console: Console) -> None:
    """Says what of the tasks was left out; where that is most of a file, the command fails at its end."""
    for problem in (*tasks.notes, *tasks.problems):
        console.note(problem)
    if tasks.mostly_bad:
        console.error(f"{len(tasks.problems):,} rows of {tasks.name} can't be used, and only {len(tasks):,} can.")
        console.status = 1


def evaluation_of(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `evaluate` that the options give."""
    grid = {} if args.grid is None else {"grid": tuple(args.grid)}
    return {
        "baseline": args.baseline,
        "errors": args.errors,
        "start_layer": args.start_layer,
        "complement": not args.no_complement,
        "compare": tuple(args.compare),
        "n_random": args.random,
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        **grid,
    }


def count(text: str) -> int:
    """Returns a whole number of at least zero."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected at least 0")
    return value
