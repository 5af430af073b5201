"""Next tokens' logits as the targets at the top of a graph, in place of the metric."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context
from circuitsae.model.runs import Readout
from circuitsae.task.metrics import BoundMetric
from circuitsae.tracing.options import GraphOptions


@dataclass(frozen=True)
class LogitTarget:
    """One next token whose logit stands at the top of the graph, less the mean of all logits."""

    token_id: int
    position: int
    text: str
    probability: float
    value: float
    slope: float
    readout: Readout

    @property
    def key(self) -> str:
        """The node's key."""
        return names.logit(self.token_id, self.position)


def logit_targets(context: Context, options: GraphOptions) -> list[LogitTarget]:
    """Returns the most probable tokens where the metric reads (else at the last position), until they hold the share.

    Logits lose their mean over the vocabulary, which the softmax does not see; so does the unembedding of circuit-tracer.
    """
    run, n_tokens = context.run, len(context.task.tokens)
    read = context.task.metric.positions if context.task.metric.reads is None else None
    position = read[0] if read is not None and len(read) == 1 else n_tokens - 1
    row = list(run.kept).index(position)
    logits = run.logits.double()
    probabilities = logits[row].softmax(-1)
    top = probabilities.topk(min(options.max_logits, len(probabilities)))
    count = int(torch.searchsorted(top.values.cumsum(0), options.logit_share)) + 1
    slopes = torch.zeros_like(logits[row])
    if context.task.metric.reads is None:
        with torch.enable_grad():
            leaf = run.logits[None].detach().requires_grad_()
            slopes = torch.autograd.grad(context.readout.value(leaf).sum(), leaf)[0][0, row]
        # Logits less their mean sum to zero, so a constant may be taken from all slopes: the one that leaves least to the
        # tokens that are no nodes.
        slopes = slopes - slopes.median()

    def demeaned(token_id: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits[:, 0, token_id] - logits[:, 0].mean(-1)

    found: list[LogitTarget] = []
    for token_id in top.indices[:count].tolist():
        text = context.spliced.vocabulary.string(token_id)
        metric = BoundMetric(demeaned(token_id), (position,), {"name": "logit", "description": f"logit of {text!r}"})
        value = float(logits[row, token_id] - logits[row].mean())
        found.append(
            LogitTarget(
                token_id,
                position,
                text,
                float(probabilities[token_id]),
                value,
                float(slopes[token_id]),
                Readout(metric, n_tokens),
            )
        )
    return found
