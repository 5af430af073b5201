"""A model run plainly, to hold the engine's numbers against: torch's own module hooks, nothing spliced, nothing cached.

Where a hook point is the input or output of a module (a block, an MLP, a normalisation), it is that module's input or
output that is read and changed here, not what TransformerLens shows of it; so a hook point that is off the path of the
computation is found out. Attention patterns are held by handing out the clean run's softmax again, normalisations by
multiplying with the clean run's gain. Derivatives are finite differences by Ridders' method (Advances in Engineering
Software 4, 1982), which takes the step that suits the arithmetic really done and says how far the result can be trusted.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformer_lens.hook_points import HookPoint

from circuitsae.model.points import of_queries_or_keys

Change = Callable[[Tensor], Tensor]
"""Takes a value, `[batch pos width]`, and gives what stands there instead."""

_STEPS = tuple(0.2 * 4.0**-n for n in range(7))


@dataclass(frozen=True)
class _Place:
    """Where a hook point's value is had: a module's first input or its (first) output, and what that is multiplied by."""

    module: nn.Module
    side: str  # "in" | "out"
    scale: float = 1.0


@dataclass(frozen=True)
class _Middle:
    """The stream between attention and MLP: what enters the block, and what attention adds to it."""

    block: _Place
    added: _Place
    scale: float = 1.0


@dataclass
class Clean:
    """What a clean run leaves to hold others at: attention patterns in their order, each normalisation's gain."""

    patterns: list[Tensor] = field(default_factory=list)
    norms: dict[nn.Module, list[tuple[Tensor, bool, Tensor]]] = field(default_factory=dict)


class Reference:
    """A model as a plain function of tokens and changes.

    Args:
        model: A TransformerLens model.
        hooks: The hook points that will be read or changed.
        tokens: A prompt, `[pos]`; on it the values found must be those of the hook points.
        twin: The transformers model that a Bridge was made from, as it was before; the Bridge's own modules without.
    """

    def __init__(self, model: Any, hooks: Sequence[str], tokens: Tensor, twin: nn.Module | None = None) -> None:
        self.model, self._twin = model, twin
        shown = _shown(model, hooks, tokens)
        inner = getattr(model, "original_model", None)
        candidates = [m for m in (twin, inner) if m is not None]
        for self._module in (*candidates, None):
            self._places = {name: self._find(name) for name in hooks}
            if self._module is None or self._agree(shown, tokens):
                break
        self.is_apart = self._module is not None and self._module is twin

    def __call__(
        self,
        tokens: Tensor,
        changes: Mapping[str, Change] | None = None,
        reads: Sequence[str] = (),
        *,
        patterns: Clean | None = None,
        norms: Clean | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the logits, `[batch pos d_vocab]`, and what arrives at the hook points to be read.

        Args:
            tokens: `[batch pos]`.
            changes: By hook point; what is read there is read before.
            reads: Hook points.
            patterns: Holds attention patterns at this run's.
            norms: Holds normalisations' gains at this run's.
        """
        changes = changes or {}
        seen: dict[str, Tensor] = {}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            if norms is not None:  # before changes, which may be at a normalisation's output
                for module, calls in norms.norms.items():
                    _hook(stack, _Place(module, "out"), _linear(calls), with_input=True)
            for name in dict.fromkeys((*reads, *changes)):
                self._attach(stack, name, changes.get(name), seen)
            if patterns is not None:
                stack.enter_context(_Patterns(patterns.patterns, replay=True))
            logits = self._forward(tokens)
        return logits, {name: seen[name] for name in reads}

    def clean(self, tokens: Tensor) -> Clean:
        """Returns what a run leaves, to hold others at; `tokens` `[batch pos]`."""
        found = Clean()
        at: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        with torch.no_grad(), contextlib.ExitStack() as stack:
            for module in self._norms():

                def keep(y: Tensor, x: Tensor, module: nn.Module = module) -> None:
                    at.setdefault(module, []).append((x, y))

                _hook(stack, _Place(module, "out"), keep, with_input=True)
            stack.enter_context(_Patterns(found.patterns, replay=False))
            self._forward(tokens)
        with torch.no_grad():
            for module, calls in at.items():
                with contextlib.suppress(
                    TypeError
                ):  # it takes more than what is normalised: a gate, which no one holds
                    found.norms[module] = [_gain(module, x, y) for x, y in calls]
        return found

    def _forward(self, tokens: Tensor) -> Tensor:
        if self._module is None:
            return self.model(tokens, return_type="logits")
        return self._module(input_ids=tokens, use_cache=False).logits

    def _find(self, name: str) -> "_Place | _Middle":
        if self._module is None:
            return _Place(self.model.hook_dict[name], "out")
        if name.endswith(".hook_resid_mid"):
            block = name.removesuffix("hook_resid_mid")
            if block + "hook_attn_out" in self.model.hook_dict:
                low, added = self._find(block + "hook_resid_pre"), self._find(block + "hook_attn_out")
                if isinstance(low, _Place) and isinstance(added, _Place):
                    return _Middle(low, added)
        point = self.model.hook_dict[name]
        for component in self.model.modules():
            for side in ("in", "out"):
                if getattr(component, f"hook_{side}", None) is point:
                    module = self._in_twin(component) if self._module is self._twin else component
                    return _Place(point, "out") if module is None else _Place(module, side)
        return _Place(point, "out")

    def _in_twin(self, component: nn.Module) -> nn.Module | None:
        """Returns the module of the twin that a Bridge's component stands for."""
        assert self._module is not None
        paths = self.model.original_model.named_modules(remove_duplicate=False)
        for path in (path.replace("_original_component.", "") for path, module in paths if module is component):
            with contextlib.suppress(AttributeError):
                return self._module.get_submodule(path)
        return None

    def _norms(self) -> Iterator[nn.Module]:
        """All normalisations but those of queries and keys."""
        root = self._module or self.model
        above: list[str] = []
        for path, module in root.named_modules():
            is_norm = "norm" in type(module).__name__.lower() and isinstance(module, nn.Module)
            if is_norm and not path.startswith(tuple(above)) and not of_queries_or_keys(f".{path}."):
                above.append(path + ".")
                yield module

    def _agree(self, shown: Mapping[str, Tensor], tokens: Tensor) -> bool:
        """Whether the values found are those of the hook points; also finds what a model multiplies them by (Granite)."""
        for name, place in self._places.items():
            found: dict[str, Tensor] = {}
            low, part = (place.block, place.added) if isinstance(place, _Middle) else (None, place)
            with torch.no_grad(), contextlib.ExitStack() as stack:
                if low is not None:
                    _hook(stack, low, lambda x, found=found: found.__setitem__("low", x))
                _hook(stack, part, lambda x, found=found: found.__setitem__("part", x))
                self._forward(tokens[None])
            x, part = shown[name].flatten(2), found.get("part")
            if part is None or part.ndim < 3 or part.flatten(2).shape != x.shape:
                return False  # the module is not called, or takes the positions of all prompts in one row
            part = part.flatten(2)
            rest = x - found["low"] if "low" in found else x
            scale = float((rest * part).sum() / part.square().sum().clamp_min(1e-300))
            if bool((rest - scale * part).abs().max() > 1e-3 * x.abs().max()):
                return False
            self._places[name] = replace(place, scale=1.0 if abs(scale - 1) < 1e-3 else scale)
        return True

    def _attach(self, stack: contextlib.ExitStack, name: str, change: Change | None, seen: dict[str, Tensor]) -> None:
        place = self._places[name]
        low: list[Tensor] = []

        def at(part: Tensor) -> Tensor | None:
            flat = part.flatten(2)
            seen[name] = x = place.scale * flat + (low.pop() if low else 0)
            if change is None:
                return None
            return (flat + (change(x) - x) / place.scale).view(part.shape).to(part.dtype)

        if isinstance(place, _Middle):
            _hook(stack, place.block, lambda x: low.append(x))
        _hook(stack, place.added if isinstance(place, _Middle) else place, at)


class _Patterns(TorchFunctionMode):
    """Keeps what softmax gives over keys, or hands it out again in the same order."""

    def __init__(self, kept: list[Tensor], *, replay: bool) -> None:
        super().__init__()
        self.kept, self.replay, self.at = kept, replay, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for each of its functions."""
        result = func(*args, **(kwargs or {}))
        # scores of attention: [batch head query key], with a sink perhaps one key more
        if func.__name__ != "softmax" or result.ndim != 4 or result.shape[-1] - result.shape[-2] not in (0, 1):
            return result
        if not self.replay:
            self.kept.append(result)
            return result
        self.at += 1
        return self.kept[self.at - 1].to(result.dtype).expand_as(result).contiguous()


def _shown(model: Any, hooks: Sequence[str], tokens: Tensor) -> dict[str, Tensor]:
    """What TransformerLens shows at hook points, asked for in its own way: some fire only then."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda x, hook: found.__setitem__(name, x.flatten(2))

    with torch.no_grad():
        model.run_with_hooks(tokens[None], fwd_hooks=[(name, keep(name)) for name in hooks], return_type="logits")
    return found


def _hook(stack: contextlib.ExitStack, place: _Place, run: Callable[..., Any], *, with_input: bool = False) -> None:
    """Registers a function of a module's input or output; what it returns, where that is a tensor, takes its place."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else _name_of_input(module, kwargs)
        new = run(args[0] if name is None else kwargs[name])
        if not isinstance(new, Tensor):
            return None
        return ((new, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: new})

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        x = () if not with_input else (args[0] if args else kwargs[_name_of_input(module, kwargs)],)
        new = run(_first(output), *x)
        if not isinstance(new, Tensor):
            return None
        return type(output)((new, *output[1:])) if isinstance(output, tuple | list) else new

    if isinstance(place.module, HookPoint):  # some fire only for hooks of TransformerLens' own
        point = place.module
        point.add_hook(lambda tensor, hook: run(tensor))
        added = point.fwd_hooks[-1]
        stack.callback(lambda: (added.hook.remove(), point.fwd_hooks.remove(added)))
        return
    if place.side == "in":
        handle = place.module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = place.module.register_forward_hook(after, with_kwargs=True)
    stack.callback(handle.remove)


def _name_of_input(module: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """The first tensor that a module takes, by its signature's order."""
    order = [*inspect.signature(module.forward).parameters, *kwargs]
    return next(name for name in order if isinstance(kwargs.get(name), Tensor))


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output


def _gain(module: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, bool, Tensor]:
    """What a normalisation multiplies its input by, whether it takes off the mean before, and what it adds."""
    bias = _first(module(torch.zeros_like(x)))
    moved = _first(module(x + x.abs().amax(-1, keepdim=True)))
    centred = bool((moved - y).abs().max() <= 1e-4 * y.abs().max())
    low = x - x.mean(-1, keepdim=True) if centred else x
    return torch.where(low == 0, 0, (y - bias) / low), centred, bias


def _linear(calls: list[tuple[Tensor, bool, Tensor]]) -> Callable[[Tensor, Tensor], Tensor]:
    left = iter(calls)

    def run(y: Tensor, x: Tensor) -> Tensor:
        gain, centred, bias = next(left)
        # some models lay the positions of all prompts out in one row (OPT)
        copies = (len(x) // len(gain), *[1] * (x.ndim - 1))
        return ((x - x.mean(-1, keepdim=True) if centred else x) * gain.repeat(copies) + bias.repeat(copies)).to(
            y.dtype
        )

    return run


def slopes(values: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns derivatives at 0 and how far each can be trusted, by Ridders' method.

    Args:
        values: Gives, for steps `[step]`, the values `[step n]`.
    """
    steps = torch.tensor(_STEPS, dtype=torch.float64)
    both = values(torch.cat([steps, -steps])).double()
    up, down = both.split(len(steps))
    column = list((up - down) / (2 * steps[:, None].to(both)))
    best = column[0]
    error = torch.full_like(best, torch.inf)
    factor = 1.0
    while len(column) > 1:
        factor *= 16.0
        finer = [(b * factor - a) / (factor - 1) for a, b in zip(column, column[1:], strict=False)]
        for n, value in enumerate(finer):
            off = torch.maximum((value - column[n]).abs(), (value - column[n + 1]).abs())
            off = off.nan_to_num(nan=torch.inf)
            best, error = torch.where(off < error, value, best), torch.minimum(off, error)
        column = finer
    return best, error
