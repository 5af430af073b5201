"""`python -m circuitsae` and the `circuitsae` command."""

import sys
from pathlib import Path


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 (it failed) or 2 (an argument can't be used)."""
    from circuitsae.cli.main import run

    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    # "python -m" looks into the current folder first; what lies there by chance is not to be imported.
    if not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
        del sys.path[0]
    sys.exit(main())
