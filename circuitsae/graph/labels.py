"""Labels: what people or programs say a feature is about, read from local files and put on a circuit's nodes."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from circuitsae import names
from circuitsae.errors import InputError
from circuitsae.files import read_whole
from circuitsae.graph.schema import Graph, shown

_MAX_BYTES = 512 * 2**20
_TEXT_COLUMNS = ("label", "description")


def read_labels(path: str | os.PathLike[str], max_bytes: int = _MAX_BYTES) -> dict[str, str]:
    """Returns the labels in a local file, by feature key.

    Each row has a `label` (or `description`) and names a feature: by `node` (`blocks.3.hook_mlp_out/17`, with or
    without a position), or by `site` and `index`. Rows with an empty label are left out.

    Args:
        path: `.csv` or `.tsv` with a header line, `.jsonl` with an object to a line, or `.json`: a list of such
            objects, or one object from key to label.
        max_bytes: Larger files are refused.

    Raises:
        InputError: The file can't be read, has another suffix, or a row names no feature (given with its number).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise InputError(f"Labels are read from .csv, .tsv, .jsonl or .json files; {str(path)!r} is none.")
    try:
        text = read_whole(path, max_bytes).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"The labels in {str(path)!r} are not UTF-8 text.") from None
    found: dict[str, str] = {}
    try:
        for row, record in _records(text, suffix):
            labelled = _label_of(record, f"{str(path)!r}, row {row}")
            if labelled:
                found[labelled[0]] = labelled[1]
    except (csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The labels in {str(path)!r} can't be read: {error}.") from None
    return found


def attach_labels(graph: Graph, labels: Mapping[str, str]) -> int:
    """Sets `label` on the features that `labels` names and returns how many those are.

    A key with a position goes before the same feature's key without one.
    """
    count = 0
    for key, data in graph.nodes(data=True):
        if data["kind"] != "feature":
            continue
        label = labels.get(key) or labels.get(names.feature(data["site"], data["index"]))
        if label:
            data["label"] = label
            count += 1
    return count


def _records(text: str, suffix: str) -> Iterable[tuple[int, Any]]:
    """Yields each row's number, counted from 1 without the header, and its contents."""
    if suffix == ".jsonl":
        yield from ((row, json.loads(line)) for row, line in enumerate(text.splitlines(), 1) if line.strip())
    elif suffix == ".json":
        content = json.loads(text)
        if isinstance(content, dict):
            content = [{"node": key, "label": label} for key, label in cast(dict[str, Any], content).items()]
        if not isinstance(content, list):
            raise InputError("The labels are neither a list of objects nor an object from key to label.")
        yield from enumerate(cast(list[Any], content), 1)
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        yield from enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1)


def _label_of(record: Any, where: str) -> tuple[str, str] | None:
    """Returns a row's feature key and label, `None` where the label is empty."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object with a feature and its label; got {shown(record)}.")
    row = cast(dict[str, Any], record)
    named = next((name for name in _TEXT_COLUMNS if name in row), None)
    if named is None:
        raise InputError(f"{where}: there is no 'label'; the row has {', '.join(map(shown, row)) or 'nothing'}.")
    label = row[named]
    if label is None or label == "":
        return None
    if not isinstance(label, str):
        raise InputError(f"{where}: the label is {shown(label)}; expected text.")
    key = row.get("node")
    if key is None:
        site, index = row.get("site"), row.get("index")
        if not isinstance(site, str) or not str(index).isdecimal():
            raise InputError(
                f"{where}: expected 'node', or 'site' and 'index' of the feature that {shown(label)} is for."
            )
        key = names.feature(site, int(str(index)))
    try:
        node = names.parse(str(key)) if len(str(key)) < 1000 else None
    except InputError:
        node = None
    if node is None or node.kind != "feature":
        raise InputError(f"{where}: {shown(key)} is not a feature's key, such as 'blocks.3.hook_mlp_out/17'.")
    return str(node), label
