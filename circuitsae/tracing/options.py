"""What `trace` may be asked for, and the named sets of it under which it gives another package's numbers."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from circuitsae.errors import InputError, UnknownNameError

Targets = Literal["metric", "logits"]
TARGETS: tuple[str, ...] = get_args(Targets)

COMPAT: Mapping[str, Mapping[str, Any]] = {
    # Ameisen et al. 2025, as the package circuit-tracer computes it: equal adjacency matrices, which a test checks.
    "circuit-tracer": {
        "baseline": "zero",
        "linearisation": "frozen",
        "targets": "logits",
        "skip_positions": (),
        "drop_positions": (0,),
        "max_nodes": None,
        "prune": None,
    },
}
"""Named sets of options under which `trace` gives another package's numbers."""


@dataclass(frozen=True)
class GraphOptions:
    """What `trace` was asked for beyond the effects; recorded whole in the circuit.

    Raises:
        UnknownNameError: There is no such kind of targets.
        InputError: A number out of range.
    """

    linearisation: str
    targets: str
    logit_share: float
    max_logits: int
    error_targets: bool
    max_nodes: int | None
    node_threshold: float | None
    edge_threshold: float | None
    top_edges: int | None
    prune: str | None
    merge_pruned: bool
    skip_nodes: bool
    drop_positions: tuple[int, ...]
    measure: int

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise UnknownNameError("kind of targets", self.targets, TARGETS)
        if not 0 < self.logit_share <= 1:
            raise InputError(f"logit_share is {self.logit_share}; expected a probability above 0, at most 1.")
        if self.max_logits < 1:
            raise InputError(f"max_logits is {self.max_logits}; expected at least 1.")
        if self.max_nodes is not None and self.max_nodes < 1:
            raise InputError(f"max_nodes is {self.max_nodes}; expected at least 1, or None for all.")
        if self.top_edges is not None and self.top_edges < 1:
            raise InputError(f"top_edges is {self.top_edges}; expected at least 1, or None for all.")
        if self.measure < 0:
            raise InputError(f"measure is {self.measure}; expected the number of nodes to ablate, 0 or more.")


def graph_options(given: Mapping[str, Any]) -> GraphOptions:
    """Returns the options among the arguments of `trace`; where nothing is pruned, no limit applies."""
    values = {f.name: given[f.name] for f in fields(GraphOptions)}
    if given["prune"] is None:
        values |= {"max_nodes": None, "node_threshold": None, "edge_threshold": None}
    return GraphOptions(**{**values, "drop_positions": tuple(int(p) for p in given["drop_positions"])})


def with_compat(compat: str | None, of: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """Returns options of a function, those at its defaults replaced by what a named set says.

    Raises:
        UnknownNameError: There is no such set.
    """
    if compat is None:
        return given
    if compat not in COMPAT:
        raise UnknownNameError("option set (compat)", compat, COMPAT)
    defaults = inspect.signature(of).parameters
    chosen = COMPAT[compat]
    return {
        name: chosen[name] if name in chosen and value == defaults[name].default else value
        for name, value in given.items()
    }
