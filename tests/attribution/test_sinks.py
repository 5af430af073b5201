"""Attention sinks: where a vector is much longer than the rest no dictionary is applied, and everything still adds up."""

import pytest
import torch

import circuitsae as cs
from circuitsae.attribution.effects import make_context
from circuitsae.errors import InputError, NodeError

PROMPT = "the key to the cabinets"


@pytest.fixture(scope="module")
def everywhere() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64, skip_positions=[])


@pytest.fixture(scope="module")
def spliced(everywhere: cs.SplicedModel) -> cs.SplicedModel:
    """With a rule so strict that positions are skipped at some sites and not at others."""
    return cs.SplicedModel(everywhere.model, everywhere.dictionaries, skip_sinks=1.15)


@pytest.fixture
def task() -> cs.Task:
    return cs.Task(PROMPT, metric=cs.LogitDiff("is", "are"))


def test_positions_are_skipped_site_by_site(
    everywhere: cs.SplicedModel, spliced: cs.SplicedModel, task: cs.Task
) -> None:
    run, plain = make_context(spliced, task).run, make_context(everywhere, task).run
    skipped = {hook: site.skipped() for hook, site in run.sites.items()}
    assert len({tuple(mask.tolist()) for mask in skipped.values()}) > 1
    for hook, site in run.sites.items():
        mask, norms = skipped[hook], site.x.norm(dim=-1)
        assert torch.equal(mask, norms > 1.15 * norms.median())  # the tiny SAEs read what they write
        assert torch.equal(site.error[mask], site.x[mask])
        assert torch.allclose(site.error[~mask], plain.sites[hook].error[~mask], atol=1e-12)
    for mine, theirs in zip(run.features, plain.features, strict=True):
        kept = torch.isin(theirs.features.rows, mine.kept)
        assert torch.equal(mine.features.rows, theirs.features.rows[kept])
        assert torch.equal(mine.features.indices, theirs.features.indices[kept])


def test_effects_hold_when_measured(spliced: cs.SplicedModel, task: cs.Task) -> None:
    """An error node at a sink is the whole vector there: setting it to zero is what a plain hook does with the vector."""
    context = make_context(spliced, task)
    hook, site = next((h, s) for h, s in context.run.sites.items() if s.skipped().any())
    position = int(site.skipped().nonzero()[0])
    result = cs.intervene(spliced, task, [cs.Ablate(f"{hook}/error@{position}")])

    def at_site(x: torch.Tensor, hook: object) -> torch.Tensor:
        x = x.clone()
        x[:, position] = 0
        return x

    tokens = torch.tensor([context.task.tokens])
    with torch.no_grad():
        logits = spliced.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(hook, at_site)])
    assert result.metric_after == pytest.approx(float(context.task.metric(logits[:, -1:])[0]), abs=1e-9)


def test_nodes_and_edges_leave_them_out_and_still_add_up(spliced: cs.SplicedModel, task: cs.Task) -> None:
    circuit = cs.trace(spliced, task, max_nodes=None, prune=None)
    run = make_context(spliced, task).run
    for node, data in circuit.graph.nodes(data=True):
        if data["kind"] == "error":
            assert data["position"] in run.sites[data["site"]].kept, node
        if data["kind"] == "feature" and "total" in data:
            total = sum(c for _, _, c in circuit.graph.in_edges(node, data="contribution"))
            hidden = data["total"] - total  # error nodes at sinks act too, but are no nodes
            assert abs(hidden) < 1e-9 or any(site.skipped().any() for site in run.sites.values())
    whole = cs.trace(spliced, task, max_nodes=None, prune=None, skip_nodes=True)
    for node, data in whole.graph.nodes(data=True):
        if "total" in data:
            total = sum(c for _, _, c in whole.graph.in_edges(node, data="contribution"))
            assert total == pytest.approx(data["total"], abs=1e-9), node
    assert whole.graph.graph["options"]["skip_sinks"] == 1.15


def test_the_patch_prompt_follows_the_prompt(spliced: cs.SplicedModel) -> None:
    task = cs.Task(PROMPT, patch="the keys to the cabinet", metric=cs.LogitDiff("is", "are"))
    context = make_context(spliced, task)
    for features, run in zip(context.baseline.features, context.run.features, strict=True):
        assert features is not None and torch.isin(features.rows, run.kept).all()


def test_a_feature_at_a_sink_is_refused(spliced: cs.SplicedModel, task: cs.Task) -> None:
    run = make_context(spliced, task).run
    site, mask = next((d.site, ~torch.isin(torch.arange(run.n_tokens), f.kept)) for d, f in zip(
        spliced.dictionaries, run.features, strict=True) if len(f.kept) < run.n_tokens)  # fmt: skip
    with pytest.raises(NodeError, match="at a skipped position"):
        cs.intervene(spliced, task, [cs.Ablate(f"{site}/0@{int(mask.nonzero()[0])}")])


def test_dictionaries_of_one_hook_point_share_their_positions(everywhere: cs.SplicedModel) -> None:
    spliced = cs.SplicedModel(everywhere.model, everywhere.dictionaries, skip_sinks=2.0)
    spliced.writers = {"a": [(0, 0), (1, 0)], "b": [(1, 1), (2, 0)], "c": [(3, 0)]}
    spliced.dictionaries = spliced.dictionaries[:4]
    flat = torch.ones(5, 3)
    peak = flat.clone()
    peak[3] *= 9
    kept = spliced.applied([flat, flat, peak, flat])
    assert [k.tolist() for k in kept] == [[0, 1, 2, 4]] * 3 + [[0, 1, 2, 3, 4]]


def test_a_rule_that_would_skip_the_usual_is_refused(everywhere: cs.SplicedModel) -> None:
    with pytest.raises(InputError, match=r"skip_sinks is 0\.5; expected a multiple of the median norm above 1"):
        cs.SplicedModel(everywhere.model, everywhere.dictionaries, skip_sinks=0.5)
