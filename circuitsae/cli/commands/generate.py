"""`circuitsae generate`: let the model write with nodes changed, next to what it writes of itself."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from circuitsae.cli import editing, models, options
from circuitsae.cli.output import Console, quoted
from circuitsae.errors import InputError

if TYPE_CHECKING:
    from circuitsae.interventions import Generation

DESCRIPTION = """\
Continues a prompt twice, as the model is and with some nodes changed at every step, and shows both texts side by side.

Edits at positions of the prompt (@5, @-1, @2:5) hold there; @* and slices without an end go on over the tokens that are
written, @new means these alone, and --steer without a position is everywhere. --ablate sets to zero in what is written.
"""

EXAMPLES = """\
examples:
  circuitsae generate "The keys to the cabinet" --steer blocks.12.hook_resid_post/421=20
  circuitsae generate "The keys to the cabinet" --ablate "blocks.7.hook_resid_post/12@*" --temperature 0.8 --samples 3
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("prompt", help="the text to continue", metavar="PROMPT")
    parser.add_argument("--patch", metavar="PROMPT", help="a prompt of as many tokens, whose values --ablate sets to")
    parser.add_argument("--token-ids", action="store_true", help="the prompts are token ids, as in '12 7 301'")
    editing.add_edits(parser)
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--tokens", type=options.positive, default=20, metavar="N", help="tokens to write (%(default)s)"
    )
    writing.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token (default)"
    )
    writing.add_argument("--top-k", type=options.positive, metavar="K", help="draw among the likeliest K tokens")
    writing.add_argument("--top-p", type=float, metavar="P", help="draw among the tokens that have this probability")
    writing.add_argument("--seed", type=int, default=0, metavar="N", help="of the random numbers (%(default)s)")
    writing.add_argument(
        "--samples", type=options.positive, default=1, metavar="N", help="texts to write (%(default)s)"
    )
    writing.add_argument("--keep-going", action="store_true", help="don't stop at the end-of-text token")
    writing.add_argument("--no-cache", action="store_true", help="compute everything anew at every step")
    options.add_model(parser)


def run(args: argparse.Namespace, console: Console) -> None:
    """Writes, shows."""
    if not editing.any_edit(args):
        raise InputError("No edit was given; expected --steer FEATURE=STRENGTH, --ablate NODE or another.")
    edits = editing.edits_of(args)
    models.start_torch(args)
    with console.progress() as progress:
        spliced = models.spliced_of(args, console, progress)

        from circuitsae import Logit, Task, generate

        read = options.token_ids if args.token_ids else str
        patch = None if args.patch is None else read(args.patch)
        found = generate(
            spliced,
            Task(read(args.prompt), metric=Logit(0), patch=patch),
            edits,
            max_new_tokens=args.tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            seed=args.seed,
            samples=args.samples,
            stop_at_end=not args.keep_going,
            use_cache=not args.no_cache,
            progress=progress,
        )
    if console.as_json:
        console.json(_as_dict(found))
        return
    for line in found.side_by_side(console.width or 100).splitlines():
        console.print(line)
    console.print()
    for sample in range(len(found.before)):
        at = found.first_difference(sample)
        which = f"sample {sample + 1}: " if len(found.before) > 1 else ""
        if at is None:
            console.print(f"{which}the texts are the same")
        else:
            tokens = [
                quoted(c.strings[at]) if at < len(c.strings) else "the end"
                for c in (found.before[sample], found.after[sample])
            ]
            console.print(f"{which}they part at token {at + 1}: {tokens[0]} before, {tokens[1]} after")


def _as_dict(found: "Generation") -> dict[str, Any]:
    return {
        "prompt": list(found.prompt),
        "before": [{**asdict(c), "text": c.text} for c in found.before],
        "after": [{**asdict(c), "text": c.text} for c in found.after],
        "cached": found.cached,
    }
