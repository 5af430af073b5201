"""An encoder's product by torch and as `circuitsae.dictionaries.products` does it, in turns, the results compared.

    python -m benchmarks.products [--threads 1]

Rows are positions of a prompt; weights are read in the ranges in which a dictionary reads them.
"""

from collections.abc import Sequence

import torch

from benchmarks.timing import median_seconds, parser_of, show
from circuitsae.dictionaries.base import RANGE_BYTES
from circuitsae.dictionaries.products import multiply, openblas

SHAPES = ((576, 3072), (768, 24_576), (2304, 16_384))
ROWS = (1, 4, 16, 64, 256, 1024)


def measure(d_in: int, d_sae: int, n_rows: int) -> dict[str, float]:
    """Returns one row of the result."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(d_in, d_sae, generator=generator)
    x = torch.randn(n_rows, d_in, generator=generator)
    outs = {"torch": torch.empty(n_rows, d_sae), "ours": torch.empty(n_rows, d_sae)}
    step = RANGE_BYTES // (d_in * weights.element_size())

    def run(name: str) -> None:
        for start in range(0, d_sae, step):
            piece, out = weights[:, start : start + step], outs[name][:, start : start + step]
            if name == "torch":
                torch.mm(x, piece, out=out)
            else:
                multiply(x, piece, out)

    taken = {name: median_seconds(lambda name=name: run(name), 9) for name in outs}
    difference = float((outs["torch"] - outs["ours"]).abs().max() / outs["torch"].abs().max())
    return {
        "d_in": d_in,
        "d_sae": d_sae,
        "rows": n_rows,
        "torch_ms": 1000 * taken["torch"],
        "torch_over_ours": taken["torch"] / taken["ours"],
        "difference": difference,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints every figure as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    shapes, counts = (((16, 64),), (1,)) if args.small else (SHAPES, ROWS)
    rows = [measure(d_in, d_sae, n) for d_in, d_sae in shapes for n in counts]
    show({"threads": args.threads, "openblas": openblas() is not None, "rows": rows})


if __name__ == "__main__":
    main()
