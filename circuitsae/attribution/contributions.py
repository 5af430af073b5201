"""Contributions: from Jacobians to edges, by targets and sources, the in-edges of a block of targets at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae.attribution.baselines import Baseline, FeatureNodes
from circuitsae.model.runs import EMBED, Run
from circuitsae.model.spliced import SplicedModel


@dataclass(frozen=True)
class Sources:
    """The nodes that edges may come from. Numbers count the circuit's nodes.

    Attributes:
        features: By dictionary, which of its feature nodes, and their numbers.
        errors: By hook point written, which positions, and their numbers.
        tokens: Which positions, and their numbers.
        bias: The bias node's number.
    """

    features: tuple[tuple[Int[Tensor, "_chosen"], Int[Tensor, "_chosen"]], ...]
    errors: dict[str, tuple[Int[Tensor, "_chosen"], Int[Tensor, "_chosen"]]]
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


Part = tuple[FeatureTargets, Int[Tensor, "_chosen"]]
"""Some of a dictionary's targets."""


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


@dataclass(frozen=True)
class Origins:
    """Where edges come from on one run, and which of them are kept.

    Attributes:
        spliced: The model.
        run: Its clean run.
        nodes: The feature nodes of each dictionary.
        baseline: What nodes are set to.
        sources: The nodes that edges may come from.
        edge_threshold: Edges with a smaller |weight| are left out; those that are exactly zero always are.
        top_k: Keeps only so many in-edges of each target, those of the largest |contribution|, beside the bias node's.
    """

    spliced: SplicedModel
    run: Run
    nodes: Sequence[FeatureNodes]
    baseline: Baseline
    sources: Sources
    edge_threshold: float = 0.0
    top_k: int | None = None

    @cached_property
    def offsets(self) -> list[list[int]]:
        """By dictionary, where each position's feature nodes begin, and the end."""
        n_tokens = self.run.n_tokens
        return [
            torch.searchsorted(n.positions, torch.arange(n_tokens + 1, device=n.positions.device)).tolist()
            for n in self.nodes
        ]


class Rows:
    """Turns the Jacobians of a block of targets into in-edges, leaf by leaf: products with what each source writes.

    Args:
        origins: Where edges come from.
        totals: What each target's in-edges add up to.
        slopes: The metric's derivative by each target.
        nodes: The targets' numbers in the circuit.
    """

    def __init__(
        self,
        origins: Origins,
        totals: Float[Tensor, "target"],
        slopes: Float[Tensor, "target"],
        nodes: Int[Tensor, "target"],
    ) -> None:
        self.origins, self.totals, self.slopes, self.nodes = origins, totals, slopes, nodes
        self.explained = torch.zeros_like(totals)
        self.magnitudes = torch.zeros_like(totals)
        self.candidates = 0
        self._edges: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # source, target's row, contribution, weight
        self._several: dict[int, Tensor] = {}  # of a dictionary that writes in several places, until all are known

    @classmethod
    def of(cls, origins: Origins, block: Sequence[Part]) -> "Rows":
        """Returns the rows of a block of feature targets."""
        return cls(
            origins,
            torch.cat([t.totals[chosen] for t, chosen in block]),
            torch.cat([t.slopes[chosen] for t, chosen in block]),
            torch.cat([t.nodes[chosen] for t, chosen in block]),
        )

    def add(self, hook: str, j: Float[Tensor, "pos part d"], first: int = 0) -> None:
        """Takes in the Jacobian of targets `first` and on at one leaf."""
        origins = self.origins
        if hook == EMBED:
            base = origins.baseline.embed
            self._vectors(j, first, origins.run.embed, base, origins.sources.tokens)
            return
        for number, out in origins.spliced.writers[hook]:
            products = self._products(number, out, j)
            if len(origins.spliced.dictionaries[number].hook_outs) == 1:
                self._features(number, products, first)
                continue
            whole = self._several.get(number)
            if whole is None:
                whole = self._several[number] = products.new_zeros(
                    len(self.totals), len(origins.nodes[number].positions)
                )
            whole[first : first + products.shape[0], : products.shape[1]] += products
        base = None if origins.baseline.errors is None else origins.baseline.errors[hook]
        self._vectors(j, first, origins.run.sites[hook].error, base, origins.sources.errors[hook])

    def finish(self) -> EdgeBatch:
        """Returns all in-edges, the bias node's too: what no feature, error or token carries is the constant part.

        That is biases, and where the segment is not linear the constant of its first-order expansion.
        """
        for number, products in self._several.items():
            self._features(number, products, 0)
        bias = self.totals - self.explained
        self.magnitudes += bias.abs()
        self._keep(
            torch.tensor([self.origins.sources.bias], device=bias.device),
            bias[:, None],
            torch.zeros_like(bias)[:, None],
        )
        source, row, contribution, weight = (torch.cat(c) for c in zip(*self._edges, strict=True))
        if self.origins.top_k is not None:
            kept = largest_of_each(row, contribution.abs(), self.origins.top_k, source == self.origins.sources.bias)
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
        nodes, offsets = self.origins.nodes[number], self.origins.offsets[number]
        products = j.new_zeros(j.shape[1], offsets[j.shape[0]])
        for position in range(j.shape[0]):
            low, high = offsets[position], offsets[position + 1]
            if low < high:
                nodes.decoders.multiply(out, j[position], nodes.inverse[low:high], products[:, low:high])
        if nodes.scale is not None:
            products *= nodes.scale[nodes.positions[: products.shape[1]]]
        return products

    def _features(self, number: int, products: Float[Tensor, "part node"], first: int) -> None:
        nodes, limit = self.origins.nodes[number], products.shape[1]
        contributions = products * nodes.activations[:limit]
        self._count(contributions, first)
        chosen, numbers = self.origins.sources.features[number]
        inside = chosen < limit
        chosen, numbers = chosen[inside], numbers[inside]
        change = (nodes.baselines - nodes.activations)[chosen]
        self._keep(numbers, contributions[:, chosen], products[:, chosen] * change, first)

    def _vectors(
        self,
        j: Float[Tensor, "pos part d"],
        first: int,
        vectors: Float[Tensor, "whole d"],
        base: Float[Tensor, "whole d"] | None,
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
        if self.origins.edge_threshold > 0:
            keep &= (weights.abs() >= self.origins.edge_threshold) | (numbers == self.origins.sources.bias)
        row, column = keep.nonzero(as_tuple=True)
        self._edges.append((numbers[column], row + first, contributions[row, column], weights[row, column]))


def largest_of_each(
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
