"""What the commands that trace do with their circuit: label it, write it, show it."""

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from circuitsae import registry
from circuitsae.cli import labelling, options
from circuitsae.cli.output import Console
from circuitsae.errors import InputError
from circuitsae.files import check_writable

if TYPE_CHECKING:
    from circuitsae.graph.circuit import Circuit

STDOUT = "-"
Outputs = list[tuple[str, str]]
"""Files and the formats to write them in."""


def add_min_count(group: Any) -> None:
    """Adds in how many circuits a node must be to stay in their average."""
    group.add_argument(
        "--min-count",
        type=options.positive,
        default=1,
        metavar="N",
        help="leave out nodes of fewer circuits (%(default)s)",
    )


def add_result(parser: argparse.ArgumentParser) -> Any:
    """Adds where the circuit goes; returns the group."""
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write the circuit; format by suffix, - is stdout; repeatable",
    )
    result.add_argument(
        "--labels", metavar="SOURCE", help="feature labels: a file or NAME:...; the preset's own by default, or none"
    )
    result.add_argument("--html", metavar="FILE", help="write the circuit as one page that opens from disk")
    result.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")
    return result


def outputs_of(args: argparse.Namespace) -> Outputs:
    """Returns the files to write, before there is anything to be written.

    Raises:
        InputError: One can't be written.
        UnknownNameError: A suffix is no format's.
    """
    outputs = [(path, format_of(path)) for path in args.output]
    if args.html:
        outputs.append((args.html, "html"))
    for path, _ in outputs:
        if path != STDOUT:
            check_writable(path)
    return outputs


def format_of(path: str, given: str | None = None) -> str:
    """Returns the name of the format to write in: the one that is given, else by suffix; stdout gets our own.

    Raises:
        InputError: The suffix is no format's.
    """
    from circuitsae.graph.circuit import exporter_for

    return given or ("json" if path == STDOUT else exporter_for(path).name)


def write(circuit: "Circuit", outputs: Outputs, console: Console) -> bool:
    """Writes a circuit's files, `-` to stdout, and says which; tells whether stdout has it already.

    Raises:
        InputError: A file can't be written, or a format of several files is to go to stdout.
    """
    written = []
    for path, name in outputs:
        if path != STDOUT:
            written += circuit.export(path, format=name)
            continue
        content = registry.get("exporters", name)(circuit)
        if not isinstance(content, str | bytes):
            raise InputError(f"The format {name} has several files, which can't go to stdout; name a file.")
        try:
            text = content if isinstance(content, str) else content.decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"The format {name} is no text, and can't go to stdout here; name a file.") from None
        console.print(text.rstrip("\n"))
    console.wrote(written)
    return any(path == STDOUT for path, _ in outputs)


def give(
    circuit: "Circuit",
    args: argparse.Namespace,
    outputs: Outputs,
    preset: str | None,
    dictionaries: Iterable[Any],
    console: Console,
) -> None:
    """Labels the circuit of a preset's model, or of these dictionaries; writes its files and shows it."""
    labelling.label(circuit, args.labels, preset, console, dictionaries)
    if write(circuit, outputs, console):
        return
    if console.as_json:
        console.print(circuit.to_json().rstrip())
    else:
        console.report(circuit.report(args.top))
