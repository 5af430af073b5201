"""The metric when only a circuit's edges transmit: what each node computes from just what its kept in-edges bring.

For every kept node v the model between the sites is run with the values of v's kept sources, all other nodes at their
baselines; its activation in that run is what v passes on along its own kept edges. Sites are gone through in the order of
the model, so that every source's value is known before it is needed. Error nodes and tokens have no in-edges and bring
their clean values. With all edges the metric is the clean one; with none it is that of the empty circuit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.context import Context
from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.evaluation.measuring import Errors
from circuitsae.evaluation.ranking import Owners
from circuitsae.model import points
from circuitsae.model.edits import batch_size
from circuitsae.model.hooks import Prefix
from circuitsae.model.runs import EMBED, Captured, Readout, forward

Place = tuple[int, int, int]
"""Owner, index (0 for an error node), position (-1: every position). Tokens have the owner -1."""

_METRIC: Place = (-2, 0, -1)
_TOKEN = -1


@dataclass(frozen=True)
class Edges:
    """Edges in an order, strongest first. The circuit of size k has the first k.

    Attributes:
        ends: Source and target of each.
    """

    ends: tuple[tuple[Place, Place], ...]

    @classmethod
    def of(cls, owners: Owners, edges: Sequence[tuple[str, str]], canonical: Mapping[str, str]) -> "Edges":
        """Returns edges given by the keys of their ends; those from the bias node, which is never ablated, are left out.

        Raises:
            NodeError: A key names no node of the model.
        """
        found = []
        for source, target in edges:
            ends = _place(owners, source, canonical), _place(owners, target, canonical)
            if ends[0] is not None and ends[1] is not None:
                found.append(ends)
        return cls(tuple(found))

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class _Circuit:
    """The first edges of an order, by target."""

    sources: Mapping[Place, frozenset[Place]]

    @classmethod
    def first(cls, edges: Edges, size: int, order: Sequence[int] | None = None) -> "_Circuit":
        by_target: dict[Place, set[Place]] = {}
        for n in range(size):
            source, target = edges.ends[n if order is None else order[n]]
            by_target.setdefault(target, set()).add(source)
        return cls({target: frozenset(found) for target, found in by_target.items()})

    def into(self, target: Place) -> frozenset[Place]:
        return self.sources.get(target, frozenset())

    def passing(self, owner: int) -> list[Place]:
        """Returns the nodes of an owner whose value some edge brings on."""
        return sorted({s for found in self.sources.values() for s in found if s[0] == owner})


def measure_edges(
    prompt: Context,
    owners: Owners,
    edges: Edges,
    cuts: Sequence[tuple[int, Sequence[int] | None]],
    *,
    errors: Errors = "default",
    tokens: str = "keep",
) -> list[float]:
    """Returns the metric of each circuit of edges.

    Cost: for every node that some edge comes from, one run of the segment between its site and the nearest residual site
    below, in batches over nodes and circuits.

    Args:
        prompt: The task.
        owners: Where nodes live.
        edges: All edges.
        cuts: For each circuit, how many edges it has, and in which order they are taken (`None`: as they are).
        errors: As for nodes; `"keep"`: all error nodes reach everything.
        tokens: `"keep"`: all tokens reach everything; `"circuit"`: only along the circuit's edges.
    """
    circuits = [_Circuit.first(edges, size, order) for size, order in cuts]
    sweep = _Sweep(prompt, owners, errors, tokens == "keep", len(circuits))
    with torch.no_grad():
        order = prompt.spliced.order
        for owner in sorted(range(len(owners.sites)), key=lambda n: (order(prompt.spliced.reads[n]), n)):
            sweep.values_of(owner, circuits)
        return sweep.metrics(circuits)


class _Sweep:
    """What every node of every circuit passes on, filled site by site."""

    def __init__(self, prompt: Context, owners: Owners, errors: Errors, tokens_kept: bool, n_circuits: int) -> None:
        self.prompt, self.owners, self.errors, self.tokens_kept = prompt, owners, errors, tokens_kept
        spliced, run = prompt.spliced, prompt.run
        self.n_tokens = run.n_tokens
        # Change from the baseline that each source brings: by circuit and place, at its positions.
        self.changes: list[dict[Place, list[tuple[int, float]]]] = [{} for _ in range(n_circuits)]
        self.base = {hook: self._base(hook) for hook in spliced.written}

    def values_of(self, owner: int, circuits: Sequence[_Circuit]) -> None:
        """Computes what a dictionary's nodes pass on in every circuit."""
        spliced = self.prompt.spliced
        wanted = [(n, place) for n, circuit in enumerate(circuits) for place in circuit.passing(owner)]
        copies: dict[tuple[int, frozenset[Place]], int] = {}
        for n, place in wanted:
            into = circuits[n].into(place)
            copies.setdefault((n if into else 0, into), len(copies))
        read = spliced.reads[owner]
        x_in: list[Tensor] = []
        for part in self._parts(list(copies)):
            x_in.append(self._run(part, read).x_in[owner])
        if not x_in:
            return
        kept = self.prompt.run.features[owner].kept.tolist()
        x = torch.cat(x_in)[:, kept].to(self.prompt.run.embed.dtype)
        features = spliced.dictionaries[owner].encode(x.reshape(-1, x.shape[-1])).features
        row_of = {position: row for row, position in enumerate(kept)}
        asked: list[tuple[int, Place, int, int]] = []  # circuit, node, its copy's row of the encoding, position
        for n, place in wanted:
            into = circuits[n].into(place)
            first = copies[n if into else 0, into] * len(kept)
            positions = kept if place[2] < 0 else [place[2]]
            asked += [(n, place, first + row_of[p], p) for p in positions if p in row_of]
        rows = torch.tensor([row for _, _, row, _ in asked], device=x.device, dtype=torch.long)
        at = torch.tensor([position for *_, position in asked], device=x.device, dtype=torch.long)
        indices = torch.tensor([place[1] for _, place, _, _ in asked], device=x.device, dtype=torch.long)
        changes = features.value_at(rows, indices)
        # A feature that is not active on the prompt is no edge's target; like error nodes it brings its clean value.
        clean = self.prompt.run.features[owner].features.value_at(at, indices)
        sourceless = torch.tensor([not circuits[n].into(place) for n, place, _, _ in asked], device=x.device)
        changes = torch.where(sourceless & (clean == 0), clean, changes)
        base = self.prompt.baseline.feature_values(owner, at, indices)
        if base is not None:
            changes = changes - base
        scale = self.prompt.nodes[owner].scale
        if scale is not None:
            changes = changes * scale[at]
        for (n, place, _, position), change in zip(asked, changes.tolist(), strict=True):
            if change:
                self.changes[n].setdefault(place, []).append((position, change))

    def metrics(self, circuits: Sequence[_Circuit]) -> list[float]:
        """Returns the metric of each circuit."""
        copies = [(n, circuit.into(_METRIC)) for n, circuit in enumerate(circuits)]
        found: list[float] = []
        for part in self._parts(copies):
            found += self.prompt.readout.of(self._run(part, None)).double().tolist()
        return found

    def _parts(self, copies: list[tuple[int, frozenset[Place]]]) -> list[list[tuple[int, frozenset[Place]]]]:
        size = batch_size(self.prompt.spliced, self.n_tokens)
        return [copies[n : n + size] for n in range(0, len(copies), size)]

    def _run(self, copies: Sequence[tuple[int, frozenset[Place]]], read: str | None) -> Captured:
        """Runs copies of the prompt, each with what its sources bring and everything else at its baseline."""
        prompt, spliced = self.prompt, self.prompt.spliced
        live: dict[int, Tensor] = {}
        reads = None if prompt.readout.metric is None else prompt.readout.metric.reads
        upto = read if read is not None else reads
        limit = None if upto is None else spliced.order(upto)

        def skipped_path(name: str, like: Tensor) -> Tensor | None:
            """What linear skip paths add: they are no node's, and pass on what the run brings."""
            total: Tensor | None = None
            kept = prompt.run.sites[name].kept
            for number, out in spliced.writers[name]:
                path = None
                if out == 0 and number in live:
                    x = live[number][:, kept].to(like.dtype)
                    path = spliced.dictionaries[number].skip(x.reshape(-1, x.shape[-1]))
                if path is not None:
                    here = torch.zeros_like(like)
                    here[:, kept] = path.view(len(copies), len(kept), -1)
                    total = here if total is None else total + here
            return total

        def on_write(name: str, x: Tensor) -> Tensor:
            written = self._written(name, copies)
            path = skipped_path(name, written)
            return (written if path is None else written + path).to(x.dtype)

        start = self._start(limit, copies)
        hooks = [] if self.tokens_kept or start is not None else [(EMBED, lambda x: self._embed(copies).to(x.dtype))]
        n_layers = spliced.n_layers
        first = 0 if start is None else start.layer
        last = n_layers if read is None else min(n_layers, spliced.hooked.layer(read) + 1)
        prompt.passes["forward"] += len(copies) * max(last - first, 0) / n_layers
        return forward(
            spliced,
            prompt.run.tokens.expand(len(copies), -1),
            prompt.readout if read is None else Readout(None, self.n_tokens),
            on_read=live.__setitem__,
            on_write=on_write,
            extra=hooks,
            start=start,
            stop_at=read,
        )

    def _start(self, limit: int | None, copies: Sequence[tuple[int, frozenset[Place]]]) -> Prefix | None:
        """Returns the highest residual site below: it carries everything, so that the run can start from its value."""
        spliced = self.prompt.spliced
        for layer in range(spliced.n_layers - 1, 0, -1):
            hook = points.of(layer - 1, points.LEAVES)
            if hook in spliced.written and (limit is None or spliced.order(hook) < limit):
                return Prefix(layer, self._written(hook, copies).to(spliced.hooked.dtype))
        return None

    def _base(self, hook: str) -> Tensor:
        """Returns what stands at a hook point where no edge brings anything."""
        prompt, spliced = self.prompt, self.prompt.spliced
        site = prompt.run.sites[hook]
        base = site.bias.clone()
        for number, out in spliced.writers[hook]:
            nodes = prompt.nodes[number]
            base += nodes.written(nodes.baselines, self.n_tokens, out)
        if self.errors == "keep":
            base += site.error
        elif prompt.baseline.errors is not None:
            base += prompt.baseline.errors[hook]
        # Skipped positions are no nodes of the evaluation: they stay as they are.
        whole = site.x.clone()
        whole[site.kept] = base[site.kept]
        return whole

    def _written(self, hook: str, copies: Sequence[tuple[int, frozenset[Place]]]) -> Tensor:
        """Returns what stands at a hook point in each copy, linear skip paths left out, `[copy pos d]`."""
        prompt, spliced, owners = self.prompt, self.prompt.spliced, self.owners
        result = self.base[hook].expand(len(copies), -1, -1).clone()
        for number, out in spliced.writers[hook]:
            entries = [
                (copy * self.n_tokens + position, place[1], change)
                for copy, (n, sources) in enumerate(copies)
                for place in sources
                if place[0] == number
                for position, change in self.changes[n].get(place, ())
            ]
            if entries:
                rows, indices, values = zip(*entries, strict=True)
                dictionary = spliced.dictionaries[number]
                brought = SparseFeatures.from_entries(
                    torch.tensor(rows, device=result.device),
                    torch.tensor(indices, device=result.device),
                    torch.tensor(values, device=result.device, dtype=result.dtype),
                    len(copies) * self.n_tokens,
                    dictionary.d_sae,
                )
                result += dictionary.weighted_sum(brought, out).view(result.shape)
        if self.errors == "default":
            owner = len(owners.sites) + owners.hooks.index(hook)
            error = prompt.run.sites[hook].error
            base = None if prompt.baseline.errors is None else prompt.baseline.errors[hook]
            kept = prompt.run.sites[hook].kept.tolist()
            change = error if base is None else error - base
            for copy, (_, sources) in enumerate(copies):
                for place in sources:
                    if place[0] == owner:
                        at = kept if place[2] < 0 else [p for p in (place[2],) if p in kept]
                        result[copy, at] += change[at]
        return result

    def _embed(self, copies: Sequence[tuple[int, frozenset[Place]]]) -> Tensor:
        run, base = self.prompt.run, self.prompt.baseline.embed
        result = (torch.zeros_like(run.embed) if base is None else base).expand(len(copies), -1, -1).clone()
        for copy, (_, sources) in enumerate(copies):
            for place in sources:
                if place[0] == _TOKEN:
                    at = slice(None) if place[2] < 0 else place[2]
                    result[copy, at] = run.embed[at]
        return result


def _place(owners: Owners, key: str, canonical: Mapping[str, str]) -> Place | None:
    node = names.parse(key)
    if node.kind == "metric":
        return _METRIC
    if node.kind == "bias":
        return None
    if node.kind == "token":
        return (_TOKEN, 0, node.position if isinstance(node.position, int) else -1)
    found = owners.parse(key, canonical)
    assert found is not None
    position = node.position if isinstance(node.position, int) else -1
    return (found[0], node.index or 0, position)
