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
    from circuitsae.progress import Progress

DESCRIPTION = """\
Says which versions are installed, which presets are present and which plugins are broken; then checks on a preset's model
and dictionaries, in float64, that what is spliced in is what the model goes on with, and holds node effects, edges,
interventions and generation against a plain reference: exact ablation, finite differences, replayed attention patterns.
Each is right, or refused with a reason (the page "Models" has the same for every family). With --planted it also traces
circuits that are known by construction. Status 1 where a number is wrong.
"""

PACKAGES = ("torch", "transformer_lens", "transformers", "sae_lens", "huggingface_hub", "networkx", "gradio", "pandas")


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("name", nargs="?", metavar="PRESET", help="the preset to check (tiny)")
    parser.add_argument("--preset", metavar="NAME", help="the same")
    parser.add_argument(
        "--planted", action="store_true", help="also trace models whose circuits are known by construction, and compare"
    )


def run(args: argparse.Namespace, console: Console) -> None:
    """Looks, checks, tells.

    Raises:
        SpliceError: A check failed.
        PluginError: A plugin is broken.
    """
    if args.name is not None and args.preset not in (None, args.name):
        raise InputError(f"Two presets are named, {args.name!r} and {args.preset!r}; expected one.")
    preset = find_preset(args.name or args.preset or "tiny")
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

    with console.progress() as progress:
        spliced = load(preset, dtype="float64", progress=progress)
        checks = check(spliced, [example.prompt for example in preset.examples][:1], progress)
    if args.planted:
        checks += _planted()
    if console.as_json:
        console.json({"about": about, "preset": preset.name, "checks": checks})
    else:
        console.print()
        for row in checks:
            if row["state"] == "refused":
                console.print(f"refused  {row['check']}: {row['text']}")
                continue
            off = "" if row["error"] is None else f": off by {row['error']:.1e} (limit {row['limit']:.0e})"
            console.print(f"{row['state']:<7}  {row['check']}{off}" + (f"; {row['text']}" if row["text"] else ""))
    failed = [row["check"] for row in checks if row["state"] in ("wrong", "crash")]
    if failed:
        raise SpliceError(f"On {spliced.name} this does not hold: {'; '.join(failed)}.")
    if all(row["state"] == "refused" for row in checks):
        raise SpliceError(f"Nothing can be computed on {spliced.name}: {checks[0]['text']}")
    if broken:
        raise CircuitsaeError(" ".join(broken))


def check(spliced: "SplicedModel", prompts: list[str], progress: "Progress") -> list[dict[str, Any]]:
    """Returns a row for each check: what it says, its state, the largest relative error and the limit.

    The splices first, then the cells of [circuitsae.testing.judging][], on the first prompt or else on some tokens.
    """
    from circuitsae.model.checks import check_splices
    from circuitsae.testing.judging import judge

    tokens = spliced.vocabulary.encode(prompts[0]) if prompts else [3, 10, 17, 24, 31]
    rows = [
        _row(c.text.removeprefix("that "), "right" if c.holds else "wrong", "" if c.holds else c.hook, c.error, c.limit)
        for c in check_splices(spliced)
    ]
    judged = judge(spliced, tokens, progress=progress)
    return rows + [_row(name, c.state, c.text, c.error, c.limit) for name, c in judged.items()]


def _row(text: str, state: str, reason: str, error: float | None, limit: float | None) -> dict[str, Any]:
    return {"check": text, "state": state, "text": reason, "error": error, "limit": limit}


def _planted() -> list[dict[str, Any]]:
    """Returns a row for each planted circuit; its error is what precision, recall and ranking lack of 1."""
    from circuitsae.testing.planted import check as check_planted

    rows = []
    for v in check_planted():
        worst = min(v.node_precision, v.node_recall, v.edge_precision, v.edge_recall, v.ranking)
        text = f"the planted circuit {v.name} is traced node for node and edge for edge, above all baselines"
        rows.append(_row(text, "right" if v.holds else "wrong", "", 1 - worst, 0.0))
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
