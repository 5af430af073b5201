"""Faithfulness and its like, against ablations done by hand, identities, and options that must matter."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

import circuitsae as cs
from circuitsae import names as node_names
from circuitsae.errors import InputError, NodeError, TaskError, UnknownNameError
from circuitsae.evaluation.evaluator import GRID, evaluate
from circuitsae.evaluation.result import Cell, Evaluation, size_of


def _by_hand(
    spliced: cs.SplicedModel,
    task: cs.Task,
    keep: Iterable[str],
    *,
    complement: bool = False,
    zero: bool = False,
    errors: str = "default",
    start_layer: int = 0,
) -> float:
    """m(C) from TransformerLens' hooks and dense dictionaries, feature by feature; no code of the package's engine."""
    prepared = task.prepare(spliced.vocabulary)
    kept = set(keep)
    positioned = any("@" in key for key in kept)
    hooks: list[str] = [d.hook_in for d in spliced.dictionaries if spliced.hooked.layer(d.hook_in) >= start_layer]
    dictionaries = [spliced.dictionary(hook) for hook in hooks]
    _, cache = spliced.model.run_with_cache(torch.tensor([prepared.patch_tokens]))
    base: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    nodes: dict[str, set[tuple[int, int]]] = {}
    _, clean = spliced.model.run_with_cache(torch.tensor([prepared.tokens]))
    for hook, d in zip(hooks, dictionaries, strict=True):
        runs = [clean] if zero else [clean, cache]
        active = [d.encode(run[hook][0, 1:]).features for run in runs]
        # Without positions a feature that is active anywhere is a node at every position.
        at_each = {(r, i) for f in active for r, i in zip((f.rows + 1).tolist(), f.indices.tolist(), strict=True)}
        everywhere = range(1, len(prepared.tokens))
        nodes[hook] = at_each if positioned else {(p, i) for _, i in at_each for p in everywhere}
        x = cache[hook][0]
        encoding = d.encode(x)
        f, e = encoding.features.to_dense(), x - d.decode(encoding)
        base[hook] = (torch.zeros_like(f), torch.zeros_like(e)) if zero else (f, e)

    def at(hook: str) -> object:
        dictionary = spliced.dictionary(hook)

        def edit(x: torch.Tensor, hook: object) -> torch.Tensor:
            encoding = dictionary.encode(x[0])
            live, error = encoding.features.to_dense(), x[0] - dictionary.decode(encoding)
            base_f, base_e = base[dictionary.hook_in]
            new = x[0].clone()
            for position in range(1, x.shape[1]):  # the preset skips position 0
                f, e = base_f[position].clone(), base_e[position]
                inside = [
                    i
                    for p, i in sorted(nodes[dictionary.hook_in])
                    if p == position
                    and ((f"{dictionary.site}/{i}" in kept) or (f"{dictionary.site}/{i}@{position}" in kept))
                    != complement
                ]
                f[inside] = live[position][inside]
                keys = {f"{dictionary.site}/error", f"{dictionary.site}/error@{position}"}
                if (bool(keys & kept) != complement and errors == "default") or errors == "keep":
                    e = error[position]
                rows = dictionary.decoder_rows(torch.arange(dictionary.d_sae)).to(x.dtype)
                new[position] = f @ rows + encoding.biases[0][0] + e
            return new[None]

        return edit

    with torch.no_grad():
        logits = spliced.model.run_with_hooks(
            torch.tensor([prepared.tokens]), return_type="logits", fwd_hooks=[(h, at(h)) for h in hooks]
        )
    return float(prepared.metric(logits[:, -1:])[0])


@pytest.mark.parametrize("zero", [False, True])
def test_the_metric_of_a_circuit_is_that_of_ablating_by_hand(spliced: cs.SplicedModel, zero: bool) -> None:
    part = spliced
    tasks = cs.task_set("agreement-simple", part, n=1)
    effects = cs.node_effects(part, tasks[0], baseline="zero" if zero else "patch")
    scores: dict[str, float] = {}
    for row in effects.strongest(40, kinds=("feature", "error")):
        key = str(node_names.parse(row["node"]).at(None))
        scores[key] = max(scores.get(key, 0.0), abs(row["effect"]))
    found = evaluate(part, tasks, scores, baseline="zero" if zero else "patch", compare=(), grid=(1.0,))
    rows = {(r["what"], r["curve"], r["size"]): r["metric"] for r in found.rows()}
    n = found.about["circuit"]["nodes"]
    assert n == len(scores)
    assert rows["kept", "circuit", n] == pytest.approx(_by_hand(part, tasks[0], scores, zero=zero), abs=1e-8)
    assert rows["complement", "circuit", n] == pytest.approx(
        _by_hand(part, tasks[0], scores, complement=True, zero=zero), abs=1e-8
    )
    assert rows["empty", "", 0] == pytest.approx(_by_hand(part, tasks[0], (), zero=zero), abs=1e-8)


def test_circuits_with_positions_are_ablated_at_their_positions(spliced: cs.SplicedModel) -> None:
    part = spliced
    tasks = cs.task_set("agreement-nounpp", part, n=1)
    effects = cs.node_effects(part, tasks[0])
    scores = {r["node"]: abs(r["effect"]) for r in effects.strongest(30, kinds=("feature", "error"))}
    found = evaluate(part, tasks, scores, compare=(), grid=(1.0,), complement=False)
    rows = {(r["what"], r["size"]): r["metric"] for r in found.rows()}
    assert found.about["positions"] is True
    assert rows["kept", 30] == pytest.approx(_by_hand(part, tasks[0], scores), abs=1e-8)


@pytest.mark.parametrize(
    ("errors", "start_layer"), [("default", 0), ("default", 2), ("keep", 0), ("remove", 0), ("remove", 1)]
)
def test_a_circuit_as_traced_is_ablated_by_hand_however_errors_and_layers_are_taken(
    spliced: cs.SplicedModel, agreement: cs.TaskSet, errors: str, start_layer: int
) -> None:
    """It has nodes that are not ablated then: errors where they are kept or removed, and what lies below the layer."""
    task = agreement[0]
    circuit = cs.trace(spliced, task, max_nodes=80, method="attribution-patching")
    nodes = [key for key, kind in circuit.graph.nodes(data="kind") if kind in ("feature", "error")]
    layers = [spliced.hooked.layer(str(node_names.parse(key).site)) for key in nodes]
    counted = [
        key
        for key, layer in zip(nodes, layers, strict=True)
        if layer >= start_layer and (errors == "default" or "error" not in key)
    ]
    assert 0 < len(counted) and (len(counted) < len(nodes) or (errors, start_layer) == ("default", 0))
    options = {"errors": errors, "start_layer": start_layer}
    found = evaluate(spliced, [task], circuit, compare=(), grid=(1.0,), minimality=1, **options)  # type: ignore[arg-type]
    rows = {(r["what"], r["curve"], r["size"]): r["metric"] for r in found.rows()}
    n, hand = found.about["circuit"]["nodes"], {"errors": errors, "start_layer": start_layer}
    assert n == len(counted)
    kept = _by_hand(spliced, task, nodes, **hand)  # type: ignore[arg-type]
    empty = _by_hand(spliced, task, (), **hand)  # type: ignore[arg-type]
    assert rows["kept", "circuit", n] == pytest.approx(kept, abs=1e-8)
    assert rows["empty", "", 0] == pytest.approx(empty, abs=1e-8)
    rest = _by_hand(spliced, task, nodes, complement=True, **hand)  # type: ignore[arg-type]
    assert rows["complement", "circuit", n] == pytest.approx(rest, abs=1e-8)
    assert found.faithfulness is not None
    full = float(rows["full", "", 0])
    assert found.faithfulness.value == pytest.approx((kept - empty) / (full - empty), abs=1e-8)
    (least,) = found.minimality
    assert least.node in counted
    with pytest.raises(InputError, match="edges=True cuts edges of every layer"):
        evaluate(spliced, [task], circuit, edges=True, start_layer=1)


@pytest.mark.parametrize("baseline", ["zero", "mean", "patch", "resample"])
@pytest.mark.parametrize("errors", ["default", "keep"])
def test_all_nodes_are_the_model_and_no_nodes_the_empty_circuit(
    spliced: cs.SplicedModel, agreement: cs.TaskSet, baseline: str, errors: str
) -> None:
    # "remove" measures what is otherwise taken for granted, so its complement of nothing is run: all but the errors.
    found = evaluate(
        spliced,
        agreement,
        baseline=baseline,
        errors=errors,
        grid=(0.0, 0.5, 1.0),
        compare=(),
        seed=1,  # type: ignore[arg-type]
    )
    (curve,) = found.curves.values()
    assert [p.faithfulness.value for p in curve.points] == pytest.approx([0.0, curve.points[1].faithfulness.value, 1.0])
    assert [p.completeness.value for p in curve.points if p.completeness] == pytest.approx(
        [1.0, curve.points[1].completeness.value, 0.0]  # type: ignore[union-attr]
    )
    from circuitsae.evaluation.measuring import Cut, measure_cuts
    from circuitsae.evaluation.prompts import Prompts
    from circuitsae.evaluation.ranking import Owners, ranked
    from circuitsae.evaluation.survey import summarise, survey_prompt

    prompts = Prompts(spliced, agreement.tasks, baseline=baseline, seed=1)
    owners = Owners.of(spliced, False)
    surveyed = [survey_prompt(prompts, n, owners, None, errors == "default") for n in range(3)]
    table = summarise(owners, surveyed).table
    everything = Cut(ranked("all", np.zeros(len(table))), len(table))
    for number in range(3):
        (measured,) = measure_cuts(prompts[number], table, [everything], errors=errors)  # type: ignore[arg-type]
        assert measured == pytest.approx(prompts[number].metric, abs=1e-9)


def test_errors_kept_removed_and_ranked_differ(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    values = {}
    for errors in ("default", "keep", "remove"):
        found = evaluate(spliced, agreement, errors=errors, grid=(0.2, 1.0), compare=(), complement=False)  # type: ignore[arg-type]
        (curve,) = found.curves.values()
        values[errors] = [p.faithfulness.value for p in curve.points]
    assert values["default"][1] == values["keep"][1] == pytest.approx(1.0)
    assert values["remove"][1] < 0.999  # what the dictionaries leave over is missing
    assert values["remove"][0] != pytest.approx(values["keep"][0], abs=1e-6)


def test_a_start_layer_gives_lower_layers_for_free(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    whole = evaluate(spliced, agreement, grid=(0.1, 1.0), compare=(), complement=False)
    upper = evaluate(spliced, agreement, grid=(0.1, 1.0), compare=(), complement=False, start_layer=2)
    assert upper.about["n_nodes"] < whole.about["n_nodes"]
    assert upper.about["passes"]["forward"] < whole.about["passes"]["forward"]
    circuit = {"blocks.0.hook_mlp_out/error": 1.0, "blocks.1.hook_resid_post/error": 1.0}
    with_low = evaluate(spliced, agreement, circuit, grid=(1.0,), compare=(), start_layer=2, minimality=0)
    assert with_low.about["circuit"]["nodes"] == 0


def test_a_good_order_beats_activation_and_chance_and_the_areas_say_so(
    spliced: cs.SplicedModel, names: cs.TaskSet
) -> None:
    found = evaluate(spliced, names, positions=True, complement=False, compare=("activation", "random"), n_random=2)
    cpr = {name: curve.cpr.value for name, curve in found.curves.items()}
    cmd = {name: curve.cmd.value for name, curve in found.curves.items()}
    assert set(cpr) == {"effect", "activation", "random"}
    assert cpr["effect"] > cpr["activation"] + 0.2
    assert cpr["effect"] > cpr["random"] + 0.2
    assert cmd["effect"] < cmd["activation"]
    # The area by numpy's own trapezoid, from the points alone.
    curve = found.curves["effect"]
    sizes = {p.size: p.faithfulness.value for p in curve.points}
    y = np.array([sizes[min(found.about["n_nodes"], int(f * found.about["n_nodes"]))] for f in GRID])
    assert curve.cpr.value == pytest.approx(np.trapezoid(y, GRID))
    assert curve.cmd.value == pytest.approx(np.trapezoid(np.abs(1 - y), GRID))


def test_sizes_are_cut_where_mib_cuts_them() -> None:
    # arXiv 2504.13151 and its evaluation.py: int(percentage * the number of edges).
    assert [size_of(f, 628) for f in (0.0, 0.001, 0.002, 0.005, 0.01, 0.5, 1.0)] == [0, 0, 1, 3, 6, 314, 628]
    assert [size_of(f, 32491) for f in GRID[1:]] == [int(f * 32491) for f in GRID[1:]]


def test_minimality_is_the_circuit_less_one_node(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    base = evaluate(spliced, agreement, grid=(0.3, 1.0), compare=(), complement=False)
    scores = {r["node"]: abs(r["effect"]) for r in cs.node_effects(spliced, agreement[0]).strongest(12)}
    scores = {str(node_names.parse(k).at(None)): v for k, v in scores.items()}
    found = evaluate(spliced, agreement, scores, grid=(1.0,), compare=(), complement=False, minimality=3)
    assert [m.node for m in found.minimality] != []
    assert len(found.minimality) == 3
    strongest = sorted(scores, key=scores.__getitem__)[-3:]
    assert {m.node for m in found.minimality} == set(strongest)
    for marginal in found.minimality:
        rest = {k: v for k, v in scores.items() if k != marginal.node}
        less = evaluate(spliced, agreement, rest, grid=(1.0,), compare=(), complement=False)
        assert less.faithfulness is not None
        assert found.faithfulness is not None
        assert marginal.without.value == pytest.approx(less.faithfulness.value, abs=1e-9)
        assert marginal.marginal.value == pytest.approx(found.faithfulness.value - less.faithfulness.value, abs=1e-9)
    assert base.minimality == ()


def test_prompts_of_several_lengths_are_one_evaluation(spliced: cs.SplicedModel) -> None:
    tasks = [*cs.task_set("agreement-simple", spliced, n=2), *cs.task_set("agreement-rc", spliced, n=2)]
    together = evaluate(spliced, tasks, grid=(0.1, 1.0), compare=(), complement=False)
    assert together.metrics.shape[1] == 4
    with pytest.raises(InputError, match="several"):
        evaluate(spliced, tasks, positions=True)


def test_an_undefined_ratio_is_said_and_not_divided(spliced: cs.SplicedModel) -> None:
    task = cs.Task("The keys", metric=lambda logits: logits[:, -1].sum(-1) * 0 + 3.0)
    found = evaluate(spliced, [task], method=None, grid=(0.5, 1.0), compare=("activation", "random"))
    for curve in found.curves.values():
        assert curve.cpr.value is None
        assert curve.points[0].faithfulness.value is None
        assert "too little to divide by" in (curve.points[0].faithfulness.undefined or "")
    assert found.undefined_prompts() == [0]
    assert all(row["faithfulness"] is None for row in found.rows())
    again = Evaluation.from_json(found.to_json())
    assert again.summary() == found.summary()


def test_an_evaluation_survives_its_file(spliced: cs.SplicedModel, agreement: cs.TaskSet, tmp_path: object) -> None:
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    found = evaluate(spliced, agreement, grid=(0.1, 1.0), compare=("random",), n_random=1)
    found.save(tmp_path / "e.json")
    again = Evaluation.load(tmp_path / "e.json")
    assert again.summary() == found.summary()
    assert again.rows() == found.rows()
    assert again.about == found.about
    table = again.to_dataframe()
    assert set(table["curve"]) == {"effect", "random"}
    assert (table.loc[table["curve"] == "effect", "low"] <= table.loc[table["curve"] == "effect", "faithfulness"]).all()
    assert len(again.to_dataframe("rows")) == len(again.cells) * 3
    with pytest.raises(UnknownNameError):
        again.to_dataframe("row")
    for text in ("{}", "[]", '{"schema": "other"}', "x", '{"schema": "circuitsae-evaluation/1"}'):
        with pytest.raises(InputError):
            Evaluation.from_json(text)


def test_the_same_seed_gives_the_same_evaluation_and_another_other_random_orders(
    spliced: cs.SplicedModel, agreement: cs.TaskSet
) -> None:
    def run(seed: int) -> Evaluation:
        return evaluate(spliced, agreement, grid=(0.5, 1.0), compare=("random",), n_random=1, seed=seed)

    assert np.array_equal(run(1).metrics, run(1).metrics)
    first, second = run(1), run(2)
    at = first.cells.index(next(c for c in first.cells if c.curve == "random~0" and c.size < first.about["n_nodes"]))
    assert not np.array_equal(first.metrics[at], second.metrics[at])
    assert np.array_equal(first.metrics[0], second.metrics[0])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"errors": "live"}, UnknownNameError, "way to treat errors"),
        ({"baseline": "means"}, UnknownNameError, "did you mean 'mean'"),
        ({"method": "atribution-patching"}, UnknownNameError, "did you mean"),
        ({"compare": ("randm",)}, UnknownNameError, "order to compare with"),
        ({"compare": {"random": {"blocks.0.hook_resid_post/1": 1.0}}}, InputError, "taken"),
        ({"grid": (0.5, 0.1)}, InputError, "ascending"),
        ({"grid": ()}, InputError, "ascending"),
        ({"n_random": 0}, InputError, "n_random is 0"),
        ({"minimality": 2}, InputError, "about a circuit"),
        ({"edges": True}, InputError, "about a circuit"),
        ({"circuit": {"token@1": 1.0}}, InputError, "no feature"),
        ({"circuit": {"blocks.9.hook_resid_post/1": 1.0}}, NodeError, "none of this model's sites"),
        ({"circuit": {"blocks.1.hook_resid_post/9999": 1.0}}, NodeError, "outside its dictionary"),
        ({"circuit": {"blocks.0.hook_resid_post/1": 1.0, "blocks.0.hook_resid_post/1@2": 1.0}}, InputError, "all or none"),
        ({"circuit": {"blocks.0.hook_resid_post/1": 1.0}, "edges": True}, InputError, "needs a Circuit"),
        ({"tokens": "all"}, UnknownNameError, "tokens"),
        ({"start_layer": 9}, InputError, "nothing to evaluate"),
    ],
)  # fmt: skip
@pytest.mark.unchecked
def test_what_can_not_be_used_is_said(
    spliced: cs.SplicedModel, agreement: cs.TaskSet, options: dict, error: type[Exception], text: str
) -> None:
    options = dict(options)
    if "circuit" in options and set(options["circuit"]) == {"token@1"}:
        # Tokens alone are scores of nothing that is evaluated.
        with pytest.raises(InputError):
            evaluate(spliced, agreement, {}, compare=())
        return
    with pytest.raises(error, match=text):
        evaluate(spliced, agreement, **options)


def test_tasks_that_can_not_be_used_are_named(spliced: cs.SplicedModel) -> None:
    good = cs.Task("The keys", metric=cs.LogitDiff(" are", " is"))
    with pytest.raises(InputError, match="no task"):
        evaluate(spliced, [])
    with pytest.raises(TaskError, match="Task 1: "):
        evaluate(spliced, [good, cs.Task("The keys", metric=cs.LogitDiff(" are", " is"), patch="The old key")])
    with pytest.raises(InputError, match="task 0 has none"):
        evaluate(spliced, [good], baseline="patch")
    with pytest.raises(InputError, match="has no other"):
        evaluate(spliced, [good], baseline="resample")


def test_progress_can_cancel(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    from circuitsae.errors import CancelledError

    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int, what: str) -> bool:
        seen.append((done, total))
        return done < 2

    with pytest.raises(CancelledError, match="2 of 6"):
        evaluate(spliced, agreement, compare=(), progress=stop)
    assert seen == [(1, 6), (2, 6)]


def test_cells_are_what_rows_are_made_of(spliced: cs.SplicedModel, agreement: cs.TaskSet) -> None:
    found = evaluate(spliced, agreement, grid=(1.0,), compare=(), complement=False)
    assert found.cells[0] == Cell("full")
    assert found.metric.value == pytest.approx(np.mean([r["metric"] for r in found.rows() if r["what"] == "full"]))
    assert found.faithfulness is None
    assert "CPR" in repr(found)
