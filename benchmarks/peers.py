"""circuit-tracer, which numbers and times are compared with, imported beside the versions that are pinned here."""

import importlib
from typing import Any


def circuit_tracer(*modules: str) -> Any:
    """Imports some of circuit-tracer's modules, and returns the package.

    Raises:
        ImportError: It is not installed, or can't be imported.
    """
    constants = importlib.import_module("huggingface_hub.constants")
    if not hasattr(constants, "HF_HUB_ENABLE_HF_TRANSFER"):  # gone in huggingface_hub 1; its downloads ask for it
        constants.HF_HUB_ENABLE_HF_TRANSFER = False  # pyright: ignore[reportAttributeAccessIssue]
    for module in modules:
        importlib.import_module(f"circuit_tracer.{module}")
    return importlib.import_module("circuit_tracer")
