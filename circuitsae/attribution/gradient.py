"""Methods that predict effects from one backward pass, plain or modified."""

from dataclasses import dataclass
from typing import ClassVar

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, Prospect
from circuitsae.attribution.effects import NoOptions
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.attribution.rules import (
    frozen_patterns,
    frozen_scales,
    relevant_mlps,
    scaled_inputs,
    soft_patterns,
)
from circuitsae.errors import InputError


class AttributionPatching:
    """First-order prediction: gradient at the clean run times (baseline - value).

    Source: Nanda 2023 (attribution patching); on dictionary features with error nodes, Marks et al. 2024
    (arXiv 2403.19647), equation 1.
    """

    name: ClassVar[str] = "attribution-patching"
    cost: ClassVar[str] = "1 forward + 1 backward (+ 1 forward of the patch prompt)"
    Options: ClassVar[type] = NoOptions

    def __call__(self, context: Context, options: NoOptions) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method]."""
        return context.effects(*context.gradients())

    def passes(self, prospect: Prospect, options: NoOptions) -> Passes:
        """See [Stated][circuitsae.attribution.costs.Stated]."""
        return prospect.gradients()


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

    def passes(self, prospect: Prospect, options: Options) -> Passes:
        """See [Stated][circuitsae.attribution.costs.Stated]."""
        return prospect.gradients(modified=options.scales or options.patterns or options.mlps)


class GradientInteraction:
    """As attribution patching, with gradients that allow for interactions: GIM.

    Normalisation scales are constants; the softmax's backward pass is taken at a higher temperature, since removing one
    of several keys that stand in for each other changes little at the clean temperature; and what flows back through
    factors of a product is divided among them. Source: Edin et al. 2025 (arXiv 2505.17630), with the factors of the
    authors' package gim-explain.
    """

    name: ClassVar[str] = "gim"
    cost: ClassVar[str] = "2 forwards + 1 backward (+ 1 forward of the patch prompt)"

    @dataclass(frozen=True)
    class Options:
        """What is modified, and by how much.

        Attributes:
            scales: Normalisation scales are constants.
            temperature: Of the softmax's backward pass; 1 leaves it.
            query, key, value: What gradients through queries, keys and values are multiplied by.
        """

        scales: bool = True
        temperature: float = 2.0
        query: float = 0.25
        key: float = 0.25
        value: float = 0.5

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method].

        Raises:
            InputError: The temperature is not above zero.
        """
        if not options.temperature > 0:
            raise InputError(f"The temperature is {options.temperature}; expected one above 0, such as 2.")
        spliced = context.spliced
        rules = [
            *(frozen_scales(spliced) if options.scales else ()),
            *(soft_patterns(spliced, options.temperature) if options.temperature != 1 else ()),
            *scaled_inputs(spliced, options.query, options.key, options.value),
        ]
        return context.effects(*context.gradients(rules))

    def passes(self, prospect: Prospect, options: Options) -> Passes:
        """See [Stated][circuitsae.attribution.costs.Stated]."""
        return prospect.gradients(modified=True)
