"""Prints one closing line for several pytest runs: `total: N passed, N failed, N skipped`.

Arguments: JUnit files; `--name NAME` for another word than total.
"""

import argparse
from xml.etree import ElementTree

counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--name", default="total")
parser.add_argument("files", nargs="+")
args = parser.parse_args()
for path in args.files:
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
failed = counts["failures"] + counts["errors"]
print(
    f"{args.name}: {counts['tests'] - failed - counts['skipped']} passed, {failed} failed, {counts['skipped']} skipped"
)
