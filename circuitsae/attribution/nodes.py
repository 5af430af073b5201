"""Nodes and their effects, sparse: what every method gives."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae import names
from circuitsae.errors import NodeError
from circuitsae.extras import wanted


@dataclass(frozen=True)
class NodeBlock:
    """Nodes of one kind at one place, by position then index. All tensors are `[node]`.

    Attributes:
        kind: `"feature"`, `"error"` or `"token"`.
        site: The site (features), the hook point (errors), empty for tokens.
        positions: Their positions in the prompt.
        indices: Their features; `None` for other kinds.
        activations: Features' activations; the norms of error vectors and embeddings.
        baselines: What they are set to; norms likewise.
        effects: Change of the metric when the node is set to its baseline.
        slopes: Derivative of the metric by a feature's activation; `None` for other kinds.
        measured: Which effects were measured by really ablating, where a method measures some; `None` elsewhere.
        predicted: What was predicted, of these too, where a method does both; `None` elsewhere.
    """

    kind: Literal["feature", "error", "token"]
    site: str
    positions: Int[Tensor, "node"]
    indices: Int[Tensor, "node"] | None
    activations: Float[Tensor, "node"]
    baselines: Float[Tensor, "node"]
    effects: Float[Tensor, "node"]
    slopes: Float[Tensor, "node"] | None = None
    measured: Bool[Tensor, "node"] | None = None
    predicted: Float[Tensor, "node"] | None = None

    def __len__(self) -> int:
        return int(self.positions.shape[0])

    def part(self, which: Tensor) -> "NodeBlock":
        """Returns some of the nodes, chosen by a mask or by their numbers."""
        return NodeBlock(
            self.kind,
            self.site,
            self.positions[which],
            None if self.indices is None else self.indices[which],
            self.activations[which],
            self.baselines[which],
            self.effects[which],
            None if self.slopes is None else self.slopes[which],
            None if self.measured is None else self.measured[which],
            None if self.predicted is None else self.predicted[which],
        )

    def key(self, number: int) -> str:
        """Returns the key of the block's node of that number."""
        position = int(self.positions[number])
        if self.kind == "token":
            return names.token(position)
        if self.kind == "error":
            return names.error(self.site, position)
        assert self.indices is not None
        return names.feature(self.site, int(self.indices[number]), position)


@dataclass(frozen=True)
class NodeEffects:
    """The effects of all nodes: features that are active, error nodes and tokens, sparse, at every site.

    Attributes:
        blocks: Features of each dictionary, errors of each hook point written, tokens.
        metric: The metric's value on the prompt.
        baseline_metric: Its value on the patch prompt, `None` where the baseline is another.
        method, baseline, gradient, options: How they were computed.
        token_strings: The prompt's tokens.
        skipped: By hook point written, the positions at which no dictionary is applied.
        passes: What it cost, in forward and backward passes of the model over one prompt.
        notes: What a reader of the numbers should know of them, a sentence each.
    """

    blocks: tuple[NodeBlock, ...]
    metric: float
    baseline_metric: float | None
    method: str
    baseline: str
    gradient: str
    options: Mapping[str, Any]
    token_strings: tuple[str, ...]
    skipped: Mapping[str, frozenset[int]] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(len(b) for b in self.blocks)

    def features(self) -> tuple[NodeBlock, ...]:
        """Returns the feature blocks, in the dictionaries' order."""
        return tuple(b for b in self.blocks if b.kind == "feature")

    def errors(self) -> tuple[NodeBlock, ...]:
        """Returns the error blocks, in the order of the hook points written."""
        return tuple(b for b in self.blocks if b.kind == "error")

    def tokens(self) -> NodeBlock:
        """Returns the tokens' block."""
        return next(b for b in self.blocks if b.kind == "token")

    def offered(self, block: NodeBlock, skipped: bool = False) -> "NodeBlock":
        """Returns a block without the error nodes at skipped positions, unless those are asked for."""
        positions = self.skipped.get(block.site)
        if skipped or block.kind != "error" or not positions:
            return block
        out = torch.tensor(sorted(positions), device=block.positions.device)
        return block.part(~torch.isin(block.positions, out))

    def records(
        self, kinds: Sequence[str] = ("feature", "error", "token"), *, skipped: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yields one plain record a node: node, kind, site, index, position, token, activation, baseline, effect, measured.

        `measured` says whether the effect was measured, by ablating the node, or predicted.

        Error nodes at skipped positions, which hold the whole vector there, only with `skipped`.
        """
        for block in self.blocks:
            if block.kind not in kinds:
                continue
            block = self.offered(block, skipped)
            columns = [
                block.positions.tolist(),
                [None] * len(block) if block.indices is None else block.indices.tolist(),
                block.activations.tolist(),
                block.baselines.tolist(),
                block.effects.tolist(),
                [False] * len(block) if block.measured is None else block.measured.tolist(),
            ]
            for number, (position, index, activation, baseline, effect, measured) in enumerate(
                zip(*columns, strict=True)
            ):
                yield {
                    "node": block.key(number),
                    "kind": block.kind,
                    "site": block.site or None,
                    "index": index,
                    "position": position,
                    "token": self.token_strings[position],
                    "activation": activation,
                    "baseline": baseline,
                    "effect": effect,
                    "measured": measured,
                }

    def strongest(self, n: int = 10, kinds: Sequence[str] = ("feature",)) -> list[dict[str, Any]]:
        """Returns the records of the `n` nodes with the largest |effect|, strongest first."""
        chosen = [b for block in self.blocks if block.kind in kinds and len(b := self.offered(block))]
        if not chosen:
            return []
        sizes = torch.cat([b.effects.abs().double() for b in chosen])
        top = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        top[sizes.topk(min(n, len(sizes))).indices] = True
        # Records are made for the strongest only: a long prompt has tens of thousands of nodes.
        parts = top.split([len(b) for b in chosen])
        strongest = replace(self, blocks=tuple(b.part(p) for b, p in zip(chosen, parts, strict=True)))
        return sorted(strongest.records(), key=lambda r: (-abs(r["effect"]), names.sort_key(r["node"])))

    def effect_of(self, node: str) -> float:
        """Returns one node's effect.

        Raises:
            NodeError: The node is not among these.
        """
        key = names.parse(node)
        for block in self.blocks:
            if block.kind != key.kind or (key.site or "") != block.site:
                continue
            if not isinstance(key.position, int):
                continue
            match = torch.eq(block.positions, key.position)
            if block.indices is not None:
                match &= torch.eq(block.indices, key.index if key.index is not None else -1)
            if bool(match.any()):
                return float(block.effects[match][0])
        raise NodeError(f"There is no node {node!r} among these effects; strongest(20) lists some that there are.")

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a node.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return (
            wanted("pandas", "to_dataframe()")
            .DataFrame.from_records(
                list(self.records()),
                columns=[
                    "node",
                    "kind",
                    "site",
                    "index",
                    "position",
                    "token",
                    "activation",
                    "baseline",
                    "effect",
                    "measured",
                ],
            )
            .astype({"index": "Int64"})
        )
