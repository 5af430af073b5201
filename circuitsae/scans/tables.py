"""Rows of a scan, and a choice of them as a matrix of nodes by prompts or positions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from circuitsae import names
from circuitsae.errors import UnknownNameError
from circuitsae.extras import wanted
from circuitsae.task.task import PreparedTask

Columns = Literal["prompt", "position"]


@dataclass(frozen=True)
class Matrix:
    """Numbers by node and by prompt or position, strongest node first, error nodes last.

    Attributes:
        rows: Node keys without positions.
        columns: What the columns are called.
        values: One list a row; `None` where the node is not active.
        quantity: What the numbers are.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    quantity: str

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame of the matrix, NaN where a node is not active.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = wanted("pandas", "to_dataframe()")
        return pandas.DataFrame(self.values, index=list(self.rows), columns=list(self.columns), dtype="float64")


def dataframe(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Any:
    """Returns rows as a pandas DataFrame.

    Raises:
        MissingExtraError: pandas is not installed.
    """
    frame = wanted("pandas", "to_dataframe()").DataFrame.from_records(
        [dict(row) for row in rows], columns=list(columns)
    )
    return frame.astype({"index": "Int64"}) if "index" in columns else frame


def matrix(
    rows: Sequence[Mapping[str, Any]],
    quantity: str,
    by: str,
    tasks: Sequence[PreparedTask],
    top: int,
    combine: Callable[[Sequence[float]], float],
) -> Matrix:
    """Arranges rows by node and prompt, or by node and position; what falls together is combined.

    Error nodes are kept whatever they are worth, the others only if they are among the `top` strongest.

    Raises:
        UnknownNameError: `by` is neither `"prompt"` nor `"position"`.
    """
    if by not in ("prompt", "position"):
        raise UnknownNameError("way to arrange columns", by, ("prompt", "position"))
    cells: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        node = names.parse(row["node"]).at(None)
        cells.setdefault(str(node), {}).setdefault(row[by], []).append(float(row[quantity]))
    found = {key: {at: combine(values) for at, values in by_at.items()} for key, by_at in cells.items()}

    def strength(key: str) -> float:
        return max(abs(v) for v in found[key].values())

    features = sorted(
        (k for k in found if names.parse(k).kind != "error"), key=lambda k: (-strength(k), names.sort_key(k))
    )
    errors = sorted((k for k in found if names.parse(k).kind == "error"), key=names.sort_key)
    chosen = [*features[:top], *errors]
    if by == "prompt":
        labels = [_shortened(task) for task in tasks]
    else:
        labels = _position_labels(tasks)
    values = tuple(tuple(found[key].get(at) for at in range(len(labels))) for key in chosen)
    return Matrix(tuple(chosen), tuple(labels), values, quantity)


def short(key: str) -> str:
    """Returns a node's key without what every hook point has in common.

    >>> short("blocks.3.hook_mlp_out/17@5")
    '3.mlp_out/17@5'
    """
    return key.removeprefix("blocks.").replace("hook_", "", 1)


def _shortened(task: PreparedTask) -> str:
    text = "".join(task.strings)
    return text if len(text) <= 40 else f"…{text[-39:]}"


def _position_labels(tasks: Sequence[PreparedTask]) -> list[str]:
    labels = []
    for position in range(max(len(task.strings) for task in tasks)):
        here = {task.strings[position] for task in tasks if position < len(task.strings)}
        labels.append(f"{position} {next(iter(here))}" if len(here) == 1 else f"{position} …")
    return labels
