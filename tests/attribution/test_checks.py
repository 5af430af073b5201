"""The engine tries splices and freezes on the loaded model, and names the hook point where one is broken."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import circuitsae as cs
from circuitsae.errors import SpliceError
from circuitsae.model import checks
from circuitsae.model.checks import check_freezes, check_splices, verify
from circuitsae.model.spliced import SplicedModel
from tests.attribution.architectures import TOKENS, bridge, dictionary, with_transcoders

model = cache(bridge)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_passed", type(checks._passed)())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox"])
def test_everything_holds_on_a_bridge(name: str) -> None:
    found = [*check_splices(with_transcoders(model(name))), *check_freezes(with_transcoders(model(name)))]
    assert len(found) == 8
    assert [c for c in found if not c.holds] == []


def test_a_normalisation_that_ignores_its_scale_is_named() -> None:
    spliced = with_transcoders(bridge("llama"))
    norm = spliced.model.blocks[1].ln2
    plain = norm.original_component

    def forward(x: Tensor) -> Tensor:
        x = norm.hook_in(x)
        norm.hook_scale((x.square().mean(-1, keepdim=True) + 1e-6).sqrt())  # shown, but not what is used
        return norm.hook_out(plain(x))

    object.__setattr__(norm, "forward", forward)
    verify(spliced)
    with pytest.raises(SpliceError, match=r"scale.*does not hold at 'blocks\.1\.ln2\.hook_scale'"):
        verify(spliced, frozen=True)
    with pytest.raises(SpliceError, match=r"blocks\.1\.ln2\.hook_scale"):
        cs.trace(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)), linearisation="frozen", max_nodes=4)


@pytest.mark.parametrize("name", ["opt", "gptj", "llama4"])
def test_a_pattern_that_is_only_shown_is_named(name: str) -> None:
    """In these families attention gives a copy of its pattern away: what hooks make of it changes nothing."""
    spliced = SplicedModel(model(name), [dictionary("blocks.1.hook_resid_post")], prepend_bos=False)
    shown: list[Tensor] = []
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        plain, changed = (
            spliced.hooked.forward(tokens, [("blocks.0.attn.hook_pattern", lambda x, by=by: shown.append(x) or x * by)])
            for by in (1, 0)
        )
    assert shown[0].abs().sum() > 0 and torch.equal(plain, changed)  # pyright: ignore[reportArgumentType]
    task = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
    refused = pytest.raises(SpliceError, match=r"ForCausalLM.*pattern.*blocks\.0\.attn\.hook_pattern.*free")
    for number in (
        lambda: cs.intervene(spliced, task, [cs.Ablate("token@2")], attention="frozen"),
        lambda: cs.node_effects(spliced, task, gradient="frozen"),
        lambda: cs.node_effects(spliced, task, method="relp"),
        lambda: cs.node_effects(spliced, task, method="gim"),
        lambda: cs.trace(spliced, task, linearisation="frozen", max_nodes=4),
    ):
        with refused:
            number()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mamba", r"pattern.*does not hold"),
        ("olmo", r"hooks at blocks\.0\.ln1\.hook_scale.* can't be tried"),
        ("nanochat", r"hook_pattern"),
        ("bitnet", r"normalisation has a hook point for its scale.*attn_sub_norm"),
        ("falcon-h1", r"all between nodes is linear.*blocks\.0\.hook_resid_mid"),
    ],
)
def test_a_graph_that_frozen_is_not_linear_is_refused_in_a_sentence(name: str, what: str) -> None:
    spliced = SplicedModel(model(name), [dictionary("blocks.1.hook_resid_post")], prepend_bos=False)
    with pytest.raises(SpliceError, match=what):
        cs.trace(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)), linearisation="frozen", max_nodes=4)


def test_a_normalisation_of_the_values_is_frozen_too() -> None:
    """DeepSeek's keys and values pass a norm of their own: an edge is the effect of a node through the frozen model."""
    spliced = with_transcoders(model("deepseek3"))
    task = cs.Task(TOKENS, metric=cs.LogitDiff(7, 8))
    circuit = cs.trace(spliced, task, linearisation="frozen", max_nodes=12, prune=None)
    for token in ("token@1", "token@6"):
        direct = cs.intervene(
            spliced, task, [cs.Scale(token, 1.5)], attention="frozen", normalisation="frozen", direct_only=True
        )
        edge = circuit.graph.edges.get((token, "metric"))
        assert edge is not None and direct.effect == pytest.approx(0.5 * edge["contribution"], rel=1e-7)


def test_a_hook_whose_return_is_ignored_is_named() -> None:
    spliced = with_transcoders(bridge("llama"))
    mlp = spliced.model.blocks[0].mlp
    point = spliced.hooked.point("blocks.0.hook_mlp_out")

    def forward(x: Tensor) -> Tensor:
        x = mlp.hook_in(x)
        out = mlp.original_component.down_proj(x.new_ones(*x.shape[:2], 32) * x.mean(-1, keepdim=True))
        point(out)
        return out

    object.__setattr__(mlp, "forward", forward)
    with pytest.raises(SpliceError, match=r"put back.*blocks\.0\.hook_mlp_out"):
        verify(spliced)


def test_checks_are_made_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = with_transcoders(model("gpt2"))
    verify(spliced, frozen=True)
    monkeypatch.setattr(checks, "forward", lambda *args, **kwargs: pytest.fail("a second time"))
    verify(spliced, frozen=True)
    verify(spliced.restrict(spliced.sites), frozen=True)


# transformers computes gemma2's softmax in float32, which finite differences magnify
@pytest.mark.parametrize(("name", "step", "limit"), [("gpt2", 1e-4, 1e-5), ("gemma2", 1e-2, 2e-3)])
def test_the_middle_of_a_block_is_part_of_the_stream(name: str, step: float, limit: float) -> None:
    """On a Bridge that hook point is the input of the MLP's normalisation alone; an edit there must reach the stream."""
    spliced = SplicedModel(model(name), [dictionary("blocks.1.hook_resid_mid")], prepend_bos=False)
    assert [c for c in check_splices(spliced) if not c.holds] == []
    change = torch.randn(len(TOKENS), 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    after: dict[str, Tensor] = {}
    hooks: list[Any] = [
        ("blocks.1.hook_resid_mid", lambda x: x + change),
        ("blocks.1.hook_mlp_out", lambda x: after.__setitem__("mlp", x)),
        ("blocks.1.hook_resid_post", lambda x: after.__setitem__("post", x)),
    ]
    before: dict[str, Tensor] = {}
    tokens = torch.tensor([TOKENS])
    with torch.no_grad():
        spliced.hooked.forward(tokens, [("blocks.1.hook_resid_mid", lambda x: before.__setitem__("mid", x))])
        spliced.hooked.forward(tokens, hooks)
    torch.testing.assert_close(after["post"], before["mid"] + change + after["mlp"], atol=1e-12, rtol=1e-12)
    effects = cs.node_effects(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)), method="attribution-patching")
    for row in effects.strongest(4):
        up, down = (
            cs.intervene(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)), [cs.Add(row["node"], s)]).metric_after
            for s in (step, -step)
        )
        if "error" not in row["node"]:
            assert row["effect"] == pytest.approx(-row["activation"] * (up - down) / (2 * step), rel=limit, abs=1e-7)
