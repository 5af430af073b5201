"""What a trace will cost, told before it: passes by step, seconds, bytes.

Passes are counted: each method says its own (see `attribution.costs`), edges follow from the sites and the number of nodes.
Seconds are passes times what one takes on this machine, by itself or in a batch, timed on the loaded model over the first
`PROBE` tokens of the prompt; that run also says how many features are active. Bytes are added up from shapes and from the
budgets that the engine keeps to.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from circuitsae.attribution.baselines import feature_nodes
from circuitsae.attribution.blocks import BUDGET, products_together
from circuitsae.attribution.costs import Passes, PlannedRun, expected_passes
from circuitsae.attribution.effects import Context, find_method
from circuitsae.dictionaries.cache import CACHE
from circuitsae.model import points
from circuitsae.model.edits import batch_size
from circuitsae.model.modes import in_own_mode
from circuitsae.model.runs import Readout, Run, forward, run_clean, start_layers
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import budget, layer_bytes
from circuitsae.task.task import Task
from circuitsae.tracing.options import GraphOptions, TraceOptions
from circuitsae.tracing.steps import prepare

PROBE = 128
"""Tokens of a prompt that are run to know what a pass takes and how many features are active."""

_SWEPT = 0.3
"""A target swept down a frozen chain, in forward passes; measured on `smollm2`."""
_EDGE_BYTES = 900
_REACHING = 0.6
"""The share of the sources below a target that act on it: those at its position and before."""


@dataclass(frozen=True)
class Step:
    """A part of a trace.

    Attributes:
        name: What is done.
        forward: Forward passes over the whole prompt.
        backward: Backward passes, or vector-Jacobian products in units of one.
        seconds: How long it takes here.
        at_most: Whether the passes are a bound, since how many it takes shows only on the way.
    """

    name: str
    forward: float
    backward: float
    seconds: float
    at_most: bool = False


@dataclass(frozen=True)
class Estimate:
    """What a trace will cost.

    Attributes:
        steps: Its parts, in order.
        memory: Bytes by what they are for.
        n_tokens: The prompt's length.
        probed: How many of its tokens were run for the estimate.
        features: Feature nodes expected on the prompt.
        targets: Features that edges will go to, at most.
        notes: What could not be known.
    """

    steps: tuple[Step, ...]
    memory: Mapping[str, int]
    n_tokens: int
    probed: int
    features: int
    targets: int
    notes: tuple[str, ...] = ()

    @property
    def forward(self) -> float:
        """Forward passes in all."""
        return sum(step.forward for step in self.steps)

    @property
    def backward(self) -> float:
        """Backward passes in all."""
        return sum(step.backward for step in self.steps)

    @property
    def seconds(self) -> float:
        """Seconds in all, the model and its dictionaries loaded."""
        return sum(step.seconds for step in self.steps)

    @property
    def bytes(self) -> int:
        """The peak above the loaded model: nodes' effects and edges are not computed at the same time."""
        shared = sum(n for name, n in self.memory.items() if name not in ("tape", "edges"))
        return shared + max(self.memory.get("tape", 0), self.memory.get("edges", 0))

    def to_json(self) -> dict[str, Any]:
        """Returns the estimate as plain values."""
        totals = {"forward": self.forward, "backward": self.backward, "seconds": self.seconds, "bytes": self.bytes}
        return {**totals, **asdict(self), "memory": dict(self.memory)}

    def describe(self) -> str:
        """Returns the estimate as a few lines."""
        lines = [f"about {_duration(self.seconds)} and {_size(self.bytes)} above the model; {self.n_tokens} tokens"]
        for step in self.steps:
            passes = f"{_count(step.forward)} forward + {_count(step.backward)} backward"
            lines.append(f"  {step.name}: {'at most ' * step.at_most}{passes}, {_duration(step.seconds)}")
        lines.append("  memory: " + ", ".join(f"{name} {_size(n)}" for name, n in self.memory.items() if n))
        edges = f", edges to {self.targets:,} of them at most" if self.targets else ""
        lines.append(f"  {self.features:,} features active{edges}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def __str__(self) -> str:
        return self.describe()


@in_own_mode
def estimate(spliced: SplicedModel, task: Task, *, graph: bool = True, **settings: Any) -> Estimate:
    """Returns what `trace` with the same settings will cost: passes by step, seconds here, bytes above the model.

    Passes are what the method says of itself: exact for those whose course is fixed, a bound for `auto` and where the
    number of nodes is guessed (a prompt longer than `PROBE` tokens, a `"mean"` baseline). Those of edges are of the size
    that they will have: where the nodes lie isn't known before; seconds and bytes are coarse. Cost: some eight passes over
    the prompt, or over its first 128 tokens; with a patch prompt one more.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt, metric and perhaps a patch prompt.
        graph: `False` for node effects only, as `node_effects` computes them.
        **settings: The arguments of `trace`, the method's own options among them; defaults are those of `trace`.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: As for `trace`.
        InputError: An option out of range, or one that the method does not have.

    Example:
        >>> import circuitsae as cs
        >>> spliced = cs.load("tiny")
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> cost = cs.estimate(spliced, task, method="atp-star", graph=False)
        >>> cost.forward, cost.backward == 1 + spliced.n_layers
        (2.0, True)
    """
    context, options = prepare(spliced, task, settings)
    return estimate_in(context, options, graph=graph)


def estimate_in(context: Context, asked: TraceOptions, *, graph: bool = True) -> Estimate:
    """Returns what a trace of a context's task will cost, as if nothing had been computed yet; see `estimate`."""
    context, options = context.asking(asked.method, gradient=asked.gradient), asked.graph
    method, method_options = find_method(asked.method, asked.method_options)
    probe = _Probe(context)
    guessed = probe.n_tokens < probe.whole or context.baseline_name == "mean"
    planned = PlannedRun(context.spliced, context.task, context.gradient, probe.positions(), guessed)
    notes: list[str] = []
    if probe.n_tokens < planned.n_tokens:
        notes.append(f"measured on the first {probe.n_tokens} tokens, and scaled")

    passes = expected_passes(method, planned, method_options)
    if passes is None:
        passes = Passes(1, 1)
        notes.append(f"the method {context.method!r} doesn't say its passes; counted as one each way")
    steps = [Step("effects", passes.forward, passes.backward, probe.seconds(passes), passes.at_most)]
    reference = _baseline_passes(context)
    if reference:
        steps.append(Step("baseline", reference, 0.0, probe.seconds(Passes(reference))))
    memory = {
        "dictionaries": _dictionary_bytes(context.spliced),
        "run": probe.run_bytes() * (2 if context.baseline_name == "patch" else 1),
        "tape": _tape_bytes(planned, passes),
    }
    targets = 0
    if graph:
        edges = _edge_work(planned, options)
        targets = edges.targets
        if not getattr(method, "gives_slopes", True):
            edges = replace(edges, runs=edges.runs + Passes(1, 1))
        seconds = probe.seconds(edges.runs) + probe.seconds(edges.products, 1.0) + probe.seconds(edges.swept, _SWEPT)
        found = edges.runs + edges.products + edges.swept
        steps.append(Step("edges", found.forward, found.backward, seconds, True))
        tape = context.spliced.n_layers * layer_bytes(context.spliced, planned.n_tokens)
        memory |= {"edges": min(tape, budget(context.spliced)) + edges.block, "graph": edges.count * _EDGE_BYTES}
        if options.measure:
            measured = _measuring(planned, options.measure)
            steps.append(Step("measuring", measured.forward, measured.backward, probe.seconds(measured), True))
    features = sum(len(positions) for positions in planned.positions)
    return Estimate(tuple(steps), memory, planned.n_tokens, probe.n_tokens, features, targets, tuple(notes))


class _Probe:
    """The prompt's first tokens, run once, and a few passes over them timed."""

    def __init__(self, context: Context) -> None:
        self.context, self.spliced = context, context.spliced
        tokens = context.task.tokens[:PROBE]
        self.n_tokens, self.whole = len(tokens), len(context.task.tokens)
        self.run = run_clean(self.spliced, tokens)
        batch = torch.tensor([tokens], device=self.spliced.device)
        readout = Readout(None, self.n_tokens)
        copies = max(2, PROBE // 2 // self.n_tokens)

        def both() -> None:
            with torch.enable_grad():
                taped = forward(self.spliced, batch, readout, leaf_embed=True)
                assert taped.logits is not None
                torch.autograd.grad(taped.logits.sum(), taped.embed)

        with torch.no_grad():
            self._alone = self._timed(lambda: forward(self.spliced, batch, readout))
            self._batched = self._timed(lambda: forward(self.spliced, batch.expand(copies, -1), readout)) / copies
        self._back = max(self._timed(both) / self._alone - 1, 0.2)

    def seconds(self, passes: Passes, back: float | None = None) -> float:
        """Returns the seconds of a number of passes; a backward pass takes as long as `back` forward ones."""
        each = (self._alone if passes.together <= 1 else self._batched) * self.whole / self.n_tokens
        return (passes.forward + passes.backward * (self._back if back is None else back)) * each

    def _timed(self, work: Callable[[], object]) -> float:
        """Returns the seconds of the faster of two runs."""
        device, least = self.spliced.device, float("inf")
        for _ in range(2):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            least = min(least, time.perf_counter() - started)
        return least

    def positions(self) -> tuple[Int[Tensor, "_node"], ...]:
        """Returns, by dictionary, where feature nodes are expected: where they are, and as densely in the rest."""
        context, found = self.context, []
        patch: Run | None = None
        if context.baseline_name == "patch" and context.task.patch_tokens is not None:
            patch = run_clean(self.spliced, context.task.patch_tokens[: self.n_tokens], like=self.run)
        for number, run in enumerate(self.run.features):
            nodes = feature_nodes(run, None if patch is None else patch.features[number].features)
            counts = torch.bincount(nodes.positions.cpu(), minlength=self.n_tokens)
            if context.baseline_name == "mean":
                counts = (counts * (1 + self._references())).clamp_max(run.dictionary.d_sae)
            mean = round(float(counts.sum()) / max(len(run.kept), 1))
            rest = torch.full((self.whole - self.n_tokens,), mean)
            found.append(torch.arange(self.whole).repeat_interleave(torch.cat([counts, rest])))
        return tuple(found)

    def _references(self) -> int:
        """Returns how many reference vectors a mean at one position is taken over."""
        reference = self.context.reference_tokens or ()
        aligned = all(len(tokens) == self.whole for tokens in reference)
        return len(reference) if aligned else sum(len(tokens) for tokens in reference)

    def run_bytes(self) -> int:
        """Returns the bytes of a run taken apart, prefixes included."""
        run = self.run
        numbers = sum(f.x_in.numel() + 3 * f.features.values.numel() for f in run.features)
        numbers += sum(3 * site.x.numel() for site in run.sites.values())
        numbers += self.n_tokens * self.spliced.d_model * (1 + len(start_layers(self.spliced, self.whole)))
        numbers += sum(rows.numel() for f in run.features for rows in f.decoders.here())
        return int(run.embed.element_size() * numbers * self.whole / self.n_tokens)


@dataclass(frozen=True)
class _EdgeWork:
    """What the edges of a graph take, were its nodes spread over sites as the active features are.

    Attributes:
        targets: Features that edges go to.
        runs: Forward passes, and one backward pass a metric.
        products: Vector-Jacobian products by autograd.
        swept: Targets swept down a frozen chain.
        count: Edges.
        block: Bytes that the products of a block of targets read and write.
    """

    targets: int
    runs: Passes
    products: Passes
    swept: Passes
    count: int
    block: int


def _edge_work(planned: PlannedRun, options: GraphOptions) -> _EdgeWork:
    spliced, n_tokens = planned.spliced, planned.n_tokens
    dropped = torch.tensor(sorted({p % n_tokens for p in options.drop_positions}), dtype=torch.long)
    active = [int((~torch.isin(positions, dropped)).sum()) for positions in planned.positions]
    targets = sum(active) if options.max_nodes is None else min(options.max_nodes, sum(active))
    features = [count * targets / max(sum(active), 1) for count in active]
    errors = float(n_tokens)
    if options.max_nodes is not None and options.prune != "influence":
        errors = min(errors, targets / max(len(active), 1))
    tops = options.max_logits if options.targets == "logits" else 1
    frozen = options.linearisation == "frozen" and spliced.hooked.dtype in (torch.float32, torch.float64)
    top = points.segment_of(spliced, planned.task.metric.reads)
    runs, products, swept = Passes(tops * planned.share(top), tops * planned.share(top)), Passes(), Passes()

    kinds = [(tops, None, top)]
    kinds += [(n, read, points.segment_of(spliced, read)) for n, read in zip(features, spliced.reads, strict=True)]
    if options.error_targets:
        runs += Passes(1, 1)
        kinds += [(errors, hook, points.segment_of(spliced, hook)) for hook in spliced.written]
    segments: dict[int, float] = {}
    edges = block = 0
    for count, hook, segment in kinds:
        end = float(spliced.n_layers) if hook is None else points.depth(spliced.hooked, hook)
        depth = max(end - segment, 0.0) / spliced.n_layers
        below = [written for written in spliced.written if segment <= points.depth(spliced.hooked, written) < end]
        sources = _REACHING * sum(errors + sum(features[n] for n, _ in spliced.writers[at]) for at in below) + 1
        edges += int(count * (sources if options.top_edges is None else min(sources, options.top_edges)))
        if hook is None or not count * depth:
            continue
        room = products_together(spliced, n_tokens, len(below) + 1)
        together, block = min(room, max(count, 1)), max(block, int(2 * BUDGET * min(count / room, 1.0)))
        if frozen and hook in spliced.reads and points.reads_stream(hook):
            swept += Passes(0, count * depth, together=together)
        else:
            products += Passes(0, count * depth, together=together)
            segments[segment] = max(segments.get(segment, 0.0), depth)
    runs += Passes(sum(segments.values()) + (1 if swept.backward else 0))
    return _EdgeWork(targets, runs, products, swept, edges, block)


def _measuring(planned: PlannedRun, count: int) -> Passes:
    """Returns what really ablating the strongest nodes takes at most, were they spread evenly over the sites."""
    spliced = planned.spliced
    layers = [min(spliced.hooked.layer(hook) for hook in d.hook_outs) for d in spliced.dictionaries]
    share = sum(planned.share(planned.start(layer)) for layer in layers) / len(layers)
    values = Passes(1.5) if count >= 8 and planned.n_tokens >= 4 and planned.task.metric.reads is None else Passes()
    together = min(max(1.0, count / len(layers)), batch_size(spliced, planned.n_tokens))
    return values + Passes(count * share, together=together)


def _baseline_passes(context: Context) -> float:
    """Returns the forward passes over the patch prompt or the reference prompts, by their length."""
    if context.baseline_name == "patch":
        return 1.0
    if context.baseline_name == "mean":
        return sum(len(tokens) for tokens in context.reference_tokens or ()) / len(context.task.tokens)
    return 0.0


def _dictionary_bytes(spliced: SplicedModel) -> int:
    """Returns the bytes of converted encoders that are kept, and of the one at work."""
    each = [d.d_in * d.d_sae * 4 for d in spliced.dictionaries]
    return max(max(each), min(sum(each), CACHE.budget))


def _tape_bytes(planned: PlannedRun, passes: Passes) -> int:
    """Returns the bytes of a pass's activations: on a tape, or of a batch."""
    spliced, n_tokens = planned.spliced, planned.n_tokens
    layer = layer_bytes(spliced, n_tokens)
    whole = spliced.n_layers * layer
    if not passes.backward:
        return int(min(passes.together, batch_size(spliced, n_tokens)) * layer)
    logits = len(planned.kept) * spliced.vocabulary.d_vocab * 8
    # integrated gradients cut the tape of a batch as that of a long prompt is cut
    longest = max(budget(spliced), layer * passes.taped)
    return min(whole * passes.taped, longest) + logits


def _count(passes: float) -> str:
    return f"{passes:,.0f}" if passes >= 100 or passes == int(passes) else f"{passes:,.1f}"


def _duration(seconds: float) -> str:
    """Returns a time for people."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.0f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:,.1f} GB"
