"""From options to a model with its dictionaries. torch is imported here, when a command really needs it."""

import argparse
from typing import TYPE_CHECKING

from circuitsae.cli.output import Console, file_size
from circuitsae.errors import FetchError, InputError
from circuitsae.progress import Progress

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel
    from circuitsae.presets import Preset


def start_torch(args: argparse.Namespace) -> None:
    """Imports torch with as many threads as were asked for, and TransformerLens without what no command uses."""
    import torch

    from circuitsae.model import lean

    lean.start()

    if args.threads is not None:
        torch.set_num_threads(args.threads)


def spliced_of(args: argparse.Namespace, console: Console, progress: Progress) -> "SplicedModel":
    """Returns the model and dictionaries that the options name; a preset is fetched first where it has to be.

    Raises:
        InputError: A model without dictionaries, or the reverse, or a preset and a model at once.
        FetchError: The preset that was asked for can't be fetched.
    """
    if args.model is not None or args.dictionary:
        if args.preset is not None:
            raise InputError("--preset brings its own model; give either --preset, or --model with --dictionary.")
        if args.model is None or not args.dictionary:
            raise InputError("A model and dictionaries are given together: --model NAME --dictionary FOLDER.")
        preset = None
    else:
        preset = preset_of(args.preset, console, progress)
    from circuitsae.model.loading import load

    return load(
        preset,
        model=args.model,
        dictionaries=args.dictionary or None,
        device=args.device,
        dtype=args.dtype,
        sites=args.sites,
        skip_positions=args.skip_positions,
        skip_sinks=args.skip_sinks,
        center_writing_weights=args.center_writing_weights,
        progress=progress,
    )


def preset_of(name: str | None, console: Console, progress: Progress) -> "Preset":
    """Returns a preset, fetched where it has to be: the named one, else `smollm2`, else (without a network) `tiny`.

    Raises:
        UnknownNameError: No preset is called that.
        FetchError: The named one can't be fetched.
    """
    from circuitsae.presets import fetch, find_preset, is_present

    preset = find_preset(name or "smollm2")
    if is_present(preset):
        return preset
    console.note(f"Fetching {preset.name} ({file_size(preset.download)}, once) ...")
    try:
        fetch(preset, progress)
    except FetchError as error:
        if name is not None:
            raise
        console.note(f"{error} Going on with the preset tiny.")
        return find_preset("tiny")
    return preset
