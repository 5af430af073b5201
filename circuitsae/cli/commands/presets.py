"""`circuitsae presets`: the models and dictionaries that have a name."""

import argparse
from pathlib import Path
from typing import Any

from circuitsae.cli.output import Console, counted, file_size, table
from circuitsae.presets import HubModel, Preset, WheelModel, find_preset, is_present, list_presets, preset_problems

DESCRIPTION = """\
Lists the presets: a model and the dictionaries that fit it. With a name, shows that preset's card.

Those of your own are TOML files in the settings' folder (or $CIRCUITSAE_PRESETS).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one's card")


def run(args: argparse.Namespace, console: Console) -> None:
    """Lists them, or shows one.

    Raises:
        UnknownNameError: No preset has that name.
    """
    if args.name is not None:
        preset = find_preset(args.name)
        if console.as_json:
            console.json(_row(preset) | {"card": preset.card_text()})
        else:
            console.text(preset.card_text().rstrip())
        return
    rows, problems = [_row(preset) for preset in list_presets()], preset_problems()
    if console.as_json:
        console.json({"presets": rows, "problems": problems})
        return
    cells = [
        (row["name"], _presence(row), file_size(row["disk"]) if row["disk"] else "", row["summary"]) for row in rows
    ]
    for line in table(("preset", "", "on disk", ""), cells, "llrl", console.width):
        console.print(line)
    for row in rows:
        console.print()
        memory = f"{file_size(row['memory'])} of memory; " if row["memory"] else ""
        terms = "; gated, log in to fetch it" if row["gated"] else ""
        console.print(
            f"{row['name']}: {counted(len(row['dictionaries']), 'dictionary', 'dictionaries')}; {memory}{row['licence']}{terms}"
        )
        console.print(f"  from {row['origin'] or row['source']}")
    for problem in problems:
        console.note(f"left out: {problem}")


def _row(preset: Preset) -> dict[str, Any]:
    return {
        "name": preset.name,
        "summary": preset.summary,
        "present": is_present(preset),
        "download": preset.download,
        "disk": preset.disk,
        "memory": preset.memory,
        "skip_positions": list(preset.skip_positions),
        "skip_sinks": preset.skip_sinks,
        "origin": preset.origin,
        "licence": preset.licence,
        "gated": preset.gated,
        "model": _model(preset),
        "dictionaries": [Path(given).name if Path(given).is_absolute() else given for given in preset.dictionaries],
        "source": None if preset.source is None else str(preset.source),
    }


def _model(preset: Preset) -> str:
    model = preset.model
    if isinstance(model, WheelModel):
        return model.requirement
    return model.repository if isinstance(model, HubModel) else model.folder.name


def _presence(row: dict[str, Any]) -> str:
    if row["present"]:
        return "present"
    return f"to fetch, {file_size(row['download'])}" if row["download"] else "to fetch"
