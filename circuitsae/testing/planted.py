"""Planted circuits: models and dictionaries whose feature graph is known by construction, and how the engine fares on them.

Four of them: copying a token, induction (through queries and keys too), comparing two numbers, and a look-up in two steps.
In each, other features are active, some of them strongly, that do nothing to the metric. The graph that `trace` gives must
hold exactly the planted nodes and edges.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from circuitsae import names
from circuitsae.dictionaries.base import Dictionary
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.metrics import Logit, LogitDiff
from circuitsae.task.task import Task
from circuitsae.testing.transformer import WrittenTransformer
from circuitsae.tracing import trace

# What is below this share of the largest is none: a softmax is never quite 0.
_SHARE = 1e-6
_HARD = 60.0  # a score that leaves e**-60 of the attention to other positions


@dataclass(frozen=True)
class Planted:
    """A model with its dictionaries, a task, and the circuit that it was built with.

    Attributes:
        name: `copy`, `induction`, `comparison` or `two-step`.
        spliced: The model.
        task: Prompt and metric, baseline zero.
        nodes: The features that act on the metric, by key.
        edges: Which of them acts on which directly, or on `metric`.
    """

    name: str
    spliced: SplicedModel
    task: Task
    nodes: frozenset[str]
    edges: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Verdict:
    """How a traced graph compares with the planted one.

    Attributes:
        name: The planted circuit.
        node_precision, node_recall, edge_precision, edge_recall: 1 where the traced graph is the planted one.
        ranking: Average precision of the planted nodes in the order of |effect|: 1 if they come first.
        by_activation: Likewise in the order of activation.
        by_chance: Likewise expected of a random order.
        holds: Whether the first five are 1, and the others less.
    """

    name: str
    node_precision: float
    node_recall: float
    edge_precision: float
    edge_recall: float
    ranking: float
    by_activation: float
    by_chance: float
    holds: bool

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain values."""
        return asdict(self)


def check(*, seed: int = 0, **options: Any) -> list[Verdict]:
    """Traces every planted circuit and compares.

    Args:
        seed: Of the directions in which features lie.
        **options: Passed to `trace`: another method, say.
    """
    return [compare_with(plant(seed), **options) for plant in PLANTED.values()]


def compare_with(planted: Planted, **options: Any) -> Verdict:
    """Traces one planted circuit, everything that is not zero, and compares."""
    circuit = trace(planted.spliced, planted.task, prune=None, **options)
    effects = {
        key: abs(float(data["effect"])) for key, data in circuit.graph.nodes(data=True) if data["kind"] == "feature"
    }
    size = {key: abs(float(circuit[key]["activation"])) for key in effects}
    floor = _SHARE * max(effects.values())
    nodes = {key for key, effect in effects.items() if effect > floor}
    weights = {
        (u, v): abs(float(data["weight"]))
        for u, v, data in circuit.graph.edges(data=True)
        if u in effects and (v in effects or v == names.METRIC)
    }
    edges = {ends for ends, weight in weights.items() if weight > _SHARE * max(weights.values())}
    is_planted = np.array([key in planted.nodes for key in effects])
    ranking, by_activation = (
        _average_precision(np.array([scores[key] for key in effects]), is_planted) for scores in (effects, size)
    )
    by_chance = _expected_precision(len(effects), int(is_planted.sum()))
    exact = (
        *_precision_recall(nodes, planted.nodes),
        *_precision_recall(edges, planted.edges),
        ranking,
    )
    holds = all(value == 1 for value in exact) and by_activation < 1 and by_chance < 1
    return Verdict(planted.name, *exact, by_activation, by_chance, holds)


# --- the circuits ---


class _Plan:
    """Orthonormal directions with names, and the model that is written along them."""

    def __init__(
        self, words: list[str], concepts: list[str], n_layers: int, n_heads: int, n_ctx: int, seed: int
    ) -> None:
        self.words = words
        everything = [*(f"is {w}" for w in words), *(f"at {p}" for p in range(n_ctx)), *concepts]
        d_model = len(everything)
        generator = torch.Generator().manual_seed(seed)
        basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator, dtype=torch.float64))[0]
        self.along = dict(zip(everything, basis, strict=True))
        self.model = WrittenTransformer(
            n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=d_model, d_mlp=max(8, len(concepts)),
            d_vocab=len(words), n_ctx=n_ctx,
        )  # fmt: skip
        with torch.no_grad():
            for n, word in enumerate(words):
                self.model.W_E[n] = self.along[f"is {word}"]
            for p in range(n_ctx):
                self.model.W_pos[p] = 3 * self.along[f"at {p}"]  # strong, and of no effect once attention is settled

    def attend(self, layer: int, head: int, pairs: Mapping[str, str], score: float) -> None:
        """Lets a query with a direction attend to keys with another."""
        attention: Any = self.model.blocks[layer].attn
        with torch.no_grad():
            for n, (query, key) in enumerate(pairs.items()):
                attention.W_Q[head, :, n] += self.along[query]
                attention.W_K[head, :, n] += score * self.along[key]

    def move(self, layer: int, head: int, pairs: Mapping[str, str]) -> None:
        """Lets a head write a direction for each that it reads."""
        attention: Any = self.model.blocks[layer].attn
        with torch.no_grad():
            for n, (read, written) in enumerate(pairs.items()):
                attention.W_V[head, :, n] += self.along[read]
                attention.W_O[head, n] += self.along[written]

    def compute(self, layer: int, rules: Mapping[str, Mapping[str, float]], bias: float = 0.0) -> None:
        """Lets an MLP write a direction with what stands along others, weighted, where that is positive."""
        mlp: Any = self.model.blocks[layer].mlp
        with torch.no_grad():
            for n, (written, read) in enumerate(rules.items()):
                for name, weight in read.items():
                    mlp.W_in[:, n] += weight * self.along[name]
                mlp.b_in[n] = bias
                mlp.W_out[n] += self.along[written]

    def score(self, logits: Mapping[str, str]) -> None:
        """Lets a direction raise the logit of a word."""
        with torch.no_grad():
            for name, word in logits.items():
                self.model.unembed.W_U[:, self.words.index(word)] += self.along[name]

    def dictionary(self, hook: str, features: list[str]) -> Dictionary:
        """Returns the dictionary whose features are the directions of these names."""
        rows = torch.stack([self.along[name] for name in features])
        tensors = {
            "W_enc": rows.T.contiguous(), "W_dec": rows, "b_enc": torch.zeros(len(rows)).double(),
            "b_dec": torch.zeros(rows.shape[1]).double(), "threshold": torch.full((len(rows),), 1e-4).double(),
        }  # fmt: skip
        return Dictionary.from_tensors(
            architecture="jumprelu", hook_in=hook, tensors=tensors, prepend_bos=False, source=f"planted at {hook}"
        )

    def ids(self, text: str) -> list[int]:
        return [self.words.index(word) for word in text.split()]


def plant_copy(seed: int = 0) -> Planted:
    """The last position attends to the first and says its token."""
    words = ["red", "green", "blue", "end", "black"]
    plan = _Plan(words, [f"say {w}" for w in words], n_layers=1, n_heads=1, n_ctx=4, seed=seed)
    plan.attend(0, 0, {"at 3": "at 0"}, _HARD)
    plan.move(0, 0, {f"is {w}": f"say {w}" for w in words})
    plan.score({f"say {w}": w for w in words})
    site_in, site_out = "blocks.0.hook_resid_pre", "blocks.0.hook_attn_out"
    inputs, outputs = [*(f"is {w}" for w in words), *(f"at {p}" for p in range(4))], [f"say {w}" for w in words]
    spliced = SplicedModel(plan.model, [plan.dictionary(site_in, inputs), plan.dictionary(site_out, outputs)])
    u, v = names.feature(site_in, inputs.index("is green"), 0), names.feature(site_out, outputs.index("say green"), 3)
    task = Task(plan.ids("green red blue end"), metric=LogitDiff(words.index("green"), words.index("black")))
    return Planted("copy", spliced, task, frozenset({u, v}), frozenset({(u, v), (v, names.METRIC)}))


def plant_induction(seed: int = 0) -> Planted:
    """`C A B A` -> `B`: a head marks each token's predecessor, the next attends to where that is the present token."""
    words = ["A", "B", "C", "D"]
    concepts = [*(f"after {w}" for w in words), *(f"say {w}" for w in words)]
    plan = _Plan(words, concepts, n_layers=2, n_heads=1, n_ctx=4, seed=seed)
    plan.attend(0, 0, {f"at {p}": f"at {p - 1}" for p in range(1, 4)}, _HARD)
    plan.move(0, 0, {f"is {w}": f"after {w}" for w in words})
    plan.attend(1, 0, {f"is {w}": f"after {w}" for w in words}, 4.0)  # soft: queries and keys act too
    plan.move(1, 0, {f"is {w}": f"say {w}" for w in words})
    plan.score({f"say {w}": w for w in words})
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.1.hook_attn_out"]
    inputs = [*(f"is {w}" for w in words), *(f"at {p}" for p in range(4))]
    marks, says = [f"after {w}" for w in words], [f"say {w}" for w in words]
    dictionaries = [plan.dictionary(s, f) for s, f in zip(sites, (inputs, marks, says), strict=True)]
    spliced = SplicedModel(plan.model, dictionaries)
    first, value, query = (
        names.feature(sites[0], inputs.index(f"is {w}"), p) for w, p in (("A", 1), ("B", 2), ("A", 3))
    )
    key = names.feature(sites[1], marks.index("after A"), 2)
    say = names.feature(sites[2], says.index("say B"), 3)
    edges = {(value, say), (key, say), (query, say), (first, key), (say, names.METRIC)}
    nodes = frozenset({first, value, query, key, say})
    return Planted(
        "induction", spliced, Task(plan.ids("C A B A"), metric=Logit(words.index("B"))), nodes, frozenset(edges)
    )


def plant_comparison(seed: int = 0) -> Planted:
    """`7 4 ?` -> `more`: two heads bring the numbers, and an MLP takes their difference, one way round and the other."""
    words = ["two", "four", "seven", "?", "more", "less"]
    concepts = ["amount", "first amount", "second amount", "first is more", "second is more"]
    plan = _Plan(words, concepts, n_layers=1, n_heads=2, n_ctx=3, seed=seed)
    with torch.no_grad():
        for word, amount in (("two", 2.0), ("four", 4.0), ("seven", 7.0)):
            plan.model.W_E[words.index(word)] += amount * plan.along["amount"]
    plan.attend(0, 0, {"at 2": "at 0"}, _HARD)
    plan.attend(0, 1, {"at 2": "at 1"}, _HARD)
    plan.move(0, 0, {"amount": "first amount"})
    plan.move(0, 1, {"amount": "second amount"})
    plan.compute(0, {
        "first is more": {"first amount": 1.0, "second amount": -1.0},
        "second is more": {"second amount": 1.0, "first amount": -1.0},
    })  # fmt: skip
    plan.score({"first is more": "more", "second is more": "less"})
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"]
    inputs = ["amount", *(f"is {w}" for w in words), *(f"at {p}" for p in range(3))]
    amounts, verdicts = ["first amount", "second amount"], ["first is more", "second is more"]
    dictionaries = [plan.dictionary(s, f) for s, f in zip(sites, (inputs, amounts, verdicts), strict=True)]
    spliced = SplicedModel(plan.model, dictionaries)
    a, b = names.feature(sites[0], 0, 0), names.feature(sites[0], 0, 1)
    moved_a, moved_b = names.feature(sites[1], 0, 2), names.feature(sites[1], 1, 2)
    more = names.feature(sites[2], 0, 2)
    task = Task(plan.ids("seven four ?"), metric=LogitDiff(words.index("more"), words.index("less")))
    edges = {(a, moved_a), (b, moved_b), (moved_a, more), (moved_b, more), (more, names.METRIC)}
    return Planted("comparison", spliced, task, frozenset({a, b, moved_a, moved_b, more}), frozenset(edges))


def plant_two_step(seed: int = 0) -> Planted:
    """A city's country is looked up where the city stands, brought to the end, and its capital looked up there."""
    words = ["Lyon", "Bonn", "the", "capital", "Paris", "Berlin"]
    countries, cities = {"Lyon": "France", "Bonn": "Germany"}, {"France": "Paris", "Germany": "Berlin"}
    concepts = [f"{w} {c}" for w in ("in", "asked of") for c in cities] + [f"say {c}" for c in cities.values()]
    plan = _Plan(words, concepts, n_layers=2, n_heads=1, n_ctx=3, seed=seed)
    plan.compute(0, {f"in {country}": {f"is {city}": 2.0} for city, country in countries.items()})
    plan.attend(1, 0, {"at 2": "at 0"}, _HARD)
    plan.move(1, 0, {f"in {c}": f"asked of {c}" for c in cities})
    plan.compute(1, {f"say {capital}": {f"asked of {c}": 1.5} for c, capital in cities.items()})
    plan.score({f"say {c}": c for c in cities.values()})
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_mlp_out", "blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"]
    features = [
        [*(f"is {w}" for w in words), *(f"at {p}" for p in range(3))],
        [f"in {c}" for c in cities],
        [f"asked of {c}" for c in cities],
        [f"say {c}" for c in cities.values()],
    ]
    spliced = SplicedModel(plan.model, [plan.dictionary(s, f) for s, f in zip(sites, features, strict=True)])
    chain = [
        names.feature(sites[0], features[0].index("is Bonn"), 0),
        names.feature(sites[1], 1, 0),
        names.feature(sites[2], 1, 2),
        names.feature(sites[3], 1, 2),
    ]
    task = Task(plan.ids("Bonn the capital"), metric=LogitDiff(words.index("Berlin"), words.index("Paris")))
    edges = zip(chain, [*chain[1:], names.METRIC], strict=True)
    return Planted("two-step", spliced, task, frozenset(chain), frozenset(edges))


PLANTED: dict[str, Callable[[int], Planted]] = {
    "copy": plant_copy,
    "induction": plant_induction,
    "comparison": plant_comparison,
    "two-step": plant_two_step,
}


def _precision_recall(found: set[Any], truth: frozenset[Any]) -> tuple[float, float]:
    right = len(found & truth)
    return right / max(len(found), 1), right / len(truth)


def _average_precision(scores: NDArray[Any], truth: NDArray[Any]) -> float:
    """Returns the average precision; of equal scores the planted ones are counted last."""
    order = np.lexsort((truth, -scores))
    hits = truth[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def _expected_precision(n: int, n_true: int) -> float:
    """Returns the average precision that a random order has on average (Bestgen 2015)."""
    if n == n_true:
        return 1.0
    harmonic = float(np.sum(1 / np.arange(1, n + 1)))
    share = (n_true - 1) / (n - 1)
    return float(harmonic / n * (1 - share) + share)
