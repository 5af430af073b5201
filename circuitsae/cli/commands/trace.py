"""`circuitsae trace`: from a prompt and an answer to a circuit."""

import argparse

from circuitsae.cli import circuits, labelling, models, options
from circuitsae.cli.output import Console

DESCRIPTION = """\
Traces the circuit behind a model's answer: which dictionary features act on it and on each other, and by how much.

An effect is the change of the metric when a node is set to its baseline. It is predicted for every node and, for the
strongest, also measured, by really ablating each. --method attribution-patching only predicts, in one backward pass.
"""

EXAMPLES = """\
examples:
  circuitsae trace "When Mary and John went to the store, John gave a drink to" --answer " Mary" --foil " John"
  circuitsae trace "The keys to the cabinet" --answer " are" --foil " is" --measure 16 -o keys.json --html keys.html
  circuitsae trace "The keys to the cabinet" --patch "The key to the cabinet" --answer " are" --foil " is"
  circuitsae trace "The keys to the cabinet" --answer " are" --estimate
  circuitsae trace "The keys to the cabinet" --answer " are" --preset tiny-transcoders --compat circuit-tracer --prune influence
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    options.add_task(parser)
    options.add_model(parser)
    options.add_attribution(parser)
    options.add_graph(parser)
    result = circuits.add_result(parser)
    result.add_argument(
        "--group",
        action="store_true",
        help="group features that do the same job, and measure each group by ablating it as one",
    )
    options.add_estimate(result)


def run(args: argparse.Namespace, console: Console) -> None:
    """Traces, writes, shows."""
    options.check_question(args)
    outputs = circuits.outputs_of(args)
    settings = options.attribution_settings(args) | options.graph_settings(args)
    models.start_torch(args)
    task = options.task_of(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        if args.estimate:
            console.cost(circuitsae.estimate(spliced, task, **settings))
            return
        circuit = circuitsae.trace(spliced, task, progress=progress, **settings)
        if args.group:
            labelling.label(circuit, args.labels, spliced.preset, console, spliced.dictionaries)
            circuit = circuitsae.measure_groups(spliced, task, circuitsae.group(circuit), progress=progress)
    circuits.give(circuit, args, outputs, spliced.preset, spliced.dictionaries, console)
