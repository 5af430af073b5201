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
    from circuitsae.evaluation.evaluator import evaluate
    from circuitsae.evaluation.faithfulness import Faithfulness
    from circuitsae.evaluation.learned import LearnedMask, learn_mask
    from circuitsae.evaluation.result import Evaluation
    from circuitsae.graph.aggregation import aggregate
    from circuitsae.graph.circuit import Circuit
    from circuitsae.graph.comparison import Comparison, compare
    from circuitsae.interventions import (
        Ablate,
        AblateEdge,
        Add,
        Generation,
        Intervention,
        InterventionResult,
        PathPatch,
        Scale,
        Set,
        Steer,
        Swap,
        generate,
        intervene,
        intervene_many,
    )
    from circuitsae.labels.describing import describe
    from circuitsae.labels.sources import label_circuit, open_labels
    from circuitsae.model.loading import load
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.registry import register
    from circuitsae.scans import (
        AblationScan,
        ActivityScan,
        SteeringCurve,
        scan_ablation,
        scan_activity,
        scan_scales,
    )
    from circuitsae.session import Session
    from circuitsae.task.metrics import Logit, LogitDiff, LogProb, Probability
    from circuitsae.task.reading import read_tasks
    from circuitsae.task.sets import TaskSet, task_set
    from circuitsae.task.targets import Direction, Divergence, Feature, Loss, TopLogits
    from circuitsae.task.task import Task
    from circuitsae.tracing import trace, trace_many
    from circuitsae.tracing.estimates import Estimate, estimate

__version__ = "0.1.0"

__all__ = [
    "Ablate",
    "AblateEdge",
    "AblationScan",
    "ActivityScan",
    "Add",
    "Circuit",
    "CircuitsaeError",
    "Comparison",
    "Dictionary",
    "Direction",
    "Divergence",
    "Estimate",
    "Evaluation",
    "Faithfulness",
    "Feature",
    "Generation",
    "Intervention",
    "InterventionResult",
    "LearnedMask",
    "LogProb",
    "Logit",
    "LogitDiff",
    "Loss",
    "NodeEffects",
    "PathPatch",
    "Probability",
    "Scale",
    "Session",
    "Set",
    "SplicedModel",
    "Steer",
    "SteeringCurve",
    "Swap",
    "Task",
    "TaskSet",
    "TopLogits",
    "__version__",
    "aggregate",
    "compare",
    "describe",
    "estimate",
    "evaluate",
    "generate",
    "intervene",
    "intervene_many",
    "label_circuit",
    "learn_mask",
    "load",
    "node_effects",
    "open_labels",
    "read_tasks",
    "register",
    "scan_ablation",
    "scan_activity",
    "scan_scales",
    "task_set",
    "trace",
    "trace_many",
]

_HOMES = {
    "Ablate": "interventions",
    "AblateEdge": "interventions",
    "AblationScan": "scans",
    "ActivityScan": "scans",
    "Add": "interventions",
    "Circuit": "graph.circuit",
    "CircuitsaeError": "errors",
    "Comparison": "graph.comparison",
    "Dictionary": "dictionaries.base",
    "Direction": "task.targets",
    "Divergence": "task.targets",
    "Estimate": "tracing.estimates",
    "Evaluation": "evaluation.result",
    "Faithfulness": "evaluation.faithfulness",
    "Feature": "task.targets",
    "Generation": "interventions",
    "Intervention": "interventions",
    "InterventionResult": "interventions",
    "LearnedMask": "evaluation.learned",
    "LogProb": "task.metrics",
    "Logit": "task.metrics",
    "LogitDiff": "task.metrics",
    "Loss": "task.targets",
    "NodeEffects": "attribution.effects",
    "PathPatch": "interventions",
    "Probability": "task.metrics",
    "Scale": "interventions",
    "Session": "session",
    "Set": "interventions",
    "SplicedModel": "model.spliced",
    "Steer": "interventions",
    "SteeringCurve": "scans",
    "Swap": "interventions",
    "Task": "task.task",
    "TaskSet": "task.sets",
    "TopLogits": "task.targets",
    "aggregate": "graph.aggregation",
    "compare": "graph.comparison",
    "describe": "labels.describing",
    "estimate": "tracing.estimates",
    "evaluate": "evaluation.evaluator",
    "generate": "interventions",
    "intervene": "interventions",
    "intervene_many": "interventions",
    "label_circuit": "labels.sources",
    "learn_mask": "evaluation.learned",
    "load": "model.loading",
    "node_effects": "attribution.effects",
    "open_labels": "labels.sources",
    "read_tasks": "task.reading",
    "register": "registry",
    "scan_ablation": "scans",
    "scan_activity": "scans",
    "scan_scales": "scans",
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
