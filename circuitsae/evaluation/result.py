"""`Evaluation`: what was measured of a circuit, and the numbers that follow from it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from circuitsae.errors import InputError, UnknownNameError
from circuitsae.evaluation.statistics import Bootstrap, Estimate, Matrix, area, estimate, share_of
from circuitsae.extras import wanted
from circuitsae.files import read_whole, write_whole

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "circuitsae-evaluation/1"
_MAX_BYTES = 512 * 2**20

FULL, EMPTY, KEPT, COMPLEMENT, WITHOUT, EDGES = "full", "empty", "kept", "complement", "without", "edges"


@dataclass(frozen=True)
class Cell:
    """One thing measured on every prompt.

    Attributes:
        what: `full` and `empty` (all nodes kept, none); `kept` (the first `size` of an order); `complement` (all others);
            `without` (the circuit less one node); `edges` (only the first `size` edges transmit).
        curve: The order's name, empty where there is none.
        size: How many nodes or edges.
        node: The node left out, for `without`.
    """

    what: str
    curve: str = ""
    size: int = 0
    node: str = ""


@dataclass(frozen=True)
class Point:
    """A circuit of one size.

    Attributes:
        size, fraction: How many nodes (or edges) it has, and of all that there are.
        metric: `m(C)`, the mean over the prompts.
        faithfulness: `(m(C) - m(empty)) / (m(full) - m(empty))`, of the means over the prompts.
        completeness: The complement's faithfulness, `None` where that was not measured.
    """

    size: int
    fraction: float
    metric: Estimate
    faithfulness: Estimate
    completeness: Estimate | None = None


@dataclass(frozen=True)
class Curve:
    """Circuits of growing size by one order.

    Attributes:
        name: The order. Random ones are averaged.
        of: `"nodes"` or `"edges"`.
        points: By size.
        cpr: Area under faithfulness over the fraction kept (MIB's circuit performance ratio; more is better).
        cmd: Area under |1 - faithfulness| (MIB's circuit-model distance; less is better).
    """

    name: str
    of: str
    points: tuple[Point, ...]
    cpr: Estimate
    cmd: Estimate


@dataclass(frozen=True)
class Marginal:
    """What a node is worth: the circuit's faithfulness, minus that without the node. Not above 0: it is not needed."""

    node: str
    without: Estimate
    marginal: Estimate


@dataclass(frozen=True)
class Evaluation:
    """The metric of many circuits on every prompt. Everything else follows from it.

    Attributes:
        cells: What was measured.
        metrics: By cell and prompt, `[cell, prompt]`.
        about: What it was measured on, JSON-able: model, dictionaries, tasks, circuit, options, `grid` (the fractions of
            the areas), `n_nodes`, `n_edges`, passes.
        problems: What was left out and why.
    """

    cells: tuple[Cell, ...]
    metrics: Matrix = field(repr=False)
    about: Mapping[str, Any] = field(repr=False)
    problems: tuple[str, ...] = ()

    # --- the circuit itself ---

    @property
    def metric(self) -> Estimate:
        """`m(full)`: the metric of the whole model."""
        return estimate(self._means(FULL), "")

    @property
    def empty_metric(self) -> Estimate:
        """`m(empty)`: the metric with every node at its baseline."""
        return estimate(self._means(EMPTY), "")

    @property
    def faithfulness(self) -> Estimate | None:
        """The circuit's faithfulness: 1 if the rest does nothing; `None` where no circuit was given."""
        return self._of_circuit(KEPT)

    @property
    def completeness(self) -> Estimate | None:
        """Faithfulness of all that is not in the circuit: 0 if it holds everything; `None` where it was not measured."""
        return self._of_circuit(COMPLEMENT)

    @property
    def edge_faithfulness(self) -> Estimate | None:
        """Faithfulness when only the circuit's edges transmit; `None` where that was not measured."""
        curve = self.curves.get("edges")
        return None if curve is None else curve.points[-1].faithfulness

    @cached_property
    def minimality(self) -> tuple[Marginal, ...]:
        """What each of the circuit's nodes is worth that was left out in turn, most first."""
        whole = (
            self._share(self._means(KEPT, "circuit", self._circuit_size)) if self._circuit_size is not None else None
        )
        found = []
        for number, cell in enumerate(self.cells):
            if cell.what == WITHOUT and whole is not None:
                without = self._share(self._bootstrap.means(self.metrics[number]))
                marginal = estimate(whole - without, self._why)
                found.append(Marginal(cell.node, estimate(without, self._why), marginal))
        return tuple(sorted(found, key=lambda m: -(m.marginal.value if m.marginal.value is not None else 0.0)))

    # --- curves ---

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The curves over circuit size by their order's name: nodes by `circuit` or `effect`, `activation`, `random`;
        edges by `edges`, `edges-random`."""
        grouped: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.what in (KEPT, EDGES):
                name, _, number = cell.curve.rpartition("~")
                grouped.setdefault(name if number.isdigit() and name else cell.curve, []).append(cell.curve)
        return {name: self._curve(name, sorted(set(members))) for name, members in grouped.items()}

    def _curve(self, name: str, members: Sequence[str]) -> Curve:
        what = EDGES if name.startswith("edges") else KEPT
        whole = int(self.about["n_edges" if what == EDGES else "n_nodes"])
        sizes = sorted({c.size for c in self.cells if c.what == what and c.curve in members})
        means, points = {}, []
        for size in sizes:
            means[size] = np.mean([self._means(what, m, size) for m in members], axis=0)
            complement = None
            if any(c == Cell(COMPLEMENT, name, size) for c in self.cells):
                complement = estimate(self._share(self._means(COMPLEMENT, name, size)), self._why)
            shares = self._share(means[size])
            points.append(
                Point(size, size / max(whole, 1), estimate(means[size], ""), estimate(shares, self._why), complement)
            )
        grid = [(f, size_of(f, whole)) for f in self.about["grid"]]
        fractions = np.array([f for f, size in grid if size in means])
        shares = (
            np.stack([self._share(means[size]) for _, size in grid if size in means], -1) if len(fractions) else None
        )
        if shares is None or len(fractions) < 2:
            nothing = Estimate(None, undefined="The curve has fewer than two of the grid's sizes.")
            return Curve(name, "edges" if what == EDGES else "nodes", tuple(points), nothing, nothing)
        cpr = estimate(area(fractions, shares), self._why)
        cmd = estimate(area(fractions, np.abs(1 - shares)), self._why)
        return Curve(name, "edges" if what == EDGES else "nodes", tuple(points), cpr, cmd)

    # --- tables and files ---

    def to_dataframe(self, what: str = "curves") -> "DataFrame":
        """Returns a pandas DataFrame: `"curves"` (a row a point), `"rows"` (all that was measured, a row a prompt and
        cell, with the prompt's own faithfulness, missing where undefined) or `"minimality"` (a row a node).

        Raises:
            MissingExtraError: pandas is not installed.
            UnknownNameError: There is no such table.
        """
        tables = {"curves": self._curve_rows, "rows": self.rows, "minimality": self._minimality_rows}
        if what not in tables:
            raise UnknownNameError("table", what, tables)
        return wanted("pandas", "Evaluation.to_dataframe").DataFrame.from_records(tables[what]())

    def rows(self) -> list[dict[str, Any]]:
        """Returns a plain record a prompt and cell."""
        shares = share_of(self.metrics, self.metrics[self._number(EMPTY)], self.metrics[self._number(FULL)])
        return [
            {
                "prompt": prompt,
                "what": cell.what,
                "curve": cell.curve,
                "size": cell.size,
                "node": cell.node,
                "metric": float(self.metrics[number, prompt]),
                "faithfulness": None if np.isnan(shares[number, prompt]) else float(shares[number, prompt]),
            }
            for prompt in range(self.metrics.shape[1])
            for number, cell in enumerate(self.cells)
        ]

    def undefined_prompts(self) -> list[int]:
        """Returns the prompts whose own faithfulness is undefined: their metric hardly moves when everything is ablated."""
        full, empty = self.metrics[self._number(FULL)], self.metrics[self._number(EMPTY)]
        return np.flatnonzero(np.isnan(share_of(full, empty, full))).tolist()

    def summary(self) -> dict[str, Any]:
        """Returns the numbers that follow from the rows, JSON-able."""
        result: dict[str, Any] = {
            "prompts": int(self.metrics.shape[1]),
            "metric": self.metric.to_json(),
            "empty_metric": self.empty_metric.to_json(),
            "undefined_prompts": self.undefined_prompts(),
        }
        for name in ("faithfulness", "completeness", "edge_faithfulness"):
            value = getattr(self, name)
            if value is not None:
                result[name] = value.to_json()
        result["curves"] = {
            name: {"of": c.of, "cpr": c.cpr.to_json(), "cmd": c.cmd.to_json(), "points": [_point(p) for p in c.points]}
            for name, c in self.curves.items()
        }
        if self.minimality:
            result["minimality"] = [
                {"node": m.node, "without": m.without.to_json(), "marginal": m.marginal.to_json()}
                for m in self.minimality
            ]
        return result

    def to_json(self) -> str:
        """Returns all of it as JSON: what was measured, and under `summary` what follows; `from_json` reads it back."""
        return json.dumps(
            {
                "schema": SCHEMA,
                "about": self.about,
                "problems": self.problems,
                "summary": self.summary(),
                "cells": [[c.what, c.curve, c.size, c.node] for c in self.cells],
                "metrics": self.metrics.tolist(),
            },
            allow_nan=False,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> "Evaluation":
        """Reads what `to_json` gave.

        Raises:
            InputError: It is something else.
        """
        try:
            data = json.loads(text)
            if data["schema"] != SCHEMA:
                raise InputError(f"The evaluation has the schema {data['schema']!r}; expected {SCHEMA!r}.")
            cells = tuple(Cell(str(w), str(c), int(s), str(n)) for w, c, s, n in data["cells"])
            metrics = np.array(data["metrics"], np.float64)
            if metrics.ndim != 2 or len(metrics) != len(cells) or not np.isfinite(metrics).all():
                raise InputError(f"The evaluation has {len(cells)} cells and metrics of shape {metrics.shape}.")
            found = cls(cells, metrics, dict(data["about"]), tuple(data["problems"]))
            found.summary()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"This is no saved evaluation ({type(error).__name__}: {error}).") from None
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as JSON, whole or not at all.

        Raises:
            InputError: The path can't be written.
        """
        write_whole({Path(path): self.to_json().encode("ascii")})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Reads a saved evaluation.

        Raises:
            InputError: The file can't be read or holds something else.
        """
        return cls.from_json(read_whole(Path(path), _MAX_BYTES))

    def __repr__(self) -> str:
        best = next(iter(self.curves.values()), None)
        said = [f"{self.metrics.shape[1]} prompts"]
        for name in ("faithfulness", "completeness"):
            value = getattr(self, name)
            if value is not None:
                said.append(f"{name} {value}")
        if best is not None:
            said.append(f"CPR {best.cpr}, CMD {best.cmd}")
        return f"<Evaluation of {self.about.get('tasks', {}).get('name', 'tasks')}: {', '.join(said)}>"

    # --- arithmetic ---

    @cached_property
    def _bootstrap(self) -> Bootstrap:
        return Bootstrap(self.metrics.shape[1], int(self.about["bootstrap"]), int(self.about["seed"]))

    @cached_property
    def _places(self) -> dict[Cell, int]:
        return {cell: n for n, cell in enumerate(self.cells)}

    @property
    def _circuit_size(self) -> int | None:
        return self.about.get("circuit", {}).get("nodes")

    def _number(self, what: str) -> int:
        return self._places[Cell(what)]

    def _means(self, what: str, curve: str = "", size: int = 0) -> Matrix:
        return self._bootstrap.means(self.metrics[self._places[Cell(what, curve, size)]])

    def _share(self, means: Matrix) -> Matrix:
        return share_of(means, self._means(EMPTY), self._means(FULL))

    def _of_circuit(self, what: str) -> Estimate | None:
        size = self._circuit_size
        if size is None or Cell(what, "circuit", size) not in self._places:
            return None
        return estimate(self._share(self._means(what, "circuit", size)), self._why)

    @cached_property
    def _why(self) -> str:
        full, empty = self._means(FULL)[0], self._means(EMPTY)[0]
        return f"m(full) - m(empty) is {full - empty:.2g} beside m(full) = {full:.2g}: too little to divide by."

    def _curve_rows(self) -> list[dict[str, Any]]:
        return [{"curve": name, "of": c.of, **_flat(p)} for name, c in self.curves.items() for p in c.points]

    def _minimality_rows(self) -> list[dict[str, Any]]:
        return [
            {"node": m.node, "without": m.without.value, "marginal": m.marginal.value, "low": m.marginal.low,
             "high": m.marginal.high}
            for m in self.minimality
        ]  # fmt: skip


def size_of(fraction: float, whole: int) -> int:
    """Returns how many of `whole` a fraction is, cut to a whole number as MIB does: 0 of 628 at 0.1 %."""
    return min(whole, int(fraction * whole))


def _point(point: Point) -> dict[str, Any]:
    result = {
        "size": point.size,
        "fraction": point.fraction,
        "metric": point.metric.to_json(),
        "faithfulness": point.faithfulness.to_json(),
    }
    return result if point.completeness is None else result | {"completeness": point.completeness.to_json()}


def _flat(point: Point) -> dict[str, Any]:
    f = point.faithfulness
    completeness = None if point.completeness is None else point.completeness.value
    return {
        "size": point.size, "fraction": point.fraction, "metric": point.metric.value, "faithfulness": f.value,
        "low": f.low, "high": f.high, "completeness": completeness,
    }  # fmt: skip
