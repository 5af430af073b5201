"""Running a TransformerLens model with hooks, from a middle layer on, up to a hook point, or on copies of a prompt.

Works on TransformerBridge (transformer_lens 3.9 and 4) and HookedTransformer (3.9) through what they share: `hook_dict`
(names and aliases to `HookPoint`s) and `blocks`. Hook points are kept as objects, never keyed by `hook.name`: on a Bridge
that is the canonical name, not the one asked for. A name that is not there is an error here, on both lines (3.9 ignores
it silently).

One pass runs on a model at a time: each takes the model's lock, waits for another thread's to end, and lets go however it
ends, so what is cancelled between two passes is cancelled while it waits. Hooks act on the passes of the thread that
attached them alone; what other threads compute with the model meanwhile, without this package, stays theirs (but is in
evaluation mode, and makes no weight gradients).
"""

import contextlib
import inspect
import operator
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitsae.errors import SpliceError, UnknownNameError
from circuitsae.model import points
from circuitsae.model.finite import not_finite, overflows

Hook = Callable[[Tensor], Tensor | None]
"""Takes an activation; returns its replacement, or `None` to leave it."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The residual stream that enters a block, so that a run can start there. `batch` is 1 or the run's.

    Attributes:
        layer: The first block that is computed.
        residual: What enters it, `[batch pos d_model]`.
    """

    layer: int
    residual: Float[Tensor, "batch pos d_model"]


class Watch:
    """A hook that keeps what passes a hook point, where it fires: a run does not insist on it."""

    def __init__(self, tape: dict[str, Tensor], name: str) -> None:
        self.tape, self.name = tape, name

    def __call__(self, x: Tensor) -> Tensor | None:
        """Keeps a value."""
        self.tape[self.name] = x
        return None


class Passed(Watch):
    """Keeps what the model goes on with from a hook point: it runs after what is captured or written there."""


class Constant:
    """A hook that makes constants of what passes, right however often its hook point fires in a pass.

    A HookedTransformer normalises three times before attention, for queries, keys and values.

    Args:
        hold: Gives the constant for a value.
    """

    def __init__(self, hold: Callable[[Tensor], Tensor] = Tensor.detach) -> None:
        self.hold = hold

    def __call__(self, x: Tensor) -> Tensor | None:
        """Returns the constant."""
        return self.hold(x)


# What a Bridge's modules keep of their last run, and with it the whole tape: the attention pattern; on 3.9 a norm's input.
_LEFTOVERS = ("_pattern", "_last_input_before_norm")


_locks: "weakref.WeakKeyDictionary[Any, threading.RLock]" = weakref.WeakKeyDictionary()  # pyright: ignore[reportGeneralTypeIssues]
_locks_lock = threading.Lock()


class _Stop(Exception):
    """Unwinds a forward pass once all that was asked for is there."""


class HookedModel:
    """A model seen as hook points and blocks. Holds no state on the model between runs."""

    def __init__(self, model: Any) -> None:
        if not isinstance(model, nn.Module) or not hasattr(model, "hook_dict") or not hasattr(model, "blocks"):
            raise SpliceError(
                f"{type(model).__name__} is not a TransformerLens model; expected a TransformerBridge (or a "
                "HookedTransformer where transformer_lens is older than 4)."
            )
        self.model: Any = model
        self.cfg: Any = model.cfg
        self.n_layers = len(self.model.blocks)
        self._points = _hook_points(model)
        self._given: Mapping[str, Any] = dict(_registered(model))
        with _locks_lock:
            self._lock: Any = _locks.setdefault(model, threading.RLock())
        self._parameters: list[nn.Parameter] = list(self.model.parameters())
        self._modules: list[nn.Module] = list(self.model.modules())
        self._block_gives: int | None = (
            None  # things in the tuple that a block gives; 0 where it gives the stream alone
        )
        self._forks: bool | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's first parameter lies."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's first floating parameter."""
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @cached_property
    def family(self) -> str:
        """The architecture that the configuration names, such as `"LlamaForCausalLM"`."""
        known = (getattr(self.cfg, key, None) for key in ("original_architecture", "architecture"))
        return str(next((name for name in known if name), type(self.model).__name__))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All hook points' names, one each."""
        named: dict[int, str] = {}
        for name, point in self._points.items():
            named.setdefault(id(point), name)
        return tuple(named.values())

    @cached_property
    def n_heads(self) -> int:
        """Attention heads of a layer; 1 where the configuration doesn't say."""
        return getattr(self.cfg, "n_heads", 1) or 1

    @cached_property
    def d_mlp(self) -> int:
        """Width of an MLP's inside; four times the residual stream's where the configuration doesn't say."""
        return getattr(self.cfg, "d_mlp", None) or 4 * self.cfg.d_model

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(p.numel() * p.element_size() for p in self._parameters)

    def has(self, name: str) -> bool:
        """Whether the model has a hook point of that name or alias."""
        return name in self._points

    def point(self, name: str) -> Any:
        """Returns a hook point by name or alias.

        Raises:
            UnknownNameError: The model has none of that name; the message gives near matches.
        """
        point = self._points.get(name)
        if point is None:
            raise UnknownNameError("hook point of this model", name, self._points)
        return point

    def layer(self, name: str) -> int:
        """Returns the block that a hook point belongs to: 0 for those before the blocks, `n_layers` for those after."""
        return points.layer_at(name, self.n_layers)

    def residual_name(self, layer: int) -> str:
        """Returns the name of the hook point where the residual stream enters a block, or leaves the last one."""
        return points.of(layer, points.ENTERS) if layer < self.n_layers else points.of(layer - 1, points.LEAVES)

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        hooks: Sequence[tuple[str, Hook]] = (),
        *,
        start: Prefix | None = None,
        logits_at: Sequence[int] | None = None,
        stop_at: str | None = None,
        cache: Any = None,
        scores: list[Tensor] | None = None,
    ) -> Float[Tensor, "batch kept d_vocab"] | None:
        """Runs the model once.

        Args:
            tokens: Token ids.
            hooks: Hook point names and what to do there. Those at one hook point run in the order given.
            start: Skips the blocks below; their hooks don't fire.
            logits_at: Positions (from the start) to score; all when `None`. The unembedding of the others is not done.
            stop_at: The last hook point that matters; the run ends there and gives `None`.
            cache: Keys and values of the positions before `tokens` (transformers' `Cache`; Bridge only). It is added to.
            scores: Is given what the unembedding gives: the logits before a model scales or caps them.

        Raises:
            SpliceError: A hook point did not fire; the message names it.
            NotFiniteError: The logits hold NaN or infinity; the message names where that begins.
        """
        seen: Counter[int] = Counter()

        def watched(number: int, hook: Hook) -> Hook:
            def run(x: Tensor) -> Tensor | None:
                seen[number] += 1
                return hook(x)

            return run

        with self.held():
            self._check_current()
            listed = self._rejoined([(name, watched(number, hook)) for number, (name, hook) in enumerate(hooks)])
            if stop_at is not None:
                listed.append((stop_at, _raise_stop))
            logits = self._run(tokens, listed, start, logits_at, cache, scores)
            if logits is not None and overflows(logits):
                raise not_finite(self, tokens)
        for number, (name, hook) in enumerate(hooks):
            if isinstance(hook, Watch):
                continue
            if seen[number] > 1 and not isinstance(hook, Constant):
                raise SpliceError(
                    f"The hook point {name!r} fires {seen[number]} times in one pass of {self.family}, so there is not one "
                    "value there that a number could be about; use one that fires once, such as 'blocks.0.hook_mlp_out'."
                )
            if logits is not None and not seen[number]:  # a run that stops early may end before some of them
                raise SpliceError(
                    f"The hook point {name!r} exists but did not fire during the forward pass, so nothing can be "
                    "spliced in there; some need a switch first (hook_mlp_in: model.set_use_hook_mlp_in(True), "
                    "hook_result: model.set_use_attn_result(True)), or use one that fires, such as "
                    "'blocks.0.hook_mlp_out'."
                )
        return logits

    def _run(
        self,
        tokens: Tensor,
        listed: Sequence[tuple[str, Hook]],
        start: Prefix | None,
        logits_at: Sequence[int] | None,
        cache: Any,
        scores: list[Tensor] | None,
    ) -> Tensor | None:
        with (
            self._quiet(),
            self._attached(listed),
            self._started(start, tokens.shape[0]),
            self._scored(logits_at, scores),
        ):
            try:
                cached = {} if cache is None else {self._cache_argument: cache, "use_cache": True}
                return self.model(tokens, return_type="logits", **cached)
            except _Stop:
                return None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the model to this thread; what other threads run on it through this package waits. May be nested."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def altered(
        self,
        module: nn.Module,
        reads: Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, Any] | None] | None = None,
        gives: Callable[[Any], Any] | None = None,
    ) -> Iterator[None]:
        """Changes what a module reads and gives in this thread's passes; the model is held meanwhile.

        Args:
            module: A module of the model.
            reads: Takes positional and named arguments, gives others, or `None` to leave them.
            gives: Takes the output, gives another, or `None` to leave it.
        """
        mine = threading.get_ident()

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return reads(args, kwargs) if reads is not None and threading.get_ident() == mine else None

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            return gives(output) if gives is not None and threading.get_ident() == mine else None

        with self.held():
            handles = [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_hook(after),
            ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    def _check_current(self) -> None:
        """Raises where a model has got other hook points than it had: what it computes may have changed, too."""
        now = _registered(self.model)
        if all(map(operator.is_, map(now.get, self._given), self._given.values())):
            return
        name = next(name for name, point in self._given.items() if now.get(name) is not point)
        raise SpliceError(
            f"The model's hook points have changed since dictionaries were attached to it ({name!r} is another; "
            "add_sae and reset_saes do that). Make a new SplicedModel of it."
        )

    @cached_property
    def _cache_argument(self) -> str:
        """What the model calls the argument for keys and values: transformers renames it, warns, then drops the old name."""
        return (
            "cache" if "cache" in inspect.signature(self.model.original_model.forward).parameters else "past_key_values"
        )

    def _rejoined(self, hooks: list[tuple[str, Hook]]) -> list[tuple[str, Hook]]:
        """Lets edits of the residual stream between attention and MLP reach the stream on every kind of model.

        On a Bridge `hook_resid_mid` is the input of the MLP's normalisation, off the path of the stream itself, so what
        a hook changes there is added where the block ends.
        """
        middle = [(name, hook) for name, hook in hooks if points.is_middle(name)]
        if not middle or not self._forks_at_middle(middle[0][0]):
            return hooks
        changes: dict[int, Tensor] = {}

        def noting(name: str, hook: Hook) -> Hook:
            layer = self.layer(name)

            def run(x: Tensor) -> Tensor | None:
                new = hook(x)
                if new is not None and new is not x:
                    changes[layer] = changes[layer] + (new - x) if layer in changes else new - x
                return new

            return run

        def adding(layer: int) -> Hook:
            return lambda x: x + changes.pop(layer) if layer in changes else None

        layers = sorted({self.layer(name) for name, _ in middle})
        added = [(points.of(layer, points.LEAVES), adding(layer)) for layer in layers]
        return [*added, *((n, noting(n, h) if points.is_middle(n) else h) for n, h in hooks)]

    def _forks_at_middle(self, name: str) -> bool:
        """Whether a change at a `hook_resid_mid` misses the residual stream; tried once, on one token."""
        if self._forks is None:
            layer = self.layer(name)
            found: dict[str, Tensor] = {}

            def cut(x: Tensor, hook: Any) -> Tensor:
                found["x"] = x.detach().requires_grad_()
                return found["x"]

            def keep(x: Tensor, hook: Any) -> None:
                found["y"] = x
                raise _Stop

            both = [(self.point(name), cut), (self.point(points.of(layer, points.LEAVES)), keep)]
            attached = []
            try:
                for point, hook in both:
                    point.add_hook(hook)
                    attached.append((point, point.fwd_hooks[-1]))
                with self._quiet(), torch.enable_grad(), contextlib.suppress(_Stop):
                    if self.has(points.of(layer, "hook_mlp_out")):
                        mlp_out = self.point(points.of(layer, "hook_mlp_out"))
                        mlp_out.add_hook(lambda x, hook: x.detach())
                        attached.append((mlp_out, mlp_out.fwd_hooks[-1]))
                    self.model(torch.zeros(1, 1, dtype=torch.long, device=self.device), return_type="logits")
            finally:
                for point, handle in reversed(attached):
                    handle.hook.remove()
                    point.fwd_hooks.remove(handle)
            # with the MLP cut, only the stream itself leads from there to the end of the block
            y = found.get("y")
            if y is None:
                raise SpliceError(
                    f"The hook point 'blocks.{layer}.hook_resid_post' of {self.family} exists but did not fire, so what is "
                    f"changed at {name!r} can't be carried on; use one that fires, such as 'blocks.0.hook_mlp_out'."
                )
            gradient = None
            if y.requires_grad:
                gradient = torch.autograd.grad(y, found["x"], torch.ones_like(y), allow_unused=True)[0]
            self._forks = gradient is None
        return self._forks

    @property
    def points(self) -> Mapping[str, Any]:
        """All hook points by name and alias."""
        return self._points

    def attempt(self, tokens: Int[Tensor, "batch pos"], hooks: Sequence[tuple[str, Hook]]) -> None:
        """Runs the bare model with hooks that watch, whatever fires and whatever comes of it."""
        with self.held(), self._quiet(), self._attached(hooks):
            self.model(tokens, return_type="logits")

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """Evaluation mode and no weight gradients, both put back afterwards."""
        training = [m for m in self.model.modules() if m.training] if self.model.training else []
        for module in training:
            module.training = False
        # Asked anew each time: the caller may freeze weights, or free them, between two runs.
        trained = [p for p in self._parameters if p.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            with warnings.catch_warnings():
                # The Bridge warns whenever a hook edits a normalisation scale, which is what freezing does.
                warnings.filterwarnings("ignore", message=".*(native-autograd path|hook edited hook_scale).*")
                yield
        finally:
            for state in map(vars, self._modules):
                for name in _LEFTOVERS:
                    if state.get(name) is not None:
                        state[name] = None
            for module in training:
                module.training = True
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextlib.contextmanager
    def _attached(self, hooks: Sequence[tuple[str, Hook]]) -> Iterator[None]:
        attached: list[tuple[Any, Any]] = []
        mine = threading.get_ident()

        def own(run: Hook) -> Callable[[Tensor, Any], Tensor | None]:
            return lambda x, hook: run(x) if threading.get_ident() == mine else None  # TransformerLens calls with hook=

        try:
            for name, hook in hooks:
                point = self.point(name)
                point.add_hook(own(hook))
                attached.append((point, point.fwd_hooks[-1]))
            yield
        finally:
            for point, handle in reversed(attached):
                handle.hook.remove()
                point.fwd_hooks.remove(handle)

    @contextlib.contextmanager
    def _started(self, start: Prefix | None, batch: int) -> Iterator[None]:
        """Replaces the blocks below `start` by ones that hand its residual on; also learns what blocks return."""
        if start is None or start.layer == 0:
            if self._block_gives is not None:
                yield
                return
            with self.altered(self.model.blocks[0], gives=self._note_output):
                yield
            return
        if self._block_gives is None:
            raise SpliceError("A run can start at a middle layer only after one whole run of the model.")
        residual = start.residual.expand(batch, -1, -1)
        given = (residual, *[None] * (self._block_gives - 1)) if self._block_gives else residual
        stubbed, mine = list(self.model.blocks)[: start.layer], threading.get_ident()

        def stub(whole: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args, **kwargs: given if threading.get_ident() == mine else whole(*args, **kwargs)

        for block in stubbed:
            object.__setattr__(block, "forward", stub(block.forward))
        try:
            yield
        finally:
            for block in stubbed:
                object.__delattr__(block, "forward")

    def _note_output(self, output: Any) -> None:
        self._block_gives = len(output) if isinstance(output, tuple) else 0

    def _scored(
        self, positions: Sequence[int] | None, scores: list[Tensor] | None
    ) -> contextlib.AbstractContextManager[None]:
        def keep(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
            return (args[0][:, list(positions or ())], *args[1:]), kwargs

        unembed = self.model.unembed
        return self.altered(
            unembed, keep if positions is not None else None, scores.append if scores is not None else None
        )


def _hook_points(model: Any) -> Mapping[str, Any]:
    """Returns all hook points by name and alias, but those where an SAE of sae_lens is attached."""
    # sae_lens' Bridge leaves the aliases out
    own = (vars(c).get("hook_dict") for c in type(model).__mro__ if c.__module__.startswith("transformer_lens."))
    whole = next((found for found in own if isinstance(found, property)), None)
    named = model.hook_dict if whole is None else whole.__get__(model)
    return {name: point for name, point in named.items() if hasattr(point, "add_hook")}


def _registered(model: nn.Module) -> Mapping[str, Any]:
    """Returns a model's own table of its hook points; a Bridge makes `hook_dict` anew for everyone who asks."""
    own = vars(model)
    return own.get("hook_dict") or own.get("_hook_registry") or {}


def _raise_stop(x: Tensor) -> None:
    raise _Stop
