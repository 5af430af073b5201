"""Options that several commands share, and what they become: a task, a method's parameters, files to write."""

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitsae import registry
from circuitsae.errors import InputError, TaskError

if TYPE_CHECKING:
    from circuitsae.task.task import Task


def add_task(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Adds the prompt and what is asked about it."""
    parser.add_argument(
        "prompt", nargs="?" if optional else None, help="the text that the model continues", metavar="PROMPT"
    )
    group = parser.add_argument_group("question")
    group.add_argument("--answer", metavar="TOKEN", help='the continuation to explain, one token, such as " Mary"')
    group.add_argument("--foil", metavar="TOKEN", help="the continuation to set against it")
    group.add_argument("--patch", metavar="PROMPT", help="a counterfactual prompt of as many tokens")
    group.add_argument(
        "--metric", metavar="NAME", help="logit-diff (default with a foil), logit (default without), or another"
    )
    group.add_argument("--position", type=int, metavar="N", help="position at which the answer is read (the last)")
    group.add_argument(
        "--metric-option", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the metric"
    )
    group.add_argument(
        "--token-ids", action="store_true", help="prompt, patch, answer and foil are token ids, as in '12 7 301'"
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model and its dictionaries."""
    group = parser.add_argument_group("model")
    group.add_argument("--preset", metavar="NAME", help="a name from 'circuitsae presets' (smollm2, else tiny)")
    group.add_argument("--model", metavar="NAME|FOLDER", help="a model, in place of a preset's")
    group.add_argument(
        "--dictionary",
        action="append",
        default=[],
        metavar="FOLDER",
        help="a dictionary for --model, or neurons: those of every MLP; repeatable",
    )
    group.add_argument(
        "--sites", nargs="+", metavar="SITE", help="attach dictionaries only here, such as blocks.7.hook_resid_post"
    )
    group.add_argument(
        "--skip-positions", nargs="*", type=int, metavar="N", help="positions at which no dictionary is applied"
    )
    group.add_argument(
        "--skip-sinks",
        type=float,
        metavar="TIMES",
        help="nor where a vector has more than this many times the median norm at its site; inf for no such rule",
    )
    group.add_argument(
        "--center-writing-weights",
        "--centre-writing-weights",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="load a GPT-2 as HookedTransformer centres it; what the dictionaries say by default",
    )
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 ...")
    group.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], help="the model's arithmetic")
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads")


def add_attribution(parser: argparse.ArgumentParser) -> None:
    """Adds how effects are computed."""
    group = parser.add_argument_group("attribution")
    group.add_argument(
        "--method",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="auto (default) predicts and ablates the strongest nodes; attribution-patching only predicts; or another",
    )
    group.add_argument("--steps", type=positive, metavar="N", help="points on the line, for integrated-gradients")
    group.add_argument(
        "--method-option", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the method"
    )
    group.add_argument(
        "--baseline", metavar="NAME", help="what an ablated node is set to: zero, patch (default with --patch) or mean"
    )
    group.add_argument("--reference", metavar="FILE", help="prompts, one a line, that the mean baseline is taken over")
    group.add_argument(
        "--gradient",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="pass-through (default), through-dictionary or frozen",
    )


def add_graph(parser: argparse.ArgumentParser) -> None:
    """Adds which nodes and edges there are, and which of them are kept; what is not given has no place in the result."""
    graph = parser.add_argument_group("graph", argument_default=argparse.SUPPRESS)
    graph.add_argument("--linearisation", metavar="NAME", help="of edges: gradient (default) or frozen")
    graph.add_argument("--targets", metavar="NAME", help="at the top: metric (default), or the next tokens' logits")
    graph.add_argument(
        "--logit-share",
        type=float,
        metavar="P",
        help="of logits: those that hold this probability (0.95)",
    )
    graph.add_argument("--max-logits", type=positive, metavar="N", help="of logits: at most so many (10)")
    graph.add_argument("--error-targets", action="store_true", help="edges to error nodes, too")
    graph.add_argument("--max-nodes", type=positive, metavar="N", help="features kept at most (256)")
    graph.add_argument(
        "--node-threshold", type=float, metavar="X", help="least |effect| of a node; a share where the pruner says so"
    )
    graph.add_argument(
        "--edge-threshold", type=float, metavar="X", help="least |weight| of an edge; a share where the pruner says so"
    )
    graph.add_argument(
        "--prune",
        metavar="NAME",
        help="top-k (default), threshold, influence, another, or none for all nodes",
    )
    graph.add_argument(
        "--top-edges", type=positive, metavar="N", help="strongest edges kept into each node; all by default"
    )
    graph.add_argument(
        "--merge-pruned", action="store_true", help="add what pruned features did to the error nodes at their places"
    )
    graph.add_argument(
        "--compat", metavar="PACKAGE", help="give another package's numbers: circuit-tracer; see docs/graphs.md"
    )
    graph.add_argument("--skip-nodes", action="store_true", help="offer error nodes at skipped positions as nodes too")
    graph.add_argument(
        "--heads",
        type=positive,
        metavar="N",
        help="with --linearisation frozen: keep the N heads that carry most of each edge",
    )
    graph.add_argument(
        "--faithful",
        dest="min_faithfulness",
        type=float,
        metavar="SHARE",
        help="keep as few of the strongest nodes as give this share of the metric when all others are really ablated",
    )
    graph.add_argument("--measure", type=positive, metavar="N", help="ablate the N strongest nodes, one at a time")


def attribution_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `node_effects` that `add_attribution`'s options give.

    Raises:
        InputError: The file of `--reference` can't be used, or a parameter of the method can't be read.
    """
    return {
        **_given(args, ("method", "gradient")),
        "baseline": args.baseline,
        "reference": reference_of(args),
        **method_options(args),
    }


_GRAPH = (
    *("linearisation", "targets", "logit_share", "max_logits", "error_targets", "max_nodes", "node_threshold"),
    *(
        "edge_threshold",
        "top_edges",
        "prune",
        "merge_pruned",
        "compat",
        "skip_nodes",
        "measure",
        "min_faithfulness",
        "heads",
    ),
)


def graph_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `trace` that `add_graph`'s options give, those alone that were written."""
    found = _given(args, _GRAPH)
    return {**found, "prune": None} if found.get("prune") == "none" else found


def _given(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Returns the options that were written: an option at its default would hold against `--compat` otherwise."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_estimate(group: Any) -> None:
    """Adds the question what a command will cost."""
    group.add_argument(
        "--estimate", action="store_true", help="say what it will cost (passes, time, memory) and stop before it"
    )


def positive(text: str) -> int:
    """Returns a whole number of at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small; expected at least 1")
    return value


def check_question(args: argparse.Namespace) -> None:
    """Says at once, before torch is imported, that an answer is missing.

    Raises:
        InputError: It is, and the metric needs one.
    """
    name = args.metric or ("logit" if args.foil is None else "logit-diff")
    given = args.answer is not None or any(option.partition("=")[0] == "answer" for option in args.metric_option)
    if not given and name in ("logit", "logit-diff", "log-prob", "probability"):
        raise InputError(f'The metric {name!r} needs --answer such as --answer " Mary".')


def task_of(args: argparse.Namespace) -> "Task":
    """Returns the task that the options describe.

    Raises:
        InputError: No prompt or no answer, a metric that needs more, or ids that are not numbers.
    """
    from circuitsae.task.task import Task

    if args.prompt is None:
        raise InputError('No prompt was given; expected one, such as "The keys to the cabinet".')
    read = token_ids if args.token_ids else str
    patch = None if args.patch is None else read(args.patch)
    return Task(read(args.prompt), metric=_metric_of(args), patch=patch)


def take_question(args: argparse.Namespace, about: Mapping[str, Any]) -> None:
    """Fills in what the options left open from a saved circuit: prompt, patch, metric, preset, skipped positions.

    Raises:
        InputError: The circuit does not say what was asked, or of which model.
    """
    metric = dict(about.get("metric", {}))
    if args.prompt is None:
        ids = metric.get("token_ids", {})
        single = all(isinstance(ids.get(k, 0), int) for k in ("answer", "foil"))
        if not about.get("token_ids") or "answer" not in ids or not single:
            raise InputError("The circuit does not say its tokens and metric; give the prompt and --answer yourself.")
        args.token_ids = True
        args.prompt = " ".join(map(str, about["token_ids"]))
        if about.get("patch_token_ids"):
            args.patch = " ".join(map(str, about["patch_token_ids"]))
        args.metric, args.position = metric["name"], metric.get("position")
        args.answer, args.foil = (None if k not in ids else str(ids[k]) for k in ("answer", "foil"))
    if not args.preset and not args.model:
        args.preset = about.get("preset")
        if args.preset is None:
            raise InputError("The circuit names no preset; say its model with --model and --dictionary.")
    if args.skip_positions is None:
        args.skip_positions = about.get("options", {}).get("skip_positions")
    if args.skip_sinks is None and "skip_sinks" in about.get("options", {}):
        args.skip_sinks = about["options"]["skip_sinks"] or math.inf


def _metric_of(args: argparse.Namespace) -> Any:
    name = args.metric or ("logit" if args.foil is None else "logit-diff")
    metric = registry.get("metrics", name)
    given: dict[str, Any] = {"answer": args.answer, "foil": args.foil, "position": args.position}
    if args.token_ids:
        given |= {k: token_ids(given[k])[0] for k in ("answer", "foil") if given[k] is not None}
    given = {k: v for k, v in given.items() if v is not None} | pairs(args.metric_option, "--metric-option")
    fields = {f.name: f for f in dataclasses.fields(metric) if f.init}
    for option in given:
        if option not in fields:
            raise InputError(f"The metric {name!r} has no {option!r}; it takes {', '.join(fields) or 'nothing'}.")
    for field in fields.values():
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in given:
            flag = f"--{field.name}" if field.name in ("answer", "foil") else f"--metric-option {field.name}=..."
            hint = ' such as --answer " Mary"' if field.name == "answer" else ""
            raise InputError(f"The metric {name!r} needs {flag}{hint}.")
    return metric(**given)


def token_ids(text: str) -> list[int]:
    """Returns the token ids in a text such as `12 7 301`.

    Raises:
        TaskError: They are not whole numbers, or there is none.
    """
    try:
        ids = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise TaskError(f"{text!r} are not token ids; expected whole numbers, as in '12 7 301'.") from None
    if not ids:
        raise TaskError("The prompt is empty; expected at least one token id.")
    return ids


def pairs(texts: Sequence[str], flag: str) -> dict[str, Any]:
    """Returns `NAME=VALUE` texts as a dict; a value that reads as JSON is that, any other is text.

    Raises:
        InputError: A text without `=`.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{flag} {text!r} can't be read; expected NAME=VALUE.")
        try:
            found[name.strip().replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip().replace("-", "_")] = value
    return found


def method_options(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that only the chosen method takes."""
    options = pairs(args.method_option, "--method-option")
    return options if args.steps is None else {"steps": args.steps, **options}


def reference_of(args: argparse.Namespace) -> list[str] | None:
    """Returns the prompts of `--reference`, one a line; empty lines are left out.

    Raises:
        InputError: The file can't be read as text, or holds none, or the baseline is another.
    """
    if args.reference is None:
        return None
    if args.baseline != "mean":
        raise InputError("--reference gives the prompts of the mean baseline; add --baseline mean.")
    try:
        lines = Path(args.reference).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"Can't read the prompts in {args.reference!r}: {reason}.") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"The file {args.reference!r} holds no prompt; expected one a line.")
    return prompts
