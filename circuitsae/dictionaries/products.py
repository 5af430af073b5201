"""The product with an encoder's weights, by whichever library is fast on the processor at hand.

torch multiplies by Intel's MKL, which on other makers' processors is 1.1 to 2.7 times as slow as the OpenBLAS that numpy
brings, most of all for the few rows and wide weights of an encoder (`python -m benchmarks.products`). Which one is taken
depends on the machine alone, so that the same run gives the same numbers; `CIRCUITSAE_PRODUCTS`, `torch` or `numpy`, asks
for one of them.
"""

import os
import platform
import threading
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import ThreadpoolController
from torch import Tensor

from circuitsae.errors import InputError

VARIABLE = "CIRCUITSAE_PRODUCTS"
_THREADS = threading.Lock()


@torch.no_grad()
def multiply(
    x: Float[Tensor, "row d_in"], weights: Float[Tensor, "d_in feature"], out: Float[Tensor, "row feature"]
) -> Float[Tensor, "row feature"]:
    """Writes `x @ weights` to `out`, and returns it; nothing is recorded for a backward pass.

    Raises:
        InputError: `CIRCUITSAE_PRODUCTS` asks for what is not there.
    """
    blas = openblas() if x.device.type == "cpu" else None
    if blas is None:
        return torch.mm(x, weights, out=out)
    # The number of threads is the library's, not the caller's: whoever changes it is alone until it is back.
    with _THREADS, blas.limit(limits=torch.get_num_threads(), user_api="blas"):
        np.matmul(x.detach().numpy(), weights.detach().numpy(), out=out.numpy())
    return out


def openblas() -> ThreadpoolController | None:
    """Returns what sets numpy's OpenBLAS' threads, `None` where torch's own product is to be used.

    Raises:
        InputError: `CIRCUITSAE_PRODUCTS` is neither `torch` nor `numpy`, or it is `numpy`, whose library is another one here.
    """
    return _openblas(os.environ.get(VARIABLE, ""))


@cache
def _openblas(wanted: str) -> ThreadpoolController | None:
    if wanted not in ("", "torch", "numpy"):
        raise InputError(f"{VARIABLE} is {wanted!r}; expected torch or numpy, or nothing for what is fast here.")
    slow = torch.backends.mkl.is_available() and any(maker in _processor() for maker in ("AMD", "Hygon"))
    if wanted == "torch" or not (wanted or slow):
        return None
    found = ThreadpoolController().select(internal_api="openblas")
    if wanted and not found.lib_controllers:
        raise InputError(f"{VARIABLE} is {wanted!r}, and this numpy multiplies by another library than OpenBLAS.")
    return found if found.lib_controllers else None


def _processor() -> str:
    """Returns the name that the processor's maker gives itself, "AuthenticAMD" say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")
