"""`circuitsae trace`: from a prompt and an answer to a circuit."""

import argparse

from circuitsae.cli import labelling, models, options
from circuitsae.cli.output import Console

DESCRIPTION = """\
Traces the circuit behind a model's answer: which dictionary features act on it and on each other, and by how much.

An effect is the change of the metric when a node is set to its baseline. It is predicted for every node from one
backward pass and, for the --measure N strongest, also measured, by really ablating each.
"""

EXAMPLES = """\
examples:
  circuitsae trace "When Mary and John went to the store, John gave a drink to" --answer " Mary" --foil " John"
  circuitsae trace "The keys to the cabinet" --answer " are" --foil " is" --measure 16 -o keys.json --html keys.html
  circuitsae trace "The keys to the cabinet" --patch "The key to the cabinet" --answer " are" --foil " is"
  circuitsae trace "The keys to the cabinet" --answer " are" --method auto --measure 16 --estimate
  circuitsae trace "The keys to the cabinet" --answer " are" --preset tiny-transcoders --compat circuit-tracer --prune influence
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    options.add_task(parser)
    options.add_model(parser)
    options.add_attribution(parser)
    graph = parser.add_argument_group("graph")
    graph.add_argument(
        "--linearisation", default="gradient", metavar="NAME", help="of edges: gradient (default) or frozen"
    )
    graph.add_argument(
        "--targets", default="metric", metavar="NAME", help="at the top: metric (default), or the next tokens' logits"
    )
    graph.add_argument(
        "--logit-share",
        type=float,
        default=0.95,
        metavar="P",
        help="of logits: those that hold this probability (%(default)s)",
    )
    graph.add_argument(
        "--max-logits", type=options.positive, default=10, metavar="N", help="of logits: at most so many (%(default)s)"
    )
    graph.add_argument("--error-targets", action="store_true", help="edges to error nodes, too")
    graph.add_argument(
        "--max-nodes", type=options.positive, default=256, metavar="N", help="features kept at most (%(default)s)"
    )
    graph.add_argument(
        "--node-threshold", type=float, metavar="X", help="least |effect| of a node; a share where the pruner says so"
    )
    graph.add_argument(
        "--edge-threshold", type=float, metavar="X", help="least |weight| of an edge; a share where the pruner says so"
    )
    graph.add_argument(
        "--prune",
        default="top-k",
        metavar="NAME",
        help="top-k (default), threshold, influence, another, or none for all nodes",
    )
    graph.add_argument(
        "--top-edges", type=options.positive, metavar="N", help="strongest edges kept into each node; all by default"
    )
    graph.add_argument(
        "--merge-pruned", action="store_true", help="add what pruned features did to the error nodes at their places"
    )
    graph.add_argument(
        "--compat", metavar="PACKAGE", help="give another package's numbers: circuit-tracer; see docs/graphs.md"
    )
    graph.add_argument("--skip-nodes", action="store_true", help="offer error nodes at skipped positions as nodes too")
    graph.add_argument(
        "--measure", type=options.positive, default=0, metavar="N", help="ablate the N strongest nodes, one at a time"
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write the circuit; format by suffix; repeatable",
    )
    result.add_argument(
        "--labels", metavar="SOURCE", help="feature labels: a file or NAME:...; the preset's own by default, or none"
    )
    result.add_argument("--html", metavar="FILE", help="write the circuit as one page that opens from disk")
    options.add_estimate(result)
    result.add_argument("--top", type=options.positive, default=10, metavar="N", help="rows to show (%(default)s)")


def run(args: argparse.Namespace, console: Console) -> None:
    """Traces, writes, shows."""
    from circuitsae.graph.circuit import exporter_for

    outputs = [(path, exporter_for(path).name) for path in args.output]
    if args.html:
        outputs.append((args.html, "html"))
    for path, _ in outputs:
        options.check_writable(path)
    reference, method_options = options.reference_of(args), options.method_options(args)
    models.start_torch(args)
    task = options.task_of(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        import circuitsae

        settings = {
            "method": args.method,
            "baseline": args.baseline,
            "gradient": args.gradient,
            "linearisation": args.linearisation,
            "targets": args.targets,
            "logit_share": args.logit_share,
            "max_logits": args.max_logits,
            "error_targets": args.error_targets,
            "max_nodes": args.max_nodes,
            "node_threshold": args.node_threshold,
            "edge_threshold": args.edge_threshold,
            "top_edges": args.top_edges,
            "prune": None if args.prune == "none" else args.prune,
            "merge_pruned": args.merge_pruned,
            "compat": args.compat,
            "skip_nodes": args.skip_nodes,
            "measure": args.measure,
            "reference": reference,
            **method_options,
        }
        if args.estimate:
            console.cost(circuitsae.estimate(spliced, task, **settings))
            return
        circuit = circuitsae.trace(spliced, task, progress=progress, **settings)
    labelling.label(circuit, args.labels, spliced.preset, console, spliced.dictionaries)
    written = [file for path, name in outputs for file in circuit.export(path, format=name)]
    if console.as_json:
        console.print(circuit.to_json().rstrip())
    else:
        console.report(circuit.report(args.top))
    console.wrote(written)
