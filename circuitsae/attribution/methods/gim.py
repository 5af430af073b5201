"""GIM: attribution patching with gradients that allow for interactions."""

from dataclasses import dataclass
from typing import ClassVar

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.attribution.rules import frozen_scales, scaled_gates, scaled_inputs, soft_patterns
from circuitsae.errors import InputError


class GradientInteraction:
    """As attribution patching, with gradients that allow for interactions: GIM.

    Normalisation scales are constants; the softmax's backward pass is taken at a higher temperature, since removing one
    of several keys that stand in for each other changes little at the clean temperature; and what flows back through
    factors of a product is divided among them, in attention and in gated MLPs. Source: Edin et al. 2025 (arXiv
    2505.17630), with the factors of the authors' package; gim-explain 0.1.4 on PyPI still lacks the rule for MLPs.
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
            gate, up: The same for the factors of gated MLPs; where both are 1, MLPs need no hook points inside.
        """

        scales: bool = True
        temperature: float = 2.0
        query: float = 0.25
        key: float = 0.25
        value: float = 0.5
        gate: float = 0.5
        up: float = 0.5

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method].

        Raises:
            InputError: The temperature is not above zero, or an MLP's factors can't be told (mixtures of experts).
        """
        if not options.temperature > 0:
            raise InputError(f"The temperature is {options.temperature}; expected one above 0, such as 2.")
        spliced = context.spliced
        rules = [
            *(frozen_scales(spliced) if options.scales else ()),
            *(soft_patterns(spliced, options.temperature) if options.temperature != 1 else ()),
            *scaled_inputs(spliced, options.query, options.key, options.value),
            *(scaled_gates(spliced, options.gate, options.up) if (options.gate, options.up) != (1, 1) else ()),
        ]
        return context.effects(*context.gradients(rules))

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        return planned.gradients(modified=True)
