"""ZeroGPU, the Hugging Face hub's shared GPUs: a function that is marked borrows one while it runs.

Import this before torch: `spaces`, where it is installed, wants to be there first. Elsewhere nothing is changed.
"""

import os
from collections.abc import Callable
from typing import Any

try:
    import spaces as _spaces  # type: ignore[import-not-found]
except ImportError:  # everywhere but on a Space, and on one without its package
    _spaces = None

SECONDS = 60
"""What a call may take at most unless it is said otherwise; the hub's own default."""


def is_there() -> bool:
    """Returns whether this is a Space on ZeroGPU: then computing goes to a borrowed GPU (gradio_app/borrowed.py)."""
    return _spaces is not None and os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def on_gpu(function: Callable[..., Any] | None = None, *, duration: int | Callable[..., int] = SECONDS) -> Any:
    """Marks a function or generator that computes: on ZeroGPU it runs on a GPU, elsewhere it is left as it is.

    On ZeroGPU it runs in a process of its own: what it is given and what it returns is copied, so return arrays on the
    CPU, and keep nothing in globals. It may not be a coroutine.

    Args:
        function: The function, or nothing where options are given: `@on_gpu(duration=90)`.
        duration: Seconds that it may take at most, or a function of the same arguments that says so.

    Example:
        >>> @on_gpu
        ... def double(x):
        ...     return 2 * x
        >>> double(21)
        42
    """

    def mark(marked: Callable[..., Any]) -> Callable[..., Any]:
        return marked if _spaces is None else _spaces.GPU(duration=duration)(marked)

    return mark if function is None else mark(function)
