"""Edges split by attention heads: the parts add up to the edge engine's contributions, and are what masked heads leave."""

from typing import Any

import pytest
import torch

import circuitsae as cs
from circuitsae.attribution.contributions import FeatureTargets
from circuitsae.attribution.edges import EdgeEngine
from circuitsae.attribution.numbering import EveryNode
from circuitsae.errors import NodeError, SpliceError
from circuitsae.model import points
from circuitsae.names import parse
from circuitsae.testing.planted import plant_copy
from tests.attribution import architectures

N_HEADS = 4


def with_far_edges(name: str) -> cs.Session:
    """A session whose edges from the first site to the last read pass two layers of attention, and one MLP replaced."""
    kinds = [
        architectures.dictionary("blocks.0.hook_resid_post"),
        architectures.dictionary("blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out", seed=1),
        architectures.dictionary("blocks.2.mlp.hook_in", "blocks.2.hook_mlp_out", seed=2),
    ]
    spliced = cs.SplicedModel(architectures.bridge(name), kinds, prepend_bos=False)
    return cs.Session(spliced, cs.Task(architectures.TOKENS[:5], metric=cs.LogitDiff(3, 4)), baseline="zero")


def strongest(circuit: cs.Circuit, target: str, at: int) -> str:
    edges: Any = circuit.graph.in_edges(target, data="contribution")
    here = [(abs(c), u) for u, _, c in edges if u.startswith("blocks.0") and u.endswith(f"@{at}") and "error" not in u]
    return max(here)[1]


def contribution(session: cs.Session, u: str, v: str, silent: set[tuple[int, int]]) -> float:
    """The edge's contribution with the patterns of some heads held at zero on the way back: by brute force."""
    spliced, context = session.spliced, session.context

    def silence(name: str) -> Any:
        layer = spliced.hooked.layer(name)
        keep = torch.tensor([(layer, head) not in silent for head in range(N_HEADS)])
        return lambda z: torch.where(keep[:, None], z, z.detach())

    numbered = EveryNode(context)
    engine = EdgeEngine(
        spliced, context.run, context.nodes, context.baseline, context.readout,
        linearisation="frozen", sources=numbered.sources, sweep=False,
    )  # fmt: skip
    zs = [points.heads(layer)[1] for layer in range(spliced.n_layers)]
    engine._extra = [*engine._extra, *((z, silence(z)) for z in zs)]  # pyright: ignore[reportPrivateUsage]
    node, one = parse(v), torch.ones(1, dtype=torch.float64)
    target = FeatureTargets(
        spliced.dictionary_number(str(node.site)), torch.tensor([node.position]), torch.tensor([node.index]), one, one,
        torch.tensor([0]),
    )  # fmt: skip
    (batch,) = engine.feature_edges([target])
    found = batch.contributions[batch.sources == numbered.number(u)]
    return float(found.sum())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "neox", "olmo2"])
def test_the_parts_are_what_silent_heads_leave_and_add_up(name: str) -> None:
    session = with_far_edges(name)
    circuit = session.trace(linearisation="frozen", max_nodes=10**6, prune=None)
    target = next(n for n in circuit.graph if n.startswith("blocks.2") and n.endswith("@4") and "error" not in n)
    edges = [(strongest(circuit, target, at), target) for at in (2, 4)]
    for (u, v), found in zip(edges, cs.heads(session, edges), strict=True):
        assert (found.source, found.target) == (u, v)
        whole = circuit.graph.edges[u, v]["contribution"]
        assert found.contribution == pytest.approx(whole, abs=1e-10)
        parts = [found.direct, found.several, *(share.contribution for share in found.heads)]
        assert sum(parts) == pytest.approx(whole, abs=1e-10)
        below = 1 if name == "neox" else 2  # in parallel layers the target's own attention comes beside it
        assert len(found.heads) == below * N_HEADS and (found.several != 0) == (below > 1)
        everyone = {(layer, head) for layer in range(3) for head in range(N_HEADS)}
        assert contribution(session, u, v, everyone) == pytest.approx(found.direct, abs=1e-10)
        for share in (found.heads[0], found.heads[-1]):
            alone = contribution(session, u, v, everyone - {(share.layer, share.head)})
            assert alone - found.direct == pytest.approx(share.contribution, abs=1e-10)
    assert cs.heads(session, [edges[0]])[0].direct == 0  # another position: only attention leads there


def test_the_planted_head_carries_the_planted_edge() -> None:
    planted = plant_copy()
    u, v = next((u, v) for u, v in planted.edges if v != "metric")
    (found,) = cs.heads(cs.Session(planted.spliced, planted.task), [(u, v)])
    assert [(share.layer, share.head) for share in found.heads] == [(0, 0)]
    assert found.heads[0].contribution == pytest.approx(1, abs=1e-6)
    assert (found.direct, found.several) == (0, 0)
    assert "head 0.0" in str(found)
    assert found.records()[0]["contribution"] == found.to_json()["heads"][0]["contribution"]


def test_what_is_no_such_edge_is_said() -> None:
    planted = plant_copy()
    session = cs.Session(planted.spliced, planted.task)
    u, v = next((u, v) for u, v in planted.edges if v != "metric")
    for edge, said in (
        ((u, "metric"), "target"),
        (("bias", v), "bias"),
        (("token@9", v), "token@9"),
        ((u, u[:-1] + "9"), "@9"),
    ):
        with pytest.raises(NodeError, match=said):
            cs.heads(session, [edge])


def test_heads_that_give_something_else_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant_copy()
    u, v = next((u, v) for u, v in planted.edges if v != "metric")
    attn: Any = planted.spliced.model.blocks[0].attn
    whole = attn.hook_z.forward
    monkeypatch.setattr(attn.hook_z, "forward", lambda x: whole(1.01 * x))
    with pytest.raises(SpliceError, match=r"blocks\.0\.attn\.hook_z"):
        cs.heads(cs.Session(planted.spliced, planted.task), [(u, v)])


def test_an_explanation_is_an_edge_and_the_score_of_its_strongest_head() -> None:
    planted = plant_copy()
    session = cs.Session(planted.spliced, planted.task)
    u, v = next((u, v) for u, v in planted.edges if v != "metric")
    why = cs.explain(session, u, v, relative=False, top=3)
    assert why.heads == cs.heads(session, [(u, v)])[0]
    assert why.score == cs.attention(session, 0, 0, 3, 0, relative=False, top=3)
    assert str(why).startswith(f"{u} -> {v}") and "head 0.0" in str(why)
    assert why.to_json()["score"]["layer"] == 0
    # planted: the position 3 looks at the position 0
    assert why.score is not None and (why.score.pairs[0].query[-2:], why.score.pairs[0].key[-2:]) == ("@3", "@0")
