"""Interventions: set nodes to other values and see what really happens.

Every number in a circuit is a prediction that these can check: `effect` is `m(edited) - m(clean)`.
"""

from circuitsae.interventions.compiling import compile_edits
from circuitsae.interventions.generation import Continuation, Generation, generate, generate_in
from circuitsae.interventions.intervening import intervene, intervene_in, intervene_many
from circuitsae.interventions.kinds import (
    Ablate,
    AblateEdge,
    Add,
    Intervention,
    PathPatch,
    Scale,
    Set,
    Steer,
    Swap,
    Value,
)
from circuitsae.interventions.results import InterventionResult, result_of, top_tokens

__all__ = [
    "Ablate",
    "AblateEdge",
    "Add",
    "Continuation",
    "Generation",
    "Intervention",
    "InterventionResult",
    "PathPatch",
    "Scale",
    "Set",
    "Steer",
    "Swap",
    "Value",
    "compile_edits",
    "generate",
    "generate_in",
    "intervene",
    "intervene_in",
    "intervene_many",
    "result_of",
    "top_tokens",
]
