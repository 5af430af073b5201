"""`trace`, from a task to a circuit, step by step; `trace_each` and `trace_many`, of many tasks one by one and their mean."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, replace
from typing import Any, TypeVar, cast

from circuitsae import names, registry
from circuitsae.attribution.baselines import BASELINES
from circuitsae.attribution.edges import LINEARISATIONS
from circuitsae.attribution.effects import GRADIENTS, Context, NodeEffects, make_context, node_effects, run_method
from circuitsae.attribution.exact import measure_nodes
from circuitsae.attribution.heads import edge_heads
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.evaluation.faithfulness import faithfulness_in
from circuitsae.graph.aggregation import average, check_min_count
from circuitsae.graph.alignment import Align, check_alignment
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.merging import merge_into_errors
from circuitsae.graph.schema import Graph, known_effect
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.task import Task
from circuitsae.tracing.edges import build_graph, compute_edges
from circuitsae.tracing.logits import logit_targets
from circuitsae.tracing.nodes import ChosenNodes, faithful_nodes
from circuitsae.tracing.options import CONTEXT, TraceOptions, of_compat
from circuitsae.tracing.record import provenance

_F = TypeVar("_F", bound=Callable[..., Any])
_R = TypeVar("_R")


def _by_name(run: Callable[[SplicedModel, Task, dict[str, Any]], Circuit]) -> Callable[[_F], _F]:
    """Decorates a signature: a call of it goes to `run`, with only the arguments that the caller gave.

    What is not given may depend on what is, and an argument given at its default is given all the same.
    """

    def decorated(signature: _F) -> _F:
        @functools.wraps(signature)
        def call(spliced: SplicedModel, task: Task, **given: Any) -> Circuit:
            return run(spliced, task, given)

        return cast(_F, call)

    return decorated


@in_own_mode
def _trace(spliced: SplicedModel, task: Task, given: dict[str, Any]) -> Circuit:
    context, options = prepare(spliced, task, given)
    return trace_in(context, options)


def prepare(spliced: SplicedModel, task: Task, given: Mapping[str, Any]) -> tuple[Context, TraceOptions]:
    """Returns what `trace` works with, from the arguments given by name; nothing has run yet."""
    given = {name: value for name, value in given.items() if value is not None or name not in CONTEXT}
    named = {**of_compat(given), **given}
    about = {name: named[name] for name in (*CONTEXT, "progress") if name in named}
    if given.get("compat") is not None:
        spliced = spliced.skipping(spliced.skip_positions, sinks=False)
    return make_context(spliced, task, **about), options_of({k: v for k, v in given.items() if k not in about})


@_by_name(_trace)
def trace(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "auto",
    baseline: str | None = None,
    gradient: str = "pass-through",
    linearisation: str = "gradient",
    sites: Sequence[str] | None = None,
    targets: str = "metric",
    logit_share: float = 0.95,
    max_logits: int = 10,
    error_targets: bool = False,
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
    min_faithfulness: float | None = None,
    heads: int = 0,
    reference: Sequence[str | Sequence[int]] | None = None,
    compat: str | None = None,
    progress: Progress | None = None,
    **method_options: Any,
) -> Circuit:
    """Returns the circuit behind a metric: which nodes move it, and how they act on one another.

    Node effects as by `node_effects`, `effect` where predicted and `measured_effect` where measured; edges between the nodes chosen as in DESIGN.md, section 3.3: `contribution` in
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
            of the task's metric; with `TopLogits` each logit counts by its probability.
        logit_share, max_logits: With `"logits"`: as many tokens as hold this probability, at most so many.
        error_targets: Whether error nodes get in-edges too: what acts on an error's projection on the direction in which
            the metric changes most (Marks et al. 2024). Its `total` is that projection.
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
        min_faithfulness: Keeps as few of the strongest nodes, up to `max_nodes` features, as have this faithfulness when all
            others are really set to their baselines; the graph's `faithfulness` says how far it came, beside random sets.
        heads: In a frozen graph, through which attention heads each edge into a feature leads: so many of the strongest are kept
            on it, as `heads` (layer, head and contribution), beside `direct`, what passes no attention, and `several`, what
            passes two heads or more; see `heads` and `Circuit.heads`. Cost: two forward passes of the target's segment for
            each feature, and a vector-Jacobian product for each head there.
        compat: Another package whose numbers to give: options left at their defaults take what that package does.
            `"circuit-tracer"`: `linearisation="frozen"`, `targets="logits"`, `drop_positions=[0]`, `skip_positions=[]`,
            zero baseline, all nodes and edges; `prune="influence"` then prunes as it does.
        **method_options: The method's own.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such method, baseline, gradient, linearisation, kind of targets, site, pruner or `compat`.
        InputError: An option out of range.
    """
    raise AssertionError("what runs is _trace")


_DEFAULTS = {
    name: argument.default
    for name, argument in inspect.signature(trace).parameters.items()
    if argument.kind is inspect.Parameter.KEYWORD_ONLY and name not in (*CONTEXT, "progress")
}


def options_of(given: Mapping[str, Any]) -> TraceOptions:
    """Returns the options of a trace on a context from those given by name; see `trace`.

    Raises:
        UnknownNameError: There is no such `compat`.
        InputError: An option out of range.
    """
    return TraceOptions.of(_DEFAULTS, given)


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns all settings of a trace, what is given by name among its defaults; see `trace`.

    Raises:
        UnknownNameError: No such method, gradient, baseline, linearisation, kind of targets, pruner or `compat`.
        InputError: An option out of range.
    """
    asked = options_of({name: value for name, value in given.items() if name not in CONTEXT})
    registry.find("methods", asked.method)
    registry.find("pruners", asked.graph.prune or "top-k")
    found = {**dict.fromkeys(CONTEXT), **_DEFAULTS, **given}
    for name, known in (("linearisation", LINEARISATIONS), ("gradient", GRADIENTS), ("baseline", BASELINES)):
        if found[name] is not None and found[name] not in known:
            raise UnknownNameError(name, found[name], known)
    return found


def trace_in(context: Context, asked: TraceOptions) -> Circuit:
    """Returns the circuit behind the metric of a context's task; see `trace`."""
    context = context.asking(
        asked.method, gradient=asked.gradient, options=asked.method_options, progress=context.progress
    )
    options, pruner = asked.graph, asked.pruner
    effects = run_method(context)
    tops = logit_targets(context, options) if options.targets == "logits" else None
    if options.min_faithfulness is not None:
        options = replace(options, max_nodes=faithful_nodes(context, effects, options))
    nodes = ChosenNodes(context, effects, pruner, options, tops)
    edges = compute_edges(context, effects, nodes, options, pruner.edge_threshold(options.edge_threshold))
    table = edges.table(nodes)
    kept = pruner.prune(table, options.node_threshold, options.edge_threshold)
    if options.merge_pruned:
        table, kept = merge_into_errors(table, kept)
    graph = build_graph(nodes, edges, table, kept)
    measure_strongest(context, graph, options.measure)
    if options.heads:
        split_by_heads(context, graph, options.heads)
    if options.min_faithfulness is not None:
        kept_nodes = [key for key, kind in graph.nodes(data="kind") if kind in ("feature", "error")]
        graph.graph["faithfulness"] = faithfulness_in(context, kept_nodes, n_random=3).to_json()
    graph.graph.update(provenance(context, effects))
    graph.graph.update(
        linearisation=options.linearisation,
        prune=options.prune or "none",
        options={
            **effects.options,
            **asdict(options),
            "drop_positions": list(options.drop_positions),
            "sites": list(context.spliced.sites),
            "skip_positions": list(context.spliced.skip_positions),
            "skip_sinks": context.spliced.skip_sinks,
            "reference": context.reference,
            "compat": asked.compat,
        },
        kept={
            **nodes.report(kept.nodes),
            "edges": graph.number_of_edges(),
            "edge_candidates": edges.candidates,
            **kept.report,
        },
    )
    return Circuit(graph)


def trace_each(
    spliced: SplicedModel, tasks: Iterable[Task], *, progress: Progress | None = None, **options: Any
) -> Iterator[Circuit]:
    """Yields the circuit of one task after another, in their order; each is traced when it is asked for, and none is kept.

    Args:
        spliced: The model with its dictionaries.
        tasks: Prompts, each with its metric.
        progress: Called with tasks done, their number (0 where that is not known) and a word; returning `False` cancels.
        **options: Passed to `trace`.

    Raises:
        TaskError, InputError: As for `trace`, when the task's turn comes.
    """
    yield from _each(trace, spliced, tasks, progress, options)


def node_effects_each(
    spliced: SplicedModel, tasks: Iterable[Task], *, progress: Progress | None = None, **options: Any
) -> Iterator[NodeEffects]:
    """Yields the node effects of one task after another, in their order; see `trace_each` and `node_effects`.

    Raises:
        TaskError, InputError: As for `node_effects`, when the task's turn comes.
    """
    yield from _each(node_effects, spliced, tasks, progress, options)


def _each(
    ask: Callable[..., _R], spliced: SplicedModel, tasks: Iterable[Task], progress: Progress | None, options: Any
) -> Iterator[_R]:
    total = len(tasks) if isinstance(tasks, Sized) else 0
    for done, task in enumerate(tasks):
        report(progress, done, total, "tasks")
        yield ask(spliced, task, **options)


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
    """Returns the circuit averaged over a set of tasks: each is traced in turn and added to what `aggregate` gives.

    Args:
        spliced: The model with its dictionaries.
        tasks: Prompts, each with its metric.
        align, slots, min_count: How nodes of different prompts are matched and which stay; see `aggregate`.
        progress: Called with tasks done, their number and a word; returning `False` cancels.
        **options: Passed to `trace`.

    Raises:
        InputError: There are no tasks, or they can't be aligned so.
    """
    if not tasks:
        raise InputError("There is no task; expected at least one.")
    # What can't be put together is said before the work is done.
    check_min_count(min_count, len(tasks))
    texts = [task.prepare(spliced.vocabulary).strings for task in tasks]
    check_alignment(align, [len(row) for row in texts], slots)
    return average(trace_each(spliced, tasks, progress=progress, **options), align, slots, min_count, texts)


def split_by_heads(context: Context, graph: Graph, count: int) -> None:
    """Keeps on each edge from a feature, error node or token into a feature the heads that carry most of it."""
    kinds = {key: str(data["kind"]) for key, data in graph.nodes(data=True)}
    edges = [(u, v) for u, v in graph.edges if kinds[v] == "feature" and kinds[u] in ("feature", "error", "token")]
    for found in edge_heads(context, edges):
        graph.edges[found.source, found.target].update(
            heads=[[share.layer, share.head, share.contribution] for share in found.heads[:count]],
            direct=found.direct,
            several=found.several,
        )


def measure_strongest(context: Context, graph: Graph, count: int) -> None:
    """Really ablates the strongest nodes; error nodes that stand in for others are no single thing to ablate."""
    ranked = sorted(
        (n for n, data in graph.nodes(data=True) if data["kind"] in ("feature", "error") and "merged" not in data),
        key=lambda n: (-abs(known_effect(graph.nodes[n]) or 0.0), names.sort_key(n)),
    )[:count]
    wanted = [node for node in ranked if "measured_effect" not in graph.nodes[node]]
    for node, measured in zip(wanted, measure_nodes(context, wanted), strict=True):
        graph.nodes[node]["measured_effect"] = measured
