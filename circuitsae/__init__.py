"""Traces sparse feature circuits in language models, as graphs whose every number can be checked by an intervention.

    import circuitsae as cs

    spliced = cs.load("smollm2")
    task = cs.Task("When Mary and John went to the store, John gave a drink to", metric=cs.LogitDiff(" Mary", " John"))
    circuit = cs.trace(spliced, task)
    result = cs.intervene(spliced, task, [cs.Ablate("blocks.17.hook_resid_post/421@9")])

The names in `__init__.pyi` are the public contract; each is imported when first used, so that `import circuitsae` costs
nothing.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    alias.name: str(line.module)
    for line in ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    if isinstance(line, ast.ImportFrom)
    for alias in line.names
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'circuitsae' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
