"""A metric: a frozen dataclass whose fields become options, and one method that turns its words into token ids."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from circuitsae.task.metrics import Answer, BoundMetric, resolve_position
from circuitsae.task.vocabulary import Vocabulary


@dataclass(frozen=True)
class Margin:
    """Logit of the answer minus the largest logit of any other token."""

    name: ClassVar[str] = "margin"
    answer: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        """Returns the metric for prompts of `n_tokens` tokens."""
        answer = vocabulary.token_id(self.answer)
        position = resolve_position(self.position, n_tokens)

        def function(logits: Tensor) -> Tensor:  # [batch 1 d_vocab], since one position is read
            others = logits[:, 0].clone()
            others[:, answer] = -float("inf")
            return logits[:, 0, answer] - others.amax(-1)

        word = vocabulary.string(answer)
        text = f"logit of {word!r} minus the largest other logit"
        description = {"name": self.name, "answer": word, "position": position, "description": text}
        return BoundMetric(function, (position,), description)
