"""Next tokens' logits as the targets at the top of a graph, in place of the metric."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context
from circuitsae.errors import SpliceError
from circuitsae.model.probes import close, tolerance
from circuitsae.model.runs import Readout, Run
from circuitsae.model.spliced import SplicedModel
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
    Where a model caps its logits the targets are what the unembedding gives, as in circuit-tracer: the cap is not linear, so
    that rows of capped logits would not add up.

    Raises:
        SpliceError: The model does something to its logits that is neither a factor nor a soft cap.
    """
    run, n_tokens = context.run, len(context.task.tokens)
    read = context.task.metric.positions if context.task.metric.reads is None else None
    position = read[0] if read is not None and len(read) == 1 else n_tokens - 1
    row = list(run.kept).index(position)
    cap = _soft_cap(context.spliced, run)
    logits = (run.logits if cap is None else run.scores)[row].double()
    probabilities = run.logits[row].double().softmax(-1)
    top = probabilities.topk(min(options.max_logits, len(probabilities)))
    count = int(torch.searchsorted(top.values.cumsum(0), options.logit_share)) + 1
    slopes = torch.zeros_like(logits)
    if context.task.metric.reads is None:
        with torch.enable_grad():
            leaf = run.logits[None].detach().requires_grad_()
            slopes = torch.autograd.grad(context.readout.value(leaf).sum(), leaf)[0][0, row]
        # Logits less their mean sum to zero, so a constant may be taken from all slopes: the one that leaves least to the
        # tokens that are no nodes.
        if cap is not None:
            slopes = slopes * (1 - (run.logits[row] / cap).square())
        slopes = slopes - slopes.median()

    def demeaned(token_id: int) -> Callable[[Tensor], Tensor]:
        return lambda logits: logits[:, 0, token_id] - logits[:, 0].mean(-1)

    found: list[LogitTarget] = []
    for token_id in top.indices[:count].tolist():
        text = context.spliced.vocabulary.string(token_id)
        metric = BoundMetric(demeaned(token_id), (position,), {"name": "logit", "description": f"logit of {text!r}"})
        value = float(logits[token_id] - logits.mean())
        found.append(
            LogitTarget(
                token_id,
                position,
                text,
                float(probabilities[token_id]),
                value,
                float(slopes[token_id]),
                Readout(metric, n_tokens, uncapped=cap is not None),
            )
        )
    return found


def _soft_cap(spliced: SplicedModel, run: Run) -> float | None:
    """Returns the c of a model whose logits are `c tanh(scores / c)`, `None` where they are a multiple of the scores."""
    scores, logits, limit = run.scores.double(), run.logits.double(), tolerance(spliced.hooked.dtype)
    cap = getattr(spliced.hooked.cfg, "output_logits_soft_cap", None) or 0.0
    if cap > 0 and close(cap * (scores / cap).tanh(), logits, limit):
        return float(cap)
    if not close(scores * ((scores * logits).sum() / scores.square().sum().clamp_min(1e-300)), logits, limit):
        raise SpliceError(
            f"The logits of {spliced.name} are neither a multiple of what its unembedding gives nor a soft cap of it, so "
            'their rows in a graph would not add up; use targets="metric".'
        )
    return None
