"""What a method will cost, told before it runs: in passes over one prompt, whatever the machine.

A method states it itself, by `passes(planned, options)` beside `__call__`; `tracing.estimates` makes seconds of it.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from circuitsae.model.runs import Readout, start_layers
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import is_long
from circuitsae.task.task import PreparedTask


@dataclass(frozen=True)
class Passes:
    """A number of passes, in units of one over the whole prompt and all layers.

    Attributes:
        forward: Forward passes.
        backward: Backward passes, or vector-Jacobian products.
        together: How many share a run of the model on the average: copies of the prompt, or products.
        at_most: Whether this is a bound, since how many it takes shows only on the way.
        taped: How many copies of the prompt are on the tape of one backward pass.
    """

    forward: float = 0.0
    backward: float = 0.0
    together: float = 1.0
    at_most: bool = False
    taped: int = 1

    def __add__(self, other: "Passes") -> "Passes":
        """Returns both, one after the other.

        Example:
            >>> Passes(2, 1) + Passes(3, together=3, at_most=True)
            Passes(forward=5, backward=1.0, together=1.5, at_most=True, taped=1)
        """
        passes, runs = self.forward + self.backward + other.forward + other.backward, self.runs + other.runs
        together, at_most = passes / runs if runs else 1.0, self.at_most or other.at_most
        forward, backward = self.forward + other.forward, self.backward + other.backward
        return Passes(forward, backward, together, at_most, max(self.taped, other.taped))

    @property
    def runs(self) -> float:
        """How often the model is gone through."""
        return (self.forward + self.backward) / self.together


@dataclass(frozen=True)
class PlannedRun:
    """What is known of a run beforehand.

    Attributes:
        spliced: The model with its dictionaries.
        task: Prompt and metric.
        gradient: What gradients flow through.
        positions: By dictionary, where feature nodes are expected, ascending.
        guessed: Whether they are guessed from part of the run.
    """

    spliced: SplicedModel
    task: PreparedTask
    gradient: str
    positions: tuple[Int[Tensor, "_node"], ...]
    guessed: bool = False

    @property
    def n_tokens(self) -> int:
        """The prompt's length."""
        return len(self.task.tokens)

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions whose logits are computed."""
        return Readout(self.task.metric, self.n_tokens).kept

    @property
    def starts(self) -> list[int]:
        """The layers at which a run may start."""
        return start_layers(self.spliced, self.n_tokens)

    def start(self, layer: int) -> int:
        """Returns the highest layer at or below one at which a run may start."""
        return max((at for at in self.starts if at <= layer), default=0)

    def share(self, layer: int) -> float:
        """Returns which part of a pass is computed by one that starts at a layer."""
        return 1 - layer / self.spliced.n_layers

    @property
    def everywhere(self) -> Int[Tensor, "pos"]:
        """All positions."""
        return torch.arange(self.n_tokens)

    def gradients(self, *, modified: bool = False) -> Passes:
        """Returns what gradients at the clean run cost, the run itself included.

        Args:
            modified: Whether the backward pass has rules of its own, so that its forward pass doesn't serve as the run.
        """
        again = modified or self.gradient != "pass-through" or is_long(self.spliced, self.n_tokens)
        return Passes(2.0 if again else 1.0, 1.0)


@runtime_checkable
class CostedMethod(Protocol):
    """A method that tells its cost beforehand; see `Method` for the rest of it.

    One whose blocks have no `slopes` says so by a class attribute `gives_slopes = False`: edges then cost a pass more.
    """

    def passes(self, planned: PlannedRun, options: Any) -> Passes:
        """Returns what the method will cost, the clean run included, the baseline's runs not."""
        ...


def expected_passes(method: object, planned: PlannedRun, options: Any) -> Passes | None:
    """Returns what a method says that it will cost, `None` where it doesn't say."""
    return method.passes(planned, options) if isinstance(method, CostedMethod) else None
