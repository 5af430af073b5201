"""From options to a model with its dictionaries. torch is imported here, when a command really needs it."""

import argparse
from typing import TYPE_CHECKING

from circuitsae.cli.output import Console, Progress, file_size
from circuitsae.errors import InputError

if TYPE_CHECKING:
    from circuitsae.model.spliced import SplicedModel


def start_torch(args: argparse.Namespace) -> None:
    """Imports torch with as many threads as were asked for."""
    import torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)


def spliced_of(args: argparse.Namespace, console: Console, progress: Progress) -> "SplicedModel":
    """Returns the model and dictionaries that the options name; a preset is fetched first where it has to be.

    Raises:
        InputError: A model without dictionaries, or the reverse, or a preset and a model at once.
    """
    from circuitsae.presets import default_preset, find_preset, is_present

    if args.model is not None or args.dictionary:
        if args.preset is not None:
            raise InputError("--preset brings its own model; give either --preset, or --model with --dictionary.")
        if args.model is None or not args.dictionary:
            raise InputError("A model and dictionaries are given together: --model NAME --dictionary FOLDER.")
        preset = None
    else:
        preset = default_preset() if args.preset is None else find_preset(args.preset)
        if args.preset is None and not is_present(find_preset("smollm2")):
            console.note("Using the preset tiny; 'circuitsae fetch smollm2' brings a real language model.")
        elif not is_present(preset) and preset.download:
            console.note(f"Fetching {preset.name}: {file_size(preset.download)}, once.")
    from circuitsae.model.loading import load

    return load(
        preset,
        model=args.model,
        dictionaries=args.dictionary or None,
        device=args.device,
        dtype=args.dtype,
        sites=args.sites,
        skip_positions=args.skip_positions,
        progress=progress,
    )
