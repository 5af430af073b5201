"""Interventions: set nodes to other values and see what really happens.

Every number in a circuit is a prediction that these can check: `effect` is `m(edited) - m(clean)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context, make_context
from circuitsae.attribution.exact import ablating_edit
from circuitsae.errors import InputError, NodeError, UnknownNameError
from circuitsae.model.edits import Edit, Edited, FeatureEdit, VectorEdit, run_edited
from circuitsae.model.runs import EMBED
from circuitsae.model.spliced import SplicedModel
from circuitsae.task.task import Task
from circuitsae.task.vocabulary import Vocabulary

Value = float | Sequence[float] | Tensor


class Intervention(Protocol):
    """An edit of one node, or of a node at every position (`@*`)."""

    @property
    def node(self) -> str:
        """The node's key."""
        ...


@dataclass(frozen=True)
class Ablate:
    """Sets a node to its baseline: zero, or its value on the patch prompt when the task has one.

    Example:
        >>> Ablate("blocks.17.hook_resid_post/421@9").node
        'blocks.17.hook_resid_post/421@9'
    """

    node: str


@dataclass(frozen=True)
class Scale:
    """Multiplies a node's value: `Scale(node, 2)` doubles it."""

    node: str
    by: float


@dataclass(frozen=True)
class Add:
    """Adds to a node's value: a number to a feature's activation, a vector to an error node or embedding."""

    node: str
    value: Value


@dataclass(frozen=True)
class Set:
    """Sets a node's value: a number for a feature, a vector (or 0) for an error node or embedding."""

    node: str
    value: Value


@dataclass(frozen=True)
class InterventionResult:
    """What an intervention did.

    Attributes:
        metric_before, metric_after: The metric on the clean and on the edited run.
        kl: KL divergence of the edited next-token distribution from the clean one, in nats, at the metric's position.
        activations: New value by node key: activations of features, norms of error nodes and embeddings.
        activations_before: The same nodes on the clean run.
        logits_before, logits_after: Scores at the metric's position.
    """

    metric_before: float
    metric_after: float
    kl: float
    activations: dict[str, float]
    activations_before: dict[str, float]
    logits_before: Float[Tensor, "d_vocab"] = field(repr=False)
    logits_after: Float[Tensor, "d_vocab"] = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)

    @property
    def effect(self) -> float:
        """The metric after minus the metric before."""
        return self.metric_after - self.metric_before

    def top_tokens(self, k: int = 10) -> list[tuple[str, float]]:
        """Returns the k likeliest next tokens of the edited run with their probabilities."""
        return top_tokens(self.logits_after, self.vocabulary, k)

    def top_tokens_before(self, k: int = 10) -> list[tuple[str, float]]:
        """Returns the k likeliest next tokens of the clean run with their probabilities."""
        return top_tokens(self.logits_before, self.vocabulary, k)


def top_tokens(logits: Float[Tensor, "d_vocab"], vocabulary: Vocabulary, k: int = 10) -> list[tuple[str, float]]:
    """Returns the k likeliest tokens with their probabilities."""
    probabilities = logits.float().softmax(-1)
    top = probabilities.topk(min(k, len(probabilities)))
    return [(vocabulary.string(t), p) for t, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]


def intervene(
    spliced: SplicedModel,
    task: Task,
    edits: Sequence[Intervention],
    *,
    errors: str = "live",
    baseline: str | None = None,
    circuit: Any = None,
    nodes: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
) -> InterventionResult:
    """Runs the prompt with nodes set to other values, all at once. `effect = after - before`.

    A feature edit changes what its dictionary writes by `(new - current) * W_dec[i]`, so sites without an edit are
    untouched; `current` is the live value, after the edits below. Cost: one forward pass for the clean run and one, from
    the lowest edited layer on, for the edited one.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt and metric; a patch prompt is what `Ablate` sets nodes to.
        edits: `Ablate`, `Scale`, `Add`, `Set` on features, error nodes and tokens; `@*` means all positions. Several
            edits of one node apply in their order.
        errors: `"live"` (recomputed in the edited run) or `"frozen"` (held at their clean values).
        baseline: What `Ablate` sets to: `"zero"` or `"patch"`; by default as for `node_effects`.
        circuit: A circuit whose nodes' new activations are wanted.
        nodes: More keys of nodes whose new activations are wanted.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.

    Raises:
        NodeError: A key does not parse, or names no node of this model and prompt.
        InputError: A value of the wrong kind.
    """
    if errors not in ("live", "frozen"):
        raise UnknownNameError("way to treat errors", errors, ("live", "frozen"))
    context = make_context(spliced, task, method="ablation", baseline=baseline, skip_positions=skip_positions)
    compiled = [edit for given in edits for edit in compile_edits(context, given)]
    wanted = list(nodes or ())
    if circuit is not None:
        wanted += [key for key, kind in circuit.graph.nodes(data="kind") if kind in ("feature", "error", "token")]
    edited = run_edited(
        context.spliced, context.run, context.readout, compiled, 1, errors_frozen=errors == "frozen", want_values=True
    )
    return result_of(context, edited, 0, wanted)


def result_of(context: Context, edited: Edited, prompt: int, nodes: Sequence[str]) -> InterventionResult:
    """Reads one prompt of a batch of edited runs."""
    run = context.run
    assert run.metric is not None
    after = float(context.readout.value(edited.logits)[prompt])
    positions = context.task.metric.positions
    at = run.kept.index(positions[-1] if positions else run.n_tokens - 1)
    logits_before, logits_after = run.logits[at].float(), edited.logits[prompt, at].float()
    log_before, log_after = logits_before.log_softmax(-1), logits_after.log_softmax(-1)
    kl = float((log_before.exp() * (log_before - log_after)).sum().clamp_min(0))
    return InterventionResult(
        metric_before=run.metric,
        metric_after=after,
        kl=kl,
        activations=_activations(context, edited, prompt, nodes),
        activations_before=_activations(context, None, 0, nodes),
        logits_before=logits_before,
        logits_after=logits_after,
        vocabulary=context.spliced.vocabulary,
    )


def compile_edits(context: Context, given: Intervention) -> list[Edit]:
    """Turns one intervention into edits, one a position.

    Raises:
        NodeError: The key names no node of this model and prompt.
        InputError: A value of the wrong kind.
    """
    node = _checked(context, given.node)
    if node.kind in (names.BIAS, names.METRIC):
        raise NodeError(f"The {node.kind} node can't be set; expected a feature, error or token node.")
    found: list[Edit] = []
    for position in _positions(context, node):
        here = node.at(position)
        if isinstance(given, Ablate):
            found.append(ablating_edit(context, str(here)))
            continue
        if isinstance(given, Scale):
            times, plus = float(given.by), None
        elif isinstance(given, (Add, Set)):
            times, plus = (1.0 if isinstance(given, Add) else 0.0), given.value
        else:
            raise InputError(f"{given!r} is not an intervention; expected Ablate, Scale, Add or Set.")
        if node.kind == "feature":
            assert node.site is not None and node.index is not None
            number = context.spliced.dictionary_number(node.site)
            value = 0.0 if plus is None else _number(plus, given.node)
            found.append(FeatureEdit(0, number, node.index, position, times, value))
        else:
            hook = EMBED if node.kind == "token" else context.spliced.canonical(str(node.site))
            found.append(VectorEdit(0, hook, position, times, _vector(context, hook, plus, given.node)))
    return found


def _checked(context: Context, key: str) -> names.NodeKey:
    """Parses a node key and checks it against the model and the prompt."""
    node, spliced = names.parse(key), context.spliced
    n_tokens = len(context.task.tokens)
    if node.kind in (names.BIAS, names.METRIC):
        return node
    if node.position is None:
        raise NodeError(f"{key!r} names no position; add one, '{key}@{n_tokens - 1}', or '{key}@*' for all.")
    if isinstance(node.position, int) and node.position >= n_tokens:
        raise NodeError(
            f"{key!r} is past the end of the prompt; its {n_tokens} tokens have positions 0 to {n_tokens - 1}."
        )
    if node.kind == "feature":
        dictionary = spliced.dictionary(str(node.site))
        if node.index is not None and node.index >= dictionary.d_sae:
            raise NodeError(
                f"{key!r} is outside its dictionary, which has features 0 to {dictionary.d_sae - 1}"
                f"{_active_hint(context, spliced.dictionary_number(str(node.site)), node.position)}."
            )
        if isinstance(node.position, int) and node.position not in spliced.kept_positions(n_tokens):
            raise NodeError(
                f"{key!r} is at a skipped position, where no dictionary is applied; the error node "
                f"{names.error(str(node.site), node.position)!r} holds the whole vector there."
            )
    elif node.kind == "error" and node.site not in spliced.written:
        try:
            spliced.canonical(str(node.site))
        except KeyError:
            raise UnknownNameError("hook point written by a dictionary", node.site, spliced.written) from None
    return node


def _active_hint(context: Context, number: int, position: names.Position) -> str:
    if not isinstance(position, int):
        return ""
    features = context.run.features[number].features
    here = features.rows == position
    top = features.values[here].abs().topk(min(3, int(here.sum()))).indices
    indices = features.indices[here][top].tolist()
    return f"; active at position {position}: {', '.join(map(str, indices))}, ..." if indices else ""


def _positions(context: Context, node: names.NodeKey) -> list[int]:
    if isinstance(node.position, int):
        return [node.position]
    n_tokens = len(context.task.tokens)
    return list(range(n_tokens)) if node.kind == "token" else context.spliced.kept_positions(n_tokens)


def _number(value: Value, key: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise InputError(f"A feature's value is one number; {key!r} was given {_shape(value)}.")


def _vector(context: Context, hook: str, value: Value | None, key: str) -> Tensor | None:
    if value is None or (isinstance(value, (int, float)) and value == 0):
        return None
    width = context.run.embed.shape[-1] if hook == EMBED else context.run.sites[hook].x.shape[-1]
    vector = torch.as_tensor(value, dtype=context.run.embed.dtype, device=context.run.embed.device).flatten()
    if vector.shape[0] != width:
        raise InputError(f"The value of {key!r} is a vector of {width} numbers, or 0; given was {_shape(value)}.")
    return vector


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]


def _activations(context: Context, edited: Edited | None, prompt: int, keys: Sequence[str]) -> dict[str, float]:
    """Returns the values of nodes: on the clean run, or on one prompt of an edited batch."""
    spliced, run = context.spliced, context.run
    parsed = [(key, _checked(context, key)) for key in keys]
    result: dict[str, float] = {}
    with torch.no_grad():
        for number in range(len(spliced.dictionaries)):
            mine = [(k, n) for k, n in parsed if n.kind == "feature" and n.site == spliced.sites[number]]
            if not mine:
                continue
            features, rows = run.features[number].features, None
            positions = [n.position for _, n in mine if isinstance(n.position, int)]
            at = torch.tensor(positions, device=spliced.device)
            if edited is not None and number in edited.captured.x_in:
                unique, rows = torch.unique(at, return_inverse=True)
                x = edited.captured.x_in[number][prompt, unique].to(run.embed.dtype)
                features = spliced.dictionaries[number].encode(x).features
            indices = torch.tensor([int(n.index or 0) for _, n in mine], device=spliced.device)
            values = features.value_at(at if rows is None else rows, indices).tolist()
            for (key, node), value in zip(mine, values, strict=True):
                given = (
                    None
                    if edited is None
                    else edited.values.get((prompt, number, int(node.index or 0), int(node.position or 0)))
                )  # type: ignore[arg-type]
                result[key] = value if given is None else given
        for key, node in parsed:
            if node.kind == "error":
                result[key] = _error_norm(context, edited, prompt, str(node.site), int(node.position or 0))  # type: ignore[arg-type]
            elif node.kind == "token":
                embed = run.embed if edited is None else edited.captured.embed[prompt]
                result[key] = float(embed[int(node.position or 0)].norm())  # type: ignore[arg-type]
    return {key: result[key] for key in keys}


def _error_norm(context: Context, edited: Edited | None, prompt: int, site: str, position: int) -> float:
    hook = context.spliced.canonical(site)
    if edited is None or hook not in edited.captured.x_out:
        return float(context.run.sites[hook].error[position].norm())
    # What stands there holds the edits of this site's own features too; the error is what its features leave over.
    spliced, run = context.spliced, context.run
    x = edited.captured.x_out[hook][prompt, position].to(run.embed.dtype)
    if position in spliced.kept_positions(run.n_tokens):
        for number, out in spliced.writers[hook]:
            dictionary = spliced.dictionaries[number]
            x_in = edited.captured.x_in[number][prompt, position : position + 1].to(run.embed.dtype)
            encoding = dictionary.encode(x_in)
            x = x - dictionary.decode(encoding, x_in if out == 0 else None, out)[0]
            here = {i: v for (p, n, i, at), v in edited.values.items() if (p, n, at) == (prompt, number, position)}
            if here:
                indices = torch.tensor(list(here), device=x.device)
                values = torch.tensor(list(here.values()), dtype=x.dtype, device=x.device)
                deltas = values - encoding.features.value_at(torch.zeros_like(indices), indices)
                if encoding.scale is not None:
                    deltas = deltas * encoding.scale
                x = x - deltas @ dictionary.decoder_rows(indices, out).to(x)
    return float(x.norm())
