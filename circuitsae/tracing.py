"""`trace`: from a task to a circuit. The steps, in order: effects, choice of nodes, edges, pruning, graph, measuring."""

import datetime
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from circuitsae import __version__, names, registry
from circuitsae.attribution.edges import EdgeBatch, EdgeEngine, FeatureTargets, Sources
from circuitsae.attribution.effects import Context, NodeBlock, NodeEffects, Progress, make_context, run_method
from circuitsae.attribution.exact import measure_nodes
from circuitsae.errors import CancelledError, InputError, UnknownNameError
from circuitsae.graph.aggregation import Align, aggregate
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.prune import Pruner
from circuitsae.graph.schema import Graph
from circuitsae.graph.table import (
    BIAS,
    ERROR,
    FEATURE,
    METRIC,
    TOKEN,
    EdgeTable,
    Pruned,
    merge_into_errors,
    strongest_inputs,
)
from circuitsae.interventions import top_tokens
from circuitsae.model.runs import Readout, Run
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.metrics import BoundMetric
from circuitsae.task.task import Task

Targets = Literal["metric", "logits"]
TARGETS: tuple[str, ...] = get_args(Targets)

COMPAT: Mapping[str, Mapping[str, Any]] = {
    # Ameisen et al. 2025, as the package circuit-tracer computes it: equal adjacency matrices, which a test checks.
    "circuit-tracer": {
        "baseline": "zero",
        "linearisation": "frozen",
        "targets": "logits",
        "skip_positions": (),
        "drop_positions": (0,),
        "max_nodes": None,
        "prune": None,
    },
}
"""Named sets of options under which `trace` gives another package's numbers."""


@dataclass(frozen=True)
class _GraphOptions:
    """What `trace` was asked for beyond the effects; recorded whole in the circuit."""

    linearisation: str
    targets: str
    logit_share: float
    max_logits: int
    max_nodes: int | None
    node_threshold: float | None
    edge_threshold: float | None
    top_edges: int | None
    prune: str | None
    merge_pruned: bool
    skip_nodes: bool
    drop_positions: tuple[int, ...]
    measure: int

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise UnknownNameError("kind of targets", self.targets, TARGETS)
        if not 0 < self.logit_share <= 1:
            raise InputError(f"logit_share is {self.logit_share}; expected a probability above 0, at most 1.")
        if self.max_logits < 1:
            raise InputError(f"max_logits is {self.max_logits}; expected at least 1.")
        if self.max_nodes is not None and self.max_nodes < 1:
            raise InputError(f"max_nodes is {self.max_nodes}; expected at least 1, or None for all.")
        if self.top_edges is not None and self.top_edges < 1:
            raise InputError(f"top_edges is {self.top_edges}; expected at least 1, or None for all.")
        if self.measure < 0:
            raise InputError(f"measure is {self.measure}; expected the number of nodes to ablate, 0 or more.")


def trace(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "attribution-patching",
    baseline: str | None = None,
    gradient: str = "pass-through",
    linearisation: str = "gradient",
    sites: Sequence[str] | None = None,
    targets: str = "metric",
    logit_share: float = 0.95,
    max_logits: int = 10,
    max_nodes: int | None = 256,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    top_edges: int | None = None,
    prune: str | None = "top-k",
    merge_pruned: bool = False,
    skip_positions: Sequence[int] | None = None,
    skip_nodes: bool = False,
    drop_positions: Sequence[int] = (),
    measure: int = 0,
    reference: Sequence[str | Sequence[int]] | None = None,
    compat: str | None = None,
    progress: Progress | None = None,
    **method_options: Any,
) -> Circuit:
    """Returns the circuit behind a metric: which nodes move it, and how they act on one another.

    Node effects as by `node_effects`; edges between the nodes chosen as in DESIGN.md, section 3.3: `contribution` in
    units of the target's activation, `weight` in units of the metric. Rows add up: a target's in-edges, the bias
    node's and those of nodes not kept sum to its pre-activation (`total`), and `explained` says what share of the
    |contribution| arriving there the kept in-edges carry. Cost: the method's passes, one vector-Jacobian product a
    chosen feature over its segment, and a forward pass (batched) for each of the `measure` nodes.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt, metric and perhaps a patch prompt.
        method, baseline, gradient, sites, skip_positions, reference, progress: See `node_effects`.
        linearisation: `"gradient"`, or `"frozen"` (attention patterns and normalisation scales held constant).
        targets: What stands at the top: `"metric"`, or `"logits"`: the most probable next tokens, a node each
            (`logit/ID@POSITION`; its activation is the logit less the mean of all logits). Effects and weights stay those
            of the task's metric.
        logit_share, max_logits: With `"logits"`: as many tokens as hold this probability, at most so many.
        max_nodes: How many features to keep at most; error nodes stay where their |effect| reaches the weakest kept
            feature's. `None` for all.
        node_threshold, edge_threshold: What they mean is the pruner's: smallest |effect| and |weight| for `"top-k"` and
            `"threshold"`, shares of influence for `"influence"`.
        top_edges: How many in-edges of largest |contribution| to keep of each target, the bias node's besides; an
            approximation that bounds memory for very large graphs. `None` for all.
        prune: Name of a pruner plugin, or `None` to keep every node and every edge that is not zero.
        merge_pruned: Whether what a pruner's dropped features did is added to the error nodes at their places, so that
            it is counted as unexplained instead of lost (for pruners that drop nodes after edges, such as
            `"influence"`). Such an error node has `merged` (how many) and no activation.
        skip_nodes: Whether error nodes at skipped positions are offered as nodes.
        drop_positions: Positions at which dictionaries are applied, but whose features and error nodes are left out.
        measure: How many of the strongest nodes to really ablate; stored as `measured_effect`.
        compat: Another package whose numbers to give: options left at their defaults take what that package does.
            `"circuit-tracer"`: `linearisation="frozen"`, `targets="logits"`, `drop_positions=[0]`, `skip_positions=[]`,
            zero baseline, all nodes and edges; `prune="influence"` then prunes as it does.
        **method_options: The method's own.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such method, baseline, gradient, linearisation, kind of targets, site, pruner or `compat`.
        InputError: An option out of range.
    """
    given = _with_compat(
        compat,
        baseline=baseline,
        linearisation=linearisation,
        targets=targets,
        skip_positions=skip_positions,
        drop_positions=drop_positions,
        max_nodes=max_nodes,
        prune=prune,
    )
    pruner: Pruner = registry.get("pruners", given["prune"] or "top-k")()
    everything = given["prune"] is None
    options = _GraphOptions(
        linearisation=given["linearisation"],
        targets=given["targets"],
        logit_share=logit_share,
        max_logits=max_logits,
        max_nodes=None if everything else given["max_nodes"],
        node_threshold=None if everything else node_threshold,
        edge_threshold=None if everything else edge_threshold,
        top_edges=top_edges,
        prune=given["prune"],
        merge_pruned=merge_pruned,
        skip_nodes=skip_nodes,
        drop_positions=tuple(int(p) for p in given["drop_positions"]),
        measure=measure,
    )
    context = make_context(
        spliced,
        task,
        method=method,
        baseline=given["baseline"],
        gradient=gradient,
        sites=sites,
        skip_positions=given["skip_positions"],
        reference=reference,
        progress=progress,
        options=method_options,
    )
    effects = run_method(context)
    tops = _logit_targets(context, options) if options.targets == "logits" else None
    nodes = _Nodes(context, effects, pruner, options, tops)
    edges = _compute_edges(context, effects, nodes, options, pruner.edge_threshold(options.edge_threshold))
    table = edges.table(nodes)
    kept = pruner.prune(table, options.node_threshold, options.edge_threshold)
    if options.merge_pruned:
        table, kept = merge_into_errors(table, kept)
    graph = _build(nodes, edges, table, kept)
    _measure(context, graph, options.measure)
    graph.graph.update(_provenance(context, effects))
    graph.graph.update(
        linearisation=options.linearisation,
        prune=options.prune or "none",
        options={
            **effects.options,
            **asdict(options),
            "drop_positions": list(options.drop_positions),
            "sites": list(context.spliced.sites),
            "skip_positions": list(context.spliced.skip_positions),
            "compat": compat,
        },
        kept={
            **nodes.report(kept.nodes),
            "edges": graph.number_of_edges(),
            "edge_candidates": edges.candidates,
            **kept.report,
        },
    )
    return Circuit(graph)


def trace_many(
    spliced: SplicedModel,
    tasks: Sequence[Task],
    *,
    align: Align = "position",
    slots: Sequence[Sequence[str]] | None = None,
    min_count: int = 1,
    progress: Progress | None = None,
    **options: Any,
) -> Circuit:
    """Returns the circuit averaged over a set of tasks: each is traced, then all are put together by `aggregate`.

    Args:
        spliced: The model with its dictionaries.
        tasks: Prompts, each with its metric.
        align, slots, min_count: How nodes of different prompts are matched and which stay; see `aggregate`.
        progress: Called with tasks done, their number and a word; returning `False` cancels.
        **options: Passed to `trace`.

    Raises:
        InputError: There are no tasks, or they can't be aligned so.
    """
    circuits: list[Circuit] = []
    for done, task in enumerate(tasks):
        if progress is not None and progress(done, len(tasks), "tasks") is False:
            raise CancelledError(f"Cancelled after {done} of {len(tasks)} tasks.")
        circuits.append(trace(spliced, task, **options))
    return aggregate(circuits, align=align, slots=slots, min_count=min_count)


def _with_compat(compat: str | None, **given: Any) -> dict[str, Any]:
    """Returns options of `trace`, those at their default replaced by what a named set says."""
    if compat is None:
        return given
    if compat not in COMPAT:
        raise UnknownNameError("option set (compat)", compat, COMPAT)
    defaults = inspect.signature(trace).parameters
    chosen = COMPAT[compat]
    return {
        name: chosen[name] if name in chosen and value == defaults[name].default else value
        for name, value in given.items()
    }


@dataclass(frozen=True)
class _LogitTarget:
    """One next token whose logit stands at the top of the graph, less the mean of all logits."""

    token_id: int
    position: int
    text: str
    probability: float
    value: float
    slope: float
    readout: Readout

    @property
    def key(self) -> str:
        return names.logit(self.token_id, self.position)


def _logit_targets(context: Context, options: _GraphOptions) -> list[_LogitTarget]:
    """Returns the most probable tokens where the metric reads (else at the last position), until they hold the share.

    Logits lose their mean over the vocabulary, which the softmax does not see; so does the unembedding of circuit-tracer.
    """
    run, n_tokens = context.run, len(context.task.tokens)
    read = context.task.metric.positions
    position = read[0] if read is not None and len(read) == 1 else n_tokens - 1
    row = list(run.kept).index(position)
    logits = run.logits.double()
    probabilities = logits[row].softmax(-1)
    top = probabilities.topk(min(options.max_logits, len(probabilities)))
    count = int(torch.searchsorted(top.values.cumsum(0), options.logit_share)) + 1
    with torch.enable_grad():
        leaf = run.logits[None].detach().requires_grad_()
        slopes = torch.autograd.grad(context.readout.value(leaf).sum(), leaf)[0][0, row]

    def demeaned(token_id: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits[:, 0, token_id] - logits[:, 0].mean(-1)

    found: list[_LogitTarget] = []
    for token_id in top.indices[:count].tolist():
        text = context.spliced.vocabulary.string(token_id)
        metric = BoundMetric(demeaned(token_id), (position,), {"name": "logit", "description": f"logit of {text!r}"})
        value = float(logits[row, token_id] - logits[row].mean())
        found.append(
            _LogitTarget(
                token_id,
                position,
                text,
                float(probabilities[token_id]),
                value,
                float(slopes[token_id]),
                Readout(metric, n_tokens),
            )
        )
    return found


class _Nodes:
    """The nodes of a circuit, numbered: tokens, bias, features by dictionary, error nodes by hook point, metric nodes."""

    def __init__(
        self,
        context: Context,
        effects: NodeEffects,
        pruner: Pruner,
        options: _GraphOptions,
        logits: list[_LogitTarget] | None,
    ) -> None:
        self.context, self.effects, self.logits = context, effects, logits
        self.features, self.errors = effects.features(), effects.errors()
        self.n_tokens = len(context.task.tokens)
        self._choose(pruner, options)
        self._number()

    def _choose(self, pruner: Pruner, options: _GraphOptions) -> None:
        """Offers the pruner what may be a node, and keeps what it chooses."""
        dropped = {p % self.n_tokens for p in options.drop_positions if -self.n_tokens <= p < self.n_tokens}
        hidden = set() if options.skip_nodes else set(self.effects.skipped)

        def offered(block: NodeBlock) -> "np.ndarray[Any, np.dtype[np.bool_]]":
            without = np.zeros(self.n_tokens, dtype=bool)
            without[sorted(dropped | hidden if block.kind == "error" else dropped)] = True
            return ~without[block.positions.cpu().numpy()]

        blocks = [*self.features, *self.errors]
        self._sizes = _numpy(torch.cat([b.effects.abs() for b in blocks]))
        self._is_feature = np.concatenate([np.full(len(b), b.kind == "feature") for b in blocks])
        self._candidate = np.concatenate([offered(b) for b in blocks])
        self._keep = np.zeros(len(self._sizes), dtype=bool)
        self._keep[self._candidate] = pruner.choose(
            self._sizes[self._candidate],
            self._is_feature[self._candidate],
            options.max_nodes,
            options.node_threshold,
        )

    def _number(self) -> None:
        device = self.context.spliced.device
        self.keys = [names.token(p) for p in range(self.n_tokens)] + [names.BIAS]
        kinds = [np.full(self.n_tokens, TOKEN, np.int8), np.full(1, BIAS, np.int8)]
        self.chosen: list[Tensor] = []
        features: list[tuple[Tensor, Tensor]] = []
        errors: dict[str, tuple[Tensor, Tensor]] = {}
        offset = 0
        for block in (*self.features, *self.errors):
            chosen = torch.from_numpy(np.flatnonzero(self._keep[offset : offset + len(block)])).to(device)
            offset += len(block)
            numbers = torch.arange(len(self.keys), len(self.keys) + len(chosen), device=device)
            self.keys += [block.key(n) for n in chosen.tolist()]
            kinds.append(np.full(len(chosen), FEATURE if block.kind == "feature" else ERROR, np.int8))
            self.chosen.append(chosen)
            if block.kind == "feature":
                features.append((chosen, numbers))
            else:
                errors[block.site] = (chosen, numbers)
        self.first_metric = len(self.keys)
        self.keys += [names.METRIC] if self.logits is None else [target.key for target in self.logits]
        kinds.append(np.full(len(self.keys) - self.first_metric, METRIC, np.int8))
        self.kinds = np.concatenate(kinds)
        tokens = torch.arange(self.n_tokens, device=device)
        self.sources = Sources(tuple(features), errors, (tokens, tokens), bias=self.n_tokens)

    @property
    def start(self) -> "np.ndarray[Any, np.dtype[np.float64]]":
        """How much of the metric each node is: 1 for the metric node, their probabilities for logits."""
        start = np.zeros(len(self.keys))
        start[self.first_metric :] = 1.0 if self.logits is None else [target.probability for target in self.logits]
        return start

    @property
    def stand_ins(self) -> "np.ndarray[Any, np.dtype[np.int32]]":
        """The error node at each feature's place, -1 where that is no node."""
        stand_ins = np.full(len(self.keys), -1, dtype=np.int32)
        for dictionary, block, (chosen, numbers) in zip(
            self.context.spliced.dictionaries, self.features, self.sources.features, strict=True
        ):
            at = np.full(self.n_tokens, -1, dtype=np.int32)
            positions, errors = self.sources.errors[self.context.spliced.canonical(dictionary.hook_outs[0])]
            at[positions.cpu().numpy()] = errors.cpu().numpy()
            stand_ins[numbers.cpu().numpy()] = at[block.positions[chosen].cpu().numpy()]
        return stand_ins

    def targets(self, slopes: Sequence[Tensor]) -> list[FeatureTargets]:
        """Returns the chosen features that are active on the prompt: those that edges may go to."""
        found: list[FeatureTargets] = []
        for number, (block, (chosen, numbers)) in enumerate(zip(self.features, self.sources.features, strict=True)):
            active = block.activations[chosen] != 0
            chosen, numbers = chosen[active], numbers[active]
            assert block.indices is not None
            found.append(
                FeatureTargets(
                    number,
                    block.positions[chosen],
                    block.indices[chosen],
                    block.activations[chosen],
                    slopes[number][chosen],
                    numbers,
                )
            )
        return found

    def add_to(self, graph: Graph, table: EdgeTable, kept: Pruned) -> None:
        """Adds the kept nodes with what is known of each, in the order in which the model computes them."""
        order = self.context.spliced.order
        reads = {d.site: d.hook_in for d in self.context.spliced.dictionaries}
        self._add_block(graph, self.effects.tokens(), range(self.n_tokens), 0, kept.nodes)
        if kept.nodes[self.n_tokens]:
            graph.add_node(names.BIAS, kind="bias")
        firsts = np.cumsum([self.n_tokens + 1, *(len(chosen) for chosen in self.chosen)])
        blocks = list(zip([*self.features, *self.errors], self.chosen, firsts.tolist(), strict=False))
        for block, chosen, first in sorted(blocks, key=lambda b: order(reads.get(b[0].site, b[0].site))):
            self._add_block(graph, block, chosen.tolist(), first, kept.nodes)
        if self.logits is None:
            graph.add_node(names.METRIC, kind="metric", activation=self.effects.metric)
        else:
            for target in self.logits:
                graph.add_node(
                    target.key,
                    kind="metric",
                    activation=target.value,
                    probability=target.probability,
                    token=self.effects.token_strings[target.position],
                    label=target.text,
                )
        for name, values in kept.attributes.items():
            if name != "merged":
                for key, value in zip(self.keys, values.tolist(), strict=True):
                    if key in graph:
                        graph.nodes[key][name] = value
        if "merged" in kept.attributes:
            self._describe_merged(graph, table, kept)

    def _add_block(
        self,
        graph: Graph,
        block: NodeBlock,
        chosen: Sequence[int],
        first: int,
        kept: "np.ndarray[Any, np.dtype[np.bool_]]",
    ) -> None:
        strings = self.effects.token_strings
        positions, activations = block.positions.tolist(), block.activations.tolist()
        baselines, effects = block.baselines.tolist(), block.effects.tolist()
        for number, n in enumerate(chosen, first):
            if kept[number]:
                graph.add_node(
                    self.keys[number],
                    kind=block.kind,
                    token=strings[positions[n]],
                    activation=activations[n],
                    baseline=baselines[n],
                    effect=effects[n],
                )

    def _describe_merged(self, graph: Graph, table: EdgeTable, kept: Pruned) -> None:
        """Error nodes that stand in for pruned features have the sum of their effects, and no norm of their own."""
        effects = np.zeros(len(self.keys))
        first = self.n_tokens + 1
        flat = np.concatenate(
            [
                _numpy(block.effects[chosen])
                for block, chosen in zip([*self.features, *self.errors], self.chosen, strict=True)
            ]
        )
        effects[first : first + len(flat)] = flat
        lost = ~kept.nodes & (table.stand_ins >= 0) & (table.kinds == FEATURE)
        moved = np.bincount(table.stand_ins[lost], weights=effects[lost], minlength=len(self.keys))
        for number in np.flatnonzero(kept.attributes["merged"]).tolist():
            data = graph.nodes[self.keys[number]]
            del data["activation"], data["baseline"]
            data.update(effect=data["effect"] + float(moved[number]), merged=int(kept.attributes["merged"][number]))

    def report(self, kept: "np.ndarray[Any, np.dtype[np.bool_]]") -> dict[str, Any]:
        """Returns what was kept and what was lost of the candidates, as shares of the summed |effect|."""
        sizes, features = self._sizes, self._is_feature
        in_graph = np.zeros(len(sizes), dtype=bool)
        flat = np.flatnonzero(self._keep)
        first = self.n_tokens + 1
        in_graph[flat] = kept[first : first + len(flat)]
        whole = float(sizes[self._candidate].sum())
        return {
            "nodes": int(in_graph.sum()),
            "candidates": int(self._candidate.sum()),
            "features": int((in_graph & features).sum()),
            "feature_candidates": int((self._candidate & features).sum()),
            "effect_share": float(sizes[in_graph].sum()) / whole if whole else 1.0,
            "error_share": float(sizes[self._candidate & ~features].sum()) / whole if whole else 0.0,
        }


class _Edges:
    """Collects batches of edges as columns."""

    def __init__(self, n_nodes: int, top: int | None, bias: int) -> None:
        self.candidates = 0
        self.totals = np.full(n_nodes, np.nan)
        self.magnitudes = np.zeros(n_nodes)
        self._top, self._bias = top, bias
        self._columns: list[tuple[Any, ...]] = []

    def add(self, batch: EdgeBatch, slope: float = 1.0) -> None:
        """Adds a batch; `slope` turns weights in units of its target into weights in units of the metric."""
        columns = (
            batch.sources.numpy().astype(np.int32),
            batch.targets.numpy().astype(np.int32),
            _numpy(batch.contributions),
            _numpy(batch.weights) * slope,
        )
        if self._top is not None:
            sources, targets, contributions, _ = columns
            constant = sources == self._bias
            sizes = np.where(constant, -1.0, np.abs(contributions))
            keep = strongest_inputs(targets, sizes, self._top) | constant
            columns = tuple(column[keep] for column in columns)
        self._columns.append(columns)
        nodes = batch.target_nodes.numpy()
        self.totals[nodes] = _numpy(batch.totals)
        self.magnitudes[nodes] = _numpy(batch.magnitudes)
        self.candidates += batch.candidates

    def table(self, nodes: _Nodes) -> EdgeTable:
        """Returns the edges collected so far."""
        sources, targets, contributions, weights = (np.concatenate(c) for c in zip(*self._columns, strict=True))
        self._columns.clear()
        return EdgeTable(nodes.kinds, sources, targets, contributions, weights, nodes.start, nodes.stand_ins)

    def describe(self, graph: Graph, nodes: _Nodes, table: EdgeTable) -> None:
        """Stores on each target its total, and which share of the |contribution| there its kept in-edges carry."""
        kept = np.bincount(table.targets, weights=np.abs(table.contributions), minlength=table.n_nodes)
        for number in np.flatnonzero(~np.isnan(self.totals)).tolist():
            data = graph.nodes.get(nodes.keys[number])
            if data is not None:
                data["total"] = float(self.totals[number])
                if self.magnitudes[number] > 0:
                    data["explained"] = min(1.0, float(kept[number] / self.magnitudes[number]))


def _compute_edges(
    context: Context, effects: NodeEffects, nodes: _Nodes, options: _GraphOptions, threshold: float
) -> _Edges:
    """Computes the in-edges of the metric nodes and of every chosen feature."""

    def engine(run: Run, readout: Readout) -> EdgeEngine:
        return EdgeEngine(
            context.spliced,
            run,
            context.nodes,
            context.baseline,
            readout,
            linearisation=options.linearisation,
            sources=nodes.sources,
            edge_threshold=threshold,
        )

    edges = _Edges(len(nodes.keys), options.top_edges, nodes.sources.bias)
    main = engine(context.run, context.readout)
    if nodes.logits is None:
        edges.add(main.metric_edges(nodes.first_metric))
    for number, target in enumerate(nodes.logits or (), nodes.first_metric):
        top = engine(replace(context.run, metric=target.value), target.readout)
        edges.add(top.metric_edges(number), target.slope)
    for batch in main.feature_edges(nodes.targets(_slopes(context, effects)), context.tick):
        edges.add(batch)
    return edges


def _build(nodes: _Nodes, edges: _Edges, table: EdgeTable, kept: Pruned) -> Graph:
    """Makes the graph of what is kept."""
    graph: Graph = nx.DiGraph()
    nodes.add_to(graph, table, kept)
    table = table.with_edges(kept.edges)
    graph.add_edges_from(_rows(table, nodes.keys))
    edges.describe(graph, nodes, table)
    if names.BIAS in graph and graph.out_degree(names.BIAS) == 0:
        graph.remove_node(names.BIAS)
    return graph


def _rows(table: EdgeTable, keys: list[str]) -> Iterator[tuple[str, str, dict[str, float]]]:
    for source, target, contribution, weight in zip(
        table.sources.tolist(),
        table.targets.tolist(),
        table.contributions.tolist(),
        table.weights.tolist(),
        strict=True,
    ):
        yield keys[source], keys[target], {"contribution": contribution, "weight": weight}


def _slopes(context: Context, effects: NodeEffects) -> list[Tensor]:
    """Returns the metric's derivative by each feature; a method that gives none costs one more pass each way."""
    slopes = [block.slopes for block in effects.features()]
    if any(s is None for s in slopes):
        slopes = [block.slopes for block in context.effects(*context.gradients()).features()]
    return [s for s in slopes if s is not None]


def _measure(context: Context, graph: Graph, count: int) -> None:
    """Really ablates the strongest nodes; error nodes that stand in for others are no single thing to ablate."""
    ranked = sorted(
        (n for n, data in graph.nodes(data=True) if data["kind"] in ("feature", "error") and "merged" not in data),
        key=lambda n: (-abs(graph.nodes[n]["effect"]), names.sort_key(n)),
    )[:count]
    for node, measured in zip(ranked, measure_nodes(context, ranked), strict=True):
        graph.nodes[node]["measured_effect"] = measured


def _provenance(context: Context, effects: NodeEffects) -> dict[str, Any]:
    """Returns what a saved circuit needs to be computed again."""
    spliced, task, run = context.spliced, context.task, context.run
    found: dict[str, Any] = {
        "schema": "circuitsae/1",
        "package_version": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "model": {
            "name": spliced.name,
            "n_layers": spliced.n_layers,
            "d_model": spliced.d_model,
            "d_vocab": spliced.vocabulary.d_vocab,
        },
        "dictionaries": spliced.describe(),
        "sites": sorted(spliced.sites, key=lambda s: spliced.order(spliced.dictionary(s).hook_in)),
        "tokens": list(task.strings),
        "token_ids": list(task.tokens),
        "metric": dict(task.metric.description),
        "metric_value": effects.metric,
        "top_tokens": [[t, p] for t, p in top_tokens(run.logits[-1], spliced.vocabulary, 10)],
        "method": effects.method,
        "baseline": effects.baseline,
        "gradient": effects.gradient,
    }
    if spliced.preset is not None:
        found["preset"] = spliced.preset
    if task.prompt is not None:
        found["prompt"] = task.prompt
    if task.patch_tokens is not None:
        found |= {"patch_tokens": list(task.patch_strings or ()), "patch_token_ids": list(task.patch_tokens)}
        if task.patch is not None:
            found["patch"] = task.patch
    if effects.baseline_metric is not None:
        found["baseline_metric_value"] = effects.baseline_metric
    return found


def _numpy(x: Tensor) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return x.detach().double().cpu().numpy()
