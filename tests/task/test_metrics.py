"""Metrics of several answers and positions, and targets that are no answers, against formulas written out."""

import pytest
import torch
from torch.nn import functional as F

import circuitsae as cs
from circuitsae import registry
from circuitsae.attribution.effects import make_context
from circuitsae.errors import InputError, TaskError
from circuitsae.task.targets import Direction, Divergence, Feature, Loss, TopLogits
from circuitsae.task.vocabulary import Vocabulary

PROMPT = "When Mary and John went to the store, John gave a drink to"
VOCABULARY = Vocabulary(None, 20)


@pytest.fixture(scope="module")
def spliced() -> cs.SplicedModel:
    return cs.load("tiny", dtype=torch.float64, skip_positions=[])


@pytest.fixture(scope="module")
def logits(spliced: cs.SplicedModel) -> torch.Tensor:
    with torch.no_grad():
        return spliced.model(torch.tensor([spliced.vocabulary.encode(PROMPT)]), return_type="logits")[0]


def value(spliced: cs.SplicedModel, metric: object) -> float:
    run = make_context(spliced, cs.Task(PROMPT, metric=metric)).run  # type: ignore[arg-type]
    assert run.metric is not None
    return run.metric


def test_several_answers_and_positions_are_averaged() -> None:
    x = torch.randn(2, 5, 20, dtype=torch.float64)
    read = x[:, [1, 4]]  # what a metric of these two positions is given
    metric = cs.LogitDiff((3, 7), 5, position=(-1, 1)).resolve(VOCABULARY, 5)
    assert metric.positions == (1, 4)
    expected = ((x[:, [1, 4], 3] + x[:, [1, 4], 7]) / 2 - x[:, [1, 4], 5]).mean(1)
    torch.testing.assert_close(metric(read), expected)
    probability = cs.Probability((3, 7), position=(-1, 1)).resolve(VOCABULARY, 5)(read)
    torch.testing.assert_close(probability, x.softmax(-1)[:, [1, 4]][..., [3, 7]].sum(-1).mean(1))
    log_prob = cs.LogProb((3, 7)).resolve(VOCABULARY, 5)(x[:, [4]])
    torch.testing.assert_close(log_prob, x.softmax(-1)[:, 4, [3, 7]].sum(-1).log())
    torch.testing.assert_close(cs.Logit([3, 7]).resolve(VOCABULARY, 5)(x[:, [4]]), x[:, 4, [3, 7]].mean(-1))


def test_one_answer_is_described_as_one_and_several_as_lists() -> None:
    one = cs.LogitDiff(3, 5).resolve(VOCABULARY, 5).description
    assert one["answer"] == "<3>" and one["position"] == 4 and one["token_ids"] == {"answer": 3, "foil": 5}
    several = cs.LogitDiff((3, 7), 5, position=(0, 2)).resolve(VOCABULARY, 5).description
    assert several["answer"] == ["<3>", "<7>"] and several["position"] == [0, 2]
    assert several["token_ids"] == {"answer": [3, 7], "foil": 5}
    assert several["description"] == "logit of '<3>' or '<7>' minus logit of '<5>'"


@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (cs.LogitDiff((3, 5), 5), "same token, '<5>'"),
        (cs.Logit(()), "at least one, each once"),
        (cs.Logit((3, 3)), "at least one, each once"),
        (cs.Logit(3, position=(1, 1)), "each once"),
        (cs.Logit(3, position=9), "outside the prompt of 5 tokens"),
        (Loss(5), "expected 1 to 4"),
        (TopLogits(probability=0), "a share above 0"),
        (Feature("blocks.0.hook_resid_post/error@1"), "not a feature at one position"),
        (Feature("blocks.0.hook_resid_post/3"), "not a feature at one position"),
    ],
)
def test_what_can_not_be_resolved_is_one_sentence(metric: cs.Logit, text: str) -> None:
    with pytest.raises(TaskError, match=text):
        metric.resolve(VOCABULARY, 5)


def test_a_metric_that_waits_for_the_model_says_so() -> None:
    with pytest.raises(TaskError, match=r"depends on the model; complete\(spliced, tokens\)"):
        Divergence().resolve(VOCABULARY, 5)(torch.zeros(1, 1, 20))


def test_divergence_is_zero_and_flat_on_the_clean_run(spliced: cs.SplicedModel, logits: torch.Tensor) -> None:
    task = cs.Task(PROMPT, metric=Divergence())
    with pytest.raises(InputError, match="gradient of the metric"):
        cs.node_effects(spliced, task, method="attribution-patching")
    node = cs.node_effects(spliced, cs.Task(PROMPT, metric=cs.Logit(5))).strongest(1)[0]["node"]
    edited = cs.intervene(spliced, task, [cs.Ablate(node)])
    assert edited.metric_before == pytest.approx(0, abs=1e-12)
    clean, after = logits[-1].log_softmax(-1), edited.logits_after.double().log_softmax(-1)
    assert edited.effect == pytest.approx(float(F.kl_div(after, clean, log_target=True, reduction="sum")), abs=1e-6)
    assert edited.effect > 0


def test_loss_is_the_continuations_cross_entropy(spliced: cs.SplicedModel, logits: torch.Tensor) -> None:
    tokens = torch.tensor(spliced.vocabulary.encode(PROMPT))
    for continuation, count in ((" gave a drink to", 4), (3, 3)):
        expected = F.cross_entropy(logits[-count - 1 : -1], tokens[-count:])
        assert value(spliced, Loss(continuation)) == pytest.approx(float(expected), abs=1e-10)
    with pytest.raises(TaskError, match="expected the continuation as the prompt's end"):
        value(spliced, Loss(" gave a drink"))


def test_top_logits_are_weighted_by_clean_probability(spliced: cs.SplicedModel, logits: torch.Tensor) -> None:
    probabilities = logits[-1].softmax(-1)
    order = probabilities.argsort(descending=True)
    count = 1
    while probabilities[order[:count]].sum() < 0.6:
        count += 1
    chosen = order[:count]
    expected = (probabilities[chosen] * (logits[-1][chosen] - logits[-1].mean())).sum()
    context = make_context(spliced, cs.Task(PROMPT, metric=TopLogits(0.6)))
    assert context.run.metric == pytest.approx(float(expected), abs=1e-10)
    assert context.task.metric.description["token_ids"]["answer"] == chosen.tolist()
    limited = make_context(spliced, cs.Task(PROMPT, metric=TopLogits(0.999, limit=2))).task.metric.description
    assert len(limited["probabilities"]) == 2


def test_a_feature_as_target_is_explained_by_what_is_below_it(spliced: cs.SplicedModel) -> None:
    """Slopes by central differences of the feature's activation under interventions."""
    site = "blocks.2.hook_resid_post"
    node = next(
        r for r in cs.node_effects(spliced, cs.Task(PROMPT, metric=cs.Logit(5))).strongest(400) if r["site"] == site
    )
    effects = cs.node_effects(spliced, cs.Task(PROMPT, metric=Feature(node["node"])), method="attribution-patching")
    assert effects.metric == pytest.approx(node["activation"], abs=1e-9)
    for block in effects.blocks:
        if block.site.startswith(("blocks.2.hook_resid_post", "blocks.3.")):
            assert float(block.effects.abs().max()) == 0
    question = cs.Task(PROMPT, metric=cs.Logit(5))
    for record in effects.strongest(3):
        moved = [
            cs.intervene(spliced, question, [cs.Add(record["node"], s)], nodes=[node["node"]]).activations[node["node"]]
            for s in (1e-4, -1e-4)
        ]
        slope = (moved[0] - moved[1]) / 2e-4
        assert record["effect"] == pytest.approx(-record["activation"] * slope, rel=1e-4, abs=1e-7)
    exact = cs.node_effects(spliced, cs.Task(PROMPT, metric=Feature(node["node"])), method="auto", passes=6)
    top = exact.strongest(1)[0]
    after = cs.intervene(spliced, question, [cs.Ablate(top["node"])], nodes=[node["node"]]).activations[node["node"]]
    assert top["effect"] == pytest.approx(after - node["activation"], abs=1e-9) or after == 0


def test_a_circuit_with_a_feature_on_top_has_that_features_edges(spliced: cs.SplicedModel) -> None:
    whole = cs.trace(spliced, cs.Task(PROMPT, metric=cs.LogitDiff(" Mary", " John")), max_nodes=60)
    node = next(n for n in whole.strongest(60, "feature") if n.startswith("blocks.2.") and whole.graph.in_degree(n) > 8)
    above = cs.trace(spliced, cs.Task(PROMPT, metric=Feature(node)), max_nodes=60)
    assert above["metric"]["total"] == pytest.approx(whole[node]["total"], abs=1e-9)
    shared = 0
    for source, _, data in above.graph.in_edges("metric", data=True):
        edge = whole.graph.get_edge_data(source, node)
        if edge is not None and source != "bias":
            assert data["contribution"] == pytest.approx(edge["contribution"], abs=1e-9)
            shared += 1
    assert shared > 5
    assert all(above[n]["effect"] == 0 for n in above.features if n.startswith("blocks.3."))


def test_a_direction_is_read_where_it_is_asked_for(spliced: cs.SplicedModel) -> None:
    kept: list[torch.Tensor] = []
    tokens = torch.tensor([spliced.vocabulary.encode(PROMPT)])
    with torch.no_grad():
        hooks = [("blocks.1.hook_resid_post", lambda x, hook: kept.append(x))]
        spliced.model.run_with_hooks(tokens, fwd_hooks=hooks)
    vector = torch.linspace(-1, 1, 96, dtype=torch.float64)
    expected = (kept[0][0, [3, -1]] @ vector).mean()
    metric = Direction("blocks.1.hook_resid_post", vector.tolist(), position=(-1, 3))
    assert value(spliced, metric) == pytest.approx(float(expected), abs=1e-10)
    with pytest.raises(TaskError, match=r"3 numbers, the activation 'blocks\.1\.hook_resid_post' 96"):
        value(spliced, Direction("blocks.1.hook_resid_post", [1.0, 2.0, 3.0]))


def test_where_an_activation_can_not_be_read_it_says_so(spliced: cs.SplicedModel) -> None:
    context = make_context(spliced, cs.Task(PROMPT, metric=Direction("blocks.1.hook_resid_post", [0.0] * 96)))
    with pytest.raises(TaskError, match=r"reads 'blocks\.1\.hook_resid_post', not the logits"):
        context.readout.value(torch.zeros(1, 1, 20))


def test_every_target_is_registered() -> None:
    for kind in (Divergence, Loss, TopLogits, Feature, Direction):
        assert registry.get("metrics", kind.name) is kind
