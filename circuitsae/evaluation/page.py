"""The report on a task set: one HTML file that a person can read who was not there, and that asks the network for nothing."""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

from circuitsae import names
from circuitsae.correlation import correlation
from circuitsae.evaluation.charts import Line, curves, scatter
from circuitsae.evaluation.result import Curve, Evaluation
from circuitsae.evaluation.statistics import Estimate
from circuitsae.export.page import drawing_script, drawing_style, embedded_json
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit

_START = """
{
  const { payload } = JSON.parse(document.getElementById("circuit-data").textContent);
  CircuitGraph.shown = CircuitGraph.mount(document.getElementById("circuit"), payload, {});
}
"""
_STYLE = """
:root { --text: #1b2027; --soft: #5b6573; --line: #dfe3e8; --back: #fff; --field: #f5f6f9;
  --c0: #1f6db8; --c1: #b8520a; --c2: #0f8f75; --c3: #b14a90; --c4: #8f7a10; --c5: #5b6573; }
@media (prefers-color-scheme: dark) { :root { --text: #e7eaef; --soft: #9ba6b4; --line: #2d3540; --back: #12161c;
  --field: #191f27; --c0: #6fb1f3; --c1: #f39a4e; --c2: #46c6a6; --c3: #e58cc6; --c4: #d8c24a; --c5: #9ba6b4;
  color-scheme: dark; } }
html { background: var(--back); color: var(--text);
  font: 15px/1.55 ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", Arial, sans-serif; }
body { margin: 0 auto; max-width: 1160px; padding: 28px 20px 60px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 18px; margin: 36px 0 8px; } h3 { font-size: 15px; margin: 20px 0 4px; }
p { max-width: 78ch; margin: 6px 0; overflow-wrap: anywhere; } .soft, figcaption { color: var(--soft); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 18px 0; padding: 0; }
.numbers div { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; background: var(--field); }
.numbers dt { color: var(--soft); font-size: 13px; }
.numbers dd { margin: 2px 0 0; font-size: 23px; font-weight: 650; font-variant-numeric: tabular-nums; }
.numbers small { display: block; font-size: 12.5px; font-weight: 400; color: var(--soft); line-height: 1.4; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 24px; }
figure { margin: 8px 0; } figcaption { font-size: 13px; max-width: 70ch; }
.chart { width: 100%; height: auto; display: block; }
.chart .grid { stroke: var(--line); stroke-width: 1; } .chart .rule { stroke: var(--soft); stroke-dasharray: 4 4; }
.chart .tick, .chart .axis { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.chart .line { fill: none; stroke-width: 2.2; } .chart .band { opacity: 0.16; stroke: none; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.dot.c0, .band.c0 { fill: var(--c0); } .dot.c1, .band.c1 { fill: var(--c1); } .dot.c2, .band.c2 { fill: var(--c2); }
.dot.c3, .band.c3 { fill: var(--c3); } .dot.c4, .band.c4 { fill: var(--c4); } .dot.c5, .band.c5 { fill: var(--c5); }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px; vertical-align: -1px; }
.swatch.c0 { background: var(--c0); } .swatch.c1 { background: var(--c1); } .swatch.c2 { background: var(--c2); }
.swatch.c3 { background: var(--c3); } .swatch.c4 { background: var(--c4); } .swatch.c5 { background: var(--c5); }
.key { margin-right: 18px; white-space: nowrap; } .legend { font-size: 13px; margin: 4px 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; } th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; } code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
.drawing { border: 1px solid var(--line); border-radius: 8px; overflow: hidden; margin-top: 12px; }
.provenance { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; font-size: 13.5px; margin: 8px 0; }
.provenance dt { color: var(--soft); } .provenance dd { margin: 0; overflow-wrap: anywhere; }
@media print { .drawing { break-inside: avoid; } }
"""

_CURVE_NAMES = {
    "circuit": "the circuit, then the rest by predicted effect",
    "effect": "nodes by predicted effect",
    "activation": "nodes by how much they write",
    "random": "nodes in random order",
    "edges": "edges by |weight|",
    "edges-random": "edges in random order",
}


def report_page(
    circuit: Circuit | None,
    evaluation: Evaluation,
    examples: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
    measured: Sequence[Circuit] = (),
) -> str:
    """Returns the report as one HTML page: the numbers, curves beside baselines, predicted against measured, the circuit.

    Strangers' text (prompts, tokens, labels) is escaped; the page's own policy allows just its one script and its styles.

    Args:
        circuit: The circuit that was evaluated, drawn on the page; `None`: no drawing.
        evaluation: What was measured.
        examples: Records of some tasks (`TaskSet.records`), shown as they are.
        title: The page's heading; the tasks' name by default.
        measured: The tasks' own circuits, whose nodes were measured.
    """
    about = evaluation.about
    name = title or f"What in {_model(about)} does “{about['tasks']['name']}”?"
    sections = [
        f"<h1>{html.escape(name)}</h1>",
        f"<p class='soft'>{_opening(evaluation, circuit)}</p>",
        _numbers(evaluation),
        _examples(examples, about),
        _curves(evaluation),
        _prediction(measured),
        _minimality(evaluation),
        _provenance(evaluation, circuit),
    ]
    style, script = _STYLE, ""
    if circuit is not None:
        style += drawing_style()
        script = drawing_script() + _START
        data = embedded_json({"payload": view_payload(circuit)})
        sections.insert(
            -1,
            "<h2>The circuit</h2><p>Columns are positions, rows go up through the model; a node is a feature (or what the "
            "dictionaries leave unexplained), a line the direct effect of one on another. Click a node to see what acts on "
            'it. Numbers are means over the prompts.</p><div class="drawing"><main id="circuit"><noscript>This drawing needs '
            f'JavaScript.</noscript></main></div><script type="application/json" id="circuit-data">{data}</script>'
            f"<script>{script}</script>",
        )
    policy = f"default-src 'none'; style-src {_source(style)}; img-src data:; base-uri 'none'; form-action 'none'" + (
        f"; script-src {_source(script)}" if script else ""
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(name)} - circuitsae</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(s for s in sections if s)
        + "\n</body>\n</html>\n"
    )


def _opening(evaluation: Evaluation, circuit: Circuit | None) -> str:
    about, n = evaluation.about, evaluation.metrics.shape[1]
    size = about.get("circuit", {}).get("nodes")
    what = f"A circuit of {size:,} of the {about['n_nodes']:,} nodes" if size else f"{about['n_nodes']:,} nodes"
    baseline = {
        "zero": "zero",
        "mean": "their mean over the prompts",
        "patch": "their value on a counterfactual prompt",
        "resample": "their value on another of the prompts",
    }[about["baseline"]]
    return html.escape(
        f"{what} that are active in {_model(about)} on {n} prompts was measured by really setting all other nodes to "
        f"{baseline}, and reading how much of the model's answer is left."
        if size
        else f"The {what} that are active in {_model(about)} on {n} prompts were set to {baseline} in several orders, and "
        "how much of the model's answer is left was read after each step."
    )


def _numbers(evaluation: Evaluation) -> str:
    main = next(iter(evaluation.curves.values()), None)
    cells: list[tuple[str, Estimate, str]] = []
    if evaluation.faithfulness is not None:
        cells.append(("Faithfulness", evaluation.faithfulness, "of the circuit alone; 1 is the whole model, 0 nothing"))
    if evaluation.completeness is not None:
        cells.append(("Completeness", evaluation.completeness, "faithfulness of all that is not in it; 0 is complete"))
    if evaluation.edge_faithfulness is not None:
        cells.append(("Faithfulness of its edges", evaluation.edge_faithfulness, "when only its edges transmit"))
    if main is not None:
        cells.append(("CPR", main.cpr, "area under faithfulness over circuit size; more is better"))
        cells.append(("CMD", main.cmd, "area between faithfulness and 1; less is better"))
    cells.append(("Metric of the model", evaluation.metric, "mean over the prompts"))
    cells.append(("Metric with nothing left", evaluation.empty_metric, "every node at its baseline"))
    parts = []
    for label, value, note in cells:
        number = "undefined" if value.value is None else f"{value.value:.3f}"
        interval = "" if value.low is None else f"95 %: {value.low:.3f} to {value.high:.3f}<br>"
        why = html.escape(value.undefined or note)
        parts.append(f"<div><dt>{label}</dt><dd>{number}<small>{interval}{why}</small></dd></div>")
    lost = evaluation.undefined_prompts()
    more = (
        f"<p>On {len(lost)} of the prompts ablating everything hardly moves the metric; their own ratios are undefined, and "
        "they count in the means all the same.</p>"
        if lost
        else ""
    )
    return f'<dl class="numbers">{"".join(parts)}</dl>{more}'


def _examples(examples: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    if not examples:
        return ""
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(str(row.get(k, '')))}</td>" for k in ("clean", "answer", "foil", "patch"))
        + "</tr>"
        for row in examples
    )
    return (
        f"<h2>What was asked</h2><p>{len(examples)} of {about['tasks']['n']} tasks. The metric is the logit of the answer "
        "minus that of the foil.</p><div class='scroll'><table><tr><th>prompt</th><th>answer</th><th>foil</th>"
        f"<th>counterfactual</th></tr>{rows}</table></div>"
    )


def _curves(evaluation: Evaluation) -> str:
    found = evaluation.curves
    nodes = [c for c in found.values() if c.of == "nodes"]
    edges = [c for c in found.values() if c.of == "edges"]
    parts = [
        "<h2>Does the circuit do it?</h2><p>Each point keeps so many nodes, in the order of the legend, and sets all others "
        "to their baselines. A good order reaches 1 early. What is left to chance is the order in which nodes are drawn at "
        "random; bands are 95 % intervals over prompts.</p>",
        '<div class="pair">',
        _chart(nodes, evaluation.about["n_nodes"], "nodes kept", "faithfulness", False),
    ]
    if any(p.completeness is not None for c in nodes for p in c.points):
        parts.append(_chart(nodes, evaluation.about["n_nodes"], "nodes taken away", "faithfulness of the rest", True))
    if edges:
        parts.append(_chart(edges, evaluation.about["n_edges"], "edges kept", "faithfulness", False))
    parts.append("</div>")
    rows = "".join(
        f"<tr><td>{html.escape(_CURVE_NAMES.get(c.name, c.name))}</td><td class='n'>{_shown(c.cpr)}</td>"
        f"<td class='n'>{_shown(c.cmd)}</td></tr>"
        for c in (*nodes, *edges)
    )
    parts.append(
        "<div class='scroll'><table><tr><th>order</th><th class='n'>CPR (more is better)</th>"
        f"<th class='n'>CMD (less is better)</th></tr>{rows}</table></div>"
    )
    return "".join(parts)


def _chart(found: Sequence[Curve], whole: int, x_label: str, y_label: str, complement: bool) -> str:
    lines = []
    for number, curve in enumerate(found):
        points: list[tuple[float, float, float | None, float | None]] = []
        for point in curve.points:
            value = point.completeness if complement else point.faithfulness
            if value is not None and value.value is not None and point.size:
                points.append((float(point.size), value.value, value.low, value.high))
        if points:
            lines.append(Line(_CURVE_NAMES.get(curve.name, curve.name), number % 6, points))
    drawn = curves(lines, x_label=f"{x_label} (of {whole:,})", y_label=y_label, marks=(0.0, 1.0))
    caption = (
        "The rest: what the model still does without the nodes. Where it falls to 0, they are all that matters."
        if complement
        else f"{x_label.capitalize()}, on a logarithmic scale."
    )
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _prediction(measured: Sequence[Circuit]) -> str:
    points = [
        (float(data["effect"]), float(data["measured_effect"]), f"{_label(key, data)}, task {n + 1}")
        for n, circuit in enumerate(measured)
        for key, data in circuit.graph.nodes(data=True)
        if "measured_effect" in data and "effect" in data
    ]
    if len(points) < 2:
        return ""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    r = correlation(xs, ys)
    slope = sum(x * y for x, y in zip(xs, ys, strict=True)) / (sum(x * x for x in xs) or 1)
    furthest = sorted(points, key=lambda p: -abs(p[0] - p[1]))[:5]
    rows = "".join(
        f"<tr><td><code>{html.escape(n)}</code></td><td class='n'>{x:+.3f}</td><td class='n'>{y:+.3f}</td></tr>"
        for x, y, n in furthest
    )
    said = "undefined" if r is None else f"{r:.2f}"
    return (
        "<h2>Do the predictions hold?</h2><p>Effects of nodes are predicted from one backward pass, and were measured for "
        f"the strongest of {len(measured)} tasks, {len(points)} in all, by really ablating each. Correlation {said}; for 1 "
        f"predicted, {slope:.2f} was "
        'measured.</p><div class="pair"><figure>'
        f"{scatter(points, x_label='predicted effect', y_label='measured effect')}"
        "<figcaption>A point on the diagonal does just what was predicted.</figcaption></figure>"
        "<div class='scroll'><h3>Furthest off</h3><table><tr><th>node</th><th class='n'>predicted</th>"
        f"<th class='n'>measured</th></tr>{rows}</table></div></div>"
    )


def _minimality(evaluation: Evaluation) -> str:
    if not evaluation.minimality:
        return ""
    rows = "".join(
        f"<tr><td><code>{html.escape(m.node)}</code></td><td class='n'>{_shown(m.marginal)}</td></tr>"
        for m in evaluation.minimality
    )
    return (
        "<h2>Which nodes does it need?</h2><p>How much faithfulness is lost when a node is left out of the circuit. What is "
        "not above 0 is not needed, or stands in for another.</p><div class='scroll'><table><tr><th>node</th>"
        f"<th class='n'>lost without it</th></tr>{rows}</table></div>"
    )


def _provenance(evaluation: Evaluation, circuit: Circuit | None) -> str:
    about = evaluation.about
    passes = about.get("passes", {})
    facts: list[tuple[str, str]] = [
        ("Model", _model(about)),
        (
            "Dictionaries",
            ", ".join(f"{d['site']} ({d['architecture']}, {d['d_sae']:,})" for d in about["dictionaries"]),
        ),
        ("Skipped positions", ", ".join(map(str, about["model"].get("skip_positions", []))) or "none"),
        ("Tasks", f"{about['tasks']['name']}, {about['tasks']['n']}; {about['tasks'].get('source', '')}"),
        ("Tasks, sha256", about["tasks"]["sha256"]),
        ("Baseline", about["baseline"]),
        ("Error nodes", {"default": "nodes like others", "keep": "all kept", "remove": "none kept"}[about["errors"]]),
        ("Orders by", str(about["method"])),
        ("Seed", str(about["seed"])),
        ("Passes of the model", f"{passes.get('forward', 0):,.0f} forward, {passes.get('backward', 0):,.0f} backward"),
        ("circuitsae", about["package_version"]),
    ]
    if circuit is not None:
        data = circuit.graph.graph
        facts.insert(
            5, ("Circuit", f"{data.get('method')}, {data.get('linearisation')} edges, pruned by {data.get('prune')}")
        )
        facts.insert(6, ("Circuit, sha256", circuit.fingerprint))
    facts += [("Left out", problem) for problem in evaluation.problems]
    rows = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(str(v))}</dd>" for k, v in facts)
    return f'<h2>Where this is from</h2><dl class="provenance">{rows}</dl>'


def _label(key: str, data: Mapping[str, Any]) -> str:
    node = names.parse(key)
    label = data.get("label")
    return f"{key} ({label})" if label and node.kind == "feature" else key


def _model(about: Mapping[str, Any]) -> str:
    return str(about.get("preset") or about["model"]["name"])


def _shown(value: Estimate) -> str:
    return html.escape(str(value))


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
