"""Means over prompts with bootstrap intervals, and ratios that are left undefined where there is nothing to divide by."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]

# m(full) - m(empty) below this share of their size is no denominator.
LEAST_SHARE = 1e-3
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number over a set of prompts, with its 95 % bootstrap interval (prompts drawn with replacement).

    Attributes:
        value: `None` where it is not defined.
        low, high: `None` with a single prompt, or where too many draws are undefined.
        undefined: Why there is no value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    undefined: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what is known of it."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        return f"{self.value:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")


class Bootstrap:
    """Draws of a set of prompts: the same for every number, so that differences between circuits are paired.

    Args:
        n_prompts: How many prompts there are.
        draws: How many times they are drawn.
        seed: Of the draws.
    """

    def __init__(self, n_prompts: int, draws: int, seed: int) -> None:
        generator = np.random.default_rng([seed, 0xB007])
        drawn = generator.integers(0, n_prompts, (draws, n_prompts)) if n_prompts > 1 else np.zeros((0, n_prompts), int)
        counts = np.zeros((len(drawn), n_prompts))
        np.add.at(counts, (np.arange(len(drawn))[:, None], drawn), 1)
        self._weights = counts / max(n_prompts, 1)

    def means(self, values: Matrix) -> Matrix:
        """Returns the mean over the prompts and over each draw, `[..., 1 + draw]` from `[..., prompt]`."""
        return np.concatenate([values.mean(-1, keepdims=True), values @ self._weights.T], -1)


def share_of(part: Matrix, empty: Matrix, full: Matrix) -> Matrix:
    """Returns `(part - empty) / (full - empty)` elementwise, NaN where it is undefined."""
    span = full - empty
    fit = np.abs(span) > LEAST_SHARE * (np.abs(full) + np.abs(empty)) / 2
    return np.divide(part - empty, span, out=np.full(np.broadcast(part, span).shape, np.nan), where=fit & (span != 0))


def estimate(values: Matrix, why_undefined: str) -> Estimate:
    """Returns the estimate of a number given on the prompts and on each draw, `[1 + draw]`."""
    value, draws = float(values[0]), values[1:]
    if np.isnan(value):
        return Estimate(None, undefined=why_undefined)
    good = draws[~np.isnan(draws)]
    if len(draws) == 0 or len(good) < 0.95 * len(draws):
        return Estimate(value)
    low, high = np.quantile(good, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def area(fractions: Matrix, values: Matrix) -> Matrix:
    """Returns the trapezoid area under `values[..., point]` over `fractions[point]`."""
    return ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(fractions)).sum(-1)
