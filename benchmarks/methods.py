"""Methods side by side: how well each predicts what ablating a node really does, and what it costs.

    python -m benchmarks.methods [PRESET] [--prompts NAME ...] [--methods NAME ...] [--all] [--json]

On each prompt every method gives the effects of all features and error nodes. Those that any method has among its
strongest (with `--all`: every one) are really ablated. Of each method's own 16 and 100 strongest nodes, and of the 16 and
100 that really are strongest, the table gives Pearson's r and Spearman's rho of the two effects, and how many have the
wrong sign. Cost is in forward + backward passes of the model over one prompt.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import circuitsae as cs
from benchmarks.timing import parser_of, show
from circuitsae.attribution.effects import Context, NodeEffects, make_context
from circuitsae.attribution.exact import Changes, feature_changes, measure_changes, vector_changes
from circuitsae.correlation import correlation, ranks

PROMPTS = {
    "indirect object": ("When Mary and John went to the store, John gave a drink to", " Mary", " John"),
    "agreement, one key": ("The key to the cabinets", " is", " are"),
    "agreement, several": ("The keys to the cabinet", " are", " is"),
    "capital": ("The capital of France is", " Paris", " London"),
}
METHODS: dict[str, dict[str, Any]] = {
    "attribution-patching": {},
    "attribution-patching, frozen": {"gradient": "frozen"},
    "attribution-patching, through-dictionary": {"gradient": "through-dictionary"},
    "relp": {},
    "relp, MLPs only": {"scales": False, "patterns": False},
    "gim": {},
    "atp-star": {},
    "integrated-gradients, 5 Gauss-Legendre": {"steps": 5, "tokens": False},
    "integrated-gradients, 10 left": {"steps": 10, "rule": "left", "tokens": False},
    "auto, 10 passes": {"passes": 10},
    "auto": {},
}
SIZES = (16, 100)


@dataclass(frozen=True)
class Agreement:
    """How effects compare with measured ones over some nodes."""

    nodes: int
    r: float | None
    rho: float | None
    wrong_signs: int


def agreement(effects: Tensor, measured: Tensor, ranked_by: Tensor, size: int) -> Agreement:
    """Compares over the `size` nodes of largest |ranked_by|."""
    top = ranked_by.abs().topk(min(size, len(ranked_by))).indices
    a, b = effects[top].tolist(), measured[top].tolist()
    wrong_signs = int((effects[top].sign() != measured[top].sign()).sum())
    return Agreement(len(top), correlation(a, b), correlation(ranks(a), ranks(b)), wrong_signs)


def offered(effects: NodeEffects) -> Tensor:
    """Returns the effects of features and of the error nodes that are offered, one after another."""
    return torch.cat([effects.offered(b).effects for b in effects.blocks if b.kind != "token"])


def measure(context: Context, effects: NodeEffects, wanted: Tensor) -> Tensor:
    """Returns the measured effects of the offered nodes that are wanted, NaN for the others."""
    places: list[Changes] = []
    for number in range(len(context.spliced.dictionaries)):
        places.append(feature_changes(context, number))
    for block in effects.errors():
        place = vector_changes(context, block.site)
        places.append(place.part(effects.offered(block).positions))
    parts = [w.nonzero().flatten() for w in wanted.split([len(p.positions) for p in places])]
    found = measure_changes(context, [p.part(w) for p, w in zip(places, parts, strict=True)])
    result = torch.full((len(wanted),), torch.nan, dtype=torch.float64)
    result[wanted] = torch.cat(found).double()
    return result


def compare(
    spliced: cs.SplicedModel, task: cs.Task, methods: dict[str, dict[str, Any]], everything: bool
) -> list[dict]:
    """Returns one row a method."""
    found = {}
    for label, options in methods.items():
        given = cs.node_effects(spliced, task, method=label.partition(",")[0], **options)
        found[label] = (offered(given), given)
    given = next(iter(found.values()))[1]
    wanted = torch.full((len(offered(given)),), everything)
    for values, _ in found.values():
        wanted[values.abs().topk(min(SIZES[-1], len(values))).indices] = True
    measured = measure(make_context(spliced, task), given, wanted)
    rows = []
    for label, (values, effects) in found.items():
        row: dict[str, Any] = {"method": label, "passes": (effects.passes["forward"] + effects.passes["backward"]) / 2}
        for size in SIZES:
            row[f"own {size}"] = asdict(agreement(values, measured, values, size))
            row[f"true {size}"] = asdict(agreement(values[wanted], measured[wanted], measured[wanted], size))
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table: r / rho / wrong signs."""
    kinds = [f"{kind} {size}" for size in SIZES for kind in ("own", "true")]
    lines = ["| method | passes | " + " | ".join(kinds) + " |", "| --- | ---: |" + " --- |" * len(kinds)]
    for row in rows:
        cells = [f"{_shown(row[k]['r'])} / {_shown(row[k]['rho'])} / {row[k]['wrong_signs']}" for k in kinds]
        lines.append(f"| {row['method']} | {row['passes']:.1f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _shown(r: float | None) -> str:
    return "undefined" if r is None else f"{r:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables, or every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("preset", nargs="?", default="smollm2")
    parser.add_argument("--prompts", nargs="+", choices=PROMPTS, default=list(PROMPTS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--all", action="store_true", help="ablate every node, not only those that a method finds strong"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if args.small:
        args.preset, args.prompts, args.methods = "tiny", ["agreement, one key"], ["attribution-patching", "relp"]
    torch.set_num_threads(2)
    spliced = cs.load(args.preset)
    results = {}
    for name in args.prompts:
        prompt, answer, foil = PROMPTS[name]
        task = cs.Task(prompt, metric=cs.LogitDiff(answer, foil))
        results[name] = compare(spliced, task, {m: METHODS[m] for m in args.methods}, args.all)
        if not args.json:
            sys.stdout.write(f"\n{name}: {prompt!r}, {answer!r} against {foil!r}\n\n{table(results[name])}\n")
            sys.stdout.flush()
    if args.json:
        show({"preset": args.preset, "prompts": results})


if __name__ == "__main__":
    main()
