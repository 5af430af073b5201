"""Edges: how much each node acts on each other one directly, all other nodes held fixed.

Every hook point that dictionaries write to is replaced by a detached leaf of equal value. For a target v read at q,
`J = d(pre-activation of v) / d(leaf)` is one vector-Jacobian product, and a feature u's contribution is
`(J . W_dec[u]) * a_u` (DESIGN.md, section 3.3). Products are batched over targets and run over one segment only: from
where the target is read down to the nearest residual site below, which cuts every path; and over no position after the
last target of a batch. In frozen graphs, where the segment is linear, blocks of targets are swept down instead (`sweep`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.attribution.backward import differentiate
from circuitsae.attribution.baselines import Baseline, FeatureNodes
from circuitsae.attribution.blocks import BUDGET, position_blocks, position_buckets, products_together, split
from circuitsae.attribution.contributions import EdgeBatch, ErrorTargets, FeatureTargets, Origins, Part, Rows, Sources
from circuitsae.attribution.sweep import Chain, build_chain, watched
from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.model import points
from circuitsae.model.checks import freezes, verify
from circuitsae.model.hooks import Hook, Prefix, Watch
from circuitsae.model.runs import EMBED, Captured, Readout, Run, forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import budget as tape_budget
from circuitsae.model.tapes import cuts, is_long, layer_bytes
from circuitsae.progress import Progress, part_of, report

Linearisation = Literal["gradient", "frozen"]
LINEARISATIONS: tuple[str, ...] = get_args(Linearisation)

# How many times what a tape may hold the patterns of one chain may take, and the MLPs that nothing replaces.
_CHAIN = 2
# Copies of a block's state that a step through attention holds at a time.
COPIES = 6


class EdgeEngine:
    """Computes in-edges of targets on one run.

    In frozen graphs feature targets are swept down a chain of matrices (see `sweep`) wherever the model is one that the
    chain stands for, which it checks; everything else goes through autograd. `path` says which it was.

    Args:
        spliced: The model.
        run: Its clean run.
        nodes: The feature nodes of each dictionary.
        baseline: What nodes are set to.
        readout: The metric.
        linearisation: `"gradient"` or `"frozen"` (attention patterns and normalisation scales held constant).
        sources: The nodes that edges may come from.
        edge_threshold: Edges with a smaller |weight| are left out; those that are exactly zero always are.
        top_k: Keeps only so many in-edges of each target, those of the largest |contribution|, beside the bias node's: an
            approximation for very large graphs. `totals`, `magnitudes` and `candidates` still count all.
        sweep: `False` takes autograd throughout.
        budget: Bytes that a block of targets may hold at a time.

    Raises:
        UnknownNameError: There is no such linearisation.
        SpliceError: On this model a splice or freeze does not hold; the message names the hook point (see `checks`).
    """

    def __init__(
        self,
        spliced: SplicedModel,
        run: Run,
        nodes: Sequence[FeatureNodes],
        baseline: Baseline,
        readout: Readout,
        *,
        linearisation: str,
        sources: Sources,
        edge_threshold: float = 0.0,
        top_k: int | None = None,
        sweep: bool = True,
        budget: int = BUDGET,
    ) -> None:
        if linearisation not in LINEARISATIONS:
            raise UnknownNameError("linearisation", linearisation, LINEARISATIONS)
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k is {top_k}; expected at least 1 edge a target, or None for all.")
        self.spliced, self.run, self.readout = spliced, run, readout
        self.origins = Origins(spliced, run, nodes, baseline, sources, edge_threshold, top_k)
        self.frozen, self.budget = linearisation == "frozen", budget
        self.path = "autograd"
        self._sweeps = sweep and self.frozen
        self._tape: tuple[object, _Tape] | None = None
        verify(spliced, edges=True, frozen=self.frozen)
        self._extra = freezes(spliced) if self.frozen else []

    def metric_edges(self, node: int) -> EdgeBatch:
        """Returns the in-edges of the metric node."""
        total = torch.tensor([self.run.metric], dtype=self.run.embed.dtype, device=self.run.embed.device)
        reads = None if self.readout.metric is None else self.readout.metric.reads
        stretch = self._stretch(points.segment_of(self.spliced, reads), self.run.n_tokens, None)
        layer = self.spliced.n_layers - 1 if reads is None else self._layer(reads)
        rows = Rows(self.origins, total, torch.ones_like(total), torch.tensor([node], device=total.device))
        self._pull(rows, stretch, [_Seed(layer, lambda tape: self.readout.of(tape.captured))])
        self._tape = None
        return rows.finish()

    def feature_edges(self, targets: Sequence[FeatureTargets], progress: Progress | None = None) -> Iterator[EdgeBatch]:
        """Yields the in-edges of feature targets, block by block.

        Cost: swept, two products with attention's matrices a layer below a target and position before it, and a forward
        pass; by autograd, one vector-Jacobian product a target over its segment.
        """
        everything = sum(len(t) for t in targets)
        done = 0
        swept: set[int] = set()
        wanted = {t.number for t in targets if len(t)}
        for low, high, numbers in self._scopes(wanted):
            chain = self._chain(low, high)
            if chain is None or not numbers & chain.entries.keys():
                continue
            here = numbers & chain.entries.keys()
            swept |= here
            self.path = "sweep" if swept == wanted else "sweep and autograd"
            for batch in self._swept_edges(chain, [t for t in targets if t.number in here]):
                yield batch
                done += len(batch.target_nodes)
                report(progress, done, everything, "targets")
            del chain
        by_segment: dict[int, list[FeatureTargets]] = {}
        for target in targets:
            if len(target) and target.number not in swept:
                by_segment.setdefault(points.segment_of(self.spliced, self.spliced.reads[target.number]), []).append(
                    target
                )
        for segment, found in sorted(by_segment.items()):
            found = sorted(found, key=lambda t: -self.spliced.hooked.layer(self.spliced.reads[t.number]))
            last = max((self.spliced.reads[t.number] for t in found), key=self.spliced.order)
            for low, high in position_buckets(torch.cat([t.positions for t in found]), self.run.n_tokens):
                stretch = self._stretch(segment, high, last)
                inside = [((t.positions >= low) & (t.positions < high)).nonzero().flatten() for t in found]
                parts = [(t, chosen) for t, chosen in zip(found, inside, strict=True) if len(chosen)]
                # on one tape a product costs nothing above where it starts, so each dictionary's are by themselves
                several = [parts] if stretch.is_cut else [[part] for part in parts]
                for block in (block for some in several for block in split(some, self._room(stretch))):
                    size = sum(len(chosen) for _, chosen in block)
                    yield self._feature_block(stretch, block, part_of(progress, done, size, everything, "targets"))
                    done += size
                    report(progress, done, everything, "targets")
        self._tape = None

    def error_edges(
        self,
        targets: Sequence[ErrorTargets] | None = None,
        progress: Progress | None = None,
    ) -> Iterator[EdgeBatch]:
        """Yields the in-edges of error nodes, batch by batch.

        An error node is a vector, `x_out - decode(encode(x_in))`. What acts on it is told by one number: its projection on
        the direction in which the metric changes most, `dm/d error` at unit length, which is held fixed (Marks et al. 2024
        take the same product). `totals` is that projection, and a row adds up to it; weights are in units of the metric.
        The features active on the prompt stay the ones that the error leaves out.

        Args:
            targets: The error nodes; those among the sources when `None`.
            progress: Called with targets done, their number and a word.
        """
        if targets is None:
            targets = self.error_targets()
        everything, done = sum(len(t) for t in targets), 0
        for target in targets:
            if not len(target):
                continue
            reads = [self.spliced.reads[number] for number, _ in self.spliced.writers[target.hook]]
            segment = min(points.segment_of(self.spliced, name) for name in (target.hook, *reads))
            last = max((target.hook, *reads), key=self.spliced.order)
            for low, high in position_buckets(target.positions, self.run.n_tokens):
                stretch = self._stretch(segment, high, last, target.hook)
                inside = (target.positions >= low) & (target.positions < high)
                for part in inside.nonzero().flatten().split(self._room(stretch)):
                    yield self._error_block(
                        stretch, target, part, part_of(progress, done, len(part), everything, "error nodes")
                    )
                    done += len(part)
                    report(progress, done, everything, "error nodes")
        self._tape = None

    def error_targets(self) -> list[ErrorTargets]:
        """Returns the error nodes among the sources as targets. Cost: one forward and one backward pass of the model."""
        hooks = [hook for hook, (positions, _) in self.origins.sources.errors.items() if len(positions)]
        if not hooks:
            return []
        at = cuts(self.spliced, self.run.n_tokens)
        residuals = {layer: self.run.prefixes[layer].residual for layer in at}
        found = differentiate(self.spliced, self.run.tokens[None], self.readout, hooks, residuals)
        targets = []
        for hook in hooks:
            positions, numbers = self.origins.sources.errors[hook]
            error = self.run.sites[hook].error
            gradient = found[hook][0].to(error.dtype) if hook in found else torch.zeros_like(error)
            targets.append(ErrorTargets(hook, positions, gradient[positions], numbers))
        return targets

    # through autograd

    def _stretch(self, segment: int, n_tokens: int, last: str | None, raw: str | None = None) -> "_Stretch":
        """Returns the layers from a segment's start to a hook point (the end when `None`), cut where a tape gets too long."""
        spliced = self.spliced
        top = spliced.n_layers if last is None else self._layer(last) + 1
        skips = [n for n, d in enumerate(spliced.dictionaries) if self.run.sites[_written(spliced, d)].skip is not None]
        at = cuts(spliced, n_tokens, segment, top, joined=skips)
        return _Stretch((segment, *at, top), n_tokens, last, raw)

    def _layer(self, hook: str) -> int:
        """Returns the layer whose tape a hook point is on: what is above the last is on the last's."""
        return min(self.spliced.hooked.layer(hook), self.spliced.n_layers - 1)

    def _room(self, stretch: "_Stretch") -> int:
        """Returns how many targets are a block: those that one product on the tape has room for, or a cut tape's ends."""
        if stretch.is_cut:
            return max(1, self.budget // (2 * stretch.n_tokens * self.spliced.d_model * self.run.embed.element_size()))
        leaves = self._linearise(stretch, *stretch.bounds).leaves
        return products_together(self.spliced, stretch.n_tokens, len(leaves), self.budget)

    def _linearise(
        self, stretch: "_Stretch", low: int, high: int, *, watch: Mapping[str, Hook] | None = None
    ) -> "_Tape":
        """Runs one piece of a stretch with a leaf at every hook point written, and one where it is entered.

        The last piece's tape is kept for the next block of targets. `watch` are further hooks.
        """
        key = (stretch, low, high)
        if watch is None and self._tape is not None and self._tape[0] == key:
            return self._tape[1]
        self._tape = None  # before the next one is made
        spliced, run, n_tokens = self.spliced, self.run, stretch.n_tokens
        leaves: dict[str, Tensor] = {}
        read: dict[int, Tensor] = {}
        raw: list[Tensor] = []
        start: Prefix | None = None
        last_piece = high == stretch.bounds[-1]
        with torch.enable_grad():
            if low > 0:
                entry: str | None = _ENTRY
                if low == stretch.bounds[0]:
                    below = points.of(low - 1, points.LEAVES)
                    entry = below if below in spliced.written else None
                prefix = run.prefix(low)
                assert prefix is not None and prefix.layer == low
                residual = prefix.residual[:, :n_tokens]
                if entry is not None:
                    residual = leaves[entry] = residual.detach().requires_grad_()
                start = Prefix(low, residual)

            def on_write(name: str, x: Tensor) -> Tensor:
                if name == stretch.raw:
                    raw.append(x)
                skips = [
                    path
                    for number, out in spliced.writers[name]
                    if out == 0 and (path := self._skip(number, read, n_tokens)) is not None
                ]
                if not skips:
                    leaf = leaves[name] = x.detach().requires_grad_()
                    return leaf
                path = sum(skips[1:], skips[0]).to(x.dtype)
                leaf = leaves[name] = (x - path).detach().requires_grad_()
                return leaf + path

            captured = forward(
                spliced,
                run.tokens[None, :n_tokens],
                self.readout if stretch.last is None else Readout(None, n_tokens),
                on_read=read.__setitem__,
                on_write=on_write,
                extra=[*self._extra, *(watch or {}).items()],
                leaf_embed=True,
                start=start,
                stop_at=stretch.last if last_piece else None,
                until=None if last_piece else high,
            )
        if low == 0:
            leaves[EMBED] = captured.embed
        tape = _Tape(captured, leaves, raw[0] if raw else None)
        self._tape = (key, tape)
        return tape

    def _skip(self, number: int, read: dict[int, Tensor], n_tokens: int) -> Tensor | None:
        dictionary = self.spliced.dictionaries[number]
        if number not in read:  # it reads below what is run here, so its skip path is a constant
            return None
        kept = [p for p in self.run.features[number].kept.tolist() if p < n_tokens]
        path = dictionary.skip(read[number][0, kept].to(self.run.embed.dtype)) if kept else None
        if path is None:
            return None
        whole = torch.zeros(n_tokens, path.shape[-1], dtype=path.dtype, device=path.device)
        return whole.index_add(0, torch.tensor(kept, device=path.device), path)[None]

    def _feature_block(
        self,
        stretch: "_Stretch",
        block: Sequence[Part],
        told: Callable[[float], None],
    ) -> EdgeBatch:
        rows = Rows.of(self.origins, block)
        seeds, first = [], 0
        for target, chosen in block:
            number, at = target.number, target.positions[chosen]
            direction = encoder_directions(
                self.spliced, self.run, number, at, target.indices[chosen], frozen=self.frozen
            )
            layer = self._layer(self.spliced.reads[number])
            seeds.append(_Seed(layer, lambda tape, n=number: tape.captured.x_in[n], at, direction, first))
            first += len(chosen)
        self._pull(rows, stretch, seeds, told)
        return rows.finish()

    def _error_block(
        self,
        stretch: "_Stretch",
        target: ErrorTargets,
        part: Int[Tensor, "batch"],
        told: Callable[[float], None],
    ) -> EdgeBatch:
        spliced, positions, gradient = self.spliced, target.positions[part], target.gradients[part]
        slopes = gradient.norm(dim=-1)
        direction = gradient / slopes.clamp_min(torch.finfo(slopes.dtype).tiny)[:, None]
        seeds = [_Seed(self._layer(target.hook), lambda tape: tape.raw, positions, direction)]
        inside = torch.isin(positions, self.run.sites[target.hook].kept)
        for number, out in spliced.writers[target.hook]:
            if bool(inside.any()):
                back = direction.new_zeros(len(part), spliced.dictionaries[number].d_in)
                back[inside] = self._reconstruction_directions(number, out, positions[inside], direction[inside])
                layer = self._layer(spliced.reads[number])
                seeds.append(_Seed(layer, lambda tape, n=number: tape.captured.x_in[n], positions, -back))
        totals = (direction * self.run.sites[target.hook].error[positions]).sum(-1)
        rows = Rows(self.origins, totals, slopes, target.nodes[part])
        self._pull(rows, stretch, seeds, told)
        return rows.finish()

    def _reconstruction_directions(
        self, number: int, out: int, positions: Int[Tensor, "batch"], directions: Float[Tensor, "batch d_out"]
    ) -> Float[Tensor, "batch d_in"]:
        """Returns d(direction . reconstruction) / d(what the dictionary reads), active features held fixed."""
        feature_run = self.run.features[number]
        rows, place = torch.unique(positions, return_inverse=True)
        features = feature_run.features
        found = torch.searchsorted(rows, features.rows).clamp_max(len(rows) - 1)
        here = features.select(rows[found] == features.rows)
        here = SparseFeatures(torch.searchsorted(rows, here.rows), here.indices, here.values, len(rows), features.d_sae)
        with torch.enable_grad():
            x = feature_run.x_in[rows].detach().requires_grad_()
            y = feature_run.dictionary.reconstruct(x, here, out, frozen=self.frozen)
            back = torch.zeros_like(feature_run.x_in[positions])
            # error nodes at one position have one direction each at a hook point, so a product a row is all there is
            for n in range(int(torch.bincount(place).max())):
                chosen = _nth_of_each(place, n)
                seed = torch.zeros_like(y)
                seed[place[chosen]] = directions[chosen].to(y.dtype)
                back[chosen] = torch.autograd.grad(y, x, seed, retain_graph=True)[0][place[chosen]]
        return back

    def _pull(
        self,
        rows: Rows,
        stretch: "_Stretch",
        seeds: "Sequence[_Seed]",
        told: Callable[[float], None] | None = None,
    ) -> None:
        """Pulls a block of targets down a stretch, piece by piece from the top, and gives the Jacobians to the rows.

        Targets of lower layers come after those of higher ones, so that those on their way are always the first.
        """
        above: Tensor | None = None
        dtype = self.run.embed.dtype
        pieces = list(zip(stretch.bounds, stretch.bounds[1:], strict=False))[::-1]
        for number, (low, high) in enumerate(pieces):
            ends = [seed.end(len(rows.totals)) for seed in seeds if seed.layer >= low]
            if not ends:
                continue
            tape = self._linearise(stretch, low, high)
            size = products_together(self.spliced, stretch.n_tokens, len(tape.leaves), self.budget)
            with torch.enable_grad():
                here = [(seed, seed.output(tape)) for seed in seeds if low <= seed.layer < high]
                here = [(seed, output) for seed, output in here if output is not None]
            below: Tensor | None = None
            for first in range(0, max(ends), size):
                part = slice(first, min(first + size, max(ends)))
                starts = [(output, seed.vectors(output, part)) for seed, output in here]
                if above is not None:
                    vectors = above.new_zeros(part.stop - first, *above.shape[1:])
                    vectors[: len(above[part])] = above[part]
                    starts.append((tape.captured.residuals[high], vectors))
                found = vector_products(starts, tape.leaves)
                del starts
                entry = found.pop(_ENTRY, None)
                if entry is not None:
                    below = entry.new_zeros(max(ends), *entry.shape[1:]) if below is None else below
                    below[part] = entry
                for name, j in found.items():
                    rows.add(name, rearrange(j[:, 0].to(dtype), "target pos ... -> pos target (...)"), first)
                if told is not None:
                    told((number + part.stop / max(ends)) / len(pieces))
            above = below
            del tape, here

    def tape(
        self, low: int, high: int, n_tokens: int, watch: Mapping[str, Hook]
    ) -> tuple[Captured, dict[str, Float[Tensor, "1 pos _d"]]]:
        """Runs layers `low` to below `high` with a leaf at every hook point written, and one where they are entered.

        Args:
            low: A layer where a segment starts (see `points.segment_of`).
            high: The layer before which the pass ends.
            n_tokens: The positions that are computed, from the first on.
            watch: Further hooks, for hook points that fire there.

        Returns:
            What was captured, and the leaves by hook point.
        """
        found = self._linearise(
            _Stretch((low, high, self.spliced.n_layers + 1), n_tokens, None), low, high, watch=watch
        )
        self._tape = None
        return found.captured, found.leaves

    # through the chain of matrices

    def _scopes(self, wanted: set[int]) -> list[tuple[int, int, set[int]]]:
        """Returns the layers that chains are made of, with the dictionaries read there.

        One chain of the whole model sweeps all targets together; over a long prompt, where the patterns take much memory,
        there is one a segment, and none for a segment whose patterns take too much.
        """
        spliced, n_tokens = self.spliced, self.run.n_tokens
        if not self._sweeps or not wanted:
            return []
        if not is_long(spliced, n_tokens):
            return [(0, spliced.n_layers, wanted)]
        by_segment: dict[int, set[int]] = {}
        for number in wanted:
            by_segment.setdefault(points.segment_of(spliced, spliced.reads[number]), set()).add(number)
        replaced = {spliced.hooked.layer(name) for name in spliced.written if points.part(name) == "hook_mlp_out"}
        found = []
        for low, numbers in sorted(by_segment.items()):
            high = 1 + max(self._layer(spliced.reads[number]) for number in numbers)
            each = [layer_bytes(spliced, n_tokens, mlp=layer not in replaced) for layer in range(low, high)]
            if sum(each) <= _CHAIN * tape_budget(spliced):
                found.append((low, high, numbers))
        return found

    def _chain(self, low: int, high: int) -> Chain | None:
        tape: dict[str, Tensor] = {}
        watch: dict[str, Hook] = {name: Watch(tape, name) for name in watched(self.spliced, low, high)}
        stretch = _Stretch(tuple(dict.fromkeys((low, high, self.spliced.n_layers))), self.run.n_tokens, None)
        linear = self._linearise(stretch, low, high, watch=watch)
        self._tape = None
        return build_chain(self.spliced, linear.captured, linear.leaves, tape, self.budget, (low, high))

    def _swept_edges(self, chain: Chain, targets: Sequence[FeatureTargets]) -> Iterator[EdgeBatch]:
        order = chain.order_of({t.number for t in targets})
        targets = sorted(targets, key=lambda t: order.index(t.number))
        bytes_each = self.run.embed.element_size() * self.spliced.d_model * COPIES
        for low, high in position_blocks(torch.cat([t.positions for t in targets]), self.budget // bytes_each):
            parts = []
            for target in targets:
                chosen = ((target.positions >= low) & (target.positions < high)).nonzero().flatten()
                if len(chosen):
                    parts.append((target, chosen))
            room = max(1, self.budget // (bytes_each * high))
            for block in split(parts, room):
                yield self._swept_block(chain, block, high)

    def _swept_block(self, chain: Chain, block: Sequence[Part], n_pos: int) -> EdgeBatch:
        rows = Rows.of(self.origins, block)
        entering = []
        for t, chosen in block:
            at = t.positions[chosen]
            direction = encoder_directions(self.spliced, self.run, t.number, at, t.indices[chosen], frozen=True)
            entering.append((t.number, direction, at))
        with torch.no_grad():
            chain.sweep(n_pos, entering, rows.add)
        return rows.finish()


_ENTRY = ""  # the residual stream entering a piece of a stretch, among leaves


@dataclass(frozen=True)
class _Stretch:
    """The layers and positions that a block of targets is pulled through by autograd.

    Attributes:
        bounds: The first layer, those before which the tape is cut, and the end.
        n_tokens: Positions.
        last: The last hook point that matters, `None` for the logits.
        raw: A hook point written at which targets start from what arrives there, below its leaf.
    """

    bounds: tuple[int, ...]
    n_tokens: int
    last: str | None
    raw: str | None = None

    @property
    def is_cut(self) -> bool:
        """Whether it takes more than one tape."""
        return len(self.bounds) > 2


@dataclass(frozen=True)
class _Tape:
    """One piece of a stretch in the autograd graph: what was captured, the leaves, what arrived at `_Stretch.raw`."""

    captured: Captured
    leaves: dict[str, Tensor]
    raw: Tensor | None


@dataclass(frozen=True)
class _Seed:
    """Where the products of some targets of a block start.

    Attributes:
        layer: The layer of the tensor that they start at.
        output: Gives that tensor.
        positions, directions: Each target's place there and its direction; `None` for a tensor of one number.
        first: How many targets of the block come before.
    """

    layer: int
    output: Callable[[_Tape], Tensor | None]
    positions: Int[Tensor, "target"] | None = None
    directions: Float[Tensor, "target d"] | None = None
    first: int = 0

    def end(self, n_targets: int) -> int:
        """Returns how many targets of a block there are up to these."""
        return n_targets if self.positions is None else self.first + len(self.positions)

    def vectors(self, output: Tensor, part: slice) -> Float[Tensor, "part ..."]:
        """Returns what the products of a part of the block start from at the output."""
        if self.positions is None or self.directions is None:
            return torch.ones_like(output).expand(part.stop - part.start, *output.shape)
        vectors = output.new_zeros(part.stop - part.start, *output.shape)
        low, high = max(part.start, self.first), min(part.stop, self.first + len(self.positions))
        if low < high:
            rows = torch.arange(low - part.start, high - part.start, device=output.device)
            own = slice(low - self.first, high - self.first)
            vectors[rows, 0, self.positions[own]] = self.directions[own].to(output.dtype)
        return vectors


def vector_products(
    outputs: Sequence[tuple[Tensor, Float[Tensor, "batch ..."]]], leaves: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Returns vector-Jacobian products at the leaves that outputs depend on, for a batch of vectors at each output."""
    outputs = [(output, vectors) for output, vectors in outputs if output.requires_grad]
    if not outputs:
        return {}
    batched = len(outputs[0][1]) > 1
    found = torch.autograd.grad(
        [output for output, _ in outputs],
        list(leaves.values()),
        [vectors if batched else vectors[0] for _, vectors in outputs],
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=batched,
    )
    return {name: g if batched else g[None] for name, g in zip(leaves, found, strict=True) if g is not None}


def encoder_directions(
    spliced: SplicedModel,
    run: Run,
    number: int,
    positions: Int[Tensor, "target"],
    indices: Int[Tensor, "target"],
    *,
    frozen: bool,
) -> Float[Tensor, "target d_in"]:
    """Returns d(pre-activation) / d(what the dictionary reads) of features at their positions."""
    with torch.enable_grad():
        x = run.features[number].x_in[positions].detach().requires_grad_()
        rows = torch.arange(len(positions), device=x.device)
        value = spliced.dictionaries[number].pre_activations(x, rows, indices, frozen=frozen)
        return torch.autograd.grad(value.sum(), x)[0]


def _nth_of_each(groups: Int[Tensor, "n"], nth: int) -> Int[Tensor, "chosen"]:
    """Returns the places of each group's entry number `nth`, where it has so many."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return order[rank == nth]


def _written(spliced: SplicedModel, dictionary: Dictionary) -> str:
    return spliced.canonical(dictionary.hook_outs[0])
