"""Groups: nodes of a circuit that do the same job, as one supernode. Plugins (group `groupings`); needs no torch.

Two features do the same job where the same things reach them and they reach the same things (the profiles of ADAG, Arora et
al. 2026, arXiv 2604.07615), wherever in the model they are: a plural may be read at one layer and carried by the next ones.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from circuitsae import names, registry
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.influence import input_shares
from circuitsae.graph.table import FEATURE, METRIC, EdgeTable, Floats, Ints, table_of

# Members of a group are nearer to one another than to what has nothing in common with them, whose distance is 1.
_FARTHEST = 0.5
_MOST = 400  # features; the cost grows with their third power
_NAME = 48  # characters of a group's name


class Grouping(Protocol):
    """What a grouping plugin is: a class whose instance, called with a circuit, gives lists of its features' keys."""

    def __call__(self, circuit: Circuit) -> list[list[str]]:
        """Returns the groups, of two nodes at least, no node in two of them."""
        ...


def group(circuit: Circuit, method: str = "profiles") -> Circuit:
    """Returns the circuit with the groups that its features fall into, in place of those it has.

    They stand in its graph's attribute `groups`, which the page, the app and Neuronpedia's format show as supernodes: a name
    (the label of the strongest member, or what and where they are) and the members' keys, the strongest group first.

    Args:
        circuit: The circuit.
        method: Name of a grouping plugin.

    Raises:
        UnknownNameError: There is no such grouping.

    Example:
        >>> import circuitsae as cs
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> circuit = cs.group(cs.trace(cs.load("tiny"), task, max_nodes=48))
        >>> groups = circuit.graph.graph["groups"]
        >>> len(groups) > 1 and all(len(group["keys"]) > 1 for group in groups)
        True
    """
    result = circuit.subgraph(circuit)
    result.graph.graph.update(circuit.graph.graph)
    rank = {key: place for place, key in enumerate(circuit.strongest(len(circuit), "feature"))}
    groups = registry.get("groupings", method)()(result)
    ordered = [sorted(keys, key=lambda key: rank.get(key, len(rank))) for keys in groups]
    ordered.sort(key=lambda keys: rank.get(keys[0], len(rank)))
    result.graph.graph["groups"] = [{"name": name_of(result, keys), "keys": keys} for keys in ordered]
    return result


def name_of(circuit: Circuit, keys: Sequence[str]) -> str:
    """Returns a name for some nodes, the strongest first: its label, and the layers and the token where they are."""
    nodes = [circuit[key] for key in keys]
    layers = sorted({node["layer"] for node in nodes if "layer" in node})
    tokens = list(dict.fromkeys(node["token"] for node in nodes if "token" in node))
    where = f"L{layers[0]}" + (f"-{layers[-1]}" if len(layers) > 1 else "") if layers else ""
    label = next((" ".join(str(node["label"]).split()) for node in nodes if node.get("label")), "")
    label = label if len(label) <= _NAME else f"{label[: _NAME - 1]}\u2026"
    token = f"{tokens[0]!r}" + (f" and {len(tokens) - 1} more" if len(tokens) > 1 else "") if tokens else ""
    place = " ".join(part for part in (where, token) if part) or f"{len(keys)} nodes"
    return f"{label} ({place})" if label else place


class Profiles:
    """Groups by what reaches a feature and what it reaches, over all paths; as many groups as the circuit falls into.

    What reaches it: the signed share of its input that comes from each token and error node. What it reaches: the signed share
    that it has in the input of every feature above it, and of the metric. The distance of two features is one less the mean of
    the two cosines, halved where they are one feature at two positions; groups are made by average linkage, and of all ways to
    stop that keep members together the one with the largest mean silhouette is taken (Rousseeuw 1987). Deterministic. Of more
    than 400 features the strongest 400 are grouped.
    """

    def __call__(self, circuit: Circuit) -> list[list[str]]:
        """See [Grouping][circuitsae.graph.grouping.Grouping]."""
        table, keys = table_of(circuit.graph)
        offered = {*circuit.strongest(_MOST, "feature")} or {*circuit.features[:_MOST]}
        features = [n for n in np.flatnonzero(table.kinds == FEATURE).tolist() if keys[n] in offered]
        if len(features) < 3:
            return []
        arriving, leaving = profiles(table, keys)
        similarity = (_cosines(arriving[features]) + _cosines(leaving[features])) / 2
        distance = 1 - similarity
        parsed = [names.parse(keys[n]) for n in features]
        same = np.array([[a.site == b.site and a.index == b.index for b in parsed] for a in parsed])
        distance = np.where(same, distance / 2, distance)
        np.fill_diagonal(distance, 0.0)
        clusters = linked(distance, _FARTHEST)
        members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
        return [[keys[features[n]] for n in group.tolist()] for group in members if len(group) > 1]


def profiles(table: EdgeTable, keys: Sequence[str]) -> tuple[Floats, Floats]:
    """Returns what reaches each node and what each reaches, over all paths, as signed shares.

    Args:
        table: The circuit's edges.
        keys: Its nodes, whose order gives that of the model.

    Returns:
        Of each node, the share of its input that comes from every node nothing leads to (`[node node]`), and the share that
        it has in the input of every feature and metric node (`[node node]`).
    """
    n = table.n_nodes
    shares = input_shares(table) * np.sign(table.contributions)
    order = {
        number: place for place, number in enumerate(sorted(range(n), key=lambda number: names.sort_key(keys[number])))
    }
    place = np.array([order[number] for number in range(n)])
    fed = np.bincount(table.targets, minlength=n) > 0
    arriving, leaving = np.diag((~fed).astype(float)), np.zeros((n, n))
    reached = np.diag(np.isin(table.kinds, (FEATURE, METRIC)).astype(float))
    upward = np.argsort(place[table.targets], kind="stable")
    for edge in upward.tolist():  # all that leads to a source stands before
        arriving[table.targets[edge]] += shares[edge] * arriving[table.sources[edge]]
    for edge in np.argsort(-place[table.sources], kind="stable").tolist():
        target = table.targets[edge]
        leaving[table.sources[edge]] += shares[edge] * (reached[target] + leaving[target])
    return arriving, leaving


def linked(distance: Floats, farthest: float) -> Ints:
    """Returns each node's cluster by average linkage, stopped where the mean silhouette is largest.

    Args:
        distance: Of every pair, `[node node]`.
        farthest: Clusters whose mean distance is larger are never joined.
    """
    n = len(distance)
    label = np.arange(n, dtype=np.int32)
    best, found = -np.inf, label.copy()
    apart = distance.astype(float).copy()
    np.fill_diagonal(apart, np.inf)
    size = np.ones(n)
    while True:
        a, b = divmod(int(apart.argmin()), n)
        if not apart[a, b] <= farthest:
            return found
        a, b = min(a, b), max(a, b)
        apart[a] = (size[a] * apart[a] + size[b] * apart[b]) / (size[a] + size[b])
        apart[:, a], apart[a, a] = apart[a], np.inf
        apart[b], apart[:, b] = np.inf, np.inf
        size[a] += size[b]
        label[label == b] = a
        score = silhouette(distance, label)
        if score > best + 1e-9:
            best, found = score, label.copy()


def silhouette(distance: Floats, label: Ints) -> float:
    """Returns the mean over all nodes of how much nearer a node is to its own cluster than to the next; alone it counts 0."""
    clusters, at = np.unique(label, return_inverse=True)
    if len(clusters) < 2:
        return 0.0
    member = np.eye(len(clusters))[at]
    counts = member.sum(0)
    sums = distance @ member
    own = counts[at]
    inside = sums[np.arange(len(at)), at] / np.maximum(own - 1, 1)
    means = sums / counts
    means[np.arange(len(at)), at] = np.inf
    outside = means.min(1)
    widest = np.maximum(np.maximum(inside, outside), 1e-12)
    return float(np.where(own > 1, (outside - inside) / widest, 0.0).mean())


def _cosines(rows: Floats) -> Floats:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit @ unit.T
