"""Does the splice hold, do the freezes hold, on this very model?

Hook points are promises: that what a hook returns is what the model goes on with, that a detached pattern leaves no
path from queries, that a detached scale makes a normalisation linear. A fused kernel or a new version of TransformerLens
can break one silently, and the graph that results looks entirely reasonable. So the engine tries them once on each loaded
model, on a few tokens, and refuses with the hook point's name where one is broken; `circuitsae doctor` prints the same.
"""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from circuitsae.errors import SpliceError
from circuitsae.model.hooks import Hook, Watch
from circuitsae.model.probes import Probe, reaches, tolerance, vjp
from circuitsae.model.runs import Readout, forward
from circuitsae.model.spliced import SplicedModel

N_TOKENS = 5
_NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")
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


def freeze_points(spliced: SplicedModel) -> list[str]:
    """Returns the hook points of attention patterns and normalisation scales, which frozen graphs hold constant."""
    names = ["ln_final.hook_scale"]
    for layer in range(spliced.n_layers):
        names.append(f"blocks.{layer}.attn.hook_pattern")
        names += [f"blocks.{layer}.{norm}.hook_scale" for norm in _NORMS]
    return [name for name in names if spliced.hooked.has(name)]


def freezes(spliced: SplicedModel) -> list[tuple[str, Hook]]:
    """Returns the hooks that hold attention patterns and normalisation scales constant: each is detached."""
    return [(name, lambda x: x.detach()) for name in freeze_points(spliced)]


def verify(spliced: SplicedModel, *, frozen: bool = False) -> None:
    """Tries once a model that splices, and if asked freezes, hold; later calls cost nothing.

    Raises:
        SpliceError: One does not; the message names the hook point.
    """
    known = _passed.setdefault(spliced.model, set())
    wanted: list[tuple[object, ...]] = [("splice", spliced.reads, spliced.written)]
    if frozen:
        wanted.append(("freeze",))
    for signature in wanted:
        if signature in known:
            continue
        for check in check_splices(spliced) if signature[0] == "splice" else check_freezes(spliced):
            if not check.holds:
                raise SpliceError(
                    f"On {spliced.name}, {check.text} does not hold at {check.hook!r}: off by {check.error:.1e}, where "
                    f"{check.limit:.0e} is rounding. Leave out the sites there, or load the model with "
                    "attn_implementation='eager' and an up-to-date transformer_lens; `circuitsae doctor` repeats this check."
                )
        known.add(signature)


def check_splices(spliced: SplicedModel) -> list[Check]:
    """Tries the splices: the same values put back give the same logits, and nothing passes beside what was put back."""
    tokens = _tokens(spliced)
    readout = Readout(None, tokens.shape[1])
    limit = tolerance(spliced.hooked.dtype)
    with torch.no_grad():
        bare = forward(spliced, tokens, readout).logits
    raw: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    ends: dict[str, Tensor] = {}

    def put_back(name: str, x: Tensor) -> Tensor:
        leaves[name] = x.detach().requires_grad_()
        return leaves[name]

    goals = {name: _goals(spliced, name) for name in spliced.written}
    extra: list[tuple[str, Hook]] = [(n, lambda x, n=n: raw.__setitem__(n, x)) for n in spliced.written]
    extra += [(n, lambda x, n=n: ends.__setitem__(n, x)) for n in {n: None for found in goals.values() for n in found}]
    with torch.enable_grad():
        captured = forward(spliced, tokens, readout, on_write=put_back, extra=extra, leaf_embed=True)
    assert captured.logits is not None and bare is not None
    off = float((captured.logits.detach() - bare).abs().max() / bare.abs().max().clamp_min(1e-30))
    checks = [Check("that values put back give the same logits", ", ".join(spliced.written), off, limit)]
    probe = Probe(limit)
    reach, beside = [], []
    for name in spliced.written:
        size = passing = 0.0
        for end in [ends[goal] for goal in goals[name]] or [captured.logits]:
            seed = probe.random(end)
            through, around = vjp(end, leaves[name], seed), vjp(end, raw[name], seed)
            size = max(size, 0.0 if through is None else float(through.abs().max()))
            passing = max(passing, 0.0 if around is None else float(around.abs().max()))
        reach.append((float(size == 0), name))
        beside.append((passing / size if size > 0 else float(passing > 0), name))
    checks.append(_worst("that the model goes on with what is put back", reach, limit))
    checks.append(_worst("that nothing passes beside what is put back", beside, limit))
    return checks


def check_freezes(spliced: SplicedModel) -> list[Check]:
    """Tries the freezes: no path from queries and keys to what the heads give, normalisations linear."""
    tokens = _tokens(spliced)
    limit = tolerance(spliced.hooked.dtype)
    tape: dict[str, Tensor] = {}
    hooked = spliced.hooked
    watched: list[str] = []
    for layer in range(spliced.n_layers):
        block = f"blocks.{layer}."
        watched += [block + part for part in ("attn.hook_z", "attn.hook_pattern")]
        watched += [f"{block}{norm}.{end}" for norm in _NORMS for end in ("hook_in", "hook_normalized", "hook_out")]
        watched += [block + part for part in ("hook_resid_pre", "hook_resid_mid")]
    watched += [f"ln_final.{end}" for end in ("hook_in", "hook_normalized", "hook_out")]
    extra = [*freezes(spliced), *((n, Watch(tape, n)) for n in watched if hooked.has(n))]
    # leaves, since what a Bridge shows of queries and keys is a view beside the path
    sides = [f"blocks.{layer}.attn.hook_{side}" for layer in range(spliced.n_layers) for side in "qk"]
    extra += [(n, _Leaf(tape, n)) for n in sides if hooked.has(n)]
    with torch.enable_grad():
        forward(spliced, tokens, Readout(None, tokens.shape[1]), extra=extra, leaf_embed=True)
    patterns, scales = [], []
    for layer in range(spliced.n_layers):
        block = f"blocks.{layer}."
        z, pattern = tape.get(block + "attn.hook_z"), tape.get(block + "attn.hook_pattern")
        if z is None:
            continue  # a layer without attention
        below = [tape[block + part] for part in ("attn.hook_q", "attn.hook_k") if block + part in tape]
        leaks = pattern is None or any(reaches(x, z) for x in below)
        patterns.append((float(leaks), block + "attn.hook_pattern"))
    probe = Probe(limit)
    norms = [(f"blocks.{layer}.{norm}", layer) for layer in range(spliced.n_layers) for norm in _NORMS]
    for norm, layer in [*norms, ("ln_final", spliced.n_layers)]:
        low, high = _ends_of_norm(tape, norm, layer)
        if low is None or high is None or not reaches(low, high):
            continue
        is_linear = probe.pointwise(high, low) is not None
        scales.append((float(not is_linear), norm + ".hook_scale"))
    return [
        _worst("that a frozen pattern leaves no path from queries and keys", patterns, limit),
        _worst("that a frozen scale makes the normalisation linear", scales, limit),
    ]


class _Leaf(Watch):
    """Puts a leaf of equal value where it fires, and keeps that."""

    def __call__(self, x: Tensor) -> Tensor:
        leaf = self.tape[self.name] = x.detach().requires_grad_()
        return leaf


def _ends_of_norm(tape: dict[str, Tensor], norm: str, layer: int) -> tuple[Tensor | None, Tensor | None]:
    """Returns a normalisation's input and output, by the names that either line of TransformerLens has."""
    stream = {"ln1": "hook_resid_pre", "ln2": "hook_resid_mid"}.get(norm.rpartition(".")[2], "")
    low = tape.get(f"{norm}.hook_in", tape.get(f"blocks.{layer}.{stream}"))
    return low, tape.get(f"{norm}.hook_out", tape.get(f"{norm}.hook_normalized"))


def _goals(spliced: SplicedModel, name: str) -> list[str]:
    """Returns the next places of the residual stream above a hook point; none where only the logits are above it."""
    layer, hooked = spliced.hooked.layer(name), spliced.hooked
    own = hooked.point(name)
    names = [f"blocks.{layer}.hook_resid_mid", f"blocks.{layer}.hook_resid_post", f"blocks.{layer + 1}.hook_resid_pre"]
    at = 0
    for number, goal in enumerate(names):
        if hooked.has(goal) and hooked.point(goal) is own:
            at = number + 1
    # an MLP's hook points have nothing to do with the middle, attention's are cut off from the end by a leaf there
    return [goal for goal in (names[at : at + 2] if at < 2 else names[at:]) if hooked.has(goal)]


def _tokens(spliced: SplicedModel) -> Tensor:
    count = min(N_TOKENS, spliced.n_ctx or N_TOKENS)
    vocabulary = int(spliced.hooked.cfg.d_vocab)
    return (torch.arange(count, device=spliced.device) * 7 + 3)[None] % vocabulary


def _worst(text: str, found: Sequence[tuple[float, str]], limit: float) -> Check:
    error, hook = max(found, key=lambda f: f[0], default=(0.0, "none"))
    return Check(text, hook, error, limit)
