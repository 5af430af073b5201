"""Edges: how much each node acts on each other one directly, all other nodes held fixed.

Every hook point that dictionaries write to is replaced by a detached leaf of equal value. For a target v read at q,
`J = d(pre-activation of v) / d(leaf)` is one vector-Jacobian product, and a feature u's contribution is
`(J . W_dec[u]) * a_u` (DESIGN.md, section 3.3). Products are batched over targets and run over one segment only: from
where the target is read down to the nearest residual site below, which cuts every path; and over no position after the
last target of a batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.attribution.baselines import Baseline, FeatureNodes
from circuitsae.errors import UnknownNameError
from circuitsae.model.hooks import Hook, Prefix
from circuitsae.model.runs import EMBED, Captured, Readout, Run, forward
from circuitsae.model.spliced import SplicedModel

Linearisation = Literal["gradient", "frozen"]
LINEARISATIONS: tuple[str, ...] = get_args(Linearisation)

# Bytes that one batch of vector-Jacobian products may hold at a time.
BUDGET = 96 * 2**20


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

    Args:
        spliced: The model.
        run: Its clean run.
        nodes: The feature nodes of each dictionary.
        baseline: What nodes are set to.
        readout: The metric.
        linearisation: `"gradient"` or `"frozen"` (attention patterns and normalisation scales held constant).
        sources: The nodes that edges may come from.
        edge_threshold: Edges with a smaller |weight| are left out; those that are exactly zero always are.

    Raises:
        UnknownNameError: There is no such linearisation.
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
    ) -> None:
        if linearisation not in LINEARISATIONS:
            raise UnknownNameError("linearisation", linearisation, LINEARISATIONS)
        self.spliced, self.run, self.nodes, self.baseline = spliced, run, nodes, baseline
        self.readout, self.sources, self.edge_threshold = readout, sources, edge_threshold
        self.frozen = linearisation == "frozen"
        self._extra = freezes(spliced) if self.frozen else []
        self._offsets = [
            torch.searchsorted(n.positions, torch.arange(run.n_tokens + 1, device=n.positions.device)).tolist()
            for n in nodes
        ]

    def metric_edges(self, node: int) -> EdgeBatch:
        """Returns the in-edges of the metric node."""
        total = torch.tensor([self.run.metric], dtype=self.run.embed.dtype, device=self.run.embed.device)
        slope = torch.ones_like(total)
        segment = _segment_of(self.spliced, None)
        captured, leaves = self._linearise(segment, self.run.n_tokens, stop_at=None)
        with torch.enable_grad():
            assert captured.logits is not None
            value = self.readout.value(captured.logits).sum()
        inputs = list(leaves.values())
        found = torch.autograd.grad(value, inputs, allow_unused=True)
        jacobian = {name: g.to(total.dtype) for name, g in zip(leaves, found, strict=True) if g is not None}
        return self._batch(jacobian, total, slope, torch.tensor([node], device=total.device))

    def feature_edges(
        self, targets: Sequence[FeatureTargets], tick: Callable[[int, int, str], object] | None = None
    ) -> Iterator[EdgeBatch]:
        """Yields the in-edges of feature targets, batch by batch."""
        everything = sum(len(t) for t in targets)
        done = 0
        by_segment: dict[int, list[FeatureTargets]] = {}
        for target in targets:
            if len(target):
                by_segment.setdefault(_segment_of(self.spliced, self.spliced.reads[target.number]), []).append(target)
        for segment, found in sorted(by_segment.items()):
            last = max((self.spliced.reads[t.number] for t in found), key=self.spliced.order)
            for low, high in position_buckets(torch.cat([t.positions for t in found]), self.run.n_tokens):
                captured, leaves = self._linearise(segment, high, stop_at=last)
                for target in found:
                    inside = (target.positions >= low) & (target.positions < high)
                    for part in inside.nonzero().flatten().split(self._batch_size(high, len(leaves))):
                        yield self._feature_batch(target, part, captured, leaves)
                        done += len(part)
                        if tick is not None:
                            tick(done, everything, "targets")

    def _linearise(self, segment: int, n_tokens: int, stop_at: str | None) -> tuple[Captured, dict[str, Tensor]]:
        """Runs the model from a segment's start with a leaf at every hook point written; gives the leaves by name."""
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
                self.readout if stop_at is None else Readout(None, n_tokens),
                on_read=read.__setitem__,
                on_write=on_write,
                extra=self._extra if start is None else [(n, h) for n, h in self._extra if self._above(n, segment)],
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
        kept = [p for p in self.spliced.kept_positions(self.run.n_tokens) if p < n_tokens]
        path = dictionary.skip(read[number][0, kept].to(self.run.embed.dtype)) if kept else None
        if path is None:
            return None
        whole = torch.zeros(n_tokens, path.shape[-1], dtype=path.dtype, device=path.device)
        return whole.index_add(0, torch.tensor(kept, device=path.device), path)[None]

    def _batch_size(self, n_tokens: int, n_leaves: int) -> int:
        cfg = self.spliced.hooked.cfg
        d_mlp = getattr(cfg, "d_mlp", None) or 4 * self.spliced.d_model
        heads = getattr(cfg, "n_heads", 1) or 1
        floats = n_tokens * (4 * d_mlp + (6 + 2 * n_leaves) * self.spliced.d_model + 3 * heads * n_tokens)
        return max(1, BUDGET // (4 * floats))

    def _feature_batch(
        self, target: FeatureTargets, part: Int[Tensor, "batch"], captured: Captured, leaves: dict[str, Tensor]
    ) -> EdgeBatch:
        x_in = captured.x_in[target.number]
        positions, indices = target.positions[part], target.indices[part]
        direction = encoder_directions(
            self.spliced, self.run, target.number, positions, indices, frozen=self.frozen
        ).to(x_in.dtype)
        seeds = torch.zeros(len(part), *x_in.shape, dtype=x_in.dtype, device=x_in.device)
        seeds[torch.arange(len(part)), 0, positions] = direction
        jacobian = self._vjp(x_in, leaves, seeds)
        return self._batch(jacobian, target.totals[part], target.slopes[part], target.nodes[part])

    def _vjp(self, output: Tensor, leaves: dict[str, Tensor], seeds: Tensor) -> dict[str, Tensor]:
        """Returns `seeds . d output / d leaf` for the leaves that the output depends on, `[batch 1 pos d]`."""
        if not output.requires_grad:
            return {}
        found = torch.autograd.grad(
            output, list(leaves.values()), seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        dtype = self.run.embed.dtype
        return {name: g.to(dtype) for name, g in zip(leaves, found, strict=True) if g is not None}

    def _batch(
        self,
        jacobian: dict[str, Float[Tensor, "batch 1 pos d"]],
        totals: Float[Tensor, "batch"],
        slopes: Float[Tensor, "batch"],
        nodes: Int[Tensor, "batch"],
    ) -> EdgeBatch:
        """Turns Jacobians into edges: products with decoder rows, errors and embeddings."""
        batch = len(totals)
        flat = {name: j.reshape(batch, *j.shape[-2:]) for name, j in jacobian.items()}
        explained = torch.zeros_like(totals)
        magnitudes = torch.zeros_like(totals)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []  # node numbers, contributions, weights

        for number, feature_nodes in enumerate(self.nodes):
            products = self._feature_products(number, flat, batch)
            if products is None:
                continue
            limit = products.shape[1]
            contributions = products * feature_nodes.activations[:limit]
            explained += contributions.sum(1)
            magnitudes += contributions.abs().sum(1)
            chosen, numbers = self.sources.features[number]
            inside = chosen < limit
            chosen, numbers = chosen[inside], numbers[inside]
            change = (feature_nodes.baselines - feature_nodes.activations)[chosen]
            columns.append((numbers, contributions[:, chosen], products[:, chosen] * change))
        for hook, j in flat.items():
            if hook == EMBED:
                vectors = self.run.embed
                base = self.baseline.embed
                chosen, numbers = self.sources.tokens
            else:
                vectors = self.run.sites[hook].error
                base = None if self.baseline.errors is None else self.baseline.errors[hook]
                chosen, numbers = self.sources.errors[hook]
            n = j.shape[1]
            contributions = (j * vectors[:n]).sum(-1)
            changes = -contributions if base is None else (j * (base[:n] - vectors[:n])).sum(-1)
            explained += contributions.sum(1)
            magnitudes += contributions.abs().sum(1)
            inside = chosen < n
            chosen, numbers = chosen[inside], numbers[inside]
            columns.append((numbers, contributions[:, chosen], changes[:, chosen]))
        # What no feature, error or token carries is the constant part: biases, and where the segment is not linear the
        # constant of its first-order expansion.
        bias = totals - explained
        magnitudes += bias.abs()
        columns.append(
            (torch.tensor([self.sources.bias], device=bias.device), bias[:, None], torch.zeros_like(bias)[:, None])
        )

        numbers = torch.cat([c[0] for c in columns])
        contributions = torch.cat([c[1] for c in columns], 1)
        weights = torch.cat([c[2] for c in columns], 1) * slopes[:, None]
        keep = (contributions != 0) | (weights != 0)
        candidates = int(keep.sum())
        if self.edge_threshold > 0:
            keep &= (weights.abs() >= self.edge_threshold) | (numbers == self.sources.bias)
        row, column = keep.nonzero(as_tuple=True)
        return EdgeBatch(
            numbers[column].cpu(),
            nodes[row].cpu(),
            contributions[row, column].cpu(),
            weights[row, column].cpu(),
            nodes.cpu(),
            totals.cpu(),
            magnitudes.cpu(),
            candidates,
        )

    def _feature_products(
        self, number: int, jacobian: dict[str, Float[Tensor, "batch pos d"]], batch: int
    ) -> Float[Tensor, "batch node"] | None:
        """Returns J . W_dec[u] for a dictionary's nodes at the positions that the Jacobian covers."""
        nodes = self.nodes[number]
        products: Tensor | None = None
        for out, hook in enumerate(self.spliced.dictionaries[number].hook_outs):
            j = jacobian.get(self.spliced.canonical(hook))
            if j is None:
                continue
            offsets = self._offsets[number]
            limit = offsets[j.shape[1]]
            if products is None:
                products = torch.zeros(batch, limit, dtype=j.dtype, device=j.device)
            for position in range(j.shape[1]):
                low, high = offsets[position], offsets[position + 1]
                if low < high:
                    rows = nodes.decoders[out][nodes.inverse[low:high]]
                    products[:, low:high].addmm_(j[:, position], rows.T)
        if products is not None and nodes.scale is not None:
            products *= nodes.scale[nodes.positions[: products.shape[1]]]
        return products


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


def freezes(spliced: SplicedModel) -> list[tuple[str, Hook]]:
    """Returns the hooks that hold attention patterns and normalisation scales constant: each is detached."""
    names = ["ln_final.hook_scale"]
    for layer in range(spliced.n_layers):
        names.append(f"blocks.{layer}.attn.hook_pattern")
        names += [f"blocks.{layer}.{ln}.hook_scale" for ln in ("ln1", "ln2", "ln1_post", "ln2_post")]
    return [(name, lambda x: x.detach()) for name in names if spliced.hooked.has(name)]


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


def _segment_of(spliced: SplicedModel, read: str | None) -> int:
    """Returns the layer where the run for a target must start: above the nearest residual site below it."""
    limit = spliced.n_layers if read is None else spliced.hooked.layer(read)
    starts = [0]
    for hook in spliced.written:
        layer = spliced.hooked.layer(hook)
        if hook.endswith(".hook_resid_post"):
            start = layer + 1
        elif hook.endswith(".hook_resid_pre"):
            start = layer
        else:
            continue
        below = read is None or spliced.order(hook) < spliced.order(read)
        if below and 0 < start <= limit and start < spliced.n_layers:
            starts.append(start)
    return max(starts)


def _residual_site(spliced: SplicedModel, layer: int) -> str | None:
    """Returns the site that writes the residual stream at the end of the block below, if there is one."""
    for hook in spliced.written:
        if hook.endswith(".hook_resid_post") and spliced.hooked.layer(hook) == layer - 1:
            return hook
    return None
