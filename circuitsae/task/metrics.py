"""Metrics: functions of the logits that give one number a prompt, whose cause a circuit explains.

A metric is a small frozen dataclass that a person can write down (`LogitDiff(" Mary", " John")`); `resolve` turns its
words into token ids of one model and gives the function itself. Where an answer is asked for, several may be given, and
several positions: `LogitDiff((" Mary", " Anna"), " John", position=(-1, -3))`. Targets that are no answers (a loss, a
divergence, a feature inside the model) are in [circuitsae.task.targets][].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.errors import TaskError
from circuitsae.task.vocabulary import Vocabulary

_MOST_QUOTED = 4
Answer = str | int | Sequence[str] | Sequence[int]
Positions = int | Sequence[int]


@dataclass(frozen=True)
class BoundMetric:
    """A metric with its words turned into token ids, for prompts of one length.

    Attributes:
        function: Logits at `positions`, `[batch len(positions) d_vocab]`, to one number a prompt, `[batch]`. Where
            `reads` is set it gets that activation instead, `[batch len(positions) d]`.
        positions: The positions that it reads, ascending; `None` where it reads them all.
        description: What a saved circuit keeps of it (JSON-able): name, parameters, token ids, a sentence.
        reads: The hook point whose activation it reads; `None` for the logits.
        completes: For a metric that can't be known before the model and its tokens are: gives the metric itself.
    """

    function: Callable[[Float[Tensor, "batch pos d"]], Float[Tensor, "batch"]]
    positions: tuple[int, ...] | None
    description: dict[str, Any]
    reads: str | None = None
    completes: "Callable[[Any, Sequence[int]], BoundMetric] | None" = None

    def __call__(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch"]:
        """Returns the metric of each prompt.

        Raises:
            TaskError: It is not complete yet.
        """
        if self.completes is not None:
            raise TaskError(
                f"The metric {self.description['name']!r} depends on the model; complete(spliced, tokens) gives it."
            )
        return self.function(x)

    def complete(self, spliced: Any, tokens: Sequence[int]) -> "BoundMetric":
        """Returns the metric of one prompt on one `SplicedModel`; itself where it depends on neither.

        Raises:
            TaskError: It does not fit the model or the prompt.
        """
        return self if self.completes is None else self.completes(spliced, tokens)


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


def resolve_positions(positions: Positions, n_tokens: int) -> tuple[int, ...]:
    """Returns one or several positions, counted from the start, ascending.

    Raises:
        TaskError: None was given, one twice, or the prompt is shorter.
    """
    given = [positions] if isinstance(positions, int) else list(positions)
    found = sorted(resolve_position(p, n_tokens) for p in given)
    if not found or len(set(found)) < len(found):
        raise TaskError(f"The positions {given} of a prompt of {n_tokens} tokens; expected at least one, each once.")
    return tuple(found)


@dataclass(frozen=True)
class LogitDiff:
    """Logit of the answer minus logit of the foil, at one position.

    Of several answers, foils or positions it takes the mean.

    Example:
        >>> LogitDiff(" Mary", " John").position
        -1
    """

    name: ClassVar[str] = "logit-diff"
    answer: Answer
    foil: Answer
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer, foil = token_ids(vocabulary, self.answer), token_ids(vocabulary, self.foil)
        both = set(answer) & set(foil)
        if both:
            raise TaskError(
                f"The answer and the foil are the same token, {vocabulary.string(min(both))!r}; expected two."
            )

        def function(logits: Tensor) -> Tensor:
            return logits[..., answer].mean(-1) - logits[..., foil].mean(-1)

        text = f"logit of {quoted(vocabulary, answer)} minus logit of {quoted(vocabulary, foil)}"
        return bind(self, vocabulary, n_tokens, function, text, answer=answer, foil=foil)


@dataclass(frozen=True)
class Logit:
    """Logit of the answer, at one position; the mean over several answers or positions."""

    name: ClassVar[str] = "logit"
    answer: Answer
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = token_ids(vocabulary, self.answer)
        text = f"logit of {quoted(vocabulary, answer)}"
        return bind(self, vocabulary, n_tokens, lambda logits: logits[..., answer].mean(-1), text, answer=answer)


@dataclass(frozen=True)
class LogProb:
    """Natural logarithm of the answer's probability, at one position.

    Of several answers: of the probability that it is one of them. Of several positions: the mean.
    """

    name: ClassVar[str] = "log-prob"
    answer: Answer
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = token_ids(vocabulary, self.answer)

        def function(logits: Tensor) -> Tensor:
            return logits.log_softmax(-1)[..., answer].logsumexp(-1)

        text = f"log-probability of {quoted(vocabulary, answer)}"
        return bind(self, vocabulary, n_tokens, function, text, answer=answer)


@dataclass(frozen=True)
class Probability:
    """Probability of the answer, at one position; the sum over several answers, the mean over several positions."""

    name: ClassVar[str] = "probability"
    answer: Answer
    position: Positions = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """See [Metric.resolve][circuitsae.task.metrics.Metric.resolve]."""
        answer = token_ids(vocabulary, self.answer)
        text = f"probability of {quoted(vocabulary, answer)}"
        return bind(
            self, vocabulary, n_tokens, lambda logits: logits.softmax(-1)[..., answer].sum(-1), text, answer=answer
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


def token_ids(vocabulary: Vocabulary, answer: Answer) -> list[int]:
    """Returns the token ids of one answer, or of several.

    Raises:
        TaskError: There is none, one is given twice, or one is not a single token.
    """
    several = not isinstance(answer, (str, int)) and isinstance(answer, Sequence)
    found = [vocabulary.token_id(a) for a in answer] if several else [vocabulary.token_id(answer)]  # type: ignore[arg-type]
    if not found or len(set(found)) < len(found):
        raise TaskError(f"The answers {answer!r} can't be used; expected at least one, each once.")
    return found


def quoted(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """Returns tokens as a sentence shows them: `' Mary' or ' Anna'`; of many the first few."""
    shown = " or ".join(repr(vocabulary.string(i)) for i in ids[:_MOST_QUOTED])
    return shown if len(ids) <= _MOST_QUOTED else f"{shown} or {len(ids) - _MOST_QUOTED} others"


def bind(
    metric: Any,
    vocabulary: Vocabulary,
    n_tokens: int,
    function: Callable[[Float[Tensor, "batch pos d_vocab"]], Float[Tensor, "batch pos"]],
    text: str,
    **ids: Sequence[int],
) -> BoundMetric:
    """Returns a metric of the common kind: a function of the logits at a position, averaged over the positions.

    One answer and one position are described as such, several as lists.
    """
    positions = resolve_positions(metric.position, n_tokens)
    description = {
        "name": metric.name,
        **{k: single([vocabulary.string(i) for i in v]) for k, v in ids.items()},
        "position": single(positions),
        "token_ids": {k: single(v) for k, v in ids.items()},
        "description": text,
    }
    return BoundMetric(lambda logits: function(logits).mean(1), positions, description)


def single(values: Sequence[Any]) -> Any:
    """Returns the value of a list of one, or the list."""
    return values[0] if len(values) == 1 else list(values)


def incomplete(metric: Any, completes: Callable[[Any, Sequence[int]], BoundMetric], text: str) -> BoundMetric:
    """Returns a metric that waits for the model and its tokens."""

    def never(x: Tensor) -> Tensor:
        raise TaskError(f"The metric {metric.name!r} depends on the model.")

    return BoundMetric(never, None, {"name": metric.name, "description": text}, completes=completes)


def described(bound: BoundMetric, **more: Any) -> BoundMetric:
    """Returns the metric with more in its description."""
    return replace(bound, description={**bound.description, **more})


def clean_logits(spliced: Any, tokens: Sequence[int], positions: Sequence[int]) -> Float[Tensor, "pos d_vocab"]:
    """Returns the bare model's logits of one prompt at some positions. Cost: one forward pass."""
    with torch.no_grad():
        batch = torch.tensor([list(tokens)], device=spliced.device)
        return spliced.hooked.forward(batch, logits_at=list(positions))[0].detach()
