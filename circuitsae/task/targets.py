"""Targets that are not one answer: divergence, loss, the likeliest tokens, a feature or a direction inside the model.

They are metrics like the others, but some know what they compare with only once the model and the prompt are there
(`BoundMetric.complete`), and some read an activation in place of the logits (`BoundMetric.reads`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.errors import TaskError
from circuitsae.task.metrics import (
    BoundMetric,
    Positions,
    bind,
    clean_logits,
    incomplete,
    resolve_position,
    resolve_positions,
    single,
)
from circuitsae.task.vocabulary import Vocabulary


@dataclass(frozen=True)
class Divergence:
    """Kullback-Leibler divergence of the model's distribution from its own clean one, `KL(clean || now)`, in nats.

    The mean over positions. It is zero on the clean run and smallest there, so its gradient vanishes: methods that predict
    from it are refused, and so are graphs; `auto` predicts from its curvature, `ablation`, `integrated-gradients` and
    interventions explain it as others. Cost: one more forward pass.
    """

    name: ClassVar[str] = "divergence"
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        positions = resolve_positions(self.position, n_tokens)
        text = "divergence from the clean distribution"

        def complete(spliced: Any, tokens: Sequence[int]) -> BoundMetric:
            clean = clean_logits(spliced, tokens, positions).log_softmax(-1)

            def function(logits: Tensor) -> Tensor:
                now = logits.log_softmax(-1)
                return (clean.exp() * (clean - now)).sum(-1)

            return bind(self, vocabulary, n_tokens, function, text)

        return incomplete(self, complete, text)


@dataclass(frozen=True)
class Loss:
    """Cross-entropy of a continuation, in nats a token: of the prompt's last tokens, each given all before it.

    Args:
        continuation: The text that the prompt ends with, or how many of its last tokens count.
    """

    name: ClassVar[str] = "loss"
    continuation: str | int

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        wanted: list[int] | None = None
        if isinstance(self.continuation, str):
            wanted = vocabulary.encode(self.continuation)
            if vocabulary.prepend_bos and wanted[:1] == [vocabulary.bos_token_id]:
                wanted = wanted[1:]
        count = len(wanted) if wanted is not None else int(self.continuation)
        if not 1 <= count < n_tokens:
            raise TaskError(
                f"The continuation is {count} tokens of a prompt of {n_tokens}; expected 1 to {n_tokens - 1}, since the "
                "first token is not predicted."
            )
        text = f"loss on the last {count} tokens"

        def complete(spliced: Any, tokens: Sequence[int]) -> BoundMetric:
            last = list(tokens[-count:])
            if wanted is not None and last != wanted:
                raise TaskError(
                    f"The prompt ends with {''.join(vocabulary.strings(last))!r}, not with the continuation "
                    f"{self.continuation!r}; expected the continuation as the prompt's end."
                )
            ids = torch.tensor(last, device=spliced.device)

            def function(logits: Tensor) -> Tensor:
                chosen = logits.log_softmax(-1).gather(-1, ids.expand(logits.shape[0], -1)[..., None])
                return -chosen[..., 0].mean(1)

            positions = tuple(range(n_tokens - count - 1, n_tokens - 1))
            description = {
                "name": self.name,
                "continuation": vocabulary.strings(last),
                "positions": list(positions),
                "token_ids": {"continuation": last},
                "description": text,
            }
            return BoundMetric(function, positions, description)

        return incomplete(self, complete, text)


@dataclass(frozen=True)
class TopLogits:
    """The likeliest next tokens together: each one's logit above the mean logit, weighted by its clean probability.

    Tokens are taken from the top until their probabilities add up to `probability`, at most `limit` of them
    (circuit-tracer's default targets); the weights stay what they are on the clean run. Cost: one more forward pass.
    """

    name: ClassVar[str] = "top-logits"
    probability: float = 0.95
    limit: int = 10
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        if not 0 < self.probability <= 1 or self.limit < 1:
            raise TaskError(
                f"The likeliest tokens until {self.probability} of the probability, at most {self.limit}; expected a "
                "share above 0 and at most 1, and at least one token."
            )
        position = resolve_position(self.position, n_tokens)

        def complete(spliced: Any, tokens: Sequence[int]) -> BoundMetric:
            probabilities = clean_logits(spliced, tokens, [position])[0].double().softmax(-1)
            top = probabilities.topk(min(self.limit, len(probabilities)))
            count = int((top.values.cumsum(0) < self.probability).sum()) + 1
            ids, weights = top.indices[:count], top.values[:count]

            def function(logits: Tensor) -> Tensor:
                return ((logits[..., ids] - logits.mean(-1, keepdim=True)) * weights.to(logits.dtype)).sum(-1)

            strings = [vocabulary.string(int(i)) for i in ids]
            text = f"logits of the {len(strings)} likeliest tokens, weighted: {', '.join(map(repr, strings))}"
            bound = bind(self, vocabulary, n_tokens, function, text, answer=ids.tolist())
            return BoundMetric(
                bound.function, bound.positions, {**bound.description, "probabilities": single(weights.tolist())}
            )

        return incomplete(self, complete, "logits of the likeliest tokens")


@dataclass(frozen=True)
class Feature:
    """The pre-activation of one feature at one position: equal to its activation where it is active.

    Args:
        node: The feature's key, such as `blocks.3.hook_resid_post/17@5`; `@-1` is not understood, positions count from
            the start.
    """

    name: ClassVar[str] = "feature"
    node: str

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        key = names.parse(self.node)
        if key.kind != "feature" or not isinstance(key.position, int):
            raise TaskError(f"{self.node!r} is not a feature at one position; expected 'SITE/INDEX@POSITION'.")
        position, index, site = resolve_position(key.position, n_tokens), int(key.index or 0), str(key.site)
        text = f"pre-activation of {self.node}"

        def complete(spliced: Any, tokens: Sequence[int]) -> BoundMetric:
            number = spliced.dictionary_number(site)
            dictionary = spliced.dictionaries[number]
            if index >= dictionary.d_sae:
                raise TaskError(f"{self.node!r} is outside its dictionary, which has {dictionary.d_sae} features.")
            if position not in spliced.kept_positions(n_tokens):
                raise TaskError(f"{self.node!r} is at a skipped position, where no dictionary is applied.")

            def function(x: Tensor) -> Tensor:
                rows = torch.arange(x.shape[0], device=x.device)
                wide = x[:, 0] if x.dtype in (torch.float32, torch.float64) else x[:, 0].float()
                return dictionary.pre_activations(wide, rows, torch.full_like(rows, index))

            description = {"name": self.name, "node": self.node, "position": position, "description": text}
            return BoundMetric(function, (position,), description, reads=spliced.reads[number])

        return incomplete(self, complete, text)


@dataclass(frozen=True)
class Direction:
    """The activation of a hook point along a direction, `x . vector`, at one position; the mean over several.

    Args:
        hook: The hook point, such as `blocks.3.hook_resid_post`.
        vector: As many numbers as the activation has; not normalised.
        position: Where.
    """

    name: ClassVar[str] = "direction"
    hook: str
    vector: Sequence[float] | Tensor
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        positions = resolve_positions(self.position, n_tokens)
        vector = torch.as_tensor(self.vector, dtype=torch.float64).detach().flatten()

        def function(x: Tensor) -> Tensor:
            if x.shape[-1] != len(vector):
                raise TaskError(
                    f"The direction has {len(vector)} numbers, the activation {self.hook!r} {x.shape[-1]}; expected the "
                    "same."
                )
            return (x @ vector.to(x)).mean(1)

        description = {
            "name": self.name,
            "hook": self.hook,
            "vector": [float(v) for v in vector],
            "position": single(positions),
            "description": f"{self.hook} along a direction",
        }
        return BoundMetric(function, positions, description, reads=self.hook)
