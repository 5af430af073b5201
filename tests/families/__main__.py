"""Writes docs/models.md, or prints the rows of some families: `python -m tests.families [FAMILY ...]`."""

import sys

from tests.families.building import NotBuiltError, row
from tests.families.configurations import FAMILIES
from tests.families.page import PAGE, page

if __name__ == "__main__":
    rows = {}
    for family in sys.argv[1:] or FAMILIES:
        try:
            rows[family] = row(family)
        except NotBuiltError as error:
            sys.exit(f"{family} can't be built here: {error}")
        lines = [
            f"    {cell}: {text}"
            for cell, text in rows[family].items()
            if len(sys.argv) > 1 or "wrong: " in text or "crash: " in text
        ]
        sys.stdout.write("\n".join([family, *lines]) + "\n")
        sys.stdout.flush()
    if len(sys.argv) == 1:
        PAGE.write_text(page(rows), encoding="utf-8")
