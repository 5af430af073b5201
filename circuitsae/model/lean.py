"""A quicker start for processes that are ours: imports TransformerBridge without what tracing never uses.

`import transformer_lens` and its bridge take twice as long as torch, most of it for torch's compiler, distributed
tensors, and datasets with pandas, none of which a command needs. Only the command line calls this: in a process that
others share, such as a notebook, transformers and TransformerLens stay as they are.
"""

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")  # of no effect where nothing is compiled
_DEFERRED = {  # module: those of its names that are such decorators
    "datasets": (),
    "datasets.arrow_dataset": (),
    "datasets.iterable_dataset": (),
    "datasets.load": (),
    "pandas": (),
    "scipy.optimize": (),  # for object detection
    "torch._dynamo": _DECORATORS,
    "torch._dynamo._trace_wrapped_higher_order_op": (),
}
_AFFECTED = ("transformers", "transformer_lens")


_started = False


def start() -> None:
    """Imports TransformerBridge without the compiler, distributed tensors and datasets, where that is possible.

    Does nothing where transformers or transformer_lens was imported before. If anything goes wrong on the way, what was
    imported is dropped and will be imported in the ordinary way: a future release costs time, not correctness.
    """
    global _started
    if any(name in sys.modules for name in _AFFECTED):
        return
    before = set(sys.modules)
    try:
        with _placeholders():
            importlib.import_module("transformer_lens.model_bridge")
            _ = importlib.import_module("transformers").GenerationMixin  # loads what every model loads
    except Exception:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in _AFFECTED:
                del sys.modules[name]
    else:
        _started = True


@contextlib.contextmanager
def building() -> Iterator[None]:
    """A context in which to load a model's weights: after `start`, that doesn't bring the compiler in either."""
    if not _started:
        yield
        return
    from torch.nn import init

    fill = getattr(init, "_no_grad_normal_", None)

    def fill_unless_meta(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor if tensor.is_meta else fill(tensor, *args, **kwargs)  # type: ignore[misc]

    if fill is not None:  # on the meta device there is nothing to fill, but torch would load sympy to find that out
        init._no_grad_normal_ = fill_unless_meta
    try:
        with _placeholders():
            yield
    finally:
        if fill is not None:
            init._no_grad_normal_ = fill


@contextlib.contextmanager
def _placeholders() -> Iterator[None]:
    """Puts placeholders where heavy modules would be imported, and takes them away again."""
    import torch
    import torch.distributed

    kept = {name: getattr(torch.compiler, name) for name in _DECORATORS}
    is_available = torch.distributed.is_available
    placed = {name: _Placeholder(name, plain) for name, plain in _DEFERRED.items() if name not in sys.modules}
    sys.modules.update(placed)
    if "torch._dynamo" in placed:
        torch._dynamo = placed["torch._dynamo"]
    for name in _DECORATORS:
        setattr(torch.compiler, name, _undecorated)
    # transformers asks once, and lives without where torch was built without
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available
        for name, decorator in kept.items():
            setattr(torch.compiler, name, decorator)
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
        if vars(torch).get("_dynamo") is placed.get("torch._dynamo", torch):
            del torch._dynamo


class _Placeholder(types.ModuleType):
    """Stands in for a module whose names are imported but not used; a use imports the module after all."""

    def __init__(self, name: str, plain: tuple[str, ...]) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__ = []
        for decorator in plain:
            setattr(self, decorator, _undecorated)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _Deferred(name, (), {"__module__": self.__name__})
        setattr(self, name, value)
        return value


class _Deferred(type):
    """A name from a placeholder: good for annotations; called, it is what it stands for."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(cls.__module__), cls.__name__)(*args, **kwargs)


def _undecorated(function: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Any:
    return function if function is not None else _undecorated
