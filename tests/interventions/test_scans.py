"""Scans: tables equal single interventions, and statistics equal scipy's or numpy's."""

import sys
from typing import Any

import numpy as np
import pytest

import circuitsae as cs
from circuitsae import scans
from circuitsae.correlation import ranks
from circuitsae.errors import CancelledError, InputError, MissingExtraError, NodeError, UnknownNameError
from circuitsae.scans.ablating import COLUMNS
from circuitsae.scans.tables import short
from tests.interventions.conftest import PATCH, PROMPT
from tests.interventions.plain import dense_of, metric_of, tokens_of

SITES = ["blocks.1.hook_mlp_out", "blocks.3.hook_resid_post"]


@pytest.fixture(scope="module")
def scan(spliced: cs.SplicedModel) -> scans.AblationScan:
    metric = cs.LogitDiff(" Mary", " John")
    tasks = [cs.Task(PROMPT, metric=metric), cs.Task(PATCH, metric=metric)]
    return cs.scan_ablation(spliced, tasks, sites=SITES, position=-1)


def test_every_active_feature_and_error_is_measured(
    spliced: cs.SplicedModel, task: cs.Task, scan: scans.AblationScan
) -> None:
    mine = [row for row in scan.rows if row["prompt"] == 0]
    active = sum(int((dense_of(spliced, tokens_of(spliced, task), site)[0][-1] != 0).sum()) for site in SITES)
    assert len(mine) == active + len(SITES)
    clean = metric_of(spliced, task, [])
    for row in scan.strongest(3):
        if row["prompt"] == 0:
            found = cs.intervene(spliced.restrict(SITES), task, [cs.Ablate(row["node"])])
            assert row["measured"] == pytest.approx(found.metric_after - clean, abs=1e-9)
    predicted = cs.node_effects(spliced, task, method="attribution-patching", sites=SITES)
    for row in mine[:5]:
        assert row["predicted"] == pytest.approx(predicted.effect_of(row["node"]), abs=1e-12)


def test_table_and_matrix(scan: scans.AblationScan) -> None:
    frame = scan.to_dataframe()
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(scan.rows)
    matrix = scan.matrix("prompt", top=6)
    assert [key.endswith("/error") for key in matrix.rows] == [False] * 6 + [True] * 2
    for key, values in zip(matrix.rows, matrix.values, strict=True):
        for prompt, value in enumerate(values):
            here = [r["measured"] for r in scan.rows if r["prompt"] == prompt and r["node"].split("@")[0] == key]
            assert value == (pytest.approx(sum(here)) if here else None)
    assert matrix.to_dataframe().shape == (8, 2)
    by_position = scan.matrix("position")
    assert len(by_position.columns) == 15
    assert by_position.columns[-1].startswith("14 ")
    assert all(v is None for row in by_position.values for v in row[:14])


def test_agreement_equals_numpy(scan: scans.AblationScan) -> None:
    found = scan.agreement(outliers=4)
    x, y = (np.array([row[side] for row in scan.rows]) for side in ("predicted", "measured"))
    assert found.n == len(x)
    assert found.correlation == pytest.approx(np.corrcoef(x, y)[0, 1])
    slope, intercept = np.polyfit(x, y, 1)
    assert (found.slope, found.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    rank_x, rank_y = (np.argsort(np.argsort(v)) for v in (x, y))
    assert found.rank_correlation == pytest.approx(np.corrcoef(rank_x, rank_y)[0, 1], abs=1e-3)
    assert [r["node"] for r in found.outliers] == [scan.rows[n]["node"] for n in np.argsort(-abs(y - x))[:4]]
    assert "r = " in str(found)
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]


def test_activity_is_what_the_dictionaries_say(spliced: cs.SplicedModel, task: cs.Task) -> None:
    scan = cs.scan_activity(spliced, [PROMPT, PATCH], sites=SITES[:1], errors=True)
    dense, error = dense_of(spliced, tokens_of(spliced, task), SITES[0])
    mine = [row for row in scan.rows if row["prompt"] == 0]
    features = [row for row in mine if row["kind"] == "feature"]
    assert len(features) == int((dense != 0).sum())
    assert all(r["activation"] == pytest.approx(float(dense[r["position"], r["index"]])) for r in features)
    norms = [row["activation"] for row in mine if row["kind"] == "error"]
    assert norms == pytest.approx(error.norm(dim=-1).tolist())
    matrix = scan.matrix("prompt", top=5)
    index = int(matrix.rows[0].split("/")[1])
    assert matrix.values[0][0] == pytest.approx(float(dense[:, index].max()))
    assert {row["position"] for row in cs.scan_activity(spliced, PROMPT, position=-1).rows} == {14}


def test_steering_curve_and_where_its_line_breaks(spliced: cs.SplicedModel, task: cs.Task) -> None:
    node = cs.node_effects(spliced, task).strongest(1)[0]["node"]
    found = cs.scan_scales(spliced, task, node, scales=[0, 1, 1.001, 2])
    assert found.metrics[1] == pytest.approx(found.clean, abs=1e-9)
    assert found.metrics[0] == pytest.approx(cs.intervene(spliced, task, [cs.Ablate(node)]).metric_after, abs=1e-9)
    assert (found.metrics[2] - found.clean) / 0.001 == pytest.approx(found.slope, rel=1e-2)
    assert list(found.to_dataframe().columns) == ["scale", "metric", "linear"]
    made = scans.SteeringCurve("token@1", (-1, 0, 0.5, 1, 1.5, 2), (9, 0.05, 0.5, 1, 1.5, 2.2), 1.0, 1.0, "m")
    assert made.linear == (-1, 0, 0.5, 1, 1.5, 2)
    assert made.breaks(0.1) == (-1, 2)
    assert made.breaks(0.01) == (0, 2)
    assert made.breaks(20) == (None, None)


@pytest.mark.parametrize("backend", ["matplotlib", "plotly"])
def test_pictures(scan: scans.AblationScan, spliced: cs.SplicedModel, backend: str, tmp_path: Any) -> None:
    pytest.importorskip(backend)
    activity = cs.scan_activity(spliced, PROMPT, sites=SITES[:1])
    curve = scans.SteeringCurve("token@1", (-1, 0, 1, 2), (9, 0.05, 1, 2.2), 1.0, 1.0, "m")
    figures = [
        scan.plot("prompt", top=10, backend=backend),
        scan.plot_agreement(backend=backend),
        activity.plot("position", top=10, backend=backend),
        curve.plot(backend=backend),
    ]
    for number, figure in enumerate(figures):
        if backend == "matplotlib":
            figure.savefig(tmp_path / f"{number}.png")
            assert (tmp_path / f"{number}.png").stat().st_size > 5_000
        else:
            assert len(figure.to_json()) > 1_000
    texts = figures[1].axes[0].texts if backend == "matplotlib" else figures[1].layout.annotations
    shown = [t.get_text() if backend == "matplotlib" else t.text for t in texts]
    assert shown == [short(r["node"]) for r in scan.agreement().outliers]


@pytest.mark.parametrize("missing", ["matplotlib", "plotly", "pandas"])
def test_what_is_not_installed_is_named_with_its_extra(
    missing: str, scan: scans.AblationScan, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"circuitsae\[(plots|dataframe)\]"):
        scan.to_dataframe() if missing == "pandas" else scan.plot(backend=missing)


@pytest.mark.unchecked
def test_what_cannot_be_is_said(spliced: cs.SplicedModel, task: cs.Task, scan: scans.AblationScan) -> None:
    with pytest.raises(InputError, match="nothing to scan"):
        cs.scan_ablation(spliced, [])
    with pytest.raises(InputError, match="nothing to scan"):
        cs.scan_activity(spliced, [])
    with pytest.raises(CancelledError):
        cs.scan_ablation(spliced, task, sites=SITES[:1], top=1, progress=lambda *args: False)
    with pytest.raises(NodeError, match="not active"):
        cs.scan_scales(spliced, task, "blocks.1.hook_mlp_out/0@1", scales=[0])
    with pytest.raises(InputError, match="no scales"):
        cs.scan_scales(spliced, task, "token@1", scales=[])
    with pytest.raises(UnknownNameError, match="plotly"):
        scan.plot(backend="plotli")
    with pytest.raises(UnknownNameError, match="position"):
        scan.matrix("positions")  # type: ignore[arg-type]
