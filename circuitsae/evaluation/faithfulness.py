"""The faithfulness of one set of nodes on one prompt, beside that of random sets of as many."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from circuitsae.attribution.context import Context
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.evaluation.measuring import ERRORS, Cut, Errors, measure_cuts
from circuitsae.evaluation.ranking import NodeTable, Numbers, Owners, Ranking, Reals, parsed, ranked
from circuitsae.evaluation.statistics import share_of


@dataclass(frozen=True)
class Faithfulness:
    """What a set of nodes is worth on one prompt, all other nodes set to their baselines.

    Attributes:
        size: How many features and error nodes the set has.
        pool: How many there are on the prompt and in its baseline.
        full: The metric of the model.
        empty: The metric with every node at its baseline.
        metric: That with only those outside the set at theirs, `m(C)`.
        complement: That with only those of the set at theirs.
        random: That of random sets, of as many features and as many error nodes.
        errors: How error nodes were treated.
    """

    size: int
    pool: int
    full: float
    empty: float
    metric: float
    complement: float
    random: tuple[float, ...]
    errors: Errors

    def _share(self, metric: float) -> float | None:
        share = float(share_of(np.array(metric), np.array(self.empty), np.array(self.full)))
        return None if np.isnan(share) else share

    @property
    def faithfulness(self) -> float | None:
        """`(m(C) - m(empty)) / (m(full) - m(empty))`, `None` where ablating everything moves the metric too little."""
        return self._share(self.metric)

    @property
    def completeness(self) -> float | None:
        """The faithfulness of all nodes outside the set: near 0 where the set holds all that matters."""
        return self._share(self.complement)

    @property
    def random_faithfulness(self) -> tuple[float | None, ...]:
        """The faithfulness of the random sets."""
        return tuple(self._share(metric) for metric in self.random)

    def to_json(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        shares = {name: getattr(self, name) for name in ("faithfulness", "completeness", "random_faithfulness")}
        return {**asdict(self), **shares}


def faithfulness_in(
    context: Context, nodes: Iterable[str], *, errors: Errors = "default", n_random: int = 0, seed: int = 0
) -> Faithfulness:
    """Returns the faithfulness of a set of nodes on a context's prompt (Marks et al. 2024, arXiv 2403.19647, section 3.3).

    Cost: one forward pass for each of the set, its complement, the empty set and the random sets, in one batch.

    Args:
        context: The task on the model.
        nodes: Keys of nodes; tokens, the bias and the metric are no part of it.
        errors: Error nodes are nodes like others (`"default"`), are all kept (`"keep"`), or never (`"remove"`).
        n_random: How many random sets are measured.
        seed: Of the random sets.

    Raises:
        NodeError: A key names no node of this model.
        UnknownNameError: There is no such way to treat errors.
        InputError: None of the nodes can be set to a baseline.
    """
    if errors not in ERRORS:
        raise UnknownNameError("way to treat errors", errors, ERRORS)
    spliced, n_tokens = context.spliced, len(context.task.tokens)
    owners = Owners.of(spliced, positioned=True)
    canonical = {h: spliced.canonical(h) for d in spliced.dictionaries for h in (*d.hook_outs, d.hook_in)}
    scores = dict.fromkeys(nodes, 1.0)
    owner, number, _ = parsed(owners, scores, canonical)
    counted = np.array([not owners.is_error(o) or errors == "default" for o in owner.tolist()], bool)
    owner, number = owner[counted], number[counted]
    if not len(owner):
        raise InputError(
            "None of these nodes can be set to a baseline; expected features, or error nodes where those are not all kept."
        )
    outside = number >= np.array([n_tokens * (1 if owners.is_error(o) else owners.widths[o]) for o in owner.tolist()])
    if outside.any():
        key = owners.key(int(owner[outside][0]), int(number[outside][0]))
        raise InputError(f"{key!r} is past the end of the prompt, which has positions 0 to {n_tokens - 1}.")
    pool = list(_pool(context, owners, with_errors=errors == "default"))
    table = NodeTable.union(owners, [*pool, (owner, number)])
    inside = np.zeros(len(table))
    inside[table.find(owner, number)] = 1
    size = int(inside.sum())
    main = ranked("set", inside)
    rankings = [_drawn(table, inside, np.random.default_rng([seed, n])) for n in range(n_random)]
    cuts = [Cut(main, size), Cut(main, 0), Cut(main, size, complement=True), *(Cut(r, size) for r in rankings)]
    metric, empty, complement, *random = measure_cuts(context, table, cuts, errors=errors)
    return Faithfulness(size, len(table), context.metric, empty, metric, complement, tuple(random), errors)


def smallest_faithful(
    context: Context, ordered: Sequence[str], ends: Sequence[int], wanted: float
) -> tuple[int | None, float | None]:
    """Returns how far to go down an order of nodes until what it keeps has the faithfulness wanted, and how far it came.

    Every set is really run. Faithfulness need not rise with every node: of the sets tried, the smallest that reaches it
    is taken. Cost: two batches of at most a dozen forward passes.

    Args:
        context: The task on the model.
        ordered: Keys of features and error nodes, the first to be kept first.
        ends: The sizes that may be chosen, ascending.
        wanted: The faithfulness to reach.

    Returns:
        The place in `ends` of the size, or `None` where no size tried reaches it, and the largest faithfulness seen (`None`
        where ablating everything moves the metric too little for it to be defined).
    """
    owners = Owners.of(context.spliced, positioned=True)
    canonical = {
        h: context.spliced.canonical(h) for d in context.spliced.dictionaries for h in (*d.hook_outs, d.hook_in)
    }
    owner, number, scores = parsed(owners, {key: float(len(ordered) - n) for n, key in enumerate(ordered)}, canonical)
    table = NodeTable.union(owners, [*_pool(context, owners, with_errors=True), (owner, number)])
    order = np.zeros(len(table))
    order[table.find(owner, number)] = scores
    ranking = ranked("effect", order)
    seen: dict[int, float] = {}

    def reached(places: Iterable[int]) -> list[int]:
        new = [place for place in dict.fromkeys(places) if place not in seen]
        empty, *metrics = measure_cuts(context, table, [Cut(ranking, 0), *(Cut(ranking, ends[place]) for place in new)])
        shares = share_of(np.array(metrics), np.array(empty), np.array(context.metric))
        seen.update(zip(new, np.atleast_1d(shares).tolist(), strict=True))
        return sorted(place for place, share in seen.items() if share >= wanted)

    last = len(ends) - 1
    found = reached([*(2**n - 1 for n in range(last.bit_length()) if 2**n - 1 < last), last])
    if found and found[0]:
        below = max((place for place in seen if place < found[0]), default=-1)
        found = reached(np.linspace(below + 1, found[0], 8).round().astype(int).tolist())
    largest = max((share for share in seen.values() if not np.isnan(share)), default=None)
    return (found[0] if found else None), largest


def _pool(context: Context, owners: Owners, *, with_errors: bool) -> Iterable[tuple[Numbers, Numbers]]:
    """Yields the nodes of each owner that a set may hold or leave out."""
    for n, nodes in enumerate(context.nodes):
        number = owners.number(n, nodes.positions.cpu().numpy(), nodes.indices.cpu().numpy())
        yield np.full(len(number), n), number
    for n, site in enumerate(context.run.sites.values() if with_errors else ()):
        number = site.kept.cpu().numpy()
        yield np.full(len(number), len(owners.sites) + n), number


def _drawn(table: NodeTable, inside: Reals, draw: np.random.Generator) -> Ranking:
    """Returns an order that begins with as many random features and error nodes as the set has of each."""
    scores = np.zeros(len(table))
    is_error = table.owner >= len(table.owners.sites)
    for places in (np.flatnonzero(is_error), np.flatnonzero(~is_error)):
        scores[draw.choice(places, int(inside[places].sum()), replace=False)] = 1
    return ranked("random", scores)
