"""`circuitsae export`: a saved circuit in another format."""

import argparse
import sys
from typing import TYPE_CHECKING

from circuitsae.cli import circuits, labelling, options
from circuitsae.cli.output import Console
from circuitsae.errors import GraphFileError, InputError

if TYPE_CHECKING:
    from circuitsae.graph.circuit import Circuit

DESCRIPTION = """\
Writes a saved circuit in another format, told by the file's suffix or by --format; 'circuitsae plugins exporters'
lists them. Without -o it shows the circuit as text. Needs no model and no torch.
"""

EXAMPLES = """\
examples:
  circuitsae export circuit.json -o circuit.graphml -o circuit.html
  circuitsae export circuit.json --format dot -o circuit.txt
  circuitsae export circuit.json --top 30
  circuitsae export FOLDER --task 7 -o seventh.html
  circuitsae export neuronpedia-graph.json -o circuit.html -o circuit.json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "circuit",
        metavar="CIRCUIT",
        help="a file that trace wrote, or circuit-tracer's graph JSON; - is stdin; a batch's folder with --task",
    )
    parser.add_argument("--task", type=int, metavar="N", help="which of a batch's circuits: its task's number, from 0")
    parser.add_argument(
        "-o", "--output", action="append", default=[], metavar="FILE", help="where to, - is stdout; repeatable"
    )
    parser.add_argument("--format", metavar="NAME", help="the format, where the suffix does not tell")
    parser.add_argument("--labels", metavar="FILE", help="feature labels to add: a file, or NAME:... of a source")
    parser.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Reads, writes."""
    outputs = [(path, circuits.format_of(path, args.format)) for path in args.output]
    circuit = _read(args.circuit, args.task)
    if args.labels:
        labelling.label(circuit, args.labels, None, console)
    if circuits.write(circuit, outputs, console):
        return
    if console.as_json:
        console.print(circuit.to_json().rstrip())
    elif not outputs:
        console.report(circuit.report(args.top))


def _read(path: str, task: int | None) -> "Circuit":
    """Returns a saved circuit, one of a batch, or the one in a graph of circuit-tracer's, which tells itself by its parts."""
    from circuitsae.batch.opened import is_batch, open_batch
    from circuitsae.export.circuit_tracer import from_circuit_tracer, is_circuit_tracer, read_circuit_tracer
    from circuitsae.graph.circuit import Circuit

    if is_batch(path):
        batch = open_batch(path)
        if task is None:
            raise InputError(
                f"{path!r} holds {len(batch.done):,} circuits; say which with --task N, or average them: "
                f"circuitsae aggregate {path}."
            )
        return batch.circuit(task)
    if task is not None:
        raise InputError(f"--task is for a folder that batch wrote; {path!r} is none.")
    if path == circuits.STDOUT:
        text = sys.stdin.buffer.read()
        try:
            return Circuit.from_json(text)
        except GraphFileError as error:
            if b'"links"' not in text:
                raise error
            return from_circuit_tracer(text)
    try:
        return Circuit.load(path)
    except GraphFileError:
        if not is_circuit_tracer(path):
            raise
    return read_circuit_tracer(path)
