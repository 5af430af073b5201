"""Through which attention heads an edge leads: its contribution split by how often, and where, it passes attention.

In a frozen graph an edge's contribution is a sum over paths from the source to the target with all other nodes held, and
each path passes attention not at all, once or several times, each time through the values of one head. So the contribution
splits exactly: `direct + sum over heads of what passes that head and no other + what passes two or more`.

All is read off one forward pass in which what the heads give (`hook_z`) is a leaf, so that Jacobians end there. Those that
end at `hook_z` of a head go on, times the pattern, from its values (`hook_v`): head by head for paths through one, all
heads together for paths through two, three and more. The sum must be the edge engine's own contribution, which knows
nothing of heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.context import Context
from circuitsae.attribution.contributions import Rows
from circuitsae.attribution.edges import EdgeEngine, encoder_directions, vector_products
from circuitsae.attribution.numbering import EveryNode
from circuitsae.errors import NodeError, SpliceError
from circuitsae.model import points
from circuitsae.model.hooks import Hook, Watch
from circuitsae.model.probes import close, tolerance

Jacobians = dict[str, Float[Tensor, "batch 1 pos ..."]]


@dataclass(frozen=True)
class HeadShare:
    """What of an edge's contribution passes one attention head, and no other."""

    layer: int
    head: int
    contribution: float


@dataclass(frozen=True)
class EdgeHeads:
    """An edge's contribution in a frozen graph, split by the attention heads that it passes.

    Attributes:
        source, target: The nodes.
        contribution: In units of the target's activation: `direct`, the heads and `several` together.
        direct: What passes no attention; zero between different positions.
        heads: What passes one head and no other, by |contribution|; heads that carry nothing are left out.
        several: What passes two heads or more.
    """

    source: str
    target: str
    contribution: float
    direct: float
    heads: tuple[HeadShare, ...]
    several: float

    def records(self) -> list[dict[str, Any]]:
        """Returns a record a head: source, target, layer, head, contribution."""
        return [{"source": self.source, "target": self.target, **asdict(share)} for share in self.heads]

    def to_json(self) -> dict[str, Any]:
        """Returns everything as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.source} -> {self.target}: {self.contribution:+.4f}", f"  {self.direct:+9.4f}  no attention"]
        lines += [f"  {share.contribution:+9.4f}  head {share.layer}.{share.head}" for share in self.heads[:5]]
        if len(self.heads) > 5:
            lines.append(f"  {sum(s.contribution for s in self.heads[5:]):+9.4f}  {len(self.heads) - 5} other heads")
        return "\n".join([*lines, f"  {self.several:+9.4f}  two heads or more"])


def edge_heads(context: Context, edges: Sequence[tuple[str, str]]) -> list[EdgeHeads]:
    """Returns through which heads edges lead; see the module's text.

    Cost: for each target two forward passes of its segment (from the nearest residual site below to where it is read), and
    a vector-Jacobian product for each head there.

    Args:
        context: The task on the model.
        edges: Sources (features, error nodes, tokens) and targets (features).

    Raises:
        NodeError: There is no such node on this prompt, or it can't be at that end of an edge.
        SpliceError: The model can't be frozen, or its heads are not what they are taken for; the message names the hook
            point.
    """
    numbered = EveryNode(context)
    ends = [(numbered.number(u), v) for u, v in edges]
    for u, v in edges:
        if names.parse(v).kind != "feature":
            raise NodeError(f"{v!r} can't be the target of an edge that is split by heads; expected a feature.")
        if names.parse(u).kind == "bias":
            raise NodeError(
                "The bias node's edges are what all paths leave over; expected a feature, error node or token."
            )
        numbered.number(v)
    engine = EdgeEngine(
        context.spliced, context.run, context.nodes, context.baseline, context.readout,
        linearisation="frozen", sources=numbered.sources,
    )  # fmt: skip
    found: dict[tuple[int, str], EdgeHeads] = {}
    targets = list(dict.fromkeys(v for _, v in ends))
    for done, target in enumerate(targets):
        context.report(done, len(targets), "targets split by heads")
        sources = [u for u, v in ends if v == target]
        parts, heads = _split(context, engine, target, sources)
        for u, row in zip(sources, parts.tolist(), strict=True):
            whole, direct, several, *each = row
            shares = [HeadShare(*head, value) for head, value in zip(heads, each, strict=True) if value != 0]
            shares.sort(key=lambda share: -abs(share.contribution))
            found[u, target] = EdgeHeads(numbered.key(u), target, whole, direct, tuple(shares), several)
    return [found[end] for end in ends]


def _split(
    context: Context, engine: EdgeEngine, target: str, sources: Sequence[int]
) -> tuple[Float[Tensor, "source part"], list[tuple[int, int]]]:
    """Returns of each source: the whole contribution, what passes no attention, two heads or more, each head alone."""
    spliced, node = context.spliced, names.parse(target)
    number = spliced.dictionary_number(str(node.site))
    read = spliced.reads[number]
    query = int(node.position)  # type: ignore[arg-type]
    at, index = (torch.tensor([int(x)], device=spliced.device) for x in (query, node.index or 0))
    direction = encoder_directions(spliced, context.run, number, at, index, frozen=True)
    low = points.segment_of(spliced, read)
    high = min(spliced.hooked.layer(read) + 1, spliced.n_layers)
    written = {id(spliced.hooked.point(name)) for name in spliced.written}

    tape: dict[str, Tensor] = {}
    inner: dict[str, Tensor] = {}  # what the heads give, as leaves
    raw: dict[str, Tensor] = {}

    def cut(name: str) -> Hook:
        def hook(x: Tensor) -> Tensor:
            raw[name] = x.detach()
            inner[name] = x.detach().requires_grad_()
            return inner[name]

        return hook

    watch: dict[str, Hook] = {}
    layers: list[int] = []
    for layer in range(low, high):
        v, z, pattern, _ = points.heads(layer)
        # a dictionary that writes what the heads give is a leaf there: no path leads further down
        if all(map(spliced.hooked.has, (v, z, pattern))) and id(spliced.hooked.point(z)) not in written:
            layers.append(layer)
            watch |= {v: Watch(tape, v), z: cut(z), pattern: Watch(tape, pattern)}
    plain, plain_leaves = engine.tape(low, high, query + 1, {})
    captured, leaves = engine.tape(low, high, query + 1, watch)
    context.passes["forward"] += 2
    layers = [layer for layer in layers if points.heads(layer)[1] in inner]
    _check_values(context, layers, tape, raw)
    heads = [(layer, head) for layer in layers for head in range(raw[points.heads(layer)[1]].shape[2])]
    zeros = torch.zeros(3 + len(heads), dtype=context.run.embed.dtype, device=spliced.device)
    rows = Rows(engine.origins, zeros, torch.ones_like(zeros), torch.arange(len(zeros), device=zeros.device))

    def add(j: Mapping[str, Tensor], first: int) -> None:
        for name, each in j.items():
            if name not in inner:
                rows.add(name, rearrange(each[:, 0].to(zeros.dtype), "target pos ... -> pos target (...)"), first)

    def seed(x: Tensor) -> Tensor:
        vector = torch.zeros_like(x)
        vector[0, query] = direction[0].to(x.dtype)
        return vector[None]

    add(vector_products([(plain.x_in[number], seed(plain.x_in[number]))], plain_leaves), 0)
    every = {**leaves, **inner}
    x = captured.x_in[number]
    arrived = vector_products([(x, seed(x))], every)
    add(arrived, 1)
    gone: Jacobians = {}
    for layer in layers:
        v, z, pattern, _ = points.heads(layer)
        if z not in arrived:
            continue
        j = vector_products([(tape[v], _values(arrived[z][0, 0], tape[pattern][0], tape[v]))], every)
        context.passes["backward"] += len(arrived[z][0, 0, 0])
        add(j, 3 + heads.index((layer, 0)))
        for name in inner.keys() & j.keys():
            gone[name] = gone.get(name, 0) + j[name].sum(0, keepdim=True)
    while any(bool(j.any()) for j in gone.values()):  # once more through attention, all heads together
        starts = []
        for layer in layers:
            v, z, pattern, _ = points.heads(layer)
            if z in gone:
                each = _values(gone[z][0, 0], tape[pattern][0], tape[v])
                starts.append((tape[v], each.sum(0, keepdim=True)))
        j = vector_products(starts, every)
        add(j, 2)
        gone = {name: j[name] for name in inner.keys() & j.keys()}
    batch = rows.finish()
    count = 1 + max(int(batch.sources.max()), *sources)
    parts = torch.zeros(count, len(zeros), dtype=zeros.dtype)
    parts.index_put_((batch.sources.long(), batch.targets.long()), batch.contributions.to(zeros.dtype), accumulate=True)
    mine = parts[list(sources)]
    off = (mine[:, 1:].sum(1) - mine[:, 0]).abs()
    size = parts[torch.arange(count) != engine.origins.sources.bias, 0].abs().max()
    if not bool((off <= 10 * tolerance(spliced.hooked.dtype) * size + 1e-300).all()):
        raise SpliceError(
            f"On {spliced.name} ({spliced.hooked.family}), what passes attention's heads below {read!r} does not add up to "
            f"the edge (off by {float(off.max() / size):.1e}), so edges can't be split by heads here."
        )
    return mine, heads


def _values(
    g: Float[Tensor, "query head d_head"], pattern: Float[Tensor, "head query key"], v: Float[Tensor, "1 key kv d_head"]
) -> Float[Tensor, "head 1 key kv d_head"]:
    """Returns the Jacobians at a layer's values of what ends at what its heads give, for each head by itself."""
    heads, shared = g.shape[1], g.shape[1] // v.shape[2]
    found = v.new_zeros(heads, *v.shape)
    each = torch.arange(heads, device=v.device)
    found[each, 0, :, each // shared] = torch.einsum("hqk,qhd->hkd", pattern.to(g.dtype), g).to(v.dtype)
    return found


def _check_values(
    context: Context, layers: Sequence[int], tape: Mapping[str, Tensor], raw: Mapping[str, Tensor]
) -> None:
    """Tries that what the heads give is the pattern times the values.

    Raises:
        SpliceError: It is not.
    """
    spliced = context.spliced
    for layer in layers:
        v, z, pattern, _ = points.heads(layer)
        fits, given = False, raw[z]
        if v in tape and pattern in tape and tape[v].ndim == given.ndim == 4 and not given.shape[2] % tape[v].shape[2]:
            values = tape[v].detach().repeat_interleave(given.shape[2] // tape[v].shape[2], dim=2)
            if values.shape == given.shape and tape[pattern].shape[1] == values.shape[2]:
                made = torch.einsum("bhqk,bkhd->bqhd", tape[pattern].to(values.dtype), values)
                fits = close(made, given, tolerance(spliced.hooked.dtype))
        if not fits:
            raise SpliceError(
                f"On {spliced.name} ({spliced.hooked.family}), what the heads give at {z!r} is not the pattern times the "
                "values, so edges can't be split by heads; expected a model loaded with attn_implementation='eager'."
            )
