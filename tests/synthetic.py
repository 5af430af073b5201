"""Made-up circuits of realistic shape, seeded: few large effects and many small ones, most late in the prompt."""

import random

import networkx as nx

from circuitsae import names
from circuitsae.graph.circuit import Circuit

PROMPT = "When Mary and John went to the store, John gave a drink to"
TOKENS = "When| Mary| and| John| went| to| the| store|,| John| gave| a| drink| to".split("|")
LABELS = (
    "names of women, after a conjunction",
    "the second of two names",
    "verbs of giving: gave, handed, passed",
    "preposition that wants a person",
    "repeated subject",
    "shops and places to buy things",
    "end of a clause before a comma",
    "indirect object is the other name",
)


def synthetic_circuit(
    seed: int = 0,
    n_features: int = 250,
    tokens: list[str] | None = None,
    layers: tuple[int, ...] = (2, 7, 12, 17, 22, 27),
    parts: tuple[str, ...] = ("hook_resid_post",),
    n_edges: int | None = None,
    d_sae: int = 3072,
    measured: bool = True,
    labelled: float = 0.3,
) -> Circuit:
    """Returns a circuit of `n_features` features and some error nodes at `layers` x `parts` on `tokens`.

    Edges run from every site to the next two above it, at the same or an earlier position, about eight to a node unless
    `n_edges` says how many; weights are log-normal, and a node's effect is the sum of its out-edges' weights.
    """
    rng = random.Random(seed)
    tokens = TOKENS if tokens is None else tokens
    sites = [f"blocks.{layer}.{part}" for layer in layers for part in parts]
    last = len(tokens) - 1
    position_weights = [rng.lognormvariate(0, 0.9) for _ in range(last)] + [0.45 * len(tokens)]
    position_weights[0] = 0.0
    places = [(depth, position) for depth in range(len(sites)) for position in range(len(tokens))]
    place_weights = [position_weights[p] * (0.7 + 0.6 * (p == last) * d / len(sites)) for d, p in places]
    known: dict[str, tuple[int, int, str]] = {}
    vocabulary = {site: [rng.randrange(d_sae) for _ in range(max(8, n_features // 4))] for site in sites}
    while len(known) < n_features:
        depth, position = rng.choices(places, place_weights)[0]
        key = names.feature(sites[depth], rng.choice(vocabulary[sites[depth]]), position)
        known[key] = (depth, position, "feature")
    for depth, site in enumerate(sites):
        for position in rng.sample(range(1, len(tokens)), k=min(2, last)):
            known[names.error(site, position)] = (depth, position, "error")
    for position in range(len(tokens)):
        known[names.token(position)] = (-1, position, "token")
    known[names.BIAS] = (-1, -1, "bias")
    known[names.METRIC] = (len(sites), last, "metric")

    strength = {key: rng.lognormvariate(0, 1.1) for key in known}
    total = n_edges or 8 * n_features
    by_depth: dict[int, list[str]] = {}
    for key, (depth, _, _) in known.items():
        by_depth.setdefault(depth, []).append(key)
    edges: dict[tuple[str, str], float] = {}
    targets = [key for key, (_, _, kind) in known.items() if kind == "feature"]
    for target in targets:
        depth, position, _ = known[target]
        below = [k for d in (depth - 1, depth - 2) for k in by_depth.get(d, []) if known[k][1] <= position]
        if below:
            pulls = [strength[k] * (3.0 if known[k][1] == position else 0.5) for k in below]
            for source in rng.choices(below, pulls, k=max(1, total // len(targets))):
                sign = 1 if rng.random() < 0.72 else -1
                edges[source, target] = sign * strength[source] * strength[target] * rng.lognormvariate(-3, 0.8)
    top = [k for d in (len(sites) - 1, len(sites) - 2) for k in by_depth.get(d, []) if known[k][1] == last]
    for source in top:
        sign = 1 if rng.random() < 0.7 else -1
        edges[source, names.METRIC] = sign * strength[source] ** 1.5 * rng.lognormvariate(-1.5, 0.6)

    graph = nx.DiGraph()
    for key in sorted(known, key=names.sort_key):
        graph.add_node(key)
    for (source, target), contribution in edges.items():
        graph.add_edge(source, target, contribution=contribution, weight=-contribution * rng.uniform(0.2, 1.0))
    label_of = {
        (site, index): rng.choice(LABELS) for site in sites for index in vocabulary[site] if rng.random() < labelled
    }
    for key, data in graph.nodes(data=True):
        _, position, kind = known[key]
        if kind == "metric":
            continue
        effect = sum(edge["weight"] for _, _, edge in graph.out_edges(key, data=True))
        inputs = [abs(edge["contribution"]) for _, _, edge in graph.in_edges(key, data=True)]
        data.update(effect=effect, baseline=0.0)
        if kind in ("feature", "error"):
            data.update(activation=strength[key] * 3, influence=rng.random())
            if measured and abs(effect) > 0.05:
                data["measured_effect"] = effect * rng.gauss(0.96, 0.12)
        if kind == "feature" and inputs:
            data.update(explained=rng.uniform(0.4, 0.97), total=strength[key] * 3)
        if position >= 0:
            data["token"] = tokens[position]
        node = names.parse(key)
        if (node.site, node.index) in label_of:
            data["label"] = label_of[node.site, node.index]
    graph.graph.update(
        package_version="0.1.0",
        created="2026-11-24T08:00:00+00:00",
        model={"name": "SmolLM2-135M-Instruct", "n_layers": 30, "d_model": 576, "d_vocab": 49152},
        preset="smollm2",
        dictionaries=[
            {
                "site": site,
                "hook_in": site,
                "hook_outs": [site],
                "architecture": "topk",
                "d_sae": d_sae,
                "source": f"smollm2/{site}",
                "fingerprint": f"{rng.getrandbits(256):064x}",
            }
            for site in sites
        ],
        sites=sites,
        prompt="".join(tokens),
        tokens=list(tokens),
        token_ids=[rng.randrange(49152) for _ in tokens],
        metric={
            "name": "logit-diff",
            "description": 'logit of " Mary" minus logit of " John"',
            "answer": " Mary",
            "foil": " John",
            "position": -1,
        },
        metric_value=5.29,
        top_tokens=[[" Mary", 0.62], [" her", 0.09], [" the", 0.06], [" his", 0.04], [" a", 0.03], [" John", 0.02]],
        method="attribution-patching",
        baseline="zero",
        gradient="pass-through",
        linearisation="gradient",
        prune="top-k",
        options={"max_nodes": n_features, "node_threshold": None, "skip_positions": [0]},
        kept={
            "nodes": graph.number_of_nodes(),
            "candidates": 11 * n_features,
            "edges": graph.number_of_edges(),
            "edge_candidates": 4 * graph.number_of_edges(),
            "effect_share": 0.91,
            "error_share": 0.12,
        },
    )
    return Circuit(graph)
