"""Attribution patching: effects predicted from one backward pass."""

from typing import ClassVar

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.effects import NoOptions
from circuitsae.attribution.nodes import NodeEffects


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

    def passes(self, planned: PlannedRun, options: NoOptions) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        return planned.gradients()
