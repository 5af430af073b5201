"""Pages of circuits of other kinds: several logits at the top, a mean over prompts, a comparison of two."""

from collections.abc import Callable

import networkx as nx
import pytest

from circuitsae import names
from circuitsae.graph.aggregation import aggregate
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.comparison import compare
from tests.browser.opened import Opened
from tests.synthetic import TOKENS, synthetic_circuit

pytestmark = pytest.mark.browser


def test_logits_stand_side_by_side_the_likeliest_last(open_page: Callable[..., Opened], circuit: Circuit) -> None:
    graph = nx.DiGraph(circuit.graph)
    last = len(TOKENS) - 1
    words = {names.logit(7 + n, last): word for n, word in enumerate((" Mary", " her", " the", " somebody"))}
    inputs = list(graph.in_edges("metric", data=True))
    graph.remove_node("metric")
    for rank, (key, word) in enumerate(words.items(), 1):
        graph.add_node(key, label=word, probability=0.5 / rank, activation=8.0 / rank)
        graph.add_edges_from((source, key, {"weight": data["weight"] / rank}) for source, _, data in inputs)
    opened = open_page(Circuit(graph))
    boxes = [opened.node(key).bounding_box() for key in words]
    lefts = [box["x"] for box in boxes]
    assert lefts == sorted(lefts, reverse=True)
    for box, after in zip(boxes, boxes[1:], strict=False):
        assert after["x"] + after["width"] <= box["x"] + 1 and abs(after["y"] - box["y"]) < 1
    texts = [opened.node(key).text_content() for key in words]
    assert texts == ["Mary", "her", "the", "somebody"]
    opened.node(next(iter(words))).click(force=True)
    assert opened.call("return view.selection();") == [next(iter(words))]


@pytest.mark.parametrize("align", ["position", "sum"])
def test_means_and_comparisons_are_drawn(open_page: Callable[..., Opened], align: str) -> None:
    circuits = [synthetic_circuit(seed=seed, n_features=25) for seed in range(2)]
    for made in circuits:
        for dictionary in made.graph.graph["dictionaries"]:
            del dictionary["fingerprint"]
    mean, found = aggregate(circuits, align=align), compare(*circuits, align=align)  # type: ignore[arg-type]
    for drawn in (mean, found.circuit):
        opened = open_page(drawn)
        strongest = drawn.strongest(1)[0]
        opened.node(strongest).click(force=True)
        assert opened.call("return view.selection();") == [strongest]
        shown = opened.text(".cg-numbers")
        if drawn is mean:
            assert f"{mean[strongest]['count']} of 2 prompts" in shown and "±" in shown
        else:
            assert "Effect in A, in B" in shown and "B − A" in shown
