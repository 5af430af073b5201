"""One task on one model, run once: what every number about it goes through."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TypeVar, Unpack

from circuitsae.attribution.effects import Context, NodeEffects, Progress, make_context, run_method
from circuitsae.attribution.exact import measure_nodes
from circuitsae.errors import InputError
from circuitsae.evaluation.faithfulness import Faithfulness, faithfulness_in
from circuitsae.evaluation.measuring import Errors
from circuitsae.graph.circuit import Circuit
from circuitsae.interventions import Generation, Intervention, InterventionResult, generate_in, intervene_in
from circuitsae.interventions.generation import Sampling
from circuitsae.interventions.intervening import Settings
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.task import Task
from circuitsae.tracing.estimates import Estimate, estimate_in
from circuitsae.tracing.options import CONTEXT, TraceOptions, of_compat
from circuitsae.tracing.steps import options_of, trace_in

_T = TypeVar("_T")

MEMORY = 2**30
"""Bytes that a session keeps by default."""


class Session:
    """One task on one model: whatever is asked about it shares one clean run, baseline, nodes, keys and values.

    Each is made when first needed, on a model on which the splice is known to hold at these sites, and kept for the next
    question. `node_effects`, `trace`, `intervene`, `estimate` ask one question of a session of their own and give the
    same numbers; a session asks many for the price of one clean run. The model itself is left as it is.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt, metric and perhaps a patch prompt.
        baseline: What nodes are set to: `"zero"`, `"patch"` (the default when the task has a patch prompt) or `"mean"`.
        sites: Some of the sites; all when `None`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.
        reference: Prompts that the `"mean"` baseline is taken over.
        memory: How many bytes to keep between questions. Above it decoder rows are given back, then everything: what is
            asked for later is computed again.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such site.
        InputError: A value of the wrong kind.

    Example:
        >>> import circuitsae as cs
        >>> task = cs.Task("The keys to the cabinet", metric=cs.LogitDiff(" are", " is"))
        >>> session = cs.Session(cs.load("tiny"), task)
        >>> circuit = session.trace(max_nodes=8)
        >>> strongest = circuit.strongest(1)[0]
        >>> measured = session.measure([strongest])[strongest]
        >>> abs(session.intervene([cs.Ablate(strongest)]).effect - measured) < 1e-4
        True
        >>> session.passes["backward"]
        2.0
    """

    def __init__(
        self,
        spliced: SplicedModel,
        task: Task,
        *,
        baseline: str | None = None,
        sites: Sequence[str] | None = None,
        skip_positions: Sequence[int] | None = None,
        reference: Sequence[str | Sequence[int]] | None = None,
        memory: int = MEMORY,
    ) -> None:
        if not isinstance(spliced, SplicedModel):
            raise InputError(f"A {type(spliced).__name__} was given for the model; expected a SplicedModel, from load.")
        self.memory = memory
        self.context: Context = make_context(
            spliced, task, baseline=baseline, sites=sites, skip_positions=skip_positions, reference=reference
        )

    def __repr__(self) -> str:
        context = self.context
        return f"Session({context.spliced.name}, {len(context.task.tokens)} tokens, baseline {context.baseline_name})"

    @property
    def spliced(self) -> SplicedModel:
        """The model, with the sites and skipped positions that were asked for."""
        return self.context.spliced

    @property
    def metric(self) -> float:
        """The metric on the clean run."""
        return self.context.metric

    @property
    def passes(self) -> dict[str, float]:
        """Forward and backward passes over the prompt so far."""
        return dict(self.context.passes)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept at present."""
        return self.context.nbytes

    @in_own_mode
    def effects(
        self,
        method: str = "auto",
        *,
        gradient: str = "pass-through",
        progress: Progress | None = None,
        **options: Any,
    ) -> NodeEffects:
        """Returns by how much the metric changes when each node is set to its baseline; see `node_effects`.

        Raises:
            UnknownNameError: No such method or gradient.
            InputError: An option that the method does not have.
        """
        found = run_method(self.context.asking(method, gradient=gradient, options=options, progress=progress))
        return self._trimmed(found)

    @in_own_mode
    def trace(self, *, progress: Progress | None = None, **options: Any) -> Circuit:
        """Returns the circuit behind the metric; see `trace` for the options that are not the session's own.

        Raises:
            UnknownNameError: No such method, gradient, linearisation, kind of targets, pruner or `compat`.
            InputError: An option out of range, or one that was settled when the session was opened.
        """
        asked = self._trace_options(options)
        return self._trimmed(trace_in(self.context.asking(asked.method, progress=progress), asked))

    @in_own_mode
    def estimate(self, *, graph: bool = True, **options: Any) -> Estimate:
        """Returns what `trace` with these options would cost by itself; with `graph=False`, what `effects` would.

        Raises:
            UnknownNameError, InputError: As for `trace`.
        """
        return self._trimmed(estimate_in(self.context, self._trace_options(options), graph=graph))

    def intervene(self, edits: Sequence[Intervention], **settings: Unpack[Settings]) -> InterventionResult:
        """Runs the prompt with nodes set to other values, all at once; see `intervene`.

        Raises:
            NodeError: A key does not parse, or names no node of this model and prompt.
            InputError: A value of the wrong kind.
        """
        return self.intervene_many([edits], **settings)[0]

    @in_own_mode
    def intervene_many(
        self,
        choices: Sequence[Sequence[Intervention]],
        *,
        progress: Progress | None = None,
        **settings: Unpack[Settings],
    ) -> list[InterventionResult]:
        """Runs the prompt once for each choice of edits; see `intervene_many`.

        Raises:
            NodeError: A key does not parse, or names no node of this model and prompt.
            InputError: A value of the wrong kind.
            CancelledError: `progress` said so.
        """
        return self._trimmed(intervene_in(self.context.asking("ablation", progress=progress), choices, **settings))

    @in_own_mode
    def generate(
        self, edits: Sequence[Intervention], *, progress: Progress | None = None, **sampling: Unpack[Sampling]
    ) -> Generation:
        """Lets the model continue the prompt, as it is and with nodes set to other values; see `generate`.

        Raises:
            NodeError: A key names no node of this model and prompt.
            InputError: A number out of range, or an edit of a path.
            TaskError: Prompt and continuation are longer than the model's context window.
        """
        return self._trimmed(generate_in(self.context.asking("ablation", progress=progress), edits, **sampling))

    @in_own_mode
    def measure(self, nodes: Iterable[str], *, progress: Progress | None = None) -> dict[str, float]:
        """Returns the measured effect of setting each node to its baseline, one at a time, by key.

        Cost: a forward pass a node, from its layer and position on, in batches.

        Raises:
            NodeError: A key is not that of a feature, error or token node of this model and prompt.
            CancelledError: `progress` said so.
        """
        keys = list(dict.fromkeys(nodes))
        found = measure_nodes(self.context.asking("ablation", progress=progress), keys)
        return self._trimmed(dict(zip(keys, found, strict=True)))

    @in_own_mode
    def faithfulness(
        self,
        nodes: Circuit | Iterable[str],
        *,
        errors: Errors = "default",
        n_random: int = 0,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Faithfulness:
        """Returns what a set of nodes is worth with all others at their baselines, and random sets beside it.

        Args:
            nodes: A circuit, or keys of nodes.
            errors: Error nodes are nodes like others (`"default"`), are all kept (`"keep"`), or never (`"remove"`).
            n_random: How many random sets, of as many features and error nodes, are measured.
            seed: Of the random sets.
            progress: Called with sets done, their number and a word; returning `False` cancels.

        Raises:
            NodeError: A key names no node of this model and prompt.
            InputError: None of the nodes can be set to a baseline.
        """
        keys = list(nodes) if not isinstance(nodes, Circuit) else [*nodes.features, *nodes.errors]
        context = self.context.asking("ablation", progress=progress)
        return self._trimmed(faithfulness_in(context, keys, errors=errors, n_random=n_random, seed=seed))

    def forget(self) -> None:
        """Gives back all that has been computed; what is asked for later is computed again."""
        self.context.forget()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.forget()

    def _trace_options(self, given: dict[str, Any]) -> TraceOptions:
        for name in CONTEXT:
            if name in given:
                raise InputError(f"{name!r} is settled when a session is opened: Session(spliced, task, {name}=...).")
        named, spliced = of_compat(given), self.spliced
        if named:
            wanted = {"baseline": named.get("baseline"), "skip_positions": list(named.get("skip_positions", ()))}
            here = {"baseline": self.context.baseline_name, "skip_positions": list(spliced.skip_positions)}
            if wanted != here or spliced.skip_sinks is not None:
                raise InputError(
                    f"compat={given['compat']!r} takes the baseline {wanted['baseline']!r} and dictionaries at every "
                    f"position; open the session with baseline={wanted['baseline']!r} on spliced.skipping([], sinks=False)."
                )
        return options_of(given)

    def _trimmed(self, found: _T) -> _T:
        """Gives back what exceeds the memory, and returns what was found."""
        if self.context.nbytes > self.memory:
            self.context.forget_rows()
        if self.context.nbytes > self.memory:
            self.context.forget()
        return found
