"""Labels in a local table: CSV, TSV, JSON or JSON Lines, small enough to be read whole."""

import os
from pathlib import Path

from circuitsae import names
from circuitsae.graph.labels import read_labels
from circuitsae.labels.records import Mapped


class TableLabels(Mapped):
    """The labels of a `.csv`, `.tsv`, `.json` or `.jsonl` file (`circuitsae.graph.labels.read_labels` says what it
    holds). A label for a feature at one position counts for the feature.

    Raises:
        InputError: The file can't be read, or a row names no feature.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        found: dict[tuple[str, int], str] = {}
        for key, label in read_labels(path).items():
            node = names.parse(key)
            assert node.site is not None and node.index is not None  # read_labels gives features only
            if node.position is None or (node.site, node.index) not in found:
                found[node.site, node.index] = label
        super().__init__(found, Path(path).name)
