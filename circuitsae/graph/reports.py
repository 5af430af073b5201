"""A circuit as a page of text, and as the table that notebooks show."""

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitsae.graph.circuit import Circuit

_WORDS = {"feature": "feature", "error": "error node", "token": "token"}


class Shown:
    """A page that a notebook shows in a frame of its own."""

    def __init__(self, page: str, height: int) -> None:
        self.page, self.height = page, height

    def __repr__(self) -> str:
        return "<a circuit's drawing, which a notebook shows; Circuit.export('c.html') writes the page>"

    def _repr_html_(self) -> str:
        # Without allow-same-origin the frame can't read the notebook, whatever a label might try.
        return (
            f'<iframe srcdoc="{html.escape(self.page)}" sandbox="allow-scripts allow-downloads" allow="fullscreen" '
            f'title="Circuit" style="width:100%;height:{self.height}px;border:0"></iframe>'
        )


def summary(circuit: "Circuit") -> list[str]:
    """Returns a line each on: what was traced, the metric and its value, the nodes kept, the edges kept."""
    about = circuit.graph.graph
    model = about.get("preset") or about.get("model", {}).get("name", "")
    title = "Circuit" + (f" of {model}" if model else "") + (f" on {circuit.prompt!r}" if circuit.prompt else "")
    lines = [title]
    metric = about.get("metric", {})
    if metric:
        value = f" = {number_text(about['metric_value'])}" if "metric_value" in about else ""
        against = about.get("baseline_metric_value")
        beside = "" if against is None else f" ({number_text(against)} on the patch prompt)"
        lines.append(f"metric: {metric.get('description') or metric.get('name', '')}{value}{beside}")
    kept = about.get("kept", {})
    parts: list[str] = []
    if _is_count(kept.get("candidates")):
        parts.append(f"of {kept['candidates']:,} candidates")
    if isinstance(kept.get("effect_share"), int | float):
        parts.append(f"holding {kept['effect_share']:.0%} of |effect|")
    lines.append(f"nodes: {counts(circuit)}" + (f" ({', '.join(parts)})" if parts else ""))
    of = f" (of {kept['edge_candidates']:,})" if _is_count(kept.get("edge_candidates")) else ""
    lines.append(f"edges: {circuit.graph.number_of_edges():,}{of}")
    lines += explained(circuit)
    return lines


def explained(circuit: "Circuit") -> list[str]:
    """Returns how much of the metric the circuit explains, as far as it says, in a line."""
    about = circuit.graph.graph
    parts: list[str] = []
    found: dict[str, Any] = about.get("faithfulness") or {}
    share: float | None = found.get("faithfulness")
    if share is not None:
        random: list[float] = [other for other in found.get("random_faithfulness", ()) if other is not None]
        beside = f" (random nodes {min(random):.2f} to {max(random):.2f})" if random else ""
        asked = about.get("options", {}).get("min_faithfulness")
        short = f", short of the {asked:g} asked for" if isinstance(asked, int | float) and share < asked else ""
        parts.append(f"faithfulness {share:.2f}{beside}{short}")
    kept = about.get("kept", {})
    if isinstance(kept.get("error_share"), int | float):
        parts.append(f"error nodes hold {kept['error_share']:.0%} of all |effect|")
    scores = circuit.scores()
    if scores is not None:
        parts.append(f"completeness {scores.completeness:.2f}, replacement {scores.replacement:.2f}")
    return [f"explained: {'; '.join(parts)}"] if parts else []


def counts(circuit: "Circuit") -> str:
    """Returns how many features, error nodes and tokens there are, in words."""
    kinds = [data["kind"] for _, data in circuit.graph.nodes(data=True)]
    found = [(kinds.count(kind), word) for kind, word in _WORDS.items() if kind in kinds]
    return ", ".join(f"{n:,} {word}{'' if n == 1 else 's'}" for n, word in found) or "no nodes"


def as_text(circuit: "Circuit", n: int = 10) -> str:
    """Returns the summary and tables of the `n` strongest nodes and edges."""
    lines = summary(circuit)
    nodes = [(key, circuit[key]) for key in circuit.strongest(n)]
    if nodes:
        header, align = ["strongest nodes", "token", "activation"], "<<>"
        columns = [
            [key for key, _ in nodes],
            [_quoted(data.get("token")) for _, data in nodes],
            [number_text(data.get("activation")) for _, data in nodes],
        ]
        for title, name in _effect_columns([data for _, data in nodes]):
            header, align = [*header, title], align + ">"
            columns.append([number_text(data.get(name), signed=True) for _, data in nodes])
        if any("label" in data for _, data in nodes):
            header, align = [*header, "label"], align + "<"
            columns.append([" ".join(data.get("label", "").split())[:80] for _, data in nodes])
        lines += ["", *table_lines(header, columns, align)]
    groups = circuit.graph.graph.get("groups", [])[:n]
    if groups:
        header, align = ["groups", "nodes"], "<>"
        columns = [[group["name"] for group in groups], [f"{len(group['keys']):,}" for group in groups]]
        if all("measured_effect" in group for group in groups):
            header, align = [*header, "measured", "each alone"], align + ">>"
            columns += [
                [number_text(g.get(name), signed=True) for g in groups] for name in ("measured_effect", "effect")
            ]
        lines += ["", *table_lines(header, columns, align)]
    heads = circuit.heads()[:n]
    if heads:
        tokens: list[str] = circuit.graph.graph.get("tokens", [])
        at = [f"{_quoted(token)}@{position}" for position, token in enumerate(tokens)]

        def place(end: int) -> str:
            return at[end] if end < len(at) else f"@{end}"

        columns = [
            [f"{row['layer']}.{row['head']}" for row in heads],
            [f"{place(row['source'])} -> {place(row['target'])}" for row in heads],
            [f"{row['edges']:,}" for row in heads],
            [number_text(row["carried"]) for row in heads],
            [number_text(row["weight"], signed=True) for row in heads],
        ]
        lines += ["", *table_lines(["heads", "between", "edges", "carried", "weight"], columns, "<<>>>")]
    edges = [(*ends, circuit.graph.edges[ends]) for ends in circuit.strongest_edges(n)]
    if edges:
        columns = [
            [source for source, _, _ in edges],
            [f"-> {target}" for _, target, _ in edges],
            [number_text(data.get("contribution"), signed=True) for _, _, data in edges],
            [number_text(data["weight"], signed=True) for _, _, data in edges],
        ]
        lines += ["", *table_lines(["strongest edges", "", "contribution", "weight"], columns, "<<>>")]
    return "\n".join(lines)


def _effect_columns(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns title and attribute of the columns in which effects are shown: measured first, where some are."""
    measured = [data for data in nodes if "measured_effect" in data]
    if not measured:
        return [("effect", "effect")]
    if all(data.get("effect") == data["measured_effect"] for data in measured) and len(measured) == len(nodes):
        return [("measured", "measured_effect")]
    return [("measured", "measured_effect"), ("predicted", "effect")]


def as_html(circuit: "Circuit", n: int = 10) -> str:
    """Returns the summary and the table of the `n` strongest nodes as HTML; every text from outside is escaped."""
    keys = circuit.strongest(n)
    effects = _effect_columns([circuit[key] for key in keys])
    header = ["node", "token", "activation", *(title for title, _ in effects), "label"]
    rows = [_html_cells(key, circuit[key], [name for _, name in effects]) for key in keys]
    shown = [i for i, _ in enumerate(header) if any(row[i] for row in rows)]
    head = "".join(f"<th>{header[i]}</th>" for i in shown)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(row[i])}</td>" for i in shown) + "</tr>" for row in rows)
    about = "".join(f"<div>{html.escape(line)}</div>" for line in summary(circuit))
    return f"<div>{about}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _html_cells(key: str, data: Mapping[str, Any], effects: Sequence[str]) -> list[str]:
    signed = [number_text(data.get(name), signed=True) for name in effects]
    return [key, _quoted(data.get("token")), number_text(data.get("activation")), *signed, data.get("label", "")]


def table_lines(header: list[str], columns: list[list[str]], align: str) -> list[str]:
    """Returns lines of columns, each as wide as its widest cell."""
    widths = [max(map(len, [title, *column])) for title, column in zip(header, columns, strict=True)]
    rows = [header, *map(list, zip(*columns, strict=True))]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]


def _quoted(token: str | None) -> str:
    return "" if token is None else repr(token)


def number_text(value: float | None, signed: bool = False) -> str:
    """Returns a number of three digits as text; nothing where it is not known."""
    return "" if value is None else f"{value:{'+' if signed else ''}.3g}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
