"""Letting a model write with nodes set to other values, next to what it writes of itself."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.attribution.effects import Context, make_context
from circuitsae.errors import InputError, TaskError
from circuitsae.extras import wanted
from circuitsae.interventions.compiling import EditAt, compile_node, node_positions
from circuitsae.interventions.kinds import AblateEdge, Intervention, PathPatch
from circuitsae.model.edits import FeatureEdit, VectorEdit, live_hooks, placed
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.names import NodeKey
from circuitsae.progress import Progress
from circuitsae.task.metrics import Logit
from circuitsae.task.task import Task


@dataclass(frozen=True)
class Continuation:
    """What was written.

    Attributes:
        token_ids, strings: The tokens; the end-of-text token, where one was written, is the last.
        log_probs: Natural logarithm of each token's probability when it was written, at temperature 1.
    """

    token_ids: tuple[int, ...]
    strings: tuple[str, ...]
    log_probs: tuple[float, ...]

    @property
    def text(self) -> str:
        """The tokens as text."""
        return "".join(self.strings)


@dataclass(frozen=True)
class Generation:
    """What a model wrote, without and with the edits. Pairs of samples were drawn with the same random numbers.

    Attributes:
        prompt: The prompt's tokens.
        before: One continuation a sample, by the model as it is.
        after: With the edits.
        cached: Whether the keys and values of earlier tokens were kept from step to step.
    """

    prompt: tuple[str, ...]
    before: tuple[Continuation, ...]
    after: tuple[Continuation, ...]
    cached: bool

    def first_difference(self, sample: int = 0) -> int | None:
        """Returns at which token written the two part, counted from 0; `None` where they don't."""
        before, after = self.before[sample].token_ids, self.after[sample].token_ids
        for step, (a, b) in enumerate(zip(before, after, strict=False)):
            if a != b:
                return step
        return None if len(before) == len(after) else min(len(before), len(after))

    def side_by_side(self, width: int = 100) -> str:
        """Returns the two texts as columns of a table, one row a sample."""
        column = max(10, (width - 3) // 2)
        lines = [f"{'before':<{column}} | after", f"{'-' * column}-+-{'-' * column}"]
        for number, (before, after) in enumerate(zip(self.before, self.after, strict=True)):
            if number:
                lines.append(f"{'':<{column}} |")
            left, right = (textwrap.wrap(c.text, column) or [""] for c in (before, after))
            for row in range(max(len(left), len(right))):
                a, b = (part[row] if row < len(part) else "" for part in (left, right))
                lines.append(f"{a:<{column}} | {b}".rstrip())
        return "\n".join(lines)

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a token: sample, run (before or after), step, token, token_id, log_prob.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = [
            (sample, run, step, string, token_id, log_prob)
            for run, several in (("before", self.before), ("after", self.after))
            for sample, c in enumerate(several)
            for step, (string, token_id, log_prob) in enumerate(zip(c.strings, c.token_ids, c.log_probs, strict=True))
        ]
        return wanted("pandas", "to_dataframe()").DataFrame(
            rows, columns=["sample", "run", "step", "token", "token_id", "log_prob"]
        )


@in_own_mode
def generate(
    spliced: SplicedModel,
    prompt: str | Sequence[int] | Task,
    edits: Sequence[Intervention],
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    samples: int = 1,
    stop_at_end: bool = True,
    baseline: str | None = None,
    skip_positions: Sequence[int] | None = None,
    use_cache: bool = True,
    progress: Progress | None = None,
) -> Generation:
    """Lets the model continue a prompt, as it is and with nodes set to other values at every step.

    Edits at positions of the prompt (`@5`, `@-1`, `@2:5`) hold there; `@*`, slices without an end and `Steer` without a
    position go on over the tokens that are written, `@new` means these alone. `Ablate` sets to zero there. Cost: one
    forward pass of the prompt and one a token, for both texts and all samples together; without a cache, one of
    everything so far a token.

    Args:
        spliced: The model with its dictionaries.
        prompt: Text, token ids, or a task, whose patch prompt is then what `Ablate` sets nodes to.
        edits: As for `intervene`, without paths.
        max_new_tokens: Tokens to write.
        temperature: 0 takes the likeliest token; else logits are divided by it and sampled.
        top_k: Samples among the likeliest `k` only.
        top_p: Samples among the likeliest tokens that together have this probability.
        seed: Of the random numbers.
        samples: Number of continuations.
        stop_at_end: Stops at the tokenizer's end-of-text token.
        baseline: What `Ablate` sets to, see `intervene`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.
        use_cache: Keeps keys and values from step to step, where the model takes them.
        progress: Called with tokens written, their number and a word; returning `False` cancels.

    Raises:
        NodeError: A key names no node of this model and prompt.
        InputError: A number out of range, or an edit of a path.
        TaskError: Prompt and continuation are longer than the model's context window.
    """
    task = prompt if isinstance(prompt, Task) else Task(prompt, metric=Logit(0))
    context = make_context(
        spliced, task, method="ablation", baseline=baseline, skip_positions=skip_positions, progress=progress
    )
    return generate_in(
        context,
        edits,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        samples=samples,
        stop_at_end=stop_at_end,
        use_cache=use_cache,
    )


class Sampling(TypedDict, total=False):
    """How a continuation is written: see `generate`."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    samples: int
    stop_at_end: bool
    use_cache: bool


def generate_in(
    context: Context,
    edits: Sequence[Intervention],
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    samples: int = 1,
    stop_at_end: bool = True,
    use_cache: bool = True,
) -> Generation:
    """Lets the model continue a context's prompt, as it is and with nodes set to other values; see `generate`."""
    _check_sampling(max_new_tokens, temperature, top_k, top_p, samples)
    spliced, tokens = context.spliced, context.task.tokens
    if spliced.n_ctx is not None and len(tokens) + max_new_tokens > spliced.n_ctx:
        raise TaskError(
            f"{len(tokens)} tokens of prompt and {max_new_tokens} more don't fit the context window of {spliced.n_ctx}."
        )
    compiled = [_compiled(context, edit) for edit in edits]
    tokenizer = spliced.vocabulary.tokenizer
    end = getattr(tokenizer, "eos_token_id", None) if stop_at_end else None
    cached = use_cache and context.key_values is not None
    writer = _Writer(context, compiled, samples, cached)
    random = torch.Generator().manual_seed(seed)
    written: list[Tensor] = []
    log_probs: list[Tensor] = []
    ended = torch.zeros(2 * samples, dtype=torch.bool)
    for step, logits in enumerate(writer.steps(max_new_tokens)):
        # One random number for a sample's two texts: where the edits change nothing, they stay the same.
        draws = torch.rand(samples, generator=random, dtype=torch.float64).repeat(2)
        chosen = choose(logits.double().cpu(), draws, temperature=temperature, top_k=top_k, top_p=top_p)
        written.append(chosen)
        log_probs.append(logits.double().cpu().log_softmax(-1).gather(-1, chosen[:, None])[:, 0])
        writer.take(chosen)
        context.report(step + 1, max_new_tokens, "tokens")
        if end is not None:
            ended |= chosen == end
            if bool(ended.all()):
                break
    texts = [
        _continuation(spliced, ids, values, end)
        for ids, values in zip(torch.stack(written, 1).tolist(), torch.stack(log_probs, 1).tolist(), strict=True)
    ]
    return Generation(context.task.strings, tuple(texts[:samples]), tuple(texts[samples:]), cached)


def choose(
    logits: Float[Tensor, "batch d_vocab"],
    draws: Float[Tensor, "batch"],
    *,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """Returns a token for each row: the likeliest at temperature 0, else the one that its draw from [0, 1) falls on.

    >>> choose(torch.tensor([[0.0, 1.0, 0.5]]), torch.tensor([0.9]), temperature=0).tolist()
    [1]
    >>> choose(torch.zeros(1, 4), torch.tensor([0.6]), temperature=1.0).tolist()
    [2]
    """
    if temperature == 0:
        return logits.argmax(-1)
    scores = logits / temperature
    if top_k is not None and top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(top_k, -1).values[:, -1:], -torch.inf)
    probabilities = scores.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier ones have together; the first always stays
        keep = torch.zeros_like(probabilities, dtype=torch.bool).scatter(-1, order, before < top_p)
        probabilities = probabilities.masked_fill(~keep, 0)
    reached = probabilities.cumsum(-1)
    at = torch.searchsorted(reached, (draws[:, None] * reached[:, -1:]).to(reached), right=True)[:, 0]
    # Rounding may leave a draw of almost 1 past the end, or on a token that was ruled out.
    last = probabilities.shape[-1] - 1 - (probabilities.flip(-1) > 0).int().argmax(-1)
    return torch.minimum(at, last)


class _Writer:
    """Runs both texts of all samples step by step; the second half of the batch has the edits."""

    def __init__(
        self, context: Context, compiled: Sequence[tuple[str, NodeKey, str, EditAt]], samples: int, cached: bool
    ) -> None:
        self.context, self.compiled, self.samples, self.cached = context, compiled, samples, cached
        self.tokens = torch.tensor([context.task.tokens], device=context.spliced.device).expand(2 * samples, -1)

    def take(self, chosen: Tensor) -> None:
        """Adds a token to each text."""
        self.tokens = torch.cat([self.tokens, chosen[:, None].to(self.tokens)], 1)

    def steps(self, n: int) -> Iterator[Float[Tensor, "batch d_vocab"]]:
        """Yields the next token's logits, as often as asked for."""
        cache = None
        if self.cached:
            from transformers import DynamicCache

            cache = DynamicCache()
        first = 0
        for _ in range(n):
            total = self.tokens.shape[1]
            hooks = live_hooks(
                self.context.spliced, self._edits(first, total), self._skipped(first, total), self.context.run.embed
            )
            with torch.no_grad():
                logits = self.context.spliced.hooked.forward(
                    self.tokens[:, first:], hooks, logits_at=[total - 1 - first], cache=cache
                )
            assert logits is not None
            yield logits[:, -1]
            first = total if self.cached else 0

    def _edits(self, first: int, total: int) -> list[FeatureEdit | VectorEdit]:
        found: list[FeatureEdit | VectorEdit] = []
        for key, node, selector, at in self.compiled:
            for position in node_positions(self.context, key, node, selector, total):
                if position < first:
                    continue
                edit = at(position)
                assert isinstance(edit, (FeatureEdit, VectorEdit))
                for copy in range(self.samples, 2 * self.samples):
                    moved = placed(edit, copy, position - first)
                    assert isinstance(moved, (FeatureEdit, VectorEdit))
                    found.append(moved)
        return found

    def _skipped(self, first: int, total: int) -> dict[str, Tensor]:
        """The prompt's skipped positions; a token that is written is never one."""
        written = total - self.context.run.n_tokens
        return {
            hook: torch.nn.functional.pad(site.skipped(), (0, written))[first:]
            for hook, site in self.context.run.sites.items()
        }


def _compiled(context: Context, given: Intervention) -> tuple[str, NodeKey, str, EditAt]:
    if isinstance(given, (PathPatch, AblateEdge)):
        raise InputError(
            f"{type(given).__name__} is about the way through one prompt; generate() takes edits of nodes, such as "
            "Ablate, Set or Steer."
        )
    node, selector, at = compile_node(context, given)
    return given.node, node, selector, at


def _continuation(
    spliced: SplicedModel, token_ids: Sequence[int], log_probs: Sequence[float], end: int | None
) -> Continuation:
    length = len(token_ids)
    if end is not None and end in token_ids:
        length = token_ids.index(end) + 1
    ids = tuple(token_ids[:length])
    return Continuation(ids, tuple(spliced.vocabulary.strings(ids)), tuple(log_probs[:length]))


def _check_sampling(n: int, temperature: float, top_k: int | None, top_p: float | None, samples: int) -> None:
    for name, value in (("max_new_tokens", n), ("samples", samples), ("top_k", top_k)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; expected at least 1.")
    if not temperature >= 0:
        raise InputError(f"The temperature is {temperature}; expected 0 (the likeliest token) or more.")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}; expected more than 0 and at most 1.")
