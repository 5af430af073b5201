"""The interventions that a person writes down: what is done to which node, at which positions.

A node's key ends in the positions: `@5`, `@-1` (the prompt's last), a slice `@2:5`, `@*` for all. In generation `@*` and
slices without an end go on over the tokens that are written, and `@new` means these alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

Value = float | Sequence[float] | Tensor


@runtime_checkable
class Intervention(Protocol):
    """An edit of one node, at one position or several."""

    @property
    def node(self) -> str:
        """The node's key."""
        ...


@dataclass(frozen=True)
class Ablate:
    """Sets a node to its baseline: zero, or its value on the patch prompt when the task has one.

    Example:
        >>> Ablate("blocks.17.hook_resid_post/421@9").node
        'blocks.17.hook_resid_post/421@9'
    """

    node: str


@dataclass(frozen=True)
class Scale:
    """Multiplies a node's value: `Scale(node, 2)` doubles it."""

    node: str
    by: float


@dataclass(frozen=True)
class Add:
    """Adds to a node's value: a number to a feature's activation, a vector to an error node or embedding."""

    node: str
    value: Value


@dataclass(frozen=True)
class Set:
    """Sets a node's value: a number for a feature, a vector (or 0) for an error node or embedding."""

    node: str
    value: Value


@dataclass(frozen=True)
class Swap:
    """Gives a node the value that it has on another prompt, at the same position or at `position` there.

    Example:
        >>> Swap("blocks.17.hook_resid_post/421@9", "When Mary and John went home, Mary gave a drink to").position
    """

    node: str
    prompt: str | Sequence[int]
    position: int | None = None


@dataclass(frozen=True)
class Steer:
    """Adds a feature, whether it is active or not.

    Attributes:
        node: The feature; without a position, everywhere, tokens that are written included.
        strength: How much is added.
        unit: `"activation"`: of the feature's activation; `"norm"`: in multiples of the mean norm of what stands at the
            hook point on the prompt, so that one number means about the same for every feature (0.1 is felt, 1 is a lot).
    """

    node: str
    strength: float
    unit: Literal["activation", "norm"] = "activation"


@dataclass(frozen=True)
class PathPatch:
    """Lets an edit of a node act through chosen receivers only: path patching (Wang et al., arXiv 2211.00593).

    The model runs once with the edit and everything between held, which gives what each receiver would read; then once
    without the edit, but with the receivers reading that, and all else live. What comes of it is what the edit does by way
    of these receivers.

    Attributes:
        edit: What is done to the sender; another `PathPatch` continues its path.
        through: The receivers: features (`blocks.3.hook_mlp_out/17@9`), inputs of attention heads
            (`blocks.7.hook_v_input/3@9` is what head 3 of layer 7 makes values of at position 9, likewise `hook_q_input`
            and `hook_k_input`; `@*` is every position), or `metric` for what reaches the logits directly.
        along: What carries the edit to the receivers. `"nodes"`: all but other dictionary nodes, as an edge of a circuit;
            `"residual"`: the residual stream alone, with the outputs of all attention and MLP layers held.
    """

    edit: "Intervention"
    through: Sequence[str]
    along: Literal["nodes", "residual"] = "nodes"

    @property
    def node(self) -> str:
        """The sender's key."""
        return self.edit.node


@dataclass(frozen=True)
class AblateEdge:
    """Sets a node to its baseline as seen by one other node: `PathPatch(Ablate(source), [target])`."""

    source: str
    target: str

    @property
    def node(self) -> str:
        """The source's key."""
        return self.source
