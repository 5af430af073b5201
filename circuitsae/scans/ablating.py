"""What ablating each feature and error node does, on one prompt or many, beside what attribution predicted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from circuitsae import names
from circuitsae.attribution.effects import make_context, run_method
from circuitsae.attribution.exact import measure_nodes
from circuitsae.correlation import correlation, line, ranks
from circuitsae.errors import InputError
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report
from circuitsae.scans import plotting
from circuitsae.scans.tables import Columns, Matrix, dataframe, matrix, short
from circuitsae.task.task import PreparedTask, Task

COLUMNS = (
    "prompt",
    "node",
    "kind",
    "site",
    "index",
    "position",
    "token",
    "activation",
    "baseline",
    "predicted",
    "measured",
)


@dataclass(frozen=True)
class Agreement:
    """How well predicted effects match measured ones.

    Attributes:
        n: Number of nodes.
        correlation: Pearson's, `None` where one side does not vary.
        rank_correlation: Spearman's, likewise.
        slope, intercept: Of the line through the points, measured against predicted; 1 and 0 where they agree.
        sign_errors: Share of nodes, among those whose effects are not 0, whose effect has the other sign.
        outliers: The rows farthest from the diagonal, farthest first.
    """

    n: int
    correlation: float | None
    rank_correlation: float | None
    slope: float | None
    intercept: float | None
    sign_errors: float | None
    outliers: tuple[dict[str, Any], ...]

    def __str__(self) -> str:
        def said(value: float | None) -> str:
            return "undefined" if value is None else f"{value:.3f}"

        far = ", ".join(short(row["node"]) for row in self.outliers[:3])
        return (
            f"{self.n} nodes: r = {said(self.correlation)}, rank r = {said(self.rank_correlation)}, slope "
            f"{said(self.slope)}, sign errors {said(self.sign_errors)}" + (f"; farthest off: {far}" if far else "")
        )


@dataclass(frozen=True)
class AblationScan:
    """Measured and predicted effects of nodes, one row a node and prompt.

    Attributes:
        rows: Columns as in `COLUMNS`; `prompt` is the task's number, `measured` and `predicted` are effects.
        tasks: The prompts.
        metric: What the effects are of.
    """

    rows: tuple[dict[str, Any], ...]
    tasks: tuple[PreparedTask, ...] = field(repr=False)
    metric: str

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a node and prompt.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return dataframe(self.rows, COLUMNS)

    def strongest(self, n: int = 10) -> list[dict[str, Any]]:
        """Returns the rows with the largest measured |effect|."""
        return sorted(self.rows, key=lambda row: (-abs(row["measured"]), names.sort_key(row["node"])))[:n]

    def matrix(self, by: Columns = "prompt", quantity: str = "measured", top: int = 40) -> Matrix:
        """Returns effects by node and prompt (summed over positions) or position (averaged over prompts).

        Raises:
            UnknownNameError: `by` is neither `"prompt"` nor `"position"`.
        """
        return matrix(self.rows, quantity, by, self.tasks, top, sum if by == "prompt" else fmean)

    def agreement(self, outliers: int = 5) -> Agreement:
        """Returns how well the predictions match, and the nodes for which they match least."""
        predicted, measured = ([row[side] for row in self.rows] for side in ("predicted", "measured"))
        far = sorted(self.rows, key=lambda row: -abs(row["measured"] - row["predicted"]))[:outliers]
        signed = [p * m < 0 for p, m in zip(predicted, measured, strict=True) if p != 0 and m != 0]
        slope, intercept = line(predicted, measured)
        return Agreement(
            n=len(self.rows),
            correlation=correlation(predicted, measured),
            rank_correlation=correlation(ranks(predicted), ranks(measured)),
            slope=slope,
            intercept=intercept,
            sign_errors=fmean(signed) if signed else None,
            outliers=tuple(far),
        )

    def plot(
        self, by: Columns = "prompt", *, quantity: str = "measured", top: int = 40, backend: str = "matplotlib"
    ) -> Any:
        """Returns the heatmap of `matrix` as a matplotlib or plotly figure.

        Raises:
            MissingExtraError: The backend is not installed.
        """
        return plotting.heatmap(
            self.matrix(by, quantity, top), title=f"{quantity} effect on {self.metric}", backend=backend
        )

    def plot_agreement(self, *, outliers: int = 5, backend: str = "matplotlib") -> Any:
        """Returns predicted against measured effects as a scatter, with the diagonal and the outliers' names.

        Raises:
            MissingExtraError: The backend is not installed.
        """
        return plotting.scatter(self.rows, self.agreement(outliers), metric=self.metric, backend=backend)


@in_own_mode
def scan_ablation(
    spliced: SplicedModel,
    tasks: Task | Sequence[Task],
    *,
    kinds: Sequence[str] = ("feature", "error"),
    sites: Sequence[str] | None = None,
    position: int | None = None,
    top: int | None = None,
    method: str = "attribution-patching",
    baseline: str | None = None,
    skip_positions: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> AblationScan:
    """Ablates every active feature and error node, one at a time, and sets what happens beside what was predicted.

    Cost: one prediction a prompt, and one forward pass a node from its layer and position on, batched.

    Args:
        spliced: The model with its dictionaries.
        tasks: One task, or several with one metric.
        kinds: `"feature"`, `"error"`, `"token"`.
        sites: Some of the sites; all when `None`.
        position: One position only, from the end if negative.
        top: Only so many nodes a prompt, those with the largest predicted |effect|; all when `None`.
        method: What predicts, see `node_effects`.
        baseline: What nodes are set to, see `node_effects`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.
        progress: Called with prompts done, their number and a word; returning `False` cancels.

    Raises:
        InputError: There is no task, or no node to ablate.
    """
    several = [tasks] if isinstance(tasks, Task) else list(tasks)
    if not several:
        raise InputError("There is nothing to scan; expected one task at least.")
    rows: list[dict[str, Any]] = []
    prepared: list[PreparedTask] = []
    for number, task in enumerate(several):
        context = make_context(
            spliced, task, method=method, baseline=baseline, sites=sites, skip_positions=skip_positions
        )
        effects = run_method(context)
        n_tokens = len(context.task.tokens)
        at = None if position is None else position % n_tokens
        found = [r for r in effects.records(kinds) if at is None or r["position"] == at]
        if top is not None:
            found = sorted(found, key=lambda r: (-abs(r["effect"]), names.sort_key(r["node"])))[:top]
        measured = measure_nodes(context, [r["node"] for r in found])
        for record, value in zip(found, measured, strict=True):
            rows.append({"prompt": number, **record, "predicted": record["effect"], "measured": value})
            del rows[-1]["effect"]
        prepared.append(context.task)
        report(progress, number + 1, len(several), "prompts")
    if not rows:
        raise InputError("No node is active there; choose other sites, kinds or another position.")
    described = {str(p.metric.description.get("description", "metric")) for p in prepared}
    name = str(prepared[0].metric.description.get("name", "metric"))
    return AblationScan(tuple(rows), tuple(prepared), described.pop() if len(described) == 1 else name)
