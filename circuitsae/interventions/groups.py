"""What a circuit's groups do: each ablated as one, beside the sum of its members ablated one at a time."""

from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import known_effect
from circuitsae.interventions.intervening import intervene_many
from circuitsae.interventions.kinds import Ablate
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress
from circuitsae.task.task import Task


def measure_groups(spliced: SplicedModel, task: Task, circuit: Circuit, *, progress: Progress | None = None) -> Circuit:
    """Returns the circuit with what each of its groups does to the metric.

    A group's `measured_effect` is the change of the metric when all its members are set to their baselines at once; its
    `effect` is the sum of its members' effects, each by itself, measured where that is known. Members that do one job after
    another add up to more than they do together. Cost: a forward pass a group, in batches.

    Args:
        spliced: The model that the circuit was traced on, with its dictionaries.
        task: Its task.
        circuit: A circuit with groups, as `group` gives it.
        progress: Called with groups done, their number and a word; returning `False` cancels.

    Raises:
        NodeError: The circuit is of another model or prompt.
        CancelledError: `progress` said so.
    """
    result = circuit.subgraph(circuit)
    result.graph.graph.update(circuit.graph.graph)
    groups = [dict(group) for group in circuit.graph.graph.get("groups", ())]
    baseline = circuit.graph.graph.get("baseline")
    measured = intervene_many(
        spliced,
        task,
        [[Ablate(key) for key in group["keys"]] for group in groups],
        baseline=baseline if baseline in ("zero", "patch") else None,
        progress=progress,
    )
    for group, found in zip(groups, measured, strict=True):
        group["effect"] = sum(known_effect(circuit[key]) or 0.0 for key in group["keys"])
        group["measured_effect"] = found.effect
    result.graph.graph["groups"] = groups
    return result
