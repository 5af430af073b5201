"""`python -m gradio_app`: the same as `circuitsae serve`."""

import sys

from circuitsae.cli.main import run

if __name__ == "__main__":
    sys.exit(run(["serve", *sys.argv[1:]]))
