"""`circuitsae doctor`: is everything here, and does the arithmetic hold on this machine?"""

import argparse
import importlib.metadata
import platform
from typing import TYPE_CHECKING, Any

from circuitsae import __version__, registry
from circuitsae.cli.output import Console, table
from circuitsae.errors import CircuitsaeError, InputError, SpliceError
from circuitsae.folders import cache_folder
from circuitsae.presets import find_preset, is_present, list_presets, preset_problems

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.task.task import Task

DESCRIPTION = """\
Says which versions are installed, which presets are present and which plugins are broken; then checks on a preset, in
float64, that what is spliced in is what the model goes on with, that frozen patterns and scales leave a linear model, that
an edit of nothing changes nothing, and that the gradients agree with finite differences of real interventions. With
--planted it also traces circuits that are known by construction. Status 1 where a check fails.
"""

PACKAGES = ("torch", "transformer_lens", "transformers", "sae_lens", "huggingface_hub", "networkx", "gradio", "pandas")
N_NODES = 8
STEP = 1e-4  # of an activation, for central differences
IDENTITY_LIMIT, GRADIENT_LIMIT = 1e-9, 1e-5


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("--preset", default="tiny", metavar="NAME", help="the preset to check (%(default)s)")
    parser.add_argument(
        "--planted", action="store_true", help="also trace models whose circuits are known by construction, and compare"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Looks, checks, tells.

    Raises:
        SpliceError: A check failed.
        PluginError: A plugin is broken.
    """
    preset = find_preset(args.preset)
    broken = [*_broken_plugins(), *registry.problems(), *preset_problems()]
    about = {
        "circuitsae": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "cache": str(cache_folder()),
        "presets here": ", ".join(p.name for p in list_presets() if is_present(p)) or "none",
        "broken plugins": " ".join(broken) or "none",
    }
    if not console.as_json:
        for line in table(("", ""), [*about.items()], "ll", console.width)[1:]:
            console.print(line)
    from circuitsae.model.loading import load
    from circuitsae.task.metrics import Logit, LogitDiff
    from circuitsae.task.task import Task

    if not preset.examples:
        raise InputError(
            f"The preset {preset.name} has no example to check with; add [[examples]] with prompt and answer."
        )
    example = preset.examples[0]
    metric = Logit(example.answer) if example.foil is None else LogitDiff(example.answer, example.foil)
    with console.progress() as progress:
        spliced = load(preset, dtype="float64", progress=progress)
        checks = check(spliced, Task(example.prompt, metric=metric))
    if args.planted:
        checks += _planted()
    if console.as_json:
        console.json({"about": about, "preset": preset.name, "checks": checks})
    else:
        console.print()
        for row in checks:
            verdict = "holds" if row["holds"] else "FAILS"
            console.print(f"{verdict}  {row['check']}: off by {row['error']:.1e} (limit {row['limit']:.0e})")
    failed = [row["check"] for row in checks if not row["holds"]]
    if failed:
        raise SpliceError(f"On {spliced.name} this does not hold: {'; '.join(failed)}.")
    if broken:
        raise CircuitsaeError(" ".join(broken))


def check(spliced: "SplicedModel", task: "Task") -> list[dict[str, Any]]:
    """Returns a row for each check: what it says, the largest relative error, the limit, whether it holds."""
    from circuitsae.attribution.effects import node_effects
    from circuitsae.interventions import Add, Scale, intervene
    from circuitsae.model.checks import check_freezes, check_splices

    tried = [*check_splices(spliced), *check_freezes(spliced)]
    effects = node_effects(spliced, task, baseline="zero")
    strongest = effects.strongest(N_NODES)
    same = intervene(spliced, task, [Scale(row["node"], 1.0) for row in strongest])
    identity = abs(same.effect) / max(abs(same.metric_before), 1.0)
    gradient = 0.0
    for row in strongest:
        step = STEP * row["activation"]
        up, down = (intervene(spliced, task, [Add(row["node"], by)]).metric_after for by in (step, -step))
        predicted = row["effect"] / (row["baseline"] - row["activation"])
        measured = (up - down) / (2 * step)
        gradient = max(gradient, abs(predicted - measured) / max(abs(measured), 1e-3))
    rows = [
        *((c.text.removeprefix("that ") + ("" if c.holds else f" (at {c.hook})"), c.error, c.limit) for c in tried),
        ("an edit that changes nothing leaves the metric as it is", identity, IDENTITY_LIMIT),
        (f"gradients of the {len(strongest)} strongest features equal finite differences", gradient, GRADIENT_LIMIT),
    ]
    return [{"check": text, "error": error, "limit": limit, "holds": error <= limit} for text, error, limit in rows]


def _planted() -> list[dict[str, Any]]:
    """Returns a row for each planted circuit; its error is what precision, recall and ranking lack of 1."""
    from circuitsae.testing.planted import check as check_planted

    rows = []
    for v in check_planted():
        worst = min(v.node_precision, v.node_recall, v.edge_precision, v.edge_recall, v.ranking)
        text = f"the planted circuit {v.name} is traced node for node and edge for edge, above all baselines"
        rows.append({"check": text, "error": 1 - worst, "limit": 0.0, "holds": v.holds})
    return rows


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _broken_plugins() -> list[str]:
    broken = []
    for plugin in registry.plugins():
        if plugin.distribution == "circuitsae":
            continue
        try:
            plugin.load()
        except CircuitsaeError as error:
            broken.append(str(error))
    return broken
