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
    assert len(found) == 5
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


def test_a_pattern_that_stays_live_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spliced = with_transcoders(model("gpt2"))
    plain = checks.freezes(spliced)
    live = [(name, (lambda x: None) if name == "blocks.2.attn.hook_pattern" else hook) for name, hook in plain]
    monkeypatch.setattr(checks, "freezes", lambda spliced: live)
    with pytest.raises(SpliceError, match=r"frozen pattern.*blocks\.2\.attn\.hook_pattern"):
        verify(spliced, frozen=True)


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
    effects = cs.node_effects(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)))
    for row in effects.strongest(4):
        up, down = (
            cs.intervene(spliced, cs.Task(TOKENS, metric=cs.LogitDiff(7, 8)), [cs.Add(row["node"], s)]).metric_after
            for s in (step, -step)
        )
        if "error" not in row["node"]:
            assert row["effect"] == pytest.approx(-row["activation"] * (up - down) / (2 * step), rel=limit, abs=1e-7)
