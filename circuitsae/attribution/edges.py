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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae.attribution.baselines import Baseline, FeatureNodes
from circuitsae.attribution.sweep import Chain, build_chain, watched
from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.model.checks import freezes, verify
from circuitsae.model.hooks import Hook, Prefix, Watch
from circuitsae.model.runs import EMBED, Captured, Readout, Run, forward
from circuitsae.model.spliced import SplicedModel

Linearisation = Literal["gradient", "frozen"]
LINEARISATIONS: tuple[str, ...] = get_args(Linearisation)

# Bytes that one block of targets may hold at a time.
BUDGET = 96 * 2**20
# Positions of one swept block are at least this share of the block's longest, so that little of it is empty;
FILL = 0.8
# but a block of fewer rows than this is too small for the processor to be at its best.
_FEW_ROWS = 512
# Copies of a block's state that a step through attention holds at a time.
COPIES = 6


@dataclass(frozen=True)
class Sources:
    """The nodes that edges may come from. Numbers count the circuit's nodes.

    Attributes:
        features: By dictionary, which of its feature nodes, and their numbers.
        errors: By hook point written, which positions, and their numbers.
        tokens: Which positions, and their numbers.
        bias: The bias node's number.
    """

    features: tuple[tuple[Int[Tensor, "chosen"], Int[Tensor, "chosen"]], ...]
    errors: dict[str, tuple[Int[Tensor, "chosen"], Int[Tensor, "chosen"]]]
    tokens: tuple[Int[Tensor, "chosen"], Int[Tensor, "chosen"]]
    bias: int


@dataclass(frozen=True)
class FeatureTargets:
    """One dictionary's features that edges may go to: all active on the prompt.

    Attributes:
        number: The dictionary.
        positions, indices: The features.
        totals: Their pre-activations, which the in-edges add up to.
        slopes: The metric's derivative by their activation.
        nodes: Their numbers in the circuit.
    """

    number: int
    positions: Int[Tensor, "target"]
    indices: Int[Tensor, "target"]
    totals: Float[Tensor, "target"]
    slopes: Float[Tensor, "target"]
    nodes: Int[Tensor, "target"]

    def __len__(self) -> int:
        return int(self.positions.shape[0])


@dataclass(frozen=True)
class ErrorTargets:
    """Error nodes of one hook point that edges may go to.

    Attributes:
        hook: The hook point.
        positions: Where.
        gradients: `dm/d error` there; its direction is what the error is projected on.
        nodes: Their numbers in the circuit.
    """

    hook: str
    positions: Int[Tensor, "target"]
    gradients: Float[Tensor, "target d_out"]
    nodes: Int[Tensor, "target"]

    def __len__(self) -> int:
        return int(self.positions.shape[0])


@dataclass(frozen=True)
class EdgeBatch:
    """In-edges of a batch of targets, and what became of the rest. All on the CPU.

    Attributes:
        sources, targets: Node numbers, `[edge]`.
        contributions: In units of the target's activation.
        weights: In units of the metric.
        target_nodes: The batch's targets.
        totals: What each target's in-edges would add up to were all kept.
        magnitudes: Sum of |contribution| over everything that acts on each target, kept or not, the bias included.
        candidates: Number of edges that are not zero between the sources and the batch, kept or not.
    """

    sources: Int[Tensor, "edge"]
    targets: Int[Tensor, "edge"]
    contributions: Float[Tensor, "edge"]
    weights: Float[Tensor, "edge"]
    target_nodes: Int[Tensor, "target"]
    totals: Float[Tensor, "target"]
    magnitudes: Float[Tensor, "target"]
    candidates: int


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
        self.spliced, self.run, self.nodes, self.baseline = spliced, run, nodes, baseline
        self.readout, self.sources, self.edge_threshold, self.top_k = readout, sources, edge_threshold, top_k
        self.frozen, self.budget = linearisation == "frozen", budget
        self.path = "autograd"
        self._sweeps = sweep and self.frozen
        verify(spliced, frozen=self.frozen)
        self._extra = freezes(spliced) if self.frozen else []
        self._offsets = [
            torch.searchsorted(n.positions, torch.arange(run.n_tokens + 1, device=n.positions.device)).tolist()
            for n in nodes
        ]

    def metric_edges(self, node: int) -> EdgeBatch:
        """Returns the in-edges of the metric node."""
        total = torch.tensor([self.run.metric], dtype=self.run.embed.dtype, device=self.run.embed.device)
        reads = None if self.readout.metric is None else self.readout.metric.reads
        segment = segment_of(self.spliced, reads)
        captured, leaves = self._linearise(segment, self.run.n_tokens, stop_at=None)
        with torch.enable_grad():
            value = self.readout.of(captured).sum()
        names = list(leaves)
        found = torch.autograd.grad(value, [leaves[name] for name in names], allow_unused=True)
        jacobian = {name: g.to(total.dtype) for name, g in zip(names, found, strict=True) if g is not None}
        return self._batch(jacobian, total, torch.ones_like(total), torch.tensor([node], device=total.device))

    def feature_edges(
        self, targets: Sequence[FeatureTargets], tick: Callable[[int, int, str], object] | None = None
    ) -> Iterator[EdgeBatch]:
        """Yields the in-edges of feature targets, block by block.

        Cost: swept, two products with attention's matrices a layer below a target and position before it, and a forward
        pass; by autograd, one vector-Jacobian product a target over its segment.
        """
        everything = sum(len(t) for t in targets)
        done = 0
        swept: set[int] = set()
        wanted = {t.number for t in targets if len(t)}
        chain = self._chain() if self._sweeps and wanted else None
        if chain is not None and wanted & chain.entries.keys():
            swept = wanted & chain.entries.keys()
            self.path = "sweep" if swept == wanted else "sweep and autograd"
            for batch in self._swept_edges(chain, [t for t in targets if t.number in swept]):
                yield batch
                done += len(batch.target_nodes)
                if tick is not None:
                    tick(done, everything, "targets")
        del chain
        by_segment: dict[int, list[FeatureTargets]] = {}
        for target in targets:
            if len(target) and target.number not in swept:
                by_segment.setdefault(segment_of(self.spliced, self.spliced.reads[target.number]), []).append(target)
        for segment, found in sorted(by_segment.items()):
            last = max((self.spliced.reads[t.number] for t in found), key=self.spliced.order)
            for low, high in position_buckets(torch.cat([t.positions for t in found]), self.run.n_tokens):
                captured, leaves = self._linearise(segment, high, stop_at=last)
                size = products_together(self.spliced, high, len(leaves), self.budget)
                for target in found:
                    inside = (target.positions >= low) & (target.positions < high)
                    for part in inside.nonzero().flatten().split(size):
                        yield self._feature_batch(target, part, captured, leaves)
                        done += len(part)
                        if tick is not None:
                            tick(done, everything, "targets")

    def error_edges(
        self,
        targets: "Sequence[ErrorTargets] | None" = None,
        tick: Callable[[int, int, str], object] | None = None,
    ) -> Iterator[EdgeBatch]:
        """Yields the in-edges of error nodes, batch by batch.

        An error node is a vector, `x_out - decode(encode(x_in))`. What acts on it is told by one number: its projection on
        the direction in which the metric changes most, `dm/d error` at unit length, which is held fixed (Marks et al. 2024
        take the same product). `totals` is that projection, and a row adds up to it; weights are in units of the metric.
        The features active on the prompt stay the ones that the error leaves out.

        Args:
            targets: The error nodes; those among the sources when `None`.
            tick: Called with targets done, their number and a word.
        """
        if targets is None:
            targets = self.error_targets()
        everything, done = sum(len(t) for t in targets), 0
        for target in targets:
            if not len(target):
                continue
            reads = [self.spliced.reads[number] for number, _ in self.spliced.writers[target.hook]]
            segment = min(segment_of(self.spliced, name) for name in (target.hook, *reads))
            last = max((target.hook, *reads), key=self.spliced.order)
            for low, high in position_buckets(target.positions, self.run.n_tokens):
                raw: dict[str, Tensor] = {target.hook: torch.empty(0)}
                captured, leaves = self._linearise(segment, high, stop_at=last, raw=raw)
                size = products_together(self.spliced, high, len(leaves), self.budget)
                inside = (target.positions >= low) & (target.positions < high)
                for part in inside.nonzero().flatten().split(size):
                    yield self._error_batch(target, part, captured, leaves, raw[target.hook])
                    done += len(part)
                    if tick is not None:
                        tick(done, everything, "error nodes")

    def error_targets(self) -> "list[ErrorTargets]":
        """Returns the error nodes among the sources as targets. Cost: one forward and one backward pass of the model."""
        hooks = [hook for hook, (positions, _) in self.sources.errors.items() if len(positions)]
        if not hooks:
            return []
        with torch.enable_grad():
            captured = forward(self.spliced, self.run.tokens[None], self.readout, leaf_embed=True)
            value = self.readout.of(captured).sum()
            found = torch.autograd.grad(value, [captured.x_out[hook] for hook in hooks], allow_unused=True)
        targets = []
        for hook, gradient in zip(hooks, found, strict=True):
            positions, numbers = self.sources.errors[hook]
            error = self.run.sites[hook].error
            gradient = torch.zeros_like(error) if gradient is None else gradient[0].to(error.dtype)
            targets.append(ErrorTargets(hook, positions, gradient[positions], numbers))
        return targets

    # through autograd

    def _linearise(
        self,
        segment: int,
        n_tokens: int,
        stop_at: str | None,
        *,
        watch: Mapping[str, Hook] | None = None,
        raw: dict[str, Tensor] | None = None,
    ) -> tuple[Captured, dict[str, Tensor]]:
        """Runs the model from a segment's start with a leaf at every hook point written; gives the leaves by name.

        `watch` are further hooks, `raw` collects what arrives at the hook points that it names, below their leaves.
        """
        spliced, run = self.spliced, self.run
        leaves: dict[str, Tensor] = {}
        read: dict[int, Tensor] = {}
        start: Prefix | None = None
        with torch.enable_grad():
            if segment > 0:
                cut = _residual_site(spliced, segment)
                prefix = run.prefix(segment)
                assert prefix is not None and prefix.layer == segment
                residual = prefix.residual[:, :n_tokens]
                if cut is not None:
                    residual = leaves[cut] = residual.detach().requires_grad_()
                start = Prefix(segment, residual)

            def on_write(name: str, x: Tensor) -> Tensor:
                if raw is not None and name in raw:
                    raw[name] = x
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

            extra = self._extra if start is None else [(n, h) for n, h in self._extra if self._above(n, segment)]
            captured = forward(
                spliced,
                run.tokens[None, :n_tokens],
                self.readout if stop_at is None else Readout(None, n_tokens),
                on_read=read.__setitem__,
                on_write=on_write,
                extra=[*extra, *(watch or {}).items()],
                leaf_embed=True,
                start=start,
                stop_at=stop_at,
            )
        if segment == 0:
            leaves[EMBED] = captured.embed
        return captured, leaves

    def _above(self, name: str, layer: int) -> bool:
        return self.spliced.hooked.layer(name) >= layer

    def _skip(self, number: int, read: dict[int, Tensor], n_tokens: int) -> Tensor | None:
        dictionary = self.spliced.dictionaries[number]
        kept = [p for p in self.run.features[number].kept.tolist() if p < n_tokens]
        path = dictionary.skip(read[number][0, kept].to(self.run.embed.dtype)) if kept else None
        if path is None:
            return None
        whole = torch.zeros(n_tokens, path.shape[-1], dtype=path.dtype, device=path.device)
        return whole.index_add(0, torch.tensor(kept, device=path.device), path)[None]

    def _feature_batch(
        self, target: FeatureTargets, part: Int[Tensor, "batch"], captured: Captured, leaves: dict[str, Tensor]
    ) -> EdgeBatch:
        x_in = captured.x_in[target.number]
        positions, indices = target.positions[part], target.indices[part]
        direction = encoder_directions(self.spliced, self.run, target.number, positions, indices, frozen=self.frozen)
        jacobian = self._vjp([(x_in, positions, direction)], leaves)
        return self._batch(jacobian, target.totals[part], target.slopes[part], target.nodes[part])

    def _error_batch(
        self,
        target: "ErrorTargets",
        part: Int[Tensor, "batch"],
        captured: Captured,
        leaves: dict[str, Tensor],
        x_out: Tensor,
    ) -> EdgeBatch:
        positions = target.positions[part]
        gradient = target.gradients[part]
        slopes = gradient.norm(dim=-1)
        direction = gradient / slopes.clamp_min(torch.finfo(slopes.dtype).tiny)[:, None]
        seeds = [(x_out, positions, direction)]
        inside = torch.isin(positions, self.run.sites[target.hook].kept)
        for number, out in self.spliced.writers[target.hook]:
            if bool(inside.any()):
                back = torch.zeros(len(part), captured.x_in[number].shape[-1], dtype=direction.dtype).to(
                    direction.device
                )
                back[inside] = self._reconstruction_directions(number, out, positions[inside], direction[inside])
                seeds.append((captured.x_in[number], positions, -back))
        totals = (direction * self.run.sites[target.hook].error[positions]).sum(-1)
        return self._batch(self._vjp(seeds, leaves), totals, slopes, target.nodes[part])

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

    def _vjp(
        self,
        seeds: "Sequence[tuple[Tensor, Int[Tensor, 'batch'], Float[Tensor, 'batch d']]]",
        leaves: dict[str, Tensor],
    ) -> dict[str, Float[Tensor, "batch pos d"]]:
        """Returns the Jacobian at the leaves, of outputs each read at one position along one direction a target."""
        outputs, vectors = [], []
        for output, positions, directions in seeds:
            if output.requires_grad:
                seed = torch.zeros(len(positions), *output.shape, dtype=output.dtype, device=output.device)
                seed[torch.arange(len(positions)), 0, positions] = directions.to(output.dtype)
                outputs.append(output)
                vectors.append(seed)
        if not outputs:
            return {}
        found = torch.autograd.grad(
            outputs, list(leaves.values()), vectors, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        dtype = self.run.embed.dtype
        return {name: g[:, 0].to(dtype) for name, g in zip(leaves, found, strict=True) if g is not None}

    def _batch(
        self,
        jacobian: dict[str, Float[Tensor, "batch pos d"]],
        totals: Float[Tensor, "batch"],
        slopes: Float[Tensor, "batch"],
        nodes: Int[Tensor, "batch"],
    ) -> EdgeBatch:
        rows = _Rows(self, totals, slopes, nodes)
        for name, j in jacobian.items():
            rows.add(name, j.flatten(2).transpose(0, 1))
        return rows.finish()

    # through the chain of matrices

    def _chain(self) -> Chain | None:
        tape: dict[str, Tensor] = {}
        watch: dict[str, Hook] = {name: Watch(tape, name) for name in watched(self.spliced)}
        captured, leaves = self._linearise(0, self.run.n_tokens, stop_at=None, watch=watch)
        return build_chain(self.spliced, captured, leaves, tape, self.budget)

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
            for block in _split(parts, room):
                yield self._swept_block(chain, block, high)

    def _swept_block(
        self, chain: Chain, block: "Sequence[tuple[FeatureTargets, Int[Tensor, 'chosen']]]", n_pos: int
    ) -> EdgeBatch:
        rows = _Rows(
            self,
            torch.cat([t.totals[chosen] for t, chosen in block]),
            torch.cat([t.slopes[chosen] for t, chosen in block]),
            torch.cat([t.nodes[chosen] for t, chosen in block]),
        )
        entering = []
        for t, chosen in block:
            at = t.positions[chosen]
            direction = encoder_directions(self.spliced, self.run, t.number, at, t.indices[chosen], frozen=True)
            entering.append((t.number, direction, at))
        with torch.no_grad():
            chain.sweep(n_pos, entering, rows.add)
        return rows.finish()


class _Rows:
    """Turns the Jacobians of a block of targets into in-edges, leaf by leaf: products with what each source writes."""

    def __init__(
        self,
        engine: EdgeEngine,
        totals: Float[Tensor, "target"],
        slopes: Float[Tensor, "target"],
        nodes: Int[Tensor, "target"],
    ) -> None:
        self.engine, self.totals, self.slopes, self.nodes = engine, totals, slopes, nodes
        self.explained = torch.zeros_like(totals)
        self.magnitudes = torch.zeros_like(totals)
        self.candidates = 0
        self._edges: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # source, target's row, contribution, weight
        self._several: dict[int, Tensor] = {}  # of a dictionary that writes in several places, until all are known

    def add(self, hook: str, j: Float[Tensor, "pos part d"], first: int = 0) -> None:
        """Takes in the Jacobian of targets `first` and on at one leaf."""
        engine = self.engine
        if hook == EMBED:
            base = engine.baseline.embed
            self._vectors(j, first, engine.run.embed, base, engine.sources.tokens)
            return
        for number, out in engine.spliced.writers[hook]:
            products = self._products(number, out, j)
            if len(engine.spliced.dictionaries[number].hook_outs) == 1:
                self._features(number, products, first)
                continue
            whole = self._several.get(number)
            if whole is None:
                whole = self._several[number] = products.new_zeros(
                    len(self.totals), len(engine.nodes[number].positions)
                )
            whole[first : first + products.shape[0], : products.shape[1]] += products
        base = None if engine.baseline.errors is None else engine.baseline.errors[hook]
        self._vectors(j, first, engine.run.sites[hook].error, base, engine.sources.errors[hook])

    def finish(self) -> EdgeBatch:
        """Returns all in-edges, the bias node's too: what no feature, error or token carries is the constant part.

        That is biases, and where the segment is not linear the constant of its first-order expansion.
        """
        for number, products in self._several.items():
            self._features(number, products, 0)
        bias = self.totals - self.explained
        self.magnitudes += bias.abs()
        self._keep(
            torch.tensor([self.engine.sources.bias], device=bias.device), bias[:, None], torch.zeros_like(bias)[:, None]
        )
        source, row, contribution, weight = (torch.cat(c) for c in zip(*self._edges, strict=True))
        if self.engine.top_k is not None:
            kept = _largest_of_each(row, contribution.abs(), self.engine.top_k, source == self.engine.sources.bias)
            source, row, contribution, weight = source[kept], row[kept], contribution[kept], weight[kept]
        return EdgeBatch(
            source.cpu(),
            self.nodes[row].cpu(),
            contribution.cpu(),
            weight.cpu(),
            self.nodes.cpu(),
            self.totals.cpu(),
            self.magnitudes.cpu(),
            self.candidates,
        )

    def _products(self, number: int, out: int, j: Float[Tensor, "pos part d"]) -> Float[Tensor, "part node"]:
        """Returns J . W_dec[u] for a dictionary's nodes at the positions that the Jacobian covers."""
        nodes, offsets = self.engine.nodes[number], self.engine._offsets[number]
        products = j.new_zeros(j.shape[1], offsets[j.shape[0]])
        for position in range(j.shape[0]):
            low, high = offsets[position], offsets[position + 1]
            if low < high:
                rows = nodes.decoders[out][nodes.inverse[low:high]]
                torch.mm(j[position], rows.T.to(j.dtype), out=products[:, low:high])
        if nodes.scale is not None:
            products *= nodes.scale[nodes.positions[: products.shape[1]]]
        return products

    def _features(self, number: int, products: Float[Tensor, "part node"], first: int) -> None:
        nodes, limit = self.engine.nodes[number], products.shape[1]
        contributions = products * nodes.activations[:limit]
        self._count(contributions, first)
        chosen, numbers = self.engine.sources.features[number]
        inside = chosen < limit
        chosen, numbers = chosen[inside], numbers[inside]
        change = (nodes.baselines - nodes.activations)[chosen]
        self._keep(numbers, contributions[:, chosen], products[:, chosen] * change, first)

    def _vectors(
        self,
        j: Float[Tensor, "pos part d"],
        first: int,
        vectors: Float[Tensor, "pos d"],
        base: Float[Tensor, "pos d"] | None,
        sources: "tuple[Int[Tensor, 'chosen'], Int[Tensor, 'chosen']]",
    ) -> None:
        n = j.shape[0]
        contributions = torch.bmm(j, vectors[:n, :, None].to(j.dtype))[..., 0].T
        changes = -contributions
        if base is not None:
            changes = torch.bmm(j, (base[:n] - vectors[:n])[..., None].to(j.dtype))[..., 0].T
        self._count(contributions, first)
        chosen, numbers = sources
        inside = chosen < n
        chosen, numbers = chosen[inside], numbers[inside]
        self._keep(numbers, contributions[:, chosen], changes[:, chosen], first)

    def _count(self, contributions: Float[Tensor, "part source"], first: int) -> None:
        part = slice(first, first + contributions.shape[0])
        self.explained[part] += contributions.sum(1)
        self.magnitudes[part] += contributions.abs().sum(1)

    def _keep(
        self,
        numbers: Int[Tensor, "source"],
        contributions: Float[Tensor, "part source"],
        weights: Float[Tensor, "part source"],
        first: int = 0,
    ) -> None:
        weights = weights * self.slopes[first : first + weights.shape[0], None]
        keep = (contributions != 0) | (weights != 0)
        self.candidates += int(keep.sum())
        if self.engine.edge_threshold > 0:
            keep &= (weights.abs() >= self.engine.edge_threshold) | (numbers == self.engine.sources.bias)
        row, column = keep.nonzero(as_tuple=True)
        self._edges.append((numbers[column], row + first, contributions[row, column], weights[row, column]))


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


def products_together(spliced: SplicedModel, n_tokens: int, n_leaves: int, budget: int = BUDGET) -> int:
    """Returns how many vector-Jacobian products through a prompt are batched within a byte budget."""
    cfg = spliced.hooked.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * spliced.d_model
    heads = getattr(cfg, "n_heads", 1) or 1
    floats = n_tokens * (4 * d_mlp + (6 + 2 * n_leaves) * spliced.d_model + 3 * heads * n_tokens)
    return max(1, budget // (4 * floats))


def position_buckets(positions: Int[Tensor, "target"], n_tokens: int) -> list[tuple[int, int]]:
    """Splits target positions into ranges `[low, high)`, each worth a forward pass of `high` tokens of its own.

    Nothing after a target's position acts on it, so products for early targets need only a short prompt. A range is
    split off while that saves more than it costs: many targets, and a prompt that gets much shorter.
    """
    ends = [n_tokens]
    while len(ends) < 4 and ends[-1] > 16:
        cut = (ends[-1] * 3) // 5
        if int((positions < cut).sum()) < 16:
            break
        ends.append(cut)
    bounds = [0, *reversed(ends)]
    return [
        (low, high)
        for low, high in zip(bounds, bounds[1:], strict=False)
        if bool(((positions >= low) & (positions < high)).any())
    ]


def position_blocks(positions: Int[Tensor, "target"], room: int) -> list[tuple[int, int]]:
    """Splits target positions into ranges `[low, high)` for `Chain.sweep`, the last positions first.

    A range is narrow enough that its targets fill most of a block `high` positions long; one with very few targets takes
    in the ones before as well, while `room` positions in all are not exceeded.
    """
    counts = torch.bincount(positions).tolist()
    blocks: list[tuple[int, int]] = []
    high = len(counts)
    while high > 0:
        if not counts[high - 1]:
            high -= 1
            continue
        low = min(high - 1, int(high * FILL))
        while low > 0 and sum(counts[low:high]) * high < min(room, _FEW_ROWS):
            low -= 1
        blocks.append((low, high))
        high = low
    return blocks


def _split(
    parts: "Sequence[tuple[FeatureTargets, Int[Tensor, 'chosen']]]", room: int
) -> "Iterator[list[tuple[FeatureTargets, Int[Tensor, 'chosen']]]]":
    """Cuts a list of targets into blocks of at most `room`, in order."""
    block: list[tuple[FeatureTargets, Tensor]] = []
    left = room
    for target, chosen in parts:
        while len(chosen):
            block.append((target, chosen[:left]))
            left -= len(block[-1][1])
            chosen = chosen[len(block[-1][1]) :]
            if not left:
                yield block
                block, left = [], room
    if block:
        yield block


def _nth_of_each(groups: Int[Tensor, "n"], nth: int) -> Int[Tensor, "chosen"]:
    """Returns the places of each group's entry number `nth`, where it has so many."""
    order = groups.argsort(stable=True)
    ordered = groups[order]
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    return order[rank == nth]


def _largest_of_each(
    groups: Int[Tensor, "n"], sizes: Float[Tensor, "n"], count: int, always: Bool[Tensor, "n"]
) -> Int[Tensor, "kept"]:
    """Returns the places of each group's largest entries, and of all that are to stay in any case."""
    order = sizes.masked_fill(always, float("inf")).argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    rank = torch.arange(len(groups), device=groups.device) - torch.searchsorted(ordered, ordered)
    extra = torch.zeros(int(ordered.max()) + 1, dtype=rank.dtype, device=rank.device) if len(ordered) else rank
    extra.index_add_(0, groups, always.to(rank.dtype))
    return order[rank < count + extra[ordered]]


def segment_of(spliced: SplicedModel, read: str | None) -> int:
    """Returns the layer where the run for a target must start: above the nearest residual site below it."""
    limit = spliced.n_layers if read is None else spliced.hooked.layer(read)
    ordered = read in spliced.reads or read in spliced.written  # a metric may read anywhere
    starts = [0]
    for hook in spliced.written:
        layer = spliced.hooked.layer(hook)
        if hook.endswith(".hook_resid_post"):
            start = layer + 1
        elif hook.endswith(".hook_resid_pre"):
            start = layer
        else:
            continue
        below = read is None or layer < limit or (ordered and spliced.order(hook) < spliced.order(read))
        if below and 0 < start <= limit and start < spliced.n_layers:
            starts.append(start)
    return max(starts)


def _residual_site(spliced: SplicedModel, layer: int) -> str | None:
    """Returns the site that writes the residual stream at the end of the block below, if there is one."""
    for hook in spliced.written:
        if hook.endswith(".hook_resid_post") and spliced.hooked.layer(hook) == layer - 1:
            return hook
    return None
