"""One task of a set, ready to be evaluated: its clean run, its nodes and what they are set to."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from circuitsae.attribution.baselines import BASELINES, Baseline, make_baseline
from circuitsae.attribution.effects import Context
from circuitsae.errors import InputError, TaskError, UnknownNameError
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress
from circuitsae.task.task import PreparedTask, Task

EVALUATION_BASELINES = (*BASELINES, "resample")

# Runs of so many bytes are kept between the two passes over the tasks; the others are made again.
_KEPT_BYTES = 256 * 2**20


class Prompts:
    """The tasks of an evaluation. `prompts[n]` runs the model for one of them, or gives a run that is still there.

    With `together`, a task and its patch prompt run in one batch. A task that a method opens is run by itself, and rounded
    differently: where there is a method all must be, so that an evaluation that goes on gives the same table.

    Raises:
        UnknownNameError: There is no such baseline.
        InputError: No tasks, `"patch"` for a task without a patch prompt, or `"resample"` without another of its length.
        TaskError: A task does not fit the model; the message has its number.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        tasks: Sequence[Task],
        *,
        baseline: str | None = None,
        reference: Sequence[str | Sequence[int]] | None = None,
        seed: int = 0,
        together: bool = False,
        progress: Progress | None = None,
    ) -> None:
        self.spliced, self.together = spliced, together
        self.prepared = tuple(_prepared(spliced, n, task) for n, task in enumerate(tasks))
        if not self.prepared:
            raise InputError("There is no task to evaluate on; expected a task set, or a list of tasks.")
        if baseline is None:
            baseline = "patch" if all(t.patch_tokens is not None for t in self.prepared) else "zero"
        if baseline not in EVALUATION_BASELINES:
            raise UnknownNameError("baseline", baseline, EVALUATION_BASELINES)
        self.baseline = baseline
        self.passes: dict[str, float] = {"forward": 0.0, "backward": 0.0}
        self._progress = progress
        self._reference = [tuple(spliced.vocabulary.encode(r)) for r in reference or [t.tokens for t in self.prepared]]
        self._means: dict[int, Baseline] = {}
        self._patches = self._patch_prompts(seed)
        self._kept: dict[int, Context] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, number: int) -> Context:
        if number in self._kept:
            return self._kept[number]
        prompt = self.open(number)
        _ = prompt.run, prompt.nodes
        self.close(number, prompt)
        return prompt

    def open(self, number: int, method: str = "attribution-patching", **options: Any) -> Context:
        """Returns a task on which nothing has been run yet, for a method that makes the clean run itself.

        With `together` there is no method, and the runs are there.
        """
        task = self.prepared[number]
        given = self._mean(len(task.tokens)) if self.baseline == "mean" else None
        patch = self._patches[number]
        prompt = Context(
            self.spliced,
            replace(task, patch_tokens=patch, patch_strings=None),
            method=method,
            baseline="zero" if patch is None else "patch",
            given=given,
            options=options,
        )
        if self.together:
            prompt.run_together()
        return prompt

    def close(self, number: int, prompt: Context) -> None:
        """Counts a prompt's passes, and keeps its runs for the next time if there is room."""
        for kind, count in prompt.passes.items():
            self.passes[kind] += count
            prompt.passes[kind] = 0.0
        prompt.forget_rows()
        size = prompt.nbytes
        if number not in self._kept and self._bytes + size <= _KEPT_BYTES:
            self._kept[number] = prompt
            self._bytes += size

    @property
    def reference_fingerprint(self) -> str | None:
        """The sha256 of the mean's reference prompts, `None` where the baseline is no mean."""
        if self.baseline != "mean":
            return None
        return hashlib.sha256(repr(self._reference).encode()).hexdigest()

    @property
    def length(self) -> int | None:
        """The length in tokens that all prompts have, `None` where they differ."""
        lengths = {len(t.tokens) for t in self.prepared}
        return lengths.pop() if len(lengths) == 1 else None

    def _mean(self, n_tokens: int) -> Baseline:
        if n_tokens not in self._means:
            self.passes["forward"] += len(self._reference)
            self._means[n_tokens] = make_baseline(
                self.spliced,
                "mean",
                n_tokens=n_tokens,
                patch=None,
                reference=self._reference,
                progress=self._progress,
            )
        return self._means[n_tokens]

    def _patch_prompts(self, seed: int) -> list[tuple[int, ...] | None]:
        """Returns the prompt whose values each task's nodes are set to, `None` where the baseline is no prompt."""
        if self.baseline == "patch":
            for n, task in enumerate(self.prepared):
                if task.patch_tokens is None:
                    raise InputError(
                        f"The baseline 'patch' needs a patch prompt for every task; task {n} has none. 'zero', 'mean' "
                        "and 'resample' need none."
                    )
            return [t.patch_tokens for t in self.prepared]
        if self.baseline != "resample":
            return [None] * len(self.prepared)
        found: list[tuple[int, ...] | None] = []
        for n, task in enumerate(self.prepared):
            others = [
                t.tokens
                for k, t in enumerate(self.prepared)
                if k != n and len(t.tokens) == len(task.tokens) and t.tokens != task.tokens
            ]
            if not others:
                raise InputError(
                    f"The baseline 'resample' takes the values of another prompt of equal length; task {n}, of "
                    f"{len(task.tokens)} tokens, has no other."
                )
            found.append(random.Random(f"{seed} {n}").choice(others))
        return found


def _prepared(spliced: SplicedModel, number: int, task: Task) -> PreparedTask:
    if not isinstance(task, Task):
        raise InputError(f"Task {number} is {type(task).__name__}; expected a Task.")
    try:
        prepared = task.prepare(spliced.vocabulary, spliced.n_ctx)
        return replace(prepared, metric=prepared.metric.complete(spliced, prepared.tokens))
    except TaskError as error:
        raise TaskError(f"Task {number}: {error}") from None
