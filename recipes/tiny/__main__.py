"""`python -m recipes.tiny`: makes the model and the dictionaries anew, or with --evaluate only their card."""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from recipes.tiny import dictionaries, evaluation, model

HOME = Path(__file__).parents[2] / "circuitsae" / "presets" / "tiny"

parser = argparse.ArgumentParser(prog="python -m recipes.tiny", description=__doc__)
parser.add_argument("--home", type=Path, default=HOME, help="where to write (the package's own folder)")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--evaluate", action="store_true", help="measure what is there and write its card, no training")
arguments = parser.parse_args()

torch.set_num_threads(1)  # the same sums in the same order, however many cores there are
started = time.perf_counter()
if not arguments.evaluate:
    trained = model.train(arguments.home / "model", seed=arguments.seed)
    dictionaries.train(trained, arguments.home, seed=arguments.seed)
print(evaluation.write_card(arguments.home))  # noqa: T201
print(f"{time.perf_counter() - started:.0f} s")  # noqa: T201
