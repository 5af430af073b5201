"""The frozen model as a chain of matrices, through which many targets' Jacobians are swept down without autograd.

With attention patterns and normalisation scales held constant, what lies between two points of the residual stream is
linear: `z = pattern @ v` between two matrices, and a scale at each position. So the vector-Jacobian products of a block of
targets go down the layers as a few matrix products: `[pos target d_model]` at a time, from the layer where each target is
read, no further than its position; the first attention below a target starts from one position only, so that step is
one row through the pattern.

Nothing is taken on trust. The chain is read off one forward pass of the loaded model: what a normalisation does is
measured by products with known vectors, and every piece is compared with autograd on random vectors, so that post-norms,
parallel blocks, grouped queries, embedding factors or folded weights need no case of their own. Pieces without such a
form (an MLP that no dictionary replaces, a skip path) go through autograd, one piece at a time. `build_chain` gives up
(`None`) where attention itself can't be recognised; the whole chain is compared with autograd once a model.

The frozen linear model is Anthropic's ("Circuit Tracing", Ameisen et al. 2025), which circuit-tracer computes by autograd
over the whole model.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.model import points
from circuitsae.model.probes import Pointwise, Probe, close, reaches, tolerance, vjp
from circuitsae.model.runs import Captured
from circuitsae.model.spliced import SplicedModel

OnLeaf = Callable[[str, Tensor, int], None]
"""Called with a leaf's hook point, the Jacobian of targets there, `[pos target d]` (not to be kept), and the number of the
first of these targets, counted in the order in which they joined."""

_SEED = 20_240_522
_verified: "weakref.WeakKeyDictionary[Any, dict[tuple[object, ...], bool]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Attention:
    """One layer's attention with its pattern frozen, from the residual stream below it to the one above.

    Attributes:
        below: From the residual stream to what the values are made of.
        values: `[head_kv d_model d_head]`.
        pattern: `[head pos pos]`, query first.
        output: `[head d_head d_model]`.
        above: From the output product to the residual stream.
    """

    below: Pointwise
    values: Float[Tensor, "head_kv d_model d_head"]
    pattern: Float[Tensor, "head query key"]
    output: Float[Tensor, "head d_head d_model"]
    above: Pointwise

    def pull_z(self, g: Float[Tensor, "pos target d"]) -> Float[Tensor, "pos target head_d_head"]:
        """Returns the Jacobian of what the heads give, before the output product."""
        return self.above.pull(g) @ rearrange(self.output, "head d_head d -> (head d_head) d").T

    def pull(self, g: Float[Tensor, "pos target d"]) -> Float[Tensor, "pos target d"]:
        """Returns what attention adds to the Jacobian below it."""
        n_pos, n, _ = g.shape
        kv, _, d_head = self.values.shape
        z = self.pull_z(g)
        z = rearrange(z, "query target (kv group d_head) -> kv (group query) (target d_head)", kv=kv, d_head=d_head)
        # from queries to keys; a group of heads that shares values is one sum
        mix = rearrange(self.pattern[:, :n_pos, :n_pos], "(kv group) query key -> kv (group query) key", kv=kv).mT
        v = rearrange(torch.bmm(mix, z), "kv key (target d_head) -> key target (kv d_head)", target=n)
        return self.below.pull(v @ rearrange(self.values, "kv d d_head -> (kv d_head) d"))

    def pull_rows(
        self, rows: Float[Tensor, "target d"], at: Int[Tensor, "target"], n_pos: int
    ) -> Float[Tensor, "pos target d"]:
        """Returns the same for targets of one position each: one row a head, spread by the pattern."""
        kv, _, d_head = self.values.shape
        z = self.above.pull_rows(rows, at) @ rearrange(self.output, "head d_head d -> (head d_head) d").T
        z = rearrange(z, "target (kv group d_head) -> kv (target group) d_head", kv=kv, d_head=d_head)
        u = rearrange(torch.bmm(z, self.values.mT), "kv (target group) d -> target (kv group) d", target=len(rows))
        spread = torch.bmm(rearrange(self.pattern[:, at, :n_pos], "head query key -> query key head"), u)
        return self.below.pull(rearrange(spread, "target key d -> key target d"))


@dataclass
class State:
    """A block of targets on its way down.

    Attributes:
        n_pos: Positions that the block covers.
        g: The Jacobian at the present point, `[pos target d]`; targets join at the end.
        at: Each target's position.
        first: How many targets were before these, and were cut by a leaf of the residual stream.
        fresh: The first of these that no attention has spread to other positions yet.
    """

    n_pos: int
    g: Tensor
    at: Tensor
    first: int = 0
    fresh: int = 0

    def join(self, rows: Float[Tensor, "target d"], at: Int[Tensor, "target"]) -> None:
        """Adds targets, each at one position."""
        old, n = self.g, len(at)
        self.g = old.new_zeros(self.n_pos, old.shape[1] + n, old.shape[2])
        self.g[:, : old.shape[1]] = old
        self.g[at, torch.arange(old.shape[1], old.shape[1] + n, device=at.device)] = rows
        self.at = torch.cat([self.at, at])

    def cut(self) -> None:
        """Lets all targets go: the leaf that was just reached is all there is below them."""
        self.first += self.g.shape[1]
        self.g, self.at, self.fresh = self.g[:, :0], self.at[:0], 0


@dataclass(frozen=True)
class Linked:
    """What lies between two neighbouring points of the residual stream, recognised: identity, attention, leaves.

    Attributes:
        residual: The stream itself.
        attention: Where attention is part of it and reaches below.
        leaves: Leaves that write into it, each with the map to the upper point.
        z: The leaf at the heads' output, where there is one.
    """

    residual: Pointwise
    attention: Attention | None
    leaves: Mapping[str, Pointwise]
    z: str | None = None

    def pull(self, state: State, on_leaf: OnLeaf) -> None:
        """Takes a block from the upper point to the lower."""
        g = state.g
        for name, link in self.leaves.items():
            on_leaf(name, link.pull(g), state.first)
        if self.z is not None and self.attention is not None:
            on_leaf(self.z, self.attention.pull_z(g), state.first)
        below = self.residual.pull(g)
        if self.z is None and self.attention is not None:
            below = below.clone() if below is g else below
            fresh, n_pos = state.fresh, state.n_pos
            if fresh:
                below[:, :fresh] += self.attention.pull(g[:, :fresh])
            rows = g[state.at[fresh:], torch.arange(fresh, g.shape[1], device=g.device)]
            # a slice at a time: before it is spread, a target holds a row for each head
            for start in range(0, rows.shape[0], n_pos):
                part = slice(start, start + n_pos)
                spread = self.attention.pull_rows(rows[part], state.at[fresh:][part], n_pos)
                below[:, fresh + start : fresh + start + spread.shape[1]] += spread
            state.fresh = g.shape[1]
        state.g = below


@dataclass(frozen=True)
class Traced:
    """What lies between two neighbouring points, by autograd: kept on the tape of the forward pass.

    Attributes:
        output: The upper point.
        inputs: The lower point, then leaves, by name.
        budget: Bytes of seeds at a time.
    """

    output: Tensor
    inputs: Mapping[str, Tensor]
    budget: int

    def pull(self, state: State, on_leaf: OnLeaf) -> None:
        """Takes a block from the upper point to the lower."""
        g = state.g
        found = self.products(g)
        for name, j in found.items():
            if name:
                on_leaf(name, j, state.first)
        state.g = found.get("", torch.zeros_like(g))
        state.fresh = g.shape[1]

    def products(self, g: Float[Tensor, "pos target d"]) -> dict[str, Float[Tensor, "pos target _d_in"]]:
        """Returns the Jacobians at all inputs that the output depends on."""
        n_pos, n, width = g.shape
        total = self.output.shape[1]
        names = list(self.inputs)
        parts: dict[str, list[Tensor]] = {}
        step = max(1, self.budget // (8 * total * width * g.element_size()))
        for start in range(0, n, step):
            piece = g[:, start : start + step]
            seeds = self.output.new_zeros(piece.shape[1], 1, total, width)
            seeds[:, 0, :n_pos] = piece.transpose(0, 1)
            found = torch.autograd.grad(
                self.output,
                list(self.inputs.values()),
                seeds.view(len(seeds), *self.output.shape),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            for name, j in zip(names, found, strict=True):
                if j is not None:
                    j = rearrange(j[:, 0, :n_pos], "target pos ... -> pos target (...)")
                    parts.setdefault(name, []).append(j.to(g.dtype))
        return {name: torch.cat(p, 1) for name, p in parts.items()}


Link = Linked | Traced


@dataclass(frozen=True)
class Entry:
    """Where a dictionary's targets join.

    Attributes:
        point: The number of the point of the residual stream.
        above: Whether they join above the leaf there.
        link: From the point to what the dictionary reads.
    """

    point: int
    above: bool
    link: Pointwise


@dataclass(frozen=True)
class Chain:
    """The frozen model of one prompt: points of the residual stream, bottom to top, and what lies between them.

    Attributes:
        leaves: The leaf at each point, `None` where there is none; the first is the embedding.
        links: `links[n]` leads from point n to point n + 1.
        entries: By dictionary; one whose input is not a function of a point at the same position has none.
    """

    leaves: tuple[str | None, ...]
    links: tuple[Link, ...]
    entries: Mapping[int, Entry] = field(repr=False)

    def order_of(self, numbers: Iterable[int]) -> list[int]:
        """Returns dictionaries in the order in which their targets join: from the top down."""
        return sorted(numbers, key=lambda n: (-self.entries[n].point, not self.entries[n].above, n))

    def sweep(
        self,
        n_pos: int,
        targets: Sequence[tuple[int, Float[Tensor, "_target _d_in"], Int[Tensor, "_target"]]],
        on_leaf: OnLeaf,
    ) -> None:
        """Sweeps a block of targets down the chain.

        Args:
            n_pos: Positions to cover; one more than the last target's.
            targets: Dictionaries, in the order of `order_of`, with the directions and positions of their targets.
            on_leaf: Called at each leaf, from the top down.
        """
        state: State | None = None
        waiting = list(targets)
        for point in range(len(self.leaves) - 1, -1, -1):
            for above in (True, False):
                leaf = self.leaves[point]
                if not above and leaf is not None and state is not None:
                    on_leaf(leaf, state.g, state.first)
                    state.cut()
                while waiting and self._joins(waiting[0][0], point, above):
                    number, directions, at = waiting.pop(0)
                    rows = self.entries[number].link.pull_rows(directions, at)
                    if state is None:
                        state = State(n_pos, rows.new_zeros(n_pos, 0, rows.shape[1]), at[:0])
                    state.join(rows, at)
            if point and state is not None and state.g.shape[1]:
                self.links[point - 1].pull(state, on_leaf)

    def _joins(self, number: int, point: int, above: bool) -> bool:
        entry = self.entries[number]
        return entry.point == point and entry.above is above


@dataclass(frozen=True)
class _Point:
    """A place where all of the residual stream passes: its value as it arrives, and as it goes on (a leaf, perhaps)."""

    name: str
    layer: int
    below: Tensor
    above: Tensor
    leaf: str | None


def watched(spliced: SplicedModel, low: int, high: int) -> list[str]:
    """Returns the hook points of some layers whose values `build_chain` wants from the forward pass."""
    places = (points.stream, points.heads, points.value_inputs)
    names = [name for layer in range(low, high) for place in places for name in place(layer)]
    return [name for name in names if spliced.hooked.has(name)]


def build_chain(
    spliced: SplicedModel,
    captured: Captured,
    leaves: Mapping[str, Tensor],
    tape: Mapping[str, Tensor],
    budget: int,
    layers: tuple[int, int],
) -> Chain | None:
    """Reads the chain off a forward pass with patterns and scales frozen and a leaf at every hook point written.

    Args:
        spliced: The model.
        captured: What the pass left.
        leaves: Its leaves.
        tape: The values of the hook points `watched`.
        budget: Bytes that a piece of autograd may hold.
        layers: The first layer of the pass, and the one before which it ended. Above 0 there is a leaf where the residual
            stream enters.

    Returns:
        The chain, or `None` where the model has something that it can't stand for: the caller takes autograd throughout.
    """
    if spliced.hooked.dtype not in (torch.float32, torch.float64):
        return None  # half precision: products in another order would differ by more than a check could tell from error
    stream = _stream(spliced, captured, leaves, tape, layers)
    if stream is None:
        return None
    reader = _Reader(spliced, stream, tape, leaves, budget)
    links: list[Link] = []
    for low, high in zip(stream, stream[1:], strict=False):
        link = reader.link(low, high)
        if link is None:
            return None
        links.append(link)
    entries: dict[int, Entry] = {}
    for number, x_in in captured.x_in.items():
        entry = reader.entry(x_in, stream)
        if entry is not None:
            entries[number] = entry
    chain = Chain(tuple(p.leaf for p in stream), tuple(links), entries)
    signature = (spliced.reads, spliced.written, spliced.hooked.dtype, layers)
    known = _verified.setdefault(spliced.model, {})
    if signature not in known:
        known[signature] = _holds(chain, captured, leaves, spliced.hooked.dtype)
    return chain if known[signature] else None


def _stream(
    spliced: SplicedModel,
    captured: Captured,
    leaves: Mapping[str, Tensor],
    tape: Mapping[str, Tensor],
    layers: tuple[int, int],
) -> list[_Point] | None:
    written = {id(spliced.hooked.point(name)): name for name in spliced.written}
    low, high = layers
    found = [_Point(name, low, x, x, name) for name, x in leaves.items() if name not in captured.x_out]
    for layer in range(low, high):
        for name in points.stream(layer):
            if name not in tape:
                if not points.is_middle(name):
                    return None
                continue
            leaf = written.get(id(spliced.hooked.point(name)))
            above = tape[name] if leaf is None else captured.x_out[leaf]
            found.append(_Point(name, layer, tape[name], above, leaf))
    return found


class _Reader:
    """Recognises what lies between two tensors of a forward pass, by products with known and random vectors."""

    def __init__(
        self,
        spliced: SplicedModel,
        stream: Sequence[_Point],
        tape: Mapping[str, Tensor],
        leaves: Mapping[str, Tensor],
        budget: int,
    ) -> None:
        self.spliced, self.tape, self.leaves, self.budget = spliced, tape, leaves, budget
        self.stops = {point.leaf for point in stream}
        self.probe = Probe(tolerance(spliced.hooked.dtype))

    def link(self, low: _Point, high: _Point) -> Link | None:
        """Returns what lies between two points, `None` where attention is not recognised."""
        x, y = low.above, high.below
        r = self.probe.random(y)
        inner: dict[str, Tensor] = {}  # leaves that write in between: their Jacobian for r
        for name, leaf in self.leaves.items():
            if name in self.stops or self.spliced.hooked.layer(name) != high.layer:
                continue
            j = None if reaches(leaf, low.below) else vjp(y, leaf, r)
            if j is not None:
                inner[name] = j
        expected = vjp(y, x, r)
        expected = torch.zeros_like(x) if expected is None else expected
        maps: dict[str, Pointwise] = {}
        z: str | None = None
        for name in inner:
            found = self.probe.pointwise(y, self.leaves[name])
            if found is not None:
                maps[name] = found
            elif z is None:
                z = name
            else:
                return None
        identity = Pointwise(None, False)
        if z is None and self.probe.agrees(identity.pull(r[0][:, None])[:, 0], expected[0]):
            return Linked(identity, None, maps)
        attention = None if points.is_middle(low.name) else self.attention(low, high)
        if attention is not None:
            column = r[0][:, None]
            if z is not None:
                # r's own order: [pos 1 width]
                if self.probe.agrees(attention.pull_z(column)[:, 0], inner[z][0]) and self.probe.agrees(
                    r[0], expected[0]
                ):
                    return Linked(identity, attention, maps, z)
            elif self.probe.agrees((column + attention.pull(column))[:, 0], expected[0]):
                return Linked(identity, attention, maps)
        if z is None:
            scaled = self.probe.pointwise(y, x)
            if scaled is not None:
                return Linked(scaled, None, maps)
        if points.is_middle(low.name):
            return Traced(y, {"": x, **{name: self.leaves[name] for name in inner}}, self.budget)
        return None

    def attention(self, low: _Point, high: _Point) -> Attention | None:
        """Returns a layer's attention as its weights and pattern say; whether that is so is for `link` to check."""
        v, z, pattern, product = (self.tape.get(name) for name in points.heads(high.layer))
        block = self.spliced.model.blocks[high.layer].attn
        if v is None or z is None or pattern is None:
            return None
        values, output = _weight(block, "_W_V", "W_V"), _weight(block, "W_O")
        if values is None or output is None or values.ndim != 3 or output.ndim != 3:
            return None
        heads, d_head, kv = output.shape[0], output.shape[1], values.shape[0]
        fits = (
            v[0, 0].numel() == kv * values.shape[2]
            and z[0, 0].numel() == heads * d_head
            and values.shape[2] == d_head
            and pattern.ndim == 4
            and pattern.shape[1] == heads
            and heads % kv == 0
        )
        if not fits:
            return None
        above = Pointwise(None, False) if product is None else self.probe.pointwise(high.below, product)
        if above is None:
            # a leaf at the heads' output replaces it, and the product hangs on the leaf all the same
            return None
        for name in points.value_inputs(high.layer):
            source = self.tape.get(name)
            below = (
                None
                if source is None or vjp(v, source, torch.ones_like(v)) is None
                else self.probe.pointwise(source, low.above)
            )
            if below is not None:
                return Attention(below, values.detach(), pattern[0].detach(), output.detach(), above)
        return None

    def entry(self, x_in: Tensor, stream: Sequence[_Point]) -> Entry | None:
        """Returns where targets read at a tensor join: at the nearest point below it."""
        for number in range(len(stream) - 1, -1, -1):
            point = stream[number]
            for above, x in ((True, point.above), (False, point.below)):
                if x_in is x or reaches(x, x_in):
                    link = self.probe.pointwise(x_in, x)
                    return None if link is None else Entry(number, above, link)
        return None


def _weight(module: Any, *names: str) -> Tensor | None:
    for name in names:
        try:
            found = getattr(module, name, None)
        except Exception:
            found = None  # the Bridge computes them, and raises what it likes where there are none
        if isinstance(found, Tensor):
            return found
    return None


def _holds(chain: Chain, captured: Captured, leaves: Mapping[str, Tensor], dtype: torch.dtype) -> bool:
    """Compares one random product through the whole chain with autograd: a target for each dictionary, summed."""
    generator = torch.Generator().manual_seed(_SEED)
    blocks = []
    for number in chain.order_of(chain.entries):
        x_in = captured.x_in[number]
        at = torch.randint(x_in.shape[1], (1,), generator=generator)
        direction = torch.randn(1, x_in.shape[2], generator=generator, dtype=torch.float64)
        blocks.append((number, direction.to(x_in), at.to(x_in.device)))
    found = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}

    def on_leaf(name: str, j: Tensor, first: int) -> None:
        found[name][0] += j.sum(1).view(found[name][0].shape)

    outputs = [captured.x_in[number] for number, _, _ in blocks]
    if not outputs:
        return True
    chain.sweep(outputs[0].shape[1], blocks, on_leaf)
    seeds = []
    for (_, direction, at), output in zip(blocks, outputs, strict=True):
        seed = torch.zeros_like(output)
        seed[0, at] = direction
        seeds.append(seed)
    live = [n for n, output in enumerate(outputs) if output.requires_grad]
    expected = torch.autograd.grad(
        [outputs[n] for n in live],
        list(leaves.values()),
        [seeds[n] for n in live],
        retain_graph=True,
        allow_unused=True,
    )
    return all(
        close(found[name], torch.zeros_like(found[name]) if j is None else j, 10 * tolerance(dtype))
        for name, j in zip(leaves, expected, strict=True)
    )
