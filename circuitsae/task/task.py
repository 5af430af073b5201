"""A task: a prompt, optionally a counterfactual, and the metric that is to be explained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from circuitsae.errors import TaskError
from circuitsae.task.metrics import BoundMetric, Custom, Metric
from circuitsae.task.vocabulary import Vocabulary


@dataclass(frozen=True)
class Task:
    """A question to a model.

    Args:
        prompt: Text (the model's BOS is added as the dictionaries expect it) or token ids (taken as they are).
        metric: What to explain, such as `LogitDiff(" Mary", " John")`, or any function of the logits
            `[batch pos d_vocab]` that gives one number a prompt.
        patch: A counterfactual prompt of equal length in tokens; its values are then the default baseline.

    Example:
        >>> from circuitsae.task.metrics import LogitDiff
        >>> Task("The keys to the cabinet", metric=LogitDiff(" are", " is")).patch is None
        True
    """

    prompt: str | Sequence[int]
    metric: Metric | Callable[..., Any]
    patch: str | Sequence[int] | None = None

    def prepare(self, vocabulary: Vocabulary, n_ctx: int | None = None) -> "PreparedTask":
        """Turns the words into token ids of one model.

        Raises:
            TaskError: Empty or overlong prompt, prompt and patch of unequal length, an answer that is not one token.
        """
        tokens = vocabulary.encode(self.prompt)
        if n_ctx is not None and len(tokens) > n_ctx:
            raise TaskError(f"The prompt is {len(tokens)} tokens long; this model's context window holds {n_ctx}.")
        patch = None
        if self.patch is not None:
            patch = vocabulary.encode(self.patch)
            if len(patch) != len(tokens):
                raise TaskError(
                    f"The prompt has {len(tokens)} tokens and the patch prompt {len(patch)}; expected equal lengths "
                    f"(prompt: {_spread(vocabulary, tokens)}; patch: {_spread(vocabulary, patch)})."
                )
        metric = self.metric
        if not isinstance(metric, Metric):
            if not callable(metric):
                raise TaskError(
                    f"{metric!r} is not a metric; expected one such as LogitDiff(' Mary', ' John'), or a function of "
                    "the logits."
                )
            metric = Custom(metric)
        return PreparedTask(
            prompt=self.prompt if isinstance(self.prompt, str) else None,
            tokens=tuple(tokens),
            strings=tuple(vocabulary.strings(tokens)),
            patch=self.patch if isinstance(self.patch, str) else None,
            patch_tokens=None if patch is None else tuple(patch),
            patch_strings=None if patch is None else tuple(vocabulary.strings(patch)),
            metric=_bound(metric, metric.resolve(vocabulary, len(tokens))),
        )


@dataclass(frozen=True)
class PreparedTask:
    """A task in one model's tokens. `prompt` and `patch` are `None` where token ids were given."""

    prompt: str | None
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    patch: str | None
    patch_tokens: tuple[int, ...] | None
    patch_strings: tuple[str, ...] | None
    metric: BoundMetric


def _bound(metric: Metric, resolved: Any) -> BoundMetric:
    """Returns a metric as it is, or a plain function of all logits that a plugin's `resolve` gives."""
    if isinstance(resolved, BoundMetric):
        return resolved
    if not callable(resolved):
        raise TaskError(
            f"The metric {metric.name!r} resolves to {type(resolved).__name__}; expected a BoundMetric, or a function of "
            "the logits [batch pos d_vocab] that gives one number a prompt."
        )
    function = Custom(cast(Callable[[Tensor], Tensor], resolved)).resolve(Vocabulary(None, 0), 0).function
    fields = {name: value for name, value in vars(metric).items() if isinstance(value, str | int | float)}
    return BoundMetric(function, None, {"name": metric.name, **fields, "description": metric.name})


def _spread(vocabulary: Vocabulary, tokens: Sequence[int]) -> str:
    text = " ".join(repr(s) for s in vocabulary.strings(tokens[:24]))
    return text + (" ..." if len(tokens) > 24 else "")
