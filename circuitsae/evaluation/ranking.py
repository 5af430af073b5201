"""The nodes that an evaluation keeps or ablates, in a table, and orders of them: which nodes a circuit of size k has.

An *owner* is where a node lives: a dictionary (its features) or a hook point written (its error nodes). Within an owner a
node is a whole number: its index, or `position * d_sae + index` where nodes have positions; an error node is its position,
or 0. So a table over tens of thousands of nodes is two arrays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from circuitsae import names
from circuitsae.errors import InputError, NodeError
from circuitsae.model.spliced import SplicedModel

Numbers = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Owners:
    """Where nodes live in one spliced model: its dictionaries, then the hook points written.

    Attributes:
        sites: The dictionaries' site ids.
        widths: Their numbers of features.
        hooks: The hook points written.
        layers: The layer of each owner: for a dictionary that of what it reads.
        positioned: Whether nodes have positions.
    """

    sites: tuple[str, ...]
    widths: tuple[int, ...]
    hooks: tuple[str, ...]
    layers: tuple[int, ...]
    positioned: bool

    @classmethod
    def of(cls, spliced: SplicedModel, positioned: bool) -> "Owners":
        """Returns the owners of a model."""
        layers = [spliced.hooked.layer(read) for read in spliced.reads]
        layers += [spliced.hooked.layer(hook) for hook in spliced.written]
        widths = tuple(d.d_sae for d in spliced.dictionaries)
        return cls(spliced.sites, widths, spliced.written, tuple(layers), positioned)

    def __len__(self) -> int:
        return len(self.layers)

    def is_error(self, owner: int) -> bool:
        """Whether an owner's nodes are error nodes."""
        return owner >= len(self.sites)

    def number(self, owner: int, position: Numbers, index: Numbers) -> Numbers:
        """Returns nodes' numbers within their owner."""
        if self.is_error(owner):
            return position if self.positioned else np.zeros_like(position)
        return position * self.widths[owner] + index if self.positioned else index

    def key(self, owner: int, number: int) -> str:
        """Returns a node's key."""
        if self.is_error(owner):
            return names.error(self.hooks[owner - len(self.sites)], number if self.positioned else None)
        position, index = divmod(number, self.widths[owner]) if self.positioned else (None, number)
        return names.feature(self.sites[owner], index, position)

    def parse(self, key: str, canonical: Mapping[str, str]) -> tuple[int, int] | None:
        """Returns a node's owner and number, `None` for tokens, bias and metric.

        Raises:
            NodeError: The model has no such node, or the key has a position where the others have none.
        """
        node = names.parse(key)
        if node.kind not in ("feature", "error"):
            return None
        if (isinstance(node.position, int)) != self.positioned:
            raise NodeError(
                f"{key!r} {'has a' if not self.positioned else 'has no'} position while other nodes of the evaluation "
                f"{'have none' if not self.positioned else 'have one'}; expected all or none."
            )
        position = node.position if isinstance(node.position, int) else 0
        if node.kind == "error":
            hook = canonical.get(str(node.site), str(node.site))
            if hook not in self.hooks:
                raise NodeError(f"{key!r} is at no hook point of this model's dictionaries: {', '.join(self.hooks)}.")
            owner = len(self.sites) + self.hooks.index(hook)
        else:
            if node.site not in self.sites:
                raise NodeError(f"{key!r} is at none of this model's sites: {', '.join(self.sites)}.")
            owner = self.sites.index(node.site)
            if (node.index or 0) >= self.widths[owner]:
                raise NodeError(f"{key!r} is outside its dictionary, which has features 0 to {self.widths[owner] - 1}.")
        number = self.number(owner, np.array([position]), np.array([node.index or 0]))
        return owner, int(number[0])


@dataclass(frozen=True)
class NodeTable:
    """Nodes, sorted by owner, then number; none twice.

    Attributes:
        owners: Where they live.
        owner, number: Of each node.
    """

    owners: Owners
    owner: Numbers
    number: Numbers

    @classmethod
    def union(cls, owners: Owners, parts: Iterable[tuple[Numbers, Numbers]]) -> "NodeTable":
        """Returns the table of all nodes that are in some part."""
        pairs = [np.stack(part) for part in parts]
        found = np.unique(np.concatenate(pairs, 1), axis=1) if pairs else np.zeros((2, 0), np.int64)
        return cls(owners, found[0], found[1])

    def __len__(self) -> int:
        return len(self.owner)

    @cached_property
    def bounds(self) -> Numbers:
        """Where each owner's nodes begin, `[owner + 1]`."""
        return np.searchsorted(self.owner, np.arange(len(self.owners) + 1))

    def part(self, owner: int) -> slice:
        """Returns where an owner's nodes are."""
        return slice(int(self.bounds[owner]), int(self.bounds[owner + 1]))

    def find(self, owner: Numbers, number: Numbers) -> Numbers:
        """Returns the place of each node, -1 for those that are not in the table."""
        places = np.full(len(owner), -1, np.int64)
        for one in np.unique(owner):
            part, mine = self.part(int(one)), owner == one
            numbers, wanted = self.number[part], number[mine]
            found = np.searchsorted(numbers, wanted)
            there = found < len(numbers)
            there[there] = numbers[found[there]] == wanted[there]
            places[mine] = np.where(there, part.start + found, -1)
        return places

    def key(self, place: int) -> str:
        """Returns the key of the node at a place."""
        return self.owners.key(int(self.owner[place]), int(self.number[place]))

    def scored(self, scores: Mapping[str, float], canonical: Mapping[str, str]) -> Reals:
        """Returns nodes' scores by place, minus infinity where none was given; scores of nodes not in the table are none."""
        result = np.full(len(self), -np.inf)
        owner, number, values = parsed(self.owners, scores, canonical)
        places = self.find(owner, number)
        result[places[places >= 0]] = values[places >= 0]
        return result


@dataclass(frozen=True)
class Ranking:
    """An order of a table's nodes. The circuit of size k has the first k.

    Attributes:
        name: What it is called.
        order: Places, first node first.
    """

    name: str
    order: Numbers

    @cached_property
    def rank(self) -> Numbers:
        """By place, how many nodes come before."""
        rank = np.empty(len(self.order), np.int64)
        rank[self.order] = np.arange(len(self.order))
        return rank


def ranked(name: str, *scores: Reals) -> Ranking:
    """Returns the order of descending scores; the next scores decide between equals, then the table's order."""
    places = np.arange(len(scores[0]))
    return Ranking(name, np.lexsort((places, *(-s for s in reversed(scores)))))


def shuffled(name: str, n_nodes: int, seed: Sequence[int]) -> Ranking:
    """Returns a random order."""
    return Ranking(name, np.random.default_rng(list(seed)).permutation(n_nodes))


def parsed(owners: Owners, scores: Mapping[str, float], canonical: Mapping[str, str]) -> tuple[Numbers, Numbers, Reals]:
    """Returns owner, number and score of the features and error nodes among the keys.

    Raises:
        NodeError: A key names no node of the model.
    """
    found: dict[tuple[int, int], float] = {}
    for key, score in scores.items():
        node = owners.parse(key, canonical)
        if node is not None:
            found[node] = float(score)
    nodes = np.array(list(found), np.int64).reshape(-1, 2)
    return nodes[:, 0], nodes[:, 1], np.array(list(found.values()), np.float64)


def has_positions(keys: Iterable[str]) -> bool | None:
    """Whether the features and error nodes among the keys have positions, `None` where there is none.

    Raises:
        InputError: Some have one and some have none.
    """
    seen = {isinstance(node.position, int) for key in keys if (node := names.parse(key)).kind in ("feature", "error")}
    if len(seen) == 2:
        raise InputError("Some nodes of the circuit have a position and some have none; expected all or none.")
    return seen.pop() if seen else None
