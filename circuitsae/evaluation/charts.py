"""Charts as inline SVG: curves with their intervals, a scatter, bars. No script, no network; the text is the page's."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 48


@dataclass(frozen=True)
class Line:
    """A curve: its name in the legend, its colour's number, and points `(x, y, low, high)` where the last two may be None."""

    name: str
    colour: int
    points: Sequence[tuple[float, float, float | None, float | None]]


def curves(
    lines: Sequence[Line], *, x_label: str, y_label: str, log_x: bool = True, marks: Sequence[float] = ()
) -> str:
    """Returns curves with 95 % bands; `marks` are horizontal rules, at y = 1 say."""
    points = [p for line in lines for p in line.points]
    if not points:
        return '<p class="none">Nothing was measured that could be drawn.</p>'
    xs = [p[0] for p in points if p[0] > 0 or not log_x]
    low_x, high_x = (min(xs), max(xs)) if xs else (0.1, 1.0)
    spread = [v for p in points for v in (p[1], p[2], p[3]) if v is not None]
    frame = _Frame(low_x, high_x, min([*spread, *marks]), max([*spread, *marks]), log_x)
    body = [frame.axes(x_label, y_label)]
    for mark in marks:
        y = frame.y(mark)
        body.append(f'<line class="rule" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    for line in lines:
        drawn = [p for p in line.points if p[0] > 0 or not log_x]
        banded = [(x, low, high) for x, _, low, high in drawn if low is not None and high is not None]
        if len(banded) > 1:
            upper = [f"{frame.x(x):.1f},{frame.y(h):.1f}" for x, _, h in banded]
            lower = [f"{frame.x(x):.1f},{frame.y(low):.1f}" for x, low, _ in reversed(banded)]
            body.append(f'<polygon class="band c{line.colour}" points="{" ".join(upper + lower)}"/>')
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y, _, _ in drawn)
        body.append(f'<polyline class="line c{line.colour}" points="{path}"/>')
        for x, y, low, high in drawn:
            interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
            title = html.escape(f"{line.name}: {x_label} {x:.4g}, {y:.3f}{interval}")
            body.append(
                f'<circle class="dot c{line.colour}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3">'
                f"<title>{title}</title></circle>"
            )
    legend = "".join(
        f'<span class="key"><i class="swatch c{line.colour}"></i>{html.escape(line.name)}</span>' for line in lines
    )
    label = html.escape(f"{y_label} against {x_label}: {', '.join(line.name for line in lines)}")
    return _figure(body, label) + f'<p class="legend">{legend}</p>'


def scatter(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """Returns points `(x, y, name)` with the diagonal on which both would agree."""
    if not points:
        return '<p class="none">Nothing was measured that could be drawn.</p>'
    values = [v for x, y, _ in points for v in (x, y)]
    low, high = min([*values, 0.0]), max([*values, 0.0])
    frame = _Frame(low, high, low, high, False)
    body = [
        frame.axes(x_label, y_label),
        f'<line class="rule" x1="{frame.x(low):.1f}" y1="{frame.y(low):.1f}" x2="{frame.x(high):.1f}" '
        f'y2="{frame.y(high):.1f}"/>',
    ]
    for x, y, name in points:
        title = html.escape(f"{name}: {x_label} {x:.4g}, {y_label} {y:.4g}")
        body.append(
            f'<circle class="dot c0" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.5"><title>{title}</title></circle>'
        )
    return _figure(body, html.escape(f"{y_label} against {x_label}, {len(points)} nodes"))


class _Frame:
    """From numbers to places in the drawing."""

    def __init__(self, low_x: float, high_x: float, low_y: float, high_y: float, log_x: bool) -> None:
        self.log_x = log_x and low_x > 0
        if high_x <= low_x:
            low_x, high_x = (low_x / 2, high_x * 2) if self.log_x else (low_x - 1, high_x + 1)
        margin = 0.06 * (high_y - low_y) or 0.5
        self.low_x, self.high_x, self.low_y, self.high_y = low_x, high_x, low_y - margin, high_y + margin

    def x(self, value: float) -> float:
        low, high = self.low_x, self.high_x
        if self.log_x:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - _TOP - _BOTTOM)

    def axes(self, x_label: str, y_label: str) -> str:
        parts = []
        x_ticks = _powers(self.low_x, self.high_x) if self.log_x else _steps(self.low_x, self.high_x)
        for tick in x_ticks:
            x = self.x(tick)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{tick:g}</text>'
            )
        for tick in _steps(self.low_y, self.high_y):
            y = self.y(tick)
            parts.append(
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'
            )
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        parts.append(
            f'<text class="axis" x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
            f"{html.escape(x_label)}</text>"
            f'<text class="axis" x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">'
            f"{html.escape(y_label)}</text>"
        )
        return "".join(parts)


def _steps(low: float, high: float) -> list[float]:
    """Returns some five round numbers between two."""
    span = high - low
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= 6)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Returns powers of ten between two numbers, with 2 and 5 times them where there are few."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    multiples = (1, 2, 5) if len(tens) <= 3 else (1,)
    return [v for t in tens for m in multiples if low * 0.999 <= (v := m * 10.0**t) <= high * 1.001]


def _figure(body: Sequence[str], label: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'
