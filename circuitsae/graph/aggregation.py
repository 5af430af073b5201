"""Circuits of many prompts as one: means over the prompts, and on every node and edge how far they spread."""

import datetime
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import networkx as nx

from circuitsae import __version__, names
from circuitsae.errors import InputError
from circuitsae.graph.alignment import Align, Aligning, tokens_of
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import Attributes, Graph, known_effect

# A node that a prompt's circuit lacks does nothing there: zero. What else is not known stays unknown.
_ZERO_WHERE_MISSING = ("activation", "baseline", "effect", "total", "influence")
_WHERE_KNOWN = ("measured_effect", "explained", "probability")
_SPREAD = ("activation", "effect")
_OF_EDGES = ("contribution", "weight")
# Of several positions of one prompt put together, these are no sums of theirs.
_NOT_ADDITIVE = ("measured_effect", "explained")
_SAME = (
    *("model", "preset", "patch", "prompt", "method", "baseline", "gradient", "linearisation", "prune"),
    *("token_ids", "patch_tokens", "patch_token_ids"),
)
_FRACTION = 1074  # the smallest float is 2**-1074
_LISTED = 1000  # prompts that an average names, each with its metric


def aggregate(
    circuits: Iterable[Circuit],
    *,
    align: Align = "position",
    slots: Sequence[Sequence[str]] | None = None,
    min_count: int = 1,
) -> Circuit:
    """Returns the circuit averaged over a set of prompts' circuits.

    Every number is the mean over all prompts; where a prompt's circuit lacks a node or an edge it counts as zero there
    (its feature is not active, or was too weak to be kept). `count` says in how many circuits a node or edge is, and
    `effect_std`, `activation_std`, `contribution_std` and `weight_std` by how much it varies over the prompts (standard
    deviation, zeros included). Into `effect` goes what was measured, where a circuit has it; `measured_effect`, `explained` and `probability` are means over the circuits that know
    them. Nodes that fall together in one prompt (several positions in one slot, or summed over) are added up first.

    Args:
        circuits: Of one model and its dictionaries: a list, a batch, or an iterator, of which one circuit is looked at after
            another and none is kept. (`"template"` without `slots` looks at all prompts first: an iterator is read into a
            list for it, anything else is gone through twice.)
        align: `"position"` (prompts of equal length), `"template"` (equal slots: named by `slots`, or the tokens that all
            prompts share, and the runs between them) or `"sum"` (a feature's positions are one node, without `@`).
        slots: By circuit, the slot's name at each position, for `align="template"`.
        min_count: Nodes in fewer circuits are left out.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: No circuits, circuits of different models, dictionaries or metrics, or that can't be aligned so.
    """
    texts = None
    if align == "template" and slots is None:
        circuits = list(circuits) if isinstance(circuits, Iterator) else circuits
        texts = [tokens_of(circuit) for circuit in circuits]
    return average(circuits, align, slots, min_count, texts)


def average(
    circuits: Iterable[Circuit],
    align: str,
    slots: Sequence[Sequence[str]] | None,
    min_count: int,
    texts: Sequence[Sequence[str]] | None,
) -> Circuit:
    """Returns what `aggregate` does; `texts` are the prompts' tokens, where the alignment has to know them first."""
    aligning, about = Aligning(align, slots, texts), _About()
    nodes: dict[str, _Mean] = {}
    edges: dict[tuple[str, str], _Mean] = {}
    for circuit in circuits:
        places = aligning.add(circuit)
        about.add(circuit)
        own_nodes, own_edges = collapse(circuit, places)
        for key, data in own_nodes.items():
            nodes.setdefault(key, _Mean(_ZERO_WHERE_MISSING, _WHERE_KNOWN, _SPREAD)).add(data)
        for ends, data in own_edges.items():
            edges.setdefault(ends, _Mean(_OF_EDGES, (), _OF_EDGES)).add(data)
    n, tokens = aligning.count, aligning.tokens()
    check_min_count(min_count, n)
    graph: Graph = nx.DiGraph()
    for key in sorted(nodes, key=names.sort_key):
        node = names.parse(key)
        if nodes[key].count >= min_count or node.kind in ("token", "bias", "metric"):
            data = nodes[key].result(n)
            if isinstance(node.position, int) and tokens is not None and "token" in data:
                data["token"] = tokens[node.position]
            graph.add_node(key, **data)
    for (source, target), found in edges.items():
        if source in graph and target in graph:
            graph.add_edge(source, target, **found.result(n))
    graph.graph.update(about.result(tokens, align, min_count))
    graph.graph["kept"] = {
        "nodes": graph.number_of_nodes(),
        "candidates": len(nodes),
        "edges": graph.number_of_edges(),
        "edge_candidates": len(edges),
    }
    return Circuit(graph)


def check_min_count(min_count: int, n_circuits: int) -> None:
    """Says when no node could be in so many circuits.

    Raises:
        InputError: It is less than one, or more than there are circuits.
    """
    if not 1 <= min_count <= n_circuits:
        raise InputError(f"min_count is {min_count}; expected from 1 to the number of circuits, {n_circuits}.")


def collapse(
    circuit: Circuit, places: Sequence[int] | None, tokens: Sequence[str] | None = None
) -> tuple[dict[str, Attributes], dict[tuple[str, str], Attributes]]:
    """Returns one circuit's nodes and edges under their common keys; those that fall together are added up.

    Args:
        circuit: The circuit.
        places: By position, where it goes; `None` where positions are summed over.
        tokens: By place, the text that stands there; a node's own token by default.
    """
    common: dict[str, names.NodeKey] = {}
    for key in circuit:
        node = names.parse(key)
        at = node.position
        common[key] = node.at(None if places is None else places[at]) if isinstance(at, int) else node
    nodes: dict[str, Attributes] = {}
    for key, data in circuit.graph.nodes(data=True):
        mine = {name: value for name, value in data.items() if name not in ("position", "cumulative_influence")}
        effect = known_effect(data)
        if effect is not None:
            mine["effect"] = effect
        position, known = common[key].position, str(common[key])
        if isinstance(position, int) and tokens is not None and "token" in mine:
            mine["token"] = tokens[position]
        elif position is None:
            mine.pop("token", None)
        if known in nodes:
            _add_into(nodes[known], mine)
        else:
            nodes[known] = mine
    edges: dict[tuple[str, str], Attributes] = {}
    for source, target, data in circuit.graph.edges(data=True):
        ends = str(common[source]), str(common[target])
        if ends in edges:
            for name in _OF_EDGES:
                if name in data:
                    edges[ends][name] = edges[ends].get(name, 0.0) + data[name]
        else:
            edges[ends] = {name: data[name] for name in _OF_EDGES if name in data}
    return nodes, edges


def _add_into(sum_of: Attributes, data: Attributes) -> None:
    for name in _NOT_ADDITIVE:
        sum_of.pop(name, None)
    for name in (*_ZERO_WHERE_MISSING, "probability"):
        if name in data:
            sum_of[name] = sum_of.get(name, 0.0) + data[name]


class _Sum:
    """Numbers of one place in many circuits: their sum and that of their squares, exactly and in whatever order.

    Whole multiples of 2**-1074 hold every float; means are those of `math.fsum`.
    """

    __slots__ = ("count", "squares", "total")

    def __init__(self) -> None:
        self.count = self.total = self.squares = 0

    def add(self, value: float) -> None:
        numerator, denominator = value.as_integer_ratio()
        places = _FRACTION + 1 - denominator.bit_length()
        self.count += 1
        self.total += numerator << places
        self.squares += numerator * numerator << 2 * places

    def mean(self, n: int) -> float:
        """Returns the mean of `n` numbers: these, and zeros for the rest."""
        return self.total / (1 << _FRACTION) / n

    def spread(self, n: int) -> float:
        """Returns their standard deviation."""
        return math.isqrt(n * self.squares - self.total**2) / (n << _FRACTION)


class _Mean:
    """A node or an edge over many circuits.

    Args:
        zero: Its numbers that are zero in a circuit that lacks it.
        known: Those that are means over the circuits that know them.
        spread: Those whose standard deviation is given.
    """

    __slots__ = ("_known", "_rest", "_spread", "_sums", "_zero", "count")

    def __init__(self, zero: Sequence[str], known: Sequence[str], spread: Sequence[str]) -> None:
        self._zero, self._known, self._spread = zero, known, spread
        self.count = 0
        self._rest: Attributes = {}
        self._sums: dict[str, _Sum] = {}

    def add(self, data: Attributes) -> None:
        self.count += 1
        for name, value in data.items():
            if name in self._zero or name in self._known:
                self._sums.setdefault(name, _Sum()).add(value)
            else:  # what is no number (kind, site, label, ...) is the first's that has it
                self._rest.setdefault(name, value)

    def result(self, n: int) -> Attributes:
        result = dict(self._rest)
        for name in self._zero:
            if name in self._sums:
                result[name] = self._sums[name].mean(n)
                if name in self._spread:
                    result[f"{name}_std"] = self._sums[name].spread(n)
        for name in self._known:
            if name in self._sums:
                result[name] = self._sums[name].mean(self._sums[name].count)
        result["count"] = self.count
        return result


class _About:
    """The attributes of an average's graph: what all circuits have in common, and what each one was."""

    def __init__(self) -> None:
        self.count = 0
        self._first: dict[str, Any] = {}
        self._same: dict[str, Any] = {}
        self._options: dict[str, Any] = {}
        self._dictionaries: dict[str, Any] = {}
        self._sites: dict[str, None] = {}
        self._metrics: set[str] = set()
        self._descriptions: dict[str, None] = {}
        self._values = {"metric_value": _Sum(), "baseline_metric_value": _Sum()}
        self._has_tokens = self._has_metric = False
        self._prompts: list[dict[str, Any]] = []

    def add(self, circuit: Circuit) -> None:
        """Takes one more circuit in.

        Raises:
            InputError: Its metric is another than the others'.
        """
        about = circuit.graph.graph
        options = about.get("options", {})
        if not self.count:
            self._first = about
            self._same = {name: about[name] for name in _SAME if name in about}
            self._options = dict(options)
        self.count += 1
        self._same = {k: v for k, v in self._same.items() if k in about and about[k] == v}
        self._options = {k: v for k, v in self._options.items() if k in options and options[k] == v}
        self._dictionaries |= {str(d.get("site")): d for d in about.get("dictionaries", [])}
        self._sites |= dict.fromkeys(about.get("sites", []))
        self._has_tokens |= "tokens" in about
        self._has_metric |= "metric" in about
        self._metrics |= {str(about.get("metric", {}).get("name", ""))} - {""}
        if len(self._metrics) > 1:
            raise InputError(
                f"The circuits explain different metrics ({', '.join(sorted(self._metrics))}), whose units can't be "
                "averaged; expected one."
            )
        if len(self._descriptions) <= _LISTED:
            self._descriptions[str(about.get("metric", {}).get("description", ""))] = None
        for name, values in self._values.items():
            if about.get(name) is not None:
                values.add(about[name])
        if len(self._prompts) < _LISTED:
            shown = ("metric", "metric_value", "baseline_metric_value", "patch")
            self._prompts.append({"prompt": circuit.prompt, **{k: about[k] for k in shown if about.get(k) is not None}})

    def result(self, tokens: Sequence[str] | None, align: str, min_count: int) -> dict[str, Any]:
        about = dict(self._same)
        about["package_version"] = __version__
        about["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        if self._dictionaries:
            about["dictionaries"] = list(self._dictionaries.values())
        if self._sites:
            about["sites"] = list(self._sites)
        if tokens is not None and self._has_tokens:
            about["tokens"] = list(tokens)
        if tokens is None or len(tokens) != len(self._first.get("tokens", ())):
            for name in ("token_ids", "patch_tokens", "patch_token_ids"):
                about.pop(name, None)
        about["options"] = self._options
        if self._has_metric:
            first, several = next(iter(self._descriptions)), len(self._descriptions)
            number = f"{several}" if several <= _LISTED else f"over {_LISTED:,}"
            text = first if several == 1 else f"{number} metrics, such as {first}"
            about["metric"] = {
                "name": str(self._first.get("metric", {}).get("name", "metric")),
                "description": f"mean over {self.count} prompts of {text}",
            }
        for name, values in self._values.items():
            if values.count == self.count:
                about[name] = values.mean(self.count)
        about["aggregate"] = {"prompts": self.count, "align": align, "min_count": min_count}
        about["prompts"] = self._prompts
        return about
