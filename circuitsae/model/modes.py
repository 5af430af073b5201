"""torch's modes: what the package computes must not depend on the one that its caller is in."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")


def in_own_mode(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates what runs a model: within `torch.no_grad` or `torch.inference_mode` it does what it does elsewhere.

    A notebook that turns gradients off once for all cells would else get an error from the depths of autograd.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch.inference_mode(False), torch.enable_grad():
            return function(*args, **kwargs)

    return run
