"""`evaluate`: from tasks and a circuit to what the circuit is worth. The steps: survey, orders, measurements, numbers."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from circuitsae import __version__, registry
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.evaluation.edges import Edges, measure_edges
from circuitsae.evaluation.measuring import ERRORS, Cut, Errors, measure_cuts
from circuitsae.evaluation.prompts import Prompts
from circuitsae.evaluation.ranking import NodeTable, Owners, Ranking, Reals, has_positions, parsed, ranked, shuffled
from circuitsae.evaluation.result import COMPLEMENT, EDGES, EMPTY, FULL, KEPT, WITHOUT, Cell, Evaluation, size_of
from circuitsae.evaluation.store import Store
from circuitsae.evaluation.survey import Survey, Surveyed, summarise, survey_prompt
from circuitsae.graph.circuit import Circuit
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.sets import TaskSet
from circuitsae.task.task import Task

GRID: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of all nodes at which the Mechanistic Interpretability Benchmark measures (Mueller et al. 2025, 2504.13151)."""

BASELINE_ORDERS = ("random", "activation", "effect")


@in_own_mode
def evaluate(
    spliced: SplicedModel,
    tasks: TaskSet | Sequence[Task],
    circuit: Circuit | Mapping[str, float] | None = None,
    *,
    baseline: str | None = None,
    errors: Errors = "default",
    positions: bool | None = None,
    start_layer: int = 0,
    grid: Sequence[float] = GRID,
    complement: bool = True,
    minimality: int = 0,
    edges: bool = False,
    tokens: str = "keep",
    compare: Sequence[str] | Mapping[str, Mapping[str, float] | None] = ("activation", "random"),
    n_random: int = 3,
    method: str | None = "attribution-patching",
    reference: Sequence[str | Sequence[int]] | None = None,
    skip_positions: Sequence[int] | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    store: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Returns how well a circuit stands for the model on a set of tasks: what remains when all else is ablated.

    `m(C)` is the mean metric with every node outside C at its baseline, nodes of C having the values that they then
    really have. Nodes are what is active in some task or in its baseline. Faithfulness is `(m(C) - m(empty)) / (m(full) - m(empty))`, completeness the same of all nodes that are
    not in C (Marks et al. 2024, arXiv 2403.19647, section 3.3); over circuits of the grid's sizes their areas are MIB's CPR and
    CMD. Where the denominator is too small the ratio is left undefined and says so. Intervals: 95 %, by bootstrap over the
    prompts. Cost: for every task the method's passes once, then one forward pass a circuit, in batches that share the clean
    prefix; a circuit of all nodes is the model itself and costs nothing.

    Args:
        spliced: The model with its dictionaries.
        tasks: A task set, or tasks.
        circuit: A circuit, or scores by node key. Its nodes come in order of |effect| (of score), all others after them
            as `method` predicts. Without positions in its keys a node stands for itself at every position. `None`: the
            nodes that `method` predicts to matter.
        baseline: `"zero"`, `"mean"` (over `reference`, by default the tasks' prompts), `"patch"` (each task's own patch
            prompt; the default where all have one) or `"resample"` (another task's prompt of equal length).
        errors: Error nodes are nodes like others (`"default"`), are all kept (`"keep"`), or never (`"remove"`).
        positions: Whether a node is a feature at one position; then all prompts must have one length. By default as the
            circuit's keys say, else no.
        start_layer: Nodes of layers below are never ablated.
        grid: Shares of all nodes at which the curves are measured.
        complement: Whether completeness is measured, at every size: one more forward pass each.
        minimality: How many of the circuit's strongest nodes to leave out in turn, to see what each is worth.
        edges: Whether to measure, too, what remains when only the circuit's edges transmit, strongest |weight| first.
        tokens: With `edges`: tokens reach everything (`"keep"`), or only along the circuit's edges (`"circuit"`).
        compare: Orders to set the circuit against: `"random"`, `"activation"` (how much a node writes), `"effect"`; or a
            mapping from a name of your own to scores by node key (`None` for one of those three).
        n_random: How many random orders are averaged.
        method: The method plugin that predicts effects; `None`: none is run, and `"activation"` takes its place.
        reference, skip_positions: As for `node_effects`.
        seed: Of random orders, resampling and the bootstrap.
        bootstrap: Number of draws.
        store: A folder of its own in which the rows are kept as they come (Parquet). An evaluation that
            was killed goes on from there: the same call gives the same table.
        progress: Called with work done, work in all, and a word; returning `False` cancels.

    Raises:
        InputError: An option out of range, no tasks, prompts of several lengths where nodes have positions.
        UnknownNameError: No such baseline, method, way to treat errors, or order.
        NodeError: A node of the circuit is not of this model.
        TaskError: A task does not fit the model.
    """
    if skip_positions is not None:
        spliced = spliced.skipping(skip_positions)
    request = _Request(
        errors,
        positions,
        start_layer,
        tuple(grid),
        complement,
        minimality,
        edges,
        tokens,
        n_random,
        method,
        seed,
        bootstrap,
    )
    request.check(circuit)
    prompts = Prompts(
        spliced,
        tuple(tasks),
        baseline=baseline,
        reference=reference,
        seed=seed,
        together=method is None,
        progress=progress,
    )
    return _Evaluator(spliced, tasks, prompts, circuit, _comparisons(compare), request, store, progress).run()


@dataclass(frozen=True)
class _Request:
    """The options, as given."""

    errors: Errors
    positions: bool | None
    start_layer: int
    grid: tuple[float, ...]
    complement: bool
    minimality: int
    edges: bool
    tokens: str
    n_random: int
    method: str | None
    seed: int
    bootstrap: int

    def check(self, circuit: Any) -> None:
        if self.errors not in ERRORS:
            raise UnknownNameError("way to treat errors", self.errors, ERRORS)
        if self.tokens not in ("keep", "circuit"):
            raise UnknownNameError("way to treat tokens", self.tokens, ("keep", "circuit"))
        if not self.grid or any(not 0 <= f <= 1 for f in self.grid) or list(self.grid) != sorted(set(self.grid)):
            raise InputError(f"The grid is {list(self.grid)}; expected ascending shares of all nodes, 0 to 1.")
        for name, least in (("minimality", 0), ("n_random", 1), ("bootstrap", 0), ("start_layer", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        if (self.edges or self.minimality) and circuit is None:
            raise InputError("edges and minimality are about a circuit; expected one, from trace or aggregate.")
        if self.edges and not isinstance(circuit, Circuit):
            raise InputError("edges=True needs a Circuit; scores by node have no edges.")
        if self.edges and self.start_layer:
            raise InputError(
                f"edges=True cuts edges of every layer, and start_layer is {self.start_layer}; expected one or the other."
            )
        if self.method is not None:
            registry.get("methods", self.method)


class _Evaluator:
    """One evaluation: what it needs, and its steps."""

    def __init__(
        self,
        spliced: SplicedModel,
        tasks: TaskSet | Sequence[Task],
        prompts: Prompts,
        circuit: Circuit | Mapping[str, float] | None,
        compare: Mapping[str, Mapping[str, float] | None],
        request: _Request,
        store: str | os.PathLike[str] | None,
        progress: Progress | None,
    ) -> None:
        self.spliced, self.prompts, self.circuit, self.compare = spliced, prompts, circuit, compare
        self.request, self.progress = request, progress
        self.canonical = {h: spliced.canonical(h) for d in spliced.dictionaries for h in (*d.hook_outs, d.hook_in)}
        self.scores = _scores(circuit)
        self.tasks = about_tasks(tasks)
        positioned = request.positions
        if positioned is None:
            positioned = bool(has_positions(self.scores or ()))
        if positioned and prompts.length is None:
            raise InputError(
                "Nodes with positions mean the same in prompts of one length only, and these have several; aggregate the "
                "circuit over positions, or take an aligned task set."
            )
        self.owners = Owners.of(spliced, positioned)
        plan = {
            "tasks": self.tasks,
            "model": {
                "name": spliced.name,
                "sites": list(spliced.sites),
                "skip_positions": list(spliced.skip_positions),
            },
            "dictionaries": [d.fingerprint for d in spliced.dictionaries],
            "circuit": None if self.scores is None else _fingerprint(self.scores, circuit, request.edges),
            "compare": {k: None if v is None else _fingerprint(v, None, False) for k, v in compare.items()},
            "baseline": prompts.baseline,
            "reference": prompts.reference_fingerprint,
            "options": {k: v for k, v in request.__dict__.items() if k != "bootstrap"} | {"grid": list(request.grid)},
            "package_version": __version__,
        }
        self.store = None if store is None else Store(store, plan)
        self.plan = plan

    def run(self) -> Evaluation:
        """Surveys, orders, measures."""
        survey = self._survey()
        cells, cuts, edge_cuts, edges = self._cells(survey)
        metrics = np.empty((len(cells), len(self.prompts)))
        for number in range(len(self.prompts)):
            metrics[:, number] = self._measured(number, survey.table, cells, cuts, edge_cuts, edges)
            self._report(len(self.prompts) + number + 1)
        if not np.isfinite(metrics).all():
            at = int(np.flatnonzero(~np.isfinite(metrics).all(0))[0])
            raise InputError(f"The metric of task {at} is not finite; expected a number for every circuit.")
        about: dict[str, Any] = {
            **{k: v for k, v in self.plan.items() if k not in ("dictionaries", "options", "circuit", "compare")},
            **self.plan["options"],
            "dictionaries": self.spliced.describe(),
            "grid": list(self.request.grid),
            "bootstrap": self.request.bootstrap,
            "positions": self.owners.positioned,
            "n_nodes": len(survey.table),
            "n_edges": 0 if edges is None else len(edges),
            "passes": {k: round(v, 3) for k, v in self.prompts.passes.items()},
            "orders": list(self.compare),
        }
        if self.spliced.preset is not None:
            about["preset"] = self.spliced.preset
        if self.scores is not None:
            inside = parsed(self.owners, self.scores, self.canonical)[0]
            about["circuit"] = {"nodes": sum(self._counts(int(o)) for o in inside), "sha256": self.plan["circuit"]}
        return Evaluation(tuple(cells), metrics, about, tuple(self.tasks.get("problems", ())))

    # --- steps ---

    def _survey(self) -> Survey:
        found = []
        for number in range(len(self.prompts)):
            columns = None if self.store is None else self.store.load("survey", number)
            if columns is None:
                one = survey_prompt(
                    self.prompts, number, self.owners, self.request.method, self.request.errors == "default"
                )
                columns = dict(one.__dict__)
                if self.store is not None:
                    self.store.save("survey", number, columns)
            found.append(self._ablatable(Surveyed(**columns)))
            self._report(number + 1)
        more = []
        for scores in (self.scores, *self.compare.values()):
            if scores is not None:
                owner, number, _ = parsed(self.owners, scores, self.canonical)
                keep = np.array([self._counts(int(o)) for o in owner], bool)
                more.append((owner[keep], number[keep]))
        survey = summarise(self.owners, found, more)
        if not len(survey.table):
            raise InputError(
                "No node is active on these tasks at or above the start layer; there is nothing to evaluate."
            )
        return survey

    def _counts(self, owner: int) -> bool:
        """Whether an owner's nodes may be ablated one by one."""
        if self.owners.is_error(owner) and self.request.errors != "default":
            return False
        return self.owners.layers[owner] >= self.request.start_layer

    def _ablatable(self, one: Surveyed) -> Surveyed:
        counted = np.array([self._counts(n) for n in range(len(self.owners))], bool)
        keep = counted[one.owner]
        return Surveyed(one.owner[keep], one.number[keep], one.effect[keep], one.size[keep])

    def _rankings(self, survey: Survey) -> list[Ranking]:
        table = survey.table
        by_effect: Reals = survey.size if self.request.method is None else np.abs(survey.effect)
        main = (
            ranked("effect" if self.request.method is not None else "activation", by_effect)
            if self.scores is None
            else ranked("circuit", table.scored(self.scores, self.canonical), by_effect)
        )
        rankings = [main]
        for name, scores in self.compare.items():
            if name == main.name:
                continue
            if scores is not None:
                rankings.append(ranked(name, table.scored(scores, self.canonical), by_effect))
            elif name == "random":
                rankings += [
                    shuffled(f"random~{n}", len(table), (self.request.seed, n)) for n in range(self.request.n_random)
                ]
            else:
                rankings.append(ranked(name, survey.size if name == "activation" else by_effect))
        return rankings

    def _cells(
        self, survey: Survey
    ) -> tuple[list[Cell], dict[Cell, Cut], dict[Cell, tuple[int, Sequence[int] | None]], Edges | None]:
        """Returns what is measured, and for what needs a run of the model, of which circuit."""
        table, request = survey.table, self.request
        whole = len(table)
        rankings = self._rankings(survey)
        main = rankings[0]
        cells = {Cell(FULL): None, Cell(EMPTY): None}
        cuts = {Cell(EMPTY): Cut(main, 0)}
        sizes = sorted({size_of(f, whole) for f in request.grid})
        n_circuit = 0
        if self.scores is not None:
            n_circuit = int(np.isfinite(table.scored(self.scores, self.canonical)).sum())
        for ranking in rankings:
            own = sorted({*sizes, n_circuit}) if ranking is main and self.scores is not None else sizes
            for size in own:
                cells[cell := Cell(KEPT, ranking.name, size)] = None
                cuts[cell] = Cut(ranking, size)
                if ranking is main and request.complement:
                    cells[cell := Cell(COMPLEMENT, ranking.name, size)] = None
                    cuts[cell] = Cut(ranking, size, complement=True)
            if ranking is main and self.scores is not None:
                for place in ranking.order[: min(request.minimality, n_circuit)].tolist():
                    cells[cell := Cell(WITHOUT, "circuit", n_circuit, table.key(place))] = None
                    cuts[cell] = Cut(ranking, n_circuit, without=place)
        edges, edge_cuts = None, {}
        if request.edges:
            assert isinstance(self.circuit, Circuit)
            edges = Edges.of(
                self.owners, self.circuit.strongest_edges(self.circuit.graph.number_of_edges()), self.canonical
            )
            edge_sizes = sorted({size_of(f, len(edges)) for f in request.grid} | {len(edges)})
            orders: dict[str, Sequence[int] | None] = {"edges": None}
            if "random" in self.compare:
                for n in range(request.n_random):
                    orders[f"edges-random~{n}"] = shuffled("", len(edges), (request.seed, n, 1)).order.tolist()
            for name, order in orders.items():
                for size in edge_sizes:
                    cells[cell := Cell(EDGES, name, size)] = None
                    # All edges are the same circuit in whatever order.
                    edge_cuts[cell] = (size, order if 0 < size < len(edges) else None)
        return list(cells), cuts, edge_cuts, edges

    def _measured(
        self,
        number: int,
        table: NodeTable,
        cells: Sequence[Cell],
        cuts: Mapping[Cell, Cut],
        edge_cuts: Mapping[Cell, tuple[int, Sequence[int] | None]],
        edges: Edges | None,
    ) -> Reals:
        columns = None if self.store is None else self.store.load("rows", number)
        if columns is None:
            prompt, request = self.prompts[number], self.request
            same = {cell: self._same_as(cell, cuts, len(table)) for cell in cells}
            runs = list(dict.fromkeys(c for c in same.values() if c in cuts))
            found = dict(
                zip(
                    runs,
                    measure_cuts(
                        prompt, table, [cuts[c] for c in runs], errors=request.errors, start_layer=request.start_layer
                    ),
                    strict=True,
                )
            )
            found[Cell(FULL)] = prompt.metric
            if edges is not None:
                distinct: dict[tuple[int, int], Cell] = {}
                for cell, (size, order) in edge_cuts.items():
                    same[cell] = distinct.setdefault((size, id(order)), cell)
                wanted = list(distinct.values())
                found |= zip(
                    wanted,
                    measure_edges(
                        prompt,
                        self.owners,
                        edges,
                        [edge_cuts[c] for c in wanted],
                        errors=request.errors,
                        tokens=request.tokens,
                    ),
                    strict=True,
                )
            self.prompts.close(number, prompt)
            values = np.array([found[same[cell]] for cell in cells])
            columns = _columns(number, cells, values)
            if self.store is not None:
                self.store.save("rows", number, columns)
        return columns["metric"]

    def _same_as(self, cell: Cell, cuts: Mapping[Cell, Cut], whole: int) -> Cell:
        """Returns the cell whose run gives this one's value: all nodes are the model, no nodes the empty circuit."""
        cut = cuts.get(cell)
        if cut is None or cell.what == WITHOUT or self.request.errors == "remove":
            return cell
        kept = whole - cut.size if cut.complement else cut.size
        return Cell(FULL) if kept == whole else Cell(EMPTY) if kept == 0 and not cut.complement else cell

    def _report(self, done: int) -> None:
        total = 2 * len(self.prompts)
        report(self.progress, done, total, "passes over prompts")


def _columns(number: int, cells: Sequence[Cell], values: Reals) -> dict[str, Any]:
    return {
        "prompt": np.full(len(cells), number, np.int64),
        "what": np.array([c.what for c in cells]),
        "curve": np.array([c.curve for c in cells]),
        "size": np.array([c.size for c in cells], np.int64),
        "node": np.array([c.node for c in cells]),
        "metric": values,
    }


def _scores(circuit: Circuit | Mapping[str, float] | None) -> dict[str, float] | None:
    """Returns the circuit's nodes with what they are ordered by."""
    if circuit is None:
        return None
    if isinstance(circuit, Circuit):
        found = {
            key: abs(float(data.get("effect", 0.0)))
            for key, data in circuit.graph.nodes(data=True)
            if data["kind"] in ("feature", "error")
        }
    elif isinstance(circuit, Mapping):
        found = {str(key): float(score) for key, score in circuit.items()}
    else:
        raise InputError(f"{type(circuit).__name__} is no circuit; expected a Circuit, or scores by node key.")
    if not found:
        raise InputError("The circuit has no feature and no error node; there is nothing to evaluate.")
    return found


def _comparisons(
    compare: Sequence[str] | Mapping[str, Mapping[str, float] | None],
) -> dict[str, Mapping[str, float] | None]:
    found = dict(compare) if isinstance(compare, Mapping) else dict.fromkeys(compare)
    for name, scores in found.items():
        if scores is None and name not in BASELINE_ORDERS:
            raise UnknownNameError("order to compare with", name, BASELINE_ORDERS)
        if scores is not None and (name in (*BASELINE_ORDERS, "circuit") or "~" in name or name.startswith("edges")):
            raise InputError(f"The name {name!r} for scores of your own is taken; expected another.")
    return found


def about_tasks(tasks: TaskSet | Sequence[Task]) -> dict[str, Any]:
    """Returns which tasks they are, JSON-able: name, number, sha256, and of a set where it is from."""
    if isinstance(tasks, TaskSet):
        about = {"name": tasks.name, "n": len(tasks), "sha256": tasks.fingerprint, "source": dict(tasks.source)}
        return about | ({"problems": list(tasks.problems)} if tasks.problems else {})
    return {"name": "tasks", "n": len(tasks), "sha256": sha256_of([repr(t) for t in tasks])}


def _fingerprint(scores: Mapping[str, float], circuit: Any, edges: bool) -> str:
    ends = circuit.strongest_edges(circuit.graph.number_of_edges()) if edges else []
    return sha256_of([sorted(scores.items()), ends])


def sha256_of(value: Any) -> str:
    """Returns the sha256 of a JSON-able value, hexadecimal."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
