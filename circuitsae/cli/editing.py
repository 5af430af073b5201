"""Edits of nodes on the command line: options that `intervene` and `generate` share, and what they become."""

import argparse
import math
from typing import TYPE_CHECKING

from circuitsae.errors import InputError

if TYPE_CHECKING:
    from circuitsae.interventions import Intervention


def add_edits(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """Adds the edits that every command takes."""
    edits = parser.add_argument_group("edits (each repeatable, all done at once)")
    edits.add_argument("--ablate", action="append", default=[], metavar="NODE", help="set to the baseline")
    edits.add_argument("--scale", action="append", default=[], metavar="NODE=BY", help="multiply: 2 doubles")
    edits.add_argument("--add", action="append", default=[], metavar="NODE=VALUE", help="add to the activation")
    edits.add_argument("--set", action="append", default=[], metavar="NODE=VALUE", help="set the activation")
    edits.add_argument(
        "--swap",
        action="append",
        default=[],
        metavar="NODE=PROMPT",
        help="give the value that it has on another prompt",
    )
    edits.add_argument(
        "--steer",
        action="append",
        default=[],
        metavar="FEATURE=STRENGTH",
        help="add a feature, active or not; everywhere unless it names positions",
    )
    edits.add_argument(
        "--steer-unit",
        choices=["activation", "norm"],
        default="activation",
        help="strength in units of the activation (default), or of the mean norm at the hook point",
    )
    return edits


def edits_of(args: argparse.Namespace) -> "list[Intervention]":
    """Returns the edits that the options describe.

    Raises:
        InputError: A text without `=`, or a value that is no number.
    """
    numbers = {
        name: [_node_and_number(t, f"--{name}") for t in getattr(args, name)] for name in ("scale", "add", "set")
    }
    steered = [_node_and_number(text, "--steer") for text in args.steer]
    swapped = [_node_and_prompt(text) for text in args.swap]

    from circuitsae.interventions import Ablate, Add, Scale, Set, Steer, Swap

    return [
        *(Ablate(node) for node in args.ablate),
        *(Scale(node, by) for node, by in numbers["scale"]),
        *(Add(node, value) for node, value in numbers["add"]),
        *(Set(node, value) for node, value in numbers["set"]),
        *(Swap(node, prompt) for node, prompt in swapped),
        *(Steer(node, strength, args.steer_unit) for node, strength in steered),
    ]


def any_edit(args: argparse.Namespace) -> bool:
    """Whether an edit was given at all."""
    return any(getattr(args, name) for name in ("ablate", "scale", "add", "set", "swap", "steer"))


def _node_and_number(text: str, flag: str) -> tuple[str, float]:
    node, equals, value = text.rpartition("=")
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not equals or not math.isfinite(found):
        raise InputError(f"{flag} {text!r} can't be read; expected NODE=VALUE, such as blocks.3.hook_mlp_out/17@5=2.")
    return node, found


def _node_and_prompt(text: str) -> tuple[str, str]:
    node, equals, prompt = text.partition("=")
    if not equals or not prompt:
        raise InputError(f"--swap {text!r} can't be read; expected NODE=PROMPT, such as token@5=The key is.")
    return node, prompt
