"""What interventions did: the metric, the next token and the nodes, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context
from circuitsae.errors import NodeError
from circuitsae.interventions.compiling import checked, node_positions
from circuitsae.model.edits import Edited
from circuitsae.task.vocabulary import Vocabulary


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


def result_of(context: Context, edited: Edited, prompt: int, nodes: Sequence[str]) -> InterventionResult:
    """Reads one prompt of a batch of edited runs.

    Raises:
        NodeError: `nodes` holds a key that names no node of this model and prompt.
    """
    run = context.run
    nodes = spelled_out(context, nodes)
    assert run.metric is not None
    after = float(context.readout.of(edited.captured)[prompt])
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


def spelled_out(context: Context, keys: Sequence[str]) -> list[str]:
    """Returns node keys with slices and `@*` spelled out, one key a position, none twice.

    Raises:
        NodeError: A key names no node of this model and prompt.
    """
    found: dict[str, None] = {}
    for key in keys:
        node, selector = checked(context, key)
        if node.kind in (names.BIAS, names.METRIC) or selector is None:
            raise NodeError(f"{key!r} has no activation; expected a feature, error or token node.")
        found.update(dict.fromkeys(str(node.at(p)) for p in node_positions(context, key, node, selector)))
    return list(found)


def _activations(context: Context, edited: Edited | None, prompt: int, keys: Sequence[str]) -> dict[str, float]:
    """Returns the values of nodes: on the clean run, or on one prompt of an edited batch."""
    spliced, run = context.spliced, context.run
    parsed = [(key, names.parse(key)) for key in keys]
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
    if position in run.sites[hook].kept.tolist():
        for number, out in spliced.writers[hook]:
            dictionary = spliced.dictionaries[number]
            read = run.features[number].x_in if edited.held else edited.captured.x_in[number][prompt]
            x_in = read[position : position + 1].to(run.embed.dtype)
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
