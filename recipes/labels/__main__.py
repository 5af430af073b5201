"""`python -m recipes.labels PRESET`: describes the features of a shipped preset and writes the store beside it.

`tiny` and `tiny-transcoders` are described by their own templated English, which needs no file. `smollm2` needs plain
English in files of public domain: the shipped store was made of openings of State of the Union addresses, the first 70
chapters of Moby-Dick, and short passages sampled from the model itself, in this order, read in turn.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import torch

from circuitsae.labels.describing import Recipe, describe
from circuitsae.model.loading import load
from recipes.tiny import language

PRESETS = Path(__file__).parents[2] / "circuitsae" / "presets"
PLACES = {
    "tiny": PRESETS / "tiny" / "labels.parquet",
    "tiny-transcoders": PRESETS / "tiny" / "transcoder-labels.parquet",
    "smollm2": PRESETS / "smollm2" / "labels.parquet",
}
SENTENCES = 6000
TOKENS = 125_973  # 124 batches of 8 sequences: what the shipped store of smollm2 was counted over

parser = argparse.ArgumentParser(prog="python -m recipes.labels", description=__doc__)
parser.add_argument("preset", choices=PLACES)
parser.add_argument("--text", nargs="+", type=Path, help="plain text files, for smollm2")
parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of text at most (%(default)s)")
parser.add_argument("--output", type=Path, help="where to write (the package's own folder)")
parser.add_argument("--seed", type=int, default=7, help="of tiny's sentences")
arguments = parser.parse_args()

torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
started = time.perf_counter()
spliced = load(arguments.preset, device="cpu")
place = arguments.output or PLACES[arguments.preset]
with tempfile.TemporaryDirectory() as folder:
    texts = arguments.text
    if arguments.preset == "smollm2":
        if not texts:
            parser.error("smollm2 is described by text files: --text FILE ...")
        recipe = Recipe(max_tokens=arguments.tokens)
    else:
        own = Path(folder) / "templated-english.txt"
        own.write_text(" ".join(itertools.islice(language.sentences(arguments.seed), SENTENCES)))
        texts = texts or [own]
        recipe = Recipe(max_tokens=arguments.tokens, length=64, contexts=4, before=9, after=2, tokens=5)
    store = describe(spliced, texts, place, recipe=recipe)
print(store, f"{place.stat().st_size:,} bytes, {time.perf_counter() - started:.0f} s")  # noqa: T201
