"""Relevance patching: attribution patching by layer-wise relevance propagation."""

from dataclasses import dataclass
from typing import ClassVar

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.attribution.rules import frozen_patterns, frozen_scales, relevant_mlps


class RelevancePatching:
    """As attribution patching, with the gradients of layer-wise relevance propagation.

    Normalisation scales and attention patterns are constants, an activation function's slope is `f(z) / z`, and the
    factors of a gate get half each, so that relevance is conserved from layer to layer. Source: RelP, Jafari et al. 2025
    (arXiv 2508.21258), table 1.
    """

    name: ClassVar[str] = "relp"
    cost: ClassVar[str] = "2 forwards + 1 backward (+ 1 forward of the patch prompt)"

    @dataclass(frozen=True)
    class Options:
        """Which rules apply.

        Attributes:
            scales: Normalisation scales are constants.
            patterns: Attention patterns are constants.
            mlps: The identity and half rules in MLPs.
        """

        scales: bool = True
        patterns: bool = True
        mlps: bool = True

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method]."""
        spliced = context.spliced
        rules = [
            *(frozen_scales(spliced) if options.scales else ()),
            *(frozen_patterns(spliced) if options.patterns else ()),
            *(relevant_mlps(spliced) if options.mlps else ()),
        ]
        return context.effects(*context.gradients(rules))

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        return planned.gradients(modified=options.scales or options.patterns or options.mlps)
