"""Trying parts of a loaded model by themselves: attention, a normalisation, an MLP, with inputs that a check chooses."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from circuitsae.model.hooks import Hook, Watch
from circuitsae.model.probes import Probe, tolerance
from circuitsae.model.runs import Readout, forward
from circuitsae.model.spliced import SplicedModel

N_TOKENS = 5


def some_tokens(spliced: SplicedModel) -> Int[Tensor, "1 pos"]:
    """Returns a few tokens that differ."""
    count = min(N_TOKENS, spliced.n_ctx or N_TOKENS)
    vocabulary = int(spliced.hooked.cfg.d_vocab)
    return (torch.arange(count, device=spliced.device) * 7 + 3)[None] % vocabulary


def module_of(spliced: SplicedModel, name: str) -> nn.Module:
    """Returns the module that a hook point is in."""
    return spliced.model.get_submodule(name.rpartition(".")[0])


class Copies:
    """A forward pass of several copies of the tokens, in which modules read inputs that differ from copy to copy.

    What they give goes on as the first copy's, so each is tried by itself, and all in one pass.
    """

    def __init__(self, spliced: SplicedModel, count: int) -> None:
        self.spliced, self.count = spliced, count
        self.probe = Probe(tolerance(spliced.hooked.dtype))
        self.given: dict[str, Tensor] = {}
        self.called: list[str] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def enter(self, name: str, changes: Callable[[Tensor, Tensor], Sequence[Tensor]]) -> None:
        """Adds changes to what a hook point's module reads; two random ones are what they are made of."""

        def change(x: Tensor) -> Tensor:
            first = x.reshape(self.count, -1)[:1]  # some families join batch and positions
            one, two = (self.probe.random(first) * first.std() for _ in range(2))
            return (first + torch.cat([torch.zeros_like(first), *changes(one, two)])).view(x.shape)

        def leave(x: Tensor) -> Tensor:
            self.given[name] = x.detach().reshape(self.count, -1, x.shape[-1])
            return self.first(x)

        self._stack.enter_context(_between(self.spliced, name, change, leave))

    def first(self, x: Tensor) -> Tensor:
        """Returns the first copy's values in place of all copies'."""
        return x.reshape(self.count, -1)[:1].repeat(self.count, 1).view(x.shape)

    def note_calls(self, modules: Mapping[str, nn.Module]) -> None:
        """Notes which of some modules take part in the pass."""
        for name, module in modules.items():
            note = partial(self.called.append, name)
            self._stack.enter_context(self.spliced.hooked.altered(module, lambda args, kwargs, note=note: note()))

    def run(self, hooks: Sequence[tuple[str, Callable[[Tensor], Tensor]]]) -> None:
        """Runs the pass."""
        tokens = some_tokens(self.spliced)
        with torch.no_grad():
            extra = [(name, Changed({}, name, hook)) for name, hook in hooks]
            forward(self.spliced, tokens.expand(self.count, -1), Readout(None, tokens.shape[1]), extra=extra)


class Changed(Watch):
    """Changes a value where the hook point fires; that it does is for the check to find out."""

    def __init__(self, tape: dict[str, Tensor], name: str, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(tape, name)
        self.change = change

    def __call__(self, x: Tensor) -> Tensor:
        new = self.tape[self.name] = self.change(x)
        return new


def leaf(x: Tensor) -> Tensor:
    """Returns a leaf of equal value."""
    return x.detach().requires_grad_()


_READ = ("hidden_states", "query_input", "key_input", "value_input", "x", "input")


def _between(
    spliced: SplicedModel, name: str, enter: Callable[[Tensor], Tensor], leave: Callable[[Tensor], Tensor | None]
) -> contextlib.AbstractContextManager[None]:
    """Changes what a hook point's module reads, positions' activations alone, and what it gives."""

    def reading(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args and isinstance(args[0], Tensor):
            return (enter(args[0]), *args[1:]), kwargs
        made: dict[int, Tensor] = {}  # one tensor that is read under three names stays one

        def one(x: Tensor) -> Tensor:
            if id(x) not in made:
                made[id(x)] = enter(x)
            return made[id(x)]

        return args, {n: one(x) if n in _READ and isinstance(x, Tensor) else x for n, x in kwargs.items()}

    def giving(output: Any) -> Any:
        if not isinstance(output, tuple):
            return leave(output)
        new = leave(output[0])
        return None if new is None else (new, *output[1:])

    return spliced.hooked.altered(module_of(spliced, name), reading, giving)


def linearised(
    spliced: SplicedModel, owners: Sequence[str], hooks: Sequence[tuple[str, Hook]]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Runs the model with leaves where the modules of hook points read; returns those, and what the modules give."""
    read: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}

    def enter(name: str, x: Tensor) -> Tensor:
        read[name] = leaf(x)
        return read[name]

    tokens = some_tokens(spliced)
    with contextlib.ExitStack() as stack, torch.enable_grad():
        for name in owners:
            stack.enter_context(_between(spliced, name, partial(enter, name), partial(given.__setitem__, name)))
        forward(spliced, tokens, Readout(None, tokens.shape[1]), extra=hooks, leaf_embed=True)
    return read, given
