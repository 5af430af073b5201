"""Interventions on a circuit that is on the screen: its clean run is kept, so that each costs one partial pass."""

import math
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from circuitsae import interventions, names
from circuitsae.attribution.effects import make_context
from circuitsae.attribution.exact import ablating_edit, measure
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import shown
from circuitsae.interventions.freezing import frozen_hooks
from circuitsae.model.edits import run_edited
from circuitsae.model.masks import FeatureMask, Masks, VectorMask, run_masked
from circuitsae.model.runs import Readout, forward
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.task.task import Task

if TYPE_CHECKING:
    from circuitsae.attribution.effects import Context

WAYS = {"errors": ("live", "frozen"), "attention": ("free", "frozen")}
OPERATIONS = ("ablate", "scale", "set", "add")
MAX_EDITS = 500
LARGEST = 1e30  # what float32 holds, with some room to compute in
TOKENS = 8


def read_edits(given: Any) -> list[interventions.Intervention]:
    """Returns interventions from plain data: `{"key": ..., "op": "ablate" | "scale" | "set" | "add", "value": ...}`.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(given, Sequence) or isinstance(given, str | bytes) or len(given) > MAX_EDITS:
        raise InputError(f"Interventions come as a list of at most {MAX_EDITS}.")
    edits: list[interventions.Intervention] = []
    for one in given:
        if not isinstance(one, dict) or not isinstance(one.get("key"), str):
            raise InputError(f"{shown(one)} is no intervention; expected key, op and value.")
        key, op, value = one["key"], one.get("op", "ablate"), one.get("value")
        if op not in OPERATIONS:
            raise UnknownNameError("intervention", op, OPERATIONS)
        if op == "ablate":
            edits.append(interventions.Ablate(key))
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
            raise InputError(
                f"{op} needs a number, at most {LARGEST:.0e}; it was given {shown(value)} for {shown(key)}."
            )
        made = {"scale": interventions.Scale, "set": interventions.Set, "add": interventions.Add}[op]
        edits.append(made(key, float(value)))
    return edits


class Measured:
    """A circuit's prompt, run once and taken apart."""

    def __init__(
        self, spliced: SplicedModel, task: Task, keys: Sequence[str] = (), circuit: Circuit | None = None
    ) -> None:
        baseline = None if circuit is None else circuit.graph.graph.get("baseline")
        self._baseline = baseline if baseline in ("zero", "patch") else None
        self.context: Context = make_context(spliced, task, method="ablation", baseline=self._baseline)
        self.spliced, self.task = spliced, task
        self.keys = list(keys)
        kinds = [] if circuit is None else circuit.graph.nodes(data="kind")
        self._valued = [key for key, kind in kinds if kind in ("feature", "error", "token")]

    def intervene(self, edits: Any, options: dict[str, Any]) -> dict[str, Any]:
        """Sets nodes to other values, all at once, and returns what that changes, JSON-able."""
        errors = options.get("errors", "live")
        if errors not in WAYS["errors"]:
            raise UnknownNameError("way to treat errors", errors, WAYS["errors"])
        context = self.context
        extra = self._frozen(options.get("attention", "free"))
        given = read_edits(edits)
        compiled = [e for one in given for e in interventions.compile_edits(context, one, extra=extra)]
        edited = run_edited(
            context.spliced,
            context.run,
            context.readout,
            compiled,
            1,
            errors_frozen=errors == "frozen",
            extra=extra,
            want_values=True,
        )
        result = interventions.result_of(context, edited, 0, self._valued)
        before, after = result.activations_before, result.activations
        return {
            "metric_before": result.metric_before,
            "metric_after": result.metric_after,
            "kl": result.kl,
            "before": [_short(before.get(key)) for key in self.keys],
            "after": [_short(after.get(key)) for key in self.keys],
            "next": _next_tokens(result),
        }

    def _frozen(self, attention: Any) -> list[Any]:
        """Returns the hooks that hold attention patterns at the clean run's, made at first use."""
        if attention not in WAYS["attention"]:
            raise UnknownNameError("way to treat attention", attention, WAYS["attention"])
        if attention == "free":
            return []
        return frozen_hooks(self.context, attention="frozen", normalisation="free")

    def effects(self, keys: Sequence[str], progress: Progress) -> Iterator[dict[str, float]]:
        """Yields the measured effects of ablating nodes one at a time, a few at once."""
        keys = [str(key) for key in keys][:2000]
        edits = [ablating_edit(self.context, key) for key in keys]
        done = 0
        # Nodes of one layer share the run below it: batches follow the model.
        order = sorted(range(len(keys)), key=lambda n: names.sort_key(keys[n]))
        while done < len(order):
            report(progress, done, len(order), "nodes measured")
            part = order[done : done + 8]
            values = measure(self.context, [edits[n] for n in part]).tolist()
            yield {keys[n]: value for n, value in zip(part, values, strict=True)}
            done += len(part)

    def faithfulness(
        self, keys: Sequence[str], random_sets: int, progress: Progress, *, errors: bool
    ) -> dict[str, Any]:
        """Returns `(m(C) - m(empty)) / (m(full) - m(empty))` of a set of nodes and of random sets of as many.

        `m(C)` is the metric with every other node set to its baseline: the active features, and the error nodes too
        unless `errors` says that these are kept.
        """
        context = self.context
        pool = self._pool(errors)
        chosen = [key for key in dict.fromkeys(keys) if key in pool]
        if not chosen:
            raise InputError(
                "None of the pinned nodes can be set to a baseline; pin features, or error nodes with errors ablated too."
            )
        draw = random.Random(0)
        features, others = (
            [k for k in pool if (names.parse(k).kind == "feature") is wanted] for wanted in (True, False)
        )
        n_features = sum(names.parse(key).kind == "feature" for key in chosen)
        sets = [chosen, []]
        for _ in range(random_sets):
            sets.append(draw.sample(features, n_features) + draw.sample(others, len(chosen) - n_features))
        values: list[float] = []
        for number, kept in enumerate(sets):
            report(progress, number, len(sets), "sets of nodes run")
            values.append(self._metric(set(kept), errors))
        full, empty = context.run.metric, values[1]
        assert full is not None
        span = full - empty
        share = [(v - empty) / span if abs(span) > 1e-9 else None for v in (values[0], *values[2:])]
        return {
            "size": len(chosen),
            "pool": len(pool),
            "full": full,
            "empty": empty,
            "metric": values[0],
            "faithfulness": share[0],
            "random": share[1:],
            "errors": errors,
        }

    def _pool(self, errors: bool) -> list[str]:
        """Returns the keys of the nodes that a set may hold or leave out."""
        context = self.context
        found = [key for number in range(len(context.nodes)) for key in self._features(number)]
        if errors:
            found += [names.error(hook, p) for hook, site in context.run.sites.items() for p in site.kept.tolist()]
        return found

    def _features(self, number: int) -> list[str]:
        nodes, site = self.context.nodes[number], self.context.spliced.sites[number]
        places = zip(nodes.positions.tolist(), nodes.indices.tolist(), strict=True)
        return [names.feature(site, index, position) for position, index in places]

    def _metric(self, kept: set[str], errors: bool) -> float:
        """Returns the metric with all nodes at their baselines but those that are kept, which stay live."""
        context, device = self.context, self.spliced.device
        none = torch.zeros(1, dtype=torch.bool, device=device)
        features: dict[int, FeatureMask] = {}
        for number, nodes in enumerate(context.nodes):
            inside = torch.tensor([[key in kept for key in self._features(number)]], dtype=torch.bool, device=device)
            features[number] = FeatureMask(nodes.positions, nodes.indices, inside, nodes.baselines, none)
        vectors: dict[str, VectorMask] = {}
        for hook in context.spliced.written if errors else ():
            applied = set(context.run.sites[hook].kept.tolist())
            here = [p not in applied or names.error(hook, p) in kept for p in range(context.run.n_tokens)]
            base = context.baseline.errors
            vectors[hook] = VectorMask(
                torch.tensor([here], dtype=torch.bool, device=device), None if base is None else base[hook]
            )
        edited = run_masked(context.spliced, context.run, context.readout, Masks(features, vectors), 1)
        return float(context.readout.of(edited.captured)[0])

    def continuation(self, edits: Any, options: dict[str, Any], progress: Progress, length: int = 12) -> dict[str, Any]:
        """Returns the likeliest continuation, token by token, without and with the edits held."""
        given = read_edits(edits)
        if "frozen" in (options.get("errors"), options.get("attention")):
            raise InputError("The model writes on with nothing frozen: what is frozen has values for the prompt only.")
        made = interventions.generate(
            self.spliced, self.task, given, max_new_tokens=length, baseline=self._baseline, progress=progress
        )
        return {"before": list(made.before[0].strings), "after": list(made.after[0].strings)}


def likeliest(spliced: SplicedModel, prompt: str) -> str:
    """Returns the token that the model would write next."""
    ids = spliced.vocabulary.encode(prompt)
    with torch.no_grad():
        captured = forward(spliced, torch.tensor([ids], device=spliced.device), Readout(None, len(ids)))
    assert captured.logits is not None
    return spliced.vocabulary.string(int(captured.logits[0, -1].argmax()))


def _next_tokens(result: interventions.InterventionResult) -> list[list[Any]]:
    """Returns the likeliest next tokens of both runs as rows: text, probability before, probability after."""
    before, after = result.logits_before.float().softmax(-1), result.logits_after.float().softmax(-1)
    k = min(TOKENS, len(before))
    top = dict.fromkeys([*before.topk(k).indices.tolist(), *after.topk(k).indices.tolist()])
    rows = [[result.vocabulary.string(t), _short(float(before[t])), _short(float(after[t]))] for t in top]
    return sorted(rows, key=lambda row: -max(row[1], row[2]))


def _short(value: float | None) -> Any:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
