"""What stands behind an attention score: exact sums, and what path patching measures of a pair."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.attribution import attention
from circuitsae.attribution.attention import AttentionScore
from circuitsae.attribution.context import Context
from circuitsae.errors import InputError, SpliceError
from circuitsae.interventions.compiling import compile_edits
from circuitsae.interventions.freezing import clean_hooks, frozen_hooks
from circuitsae.model import points
from circuitsae.model.edits import placed, run_edited
from circuitsae.model.hooks import Watch
from circuitsae.model.runs import forward
from circuitsae.testing.planted import plant_induction
from tests.attribution import architectures

LAYER, HEAD, QUERY, KEY = 2, 3, 3, 2
FAMILIES = ["gpt2", "llama", "gemma2", "neox", "olmo2"]
CAP = 0.5  # small enough that it bends the scores
EVERY = 10**6


@pytest.fixture(scope="module", params=FAMILIES)
def session(request: pytest.FixtureRequest) -> Iterator[cs.Session]:
    model = architectures.bridge(request.param)
    if request.param == "gemma2":
        for block in model.blocks:
            block.attn.original_component.attn_logit_softcapping = CAP
    kinds = [
        architectures.dictionary("blocks.0.hook_resid_post"),
        architectures.dictionary("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=1),
    ]
    spliced = cs.SplicedModel(model, kinds, prepend_bos=False)
    yield cs.Session(spliced, cs.Task(architectures.TOKENS, metric=cs.LogitDiff(3, 4)), baseline="zero")


def ask(session: cs.Session, query: int = QUERY, key: int = KEY, **options: Any) -> AttentionScore:
    return cs.attention(session, LAYER, HEAD, query, key, **{"top": EVERY, **options})


def observed(session: cs.Session) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores, cap undone, and the pattern of the head, as the model computes them by itself."""
    found: dict[str, torch.Tensor] = {}
    hooked, attn = session.spliced.hooked, f"blocks.{LAYER}.attn."
    names = [attn + "hook_attn_scores", attn + "hook_pattern"]
    hooked.attempt(torch.tensor([architectures.TOKENS]), [(n, Watch(found, n)) for n in names])
    return uncapped(session, found[names[0]][0, HEAD]), found[names[1]][0, HEAD]


def uncapped(session: cs.Session, scores: torch.Tensor) -> torch.Tensor:
    capped = session.spliced.hooked.family.startswith("Gemma2")
    return CAP * torch.atanh(scores / CAP) if capped else scores


def patched(session: cs.Session, *senders: tuple[str, str, int]) -> float:
    """The score when each sender is ablated as seen by what queries (q) or keys (k) of one position are made of.

    Path patching by hand: nodes between, patterns and all normalisations held. (Inputs of the heads' own would normalise
    anew.)
    """
    context: Context = session.context.asking("ablation")
    own = points.query_and_key_scales(context.spliced.hooked, LAYER)
    held = [*frozen_hooks(context, attention="frozen", normalisation="frozen"), *clean_hooks(context, own)]
    changes: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for node, side, at in senders:
        name, read = f"blocks.{LAYER}.attn.{side}.hook_in", dict[str, torch.Tensor]()
        edits = [placed(edit, 1) for edit in compile_edits(context, cs.Ablate(node))]
        with torch.no_grad():
            run_edited(
                context.spliced,
                context.run,
                context.readout,
                edits,
                2,
                held=True,
                extra=[*held, (name, Watch(read, name))],
            )
        changes.setdefault(name, []).append((at, read[name][1, at] - read[name][0, at]))

    def change(name: str, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for at, by in changes[name]:
            x[:, at] += by
        return x

    found: dict[str, torch.Tensor] = {}
    scores = f"blocks.{LAYER}.attn.hook_attn_scores"
    hooks = [*held, *((name, partial(change, name)) for name in changes), (scores, Watch(found, scores))]
    with torch.no_grad():
        forward(context.spliced, context.batch, context.readout, extra=hooks)
    return float(uncapped(session, found[scores][0, HEAD])[QUERY, KEY])


def strong(found: Sequence[Any], key: str) -> list[str]:
    names = [getattr(each, key) for each in found]
    return [n for n in dict.fromkeys(names) if "/" in n and "error" not in n][:2]


@pytest.mark.parametrize("key", [KEY, QUERY])
def test_pairs_and_sides_add_up_to_the_score(session: cs.Session, key: int) -> None:
    scores, pattern = observed(session)
    plain, relative = ask(session, key=key, relative=False), ask(session, key=key)
    # Rotary angles are computed in float32, by kernels that round differently from one run to another.
    assert plain.score == pytest.approx(float(scores[QUERY, key]), abs=1e-6)
    assert plain.weight == pytest.approx(float(pattern[QUERY, key]), abs=1e-6)
    seen = pattern[QUERY] > 0
    mean = float((pattern[QUERY, seen] * scores[QUERY, seen]).sum())
    for found, total in ((plain, float(scores[QUERY, key])), (relative, float(scores[QUERY, key]) - mean)):
        assert found.n_pairs == len(found.pairs)
        assert found.total == pytest.approx(total, abs=1e-6)  # transformers computes some softmaxes in float32
        assert found.held == pytest.approx(found.total, abs=1e-10)
        for side in (found.queries, found.keys):
            assert sum(node.contribution for node in side) == pytest.approx(found.total, abs=1e-10)
        by_query = {node.node: node.contribution for node in found.queries}
        for node in strong(found.pairs, "query"):
            own = sum(pair.contribution for pair in found.pairs if pair.query == node)
            assert own == pytest.approx(by_query[node], abs=1e-10)


def test_a_relative_pair_is_the_pair_less_its_mean_over_keys(session: cs.Session) -> None:
    _, pattern = observed(session)
    relative = {(pair.query, pair.key): pair.contribution for pair in ask(session).pairs}
    expected = dict.fromkeys(relative, 0.0)
    for key in range(QUERY + 1):
        if pattern[QUERY, key] == 0:
            continue
        for pair in ask(session, key=key, relative=False).pairs:
            ends = pair.query, pair.key
            expected[ends] = expected.get(ends, 0.0) + pair.contribution * (
                float(key == KEY) - float(pattern[QUERY, key])
            )
    expected = {ends: value for ends, value in expected.items() if ends in relative or abs(value) > 1e-6}
    assert expected.keys() == relative.keys()
    ours, theirs = (torch.tensor([values[ends] for ends in relative]) for values in (relative, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # transformers computes some softmaxes in float32


def test_removing_a_node_from_what_the_head_reads_changes_the_score_by_its_pairs(session: cs.Session) -> None:
    found = ask(session, relative=False)
    clean = patched(session)
    assert clean == pytest.approx(found.score, abs=1e-6)
    u, v = strong(found.queries, "node")[0], strong(found.keys, "node")[0]
    at_query = {node.node: node.contribution for node in found.queries}
    at_key = {node.node: node.contribution for node in found.keys}
    without_u, without_v = patched(session, (u, "q", QUERY)), patched(session, (v, "k", KEY))
    assert without_u - clean == pytest.approx(-at_query[u], abs=1e-6)
    assert without_v - clean == pytest.approx(-at_key[v], abs=1e-6)
    without_both = patched(session, (u, "q", QUERY), (v, "k", KEY))
    pair = next(p.contribution for p in found.pairs if (p.query, p.key) == (u, v))
    assert pair != 0
    assert without_both - without_u - without_v + clean == pytest.approx(pair, abs=1e-6)


def test_the_strongest_are_found_block_by_block() -> None:
    generator = torch.Generator().manual_seed(0)
    # lengths of several orders, so that most blocks can't hold one of the strongest
    lengths = torch.logspace(0, -4, 60, dtype=torch.float64)[torch.randperm(60, generator=generator)]
    a, b = (torch.randn(60, 5, generator=generator, dtype=torch.float64) * lengths[:, None] for _ in range(2))
    b[7] = 0
    found, count = attention._strongest_pairs(a, b, 9, budget=8 * 4 * 7 * 7)  # pyright: ignore[reportPrivateUsage]
    assert count == 60 * 59
    every = a @ b.T
    order = every.abs().flatten().argsort(descending=True)[:9].tolist()
    assert [(u, v) for _, u, v in found] == [(n // 60, n % 60) for n in order]
    assert [value for value, _, _ in found] == pytest.approx(every.flatten()[order].tolist(), rel=1e-12)


def test_the_planted_reason_comes_first_and_alone() -> None:
    planted = plant_induction(1)
    found = cs.attention(cs.Session(planted.spliced, planted.task), 1, 0, -1, 2, top=5)
    first, *others = found.pairs
    key = next(node for node in planted.nodes if node.startswith("blocks.0.hook_attn_out") and node.endswith("@2"))
    # the query that is A, and the mark that the key comes after A: a product of 1 by 1 by 4, less its mean
    query = next(node for node in planted.nodes if node.startswith("blocks.0.hook_resid_pre") and node.endswith("@3"))
    assert (first.query, first.key) == (query, key)
    assert first.contribution == pytest.approx(4 * (1 - found.weight), abs=1e-6)
    assert all(abs(other.contribution) < 0.1 * first.contribution for other in others)


def test_a_result_prints_and_exports() -> None:
    planted = plant_induction()
    found = cs.attention(cs.Session(planted.spliced, planted.task), 1, 0, 3, 2, top=2)
    assert str(found).splitlines()[0].startswith("head 1.0: ")
    assert found.pairs[0].query in str(found)
    assert json.loads(json.dumps(found.to_json()))["pairs"][0]["contribution"] == found.pairs[0].contribution
    assert found.to_dataframe()["contribution"].tolist() == [p.contribution for p in found.pairs]
    assert next(iter(found.records()))["key_token"] == found.token_strings[2]


def test_what_there_is_no_score_of_is_said() -> None:
    planted = plant_induction()
    session = cs.Session(planted.spliced, planted.task)
    for arguments, said in (
        ((2, 0, 3, 2), "layer is 2"), ((1, 1, 3, 2), "head is 1"), ((1, 0, 4, 2), "query is 4"), ((1, 0, 1, 2), "after it")
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            cs.attention(session, *arguments)
    with pytest.raises(InputError, match="top is 0"):
        cs.attention(session, 1, 0, 3, 2, top=0)


def test_a_window_hides_what_lies_before_it() -> None:
    spliced = architectures.with_transcoders(architectures.bridge("gemma2"))
    session = cs.Session(spliced, cs.Task(architectures.TOKENS, metric=cs.LogitDiff(3, 4)), baseline="zero")
    with pytest.raises(InputError, match="window"):
        cs.attention(session, 2, 0, 8, 1)


def test_scores_that_are_no_product_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant_induction()
    attn: Any = planted.spliced.model.blocks[1].attn
    whole = attn.hook_attn_scores.forward
    monkeypatch.setattr(attn.hook_attn_scores, "forward", lambda x: whole(x + 0.01 * x.clamp(-9, 9) ** 2))
    with pytest.raises(SpliceError, match=r"blocks\.1\.attn\.hook_attn_scores"):
        cs.attention(cs.Session(planted.spliced, planted.task), 1, 0, 3, 2)
