"""Ablation: every node is really set to its baseline, one at a time."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.exact import expected_ablations, feature_changes, measure_changes, vector_changes
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.model.runs import EMBED


class Ablation:
    """Sets every node to its baseline, one at a time, and runs the model.

    Nodes of one layer are ablated in batches that share the clean run below it and before it, so the cost is far less
    than one forward pass a node. Source: Marks et al. 2024 (arXiv 2403.19647), equation 2, computed exactly.
    """

    name: ClassVar[str] = "ablation"
    cost: ClassVar[str] = "1 forward a node, batched, from the node's layer and position on"
    gives_slopes: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """`tokens`: whether token nodes are ablated too (each needs a forward pass through every layer)."""

        tokens: bool = True

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method]."""
        spliced = context.spliced
        places = [feature_changes(context, number) for number in range(len(spliced.dictionaries))]
        places += [vector_changes(context, hook) for hook in spliced.written]
        if options.tokens:
            places.append(vector_changes(context, EMBED))
        found = measure_changes(context, places)
        features, errors = found[: len(spliced.dictionaries)], found[len(spliced.dictionaries) :]
        blocks = [context.feature_block(number, effects, None) for number, effects in enumerate(features)]
        blocks += [context.error_block(hook, effects) for hook, effects in zip(spliced.written, errors, strict=False)]
        tokens = context.token_block(found[-1] if options.tokens else torch.zeros_like(context.run.embed[:, 0]))
        measured = [*blocks, tokens] if options.tokens else blocks
        done = [replace(block, measured=torch.ones_like(block.effects, dtype=torch.bool)) for block in measured]
        return context.finish(done if options.tokens else [*done, tokens])

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        return Passes(1) + expected_ablations(planned, tokens=options.tokens)
