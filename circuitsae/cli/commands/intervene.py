"""`circuitsae intervene`: change nodes for real, and see what becomes of the answer."""

import argparse
from typing import TYPE_CHECKING, Any

from circuitsae.cli import editing, models, options
from circuitsae.cli.output import Console, number, percent, quoted, table
from circuitsae.errors import InputError

if TYPE_CHECKING:
    from circuitsae.graph.circuit import Circuit
    from circuitsae.interventions import InterventionResult

DESCRIPTION = """\
Runs the model with some nodes changed: what the metric and the next token are before and after.

A node is SITE/INDEX@POSITION, such as blocks.17.hook_resid_post/421@9, SITE/error@POSITION or token@POSITION; @-1 is the
last position, @2:5 a slice and @* every position. --through lets the edits act by way of some receivers only: features,
inputs of attention heads (blocks.7.hook_v_input/3@9), or metric.
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
    edits = editing.add_edits(parser)
    edits.add_argument(
        "--errors", default="live", metavar="NAME", help="error nodes: live (recomputed, default) or frozen"
    )
    edits.add_argument(
        "--attention", default="free", metavar="NAME", help="attention patterns: free (default) or frozen"
    )
    edits.add_argument(
        "--normalisation", default="free", metavar="NAME", help="scales of norms: free (default) or frozen"
    )
    edits.add_argument(
        "--direct-only", action="store_true", help="hold all other dictionary nodes: what the edges out of the nodes do"
    )
    edits.add_argument(
        "--through",
        action="append",
        default=[],
        metavar="RECEIVER",
        help="let the edits act through these only; repeatable",
    )
    edits.add_argument(
        "--along",
        default="nodes",
        metavar="NAME",
        help="what carries an edit to its receivers: nodes (all but dictionary nodes, default) or residual (the stream alone)",
    )
    edits.add_argument("--circuit", metavar="FILE", help="take question and model from a saved circuit")
    options.add_model(parser)
    result = parser.add_argument_group("result")
    result.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Intervenes, shows."""
    if not editing.any_edit(args):
        raise InputError("No edit was given; expected --ablate NODE, or --scale, --add or --set NODE=VALUE.")
    edits = editing.edits_of(args)
    circuit = _circuit(args.circuit)
    if circuit is not None:
        options.take_question(args, circuit.graph.graph)
    models.start_torch(args)
    task = options.task_of(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        if args.through:
            edits = [circuitsae.PathPatch(edit, args.through, args.along) for edit in edits]
        result = circuitsae.intervene(
            spliced,
            task,
            edits,
            errors=args.errors,
            attention=args.attention,
            normalisation=args.normalisation,
            direct_only=args.direct_only,
            circuit=circuit,
        )
    if console.as_json:
        console.json(_as_dict(result))
    else:
        _show(result, circuit, [edit.node for edit in edits], console, args.top)


def _circuit(path: str | None) -> "Circuit | None":
    if path is None:
        return None
    from circuitsae.graph.circuit import Circuit

    return Circuit.load(path)


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
