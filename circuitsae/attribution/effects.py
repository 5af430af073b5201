"""Node effects: by how much the metric changes when a node is set to its baseline.

`node_effects` is the entry; the methods themselves are plugins (group `methods`) that get a `Context` and give
`NodeEffects`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from circuitsae import registry
from circuitsae.attribution.context import GRADIENTS, Context, Gradient, Progress
from circuitsae.attribution.nodes import NodeBlock, NodeEffects
from circuitsae.errors import InputError
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.task import Task

__all__ = [
    "GRADIENTS",
    "Context",
    "Gradient",
    "Method",
    "NoOptions",
    "NodeBlock",
    "NodeEffects",
    "Progress",
    "make_context",
    "node_effects",
    "run_method",
]


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


@runtime_checkable
class Method(Protocol):
    """What a method plugin is: a class whose instance, called with a context and options, gives all nodes' effects.

    `Options` is a frozen dataclass; the command and the app build their controls from its fields. `cost` says in words
    what the method costs in passes over one prompt.
    """

    name: ClassVar[str]
    cost: ClassVar[str]
    Options: ClassVar[type]

    def __call__(self, context: "Context", options: Any) -> NodeEffects:
        """Computes the effects."""
        ...


@in_own_mode
def node_effects(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "auto",
    baseline: str | None = None,
    gradient: str = "pass-through",
    sites: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
    reference: Sequence[str | Sequence[int]] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> NodeEffects:
    """Returns by how much the metric changes when each node is set to its baseline: `m(ablated) - m(clean)`.

    `auto` predicts all effects and measures the strongest by really ablating those nodes, in ten forward and backward
    passes. `attribution-patching` only predicts: `grad_a m . (a' - a)` for every feature and error node at every site and
    position at once, at the cost of one forward and one backward pass of the bare model (two forwards with a patch
    prompt), plus sparse products with the decoder rows that are active. It misleads where the metric is far from linear
    between value and baseline. `ablation` measures every node. A block's `measured` says which effects were measured.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt, metric and perhaps a patch prompt.
        method: Name of a method plugin (`circuitsae plugins` lists them, docs/methods.md compares them).
        baseline: `"zero"`, `"patch"` (the default when the task has a patch prompt) or `"mean"`.
        gradient: `"pass-through"` (of the bare model), `"through-dictionary"` (errors constant, through decode and encode)
            or `"frozen"` (of the bare model with attention patterns and normalisation scales held constant).
        sites: Some of the sites; all when `None`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.
        reference: Prompts that the `"mean"` baseline is taken over.
        progress: Called with work done, work in all, and a word; returning `False` cancels.
        **options: The method's own, such as `steps=10` for integrated gradients.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such method, baseline, gradient or site.
        InputError: An option that the method does not have, or a baseline without what it needs.
    """
    given = {"baseline": baseline, "sites": sites, "skip_positions": skip_positions, "reference": reference}
    context = make_context(spliced, task, method=method, gradient=gradient, options=options, progress=progress, **given)
    return run_method(context)


def make_context(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "attribution-patching",
    baseline: str | None = None,
    gradient: str = "pass-through",
    sites: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
    reference: Sequence[str | Sequence[int]] | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Context:
    """Prepares a task on a model; see `node_effects` for the arguments and their defaults."""
    if not isinstance(task, Task):
        raise InputError(f"A {type(task).__name__} was given for the task; expected a Task.")
    if sites is not None:
        spliced = spliced.restrict(sites)
    if skip_positions is not None:
        spliced = spliced.skipping(skip_positions)
    prepared = task.prepare(spliced.vocabulary, spliced.n_ctx)
    prepared = replace(prepared, metric=prepared.metric.complete(spliced, prepared.tokens))
    if baseline is None:
        baseline = "zero" if prepared.patch_tokens is None else "patch"
    return Context(
        spliced,
        prepared,
        method=method,
        baseline=baseline,
        gradient=gradient,
        reference=reference,
        options=options,
        progress=progress,
    )


def run_method(context: Context) -> NodeEffects:
    """Runs the method that a context names.

    Raises:
        UnknownNameError: There is no such method.
        InputError: An option that it does not have.
    """
    method, options = find_method(context.method, context.options)
    context.options = asdict(options)
    return method(context, options)


def find_method(name: str, given: Mapping[str, Any]) -> tuple[Method, Any]:
    """Returns a method and its options, those that are not given at their defaults.

    Raises:
        UnknownNameError: There is no such method.
        InputError: An option that it does not have.
    """
    method: Method = registry.get("methods", name)()
    known = [f.name for f in fields(method.Options)]
    for option in given:
        if option not in known:
            raise InputError(f"The method {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}.")
    return method, method.Options(**given)
