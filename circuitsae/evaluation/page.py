"""The report on a task set: one HTML file that a person can read who was not there, and that asks the network for nothing."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2

from circuitsae import names
from circuitsae.correlation import correlation
from circuitsae.evaluation.charts import Line, curves, scatter
from circuitsae.evaluation.result import Curve, Evaluation
from circuitsae.evaluation.statistics import Estimate
from circuitsae.export.page import drawing_script, drawing_style, embedded_json, hash_source
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit

_START = """
{
  const { payload } = JSON.parse(document.getElementById("circuit-data").textContent);
  CircuitGraph.shown = CircuitGraph.mount(document.getElementById("circuit"), payload, {});
}
"""
_BASELINES = {
    "zero": "zero",
    "mean": "their mean over the prompts",
    "patch": "their value on a counterfactual prompt",
    "resample": "their value on another of the prompts",
}
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
    about, style, script, data = evaluation.about, _asset("report.css"), "", ""
    if circuit is not None:
        style += drawing_style()
        script = drawing_script() + _START
        data = embedded_json({"payload": view_payload(circuit)})
    policy = f"default-src 'none'; style-src {hash_source(style)}; img-src data:; base-uri 'none'; form-action 'none'"
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_asset("report.html"))
    return template.render(
        policy=policy + (f"; script-src {hash_source(script)}" if script else ""),
        title=title or f"What in {_model(about)} does “{about['tasks']['name']}”?",
        style=style,
        script=script,
        data=data,
        about=about,
        model=_model(about),
        n_prompts=evaluation.metrics.shape[1],
        size=about.get("circuit", {}).get("nodes"),
        baseline=_BASELINES[about["baseline"]],
        numbers=_numbers(evaluation),
        n_lost=len(evaluation.undefined_prompts()),
        examples=examples,
        charts=_charts(evaluation),
        curves=sorted(evaluation.curves.values(), key=lambda curve: curve.of == "edges"),
        curve_names=_CURVE_NAMES,
        prediction=_prediction(measured),
        minimality=evaluation.minimality,
        facts=_facts(evaluation, circuit),
    )


def _numbers(evaluation: Evaluation) -> list[tuple[str, Estimate, str]]:
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
    return cells


def _charts(evaluation: Evaluation) -> list[tuple[str, str]]:
    found, about = evaluation.curves.values(), evaluation.about
    nodes, edges = ([curve for curve in found if curve.of == of] for of in ("nodes", "edges"))
    charts = [_chart(nodes, about["n_nodes"], "nodes kept", "faithfulness", False)]
    if any(p.completeness is not None for c in nodes for p in c.points):
        charts.append(_chart(nodes, about["n_nodes"], "nodes taken away", "faithfulness of the rest", True))
    if edges:
        charts.append(_chart(edges, about["n_edges"], "edges kept", "faithfulness", False))
    return charts


def _chart(found: Sequence[Curve], whole: int, x_label: str, y_label: str, complement: bool) -> tuple[str, str]:
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
    return drawn, caption


def _prediction(measured: Sequence[Circuit]) -> dict[str, Any] | None:
    points = [
        (float(data["effect"]), float(data["measured_effect"]), f"{_label(key, data)}, task {n + 1}")
        for n, circuit in enumerate(measured)
        for key, data in circuit.graph.nodes(data=True)
        if "measured_effect" in data and "effect" in data
    ]
    if len(points) < 2:
        return None
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return {
        "n_tasks": len(measured),
        "n": len(points),
        "r": correlation(xs, ys),
        "slope": sum(x * y for x, y in zip(xs, ys, strict=True)) / (sum(x * x for x in xs) or 1),
        "drawn": scatter(points, x_label="predicted effect", y_label="measured effect"),
        "furthest": sorted(points, key=lambda p: -abs(p[0] - p[1]))[:5],
    }


def _facts(evaluation: Evaluation, circuit: Circuit | None) -> list[tuple[str, str]]:
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
    return facts + [("Left out", problem) for problem in evaluation.problems]


def _label(key: str, data: Mapping[str, Any]) -> str:
    node = names.parse(key)
    label = data.get("label")
    return f"{key} ({label})" if label and node.kind == "feature" else key


def _model(about: Mapping[str, Any]) -> str:
    return str(about.get("preset") or about["model"]["name"])


def _asset(name: str) -> str:
    return resources.files("circuitsae.evaluation").joinpath("assets", name).read_text("utf-8")
