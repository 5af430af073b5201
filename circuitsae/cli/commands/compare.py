"""`circuitsae compare`: what two saved circuits share, and where they differ."""

import argparse

from circuitsae.cli import options
from circuitsae.cli.output import Console
from circuitsae.files import check_writable

DESCRIPTION = """\
Compares two saved circuits of one model: of two prompts, two methods or two prunings. Differences are B's less A's; a
node or edge that one of them lacks counts as zero there. Needs no model and no torch.
"""

EXAMPLES = """\
examples:
  circuitsae compare singular.json plural.json
  circuitsae compare singular.json plural.json --align sum --html difference.html
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("a", metavar="A", help="a file that trace wrote")
    parser.add_argument("b", metavar="B", help="another")
    parser.add_argument(
        "--align",
        default="position",
        metavar="NAME",
        help="how nodes are matched: by position (default), by template (the tokens that both prompts share), or sum: by "
        "feature, over all positions",
    )
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write the difference as a circuit; format by suffix; repeatable",
    )
    parser.add_argument("--html", metavar="FILE", help="write the difference as one page that opens from disk")
    parser.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Reads, compares, writes, shows."""
    from circuitsae.graph.circuit import Circuit, exporter_for
    from circuitsae.graph.comparison import compare

    outputs = [(path, exporter_for(path).name) for path in args.output]
    if args.html:
        outputs.append((args.html, "html"))
    for path, _ in outputs:
        check_writable(path)
    found = compare(Circuit.load(args.a), Circuit.load(args.b), align=args.align)
    written = [file for path, name in outputs for file in found.circuit.export(path, format=name)]
    if console.as_json:
        console.json({"similarity": found.similarity, "nodes": found.nodes_table(), "edges": found.edges_table()})
    else:
        console.report(found.report(args.top))
    console.wrote(written)
