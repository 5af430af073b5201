"""Generation under intervention: with and without a cache, and by plain hooks, token for token."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae.errors import CancelledError, InputError, NodeError, TaskError
from circuitsae.interventions.generation import choose
from tests.interventions.conftest import PATCH, PROMPT
from tests.interventions.plain import dense_of, tokens_of

SITE = "blocks.2.hook_mlp_out"


@pytest.fixture(scope="module")
def feature(spliced: cs.SplicedModel) -> str:
    task = cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John"))
    return next(r["node"] for r in cs.node_effects(spliced, task).strongest(300) if r["site"] == SITE).split("@")[0]


def plainly(spliced: cs.SplicedModel, feature: str, add: dict[int | None, float], n: int) -> list[int]:
    """Greedy, no cache: adds to a feature at positions (`None`: every one that is not named)."""
    dictionary = spliced.dictionary(SITE)
    row = dictionary.decoder_rows(torch.tensor([int(feature.split("/")[1])])).double()[0]
    ids = spliced.vocabulary.encode(PROMPT)
    start = len(ids)

    def hook(x: Tensor, hook: object) -> Tensor:
        new = x.clone()
        for position in range(x.shape[1]):
            new[0, position] += add.get(position, add.get(None, 0.0)) * row
        return new

    for _ in range(n):
        with torch.no_grad():
            logits = spliced.model.run_with_hooks(torch.tensor([ids]), return_type="logits", fwd_hooks=[(SITE, hook)])
        ids.append(int(logits[0, -1].argmax()))
    return ids[start:]


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_text_equals_plain_hooks(spliced: cs.SplicedModel, feature: str, use_cache: bool) -> None:
    n, length = 3, len(spliced.vocabulary.encode(PROMPT))
    prompt_only = dict.fromkeys(range(length), 4.0)
    cases: list[tuple[Sequence[cs.Intervention], dict[int | None, float]]] = [
        ([cs.Steer(feature, 4.0)], {None: 4.0}),
        ([cs.Add(f"{feature}@*", 4.0)], {None: 4.0}),
        ([cs.Add(f"{feature}@new", 4.0)], {None: 4.0, **dict.fromkeys(range(length), 0.0)}),
        ([cs.Add(f"{feature}@:{length}", 4.0)], {**prompt_only, None: 0.0}),
        ([cs.Add(f"{feature}@{length + 1}:{length + 3}", 40.0)], {length + 1: 40.0, length + 2: 40.0}),
        ([cs.Add(f"{feature}@-1", 2.0), cs.Scale(f"{feature}@-1", 1.0)], {length - 1: 2.0}),
    ]
    for edits, add in cases:
        found = cs.generate(spliced, PROMPT, edits, max_new_tokens=n, use_cache=use_cache, stop_at_end=False)
        assert found.cached is use_cache
        assert list(found.before[0].token_ids) == plainly(spliced, feature, {}, n)
        assert list(found.after[0].token_ids) == plainly(spliced, feature, add, n), edits


def test_cached_sampling_equals_uncached(spliced: cs.SplicedModel, feature: str) -> None:
    edits = [
        cs.Scale(f"{feature}@*", 3.0),
        cs.Ablate("blocks.1.hook_resid_post/error@2:"),
        cs.Scale("token@new", 1.1),
        cs.Set("blocks.0.hook_mlp_out/error@new", 0),
    ]
    how = {"max_new_tokens": 3, "temperature": 1.3, "top_k": 40, "top_p": 0.9, "samples": 2, "seed": 5}
    cached = cs.generate(spliced, PROMPT, edits, **how)
    uncached = cs.generate(spliced, PROMPT, edits, **how, use_cache=False)
    assert cached.cached
    assert not uncached.cached
    for a, b in zip((*cached.before, *cached.after), (*uncached.before, *uncached.after), strict=True):
        assert a.token_ids == b.token_ids
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-9)
    assert cs.generate(spliced, PROMPT, edits, **how).after == cached.after
    assert cs.generate(spliced, PROMPT, edits, **{**how, "seed": 6}).after != cached.after


def test_ablation_uses_the_patch_prompt_in_the_prompt_and_zero_after(
    spliced: cs.SplicedModel, patched: cs.Task, feature: str
) -> None:
    """One step on: what was set is the patch prompt's value at prompt positions, nothing at the token written."""
    active = dense_of(spliced, tokens_of(spliced, cs.Task(PATCH, metric=patched.metric)), SITE)[0]
    index, n = int(feature.split("/")[1]), len(active)
    same = [cs.Set(f"{feature}@{p}", float(active[p, index])) for p in range(n)] + [cs.Set(f"{feature}@new", 0)]
    how = {"max_new_tokens": 2, "temperature": 1.0}
    found = cs.generate(spliced, patched, [cs.Ablate(f"{feature}@*")], **how)
    expected = cs.generate(spliced, patched.prompt, same, **how)
    assert found.after == expected.after
    assert found.before == expected.before


def test_without_edits_both_texts_are_the_same(spliced: cs.SplicedModel) -> None:
    found = cs.generate(spliced, PROMPT, [], max_new_tokens=5, temperature=0.8, samples=2)
    assert found.before == found.after
    assert found.first_difference() is None
    assert "before" in found.side_by_side()
    frame = found.to_dataframe()
    assert list(frame.columns) == ["sample", "run", "step", "token", "token_id", "log_prob"]
    assert len(frame) == sum(len(c.token_ids) for c in (*found.before, *found.after))
    assert frame[(frame["run"] == "before") & (frame["sample"] == 1)]["token"].str.cat() == found.before[1].text


def test_it_stops_at_the_end_token(spliced: cs.SplicedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    free = cs.generate(spliced, PROMPT, [], max_new_tokens=5, stop_at_end=False)
    end = free.before[0].token_ids[2]
    monkeypatch.setattr(type(spliced.vocabulary.tokenizer), "eos_token_id", end, raising=False)
    first = free.before[0].token_ids.index(end)
    assert (
        cs.generate(spliced, PROMPT, [], max_new_tokens=5).before[0].token_ids == free.before[0].token_ids[: first + 1]
    )


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0, -3.0, 0.5]], dtype=torch.float64)
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000

    def shares(**how: float) -> Tensor:
        chosen = choose(logits.expand(20_000, -1), draws, **how)  # type: ignore[arg-type]
        return chosen.bincount(minlength=5) / 20_000

    torch.testing.assert_close(shares(temperature=1.0).double(), logits[0].softmax(-1), atol=2e-4, rtol=0)
    torch.testing.assert_close(shares(temperature=0.5).double(), (2 * logits[0]).softmax(-1), atol=2e-4, rtol=0)
    top2 = torch.tensor([2.0, -math.inf, 1.0, -math.inf, -math.inf], dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(shares(temperature=1.0, top_k=2).double(), top2, atol=2e-4, rtol=0)
    # 0.55 + 0.20 < 0.8 <= 0.55 + 0.20 + 0.12: the third token takes it past top_p and stays.
    kept = logits[0].clone()
    kept[[1, 3]] = -math.inf
    torch.testing.assert_close(shares(temperature=1.0, top_p=0.8).double(), kept.softmax(-1), atol=2e-4, rtol=0)
    torch.testing.assert_close(shares(temperature=1.0, top_p=0.01), torch.tensor([1.0, 0, 0, 0, 0]))
    assert choose(logits, torch.tensor([1 - 1e-17], dtype=torch.float64), temperature=1.0, top_k=1).tolist() == [0]


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"max_new_tokens": 0}, InputError, "max_new_tokens is 0"),
        ({"temperature": -1.0}, InputError, "temperature is -1"),
        ({"temperature": math.nan}, InputError, "temperature is nan"),
        ({"top_p": 0.0}, InputError, "top_p is 0"),
        ({"top_k": 0}, InputError, "top_k is 0"),
        ({"max_new_tokens": 100_000}, TaskError, "context window"),
        ({"edits": [cs.Ablate(f"{SITE}/3@40")]}, NodeError, "past the end"),
        ({"edits": [cs.PathPatch(cs.Ablate(f"{SITE}/3@2"), ["metric"])]}, InputError, "takes edits of nodes"),
        ({"progress": lambda *args: False}, CancelledError, "Cancelled"),
    ],
)
def test_what_cannot_be_is_said(
    spliced: cs.SplicedModel, how: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        cs.generate(spliced, PROMPT, **{"edits": [], "max_new_tokens": 2, **how})  # type: ignore[arg-type]
