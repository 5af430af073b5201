"""`circuitsae serve`: the app, in the browser."""

import argparse
import importlib
import importlib.util

from circuitsae.cli import options
from circuitsae.cli.output import Console
from circuitsae.errors import CircuitsaeError, MissingExtraError
from circuitsae.presets import find_preset, reference_of

DESCRIPTION = """\
Starts the app, which needs the extra 'app': trace, look at the circuit, ablate a node, see the prediction hold or fail.
The page is there within seconds and shows a circuit; the model is loaded behind it. Ctrl-C stops it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--preset", metavar="NAME", help="preset that is chosen at first (smollm2 if present, else tiny)"
    )
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=options.positive, metavar="N", help="port (the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link, through gradio's servers")
    parser.add_argument(
        "--public", action="store_true", help="for strangers: only models that are there, short prompts, no uploads"
    )
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints as tools of an MCP server too")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which the app may be reached, besides localhost and addresses (may be repeated)",
    )
    parser.add_argument("--no-browser", action="store_true", help="don't open a browser")


def run(args: argparse.Namespace, console: Console) -> None:
    """Starts the app and waits for its end.

    Raises:
        MissingExtraError: gradio is not installed.
        UnknownNameError: No preset is called that.
        CircuitsaeError: The address can't be listened at.
    """
    # Asked first: whoever installs the extra for a preset that does not exist would have done so for nothing.
    preset = None if args.preset is None else reference_of(find_preset(args.preset))
    if importlib.util.find_spec("gradio") is None:
        raise MissingExtraError("'circuitsae serve'", "gradio", "app")
    # By name, when it is wanted: the package knows nothing of its app.
    app = importlib.import_module("gradio_app.app")
    try:
        app.serve(
            preset,
            host=args.host,
            port=args.port,
            browser=not args.no_browser,
            share=args.share,
            public=args.public,
            mcp=args.mcp,
            allow_hosts=args.allow_host,
        )
    except CircuitsaeError:
        raise
    except OSError as error:  # no free port, an address that is not ours
        raise CircuitsaeError(f"The app can't listen there: {error}") from error
