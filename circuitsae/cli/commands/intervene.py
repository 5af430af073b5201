"""`circuitsae intervene`: change nodes for real, and see what becomes of the answer."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from circuitsae.cli import models, options
from circuitsae.cli.output import Console, number, percent, quoted, table
from circuitsae.errors import InputError

if TYPE_CHECKING:
    from circuitsae.graph.circuit import Circuit
    from circuitsae.interventions import InterventionResult

DESCRIPTION = """\
Runs the model with some nodes changed: what the metric and the next token are before and after.

A node is SITE/INDEX@POSITION, such as blocks.17.hook_resid_post/421@9, or SITE/error@POSITION; @* is every position.
With --circuit FILE the question and the model are those of a saved circuit, and what its nodes predicted is shown too.
"""

EXAMPLES = """\
examples:
  circuitsae intervene --circuit circuit.json --ablate blocks.17.hook_resid_post/421@9
  circuitsae intervene "The keys to the cabinet" --answer " are" --foil " is" \\
    --scale "blocks.7.hook_resid_post/12@2=2" --set "blocks.12.hook_resid_post/error@*=0"
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    options.add_task(parser, optional=True)
    edits = parser.add_argument_group("edits (each repeatable, all done at once)")
    edits.add_argument("--ablate", action="append", default=[], metavar="NODE", help="set to the baseline")
    edits.add_argument("--scale", action="append", default=[], metavar="NODE=BY", help="multiply: 2 doubles")
    edits.add_argument("--add", action="append", default=[], metavar="NODE=VALUE", help="add to the activation")
    edits.add_argument("--set", action="append", default=[], metavar="NODE=VALUE", help="set the activation")
    edits.add_argument(
        "--errors", default="live", metavar="NAME", help="error nodes: live (recomputed, default) or frozen"
    )
    edits.add_argument("--circuit", metavar="FILE", help="take question and model from a saved circuit")
    options.add_model(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Intervenes, shows."""
    given = {
        "Ablate": [(node,) for node in args.ablate],
        "Scale": [_node_and_value(text, "--scale") for text in args.scale],
        "Add": [_node_and_value(text, "--add") for text in args.add],
        "Set": [_node_and_value(text, "--set") for text in args.set],
    }
    if not any(given.values()):
        raise InputError("No edit was given; expected --ablate NODE, or --scale, --add or --set NODE=VALUE.")
    circuit = _circuit(args.circuit)
    if circuit is not None:
        options.take_question(args, circuit.graph.graph)
    models.start_torch(args)
    task = options.task_of(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        edits = [getattr(circuitsae, name)(*edit) for name, several in given.items() for edit in several]
        result = circuitsae.intervene(spliced, task, edits, errors=args.errors, circuit=circuit)
    if console.as_json:
        console.json(_as_dict(result))
    else:
        _show(result, circuit, [edit[0] for several in given.values() for edit in several], console, args.top)


def _circuit(path: str | None) -> "Circuit | None":
    if path is None:
        return None
    from circuitsae.graph.circuit import Circuit

    return Circuit.load(path)


def _node_and_value(text: str, flag: str) -> tuple[str, float]:
    node, equals, value = text.rpartition("=")
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not equals or not math.isfinite(found):
        raise InputError(f"{flag} {text!r} can't be read; expected NODE=VALUE, such as blocks.3.hook_mlp_out/17@5=2.")
    return node, found


def _as_dict(result: "InterventionResult") -> dict[str, Any]:
    return {
        "metric_before": result.metric_before,
        "metric_after": result.metric_after,
        "effect": result.effect,
        "kl": result.kl,
        "top_tokens_before": result.top_tokens_before(),
        "top_tokens": result.top_tokens(),
        "activations": dict(result.activations),
    }


def _show(
    result: "InterventionResult", circuit: "Circuit | None", edited: list[str], console: Console, top: int
) -> None:
    console.heading(
        f"metric {number(result.metric_before)} → {number(result.metric_after)}, "
        f"effect {number(result.effect, signed=True)}, KL {number(result.kl)} nats"
    )
    if circuit is not None and all(node in circuit and "effect" in circuit[node] for node in edited):
        predicted = sum(circuit[node]["effect"] for node in edited)
        console.print(
            f"the circuit predicts {number(predicted, signed=True)} for ablating {'it' if len(edited) == 1 else 'them'}"
        )
    console.print()
    after, before = dict(result.top_tokens()), dict(result.top_tokens_before())
    tokens = sorted({**before, **after}, key=lambda token: -max(before.get(token, 0.0), after.get(token, 0.0)))
    rows = [
        (quoted(t), percent(before[t]) if t in before else "", percent(after[t]) if t in after else "")
        for t in tokens[:top]
    ]
    for line in table(("next token", "before", "after"), rows, "lrr", console.width):
        console.print(line)
