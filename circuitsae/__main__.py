"""`python -m circuitsae` and the `circuitsae` command."""

import sys


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 (it failed) or 2 (an argument can't be used)."""
    from circuitsae.cli.main import run

    return run(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
