"""Metrics: functions of the logits that give one number a prompt, whose cause a circuit explains.

A metric is a small frozen dataclass that a person can write down (`LogitDiff(" Mary", " John")`); `resolve` turns its
words into token ids of one model and gives the function itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from circuitsae.errors import TaskError
from circuitsae.task.vocabulary import Vocabulary

Answer = str | int


@dataclass(frozen=True)
class BoundMetric:
    """A metric with its words turned into token ids, for prompts of one length.

    Attributes:
        function: Logits at `positions`, `[batch len(positions) d_vocab]`, to one number a prompt, `[batch]`.
        positions: The positions whose logits it reads, ascending; `None` where it reads them all.
        description: What a saved circuit keeps of it (JSON-able): name, parameters, token ids, a sentence.
    """

    function: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch"]]
    positions: tuple[int, ...] | None
    description: dict[str, Any]

    def __call__(self, logits: Float[Tensor, "batch pos d_vocab"]) -> Float[Tensor, "batch"]:
        """Returns the metric of each prompt."""
        return self.function(logits)


@runtime_checkable
class Metric(Protocol):
    """What a metric plugin provides."""

    name: ClassVar[str]

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """Returns the metric for prompts of `n_tokens` tokens.

        Raises:
            TaskError: An answer is not one token, or a position is outside the prompt.
        """
        ...


def resolve_position(position: int, n_tokens: int) -> int:
    """Returns a position counted from the start; negative ones count from the end.

    Raises:
        TaskError: The prompt is shorter than that.
    """
    if not -n_tokens <= position < n_tokens:
        raise TaskError(
            f"Position {position} is outside the prompt of {n_tokens} tokens; expected {-n_tokens} to {n_tokens - 1}."
        )
    return position % n_tokens


@dataclass(frozen=True)
class LogitDiff:
    """Logit of the answer minus logit of the foil, at one position.

    Example:
        >>> LogitDiff(" Mary", " John").position
        -1
    """

    name: ClassVar[str] = "logit-diff"
    answer: Answer
    foil: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer, foil = vocabulary.token_id(self.answer), vocabulary.token_id(self.foil)
        if answer == foil:
            raise TaskError(f"The answer and the foil are the same token, {vocabulary.string(answer)!r}; expected two.")

        def function(logits: Tensor) -> Tensor:
            return logits[:, 0, answer] - logits[:, 0, foil]

        text = f"logit of {vocabulary.string(answer)!r} minus logit of {vocabulary.string(foil)!r}"
        return _bound(self, vocabulary, n_tokens, function, text, answer=answer, foil=foil)


@dataclass(frozen=True)
class Logit:
    """Logit of the answer, at one position."""

    name: ClassVar[str] = "logit"
    answer: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = vocabulary.token_id(self.answer)
        text = f"logit of {vocabulary.string(answer)!r}"
        return _bound(self, vocabulary, n_tokens, lambda logits: logits[:, 0, answer], text, answer=answer)


@dataclass(frozen=True)
class LogProb:
    """Natural logarithm of the answer's probability, at one position."""

    name: ClassVar[str] = "log-prob"
    answer: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = vocabulary.token_id(self.answer)
        text = f"log-probability of {vocabulary.string(answer)!r}"
        return _bound(
            self, vocabulary, n_tokens, lambda logits: logits[:, 0].log_softmax(-1)[:, answer], text, answer=answer
        )


@dataclass(frozen=True)
class Probability:
    """Probability of the answer, at one position."""

    name: ClassVar[str] = "probability"
    answer: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = vocabulary.token_id(self.answer)
        text = f"probability of {vocabulary.string(answer)!r}"
        return _bound(
            self, vocabulary, n_tokens, lambda logits: logits[:, 0].softmax(-1)[:, answer], text, answer=answer
        )


@dataclass(frozen=True)
class Custom:
    """Any function of all logits, `[batch pos d_vocab]` to `[batch]`, that torch can differentiate.

    A circuit traced with it records its name only: it can't be computed again from the saved file.
    """

    name: ClassVar[str] = "custom"
    function: Callable[[Tensor], Tensor]

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        text = getattr(self.function, "__name__", type(self.function).__name__)

        def function(logits: Tensor) -> Tensor:
            value = self.function(logits)
            if not isinstance(value, Tensor) or value.shape not in (logits.shape[:1], ()):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TaskError(
                    f"The metric {text!r} gave {got}; expected one number a prompt, a tensor of shape "
                    f"({logits.shape[0]},)."
                )
            return value.reshape(-1) if value.ndim else value.expand(logits.shape[0])

        return BoundMetric(function, None, {"name": self.name, "description": text})


def _bound(
    metric: Any, vocabulary: Vocabulary, n_tokens: int, function: Callable[[Tensor], Tensor], text: str, **ids: int
) -> BoundMetric:
    """Builds the common case: logits read at one position."""
    position = resolve_position(metric.position, n_tokens)
    strings = {k: vocabulary.string(v) for k, v in ids.items()}
    description = {"name": metric.name, **strings, "position": position, "token_ids": ids, "description": text}
    return BoundMetric(function, (position,), description)
