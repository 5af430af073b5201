"""docs/models.md: written from the rows of all families, and read back."""

import importlib.metadata
import re
from pathlib import Path

from circuitsae.testing.judging import CELLS

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
PACKAGES = ("transformer_lens", "transformers")

HEAD = """\
# Models

<!-- written by `python -m tests.families`: a test holds every row to what is found -->

What works on which family of models, tried on a tiny random model of each (two layers, made from a configuration) with
{versions}. **right** means that the numbers agree with a plain reference, which shares neither
this package's engine nor TransformerLens: the transformers model itself under torch's own module hooks, nodes ablated by hand, derivatives as finite
differences, attention patterns and normalisation scales held by replaying them, in float64 where the family can compute
in it. Otherwise the number is refused, with the sentence that is numbered and given below; a test fails if a cell were
wrong.

*Autoencoders* stand at the residual stream after the first block and at what attention and MLP of the second write
(`hook_resid_post`, `hook_attn_out`, `hook_mlp_out`), *transcoders* at every MLP.
The columns are [node effects](methods.md) (gradients and ablation), edges of [graphs](graphs.md) with
`linearisation="gradient"` and `"frozen"` (with `gradient="frozen"` effects), [interventions](interventions.md) free, with
`attention="frozen"` and with `normalisation="frozen"`, and generation under an intervention. `circuitsae doctor PRESET`
prints the same row for a preset's model and dictionaries.
"""

POINTS_HEAD = """\
## Hook points

Where in a block an autoencoder gives right effects. At what one part alone reads (`ln1.hook_in`, `mlp.hook_in`), effects are
those on that part, and the stream passes beside it. `hook_resid_mid` is tried where it is the stream
and what attention adds to it.
"""

SENTENCES_HEAD = """\
## Sentences
"""


def versions() -> str:
    """Returns the versions that decide what a row says."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def page(rows: dict[str, dict[str, str]]) -> str:
    """Returns the page."""
    sentences: dict[str, int] = {}

    def short(text: str) -> str:
        return re.sub(
            r"refused: (.*?)(?=; (?:[\w., ]+): (?:right|refused|wrong|crash)|$)",
            lambda m: f"refused ({sentences.setdefault(m[1], len(sentences) + 1)})",
            text,
        ).replace("right", "**right**")  # fmt: skip

    lines = [HEAD.format(versions=versions()), f"| family | {' | '.join(CELLS)} |", "| --- |" + " --- |" * len(CELLS)]
    order = sorted(rows, key=str.lower)
    lines += [f"| {family} | {' | '.join(short(rows[family][cell]) for cell in CELLS)} |" for family in order]
    lines += ["", POINTS_HEAD, "| family | hook points |", "| --- | --- |"]
    lines += [f"| {family} | {short(rows[family]['hook points'])} |" for family in order]
    lines += ["", SENTENCES_HEAD]
    lines += [f"{number}. {sentence}" for sentence, number in sentences.items()]
    return "\n".join(lines) + "\n"


def read(text: str) -> dict[str, dict[str, str]]:
    """Returns the rows that a page was written from."""
    sentences = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))

    def whole(cell: str) -> str:
        cell = cell.strip().replace("**right**", "right")
        return re.sub(r"refused \((\d+)\)", lambda m: f"refused: {sentences[m[1]]}", cell)

    rows: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        cells = line.strip("|").split("|")
        if not line.startswith("| ") or cells[0].strip() in ("family", "---"):
            continue
        names = ("hook points",) if len(cells) == 2 else tuple(CELLS)
        rows.setdefault(cells[0].strip(), {}).update(zip(names, map(whole, cells[1:]), strict=True))
    return rows
