"""Pictures of scans, by matplotlib or plotly. Both are optional; neither is imported before a picture is asked for."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitsae.errors import UnknownNameError
from circuitsae.extras import wanted
from circuitsae.scans.tables import Matrix, short

if TYPE_CHECKING:
    from circuitsae.scans.ablating import Agreement
    from circuitsae.scans.steering import SteeringCurve

BACKENDS = ("matplotlib", "plotly")

BLUE, RED, GREY = "#2166ac", "#b2182b", "#777777"
INACTIVE = "#e6e6e6"


def heatmap(matrix: Matrix, *, title: str, backend: str) -> Any:
    """Returns a matrix as coloured cells: red for positive, blue for negative, grey where a node is not active.

    Raises:
        MissingExtraError: The backend is not installed.
        UnknownNameError: There is no such backend.
    """
    rows = [short(key) for key in matrix.rows]
    values = [[math.nan if v is None else v for v in row] for row in matrix.values]
    largest = max((abs(v) for row in values for v in row if not math.isnan(v)), default=0.0) or 1.0
    one_sided = all(v >= 0 for row in values for v in row if not math.isnan(v))
    low = 0.0 if one_sided else -largest
    if _chosen(backend) == "plotly":
        plotly = wanted("plotly.graph_objects", "plot(backend='plotly')")
        shape = plotly.Heatmap(
            z=[[None if math.isnan(v) else v for v in row] for row in values],
            x=_distinct(matrix.columns),
            y=_distinct(rows),
            colorscale="Reds" if one_sided else "RdBu_r",
            zmin=low,
            zmax=largest,
            colorbar={"title": {"text": matrix.quantity}},
            hovertemplate="%{y}<br>%{x}<br>%{z:.4g}<extra></extra>",
        )
        figure = plotly.Figure(shape)
        figure.update_layout(
            title=title, height=140 + 18 * len(rows), yaxis={"autorange": "reversed"}, plot_bgcolor=INACTIVE
        )
        figure.update_xaxes(showgrid=False)
        figure.update_yaxes(showgrid=False)
        return figure
    longest = max(map(len, matrix.columns))
    height = 0.9 + 0.2 * len(rows) + 0.065 * longest
    figure, axes = _axes(max(5.0, 2.6 + 0.34 * len(matrix.columns)), height)
    image = axes.imshow(
        values, aspect="auto", cmap="Reds" if one_sided else "RdBu_r", vmin=low, vmax=largest, interpolation="none"
    )
    axes.set_xticks(range(len(matrix.columns)), [_plain(c) for c in matrix.columns], rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_xticks([n + 0.5 for n in range(len(matrix.columns) - 1)], minor=True)
    axes.set_yticks([n + 0.5 for n in range(len(rows) - 1)], minor=True)
    axes.set_facecolor(INACTIVE)
    axes.grid(which="minor", color="white", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    n_errors = sum(key.endswith("/error") for key in matrix.rows)
    if 0 < n_errors < len(rows):  # a line sets the error nodes apart
        axes.axhline(len(rows) - n_errors - 0.5, color="black", linewidth=1)
    figure.colorbar(image, ax=axes, label=matrix.quantity, fraction=0.05, pad=0.03)
    axes.set_title(title, fontsize=10)
    return figure


def scatter(rows: Sequence[Mapping[str, Any]], agreement: "Agreement", *, metric: str, backend: str) -> Any:
    """Returns predicted against measured effects with the diagonal, the fitted line and the outliers' names.

    Raises:
        MissingExtraError: The backend is not installed.
        UnknownNameError: There is no such backend.
    """
    groups = {kind: [r for r in rows if r["kind"] == kind] for kind in ("feature", "error", "token")}
    colours = {"feature": BLUE, "error": RED, "token": GREY}
    both = [r[side] for r in rows for side in ("predicted", "measured")]
    ends = [min(both), max(both)]
    r = "undefined" if agreement.correlation is None else f"{agreement.correlation:.3f}"
    slope = "undefined" if agreement.slope is None else f"{agreement.slope:.3f}"
    title = f"attribution against ablation: n = {agreement.n}, r = {r}, slope = {slope}"
    labels = (f"predicted effect on {metric}", f"measured effect on {metric}")
    fitted = None
    if agreement.slope is not None and agreement.intercept is not None:
        fitted = [agreement.intercept + agreement.slope * end for end in ends]
    if _chosen(backend) == "plotly":
        plotly = wanted("plotly.graph_objects", "plot(backend='plotly')")
        figure = plotly.Figure()
        for kind, some in groups.items():
            if some:
                figure.add_trace(
                    plotly.Scatter(
                        x=[r["predicted"] for r in some],
                        y=[r["measured"] for r in some],
                        mode="markers",
                        name=kind,
                        marker={"color": colours[kind], "size": 6},
                        text=[f"{short(r['node'])} {r['token']!r}" for r in some],
                        hovertemplate="%{text}<br>predicted %{x:.4g}<br>measured %{y:.4g}<extra></extra>",
                    )
                )
        lines = [("equal", ends, "dash")] + ([("fitted", fitted, "solid")] if fitted is not None else [])
        for name, ys, dash in lines:
            line = {"color": GREY, "dash": dash, "width": 1}
            figure.add_trace(plotly.Scatter(x=ends, y=ys, mode="lines", name=name, line=line))
        for row in agreement.outliers:
            figure.add_annotation(
                x=row["predicted"], y=row["measured"], text=short(row["node"]), showarrow=True, arrowhead=0
            )
        figure.update_layout(title=title, xaxis_title=labels[0], yaxis_title=labels[1])
        return figure
    figure, axes = _axes(6.5, 5.5)
    axes.axhline(0, color="#dddddd", linewidth=0.8)
    axes.axvline(0, color="#dddddd", linewidth=0.8)
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="equal")
    if fitted is not None:
        axes.plot(ends, fitted, color=GREY, linewidth=1, label="fitted")
    for kind, some in groups.items():
        if some:
            x, y = ([r[side] for r in some] for side in ("predicted", "measured"))
            axes.scatter(x, y, s=14, color=colours[kind], alpha=0.75, linewidths=0, label=kind)
    middle = (ends[0] + ends[1]) / 2
    for row in agreement.outliers:
        left = row["predicted"] > middle
        axes.annotate(
            _plain(short(row["node"])),
            (row["predicted"], row["measured"]),
            xytext=(-6 if left else 6, 4),
            ha="right" if left else "left",
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_xlabel(_plain(labels[0]))
    axes.set_ylabel(_plain(labels[1]))
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def curve(steering: "SteeringCurve", *, tolerance: float, backend: str) -> Any:
    """Returns the metric against the scale, the predicted line, and the stretch in which the line holds.

    Raises:
        MissingExtraError: The backend is not installed.
        UnknownNameError: There is no such backend.
    """
    low, high = steering.breaks(tolerance)
    title = short(steering.node)
    holds = f"line within {tolerance:.0%} of the change"
    ends = (steering.scales[0] if low is None else low, steering.scales[-1] if high is None else high)
    if _chosen(backend) == "plotly":
        plotly = wanted("plotly.graph_objects", "plot(backend='plotly')")
        figure = plotly.Figure()
        figure.add_trace(plotly.Scatter(x=steering.scales, y=steering.metrics, name="measured", line={"color": BLUE}))
        line = {"color": RED, "dash": "dash"}
        figure.add_trace(plotly.Scatter(x=steering.scales, y=steering.linear, mode="lines", name="linear", line=line))
        figure.add_vrect(x0=ends[0], x1=ends[1], fillcolor=GREY, opacity=0.12, line_width=0, annotation_text=holds)
        figure.update_layout(title=title, xaxis_title="scale", yaxis_title=steering.description)
        return figure
    figure, axes = _axes(6.5, 4.2)
    axes.axvspan(*ends, color=GREY, alpha=0.12, linewidth=0, label=holds)
    axes.plot(steering.scales, steering.linear, color=RED, linestyle="--", linewidth=1, label="predicted line")
    axes.plot(steering.scales, steering.metrics, color=BLUE, marker="o", markersize=3, label="measured")
    axes.plot([1], [steering.clean], "o", color="black", markersize=5, label="clean run")
    axes.set_xlabel("scale (0 ablates, 1 leaves alone)")
    axes.set_ylabel(_plain(steering.description), fontsize=8)
    axes.set_title(_plain(title), fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _chosen(backend: str) -> str:
    if backend not in BACKENDS:
        raise UnknownNameError("plotting backend", backend, BACKENDS)
    return backend


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """Returns a figure that belongs to no window and no notebook's state."""
    figures = wanted("matplotlib.figure", "plot(backend='matplotlib')")

    class Shown(figures.Figure):
        """Shows itself in a notebook's cell, whose own way of doing so works for pyplot's figures only."""

        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png")
            return picture.getvalue()

    figure = Shown(figsize=(width, height), layout="constrained", dpi=120)
    return figure, figure.add_subplot()


def _plain(text: str) -> str:
    """Tokens as matplotlib should draw them: no mathematics between dollar signs, no line breaks."""
    return text.replace("$", r"\$").replace("\n", "\\n")


def _distinct(labels: Sequence[str]) -> list[str]:
    """Plotly merges columns of one name; later ones get spaces behind."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        found.append(label + " " * seen.get(label, 0))
        seen[label] = seen.get(label, 0) + 1
    return found
