"""`python -m gradio_app`: the same as `circuitsae serve`, which starts this in a process of its own."""

import argparse
import importlib.util
import sys

from circuitsae.errors import CircuitsaeError, MissingExtraError


def main(argv: list[str] | None = None) -> int:
    """Starts the app; returns 0, 1 (it can't start) or 2 (an argument can't be used)."""
    parser = argparse.ArgumentParser(prog="python -m gradio_app", allow_abbrev=False)
    parser.add_argument("--preset", metavar="NAME", help="preset that is chosen at first")
    parser.add_argument("--host", default="127.0.0.1", metavar="HOST", help="address to listen at (%(default)s)")
    parser.add_argument("--port", type=int, metavar="N", help="port (the first free one from 7860)")
    parser.add_argument("--share", action="store_true", help="make a public link, through gradio's servers")
    parser.add_argument(
        "--public", action="store_true", help="for strangers: only models that are there, short prompts"
    )
    parser.add_argument("--mcp", action="store_true", help="offer the endpoints as tools of an MCP server too")
    parser.add_argument("--no-browser", action="store_true", help="don't open a browser")
    args = parser.parse_args(argv)
    try:
        if importlib.util.find_spec("gradio") is None:
            raise MissingExtraError("The app", "gradio", "app")
        from gradio_app.app import serve

        serve(
            args.preset,
            host=args.host,
            port=args.port,
            browser=not args.no_browser,
            share=args.share,
            public=args.public,
            mcp=args.mcp,
        )
    except CircuitsaeError as error:
        print(f"circuitsae: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:  # no free port, an address that is not ours
        print(f"circuitsae: the app can't listen there: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
