"""`circuitsae dictionaries`: what SAELens' registry has for a model."""

import argparse
import dataclasses
from typing import Any

from circuitsae.cli.output import Console, counted, percent, table
from circuitsae.dictionaries.releases import Release, find_release, list_releases

DESCRIPTION = """\
Browses SAELens' registry of pretrained dictionaries, which comes with the extra saelens: releases, those of one model, or
the dictionaries of one release. Each can be named as RELEASE/ID wherever a dictionary is (--dictionary, a preset's file).
"""

EXAMPLES = """\
examples:
  circuitsae dictionaries --model gpt2-small
  circuitsae dictionaries gpt2-small-res-jb
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("release", nargs="?", metavar="RELEASE", help="list this release's dictionaries")
    parser.add_argument("--model", metavar="NAME", help="list the releases for this model")


def run(args: argparse.Namespace, console: Console) -> None:
    """Lists them.

    Raises:
        MissingExtraError: sae_lens is not installed.
        UnknownNameError: No release is called that, or none is of that model.
    """
    if args.release is not None:
        _show(find_release(args.release), console)
        return
    releases = list_releases(args.model)
    if console.as_json:
        console.json({"releases": [_row(release) for release in releases]})
        return
    cells = [(r.name, r.model, str(len(r.entries)), r.repository) for r in releases]
    for line in table(("release", "model", "dictionaries", "repository"), cells, "llrl", console.width):
        console.print(line)
    console.note(
        f"{counted(len(releases), 'release', 'releases')}; 'circuitsae dictionaries RELEASE' lists the dictionaries of one."
    )


def _show(release: Release, console: Console) -> None:
    if console.as_json:
        console.json(_row(release) | {"entries": [dataclasses.asdict(entry) for entry in release.entries]})
        return
    console.heading(
        f"{release.name}: {counted(len(release.entries), 'dictionary', 'dictionaries')} for {release.model}"
    )
    console.print(f"from https://huggingface.co/{release.repository}")
    console.print()
    cells = [
        (
            f"{release.name}/{entry.id}",
            format(entry.l0, "g") if entry.l0 else "",
            percent(entry.variance_explained) if entry.variance_explained else "",
            entry.neuronpedia,
        )
        for entry in release.entries
    ]
    for line in table(("dictionary", "L0", "variance", "on Neuronpedia"), cells, "lrrl", console.width):
        console.print(line)


def _row(release: Release) -> dict[str, Any]:
    return {
        "release": release.name,
        "model": release.model,
        "repository": release.repository,
        "dictionaries": len(release.entries),
    }
