"""What the app computes: one table of operations, each a function of a session and of its own typed arguments.

A row here and a pane in the browser are all that a new computing panel takes: the page's events, the ones who compute on
another process's GPU and the named endpoints go through the table. Plain data goes in and comes out.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from circuitsae import interventions, names
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import shown
from circuitsae.progress import Progress, report
from gradio_app.forms import Form, one_token

if TYPE_CHECKING:
    from circuitsae.session import Session

EDITS = {"scale": interventions.Scale, "set": interventions.Set, "add": interventions.Add}
MAX_EDITS = 500
LARGEST = 1e30  # what float32 holds, with some room to compute in
MAX_NODES = 2000
TOKENS = 8
TOGETHER = 8
RANDOM_SETS = 5
LENGTH = 12

Errors = Literal["live", "frozen"]
Attention = Literal["free", "frozen"]


@dataclass(frozen=True)
class Asked:
    """What an operation is about, as plain data: what was asked in the form, and a circuit that came of it.

    Attributes:
        form: What was asked.
        keys: The circuit's nodes, in the order in which their values are wanted.
        baseline: What the circuit's effects are against; what the form says when `None`.
        fingerprints: Of the dictionaries that the circuit was traced with; any when empty.
    """

    form: Form
    keys: tuple[str, ...] = ()
    baseline: str | None = None
    fingerprints: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Traced:
    """`predicted`: whether the method `auto` only predicts, for a page that has the strongest nodes measured afterwards."""

    predicted: bool = False


@dataclass(frozen=True)
class Edited:
    """Nodes set to other values, all at once."""

    edits: list[Any]
    errors: Errors = "live"
    attention: Attention = "free"


@dataclass(frozen=True)
class Nodes:
    """Some nodes, each by itself."""

    keys: list[Any]


@dataclass(frozen=True)
class NodeSet:
    """Some nodes as a set; `errors`: whether error nodes are ablated outside it."""

    keys: list[Any]
    errors: bool = False


@dataclass(frozen=True)
class Top:
    """How many nodes are wanted."""

    top: int = 30


def trace(session: "Session", asked: Asked, arguments: Traced, progress: Progress) -> Circuit:
    """Returns the circuit that a form asks for."""
    progress(0, 0, "Tracing")
    options = asked.form.options()
    if arguments.predicted and options["method"] == "auto":
        options["method"] = "attribution-patching"
    return session.trace(progress=progress, **options)


def effects(session: "Session", asked: Asked, arguments: Top, progress: Progress) -> list[dict[str, Any]]:
    """Returns the nodes that move the metric most, as records."""
    if not 1 <= arguments.top <= 10_000:
        raise InputError(f"top is {arguments.top}; expected 1 to 10000.")
    found = session.effects(asked.form.method, progress=progress)
    return found.strongest(arguments.top, kinds=("feature", "error"))


def intervene(session: "Session", asked: Asked, arguments: Edited, progress: Progress) -> dict[str, Any]:
    """Sets nodes to other values and returns the metric, the next tokens and the nodes' values, before and after."""
    valued = [key for key in asked.keys if names.parse(key).kind in ("feature", "error", "token")]
    result = session.intervene(
        read_edits(arguments.edits), errors=arguments.errors, attention=arguments.attention, nodes=valued
    )
    before, after = result.activations_before, result.activations
    return {
        "metric_before": result.metric_before,
        "metric_after": result.metric_after,
        "kl": result.kl,
        "before": [_short(before.get(key)) for key in asked.keys],
        "after": [_short(after.get(key)) for key in asked.keys],
        "next": _next_tokens(result, asked.form),
    }


def measure(session: "Session", asked: Asked, arguments: Nodes, progress: Progress) -> Iterator[dict[str, Any]]:
    """Yields the measured effects of ablating nodes one at a time, a few at once, and how many are done."""
    # Nodes of one layer share the run below it: batches follow the model.
    keys = sorted((str(key) for key in arguments.keys[:MAX_NODES]), key=names.sort_key)
    yield {"done": 0, "total": len(keys), "values": {}}
    for start in range(0, len(keys), TOGETHER):
        report(progress, start, len(keys), "nodes measured")
        found = session.measure(keys[start : start + TOGETHER])
        yield {"done": min(start + TOGETHER, len(keys)), "total": len(keys), "values": found}


def faithfulness(session: "Session", asked: Asked, arguments: NodeSet, progress: Progress) -> dict[str, Any]:
    """Returns the faithfulness of a set of nodes, and of random sets of as many."""
    keys = [str(key) for key in arguments.keys]
    found = session.faithfulness(
        keys, errors="default" if arguments.errors else "keep", n_random=RANDOM_SETS, progress=progress
    )
    shown = ("size", "pool", "full", "empty", "metric", "faithfulness", "completeness")
    return {
        **{name: getattr(found, name) for name in shown},
        "random": list(found.random_faithfulness),
        "errors": arguments.errors,
    }


def continuation(session: "Session", asked: Asked, arguments: Edited, progress: Progress) -> dict[str, Any]:
    """Returns the likeliest continuation, token by token, without and with the edits held."""
    if "frozen" in (arguments.errors, arguments.attention):
        raise InputError("The model writes on with nothing frozen: what is frozen has values for the prompt only.")
    made = session.generate(read_edits(arguments.edits), max_new_tokens=LENGTH, progress=progress)
    return {"before": list(made.before[0].strings), "after": list(made.after[0].strings)}


@dataclass(frozen=True)
class Operation:
    """A row of the table.

    Attributes:
        compute: The function: session, what it is about, arguments, progress. A generator's parts are shown as they come.
        arguments: The type of its arguments, a frozen dataclass.
        to: The property of the page's view that answers go to; `None` for an operation that no pane asks for by event.
    """

    compute: Callable[["Session", Asked, Any, Progress], Any]
    arguments: type
    to: str | None = None

    @property
    def streams(self) -> bool:
        """Whether it yields its answer part by part."""
        return inspect.isgeneratorfunction(self.compute)


OPERATIONS: Mapping[str, Operation] = {
    "trace": Operation(trace, Traced),
    "effects": Operation(effects, Top),
    "intervene": Operation(intervene, Edited, "overlay"),
    "measure": Operation(measure, Nodes, "measured"),
    "faithfulness": Operation(faithfulness, NodeSet, "answer"),
    "continuation": Operation(continuation, Edited, "answer"),
}


def read_arguments(kind: type, given: Mapping[str, Any]) -> Any:
    """Returns an operation's arguments from plain data, perhaps a stranger's; keys that are no argument are left out.

    Raises:
        InputError: One is missing or of another type, or a list is too long.
        UnknownNameError: One is none of the names that it may be.
    """
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in given and given[field.name] is not None:
            values[field.name] = _read(field.name, types[field.name], given[field.name])
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"An argument is missing: {str(error).rpartition(': ')[2]}.") from None


def _read(name: str, wanted: Any, value: Any) -> Any:
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise UnknownNameError(f"way to treat {name}", _name(value), get_args(wanted))
        return value
    plain: Any = get_origin(wanted) or wanted
    assert not isinstance(plain, types.UnionType)
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise InputError(f"{name!r} is {shown(value)}; expected {_KINDS[plain]}.")
    return value


def _name(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


_KINDS = {list: "a list", bool: "true or false", int: "a whole number", str: "text"}


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
        if op == "ablate":
            edits.append(interventions.Ablate(key))
            continue
        if not isinstance(op, str) or op not in EDITS:
            raise UnknownNameError("intervention", _name(op), ("ablate", *EDITS))
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= LARGEST:
            raise InputError(
                f"{op} needs a number, at most {LARGEST:.0e}; it was given {shown(value)} for {shown(key)}."
            )
        edits.append(EDITS[op](key, float(value)))
    return edits


def _next_tokens(result: "interventions.InterventionResult", form: Form) -> list[list[Any]]:
    """Returns next tokens as rows: text, probability before, after, logit before, after, role in the question.

    They are the likeliest of both runs and, whatever their rank, the answer and the foil.
    """
    logits = [result.logits_before.float(), result.logits_after.float()]
    likely = [one.softmax(-1) for one in logits]
    k = min(TOKENS, len(likely[0]))
    roles: dict[int, str] = {}
    for role, text in (("answer", form.answer), ("foil", form.foil)):
        if text:
            roles[result.vocabulary.token_id(one_token(text, result.vocabulary, role))] = role
    top = dict.fromkeys([*roles, *likely[0].topk(k).indices.tolist(), *likely[1].topk(k).indices.tolist()])
    rows = [
        [result.vocabulary.string(t), *(_short(float(one[t])) for one in (*likely, *logits)), roles.get(t, "")]
        for t in top
    ]
    return sorted(rows, key=lambda row: -max(row[1], row[2]))


def _short(value: float | None) -> Any:
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
