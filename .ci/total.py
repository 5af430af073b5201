"""Prints one closing line for several pytest runs: `total: N passed, N failed, N skipped`; arguments: JUnit files."""

import sys
from xml.etree import ElementTree

counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
for path in sys.argv[1:]:
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
failed = counts["failures"] + counts["errors"]
print(f"total: {counts['tests'] - failed - counts['skipped']} passed, {failed} failed, {counts['skipped']} skipped")
