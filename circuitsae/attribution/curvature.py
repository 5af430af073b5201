"""Second-order prediction, for metrics whose gradient is zero at the clean run, such as a divergence from it.

With the gradient zero, `m(z + dz) - m(z)` is `1/2 dz . H dz` to second order, where `z` are the logits and `H` the metric's
Hessian by them (for the KL divergence `diag(p) - p p^T`). Of its largest eigenpairs `lambda_i, u_i` that is
`1/2 sum_i lambda_i (u_i . dz)^2`, and `u_i . dz = (J^T u_i) . change` takes one backward pass for all nodes together.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.attribution.context import Context
from circuitsae.attribution.nodes import NodeEffects
from circuitsae.errors import FlatMetricError
from circuitsae.model.runs import Readout
from circuitsae.model.tapes import is_long
from circuitsae.task.metrics import BoundMetric

# Turns of subspace iteration, and how many directions are turned for each that is wanted. An eigenvector's error falls in
# each turn by the ratio of the largest eigenvalue left out to its own: a ranking needs no more.
_TURNS, _MORE = 12, 2


def second_order(context: Context, n_directions: int) -> NodeEffects:
    """Returns the effects that the curvature predicts: half its value along what setting a node to its baseline changes.

    Cost: the clean run, a forward pass, and one backward pass for each of `n_directions`.

    Raises:
        FlatMetricError: There is no curvature either.
    """
    values, directions = principal_curvatures(context.readout, context.run.logits, n_directions)
    found = [context.effects(*gradients).blocks for gradients in _gradients(context, directions)]
    weights = [value / 2 for value in values.tolist()]
    return context.finish(
        [
            replace(
                same[0], slopes=None, effects=sum(w * b.effects.square() for w, b in zip(weights, same, strict=True))
            )
            for same in zip(*found, strict=True)
        ]
    )


def _gradients(
    context: Context, directions: Float[Tensor, "count kept d_vocab"]
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yields, for each direction, the gradients of the logits along it at hook points written and at the embeddings."""
    spliced, n_tokens = context.spliced, len(context.task.tokens)

    def along(direction: Tensor) -> Context:
        probe = copy(context)
        metric = BoundMetric(lambda logits: (logits * direction.to(logits)).sum((1, 2)), context.readout.kept, {})
        probe.readout = Readout(metric, n_tokens)
        return probe

    if is_long(spliced, n_tokens):
        yield from (along(direction).gradients() for direction in directions)
        return
    captured, _ = along(directions[0]).linearise()
    inputs = [*(captured.x_out[name] for name in spliced.written), captured.embed]
    for left, direction in zip(range(len(directions))[::-1], directions, strict=True):
        assert captured.logits is not None
        value = (captured.logits * direction.to(captured.logits)).sum()
        *sites, embed = context.backward(value, inputs, retain=left > 0)
        yield {name: g[0] for name, g in zip(spliced.written, sites, strict=True)}, embed[0]


def principal_curvatures(
    readout: Readout, logits: Float[Tensor, "kept d_vocab"], count: int
) -> tuple[Float[Tensor, " count"], Float[Tensor, "count kept d_vocab"]]:
    """Returns the eigenvalues of largest size of the metric's Hessian by the logits, and their unit eigenvectors.

    By subspace iteration on products with the Hessian, in float64: the model takes no part in it.

    Raises:
        FlatMetricError: There is no curvature either.
    """
    with torch.enable_grad():
        leaf = logits.detach().double().requires_grad_()
        (slope,) = torch.autograd.grad(readout.value(leaf[None]).sum(), leaf, create_graph=True)
        if not slope.requires_grad:
            raise FlatMetricError(str(readout.metric and readout.metric.description.get("description")))
        size = min(_MORE * count, leaf.numel())
        generator = torch.Generator().manual_seed(0)
        basis = torch.randn(leaf.numel(), size, generator=generator, dtype=torch.float64).to(leaf.device)

        def times_hessian(columns: Tensor) -> Tensor:
            rows = columns.T.reshape(-1, *leaf.shape)
            found = [torch.autograd.grad(slope, leaf, row, retain_graph=True)[0] for row in rows]
            return torch.stack(found).flatten(1).T

        for _ in range(_TURNS):
            basis = torch.linalg.qr(times_hessian(basis))[0]
        small = basis.T @ times_hessian(basis)
    if not small.any():
        raise FlatMetricError(str(readout.metric and readout.metric.description.get("description")))
    values, turned = torch.linalg.eigh((small + small.T) / 2)
    best = values.abs().argsort(descending=True)[:count]
    return values[best], (basis @ turned[:, best]).T.reshape(-1, *leaf.shape)
