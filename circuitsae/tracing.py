"""`trace`: from a task to a circuit. The steps, in order: effects, choice of nodes, edges, graph, pruning, measuring."""

import datetime
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from circuitsae import __version__, names, registry
from circuitsae.attribution.edges import EdgeBatch, EdgeEngine, FeatureTargets, Sources
from circuitsae.attribution.effects import Context, NodeBlock, NodeEffects, Progress, make_context, run_method
from circuitsae.attribution.exact import measure_nodes
from circuitsae.errors import InputError
from circuitsae.graph.circuit import Circuit
from circuitsae.interventions import top_tokens
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.task import Task


def trace(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "attribution-patching",
    baseline: str | None = None,
    gradient: str = "pass-through",
    linearisation: str = "gradient",
    sites: Sequence[str] | None = None,
    max_nodes: int | None = 256,
    node_threshold: float | None = None,
    edge_threshold: float | None = None,
    prune: str | None = "top-k",
    skip_positions: Sequence[int] | None = None,
    skip_nodes: bool = False,
    measure: int = 0,
    reference: Sequence[str | Sequence[int]] | None = None,
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
        max_nodes: How many features to keep at most; error nodes stay where their |effect| reaches the weakest kept
            feature's. `None` for all.
        node_threshold, edge_threshold: What they mean is the pruner's: smallest |effect| and |weight| for `"top-k"` and
            `"threshold"`, shares of influence for `"influence"`.
        prune: Name of a pruner plugin, or `None` to keep every node and every edge that is not zero.
        skip_nodes: Whether error nodes at skipped positions are offered as nodes.
        measure: How many of the strongest nodes to really ablate; stored as `measured_effect`.
        **method_options: The method's own.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such method, baseline, gradient, linearisation, site or pruner.
        InputError: An option out of range.
    """
    if max_nodes is not None and max_nodes < 1:
        raise InputError(f"max_nodes is {max_nodes}; expected at least 1, or None for all.")
    if measure < 0:
        raise InputError(f"measure is {measure}; expected the number of nodes to ablate, 0 or more.")
    pruner = registry.get("pruners", prune or "top-k")()
    if prune is None:
        max_nodes = node_threshold = edge_threshold = None
    context = make_context(
        spliced,
        task,
        method=method,
        baseline=baseline,
        gradient=gradient,
        sites=sites,
        skip_positions=skip_positions,
        reference=reference,
        progress=progress,
        options=method_options,
    )
    effects = run_method(context)
    choice = _Choice(context, effects, pruner, max_nodes, node_threshold, skip_nodes)
    engine = EdgeEngine(
        context.spliced,
        context.run,
        context.nodes,
        context.baseline,
        context.readout,
        linearisation=linearisation,
        sources=choice.sources,
        edge_threshold=pruner.edge_threshold(edge_threshold),
    )
    graph: nx.DiGraph[str] = nx.DiGraph()
    choice.add_nodes(graph)
    candidates = 0
    candidates += _add_edges(graph, engine.metric_edges(choice.metric), choice.keys)
    for batch in engine.feature_edges(choice.targets(_slopes(context, effects)), context.tick):
        candidates += _add_edges(graph, batch, choice.keys)
    pruned = dict(pruner.prune(graph, node_threshold, edge_threshold))
    _explain(graph)
    if graph.out_degree(names.BIAS) == 0:
        graph.remove_node(names.BIAS)
    _measure(context, graph, measure)
    graph.graph.update(_provenance(context, effects))
    graph.graph.update(
        linearisation=linearisation,
        prune=prune or "none",
        options={
            **effects.options,
            "sites": list(context.spliced.sites),
            "max_nodes": max_nodes,
            "node_threshold": node_threshold,
            "edge_threshold": edge_threshold,
            "skip_positions": list(context.spliced.skip_positions),
            "skip_nodes": skip_nodes,
            "measure": measure,
        },
        kept={**choice.report(graph), "edges": graph.number_of_edges(), "edge_candidates": candidates, **pruned},
    )
    return Circuit(graph)


class _Choice:
    """The nodes of a circuit, numbered: tokens, bias, features by dictionary, error nodes by hook point, metric."""

    def __init__(
        self,
        context: Context,
        effects: NodeEffects,
        pruner: Any,
        max_nodes: int | None,
        threshold: float | None,
        skip_nodes: bool,
    ) -> None:
        self.context, self.effects = context, effects
        n_tokens = len(context.task.tokens)
        self.features, self.errors = effects.features(), effects.errors()
        offered = torch.ones(n_tokens, dtype=torch.bool)
        if not skip_nodes:
            offered[sorted(effects.skipped)] = False
        blocks = [*self.features, *self.errors]
        masks = [
            offered.to(b.positions.device)[b.positions] if b.kind == "error" else torch.ones(len(b), dtype=torch.bool)
            for b in blocks
        ]
        sizes = _numpy(torch.cat([b.effects.abs() for b in blocks]))
        is_feature = np.concatenate([np.full(len(b), b.kind == "feature") for b in blocks])
        candidate = np.concatenate([m.cpu().numpy() for m in masks])
        keep = np.zeros(len(sizes), dtype=bool)
        keep[candidate] = pruner.choose(sizes[candidate], is_feature[candidate], max_nodes, threshold)
        self._sizes, self._is_feature, self._candidate, self._keep = sizes, is_feature, candidate, keep

        device = context.spliced.device
        self.keys: list[str] = [names.token(p) for p in range(n_tokens)]
        self.keys.append(names.BIAS)
        self.chosen: list[Tensor] = []
        features: list[tuple[Tensor, Tensor]] = []
        errors: dict[str, tuple[Tensor, Tensor]] = {}
        offset = 0
        for block in blocks:
            chosen = torch.from_numpy(np.flatnonzero(keep[offset : offset + len(block)])).to(device)
            offset += len(block)
            numbers = torch.arange(len(self.keys), len(self.keys) + len(chosen), device=device)
            self.keys += [block.key(n) for n in chosen.tolist()]
            self.chosen.append(chosen)
            if block.kind == "feature":
                features.append((chosen, numbers))
            else:
                errors[block.site] = (chosen, numbers)
        self.metric = len(self.keys)
        self.keys.append(names.METRIC)
        tokens = torch.arange(n_tokens, device=device)
        self.sources = Sources(tuple(features), errors, (tokens, tokens), bias=n_tokens)

    def targets(self, slopes: Sequence[Tensor]) -> list[FeatureTargets]:
        """Returns the chosen features that are active on the prompt: those that edges may go to."""
        found = []
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

    def add_nodes(self, graph: "nx.DiGraph[str]") -> None:
        """Adds the chosen nodes with what is known of each."""
        strings = self.effects.token_strings
        order = self.context.spliced.order
        self._add_block(graph, self.effects.tokens(), range(len(strings)))
        graph.add_node(names.BIAS, kind="bias")
        blocks = list(zip([*self.features, *self.errors], self.chosen, strict=True))
        dictionaries = {d.site: d.hook_in for d in self.context.spliced.dictionaries}
        for block, chosen in sorted(blocks, key=lambda b: order(dictionaries.get(b[0].site, b[0].site))):
            self._add_block(graph, block, chosen.tolist())
        graph.add_node(names.METRIC, kind="metric", activation=self.effects.metric)

    def _add_block(self, graph: "nx.DiGraph[str]", block: NodeBlock, chosen: Sequence[int]) -> None:
        strings = self.effects.token_strings
        positions, activations = block.positions.tolist(), block.activations.tolist()
        baselines, effects = block.baselines.tolist(), block.effects.tolist()
        for n in chosen:
            graph.add_node(
                block.key(n),
                kind=block.kind,
                token=strings[positions[n]],
                activation=activations[n],
                baseline=baselines[n],
                effect=effects[n],
            )

    def report(self, graph: "nx.DiGraph[str]") -> dict[str, Any]:
        """Returns what was kept and what was lost of the candidates, as shares of the summed |effect|."""
        sizes, features = self._sizes, self._is_feature
        in_graph = np.zeros(len(sizes), dtype=bool)
        flat = np.flatnonzero(self._keep)
        first = len(self.context.task.tokens) + 1
        for place, number in enumerate(flat):
            in_graph[number] = self.keys[first + place] in graph
        whole = float(sizes[self._candidate].sum())
        return {
            "nodes": int(in_graph.sum()),
            "candidates": int(self._candidate.sum()),
            "features": int((in_graph & features).sum()),
            "feature_candidates": int((self._candidate & features).sum()),
            "effect_share": float(sizes[in_graph].sum()) / whole if whole else 1.0,
            "error_share": float(sizes[self._candidate & ~features].sum()) / whole if whole else 0.0,
        }


def _slopes(context: Context, effects: NodeEffects) -> list[Tensor]:
    """Returns the metric's derivative by each feature; a method that gives none costs one more pass each way."""
    slopes = [block.slopes for block in effects.features()]
    if any(s is None for s in slopes):
        slopes = [block.slopes for block in context.effects(*context.gradients()).features()]
    return [s for s in slopes if s is not None]


def _add_edges(graph: "nx.DiGraph[str]", batch: EdgeBatch, keys: list[str]) -> int:
    graph.add_edges_from(
        (keys[source], keys[target], {"contribution": contribution, "weight": weight})
        for source, target, contribution, weight in zip(
            batch.sources.tolist(),
            batch.targets.tolist(),
            batch.contributions.tolist(),
            batch.weights.tolist(),
            strict=True,
        )
    )
    for node, total, magnitude in zip(
        batch.target_nodes.tolist(), batch.totals.tolist(), batch.magnitudes.tolist(), strict=True
    ):
        graph.nodes[keys[node]].update(total=total, _magnitude=magnitude)
    return batch.candidates


def _explain(graph: "nx.DiGraph[str]") -> None:
    """Turns each target's whole |contribution| into the share that its kept in-edges carry."""
    for node, data in graph.nodes(data=True):
        magnitude = data.pop("_magnitude", None)
        if magnitude:
            kept = sum(abs(c) for _, _, c in graph.in_edges(node, data="contribution"))
            data["explained"] = min(1.0, kept / magnitude)


def _measure(context: Context, graph: "nx.DiGraph[str]", count: int) -> None:
    ranked = sorted(
        (n for n, kind in graph.nodes(data="kind") if kind in ("feature", "error")),
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
