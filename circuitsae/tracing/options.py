"""What `trace` may be asked for, and the named sets of it under which it gives another package's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from circuitsae import registry
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.prune import Pruner

Targets = Literal["metric", "logits"]
TARGETS: tuple[str, ...] = get_args(Targets)

CONTEXT = ("baseline", "sites", "skip_positions", "reference")
"""The arguments of `trace` that are about task and model rather than about one graph."""

COMPAT: Mapping[str, Mapping[str, Any]] = {
    # Ameisen et al. 2025, as the package circuit-tracer computes it: equal adjacency matrices, which a test checks.
    "circuit-tracer": {
        "method": "attribution-patching",
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
    min_faithfulness: float | None
    heads: int

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
        if self.heads < 0:
            raise InputError(f"heads is {self.heads}; expected how many heads to keep on each edge, 0 or more.")
        if self.heads and self.linearisation != "frozen":
            raise InputError("heads splits the edges of a frozen graph; expected linearisation='frozen' with it.")
        if self.min_faithfulness is not None:
            if not 0 < self.min_faithfulness <= 1:
                raise InputError(
                    f"min_faithfulness is {self.min_faithfulness}; expected the share of the metric that the kept nodes are to "
                    "give, above 0, at most 1."
                )
            if self.prune != "top-k" or self.node_threshold is not None:
                raise InputError(
                    "min_faithfulness grows the circuit by its strongest nodes; expected prune='top-k' and no node_threshold."
                )


@dataclass(frozen=True)
class TraceOptions:
    """All that `trace` was asked for about one task on one model.

    Attributes:
        method, gradient, method_options: How effects are computed, see `node_effects`.
        graph: How the graph is made.
        compat: The named set of options that was asked for.
    """

    method: str
    gradient: str
    method_options: Mapping[str, Any]
    graph: GraphOptions
    compat: str | None

    @classmethod
    def of(cls, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> "TraceOptions":
        """Returns the options: defaults, what the named set that was asked for (`compat`) says, what was given.

        Raises:
            UnknownNameError: There is no such set.
            InputError: A number out of range.
        """
        named = {name: value for name, value in of_compat(given).items() if name in defaults}
        known = {**defaults, **named, **given}
        graph = {f.name: known.pop(f.name) for f in fields(GraphOptions)}
        if graph["prune"] is None:  # where nothing is pruned, no limit applies
            graph |= {"max_nodes": None, "node_threshold": None, "edge_threshold": None}
        graph["drop_positions"] = tuple(int(p) for p in graph["drop_positions"])
        method, gradient, compat = (known.pop(name) for name in ("method", "gradient", "compat"))
        return cls(method, gradient, known, GraphOptions(**graph), compat)

    @property
    def pruner(self) -> Pruner:
        """What chooses nodes and edges."""
        return registry.get("pruners", self.graph.prune or "top-k")()


def of_compat(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns what the named set that was asked for says.

    Raises:
        UnknownNameError: There is no such set.
    """
    name = given.get("compat")
    if name is not None and name not in COMPAT:
        raise UnknownNameError("option set (compat)", name, COMPAT)
    return {} if name is None else COMPAT[name]
