"""The built-in plugins as data, so that listing them imports nothing. `registry` registers these rows like a stranger's."""

from typing import Any, NamedTuple

from circuitsae.registry import Kind


class Row(NamedTuple):
    """A built-in: where it lives, and what listings show without importing it."""

    kind: Kind
    name: str
    target: str
    summary: str
    extra: dict[str, Any] = {}


ROWS: tuple[Row, ...] = (
    # metrics
    Row("metrics", "logit-diff", "circuitsae.task.metrics:LogitDiff", "logit of the answer minus logit of the foil"),
    Row("metrics", "logit", "circuitsae.task.metrics:Logit", "logit of the answer"),
    Row("metrics", "log-prob", "circuitsae.task.metrics:LogProb", "log-probability of the answer"),
    Row("metrics", "probability", "circuitsae.task.metrics:Probability", "probability of the answer"),
    # methods
    # loaders
    # pruners
    # exporters
    # labels
    # presets
)
