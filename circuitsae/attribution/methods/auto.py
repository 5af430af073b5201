"""The recommended method: two predictions say which nodes may matter, and those are really ablated."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.curvature import second_order
from circuitsae.attribution.exact import (
    Changes,
    expected_ablations,
    feature_changes,
    measure_changes,
    plan,
    vector_changes,
)
from circuitsae.attribution.nodes import NodeBlock, NodeEffects
from circuitsae.attribution.rules import relevant_mlps
from circuitsae.errors import FlatMetricError, InputError

# Backward passes that predict where the metric's gradient is zero: directions of the logits in which it curves most. Two to
# four find equally many of the strongest nodes; more leave fewer passes to ablate them.
DIRECTIONS = 3


class Auto:
    """Predicts every node's effect twice, and measures those for which either prediction is largest.

    Attribution patching takes an MLP's slope at the clean run, so it overstates what a node does to a product of two
    factors that it feeds both; the half rule (see `relp`) understates it elsewhere. Where that can't be applied, as in
    mixtures of experts, the first stands for both. Their mean is the prediction. Where
    one of them is large the node is ablated, as many as the passes allow, strongest first: at positions with a large norm,
    such as attention sinks, no gradient at the clean run predicts what is left when one feature is gone. How the
    methods compare is in docs/methods.md.

    Where the metric's gradient is zero at the clean run, as a divergence's is, its curvature predicts (see
    `attribution.curvature`), at one backward pass for each of three directions.
    """

    name: ClassVar[str] = "auto"
    cost: ClassVar[str] = "`passes` forwards + backwards at most (10): 2 predict, the others ablate"

    @dataclass(frozen=True)
    class Options:
        """How much may be spent.

        Attributes:
            passes: Forward + backward passes in all; an ablation is half of one, less what lies below the node and before
                it. Those of the patch and reference prompts come on top.
            smallest: Nodes whose predictions are below this share of the largest are not ablated.
        """

        passes: float = 10.0
        smallest: float = 0.005

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method].

        Raises:
            InputError: The passes don't suffice for the predictions, or the metric has neither gradient nor curvature.
        """
        if options.passes < 4:
            raise InputError(f"{options.passes} passes were allowed; expected at least 4, of which 2 predict.")
        first, second, spent, flat = _predictions(context)
        blocks = [b for b in first.blocks if b.kind != "token"]
        others = [b for b in second.blocks if b.kind != "token"]
        spliced = context.spliced
        places = [feature_changes(context, number) for number in range(len(spliced.dictionaries))]
        places += [vector_changes(context, hook) for hook in spliced.written]

        predicted = [(a.effects + b.effects) / 2 for a, b in zip(blocks, others, strict=True)]
        effects = [values.clone() for values in predicted]
        bounds = [torch.maximum(a.effects.abs(), b.effects.abs()) for a, b in zip(blocks, others, strict=True)]
        offered = [_offered(context, block) for block in blocks]
        # The predictions, and the keys and values that ablations start from, are paid for already.
        chosen = _affordable(context, places, bounds, offered, 2 * options.passes - spent - 1.5, options.smallest)
        found = measure_changes(context, [p.part(w.nonzero().flatten()) for p, w in zip(places, chosen, strict=True)])
        for values, which, measured in zip(effects, chosen, found, strict=True):
            values[which] = measured
        tokens = [
            replace(a, effects=(a.effects + b.effects) / 2)
            for a, b in zip(first.blocks, second.blocks, strict=True)
            if a.kind == "token"
        ]
        measured = [
            replace(b, effects=e, measured=w, predicted=p)
            for b, e, w, p in zip(blocks, effects, chosen, predicted, strict=True)
        ]
        result = context.finish([*measured, *tokens])
        return replace(result, notes=(_rough(offered, chosen),)) if flat else result

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """At most: how many nodes are worth ablating shows in the run."""
        predicted = planned.gradients() + Passes(planned.gradients(modified=True).forward - 1, 1)
        everything = expected_ablations(planned, tokens=False)
        ablated = Passes(min(_left(options) + 1.5, everything.forward), together=everything.together, at_most=True)
        return predicted + ablated


def _predictions(context: Context) -> tuple[NodeEffects, NodeEffects, float, bool]:
    """Returns two predictions, the forward and backward passes that they took, and whether the gradient was zero."""
    try:
        first = context.effects(*context.gradients())
    except FlatMetricError:
        curved = second_order(context, DIRECTIONS)
        return curved, curved, 2 + DIRECTIONS, True
    try:
        return first, context.effects(*context.gradients(relevant_mlps(context.spliced))), 4, False
    except InputError:  # a mixture of experts, say: the first prediction stands alone
        return first, first, 4, False


def _rough(offered: list[Bool[Tensor, "_node"]], ablated: list[Bool[Tensor, "_node"]]) -> str:
    count, total = (sum(int(which.sum()) for which in part) for part in (ablated, offered))
    return (
        f"The metric's gradient is zero at the clean run, and second order predicts roughly: {count:,} of {total:,} features "
        "and error nodes were ablated, and some of the others may be as strong; more passes ablate more, 'ablation' all."
    )


def _left(options: Auto.Options) -> float:
    """Returns the forward passes that are left for ablations: two predictions, keys and values have had theirs."""
    return 2 * options.passes - 2 * 2 - 1.5


def _offered(context: Context, block: NodeBlock) -> Bool[Tensor, "node"]:
    """Returns which nodes may be ablated: not the error nodes at skipped positions, which are no nodes of a circuit."""
    if block.kind != "error":
        return torch.ones(len(block), dtype=torch.bool, device=block.positions.device)
    return torch.isin(block.positions, context.run.sites[block.site].kept)


def _affordable(
    context: Context,
    places: list[Changes],
    bounds: list[Float[Tensor, "_node"]],
    offered: list[Bool[Tensor, "_node"]],
    forwards: float,
    smallest: float,
) -> list[Bool[Tensor, "_node"]]:
    """Returns which nodes to ablate: those of the largest bounds, as long as the forward passes last."""
    bound = torch.cat(bounds).masked_fill(~torch.cat(offered), 0)
    order = bound.argsort(descending=True, stable=True)
    worth = int(((bound > 0) & (bound >= smallest * bound.max())).sum())

    def strongest(count: int) -> list[Bool[Tensor, "_node"]]:
        chosen = torch.zeros(len(bound), dtype=torch.bool, device=bound.device)
        chosen[order[:count]] = True
        return list(chosen.split([len(b) for b in bounds]))

    def cost(count: int) -> float:
        parts = [p.part(w.nonzero().flatten()) for p, w in zip(places, strongest(count), strict=True)]
        return sum(batch.forwards for batch in plan(context, parts))

    low, high = 0, worth
    while low < high:  # the most that the passes suffice for
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= forwards else (low, middle - 1)
    return strongest(low)
