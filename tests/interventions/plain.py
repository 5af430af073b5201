"""The second road of these tests: TransformerLens' own hooks and dense arrays, nothing of ours but encode and decode."""

from collections.abc import Callable

import torch
from torch import Tensor

import circuitsae as cs

Hook = Callable[..., Tensor | None]


def tokens_of(spliced: cs.SplicedModel, task: cs.Task) -> Tensor:
    return torch.tensor([task.prepare(spliced.vocabulary).tokens])


def metric_of(spliced: cs.SplicedModel, task: cs.Task, hooks: list[tuple[str, Hook]]) -> float:
    """The metric with these hooks."""
    with torch.no_grad():
        logits = spliced.model.run_with_hooks(tokens_of(spliced, task), return_type="logits", fwd_hooks=hooks)
    metric = task.metric
    assert isinstance(metric, cs.LogitDiff)
    assert isinstance(metric.answer, str)
    assert isinstance(metric.foil, str)
    answer, foil = (spliced.vocabulary.token_id(t) for t in (metric.answer, metric.foil))
    return float(logits[0, -1, answer] - logits[0, -1, foil])


def values_of(spliced: cs.SplicedModel, tokens: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What stands at hook points on the clean run, `[pos d]`."""
    kept: dict[str, Tensor] = {}
    hooks = [(name, lambda x, hook, name=name: kept.__setitem__(name, x[0].detach().clone())) for name in names]
    with torch.no_grad():
        spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
    return kept


def dense_of(spliced: cs.SplicedModel, tokens: Tensor, site: str) -> tuple[Tensor, Tensor]:
    """A dictionary's dense activations and error on a prompt."""
    dictionary = spliced.dictionary(site)
    found = values_of(spliced, tokens, [dictionary.hook_in, dictionary.hook_outs[0]])
    encoding = dictionary.encode(found[dictionary.hook_in])
    rebuilt = dictionary.decode(encoding, found[dictionary.hook_in])
    return encoding.features.to_dense(), found[dictionary.hook_outs[0]] - rebuilt
