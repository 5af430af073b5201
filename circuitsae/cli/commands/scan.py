"""`circuitsae scan`: many interventions as one table and its picture."""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitsae.cli import models, options
from circuitsae.cli.output import Console, number, quoted, table
from circuitsae.errors import InputError
from circuitsae.files import check_writable

if TYPE_CHECKING:
    from circuitsae.scans import AblationScan, ActivityScan, SteeringCurve

DESCRIPTION = """\
Scans a prompt, or those of a file of tasks.

ablation   ablates every active feature and error node, one at a time, beside what attribution predicted (default)
activity   lists the active features
scales     multiplies one node by factors from -2 to 3, beside the line that attribution predicts (--node)

-o FILE writes all rows (.csv, .json), or the picture (.png, .svg, .pdf by matplotlib, .html by plotly): nodes by prompt or
position, or with --scatter predicted against measured effects.
"""

EXAMPLES = """\
examples:
  circuitsae scan "The keys to the cabinet" --answer " are" --foil " is" --position -1 -o heatmap.png
  circuitsae scan "The keys to the cabinet" --answer " are" --foil " is" --scatter -o scatter.html
  circuitsae scan --tasks prompts.jsonl --nodes 50 -o effects.csv
  circuitsae scan "The keys to the cabinet" --answer " are" --what scales --node blocks.7.hook_resid_post/12@2
"""

TABLES, PICTURES = (".csv", ".json"), (".png", ".svg", ".pdf", ".html")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    options.add_task(parser, optional=True)
    scan = parser.add_argument_group("scan")
    scan.add_argument("--what", choices=["ablation", "activity", "scales"], default="ablation", help="see above")
    scan.add_argument("--tasks", metavar="FILE", help="tasks in JSON lines or CSV: clean, patch, answer, foil")
    scan.add_argument("--node", metavar="NODE", help="the node that is scaled")
    scan.add_argument("--scales", nargs="+", type=float, metavar="BY", help="the factors (-2 to 3 in quarters)")
    scan.add_argument("--at", type=int, metavar="N", help="nodes of this position only; -1 is the last")
    scan.add_argument(
        "--nodes", type=options.positive, metavar="N", help="the N nodes of largest predicted effect only"
    )
    result = parser.add_argument_group("result")
    result.add_argument("--by", choices=["prompt", "position"], help="columns of the picture")
    result.add_argument("--scatter", action="store_true", help="picture predicted against measured effects")
    result.add_argument("--top", type=options.positive, default=20, metavar="N", help="rows to show (%(default)s)")
    result.add_argument("-o", "--output", action="append", default=[], metavar="FILE", help="repeatable, see above")
    options.add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Scans, writes, shows."""
    for path in args.output:
        if Path(path).suffix not in TABLES + PICTURES:
            known = ", ".join(TABLES + PICTURES)
            raise InputError(f"The file name {path!r} tells no format; expected it to end in one of {known}.")
        check_writable(path)
    if args.what == "scales" and args.node is None:
        raise InputError("--what scales needs the node to scale; add --node NODE.")
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        tasks: list[Any]
        if args.tasks is not None:
            tasks = list(circuitsae.read_tasks(args.tasks, spliced.vocabulary))
        elif args.what == "activity" and not args.answer:
            if args.prompt is None:
                raise InputError('No prompt was given; expected one, such as "The keys to the cabinet".')
            tasks = [options.token_ids(args.prompt) if args.token_ids else args.prompt]
        else:
            tasks = [options.task_of(args)]
        found: AblationScan | ActivityScan | SteeringCurve
        if args.what == "activity":
            found = circuitsae.scan_activity(spliced, tasks, position=args.at)
        elif args.what == "scales":
            if len(tasks) != 1:
                raise InputError(f"--what scales takes one task; {args.tasks} holds {len(tasks)}.")
            found = circuitsae.scan_scales(spliced, tasks[0], args.node, scales=args.scales)
        else:
            found = circuitsae.scan_ablation(spliced, tasks, position=args.at, top=args.nodes, progress=progress)
    by = args.by or ("prompt" if len(tasks) > 1 else "position")
    for path in args.output:
        _write(found, Path(path), by, args.scatter)
    if console.as_json:
        console.json(_as_dict(found))
    else:
        _show(found, console, args.top)
    console.wrote([Path(path) for path in args.output])


def _rows(found: "AblationScan | ActivityScan | SteeringCurve") -> list[dict[str, Any]]:
    from circuitsae.scans import SteeringCurve

    if isinstance(found, SteeringCurve):
        points = zip(found.scales, found.metrics, found.linear, strict=True)
        return [{"scale": scale, "metric": metric, "linear": line} for scale, metric, line in points]
    return list(found.rows)


def _as_dict(found: "AblationScan | ActivityScan | SteeringCurve") -> dict[str, Any]:
    from circuitsae.scans import AblationScan, SteeringCurve

    result: dict[str, Any] = {"rows": _rows(found)}
    if isinstance(found, AblationScan):
        agreement = found.agreement()
        names = ("n", "correlation", "rank_correlation", "slope", "intercept", "sign_errors")
        result["agreement"] = {name: getattr(agreement, name) for name in names}
        result["agreement"]["outliers"] = [row["node"] for row in agreement.outliers]
    if isinstance(found, SteeringCurve):
        result |= {"node": found.node, "slope": found.slope, "breaks": found.breaks()}
    return result


def _write(found: "AblationScan | ActivityScan | SteeringCurve", path: Path, by: str, scatter: bool) -> None:
    from circuitsae.files import write_whole

    if path.suffix in PICTURES:
        write_whole({path: _picture(found, path.suffix, by, scatter)})
        return
    rows = _rows(found)
    if path.suffix == ".json":
        text = json.dumps(rows, allow_nan=False)
    else:
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    write_whole({path: text.encode()})


def _picture(found: "AblationScan | ActivityScan | SteeringCurve", suffix: str, by: str, scatter: bool) -> bytes:
    from circuitsae.scans import AblationScan, SteeringCurve

    backend = "plotly" if suffix == ".html" else "matplotlib"
    figure: Any
    if isinstance(found, SteeringCurve):
        figure = found.plot(backend=backend)
    elif isinstance(found, AblationScan) and scatter:
        figure = found.plot_agreement(backend=backend)
    else:
        figure = found.plot("prompt" if by == "prompt" else "position", backend=backend)
    if backend == "plotly":
        return figure.to_html(include_plotlyjs=True).encode()
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:])
    return buffer.getvalue()


def _show(found: "AblationScan | ActivityScan | SteeringCurve", console: Console, top: int) -> None:
    from circuitsae.scans import AblationScan, SteeringCurve

    if isinstance(found, SteeringCurve):
        low, high = found.breaks()
        console.heading(f"{found.node}: {number(found.slope, signed=True)} per unit of the factor is predicted")
        console.print(
            "the line holds within 10% "
            + ("at every factor" if low is None and high is None else f"between {_end(low)} and {_end(high)}")
        )
        console.print()
        rows = [(number(r["scale"]), number(r["metric"]), number(r["linear"])) for r in _rows(found)]
        lines = table(("factor", "metric", "line"), rows, "rrr", console.width)
    elif isinstance(found, AblationScan):
        console.heading(str(found.agreement()))
        console.print()
        rows = [
            (
                str(r["prompt"]),
                r["node"],
                quoted(r["token"]),
                number(r["activation"]),
                number(r["predicted"], signed=True),
                number(r["measured"], signed=True),
            )
            for r in found.strongest(top)
        ]
        lines = table(("prompt", "node", "token", "activation", "predicted", "measured"), rows, "rllrrr", console.width)
    else:
        console.heading(f"{len(found.rows):,} active features; the strongest")
        strongest = sorted(found.rows, key=lambda row: -abs(row["activation"]))[:top]
        rows = [(str(r["prompt"]), r["node"], quoted(r["token"]), number(r["activation"])) for r in strongest]
        lines = table(("prompt", "node", "token", "activation"), rows, "rllr", console.width)
    for line in lines:
        console.print(line)


def _end(value: float | None) -> str:
    return "the end" if value is None else number(value)
