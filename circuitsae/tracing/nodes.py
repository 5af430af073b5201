"""The nodes of a circuit: which are chosen, their numbers, and what is known of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.contributions import FeatureTargets, Sources
from circuitsae.attribution.effects import Context, NodeBlock, NodeEffects
from circuitsae.evaluation.faithfulness import smallest_faithful
from circuitsae.graph.merging import merged_sums
from circuitsae.graph.prune import Pruner
from circuitsae.graph.schema import Graph, known_effect
from circuitsae.graph.table import (
    BIAS,
    ERROR,
    FEATURE,
    METRIC,
    TOKEN,
    EdgeTable,
    Floats,
    Ints,
    Mask,
    Pruned,
)
from circuitsae.tracing.logits import LogitTarget
from circuitsae.tracing.options import GraphOptions


class ChosenNodes:
    """The nodes of a circuit, numbered: tokens, bias, features by dictionary, error nodes by hook point, metric nodes.

    Attributes:
        keys: Each node's key.
        kinds: Its kind, a place in `circuitsae.kinds.NODE_KINDS`.
        sources: The same nodes as the edge engine takes them.
        first_metric: The number of the first metric node.
    """

    def __init__(
        self,
        context: Context,
        effects: NodeEffects,
        pruner: Pruner,
        options: GraphOptions,
        logits: list[LogitTarget] | None,
    ) -> None:
        self.context, self.effects, self.logits = context, effects, logits
        self.features, self.errors = effects.features(), effects.errors()
        self.n_tokens = len(context.task.tokens)
        self._choose(pruner, options)
        self._number()

    def _choose(self, pruner: Pruner, options: GraphOptions) -> None:
        """Offers the pruner what may be a node, and keeps what it chooses."""
        n = self.n_tokens
        dropped = {p % n for p in options.drop_positions if -n <= p < n}

        def offered(block: NodeBlock) -> Mask:
            hidden = dropped
            if block.kind == "error" and not options.skip_nodes:
                hidden = dropped | self.effects.skipped.get(block.site, frozenset())
            shown = np.ones(n, dtype=bool)
            shown[list(hidden)] = False
            return shown[block.positions.cpu().numpy()]

        blocks = [*self.features, *self.errors]
        self._sizes = as_numpy(torch.cat([b.effects.abs() for b in blocks]))
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
    def start(self) -> Floats:
        """How much of the metric each node is: 1 for the metric node, their probabilities for logits."""
        start = np.zeros(len(self.keys))
        start[self.first_metric :] = 1.0 if self.logits is None else [target.probability for target in self.logits]
        return start

    @property
    def stand_ins(self) -> Ints:
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
        kept: Mask,
    ) -> None:
        strings = self.effects.token_strings
        positions, activations = block.positions.tolist(), block.activations.tolist()
        baselines, effects = block.baselines.tolist(), block.effects.tolist()
        predicted = effects if block.predicted is None else block.predicted.tolist()
        measured = None if block.measured is None else block.measured.tolist()
        for number, n in enumerate(chosen, first):
            if kept[number]:
                graph.add_node(
                    self.keys[number],
                    kind=block.kind,
                    token=strings[positions[n]],
                    activation=activations[n],
                    baseline=baselines[n],
                    effect=predicted[n],
                    **({"measured_effect": effects[n]} if measured is not None and measured[n] else {}),
                )

    def _describe_merged(self, graph: Graph, table: EdgeTable, kept: Pruned) -> None:
        """Error nodes that stand in for pruned features have the sum of their effects, and no norm of their own."""
        effects = np.zeros(len(self.keys))
        first = self.n_tokens + 1
        flat = np.concatenate(
            [
                as_numpy(block.effects[chosen])
                for block, chosen in zip([*self.features, *self.errors], self.chosen, strict=True)
            ]
        )
        effects[first : first + len(flat)] = flat
        moved = merged_sums(table, kept, effects)
        for number in np.flatnonzero(kept.attributes["merged"]).tolist():
            data = graph.nodes[self.keys[number]]
            effect = (known_effect(data) or 0.0) + float(moved[number])
            for name in ("activation", "baseline", "measured_effect"):
                data.pop(name, None)
            data.update(effect=effect, merged=int(kept.attributes["merged"][number]))

    def report(self, kept: Mask) -> dict[str, Any]:
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


def faithful_nodes(context: Context, effects: NodeEffects, options: GraphOptions) -> int | None:
    """Returns of how many of the strongest features, with the error nodes as strong, the circuit has its faithfulness.

    Where it is not reached, as many as are allowed.
    """
    n = len(context.task.tokens)
    dropped = {p % n for p in options.drop_positions if -n <= p < n}
    found: list[tuple[float, bool, str]] = []
    for block in (*effects.features(), *effects.errors()):
        part = effects.offered(block, options.skip_nodes)
        for number, (size, at) in enumerate(zip(part.effects.abs().tolist(), part.positions.tolist(), strict=True)):
            if at not in dropped:
                found.append((size, part.kind == "feature", part.key(number)))
    found.sort(key=lambda node: -node[0])
    ends = [place for place, (_, is_feature, _) in enumerate(found, 1) if is_feature][: options.max_nodes]
    if not ends:
        return options.max_nodes
    place, _ = smallest_faithful(context, [key for _, _, key in found], ends, options.min_faithfulness or 0.0)
    return len(ends) if place is None else place + 1


def as_numpy(x: Tensor) -> Floats:
    """Returns a tensor's values in double precision, as numpy has them."""
    return x.detach().double().cpu().numpy()
