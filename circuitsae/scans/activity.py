"""Which features are active where: a heatmap of features by prompts, or by positions of one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from circuitsae import names
from circuitsae.attribution.effects import make_context
from circuitsae.errors import InputError
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.scans import plotting
from circuitsae.scans.tables import Columns, Matrix, dataframe, matrix
from circuitsae.task.metrics import Logit
from circuitsae.task.task import PreparedTask, Task

COLUMNS = ("prompt", "node", "kind", "site", "index", "position", "token", "activation")


@dataclass(frozen=True)
class ActivityScan:
    """Active features, one row a feature, position and prompt; with error nodes, whose activation is their norm.

    Attributes:
        rows: Columns as in `COLUMNS`; `prompt` is the prompt's number.
        tasks: The prompts.
    """

    rows: tuple[dict[str, Any], ...]
    tasks: tuple[PreparedTask, ...] = field(repr=False)

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a node and prompt.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return dataframe(self.rows, COLUMNS)

    def matrix(self, by: Columns = "prompt", top: int = 40) -> Matrix:
        """Returns activations by node and prompt or position; the largest where several fall together."""
        return matrix(self.rows, "activation", by, self.tasks, top, max)

    def plot(self, by: Columns = "prompt", *, top: int = 40, backend: str = "matplotlib") -> Any:
        """Returns the heatmap of `matrix` as a matplotlib or plotly figure.

        Raises:
            MissingExtraError: The backend is not installed.
        """
        return plotting.heatmap(self.matrix(by, top), title="activation", backend=backend)


@in_own_mode
def scan_activity(
    spliced: SplicedModel,
    prompts: str | Task | Sequence[str | Sequence[int] | Task],
    *,
    sites: Sequence[str] | None = None,
    position: int | None = None,
    errors: bool = False,
    skip_positions: Sequence[int] | None = None,
) -> ActivityScan:
    """Lists the features that are active on prompts. Cost: one forward pass a prompt and one encoding a dictionary.

    Args:
        spliced: The model with its dictionaries.
        prompts: Texts, token ids or tasks.
        sites: Some of the sites; all when `None`.
        position: One position only, from the end if negative; all when `None`.
        errors: Whether error nodes are listed as well.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.

    Raises:
        InputError: There is no prompt.
    """
    several = [prompts] if isinstance(prompts, (str, Task)) else list(prompts)
    if not several:
        raise InputError("There is nothing to scan; expected one prompt at least.")
    rows: list[dict[str, Any]] = []
    prepared: list[PreparedTask] = []
    for number, prompt in enumerate(several):
        task = prompt if isinstance(prompt, Task) else Task(prompt, metric=Logit(0))
        context = make_context(spliced, task, baseline="zero", sites=sites, skip_positions=skip_positions)
        strings, run = context.task.strings, context.run
        at = None if position is None else position % run.n_tokens
        found: list[tuple[str, int | None, int, float]] = []
        for site, features in zip(context.spliced.sites, (f.features for f in run.features), strict=True):
            entries = zip(features.rows.tolist(), features.indices.tolist(), features.values.tolist(), strict=True)
            found += [(site, index, row, value) for row, index, value in entries]
        if errors:
            for hook, site in run.sites.items():
                found += [(hook, None, row, norm) for row, norm in enumerate(site.error.norm(dim=-1).tolist())]
        for site, index, row, value in found:
            if at is None or row == at:
                rows.append(
                    {
                        "prompt": number,
                        "node": names.error(site, row) if index is None else names.feature(site, index, row),
                        "kind": "error" if index is None else "feature",
                        "site": site,
                        "index": index,
                        "position": row,
                        "token": strings[row],
                        "activation": value,
                    }
                )
        prepared.append(context.task)
    return ActivityScan(tuple(rows), tuple(prepared))
