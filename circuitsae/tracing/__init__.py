"""From a task to a circuit. The steps, in order: effects, choice of nodes, edges, pruning, graph, measuring."""

from circuitsae.tracing.options import COMPAT
from circuitsae.tracing.steps import node_effects_each, trace, trace_each, trace_many

__all__ = ["COMPAT", "node_effects_each", "trace", "trace_each", "trace_many"]
