"""Do splices, freezes and gradient rules hold, on this very model?

Hook points are promises: that what a hook returns is what the model goes on with, that a held pattern leaves no path
from queries and keys, that a held scale makes a normalisation linear. In some families one is only shown a copy, a fused
kernel or a new version of TransformerLens can break one silently, and what results looks entirely reasonable. So whoever
hands out hooks on which a number rests has them tried first (`require`, `verify`): once a loaded model, on a few tokens.
What does not hold is a `SpliceError` that names hook point and family; `circuitsae doctor` prints the same checks.
"""

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuitsae.errors import CircuitsaeError, SpliceError
from circuitsae.model import points
from circuitsae.model.hooks import Constant, Hook, HookedModel, Watch
from circuitsae.model.probes import Probe, reaches, tolerance, vjp
from circuitsae.model.runs import EMBED, Readout, forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.trials import Changed, Copies, leaf, linearised, module_of, some_tokens

# Of half precision: sums of four numbers of 8 bits; what is not linear is off by its own size.
_HALF = 0.25
_LINEAR = {torch.float64: 1e-9, torch.float32: 1e-3}
# transformers computes some softmaxes and norms in float32, whatever a model runs in
_ROUNDED = tolerance(torch.float32)
_passed: "weakref.WeakKeyDictionary[Any, set[tuple[object, ...]]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried.

    Attributes:
        text: What should hold.
        hook: The hook point that is furthest off, or the only one concerned.
        error: By how much it is off, relative to the numbers compared; 1 for a path that should or should not be there.
        limit: What rounding may come to.
    """

    text: str
    hook: str
    error: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the error is within the limit."""
        return self.error <= self.limit


def freezes(spliced: SplicedModel) -> list[tuple[str, Hook]]:
    """Returns the hooks that hold attention patterns and normalisation scales constant: each is detached.

    Raises:
        SpliceError: They don't hold on this model.
    """
    require(spliced, "patterns", "scales")
    return detaching([*points.patterns(spliced.hooked), *points.scales(spliced.hooked)])


def detaching(names: Sequence[str]) -> list[tuple[str, Hook]]:
    """Returns hooks that detach what passes these hook points."""
    return [(name, Constant()) for name in names]


def verify(spliced: SplicedModel, *, edges: bool = False, frozen: bool = False) -> None:
    """Tries that a model splices at its sites, if asked that residual sites cut it, and that frozen it is linear between.

    Once a model and set of sites; later calls cost nothing.

    Raises:
        SpliceError: It does not; the message names the hook point.
    """
    _once(spliced, ("splices", spliced.reads, spliced.written), check_splices)
    if edges:
        _once(spliced, ("cuts", spliced.reads, spliced.written), check_cuts)
    if frozen:
        freezes(spliced)
        _once(spliced, ("linear", spliced.reads, spliced.written), check_linear)


def require(spliced: SplicedModel, *rules: str) -> None:
    """Tries rules of `RULES`, each once a model; later calls cost nothing.

    Raises:
        SpliceError: One does not hold; the message names the hook point.
    """
    for rule in rules:
        _once(spliced, (rule,), RULES[rule])


def _once(spliced: SplicedModel, key: tuple[object, ...], check: Callable[[SplicedModel], "list[Check]"]) -> None:
    known = _passed.setdefault(spliced.model, set())
    if key in known:
        return
    where, what = f"On {spliced.name} ({spliced.hooked.family})", str(key[0])
    try:
        with spliced.hooked.held():
            tried = check(spliced)
    except CircuitsaeError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # hooks make a part of the model go ways that it doesn't go by itself, and not all families can
        names = ", ".join(_AT[what](spliced.hooked)[:2] or spliced.written)
        raise SpliceError(
            f"{where}, hooks at {names}, ... can't be tried: the model says {_first_line(error)!r}. {_HELP[what]}."
        ) from error
    for found in tried:
        if not found.holds:
            raise SpliceError(
                f"{where}, {found.text} does not hold at {found.hook!r}: off by {found.error:.1e}, where "
                f"{found.limit:.0e} is rounding. {_HELP[what]}; `circuitsae doctor` repeats this check."
            )
    known.add(key)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


_FREE = "Leave it free (attention='free', normalisation='free', gradient='pass-through', linearisation='gradient')"
_METHOD = "Methods without that rule are attribution-patching, integrated-gradients and ablation"
_HELP = {
    "splices": "Leave out the sites there, or load the model with attn_implementation='eager' and an up-to-date "
    "transformer_lens",
    "cuts": "Effects and interventions are right there; leave out the sites of the residual stream to have edges",
    "linear": "Take linearisation='gradient'",
    "patterns": _FREE,
    "scales": _FREE,
    "softmax": _METHOD,
    "projections": _METHOD,
    "layers": _METHOD,
    "split": "Take paths that lead into MLPs or to the logits",
}
# Whose hook points a rule is about, where it ends before one can be named; the sites' if none is here.
_AT: Mapping[str, Callable[[HookedModel], list[str]]] = defaultdict(
    lambda: lambda hooked: [], patterns=points.patterns, softmax=points.patterns, scales=points.scales,
    projections=points.projections, layers=points.layer_outputs,
)  # fmt: skip


def check_splices(spliced: SplicedModel) -> list[Check]:
    """Tries the splices: the same values put back give the same logits, and nothing passes beside what was put back."""
    tokens = some_tokens(spliced)
    readout = Readout(None, tokens.shape[1])
    limit = tolerance(spliced.hooked.dtype)
    with torch.no_grad():
        # two copies: what has no place for each prompt, such as positions that all share, can be no site
        pair = forward(spliced, tokens.expand(2, -1), readout, on_write=lambda name, x: x).logits
        bare = forward(spliced, tokens, readout).logits
    raw: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    ends: dict[str, Tensor] = {}

    def put_back(name: str, x: Tensor) -> Tensor:
        leaves[name] = leaf(x)
        return leaves[name]

    goals = {name: _goals(spliced, name) for name in spliced.written}
    extra: list[tuple[str, Hook]] = [(n, lambda x, n=n: raw.__setitem__(n, x)) for n in spliced.written]
    extra += [(n, lambda x, n=n: ends.__setitem__(n, x)) for n in {n: None for found in goals.values() for n in found}]
    with torch.enable_grad():
        captured = forward(spliced, tokens, readout, on_write=put_back, extra=extra, leaf_embed=True)
    assert captured.logits is not None and bare is not None and pair is not None
    off = float((captured.logits.detach() - bare).abs().max() / bare.abs().max().clamp_min(1e-30))
    checks = [Check("that values put back give the same logits", ", ".join(spliced.written), off, limit)]
    probe = Probe(limit)
    reach, beside = [], []
    for name in spliced.written:
        size = passing = 0.0
        # what is written at the next site hides this one from all that lies above, so that is an end, too
        upper = [raw[other] for other in spliced.written if other != name]
        for end in [*upper, *([ends[goal] for goal in goals[name]] or [captured.logits])]:
            seed = probe.random(end)
            through, around = vjp(end, leaves[name], seed), vjp(end, raw[name], seed)
            size = max(size, 0.0 if through is None else float(through.abs().max()))
            passing = max(passing, 0.0 if around is None else float(around.abs().max()))
        reach.append((float(size == 0), name))
        if not points.is_branch(spliced.hooked, name):
            beside.append((passing / size if size > 0 else float(passing > 0), name))
    checks.append(_worst("that the model goes on with what is put back", reach, limit))
    checks.append(_worst("that nothing passes beside what is put back", beside, limit))
    return checks


def check_cuts(spliced: SplicedModel) -> list[Check]:
    """Tries that a site of the residual stream is all that leads from below it to above: edges end there.

    Where embeddings go on to every layer (Zamba2), what they bring directly would be missed.
    """
    text = "that nothing passes beside the residual stream"
    cuts = [name for name in spliced.written if points.entered(name) is not None]
    raw: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}

    def put_back(name: str, x: Tensor) -> Tensor:
        raw[name], leaves[name] = x, leaf(x)
        return leaves[name]

    tokens = some_tokens(spliced)
    with torch.enable_grad():
        captured = forward(spliced, tokens, Readout(None, tokens.shape[1]), on_write=put_back, leaf_embed=True)
    assert captured.logits is not None
    found = []
    for cut in cuts:
        at = spliced.order(cut)
        below = [captured.embed, *(leaves[n] for n in spliced.written if spliced.order(n) < at)]
        above = [captured.logits, *(raw[n] for n in spliced.written if spliced.order(n) > at)]
        paths = (vjp(end, start, torch.ones_like(end)) for end in above for start in below)
        found.append((float(any(path is not None and bool(path.any()) for path in paths)), cut))
    return [_worst(text, found, 0.0)]


def check_patterns(spliced: SplicedModel) -> list[Check]:
    """Tries that held attention patterns leave no path from queries and keys.

    Attention with a pattern of zeros gives the same whatever it reads, and something else than with its own pattern.
    """
    names = points.patterns(spliced.hooked)
    text, limit = "that a frozen pattern leaves no path from queries and keys", tolerance(spliced.hooked.dtype)
    if not names:  # no attention is no pattern to hold; but what else carries from position to position can't be held
        return [Check(text, points.pattern(0), float(_mixes_positions(spliced)), 0.0)]
    with Copies(spliced, 3) as copies:
        for name in names:
            copies.enter(name, lambda one, two: (one, torch.zeros_like(one)))
        copies.run([(name, lambda x: torch.cat([torch.zeros_like(x[:2]), x[2:]])) for name in names])
    return [_worst(text, [(_beside(copies.given.get(name)), name) for name in names], limit)]


def check_scales(spliced: SplicedModel) -> list[Check]:
    """Tries that normalisations are linear while their scales are held, and that all of them can be held."""
    names, limit = points.scales(spliced.hooked), tolerance(spliced.hooked.dtype)
    with Copies(spliced, 4) as copies:
        for name in names:
            copies.enter(name, lambda one, two: (one, two, one + two))
        copies.note_calls(_without_scale(spliced, names))
        copies.run([(name, copies.first) for name in names])
    curved = [(_curved(copies.given[name]) if name in copies.given else 1.0, name) for name in names]
    return [
        _worst("that a frozen scale makes the normalisation linear", curved, limit),
        _worst("that a normalisation has a hook point for its scale", [(1.0, name) for name in copies.called], limit),
    ]


def check_freezes(spliced: SplicedModel) -> list[Check]:
    """Tries all that frozen graphs rest on."""
    return [*check_patterns(spliced), *check_scales(spliced), *check_linear(spliced)]


def check_linear(spliced: SplicedModel) -> list[Check]:
    """Tries that between nodes and what dictionaries and logits read, the frozen model is linear, and its slopes exact.

    Scales and patterns are held at the clean run's, and so is what MLPs make, through which no edge of a frozen graph
    claims to be more than a slope; at every hook point written and
    at the embeddings values are added to the clean ones. What is added in a and in b must add up, and be what the
    vector-Jacobian products of the frozen model predict.
    """
    hooked = spliced.hooked
    tokens = some_tokens(spliced)
    readout = Readout(None, tokens.shape[1])
    held = [*points.patterns(hooked), *points.scales(hooked)]
    constant = points.mlp_values(hooked)
    probe = Probe(tolerance(hooked.dtype))
    added: dict[str, Tensor] = {}

    def add(name: str, x: Tensor) -> Tensor:
        change = probe.random(x[:2]) * x[:1].norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        added[name] = change[:1]
        return x[:1] + torch.cat([torch.zeros_like(change[:1]), change, change.sum(0, keepdim=True)])

    ends: dict[str, Tensor] = {}
    watched = [name for name in points.residuals(hooked) if not _is_written(spliced, name)]
    extra: list[tuple[str, Hook]] = [
        (name, Changed({}, name, lambda x: x[:1].expand_as(x).clone())) for name in [*held, *constant]
    ]
    extra += [(EMBED, lambda x: add(EMBED, x)), *((name, Watch(ends, name)) for name in watched)]
    with torch.no_grad(), _unembedded(spliced, ends):
        values = forward(spliced, tokens.expand(4, -1), readout, on_write=add, extra=extra)
    curved = [(_curved(end), name) for name, end in ends.items()]
    curved += [(_curved(x), spliced.reads[number]) for number, x in values.x_in.items()]

    leaves: dict[str, Tensor] = {}
    tops: dict[str, Tensor] = {}

    def put_back(name: str, x: Tensor) -> Tensor:
        leaves[name] = leaf(x)
        return leaves[name]

    fixed = [(name, Changed({}, name, Tensor.detach)) for name in [*held, *constant]]
    with torch.enable_grad(), _unembedded(spliced, tops):
        slopes = forward(spliced, tokens, readout, on_write=put_back, extra=fixed, leaf_embed=True)
    leaves[EMBED] = slopes.embed
    pairs = [(slopes.x_in[number], values.x_in[number]) for number in values.x_in]
    pairs += [(top, ends[name]) for name, top in tops.items()]
    off = []
    for number, (low, high) in enumerate(pairs):
        seed = probe.random(low)
        moved = seed * (high[1:2] - high[:1])
        if not low.requires_grad:
            predicted = torch.zeros(())
        else:
            found = torch.autograd.grad(low, list(leaves.values()), seed, retain_graph=True, allow_unused=True)
            predicted = sum(
                ((g * added[name].view_as(g)).sum() for name, g in zip(leaves, found, strict=True) if g is not None),
                torch.zeros(()),
            )
        size = moved.abs().sum().clamp_min(1e-30)
        name = spliced.reads[number] if number < len(spliced.reads) else "unembed.hook_in"
        off.append((float((predicted - moved.sum()).abs() / size), name))
    limit = _LINEAR.get(hooked.dtype, _HALF)
    return [
        _worst("that with patterns and scales frozen all between nodes is linear", curved, limit, first=True),
        _worst("that the frozen model's slopes are its differences", off, limit),
    ]


def check_softmax(spliced: SplicedModel) -> list[Check]:
    """Tries that patterns come from a softmax over the keys: what all scores of a query have in common changes nothing.

    Then a gradient g at the pattern p acts below as `g - p . g` does, on which another temperature rests.
    """
    limit, names = max(_ROUNDED, tolerance(spliced.hooked.dtype)), points.patterns(spliced.hooked)
    require(spliced, "patterns")
    tape: dict[str, Tensor] = {}
    read, _ = linearised(spliced, names, [(name, Watch(tape, name)) for name in names])
    probe, found = Probe(limit), []
    for name in names:
        p, x = tape[name], read[name]
        g = probe.random(p)
        plain, less = vjp(p, x, g), vjp(p, x, g - (p.detach() * g).sum(-1, keepdim=True))
        if plain is not None and less is not None:
            found.append((float((plain - less).abs().max() / plain.abs().max().clamp_min(1e-30)), name))
    return [_worst("that a pattern is a softmax over the keys", found, limit)]


def check_projections(spliced: SplicedModel) -> list[Check]:
    """Tries that queries, keys and values are all that attention makes of what it reads: detached, they leave no path."""
    text, names = "that attention reads by its queries, keys and values alone", points.patterns(spliced.hooked)
    if not names:
        return [Check(text, "blocks.0.attn.hook_q", float(_mixes_positions(spliced)), 0.0)]
    cut = [(name, Changed({}, name, Tensor.detach)) for name in points.projections(spliced.hooked)]
    read, given = linearised(spliced, names, cut)
    leaks = [(float(name not in given or reaches(read[name], given[name])), name) for name in names]
    return [_worst(text, leaks, 0.0)]


def check_layers(spliced: SplicedModel) -> list[Check]:
    """Tries that attention and MLPs write to the residual stream by their outputs alone: cut there, it is the identity."""
    hooked, limit = spliced.hooked, tolerance(spliced.hooked.dtype)
    tape: dict[str, Tensor] = {}
    stream = points.each_layer(hooked, points.ENTERS)
    ends = points.each_layer(hooked, points.LEAVES)
    extra: list[tuple[str, Hook]] = [(name, _Leaf(tape, name)) for name in stream]
    extra += [(name, Watch(tape, name)) for name in ends]
    tokens = some_tokens(spliced)
    with torch.enable_grad():
        forward(
            spliced, tokens, Readout(None, tokens.shape[1]), leaf_embed=True,
            extra=[*detaching(points.layer_outputs(hooked)), *extra],
        )  # fmt: skip
    probe, found = Probe(limit), []
    for low, high in zip(stream, ends, strict=True):
        seed = probe.random(tape[high])
        through = vjp(tape[high], tape[low], seed)
        off = 1.0 if through is None else float((through - seed).abs().max() / seed.abs().max())
        found.append((off, high))
    return [_worst("that layers write to the residual stream by hook_attn_out and hook_mlp_out alone", found, limit)]


def check_split(spliced: SplicedModel) -> list[Check]:
    """Tries that inputs of each head's own leave the logits alone, and that heads read what is written there."""
    hooked, limit = spliced.hooked, max(_ROUNDED, tolerance(spliced.hooked.dtype))
    names = points.head_inputs(hooked)
    tokens, tape = some_tokens(spliced), dict[str, Tensor]()
    readout = Readout(None, tokens.shape[1])
    with torch.no_grad():
        plain = forward(spliced, tokens, readout).logits
    extra = [*((n, _Leaf(tape, n)) for n in names), *((n, Watch(tape, n)) for n in points.layer_outputs(hooked))]
    with torch.enable_grad(), points.split_inputs(hooked):
        split = forward(spliced, tokens, readout, leaf_embed=True, extra=extra).logits
    assert plain is not None and split is not None
    off = float((plain - split.detach()).abs().max() / plain.abs().max().clamp_min(1e-30))
    dead = []
    for name in names:
        out = tape.get(points.of(hooked.layer(name), "hook_attn_out"))
        j = None if name not in tape or out is None else vjp(out, tape[name], torch.ones_like(out))
        dead.append((float(j is None or not bool(j.any())), name))
    return [
        Check("that inputs of the heads' own leave the logits as they are", "hook_q_input", off, limit),
        _worst("that heads read what is put at their own inputs", dead or [(1.0, "hook_q_input")], 0.0),
    ]


RULES: Mapping[str, Callable[[SplicedModel], list[Check]]] = {
    "patterns": check_patterns,
    "scales": check_scales,
    "softmax": check_softmax,
    "projections": check_projections,
    "layers": check_layers,
    "split": check_split,
}
"""What a number may rest on besides a splice, by the names that `require` takes."""


class _Leaf(Watch):
    """Puts a leaf of equal value where it fires, and keeps that."""

    def __call__(self, x: Tensor) -> Tensor:
        self.tape[self.name] = leaf(x)
        return self.tape[self.name]


def _beside(given: Float[Tensor, "3 pos d"] | None) -> float:
    """Returns how much of a change passes beside a pattern of zeros, relative to what the pattern itself brings."""
    if given is None:
        return 1.0
    brought = float((given[2] - given[0]).abs().max())
    return min(1.0, float((given[1] - given[0]).abs().max()) / brought) if brought > 0 else 1.0


def _curved(given: Float[Tensor, "4 pos d"]) -> float:
    """Returns how far two changes are from adding up, relative to the larger of them, at the worst position."""
    none, one, two, both = given.flatten(2)
    size = torch.stack([one - none, two - none]).abs().amax((0, 2))
    off = (both - one - two + none).abs().amax(-1)
    return float(torch.where(size > 0, off / size.clamp_min(1e-30), (off > 0).to(off)).max())


def _mixes_positions(spliced: SplicedModel) -> bool:
    """Whether the last position's logits depend on the token before it."""
    tokens = some_tokens(spliced)
    changed = tokens.clone()
    changed[0, -2] = (changed[0, -2] + 1) % int(spliced.hooked.cfg.d_vocab)
    with torch.no_grad():
        found = [forward(spliced, t, Readout(None, tokens.shape[1])).logits for t in (tokens, changed)]
    return found[0] is not None and found[1] is not None and not torch.equal(found[0], found[1])


def _without_scale(spliced: SplicedModel, names: Sequence[str]) -> dict[str, nn.Module]:
    """Returns the model's normalisations that are in no module with a hook point for the scale, by their path."""
    known = {id(inner) for name in names for inner in module_of(spliced, name).modules()}
    found: dict[str, nn.Module] = {}
    for path, module in spliced.model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() and not any(module.children())
        if is_norm and id(module) not in known and not points.of_queries_or_keys(f".{path}"):
            found[path] = module
    return found


def _unembedded(spliced: SplicedModel, into: dict[str, Tensor]) -> contextlib.AbstractContextManager[None]:
    """Keeps what the unembedding reads."""

    def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into["unembed.hook_in"] = args[0]

    return spliced.hooked.altered(spliced.model.unembed, keep)


def _is_written(spliced: SplicedModel, name: str) -> bool:
    point = spliced.hooked.point(name)
    return any(spliced.hooked.point(written) is point for written in spliced.written)


def _goals(spliced: SplicedModel, name: str) -> list[str]:
    """Returns the next places of the residual stream above a hook point; none where only the logits are above it."""
    layer, hooked = spliced.hooked.layer(name), spliced.hooked
    own = hooked.point(name)
    names = [*points.stream(layer)[1:], points.of(layer + 1, points.ENTERS)]
    at = 0
    for number, goal in enumerate(names):
        if hooked.has(goal) and hooked.point(goal) is own:
            at = number + 1
    # an MLP's hook points have nothing to do with the middle, attention's are cut off from the end by a leaf there
    return [goal for goal in (names[at : at + 2] if at < 2 else names[at:]) if hooked.has(goal)]


def _worst(text: str, found: Sequence[tuple[float, str]], limit: float, *, first: bool = False) -> Check:
    """Returns the check of what is furthest off, or of the first that is off at all."""
    off = [f for f in found if f[0] > limit]
    error, hook = off[0] if first and off else max(found, key=lambda f: f[0], default=(0.0, "none"))
    return Check(text, hook, error, limit)
