"""Running a prompt with nodes set to other values: one choice of edits, or many that share the clean run."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from circuitsae.attribution.effects import Context, make_context
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.interventions.compiling import compile_edits
from circuitsae.interventions.freezing import frozen_hooks
from circuitsae.interventions.kinds import Intervention
from circuitsae.interventions.results import InterventionResult, result_of, spelled_out
from circuitsae.model.edits import Edit, batch_size, edit_layer, placed, run_edited
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress
from circuitsae.task.task import Task


class Settings(TypedDict, total=False):
    """How edited runs are made and what is read off them: see `intervene`."""

    errors: str
    attention: str
    normalisation: str
    direct_only: bool
    circuit: Any
    nodes: Sequence[str] | None


class AllSettings(Settings, total=False):
    """The arguments that `intervene` and `intervene_many` share."""

    baseline: str | None
    skip_positions: Sequence[int] | None


def intervene(
    spliced: SplicedModel,
    task: Task,
    edits: Sequence[Intervention],
    *,
    errors: str = "live",
    attention: str = "free",
    normalisation: str = "free",
    direct_only: bool = False,
    baseline: str | None = None,
    circuit: Any = None,
    nodes: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
) -> InterventionResult:
    """Runs the prompt with nodes set to other values, all at once. `effect = after - before`.

    A feature edit changes what its dictionary writes by `(new - current) * W_dec[i]`, so sites without an edit are
    untouched; `current` is the live value, after the edits below. Cost: one forward pass for the clean run and one, from
    the lowest edited layer on, for the edited one; one more where attention or normalisation is frozen.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt and metric; a patch prompt is what `Ablate` sets nodes to.
        edits: `Ablate`, `Scale`, `Add`, `Set`, `Swap` on features, error nodes and tokens, `Steer` on features,
            `PathPatch` and `AblateEdge` on the way between nodes. Positions are written `@5`, `@-1`, `@2:5` or `@*`.
            Several edits of one node apply in their order.
        errors: `"live"` (recomputed in the edited run) or `"frozen"` (held at their clean values).
        attention: `"free"`, or `"frozen"`: attention patterns are held at the clean run's.
        normalisation: `"free"`, or `"frozen"`: the scales of layer norms are held at the clean run's.
        direct_only: Holds all other dictionary nodes, so that the metric and `activations` show what the edges out of
            the edited nodes predict; with attention and normalisation frozen too, what those of a frozen circuit say.
        baseline: What `Ablate` sets to: `"zero"` or `"patch"`; by default as for `node_effects`.
        circuit: A circuit whose nodes' new activations are wanted.
        nodes: More keys of nodes whose new activations are wanted.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.

    Raises:
        NodeError: A key does not parse, or names no node of this model and prompt.
        InputError: A value of the wrong kind.
    """
    return intervene_many(
        spliced,
        task,
        [edits],
        errors=errors,
        attention=attention,
        normalisation=normalisation,
        direct_only=direct_only,
        baseline=baseline,
        circuit=circuit,
        nodes=nodes,
        skip_positions=skip_positions,
    )[0]


@in_own_mode
def intervene_many(
    spliced: SplicedModel,
    task: Task,
    choices: Sequence[Sequence[Intervention]],
    *,
    progress: Progress | None = None,
    **settings: Unpack[AllSettings],
) -> list[InterventionResult]:
    """Runs the prompt once for each choice of edits, in batches that share the clean run below their lowest edit.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt and metric.
        choices: Lists of edits, see `intervene`.
        progress: Called with choices done, their number and a word; returning `False` cancels.
        **settings: As for `intervene`.

    Raises:
        NodeError: A key does not parse, or names no node of this model and prompt.
        InputError: A value of the wrong kind.
        CancelledError: `progress` said so.
    """
    context = make_context(
        spliced,
        task,
        method="ablation",
        baseline=settings.pop("baseline", None),
        skip_positions=settings.pop("skip_positions", None),
        progress=progress,
    )
    return intervene_in(context, choices, **settings)


def intervene_in(
    context: Context, choices: Sequence[Sequence[Intervention]], **settings: Unpack[Settings]
) -> list[InterventionResult]:
    """Runs a context's prompt once for each choice of edits; see `intervene_many`."""
    known = Settings.__annotations__
    for name in settings:
        if name not in known:
            raise InputError(f"intervene has no setting {name!r}; it has {', '.join(known)}.")
    errors = settings.get("errors", "live")
    if errors not in ("live", "frozen"):
        raise UnknownNameError("way to treat errors", errors, ("live", "frozen"))
    for choice in choices:
        if isinstance(choice, (str, Mapping)) or not isinstance(choice, Sequence):
            raise InputError(f"Edits come as a list, such as [Ablate(node)]; given was {choice!r}.")
    wanted = list(settings.get("nodes") or ())
    circuit = settings.get("circuit")
    if circuit is not None:
        wanted += [key for key, kind in circuit.graph.nodes(data="kind") if kind in ("feature", "error", "token")]
    wanted = spelled_out(context, wanted)
    extra = frozen_hooks(
        context, attention=settings.get("attention", "free"), normalisation=settings.get("normalisation", "free")
    )
    compiled = [[e for given in choice for e in compile_edits(context, given, extra=extra)] for choice in choices]
    results: list[InterventionResult | None] = [None] * len(choices)
    done = 0
    for numbers in _batches(context, compiled):
        edits = [placed(edit, copy) for copy, number in enumerate(numbers) for edit in compiled[number]]
        edited = run_edited(
            context.spliced,
            context.run,
            context.readout,
            edits,
            len(numbers),
            errors_frozen=errors == "frozen",
            held=settings.get("direct_only", False),
            extra=extra,
            want_values=True,
        )
        for copy, number in enumerate(numbers):
            results[number] = result_of(context, edited, copy, wanted)
        done += len(numbers)
        context.report(done, len(choices), "interventions")
    return [result for result in results if result is not None]


def _batches(context: Context, compiled: Sequence[Sequence[Edit]]) -> list[list[int]]:
    """Splits choices into batches; those that start at one layer go together."""
    spliced = context.spliced
    starts = [min((edit_layer(spliced, edit) for edit in edits), default=0) for edits in compiled]
    order = sorted(range(len(compiled)), key=lambda n: starts[n])
    size = batch_size(spliced, context.run.n_tokens)
    batches: list[list[int]] = []
    for number in order:
        if batches and len(batches[-1]) < size and starts[batches[-1][0]] == starts[number]:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
