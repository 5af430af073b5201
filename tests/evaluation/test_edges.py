"""Edge circuits: all edges are the model, none the empty circuit, and one path carries what a path carries."""

import networkx as nx
import pytest
import torch

import circuitsae as cs
from circuitsae.evaluation.evaluator import evaluate
from circuitsae.graph.aggregation import aggregate


@pytest.mark.parametrize("baseline", ["zero", "patch"])
@pytest.mark.parametrize("preset", ["spliced", "transcoders"])
def test_all_edges_together_are_the_model(preset: str, baseline: str, request: pytest.FixtureRequest) -> None:
    spliced: cs.SplicedModel = request.getfixturevalue(preset)
    tasks = cs.task_set("agreement-simple", spliced, n=1)
    circuit = cs.trace(spliced, tasks[0], prune=None, baseline=baseline)
    found = evaluate(
        spliced, tasks, circuit, edges=True, grid=(0.0, 0.05, 1.0), compare=(), baseline=baseline, tokens="circuit",
        complement=False,
    )  # fmt: skip
    points = found.curves["edges"].points
    assert points[-1].faithfulness.value == pytest.approx(1.0, abs=1e-6)
    if preset == "spliced":  # a residual site after the last block: nothing goes past the nodes
        assert points[0].faithfulness.value == pytest.approx(0.0, abs=1e-9)
    assert abs(points[1].faithfulness.value - 1) > 1e-6
    assert found.edge_faithfulness is not None


def test_a_path_carries_what_it_carries(spliced: cs.SplicedModel) -> None:
    """u -> v -> metric, by hand: v from a run in which only u is not at zero, then the logits from v alone."""
    lower, upper = "blocks.1.hook_resid_post", "blocks.3.hook_resid_post"
    part = spliced.restrict([lower, upper])
    tasks = cs.task_set("agreement-simple", part, n=1)
    prepared = tasks[0].prepare(part.vocabulary)
    circuit = cs.trace(part, tasks[0], baseline="zero", max_nodes=40)
    last = len(prepared.tokens) - 1
    top = next(n for n in circuit.strongest(40, "feature") if n.startswith(upper) and n.endswith(f"@{last}"))
    source = max(
        (u for u in circuit.graph.predecessors(top) if circuit[u]["kind"] == "feature"),
        key=lambda u: abs(circuit.graph.edges[u, top]["weight"]),
    )
    graph = nx.DiGraph()
    graph.add_nodes_from((n, circuit[n]) for n in (source, top, "metric"))
    graph.add_edge(source, top, contribution=1.0, weight=1.0)
    graph.add_edge(top, "metric", contribution=1.0, weight=0.5)
    path = cs.Circuit(graph)
    found = evaluate(part, tasks, path, edges=True, baseline="zero", grid=(1.0,), compare=(), complement=False)
    (row,) = [r for r in found.rows() if r["what"] == "edges" and r["size"] == 2]

    d_low, d_high = part.dictionary(lower), part.dictionary(upper)
    tokens = torch.tensor([prepared.tokens])
    with torch.no_grad():
        _, cache = part.model.run_with_cache(tokens)

        def only(dictionary: cs.Dictionary, key: str, value: float) -> object:
            index, position = int(key.split("/")[1].split("@")[0]), int(key.split("@")[1])

            def hook(x: torch.Tensor, hook: object) -> torch.Tensor:
                bias = dictionary.encode(x[0]).biases[0]
                new = x.clone()
                new[0, 1:] = bias.expand(x.shape[1], -1)[1:]
                new[0, position] += value * dictionary.decoder_rows(torch.tensor([index]))[0].to(x.dtype)
                return new

            return hook

        seen: list[torch.Tensor] = []
        part.model.run_with_hooks(
            tokens,
            return_type="logits",
            fwd_hooks=[
                (lower, only(d_low, source, float(circuit[source]["activation"]))),
                (upper, lambda x, hook: seen.append(x.clone())),
            ],
        )
        index = int(top.split("/")[1].split("@")[0])
        value = float(d_high.encode(seen[0][0]).features.to_dense()[last, index])
        logits = part.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=[(upper, only(d_high, top, value))])
    assert cache is not None
    assert row["metric"] == pytest.approx(float(prepared.metric(logits[:, -1:])[0]), abs=1e-8)


def test_edges_without_positions_stand_for_all_of_them(spliced: cs.SplicedModel) -> None:
    part = spliced.restrict(["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"])
    tasks = cs.task_set("agreement-simple", part, n=2, aligned=True)
    circuits = [cs.trace(part, task, prune=None) for task in tasks]
    joined = aggregate(circuits, align="sum")
    found = evaluate(part, tasks, joined, edges=True, grid=(1.0,), compare=(), complement=False)
    assert found.about["positions"] is False
    assert found.edge_faithfulness is not None
    # Not exact: summed over positions, a feature that is not active at one has the in-edges it has at another.
    assert found.edge_faithfulness.value == pytest.approx(1.0, abs=0.05)


def test_strong_edges_carry_more_than_random_ones(spliced: cs.SplicedModel) -> None:
    tasks = cs.task_set("agreement-simple", spliced, n=1, seed=3)
    circuit = cs.trace(spliced, tasks[0], prune=None)
    found = evaluate(
        spliced,
        tasks,
        circuit,
        edges=True,
        grid=(0.0, 0.1, 0.3, 1.0),
        compare=("random",),
        n_random=1,
        complement=False,
    )
    strong, random = found.curves["edges"], found.curves["edges-random"]
    assert strong.cpr.value > random.cpr.value + 0.1
