"""From a task to a circuit. The steps, in order: effects, choice of nodes, edges, pruning, graph, measuring."""

from circuitsae.tracing.options import COMPAT
from circuitsae.tracing.steps import trace, trace_many

__all__ = ["COMPAT", "trace", "trace_many"]
