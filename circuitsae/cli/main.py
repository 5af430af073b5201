"""Reads the command line, runs one command, and turns what goes wrong into one sentence and an exit status."""

import argparse
import importlib
import os
import sys
import traceback
from typing import NoReturn

from circuitsae import __version__
from circuitsae.cli.output import Console
from circuitsae.errors import CircuitsaeError, InputError, UnknownNameError

COMMANDS = {
    "trace": "trace the circuit behind a model's answer",
    "effects": "list what each active feature does to the answer, without the graph",
    "intervene": "ablate, scale, add to or set nodes, and see what becomes of the answer",
    "generate": "let the model write with nodes changed, next to what it writes of itself",
    "scan": "ablate every active node, list what is active, or scale one node, as tables and plots",
    "evaluate": "measure what a circuit is worth on a set of tasks",
    "report": "trace and evaluate a set of tasks, as one page",
    "aggregate": "trace a set of tasks, and average the circuits",
    "batch": "trace a set of tasks of any size into a folder of tables, and go on when called again",
    "tasks": "list the task sets, and their tasks in a model's own words",
    "export": "write a saved circuit in another format",
    "compare": "show what two saved circuits share and where they differ",
    "push": "put saved circuits on the Hugging Face hub, as a dataset with a card",
    "describe": "describe every feature of a model's dictionaries by a text",
    "serve": "open the app in the browser",
    "presets": "list the models and dictionaries that have a name",
    "fetch": "get a preset's files",
    "dictionaries": "browse the registry of pretrained dictionaries",
    "space": "put the app on the Hugging Face hub, as a Space of your own",
    "plugins": "list metrics, methods, formats and whatever else is registered",
    "doctor": "check the installation, and that attached dictionaries leave a model's logits alone",
}

DESCRIPTION = """\
Traces sparse feature circuits in language models.

commands:
{commands}

'circuitsae COMMAND --help' explains a command. Start with:
  circuitsae trace "When Mary and John went to the store, John gave a drink to" --answer " Mary" --foil " John"
"""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one sentence and no guessing at abbreviations."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(
            *args,  # type: ignore[arg-type]
            **{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **kwargs},  # type: ignore[arg-type]
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} ('{self.prog} --help' lists the options).")


def parser_of(command: str) -> Parser:
    """Returns the parser of one command."""
    parser = Parser(prog=f"circuitsae {command}")
    module = importlib.import_module(f"circuitsae.cli.commands.{command}")
    module.configure(parser)
    shared = parser.add_argument_group("output")
    shared.add_argument("--json", action="store_true", help="write the result to stdout as JSON")
    shared.add_argument("--quiet", action="store_true", help="no notes and no progress bars on stderr")
    shared.add_argument("--traceback", action="store_true", help="show where an error came from")
    parser.set_defaults(run=module.run)
    return parser


def run(argv: list[str]) -> int:
    """Runs the command line and returns its exit status: 0, 1 (it failed) or 2 (an argument can't be used)."""
    console = Console()
    show_traceback = "--traceback" in argv
    try:
        if not argv or argv[0] in ("-h", "--help", "help"):
            if argv[1:] and argv[0] == "help":
                parser_of(_command(argv[1])).print_help()
            else:
                console.print(_description())
            return 0
        if argv[0] in ("-V", "--version"):
            console.print(f"circuitsae {__version__}")
            return 0
        args = parser_of(_command(argv[0])).parse_args(argv[1:])
        console = Console(as_json=args.json, quiet=args.quiet)
        with console.only_results_on_stdout():
            args.run(args, console)
        console.flush()
        return console.status
    except SystemExit as stop:  # argparse has shown its help
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of stdout has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        console.error("stopped.")
        return 1
    except CircuitsaeError as error:
        if show_traceback:
            traceback.print_exc()
        console.error(_one_line(error))
        return 2 if isinstance(error, InputError) else 1
    except Exception as error:  # whatever it is, a person at a terminal gets a sentence first
        if show_traceback:
            traceback.print_exc()
        where = "" if show_traceback else " (--traceback shows where)."
        console.error(f"unexpected {type(error).__name__}: {_one_line(error)}{where}")
        return 1


def _command(name: str) -> str:
    if name in COMMANDS:
        return name
    if name.startswith("-"):
        raise InputError(f"{name} comes after a command; 'circuitsae --help' lists them.")
    raise UnknownNameError("command", name, COMMANDS)


def _description() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name.ljust(width)}  {summary}" for name, summary in COMMANDS.items())
    return DESCRIPTION.format(commands=rows).rstrip()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
