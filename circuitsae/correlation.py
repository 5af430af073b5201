"""How two lists of numbers go together: correlation, slope and ranks."""

import math
import statistics
from collections.abc import Sequence

import numpy as np


def correlation(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns Pearson's r, `None` for fewer than two pairs or where one side does not vary.

    Example:
        >>> correlation([1, 2, 3], [2, 4, 6]), correlation([1, 2], [5, 5])
        (1.0, None)
    """
    try:
        r = statistics.correlation(x, y)
    except statistics.StatisticsError:
        return None
    return r if math.isfinite(r) else None


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Returns slope and intercept of the line of least squares, `None` twice where `x` does not vary."""
    try:
        return statistics.linear_regression(x, y)
    except statistics.StatisticsError:
        return None, None


def ranks(values: Sequence[float]) -> list[float]:
    """Returns each value's rank, from 0; equal values share the mean of theirs.

    Example:
        >>> ranks([3, 1, 3, 2])
        [2.5, 0.0, 2.5, 1.0]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse].tolist()
