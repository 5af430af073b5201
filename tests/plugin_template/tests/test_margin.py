"""The plugin's own test: the metric's value against the definition, on logits made by hand."""

import pytest
import torch
from circuitsae_example.metrics import Margin

from circuitsae.errors import TaskError
from circuitsae.task.vocabulary import Vocabulary


def test_margin_is_the_answers_logit_minus_the_best_other() -> None:
    metric = Margin(answer=1).resolve(Vocabulary(None, d_vocab=3), n_tokens=4)
    assert metric.positions == (3,)
    logits = torch.tensor([[[2.0, 5.0, 3.0]], [[2.0, 5.0, 9.0]]])
    assert metric(logits).tolist() == [2.0, -4.0]


def test_an_answer_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(TaskError, match="outside the vocabulary"):
        Margin(answer=3).resolve(Vocabulary(None, d_vocab=3), n_tokens=4)
