"""Static drawings of a circuit for papers and cards: SVG by this package alone, PNG and PDF by matplotlib.

Tokens are columns, sites are rows, the metric is on top. What there is no room for is left out, weakest first, and the
drawing says so: thousands of nodes are for the interactive page. Colours and dashes mean what they do there: solid and
blue raises the metric, dashed and orange lowers it.
"""

import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from circuitsae import names
from circuitsae.errors import InputError
from circuitsae.export.view import site_name
from circuitsae.extras import wanted
from circuitsae.graph.circuit import Circuit, strongest_of
from circuitsae.graph.schema import known_effect

_UP, _DOWN, _INK, _FAINT = "#1f77b4", "#d95f02", "#222222", "#8a8a8a"
_FONT = 11.0
_COLUMN, _ROW, _LEFT, _TOP = 74.0, 58.0, 110.0, 64.0
_RADIUS = 6.0
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class Line:
    """A curve from one point to another that leaves and arrives upwards."""

    start: tuple[float, float]
    end: tuple[float, float]
    width: float
    colour: str
    dashed: bool


@dataclass(frozen=True, slots=True)
class Mark:
    """A node: a disc, a diamond or a square."""

    shape: str
    at: tuple[float, float]
    colour: str
    filled: bool
    title: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text; `anchor` is start, middle or end."""

    text: str
    at: tuple[float, float]
    anchor: str
    size: float
    colour: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn, lines first."""

    width: float
    height: float
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    texts: tuple[Text, ...]


def draw(circuit: Circuit, max_nodes: int = 60, max_edges: int = 150, labels: bool = True) -> Drawing:
    """Returns the drawing of a circuit's strongest nodes and edges.

    Args:
        circuit: What is drawn.
        max_nodes: Features and error nodes at most, by |effect|.
        max_edges: Edges at most, by |weight|.
        labels: Whether features' labels are written beside them.

    Raises:
        InputError: `max_nodes` or `max_edges` is negative.
    """
    if max_nodes < 0 or max_edges < 0:
        raise InputError(f"max_nodes is {max_nodes} and max_edges {max_edges}; expected 0 or more.")
    graph, about = circuit.graph, circuit.graph.graph
    chosen = circuit.strongest(max_nodes)
    rest = [key for key in (*circuit.features, *circuit.errors) if known_effect(graph.nodes[key]) is None]
    shown = {*chosen, *rest[: max_nodes - len(chosen)]}
    shown |= {key for key, data in graph.nodes(data=True) if data["kind"] in ("token", "bias", "metric")}
    edges = strongest_of((edge for edge in graph.edges(shown, data=True) if edge[1] in shown), max_edges)
    touched = {key for edge in edges for key in edge}
    shown = {key for key in shown if key in touched or graph.nodes[key]["kind"] in ("feature", "error", "metric")}
    keys = sorted(shown, key=names.sort_key)

    sites = _sites(about.get("sites", ()), [graph.nodes[key] for key in keys])
    positions = sorted({graph.nodes[key]["position"] for key in keys if "position" in graph.nodes[key]})
    cells: dict[tuple[int, int], list[str]] = {}
    for key in keys:
        data = graph.nodes[key]
        kind = data["kind"]
        row = 0 if kind in ("token", "bias") else len(sites) + 1 if kind == "metric" else 1 + sites.index(data["site"])
        at = data.get("position", _last(positions) if kind == "metric" else -1)
        cells.setdefault((row, positions.index(at) if at in positions else -1), []).append(key)
    spread = _RADIUS * 2 + 6
    widths = {
        column: max([_COLUMN, *(spread * len(cell) + 14 for (_, c), cell in cells.items() if c == column)])
        for column in sorted({column for _, column in cells})
    }
    centres, x = {}, _LEFT
    for column, width in widths.items():
        centres[column] = x + width / 2
        x += width
    total_width = max(x + 30, 420.0)
    n_rows = len(sites) + 2
    total_height = _TOP + n_rows * _ROW + 50

    def height(row: int) -> float:
        return _TOP + (n_rows - 1 - row) * _ROW + _ROW / 2

    places: dict[str, tuple[float, float]] = {}
    cell_of = {key: cell for cell in cells.values() for key in cell}
    for (row, column), cell in cells.items():
        for number, key in enumerate(cell):
            places[key] = (centres[column] + spread * (number - (len(cell) - 1) / 2), height(row))

    largest = max((abs(graph.edges[edge]["weight"]) for edge in edges), default=0.0) or 1.0
    lines = []
    for source, target in reversed(edges):  # the strongest on top
        weight = graph.edges[source, target]["weight"]
        size = 0.5 + 3.5 * abs(weight) / largest
        # weight is the metric's change when the source is taken away
        lowers = weight > 0
        lines.append(Line(places[source], places[target], size, _DOWN if lowers else _UP, lowers))
    marks, texts = [], []
    for key in keys:
        data, (px, py) = graph.nodes[key], places[key]
        kind, effect = data["kind"], known_effect(data)
        colour = _INK if not effect else _DOWN if effect > 0 else _UP
        shape = {"feature": "disc", "error": "diamond"}.get(kind, "square")
        title = " ".join(filter(None, [key, data.get("label", ""), f"effect {effect:+.3g}" if effect else ""]))
        marks.append(Mark(shape, (px, py), colour, kind in ("feature", "metric"), title))
        label = data.get("label", "")
        if labels and kind == "feature" and label and len(cell_of[key]) == 1:
            texts.append(Text(_cut(label, 22), (px, py - 10), "middle", _FONT - 3, _FAINT))
    tokens = about.get("tokens") or []
    for key in keys:
        data, (px, py) = graph.nodes[key], places[key]
        if data["kind"] == "bias":
            texts.append(Text("bias", (px, py + 22), "middle", _FONT, _INK))
    for column, at in enumerate(positions):
        if column in centres:
            token = tokens[at] if at < len(tokens) else ""
            texts.append(
                Text(_cut(token.strip() or token, 14), (centres[column], height(0) + 22), "middle", _FONT, _INK)
            )
    for number, site in enumerate(sites):
        texts.append(Text(_cut(site_name(site), 16), (_LEFT - 12, height(1 + number) + 4), "end", _FONT, _FAINT))
    metric = about.get("metric", {})
    if names.METRIC in places:
        px, py = places[names.METRIC]
        what = metric.get("description") or metric.get("name") or "metric"
        text = _cut(what, 80)
        texts.append(Text(text, (min(px + 12, total_width - 12), py - 12), "end", _FONT, _INK))
    texts.append(Text(_cut(circuit.prompt or "Circuit", int(total_width / 7)), (12, 24), "start", _FONT + 3, _INK))
    n_left, e_left = len(graph) - len(keys), graph.number_of_edges() - len(edges)
    note = (
        f"{len(keys):,} of {len(graph):,} nodes, {len(edges):,} of {graph.number_of_edges():,} edges; "
        if n_left or e_left
        else ""
    )
    texts.append(
        Text(f"{note}solid: raises the metric, dashed: lowers it", (12, total_height - 14), "start", _FONT - 2, _FAINT)
    )
    return Drawing(total_width, total_height, tuple(lines), tuple(marks), tuple(texts))


def as_svg(circuit: Circuit, max_nodes: int = 60, max_edges: int = 150, labels: bool = True) -> str:
    """Returns an SVG picture of the strongest nodes and edges: text stays text, nodes have titles, no script, no link.

    Args:
        circuit: What is drawn.
        max_nodes, max_edges, labels: See `draw`.
    """
    drawing = draw(circuit, max_nodes, max_edges, labels)
    width, height = _number(drawing.width), _number(drawing.height)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        f"<title>{_escaped(circuit.prompt or 'Circuit')}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<g fill="none" stroke-linecap="round" stroke-opacity="0.75">',
    ]
    for line in drawing.lines:
        dash = ' stroke-dasharray="4 3"' if line.dashed else ""
        parts.append(f'<path d="{_path(line)}" stroke="{line.colour}" stroke-width="{_number(line.width)}"{dash}/>')
    parts.append("</g>\n<g>")
    for mark in drawing.marks:
        fill = mark.colour if mark.filled else "#ffffff"
        style = f'fill="{fill}" stroke="{mark.colour}" stroke-width="1.5"'
        x, y = mark.at
        if mark.shape == "disc":
            shape = f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(_RADIUS)}" {style}>'
            end = "</circle>"
        else:
            points = " ".join(f"{_number(px)},{_number(py)}" for px, py in _corners(mark))
            shape, end = f'<polygon points="{points}" {style}>', "</polygon>"
        parts.append(f"{shape}<title>{_escaped(mark.title)}</title>{end}")
    parts.append("</g>\n<g>")
    for text in drawing.texts:
        x, y = text.at
        parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" text-anchor="{text.anchor}" font-size="{_number(text.size)}" '
            f'fill="{text.colour}">{_escaped(text.text)}</text>'
        )
    return "\n".join([*parts, "</g>\n</svg>\n"])


def as_png(circuit: Circuit, max_nodes: int = 60, max_edges: int = 150, labels: bool = True, dpi: int = 150) -> bytes:
    """Returns the same picture as PNG.

    Args:
        circuit: What is drawn.
        max_nodes, max_edges, labels: See `draw`.
        dpi: Pixels an inch, 72 being the SVG's own size; large pictures get fewer, so that memory holds them.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return _by_matplotlib(draw(circuit, max_nodes, max_edges, labels), "png", dpi)


def as_pdf(circuit: Circuit, max_nodes: int = 60, max_edges: int = 150, labels: bool = True) -> bytes:
    """Returns the same picture as PDF, its text embedded as text; see `as_png`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return _by_matplotlib(draw(circuit, max_nodes, max_edges, labels), "pdf", 72)


def _by_matplotlib(drawing: Drawing, kind: str, dpi: int) -> bytes:
    wanted("matplotlib", f"Drawing {kind.upper()}")
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle, PathPatch, Polygon
    from matplotlib.path import Path as Outline

    if dpi < 1:
        raise InputError(f"dpi is {dpi}; expected at least 1.")
    dpi = max(1, min(dpi, int(20_000 * 72 / max(drawing.width, drawing.height))))
    figure: Any = Figure(figsize=(drawing.width / 72, drawing.height / 72), dpi=dpi)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, drawing.width)
    axes.set_ylim(drawing.height, 0)
    axes.axis("off")
    for line in drawing.lines:
        outline = Outline(_points(line), [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4])
        style = (0, (4, 3)) if line.dashed else "-"
        axes.add_patch(PathPatch(outline, fill=False, edgecolor=line.colour, lw=line.width, ls=style, alpha=0.75))
    for mark in drawing.marks:
        look = {
            "facecolor": mark.colour if mark.filled else "#ffffff",
            "edgecolor": mark.colour,
            "lw": 1.5,
            "zorder": 3,
        }
        shape = Circle(mark.at, _RADIUS, **look) if mark.shape == "disc" else Polygon(_corners(mark), **look)
        axes.add_patch(shape)
    anchors = {"start": "left", "middle": "center", "end": "right"}
    for text in drawing.texts:
        # parse_math: a token with dollars in it is no formula
        axes.text(
            *text.at, _NOT_XML.sub("\ufffd", text.text), ha=anchors[text.anchor], va="baseline", fontsize=text.size,
            color=text.colour, parse_math=False, zorder=4,
        )  # fmt: skip
    file = io.BytesIO()
    # the same circuit gives the same bytes
    about = {"CreationDate": None, "Producer": None, "Creator": "circuitsae"} if kind == "pdf" else {"Software": None}
    with rc_context({"pdf.fonttype": 42, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # tokens of any script: a box is drawn
        figure.savefig(file, format=kind, metadata=about, facecolor="#ffffff")
    return file.getvalue()


def _last(positions: Sequence[int]) -> int:
    return positions[-1] if positions else -1


def _sites(recorded: Iterable[str], nodes: Iterable[dict[str, Any]]) -> list[str]:
    found = {node["site"] for node in nodes if "site" in node}
    known = [site for site in dict.fromkeys(recorded) if site in found]
    left = sorted(found - set(known), key=lambda site: names.sort_key(names.error(site)))
    return known + left


def _points(line: Line) -> list[tuple[float, float]]:
    (x0, y0), (x1, y1) = line.start, line.end
    bend = max(abs(y0 - y1) * 0.45, 12.0)
    return [(x0, y0), (x0, y0 - bend), (x1, y1 + bend), (x1, y1)]


def _path(line: Line) -> str:
    start, *rest = (f"{_number(x)},{_number(y)}" for x, y in _points(line))
    return f"M{start}C{' '.join(rest)}"


def _corners(mark: Mark) -> list[tuple[float, float]]:
    x, y = mark.at
    if mark.shape == "diamond":
        r = _RADIUS * 1.2
        return [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
    r = _RADIUS * 0.9
    return [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)]


def _number(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def _cut(text: str, length: int) -> str:
    text = " ".join(text.split()) or text
    return text if len(text) <= length else text[: length - 1] + "…"


def _escaped(text: str) -> str:
    return html.escape(_NOT_XML.sub("\ufffd", text))
