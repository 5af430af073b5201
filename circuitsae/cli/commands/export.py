"""`circuitsae export`: a saved circuit in another format."""

import argparse

from circuitsae.cli import labelling, options
from circuitsae.cli.output import Console

DESCRIPTION = """\
Writes a saved circuit in another format, told by the file's suffix or by --format; 'circuitsae plugins exporters'
lists them. Without -o it shows the circuit as text. Needs no model and no torch.
"""

EXAMPLES = """\
examples:
  circuitsae export circuit.json -o circuit.graphml -o circuit.html
  circuitsae export circuit.json --format dot -o circuit.txt
  circuitsae export circuit.json --top 30
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("circuit", metavar="CIRCUIT", help="a file that trace wrote")
    parser.add_argument("-o", "--output", action="append", default=[], metavar="FILE", help="where to; repeatable")
    parser.add_argument("--format", metavar="NAME", help="the format, where the suffix does not tell")
    parser.add_argument("--labels", metavar="FILE", help="feature labels to add: a file, or NAME:... of a source")
    parser.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Reads, writes."""
    from circuitsae.graph.circuit import Circuit, exporter_for

    outputs = [(path, args.format or exporter_for(path).name) for path in args.output]
    circuit = Circuit.load(args.circuit)
    if args.labels:
        labelling.label(circuit, args.labels, None, console)
    written = [file for path, name in outputs for file in circuit.export(path, format=name)]
    if console.as_json:
        console.print(circuit.to_json().rstrip())
    elif not outputs:
        console.report(circuit.report(args.top))
    console.wrote(written)
