"""Traces sparse feature circuits in language models, as graphs whose every number can be checked by an intervention.

    import circuitsae as cs

    spliced = cs.load("smollm2")
    task = cs.Task("When Mary and John went to the store, John gave a drink to", metric=cs.LogitDiff(" Mary", " John"))
    circuit = cs.trace(spliced, task)
    result = cs.intervene(spliced, task, [cs.Ablate("blocks.17.hook_resid_post/421@9")])

The names below are the public contract; each is imported when first used, so that `import circuitsae` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from circuitsae.attribution.effects import NodeEffects, node_effects
    from circuitsae.dictionaries.base import Dictionary
    from circuitsae.errors import CircuitsaeError
    from circuitsae.graph.aggregation import aggregate
    from circuitsae.graph.circuit import Circuit
    from circuitsae.graph.comparison import Comparison, compare
    from circuitsae.interventions import Ablate, Add, InterventionResult, Scale, Set, intervene
    from circuitsae.labels.describing import describe
    from circuitsae.labels.sources import label_circuit, open_labels
    from circuitsae.model.loading import load
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.registry import register
    from circuitsae.task.metrics import Logit, LogitDiff, LogProb, Probability
    from circuitsae.task.sets import TaskSet, read_tasks, task_set
    from circuitsae.task.task import Task
    from circuitsae.tracing import trace, trace_many

__version__ = "0.1.0"

__all__ = [
    "Ablate",
    "Add",
    "Circuit",
    "CircuitsaeError",
    "Comparison",
    "Dictionary",
    "InterventionResult",
    "LogProb",
    "Logit",
    "LogitDiff",
    "NodeEffects",
    "Probability",
    "Scale",
    "Set",
    "SplicedModel",
    "Task",
    "TaskSet",
    "__version__",
    "aggregate",
    "compare",
    "describe",
    "intervene",
    "label_circuit",
    "load",
    "node_effects",
    "open_labels",
    "read_tasks",
    "register",
    "task_set",
    "trace",
    "trace_many",
]

_HOMES = {
    "Ablate": "interventions",
    "Add": "interventions",
    "Circuit": "graph.circuit",
    "CircuitsaeError": "errors",
    "Comparison": "graph.comparison",
    "Dictionary": "dictionaries.base",
    "InterventionResult": "interventions",
    "LogProb": "task.metrics",
    "Logit": "task.metrics",
    "LogitDiff": "task.metrics",
    "NodeEffects": "attribution.effects",
    "Probability": "task.metrics",
    "Scale": "interventions",
    "Set": "interventions",
    "SplicedModel": "model.spliced",
    "Task": "task.task",
    "TaskSet": "task.sets",
    "aggregate": "graph.aggregation",
    "compare": "graph.comparison",
    "describe": "labels.describing",
    "intervene": "interventions",
    "label_circuit": "labels.sources",
    "load": "model.loading",
    "node_effects": "attribution.effects",
    "open_labels": "labels.sources",
    "read_tasks": "task.sets",
    "register": "registry",
    "task_set": "task.sets",
    "trace": "tracing",
    "trace_many": "tracing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'circuitsae' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"circuitsae.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
