"""Packages that come with an extra: imported when they are wanted."""

import importlib
from typing import Any

from circuitsae.errors import MissingExtraError

_EXTRAS = {"pandas": "dataframe", "matplotlib": "plots", "plotly": "plots", "torch_geometric": "pyg"}


def wanted(module: str, what: str) -> Any:
    """Returns a module of such a package.

    Args:
        module: Its full name.
        what: What needs it, for the message.

    Raises:
        MissingExtraError: The package is not installed.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, package, _EXTRAS[package]) from error
