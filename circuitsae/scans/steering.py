"""The metric as a node is scaled, beside the straight line that attribution predicts: where does that line break?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from circuitsae.attribution.effects import make_context, run_method
from circuitsae.errors import InputError, NodeError
from circuitsae.interventions import Scale, intervene_in
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.scans import plotting
from circuitsae.scans.tables import dataframe
from circuitsae.task.task import Task

COLUMNS = ("scale", "metric", "linear")


@dataclass(frozen=True)
class SteeringCurve:
    """The metric against the factor that a node is multiplied by.

    Attributes:
        node: The node.
        scales: Factors, ascending; 1 leaves the node alone, 0 ablates it.
        metrics: The metric that the model really gives.
        slope: Change of the metric per unit of the factor that attribution predicts, at 1.
        clean: The metric at 1.
        description: What the metric is.
    """

    node: str
    scales: tuple[float, ...]
    metrics: tuple[float, ...]
    slope: float
    clean: float
    description: str

    @property
    def linear(self) -> tuple[float, ...]:
        """The metric that the straight line through the clean run predicts."""
        return tuple(self.clean + self.slope * (scale - 1) for scale in self.scales)

    def breaks(self, tolerance: float = 0.1) -> tuple[float | None, float | None]:
        """Returns the factors nearest to 1, below and above, at which the line is off by more than `tolerance`.

        The measure is the predicted change: at a scale whose change is predicted to be 2, 0.1 allows 0.2.
        """
        points = list(zip(self.scales, self.metrics, self.linear, strict=True))
        off = [s for s, metric, line in points if abs(metric - line) > tolerance * abs(self.slope * (s - 1)) and s != 1]
        below, above = [s for s in off if s < 1], [s for s in off if s > 1]
        return (max(below) if below else None, min(above) if above else None)

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame with the columns scale, metric and linear.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        points = zip(self.scales, self.metrics, self.linear, strict=True)
        rows = [{"scale": scale, "metric": metric, "linear": line} for scale, metric, line in points]
        return dataframe(rows, COLUMNS)

    def plot(self, *, tolerance: float = 0.1, backend: str = "matplotlib") -> Any:
        """Returns the curve, the line and where they part as a matplotlib or plotly figure.

        Raises:
            MissingExtraError: The backend is not installed.
        """
        return plotting.curve(self, tolerance=tolerance, backend=backend)


@in_own_mode
def scan_scales(
    spliced: SplicedModel,
    task: Task,
    node: str,
    *,
    scales: Sequence[float] | None = None,
    errors: str = "live",
    skip_positions: Sequence[int] | None = None,
) -> SteeringCurve:
    """Multiplies a node by factors from -2 to 3 and returns the metric at each.

    Cost: one forward and one backward pass for the line, and one forward pass a factor, batched.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt and metric.
        node: A feature, error or token node at one position.
        scales: The factors; 21 from -2 to 3 when `None`.
        errors: As for `intervene`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.

    Raises:
        NodeError: The node is none of this prompt, or a feature that is not active, which scaling leaves alone.
        InputError: No factor is given.
    """
    factors = sorted({float(s) for s in (scales if scales is not None else [n / 4 for n in range(-8, 13)])})
    if not factors:
        raise InputError("There are no scales; expected one factor at least, such as scales=[0, 1, 2].")
    context = make_context(spliced, task, baseline="zero", skip_positions=skip_positions)
    effects = run_method(context)
    results = intervene_in(context, [[Scale(node, s)] for s in factors], errors=errors, nodes=[node])
    if not any(results[0].activations_before.values()):
        raise NodeError(f"{node!r} is not active, so scaling it does nothing; Set or Steer it instead.")
    return SteeringCurve(
        node=node,
        scales=tuple(factors),
        metrics=tuple(r.metric_after for r in results),
        slope=-effects.effect_of(node),
        clean=results[0].metric_before,
        description=str(context.task.metric.description.get("description", "metric")),
    )
