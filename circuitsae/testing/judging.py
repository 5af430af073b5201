"""What works on a model: its effects, edges, interventions and generation, each held against a plain reference.

`judge` gives a cell for each: right, or the sentence with which it is refused. Were a number wrong, the cell would say so,
and by how much; `docs/models.md` is the table of these for every family, `circuitsae doctor` prints the row of a model.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import node_effects
from circuitsae.errors import CircuitsaeError
from circuitsae.interventions import Ablate, Scale, Steer, generate, intervene_many
from circuitsae.model.runs import EMBED
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.metrics import LogitDiff
from circuitsae.task.task import Task
from circuitsae.testing.reference import Change, Reference, slopes
from circuitsae.tracing import trace

LIMIT = 1e-6
"""What two roads may differ by, relative to the largest number compared, where the arithmetic rounds less than that."""

N_NODES, N_TARGETS, N_SOURCES, N_NEW = 9, 3, 7, 3
_COPIES = 4096  # of a prompt at once, in positions and layers
_LARGE = 1_000_000  # weights from which on a few nodes stand for all
_ROUNDINGS = 1000.0  # what may come of one rounding of the metric on the way through a model


@dataclass(frozen=True)
class Cell:
    """What was found of one kind of number.

    Attributes:
        state: `"right"`, `"refused"`, `"wrong"` or `"crash"`.
        text: The sentence of the refusal; what is wrong.
        error: By how much the numbers are off, relative to the largest; `None` where there are none.
        limit: What rounding, and the steps of finite differences, may come to.
    """

    state: str
    text: str = ""
    error: float | None = None
    limit: float | None = None

    def __str__(self) -> str:
        return self.state if self.state == "right" else f"{self.state}: {self.text}"


@dataclass(frozen=True)
class _Node:
    """A node by hand: what it adds at each hook point that it writes, `[pos width]`."""

    key: str
    writes: dict[str, Tensor]


class _Site:
    """A dictionary on the prompt, as the reference has it."""

    def __init__(self, spliced: SplicedModel, number: int, seen: dict[str, Tensor], kept: Tensor) -> None:
        self.dictionary = spliced.dictionaries[number]
        self.reads = spliced.reads[number]
        self.written = [spliced.canonical(hook) for hook in self.dictionary.hook_outs]
        x = seen[self.reads][0]
        self.x_in = x
        self.encoding = self.dictionary.encode(x)
        mask = torch.zeros(len(x), dtype=torch.bool)
        mask[kept] = True
        self.mask = mask
        self.parts = {
            hook: torch.where(mask[:, None], self.dictionary.decode(self.encoding, x, out).to(x), 0)
            for out, hook in enumerate(self.written)
        }

    def node(self, key: str) -> _Node:
        parsed = names.parse(key)
        assert parsed.index is not None and isinstance(parsed.position, int)
        p, index = parsed.position, torch.tensor([parsed.index])
        value = self.encoding.features.value_at(torch.tensor([p]), index)
        if self.encoding.scale is not None:
            value = value * self.encoding.scale[p]
        writes = {}
        for out, hook in enumerate(self.written):
            row = self.dictionary.decoder_rows(index, out)[0]
            at = torch.zeros(len(self.x_in), len(row), dtype=self.x_in.dtype)
            at[p] = value.to(at) * row.to(at)
            writes[hook] = at
        return _Node(key, writes)


class Judge:
    """A spliced model beside its reference, on one prompt.

    Args:
        spliced: The model.
        tokens: The prompt.
        twin: The transformers model that a Bridge was made from, see `Reference`.
    """

    def __init__(self, spliced: SplicedModel, tokens: Sequence[int], *, twin: Any = None) -> None:
        self.spliced = spliced
        self.tokens = torch.tensor(tokens, device=spliced.device)
        hooks = list(dict.fromkeys((*spliced.reads, *spliced.written, EMBED)))
        self.reference = Reference(spliced.model, hooks, self.tokens, twin)
        self.clean = self.reference.clean(self.tokens[None])
        logits, self.seen = self.reference(self.tokens[None], reads=hooks)
        last = logits[0, -1].double()
        self.size = float(last.std())
        order = last.argsort(descending=True)
        self.answer, self.foil = int(order[0]), int(order[1])
        self.task = Task([int(t) for t in tokens], metric=LogitDiff(self.answer, self.foil))
        large = sum(p.numel() for p in spliced.model.parameters()) > _LARGE
        self.n_nodes, self.n_targets, self.n_sources = (3, 1, 3) if large else (N_NODES, N_TARGETS, N_SOURCES)
        kept = spliced.applied([self.seen[name][0] for name in spliced.reads])
        self.sites = [_Site(spliced, n, self.seen, kept[n]) for n in range(len(spliced.dictionaries))]
        self.by_name = {site.dictionary.site: site for site in self.sites}
        self.limit = max(LIMIT if self.seen[hooks[0]].dtype == torch.float64 else 1e-3, _ROUNDINGS * self.rounding())

    def rounding(self) -> float:
        """Returns how much the metric is rounded, relative to the logits' spread: its noise along a short straight line."""
        ways = torch.arange(9, dtype=torch.float64) * 1e-9
        change: Change = lambda x: x * (1 + ways[:, None, None].to(x))  # noqa: E731
        values = self.metric(self.reference(self.tokens.expand(9, -1), {EMBED: change})[0]).double()
        third = values.diff(3) if len(values) > 3 else values
        return float(third.std() / math.sqrt(20.0) / self.size)

    def metric(self, logits: Tensor) -> Tensor:
        """Returns the metric, `[batch]`."""
        return logits[:, -1, self.answer] - logits[:, -1, self.foil]

    def node(self, key: str) -> _Node:
        """Returns a node by hand."""
        parsed = names.parse(key)
        if parsed.kind == "token":
            hook, x = EMBED, self.seen[EMBED][0]
        elif parsed.kind == "error":
            assert parsed.site is not None
            hook = self.spliced.canonical(parsed.site)
            x = self.seen[hook][0] - sum(site.parts[hook] for site in self.sites if hook in site.parts)
        else:
            assert parsed.site is not None
            return self.by_name[parsed.site].node(key)
        only = torch.zeros_like(x)
        only[parsed.position] = x[parsed.position]  # type: ignore[index]
        return _Node(key, {hook: only})

    def moved(self, nodes: Sequence[_Node], steps: Tensor, **frozen: Any) -> Tensor:
        """Returns the metric, `[step node]`, with each node larger by each of the steps, in shares of itself."""
        return self._each(nodes, steps, names.METRIC, {}, **frozen)

    def arriving(self, nodes: Sequence[_Node], steps: Tensor, target: str, **frozen: Any) -> Tensor:
        """Returns the same of one target's value, with all other dictionary nodes held as they are."""
        return self._each(nodes, steps, target, {name: self.seen[name] for name in self.spliced.written}, **frozen)

    def constant(self, target: str, **frozen: Any) -> float:
        """Returns a target's value where no feature, error or token writes anything."""
        bias = {name: torch.zeros_like(self.seen[name]) for name in self.spliced.written}
        for site in self.sites:
            for out, hook in enumerate(site.written):
                own = site.encoding.biases[out].expand(len(site.x_in), -1)
                bias[hook][0, site.mask] += own[site.mask].to(bias[hook])
        changes: dict[str, Change] = {name: (lambda x, v=value: v) for name, value in bias.items()}
        changes[EMBED] = torch.zeros_like
        return float(self._value(target, 1, changes, **frozen))

    def _value(self, target: str, batch: int, changes: dict[str, Change], **frozen: Any) -> Tensor:
        tokens = self.tokens.expand(batch, -1)
        if target == names.METRIC:
            return self.metric(self.reference(tokens, changes, **frozen)[0])
        parsed = names.parse(target)
        assert parsed.site is not None and parsed.index is not None and isinstance(parsed.position, int)
        site = self.by_name[parsed.site]
        _, seen = self.reference(tokens, changes, [site.reads], **frozen)
        rows = torch.arange(batch)
        x = seen[site.reads][:, parsed.position]
        return site.dictionary.pre_activations(x, rows, torch.full((batch,), parsed.index)).detach()

    def _each(
        self, nodes: Sequence[_Node], steps: Tensor, target: str, held: dict[str, Tensor], **frozen: Any
    ) -> Tensor:
        """One copy of the prompt for each step and node, a few at once; what is held stays as it is but for the node."""
        pairs = [(float(step), node) for step in steps for node in nodes]
        hooks = dict.fromkeys((*held, *(hook for node in nodes for hook in node.writes)))
        size = max(1, _COPIES // (self.spliced.n_layers * len(self.tokens)))
        values = []
        for at in range(0, len(pairs), size):
            changes: dict[str, Change] = {}
            for hook in hooks:
                zero = torch.zeros_like(self.seen[hook][0])
                moved = torch.stack(
                    [step * node.writes[hook] if hook in node.writes else zero for step, node in pairs[at : at + size]]
                )
                changes[hook] = _plus(moved, held.get(hook))
            values.append(self._value(target, len(pairs[at : at + size]), changes, **frozen))
        return torch.cat(values).view(len(steps), len(nodes)).double()


def _plus(moved: Tensor, held: Tensor | None) -> Change:
    return lambda x: (x if held is None else held) + moved


def judge(
    spliced: SplicedModel,
    tokens: Sequence[int],
    *,
    twin: Any = None,
    cells: Sequence[str] = (),
    progress: Progress | None = None,
) -> dict[str, Cell]:
    """Returns a cell for each of `CELLS`, in their order.

    Cost: some hundreds of forward passes of the prompt, in batches.

    Args:
        spliced: The model; in float64, so that there is little rounding to tell from faults.
        tokens: The prompt's token ids.
        twin: The transformers model that a Bridge was made from, as it was before: then the reference shares no code with
            TransformerLens either.
        cells: Some of the cells; all when there are none.
        progress: Called with cells done, their number and the next one's name; returning `False` cancels.
    """
    judged: dict[str, Cell] = {}
    desk: Judge | None = None
    for done, name in enumerate(cells or CELLS):
        report(progress, done, len(cells or CELLS), name)
        try:
            if desk is None:
                desk = Judge(spliced, tokens, twin=twin)
            worst, where, limit = max(CELLS[name](desk), key=lambda f: f[0] / f[2])
        except CircuitsaeError as error:
            judged[name] = Cell("refused", str(error))
        except Exception as error:  # what is no sentence of ours is a fault, to be told and not hidden
            judged[name] = Cell("crash", f"{type(error).__name__}: {error}")
        else:
            state = "right" if worst <= limit else "wrong"
            judged[name] = Cell(state, "" if state == "right" else f"{where} is off by {worst:.1e}", worst, limit)
    return judged


Found = tuple[float, str, float]
"""An error relative to the numbers compared, where it is, and its limit."""


def _effects(desk: Judge) -> Iterator[Found]:
    nodes = _strongest(desk)
    yield from _compare_slopes(desk, nodes, "pass-through")
    keys = [key for key, _ in nodes]
    ablated = node_effects(desk.spliced, desk.task, method="ablation", baseline="zero")
    predicted = {row["node"]: row["effect"] for row in ablated.records()}
    by_hand = desk.moved([desk.node(key) for key in keys], torch.tensor([-1.0])) - desk.moved(
        [desk.node(keys[0])], torch.tensor([0.0])
    )
    yield from _compare(desk, keys, [predicted[key] for key in keys], by_hand[0], 0, "the measured effect of")


def _strongest(desk: Judge, **settings: Any) -> list[tuple[str, float]]:
    """The strongest features and error node of each site, and the strongest token, with their effects."""
    effects = node_effects(desk.spliced, desk.task, method="attribution-patching", baseline="zero", **settings)
    found: list[dict[str, Any]] = []
    for block in effects.blocks:
        rows = [r for r in effects.records((block.kind,)) if (r["site"] or "") == block.site]
        rows.sort(key=lambda r: -abs(r["effect"]))
        found += rows[: 2 if block.kind == "feature" else 1]
    # of each kind the strongest, then whatever is strong
    found.sort(key=lambda r: -abs(r["effect"]))
    first = [next((r for r in found if r["kind"] == kind), None) for kind in ("feature", "error", "token")]
    chosen = {r["node"]: r["effect"] for r in (*first, *found) if r is not None}
    return list(chosen.items())[: desk.n_nodes]


def _compare_slopes(desk: Judge, nodes: Sequence[tuple[str, float]], what: str, **frozen: Any) -> Iterator[Found]:
    by_hand = [desk.node(key) for key, _ in nodes]
    slope, error = slopes(lambda steps: desk.moved(by_hand, steps, **frozen))
    keys = [key for key, _ in nodes]
    yield from _compare(desk, keys, [-e for _, e in nodes], slope, error, f"the {what} gradient of")


def _compare(
    desk: Judge, keys: Sequence[str], found: Sequence[float], expected: Tensor, error: Tensor | float, what: str
) -> Iterator[Found]:
    size = max(float(expected.abs().max()), max(map(abs, found), default=0.0), 1e-3 * desk.size)
    doubts = error.tolist() if isinstance(error, Tensor) else [error] * len(keys)
    for key, number, other, doubt in zip(keys, found, expected.tolist(), doubts, strict=True):
        limit = (desk.limit if isinstance(error, int) else 10 * desk.limit) + 10 * doubt / size
        off = abs(number - other) / size
        if limit > 0.03:  # the reference can't tell
            off, limit = math.inf, desk.limit
        yield off, f"{what} {key} ({number:.3e} for {other:.3e})", limit


def _edges(desk: Judge, linearisation: str = "gradient") -> Iterator[Found]:
    frozen = {"patterns": desk.clean, "norms": desk.clean} if linearisation == "frozen" else {}
    circuit = trace(
        desk.spliced, desk.task, method="attribution-patching", linearisation=linearisation, baseline="zero", max_nodes=48,
        edge_threshold=0,
    )  # fmt: skip
    graph = circuit.graph
    for target in _targets(desk, graph):
        into = {u: d["contribution"] for u, _, d in graph.in_edges(target, data=True) if u != names.BIAS}
        ranked = sorted(into, key=lambda u: -abs(into[u]))
        n, other = desk.n_sources, [u for u in graph if u not in into and u != target]
        other = [u for u in other if names.parse(u).kind in ("feature", "error", "token")]
        # the strongest, some by the way, and some that the circuit has no edge from
        sources = [
            *ranked[: n - 2],
            *ranked[n - 2 :: max(1, len(ranked) // 2)][:1],
            *other[:: max(1, len(other) // 2)][:1],
        ]
        if not sources:
            continue
        arriving = partial(desk.arriving, [desk.node(key) for key in sources], target=target, **frozen)
        slope, error = slopes(arriving)
        given = [into.get(key, 0.0) for key in sources]
        keys = [f"{u} -> {target}" for u in sources]
        yield from _compare(desk, keys, given, slope, error, "the contribution")
        # the metric need not be linear in the logits, nor these in the stream (a soft cap)
        linear = linearisation == "frozen" and target != names.METRIC and _all_mlps(desk.spliced)
        if linear and graph.has_edge(names.BIAS, target):
            constant = torch.tensor([desk.constant(target, **frozen)], dtype=torch.float64)
            bias = graph.edges[names.BIAS, target]["contribution"]
            size = max(map(abs, given), default=0.0)
            yield from _compare(desk, [target], [bias + size], constant + size, 0, "the bias into")


def _frozen(desk: Judge) -> Iterator[Found]:
    nodes = _strongest(desk, gradient="frozen")
    yield from _compare_slopes(desk, nodes, "frozen", patterns=desk.clean, norms=desk.clean)
    yield from _edges(desk, "frozen")


def _targets(desk: Judge, graph: Any) -> list[str]:
    """The metric, and the strongest features of each site that something leads to."""
    found = [names.METRIC]
    for site in desk.spliced.sites:
        of = [
            n for n, d in graph.nodes(data=True) if d["kind"] == "feature" and d["site"] == site and graph.in_degree(n)
        ]
        of.sort(key=lambda n: -abs(graph.nodes[n]["effect"] or 0))
        found += of[:2]
    return found[: 1 + desk.n_targets]


def _all_mlps(spliced: SplicedModel) -> bool:
    """Whether no MLP computes anything beside the dictionaries."""
    return all(d.is_transcoder for d in spliced.dictionaries) and all(
        any(spliced.hooked.has(f"blocks.{layer}.{end}") and spliced.hooked.point(f"blocks.{layer}.{end}") is spliced.hooked.point(w)
            for w in spliced.written for end in ("hook_mlp_out", "mlp.hook_out"))
        for layer in range(spliced.n_layers)
    )  # fmt: skip


def _interventions(desk: Judge, **frozen: Any) -> Iterator[Found]:
    held = {
        "patterns": desk.clean if frozen.get("attention") == "frozen" else None,
        "norms": desk.clean if frozen.get("normalisation") == "frozen" else None,
    }
    keys = [key for key, _ in _strongest(desk)]
    # Nothing bounds what grows through layers whose scales are held: a whole node may be too much for float32.
    share = 1.0 if held["norms"] is None else 2.0**-6
    ways = (Ablate, _double) if share == 1 else (partial(Scale, by=1 - share), partial(Scale, by=1 + share))
    results = intervene_many(desk.spliced, desk.task, [[e(k)] for k in keys for e in ways], baseline="zero", **frozen)  # type: ignore[arg-type]
    nodes = [desk.node(key) for key in keys]
    removed, doubled = desk.moved(nodes, torch.tensor([-share, share]), **held)
    for way, found, expected in (("less", results[::2], removed), ("more", results[1::2], doubled)):
        after = [float(r.metric_after) for r in found]
        at = [f"{key} {way}" for key in keys]
        yield from _compare(desk, at, after, expected, 0, "the metric with")


def _double(key: str) -> Scale:
    return Scale(key, 2.0)


def _generation(desk: Judge) -> Iterator[Found]:
    site = desk.sites[0]
    hook = site.written[0]
    index = int(site.encoding.features.indices[site.encoding.features.values.argmax()])
    strength = 2 * float(site.encoding.features.values.abs().max())
    made = generate(
        desk.spliced, desk.tokens.tolist(), [Steer(names.feature(site.dictionary.site, index), strength)],
        max_new_tokens=N_NEW, stop_at_end=False,
    )  # fmt: skip
    row = strength * site.dictionary.decoder_rows(torch.tensor([index]), 0)[0]
    skipped = [p for p in range(len(desk.tokens)) if not site.mask[p]]

    def steered(x: Tensor) -> Tensor:
        x = x + row.to(x)
        return x if not skipped else x.index_copy(1, torch.tensor(skipped), x[:, skipped] - row.to(x))

    for way, continuation, changes in (("", made.before[0], {}), ("steered ", made.after[0], {hook: steered})):
        tokens, expected = desk.tokens, []
        for token in continuation.token_ids:
            scores = desk.reference(tokens[None], changes)[0][0, -1].double().log_softmax(-1)
            # what was chosen must be the likeliest, or as likely to what rounding comes to
            expected += [float(scores[token]), float(scores.max())]
            tokens = torch.cat([tokens, tokens.new_tensor([token])])
        found = [p for p in continuation.log_probs for _ in range(2)]
        at = [f"{way}token {n // 2}" for n in range(len(found))]
        yield from _compare(desk, at, found, torch.tensor(expected, dtype=torch.float64), 0, "the log-probability of")


CELLS: dict[str, Callable[[Judge], Iterator[Found]]] = {
    "effects": _effects,
    "edges": _edges,
    "frozen edges": _frozen,
    "interventions": _interventions,
    "attention frozen": lambda desk: _interventions(desk, attention="frozen"),
    "normalisation frozen": lambda desk: _interventions(desk, normalisation="frozen"),
    "generation": _generation,
}
