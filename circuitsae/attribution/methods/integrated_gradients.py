"""Integrated gradients: the gradient averaged on the line from the clean run to the baseline, one site at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.attribution.backward import differentiate
from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.model import points
from circuitsae.model.edits import batch_size
from circuitsae.model.runs import EMBED, forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import cuts

Rule = Literal["gauss-legendre", "midpoint", "left", "right"]
RULES: tuple[str, ...] = get_args(Rule)


class IntegratedGradients:
    """Gradient, averaged on the line from the clean run to the baseline, times (baseline - value).

    All nodes of a site move together, features and errors; below it everything is clean, above it recomputed without
    dictionaries. So the effects of a site's nodes add up to the change of the metric when all of them are set to their
    baselines (up to the rule's error), which is not the same as each node's effect by itself. At skipped positions nothing
    moves. Source: Sundararajan et al. 2017 (arXiv 1703.01365); on features with error nodes Marks et al. 2024
    (arXiv 2403.19647), whose code uses the rule `left` with 10 steps.

    Sites that do not feed each other (attention and MLP of a parallel block; queries, keys and values) share a run, steps
    are batched, and the clean run below the site is shared.
    """

    name: ClassVar[str] = "integrated-gradients"
    cost: ClassVar[str] = "steps forwards + backwards a site, from the site's layer on"

    @dataclass(frozen=True)
    class Options:
        """How the average is taken.

        Attributes:
            steps: Points on the line.
            rule: `gauss-legendre` (exact for polynomials up to degree 2 steps - 1), `midpoint`, `left` (from the clean run,
                without the baseline: feature-circuits) or `right` (with the baseline, without the clean run).
            tokens: Whether the embeddings are a site, too; their effects are zero otherwise.
        """

        steps: int = 10
        rule: Rule = "gauss-legendre"
        tokens: bool = True

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method].

        Raises:
            InputError: Fewer than one step, or the gradient `through-dictionary`, which has no meaning off the clean run.
            UnknownNameError: There is no such rule.
        """
        points, weights = quadrature(options.rule, options.steps)
        if context.gradient == "through-dictionary":
            raise InputError(
                "Integrated gradients leave the clean run, where the dictionaries were encoded; expected the gradient "
                "'pass-through' or 'frozen'."
            )
        groups = [*independent_sites(context.spliced), *([(EMBED,)] if options.tokens else [])]
        gradients = {hook: torch.zeros_like(site.x) for hook, site in context.run.sites.items()}
        gradients[EMBED] = torch.zeros_like(context.run.embed)
        for done, group in enumerate(groups):
            gradients |= mean_gradients(context, group, points, weights)
            context.report(done + 1, len(groups), "sites")
        embed = gradients.pop(EMBED)
        return context.effects(gradients, embed)

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        spliced, steps = planned.spliced, options.steps
        reads = planned.task.metric.reads
        size = min(steps, max(1, batch_size(spliced, planned.n_tokens) // 4))
        found = Passes(1)
        for group in [*independent_sites(spliced), *([(EMBED,)] if options.tokens else [])]:
            first = planned.start(min(spliced.hooked.layer(hook) for hook in group))
            if reads is None or spliced.hooked.layer(reads) >= first:
                computed = steps * planned.share(first)
                again = 2 if cuts(spliced, planned.n_tokens, first, batch=size) else 1
                found += Passes(again * computed, computed, together=steps / -(-steps // size), taped=size)
        return found


def quadrature(rule: str, steps: int) -> tuple[list[float], list[float]]:
    """Returns points in [0, 1] and weights that add up to 1.

    >>> quadrature("left", 2)
    ([0.0, 0.5], [0.5, 0.5])

    Raises:
        InputError: Fewer than one step.
        UnknownNameError: There is no such rule.
    """
    if steps < 1:
        raise InputError(f"The line has {steps} steps; expected at least 1.")
    if rule == "gauss-legendre":
        points, weights = np.polynomial.legendre.leggauss(steps)
        return ((points + 1) / 2).tolist(), (weights / 2).tolist()
    shifts = {"left": 0.0, "midpoint": 0.5, "right": 1.0}
    if rule not in shifts:
        raise UnknownNameError("rule", rule, RULES)
    return [(k + shifts[rule]) / steps for k in range(steps)], [1 / steps] * steps


def mean_gradients(
    context: Context, group: Sequence[str], points: Sequence[float], weights: Sequence[float]
) -> dict[str, Float[Tensor, "pos _d"]]:
    """Returns the metric's weighted mean gradient by hook points that are moved together towards the baseline."""
    spliced, run = context.spliced, context.run
    moved = {hook: displacement(context, hook) for hook in group}
    result = {hook: torch.zeros_like(x) for hook, x in moved.items()}
    start = run.prefix(min(spliced.hooked.layer(hook) for hook in group))
    first = 0 if start is None else start.layer
    reads = context.task.metric.reads
    if reads is not None and spliced.hooked.layer(reads) < first:  # the metric is below and does not depend on them
        return result
    size = max(1, batch_size(spliced, run.n_tokens) // 4)  # a graph for the backward pass takes the rest of the memory
    pieces = cuts(spliced, run.n_tokens, first, batch=min(size, len(points)))
    for low in range(0, len(points), size):
        at = torch.tensor(points[low : low + size], dtype=run.embed.dtype, device=run.embed.device)[:, None, None]
        by = torch.tensor(weights[low : low + size], dtype=run.embed.dtype, device=run.embed.device)[:, None, None]

        def move(name: str, x: Tensor, at: Tensor = at) -> Tensor | None:
            return (x + (at * moved[name]).to(x.dtype)).requires_grad_() if name in moved else None

        tokens = run.tokens.expand(len(at), -1)
        hooks: dict[str, Any] = {
            "on_write": move,
            "extra": [*context.freezing(), *([(EMBED, lambda x, move=move: move(EMBED, x))] if EMBED in moved else [])],
            "start": start,
        }
        residuals: dict[int, Tensor] = {}
        if pieces:
            context.passes["forward"] += len(at) * (1 - first / spliced.n_layers)
            with torch.no_grad():
                residuals = forward(spliced, tokens, context.readout, residuals_at=pieces, **hooks).residuals
        for hook, gradient in differentiate(spliced, tokens, context.readout, group, residuals, **hooks).items():
            result[hook] += (gradient.to(by.dtype) * by).sum(0)
        computed = len(at) * (1 - first / spliced.n_layers)
        context.passes["forward"] += computed
        context.passes["backward"] += computed
    return result


def displacement(context: Context, hook: str) -> Float[Tensor, "pos d"]:
    """Returns what setting all nodes at a hook point written (or all tokens: `EMBED`) to their baselines adds there."""
    change = context.vector_changes(hook)
    if hook == EMBED:
        return change
    moved = torch.zeros_like(change)
    kept = context.run.sites[hook].kept
    moved[kept] = change[kept]
    for number, out in context.spliced.writers[hook]:
        moved += context.nodes[number].written(context.feature_changes(number), context.run.n_tokens, out)
    return moved


def independent_sites(spliced: SplicedModel) -> list[tuple[str, ...]]:
    """Returns the hook points written, grouped into those that can be moved in one run.

    That are those that do not feed each other, and those that one cross-layer transcoder writes to, whose features move
    at all of them at once.
    """
    groups: list[list[str]] = []
    joined: set[str] = set()
    for dictionary in spliced.dictionaries:
        if dictionary.is_cross_layer:
            joined |= {spliced.canonical(hook) for hook in dictionary.hook_outs}
    if joined:
        groups.append([hook for hook in spliced.written if hook in joined])
    for hook in spliced.written:
        if hook in joined:
            continue
        for group in groups:
            if not joined & set(group) and not any(points.feeds(spliced.hooked, a, b) for a, b in _pairs(hook, group)):
                group.append(hook)
                break
        else:
            groups.append([hook])
    return [tuple(group) for group in groups]


def _pairs(hook: str, group: Sequence[str]) -> list[tuple[str, str]]:
    return [pair for other in group for pair in ((hook, other), (other, hook))]
