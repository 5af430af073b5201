"""The package's own exceptions. Each message is one sentence: what was given, what would be right.

All derive from [CircuitsaeError][circuitsae.errors.CircuitsaeError], so one `except` catches what the package says on
purpose; those about arguments are `ValueError`s too, so callers that know nothing of this package still do the usual thing.
"""

import difflib
from collections.abc import Iterable


class CircuitsaeError(Exception):
    """Root of every error that this package raises on purpose."""


class InputError(CircuitsaeError, ValueError):
    """An argument that can't be used: the command exits with status 2, the app shows the sentence."""


class UnknownNameError(InputError):
    """A name that nothing is registered, attached or stored under."""

    def __init__(self, what: str, name: object, known: Iterable[str], hint: str = "") -> None:
        known, given = list(known), str(name)[:200]
        near = near_matches(given, known)
        if near:
            tail = f"did you mean {_join(near)}?"
        elif known:
            shown = known[:12]
            tail = f"there is {_join(shown, 'and')}" + (f" and {len(known) - 12} more." if len(known) > 12 else ".")
        else:
            tail = "there is none."
        super().__init__(f"No {what} is called {given!r}; {tail}" + (f" {hint}" if hint else ""))
        self.name, self.known, self.near = str(name), known, near


class NodeError(InputError):
    """A node key that does not parse, or names a node that is not there."""


class TaskError(InputError):
    """A prompt, patch prompt, answer or metric that can't be used with this model."""


class DictionaryError(InputError):
    """Dictionary files that are missing, damaged, of an unknown architecture or of the wrong width."""


class GraphFileError(InputError):
    """A saved circuit that can't be read: not ours, damaged, or of a newer schema."""


class MissingExtraError(CircuitsaeError, ImportError):
    """An optional dependency is not installed; the message gives the pip command that brings it."""

    def __init__(self, what: str, package: str, extra: str | None) -> None:
        install = package if extra is None else f"'circuitsae[{extra}]'"
        super().__init__(f"{what} needs {package}, which is not installed: pip install {install}.")


class FetchError(CircuitsaeError, OSError):
    """A download failed or its contents are not what was pinned. Nothing half done is left behind."""


class SpliceError(CircuitsaeError, RuntimeError):
    """The loaded model does not let a splice or a freeze hold; the message names the hook point."""


class NotFiniteError(CircuitsaeError, ArithmeticError):
    """Logits, a metric or effects are NaN or infinite; the message names the first place that is, and what helps."""


class FlatMetricError(InputError):
    """The metric's gradient is zero at the clean run, so that nothing can be predicted from it."""

    def __init__(self, description: str) -> None:
        super().__init__(
            f"The gradient of the metric ({description}) is zero at the clean run, so every effect predicted from it would "
            "be 0, and every edge; method='auto' predicts from its curvature, method='ablation' measures effects, of "
            "node_effects and of intervene, and integrated-gradients takes gradients elsewhere."
        )


class PluginError(CircuitsaeError):
    """A plugin is broken; the message names it and its distribution."""


class CancelledError(CircuitsaeError):
    """The caller's progress callback asked to stop."""


def near_matches(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """Returns up to `n` of `known` that look like `name`, best first."""
    known = list(known)
    by_fold: dict[str, str] = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), list(by_fold), n=n, cutoff=0.6)
    near += [f for f in by_fold if name and name.casefold() in f and f not in near]
    return [by_fold[f] for f in near[:n]]


def _join(names: list[str], word: str = "or") -> str:
    quoted = [repr(n) for n in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} {word} {quoted[-1]}"
