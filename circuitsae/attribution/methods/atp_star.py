"""AtP*: attribution patching that is less often blind to a node whose effects cancel or saturate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.attribution.exact import Changes, feature_changes, vector_changes
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.attribution.rules import LayerDrop
from circuitsae.model import points
from circuitsae.model.checks import require
from circuitsae.model.edits import batch_size
from circuitsae.model.runs import EMBED
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import is_long

Gradients = Mapping[str, Float[Tensor, "pos _d"]]


class AtPStar:
    """Attribution patching with GradDrop and the fix for queries and keys.

    GradDrop: for each layer the backward pass is taken once more with no gradient through what that layer adds to the
    residual stream. A node's effect has the size of the mean of its |effects| over those passes (without its own layer's,
    in which it is cut off), so direct and indirect effects that cancel on the clean run no longer hide it; the sign is
    plain attribution patching's. Fix: for nodes at queries or keys the softmax is really computed with the changed
    scores, `sum over keys of dm/dpattern . (pattern' - pattern)`, since its slope vanishes where attention saturates.
    Source: Kramar et al. 2024 (arXiv 2403.00745), sections 3.1 and 3.2.
    """

    name: ClassVar[str] = "atp-star"
    cost: ClassVar[str] = "2 forwards + (1 + layers) backwards; at queries and keys 1 / layers forward a node"

    @dataclass(frozen=True)
    class Options:
        """`drop`: whether GradDrop is done. `fix`: whether queries and keys get their exact softmax."""

        drop: bool = True
        fix: bool = True

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method]."""
        spliced = context.spliced
        fixed = [hook for hook in spliced.written if options.fix and points.is_query_or_key(hook)]
        patterns: dict[str, Tensor] = {}
        drop = LayerDrop()
        hooks = drop.hooks(spliced) if options.drop else []
        if fixed:
            require(spliced, "softmax")
        for name in sorted({points.pattern(spliced.hooked.layer(hook)) for hook in fixed}):

            def keep(x: Tensor, name: str = name) -> Tensor:
                patterns[name] = x
                return x

            hooks.append((name, keep))
        _ = context.run  # before the modified pass, whose values differ by rounding
        dropped = list(range(spliced.n_layers)) if options.drop and spliced.n_layers > 1 else []
        in_pieces = _in_pieces(spliced, context.run.n_tokens, fixed)
        captured, value = (None, None) if in_pieces else context.linearise(hooks)
        passes: list[Gradients] = []
        for layer in (None, *dropped):
            drop.layer = layer
            if captured is None or value is None:
                sites, embed = context.gradients(hooks)
                passes.append({**sites, EMBED: embed})
            else:
                inputs = {**{name: captured.x_out[name] for name in spliced.written}, EMBED: captured.embed, **patterns}
                found = context.backward(value, list(inputs.values()), retain=layer != (dropped or [None])[-1])
                passes.append({name: g[0] for name, g in zip(inputs, found, strict=True)})
            context.report(len(passes), len(dropped) + 1, "backward passes")

        blocks = []
        for number, dictionary in enumerate(spliced.dictionaries):
            written = [spliced.canonical(hook) for hook in dictionary.hook_outs]
            if set(written) <= set(fixed):
                effects = exact_softmax(context, written[0], feature_changes(context, number), passes)
            else:
                change = context.feature_changes(number)
                effects = torch.stack([context.slopes(number, g) * change for g in passes])
            slopes = context.slopes(number, passes[0])
            blocks.append(context.feature_block(number, _combined(effects, _own_layer(spliced, written)), slopes))
        for hook in spliced.written:
            if hook in fixed:
                effects = exact_softmax(context, hook, vector_changes(context, hook), passes)
            else:
                change = context.vector_changes(hook)
                effects = torch.stack([(g[hook] * change).sum(-1) for g in passes])
            blocks.append(context.error_block(hook, _combined(effects, _own_layer(spliced, [hook]))))
        change = context.vector_changes(EMBED)
        tokens = torch.stack([(g[EMBED] * change).sum(-1) for g in passes])
        return context.finish([*blocks, context.token_block(_combined(tokens, None))])

    def passes(self, planned: PlannedRun, options: Options) -> Passes:
        """See [CostedMethod][circuitsae.attribution.costs.CostedMethod]."""
        spliced = planned.spliced
        fixed = [hook for hook in spliced.written if options.fix and points.is_query_or_key(hook)]
        nodes = len(fixed) * planned.n_tokens
        for dictionary, positions in zip(spliced.dictionaries, planned.positions, strict=True):
            if {spliced.canonical(hook) for hook in dictionary.hook_outs} <= set(fixed):
                nodes += len(positions)
        dropped = spliced.n_layers if options.drop and spliced.n_layers > 1 else 0
        together = max(1, min(nodes, batch_size(spliced, planned.n_tokens)))
        exact = Passes(nodes / spliced.n_layers, together=together, at_most=planned.guessed and nodes > 0)
        again = dropped if _in_pieces(spliced, planned.n_tokens, fixed) else 0
        return Passes(2 + again, 1 + dropped) + exact


def _in_pieces(spliced: SplicedModel, n_tokens: int, fixed: Sequence[str]) -> bool:
    """Whether the tape is too long to be kept for all passes; patterns, which the fix wants, are on it."""
    return is_long(spliced, n_tokens) and not fixed


def exact_softmax(
    context: Context, hook: str, nodes: Changes, passes: Sequence[Gradients]
) -> Float[Tensor, "passes node"]:
    """Returns effects of nodes at queries or keys: the pattern really changes, what it does is linear.

    Runs the layer's attention up to its pattern with each node at its baseline, so positions, masks, grouped heads and
    caps are the model's own.
    """
    spliced, run = context.spliced, context.run
    layer = spliced.hooked.layer(hook)
    name, start = points.pattern(layer), run.prefix(layer)
    gradients = torch.stack([g[name] for g in passes])
    result = gradients.new_zeros(len(passes), len(nodes.positions))
    seen: dict[str, Tensor] = {}

    def pattern(changed: list[tuple[str, Tensor, Tensor]], size: int) -> Tensor:
        def edit(x: Tensor, at: Tensor, vectors: Tensor) -> Tensor:
            new = x.clone()
            flat = new.flatten(2)
            flat[torch.arange(size, device=x.device), at] += vectors.to(flat)
            return flat.view(x.shape)

        hooks = [(h, lambda x, at=at, vectors=vectors: edit(x, at, vectors)) for h, at, vectors in changed]
        keep = (name, lambda x: seen.__setitem__("pattern", x))
        with torch.no_grad():
            spliced.hooked.forward(run.tokens.expand(size, -1), [*hooks, keep], start=start, stop_at=name)
        return seen.pop("pattern").to(gradients.dtype)

    clean = pattern([], 1)
    size = batch_size(spliced, run.n_tokens)
    for which in torch.arange(len(nodes.positions), device=clean.device).split(size):
        added = nodes.added(which)
        changed = pattern([(h, nodes.positions[which], v) for h, v in added.items()], len(which)) - clean
        result[:, which] = einsum(changed, gradients, "node head query key, run head query key -> run node")
        context.passes["forward"] += len(which) / spliced.n_layers
    return result


def _own_layer(spliced: SplicedModel, hooks: Sequence[str]) -> int | None:
    """Returns the layer whose contribution the nodes are part of; `None` in the residual stream or for several layers."""
    layers = {spliced.hooked.layer(hook) for hook in hooks}
    return layers.pop() if len(layers) == 1 and not any(map(points.is_residual, hooks)) else None


def _combined(effects: Float[Tensor, "passes node"], own: int | None) -> Float[Tensor, "node"]:
    """Returns the sign of the plain effects with the mean size of the others, the own layer's left out."""
    plain, others = effects[0], effects[1:]
    if not len(others):
        return plain
    kept = [layer for layer in range(len(others)) if layer != own]
    return plain.sign() * others[kept].abs().mean(0)
