"""Effects by really ablating: the check of every prediction, and what the methods that ablate share.

Ablating one node adds a vector that is known beforehand to what is written where the node is: `(a' - a) * W_dec[i]`, or
`e' - e`. So no dictionary is needed in the edited runs; they start at the node's layer, and, where the model takes keys
and values from the clean run, at the node's position.
"""

import contextlib
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.context import Context
from circuitsae.attribution.costs import Passes, PlannedRun
from circuitsae.errors import NodeError
from circuitsae.model import points
from circuitsae.model.edits import Edit, FeatureEdit, VectorEdit, batch_size, run_edited
from circuitsae.model.hooks import Hook, Prefix
from circuitsae.model.runs import EMBED, forward
from circuitsae.model.spliced import SplicedModel


@dataclass(frozen=True)
class Place:
    """Nodes of one place.

    Attributes:
        layer: The first layer that a run with one of them ablated has to compute.
        hooks: The hook points that they write to.
        positions: Where the nodes are.
    """

    layer: int
    hooks: tuple[str, ...]
    positions: Int[Tensor, "node"]


@dataclass(frozen=True)
class Changes(Place):
    """Nodes of one place, and what ablating each adds to what is written there.

    Attributes:
        added: Gives, for some of the nodes by number, the vectors by hook point.
    """

    added: Callable[[Int[Tensor, "chosen"]], dict[str, Float[Tensor, "chosen _d"]]]

    def part(self, which: Int[Tensor, "chosen"]) -> "Changes":
        """Returns some of the nodes."""
        return replace(self, positions=self.positions[which], added=lambda chosen: self.added(which[chosen]))


def feature_changes(context: Context, number: int) -> Changes:
    """Returns what ablating each of a dictionary's features adds."""
    spliced, nodes = context.spliced, context.nodes[number]
    change = context.feature_changes(number)
    if nodes.scale is not None:
        change = change * nodes.scale[nodes.positions]
    hooks = tuple(spliced.canonical(hook) for hook in spliced.dictionaries[number].hook_outs)

    def added(chosen: Tensor) -> dict[str, Tensor]:
        return {
            hook: change[chosen, None] * nodes.decoders.take(out, nodes.inverse[chosen])
            for out, hook in enumerate(hooks)
        }

    return Changes(min(spliced.hooked.layer(hook) for hook in hooks), hooks, nodes.positions, added)


def vector_changes(context: Context, hook: str) -> Changes:
    """Returns what ablating each error node of a hook point adds, or each token (`EMBED`)."""
    change = context.vector_changes(hook)
    positions = torch.arange(len(change), device=change.device)
    return Changes(context.spliced.hooked.layer(hook), (hook,), positions, lambda chosen: {hook: change[chosen]})


@dataclass(frozen=True)
class Batch:
    """Nodes that are ablated in one run, one copy of the prompt each.

    Attributes:
        layer: The first layer that has to be computed.
        first: The first position that has to be computed.
        nodes: Numbers of the places, and of the nodes in each.
        forwards: What it costs, in forward passes of one whole prompt.
        start: Where its run starts.
    """

    layer: int
    first: int
    nodes: tuple[tuple[int, Int[Tensor, "_chosen"]], ...]
    forwards: float
    start: int


def measure_changes(context: Context, places: Sequence[Changes]) -> list[Float[Tensor, "_node"]]:
    """Returns the change of the metric that ablating each node causes by itself.

    Cost: a forward pass a node, of the layers from the node's on and the positions from the node's on, in batches.
    """
    like = context.run.embed
    found = [torch.zeros(len(place.positions), dtype=like.dtype, device=like.device) for place in places]
    batches = plan(context, places)
    total, done = sum(len(which) for batch in batches for _, which in batch.nodes), 0
    for batch in batches:
        sizes = [len(which) for _, which in batch.nodes]
        values = _run_batch(context, batch, [(places[n], which) for n, which in batch.nodes])
        for (n, which), part in zip(batch.nodes, values.split(sizes), strict=True):
            found[n][which] = part
        context.passes["forward"] += batch.forwards
        done += sum(sizes)
        context.report(done, total, "ablations")
    return found


def plan(context: Context, places: Sequence[Place]) -> list[Batch]:
    """Returns the batches in which nodes are ablated; see `batches_of`."""
    run, reads = context.run, context.task.metric.reads
    suffixes = _worth_suffixes(places, run.n_tokens) and reads is None and context.key_values is not None
    return batches_of(
        context.spliced, places, run.n_tokens, run.kept if reads is None else None, run.prefixes, suffixes
    )


def expected_ablations(planned: PlannedRun, *, tokens: bool, errors: bool = True) -> Passes:
    """Returns what ablating every node will cost, keys and values to start from included."""
    spliced, n_tokens = planned.spliced, planned.n_tokens
    places: list[Place] = []
    for dictionary, positions in zip(spliced.dictionaries, planned.positions, strict=True):
        hooks = tuple(spliced.canonical(hook) for hook in dictionary.hook_outs)
        places.append(Place(min(spliced.hooked.layer(hook) for hook in hooks), hooks, positions))
    vectors = [*(spliced.written if errors else ()), *([EMBED] if tokens else [])]
    places += [Place(spliced.hooked.layer(hook), (hook,), planned.everywhere) for hook in vectors]
    reads = planned.task.metric.reads
    wanted = _worth_suffixes(places, n_tokens) and reads is None
    suffixes = wanted and hasattr(spliced.model, "original_model")
    batches = batches_of(spliced, places, n_tokens, planned.kept if reads is None else None, planned.starts, suffixes)
    runs = sum(1 - batch.start / spliced.n_layers for batch in batches)
    forwards = sum(batch.forwards for batch in batches)
    return Passes(1.5 if wanted else 0.0) + Passes(
        forwards, together=max(1.0, forwards / max(runs, 1e-9)), at_most=planned.guessed
    )


def _worth_suffixes(places: Sequence[Place], n_tokens: int) -> bool:
    return sum(len(place.positions) for place in places) >= 8 and n_tokens >= 4


def batches_of(
    spliced: SplicedModel,
    places: Sequence[Place],
    n_tokens: int,
    kept: Sequence[int] | None,
    starts: Collection[int],
    suffixes: bool,
) -> list[Batch]:
    """Returns the batches in which nodes are ablated: of one layer, and of positions near each other.

    A batch starts at its first node's position, so it takes in later positions only as long as that wastes little. Nodes
    that nothing leads from to the metric are in none: what is after the last position that it reads, or where the last
    layer ends at one that it does not read.

    Args:
        spliced: The model.
        places: The nodes.
        n_tokens: The prompt's length.
        kept: The positions whose logits the metric reads; `None` where it reads something else.
        starts: The layers at which a run may start.
        suffixes: Whether runs may start at a middle position.
    """

    def size(length: int) -> int:
        return batch_size(spliced, length)

    batches: list[Batch] = []
    for layer in sorted({place.layer for place in places}):
        here = [n for n, place in enumerate(places) if place.layer == layer]
        owner = torch.cat([torch.full_like(places[n].positions, n) for n in here])
        number = torch.cat([torch.arange(len(places[n].positions), device=owner.device) for n in here])
        at = torch.cat([places[n].positions for n in here])
        order = at.argsort(stable=True)
        whole = _only_leave(layer, [places[n] for n in here])
        if kept is not None:
            only = set(kept) if whole and layer == spliced.n_layers - 1 else range(kept[-1] + 1)
            order = order[torch.tensor([p in only for p in at[order].tolist()], dtype=torch.bool, device=order.device)]
        positions = at[order].tolist()
        start = _start_of(layer, [places[n] for n in here], starts)
        computed = 1 - start / spliced.n_layers
        low = 0
        for first, high in segments(positions, n_tokens, size) if suffixes else [(0, len(order))]:
            while low < high:
                chosen = order[low : min(high, low + size(n_tokens - first))]
                nodes = tuple((n, number[chosen[owner[chosen] == n]]) for n in owner[chosen].unique().tolist())
                batches.append(Batch(layer, first, nodes, len(chosen) * computed * (1 - first / n_tokens), start))
                low += len(chosen)
    return batches


def segments(positions: Sequence[int], n_tokens: int, size: Callable[[int], int]) -> list[tuple[int, int]]:
    """Splits nodes into those whose runs start at one position, at the least cost in all.

    A node in a segment costs the tokens from the segment's start on, and each batch `OVERHEAD` more.

    Args:
        positions: The nodes' positions, ascending.
        n_tokens: The prompt's length.
        size: Gives how many copies of a prompt of some length run at once.

    Returns:
        Each segment's first position, and the number of nodes up to its end.
    """
    distinct, counts = torch.unique_consecutive(torch.tensor(positions), return_counts=True)
    starts, ends = distinct.tolist(), [0, *counts.cumsum(0).tolist()]
    upto = torch.tensor(ends, dtype=torch.float64)
    least = torch.zeros(len(ends), dtype=torch.float64)
    stop = [0] * len(starts)
    for n in reversed(range(len(starts))):
        length = n_tokens - starts[n]
        nodes = upto[n + 1 :] - upto[n]
        cost = nodes * length + OVERHEAD * (nodes / size(length)).ceil() + least[n + 1 :]
        at = int(cost.argmin())
        least[n], stop[n] = cost[at], n + 1 + at
    found, n = [], 0
    while n < len(starts):
        found.append((starts[n], ends[stop[n]]))
        n = stop[n]
    return found


# What a batch costs besides its tokens, in tokens: a layer's weights are read from memory whatever they are used for.
OVERHEAD = 48


def _start_of(layer: int, places: Sequence[Place], starts: Collection[int]) -> int:
    """Returns the layer where runs of one layer start: above it, where all that they change is what leaves it."""
    if layer + 1 in starts and _only_leave(layer, places):
        return layer + 1
    return max((at for at in starts if at <= layer), default=0)


def _only_leave(layer: int, places: Sequence[Place]) -> bool:
    """Whether all that the runs of a layer change is what leaves its block."""
    return all(place.hooks == (points.of(layer, points.LEAVES),) for place in places)


def _run_batch(context: Context, batch: Batch, parts: Sequence[tuple[Changes, Tensor]]) -> Float[Tensor, "node"]:
    """Runs one copy of the prompt for each node, with what ablating it adds."""
    run = context.run
    assert run.metric is not None
    at = torch.cat([place.positions[which] for place, which in parts])
    size, row = len(at), 0
    added: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for place, which in parts:
        rows = torch.arange(row, row + len(which), device=at.device)
        row += len(which)
        for hook, vectors in place.added(which).items():
            added.setdefault(hook, []).append((rows, vectors))

    start = run.prefixes.get(batch.start)
    if start is not None and start.layer > batch.layer:
        # What leaves a block enters the next one: the edit is made there, and this block is not computed.
        residual = start.residual.expand(size, -1, -1).clone()
        for rows, vectors in added.pop(points.of(batch.layer, points.LEAVES)):
            residual[rows, at[rows]] += vectors.to(residual)
        start = Prefix(start.layer, residual)
    if start is not None and batch.first:
        start = Prefix(start.layer, start.residual[:, batch.first :])

    def adding(changes: list[tuple[Tensor, Tensor]]) -> Hook:
        def hook(x: Tensor) -> Tensor:
            flat = x.flatten(2).clone()  # hook_z has a head axis
            for rows, vectors in changes:
                flat[rows, at[rows] - batch.first] += vectors.to(flat)
            return flat.view(x.shape)

        return hook

    hooks = [(hook, adding(changes)) for hook, changes in added.items()]
    with torch.no_grad():
        return _metric(context, size, hooks, start, batch.first) - run.metric


def _metric(
    context: Context, size: int, hooks: list[tuple[str, Hook]], start: Prefix | None, first: int
) -> Float[Tensor, "node"]:
    spliced, run, readout = context.spliced, context.run, context.readout
    reads = context.task.metric.reads
    if reads is not None:
        if start is not None and start.layer > spliced.hooked.layer(reads):  # above what the metric reads
            assert run.metric is not None
            return torch.full((size,), run.metric, dtype=run.embed.dtype, device=run.embed.device)
        # Only what is computed below what the metric reads acts on it: what is written at that hook point comes after.
        point = spliced.hooked.point(reads)
        hooks = [(name, hook) for name, hook in hooks if name == EMBED or spliced.hooked.point(name) is not point]
        captured = forward(spliced, run.tokens.expand(size, -1), readout, extra=hooks, start=start)
        return readout.of(captured).to(run.embed.dtype)
    later = [p for p in run.kept if p >= first]
    cache = None
    if first:
        assert context.key_values is not None
        cache = context.key_values.before(first, size)
    below = all(spliced.hooked.layer(hook) < spliced.n_layers - 1 for hook, _ in hooks)
    narrow = len(later) == 1 and run.n_tokens - first > 1 and below and _last_mlp_narrows(context)
    with _last_mlp_at(spliced, later[0] - first if narrow else None):
        found = spliced.hooked.forward(
            run.tokens[first:].expand(size, -1), hooks, start=start, logits_at=[p - first for p in later], cache=cache
        )
    assert found is not None
    if len(later) < len(run.kept):
        earlier = run.logits[: len(run.kept) - len(later)].expand(size, -1, -1)
        found = torch.cat([earlier, found], 1)
    return readout.value(found).to(run.embed.dtype)


@contextlib.contextmanager
def _last_mlp_at(spliced: SplicedModel, position: int | None) -> Iterator[None]:
    """Computes the last block's MLP at one position only; what it writes there is added everywhere, and read there only."""
    if position is None:
        yield
        return

    def narrow(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return (args[0][:, position : position + 1], *args[1:]), kwargs

    with spliced.hooked.altered(spliced.model.blocks[-1].mlp, narrow):
        yield


_narrows: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def _last_mlp_narrows(context: Context) -> bool:
    """Whether `_last_mlp_at` leaves a model's logits alone. It is tried once a model, on two tokens."""
    hooked, tokens = context.spliced.hooked, context.run.tokens[None, :2]
    if hooked not in _narrows:
        found = False
        with contextlib.suppress(AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            whole = hooked.forward(tokens, logits_at=[1])
            with _last_mlp_at(context.spliced, 1):
                narrowed = hooked.forward(tokens, logits_at=[1])
            assert whole is not None and narrowed is not None
            tolerance = 1e-3 if whole.dtype in (torch.float16, torch.bfloat16) else 1e-5
            found = bool((whole - narrowed).abs().max() <= tolerance * whole.abs().max())
        _narrows[hooked] = found
    return _narrows[hooked]


def measure_nodes(context: Context, keys: Sequence[str]) -> list[float]:
    """Returns the measured effect of setting each node to its baseline, one at a time.

    Cost: a forward pass a node, of the layers from the node's on and the positions from the node's on, in batches. A
    feature that is active neither on the prompt nor in the baseline costs nothing and does nothing.

    Raises:
        NodeError: A key is not that of a feature, error or token node of the context's model.
    """
    places: dict[int | str, Changes] = {}
    chosen: dict[int | str, list[tuple[int, int]]] = {}
    numbers: dict[int, dict[tuple[int, int], int]] = {}
    for row, key in enumerate(keys):
        edit = ablating_edit(context, key)
        if isinstance(edit, FeatureEdit):
            place, nodes = edit.number, context.nodes[edit.number]
            if place not in numbers:
                at = zip(nodes.positions.tolist(), nodes.indices.tolist(), strict=True)
                numbers[place] = {node: number for number, node in enumerate(at)}
                places[place] = feature_changes(context, place)
            node = numbers[place].get((edit.position, edit.index))
            if node is not None:
                chosen.setdefault(place, []).append((row, node))
        else:
            if edit.hook not in places:
                places[edit.hook] = vector_changes(context, edit.hook)
            chosen.setdefault(edit.hook, []).append((row, edit.position))
    device = context.run.tokens.device
    some = [places[place].part(torch.tensor([n for _, n in nodes], device=device)) for place, nodes in chosen.items()]
    result = [0.0] * len(keys)
    for nodes, values in zip(chosen.values(), measure_changes(context, some), strict=True):
        for (row, _), value in zip(nodes, values.tolist(), strict=True):
            result[row] = value
    return result


def ablating_edit(context: Context, key: str) -> FeatureEdit | VectorEdit:
    """Returns the edit that sets a node to the context's baseline."""
    node = names.parse(key)
    if not isinstance(node.position, int) or node.kind not in ("feature", "error", "token"):
        raise NodeError(f"{key!r} can't be ablated; expected a feature, error or token node at one position.")
    n_tokens = len(context.task.tokens)
    if not 0 <= node.position < n_tokens:
        raise NodeError(f"{key!r} is outside the prompt, which has positions 0 to {n_tokens - 1}.")
    if node.kind == "feature":
        assert node.site is not None and node.index is not None
        number = context.spliced.dictionary_number(node.site)
        d_sae = context.spliced.dictionaries[number].d_sae
        if node.index >= d_sae:
            raise NodeError(f"{key!r} is outside its dictionary, which has features 0 to {d_sae - 1}.")
        at = torch.tensor([node.position], device=context.spliced.device)
        index = torch.tensor([node.index], device=context.spliced.device)
        value = context.baseline.feature_values(number, at, index)
        return FeatureEdit(0, number, node.index, node.position, 0.0, 0.0 if value is None else float(value))
    hook = EMBED if node.kind == "token" else context.spliced.canonical(str(node.site))
    baseline = context.baseline
    if hook == EMBED:
        plus = None if baseline.embed is None else baseline.embed[node.position]
    else:
        plus = None if baseline.errors is None else baseline.errors[hook][node.position]
    return VectorEdit(0, hook, node.position, 0.0, plus)


def measure(context: Context, edits: Sequence[Edit]) -> Float[Tensor, "edit"]:
    """Returns the change of the metric that each edit causes by itself, whatever the edit.

    Cost: about one forward pass an edit, from the edited layer on, in batches.
    """
    spliced, run = context.spliced, context.run
    result = torch.zeros(len(edits), dtype=run.embed.dtype)
    layers = [_layer(context, edit) for edit in edits]
    order = sorted(range(len(edits)), key=layers.__getitem__)
    size = batch_size(spliced, run.n_tokens)
    done = 0
    while done < len(order):
        # One batch holds edits of one layer: all start from there.
        layer = layers[order[done]]
        batch = [n for n in order[done : done + size] if layers[n] == layer]
        placed = [replace(edits[n], prompt=k) for k, n in enumerate(batch)]
        edited = run_edited(spliced, run, context.readout, placed, len(batch))
        assert run.metric is not None
        result[batch] = context.readout.of(edited.captured).to(result) - run.metric
        context.passes["forward"] += len(batch) * (1 - edited.start / spliced.n_layers)
        done += len(batch)
        context.report(done, len(order), "ablations")
    return result


def _layer(context: Context, edit: Any) -> int:
    spliced = context.spliced
    if isinstance(edit, FeatureEdit):
        return spliced.hooked.layer(spliced.reads[edit.number])
    hook = getattr(edit, "hook", None)
    return 0 if hook is None or hook == EMBED else spliced.hooked.layer(hook)
