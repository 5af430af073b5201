"""Running a model with nodes set to other values, many prompts' worth at once.

A feature edit changes what is written by `(new - current) * W_dec[i]`, an error edit by `new - current` error, so a site
without an edit is untouched. `current` is the live value: what the node has in the edited run, below its own edit. All
edits of one batch share the clean prefix below the lowest edited site (DESIGN.md, section 3.5).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsae.model.hooks import Hook, Prefix
from circuitsae.model.runs import EMBED, Captured, Readout, Run, forward
from circuitsae.model.spliced import SplicedModel


@dataclass(frozen=True, slots=True)
class FeatureEdit:
    """Sets a feature to `times * current + plus` at one position of one prompt of the batch."""

    prompt: int
    number: int
    index: int
    position: int
    times: float
    plus: float


@dataclass(frozen=True, slots=True)
class VectorEdit:
    """Sets an error node (at a hook point written) or a token's embedding (`hook=EMBED`) likewise."""

    prompt: int
    hook: str
    position: int
    times: float
    plus: Float[Tensor, "d"] | None


Edit = FeatureEdit | VectorEdit


@dataclass
class Edited:
    """What a batch of edited runs gave.

    Attributes:
        captured: What the dictionaries read and what stands where they write, by name, batched.
        logits: Scores at the readout's positions, `[batch kept d_vocab]`.
        values: The value that each edited feature was given, by (prompt, dictionary, index, position).
        start: The layer from which the runs were computed; below, they are the clean run.
    """

    captured: Captured
    logits: Float[Tensor, "batch kept d_vocab"]
    values: dict[tuple[int, int, int, int], float]
    start: int


@dataclass
class _Applied:
    """A dictionary's feature edits of one batch as tensors, and what they came to."""

    prompts: Tensor
    positions: Tensor
    indices: Tensor
    times: Tensor
    plus: Tensor
    values: Tensor | None = None
    deltas: Tensor | None = None


def run_edited(
    spliced: SplicedModel,
    run: Run,
    readout: Readout,
    edits: Sequence[Edit],
    n_prompts: int,
    *,
    errors_frozen: bool = False,
    extra: Sequence[tuple[str, Hook]] = (),
    want_values: bool = False,
) -> Edited:
    """Runs `n_prompts` copies of a prompt, each with its edits.

    Args:
        spliced: The model.
        run: The prompt's clean run.
        readout: What is scored.
        edits: All edits; `edit.prompt` says which copy each belongs to. Edits of one node apply in their order.
        n_prompts: Number of copies.
        errors_frozen: Holds all error nodes at their clean values instead of computing them in the edited run.
        extra: Further hooks, freezes say.
        want_values: Whether to fill `Edited.values`.
    """
    start = _start(spliced, run, edits)
    feature_edits = {n: _as_tensors(group, run) for n, group in _by(edits, FeatureEdit, "number").items()}
    vector_edits = _by(edits, VectorEdit, "hook")
    read: dict[int, Tensor] = {}
    values: dict[tuple[int, int, int, int], float] = {}

    def on_write(name: str, x: Tensor) -> Tensor | None:
        writers = spliced.writers[name]
        touched = [(number, out) for number, out in writers if number in feature_edits]
        vectors = vector_edits.get(name, [])
        if not touched and not vectors and not errors_frozen:
            return None
        new = x.to(run.embed.dtype)
        original = new
        if errors_frozen:
            rebuilt = reconstruction(spliced, run, name, read, new)
            new = rebuilt + run.sites[name].error
            new = torch.where(positions_skipped(spliced, run)[:, None], run.sites[name].error, new)
        else:
            new = new.clone()
        for number, out in touched:
            _apply_features(spliced, number, out, feature_edits[number], read[number], new)
        if vectors:
            _apply_errors(spliced, run, name, vectors, read, original, new, errors_frozen)
        return new.to(x.dtype)

    def at_embed(x: Tensor) -> Tensor | None:
        new = x.clone()
        for edit in vector_edits[EMBED]:
            value = edit.times * new[edit.prompt, edit.position]
            new[edit.prompt, edit.position] = value if edit.plus is None else value + edit.plus.to(new.dtype)
        return new

    hooks = list(extra)
    if EMBED in vector_edits:
        hooks.append((EMBED, at_embed))
    first = 0 if start is None else start.layer
    hooks = [(name, hook) for name, hook in hooks if name == EMBED or spliced.hooked.layer(name) >= first]
    with torch.no_grad():
        captured = forward(
            spliced,
            run.tokens.expand(n_prompts, -1),
            readout,
            on_read=read.__setitem__,
            on_write=on_write,
            extra=hooks,
            start=start,
        )
    if want_values:
        for number, applied in feature_edits.items():
            _note_values(number, applied, values)
    assert captured.logits is not None
    return Edited(captured, captured.logits, values, first)


def batch_size(spliced: SplicedModel, n_tokens: int, budget: int = 128 * 2**20) -> int:
    """Returns how many copies of a prompt run at once within a byte budget."""
    cfg = spliced.hooked.cfg
    d_mlp = getattr(cfg, "d_mlp", None) or 4 * spliced.d_model
    heads = getattr(cfg, "n_heads", 1) or 1
    floats = n_tokens * (3 * d_mlp + 6 * spliced.d_model + 3 * heads * n_tokens) + 2 * spliced.vocabulary.d_vocab
    return max(1, min(64, budget // (4 * floats)))


def reconstruction(
    spliced: SplicedModel, run: Run, name: str, read: dict[int, Tensor], like: Tensor
) -> Float[Tensor, "batch pos d_out"]:
    """Returns what the dictionaries make of their live inputs at a hook point, at every position."""
    batch, n_tokens = like.shape[:2]
    rebuilt = torch.zeros_like(like)
    for number, out in spliced.writers[name]:
        dictionary = spliced.dictionaries[number]
        x = read[number].reshape(batch * n_tokens, -1).to(like.dtype)
        rebuilt += dictionary.decode(dictionary.encode(x), x if out == 0 else None, out).view(like.shape)
    return rebuilt


def _start(spliced: SplicedModel, run: Run, edits: Sequence[Edit]) -> Prefix | None:
    layers = []
    for edit in edits:
        if isinstance(edit, FeatureEdit):
            layers += [spliced.hooked.layer(hook) for hook in spliced.dictionaries[edit.number].hook_outs]
            layers.append(spliced.hooked.layer(spliced.reads[edit.number]))
        else:
            layers.append(0 if edit.hook == EMBED else _error_layer(spliced, edit.hook))
    return run.prefix(min(layers)) if layers else None


def _error_layer(spliced: SplicedModel, hook: str) -> int:
    """Returns the layer from which an error node's live value can be computed: where its dictionaries read."""
    return min(
        [spliced.hooked.layer(hook), *(spliced.hooked.layer(spliced.reads[n]) for n, _ in spliced.writers[hook])]
    )


def _by(edits: Iterable[Edit], kind: type, key: str) -> dict:
    groups: dict = {}
    for edit in edits:
        if isinstance(edit, kind):
            groups.setdefault(getattr(edit, key), []).append(edit)
    return groups


def _as_tensors(edits: Sequence[FeatureEdit], run: Run) -> _Applied:
    """Composes the edits of one node, in their order, into one affine map each."""
    composed: dict[tuple[int, int, int], tuple[float, float]] = {}
    for edit in edits:
        node = (edit.prompt, edit.position, edit.index)
        times, plus = composed.get(node, (1.0, 0.0))
        composed[node] = (edit.times * times, edit.times * plus + edit.plus)
    device, dtype = run.embed.device, run.embed.dtype
    nodes = torch.tensor(list(composed), device=device, dtype=torch.long).view(-1, 3)
    maps = torch.tensor(list(composed.values()), device=device, dtype=dtype).view(-1, 2)
    return _Applied(nodes[:, 0], nodes[:, 1], nodes[:, 2], maps[:, 0], maps[:, 1])


def _apply_features(
    spliced: SplicedModel, number: int, out: int, edits: _Applied, read: Tensor, new: Float[Tensor, "batch pos d"]
) -> None:
    dictionary = spliced.dictionaries[number]
    if edits.deltas is None:
        # Only the rows (prompt, position) that hold an edit are encoded.
        n_tokens = read.shape[1]
        rows, inverse = torch.unique(edits.prompts * n_tokens + edits.positions, return_inverse=True)
        encoding = dictionary.encode(read[rows // n_tokens, rows % n_tokens].to(new.dtype))
        current = encoding.features.value_at(inverse, edits.indices)
        edits.values = edits.times * current + edits.plus
        edits.deltas = edits.values - current
        if encoding.scale is not None:
            edits.deltas = edits.deltas * encoding.scale[inverse]
    unique, inverse = torch.unique(edits.indices, return_inverse=True)
    rows = dictionary.decoder_rows(unique, out).to(new)[inverse]
    new.index_put_((edits.prompts, edits.positions), edits.deltas[:, None] * rows, accumulate=True)


def _apply_errors(
    spliced: SplicedModel,
    run: Run,
    name: str,
    edits: Sequence[VectorEdit],
    read: dict[int, Tensor],
    original: Float[Tensor, "batch pos d"],
    new: Float[Tensor, "batch pos d"],
    errors_frozen: bool,
) -> None:
    rows = sorted({(e.prompt, e.position) for e in edits})
    at = torch.tensor(rows, device=new.device)
    prompts, positions = at[:, 0], at[:, 1]
    if errors_frozen:
        errors = run.sites[name].error[positions]
    else:
        errors = original[prompts, positions]
        described = ~positions_skipped(spliced, run)[positions]
        for number, out in spliced.writers[name]:
            dictionary = spliced.dictionaries[number]
            x = read[number][prompts, positions].to(new.dtype)
            rebuilt = dictionary.decode(dictionary.encode(x), x if out == 0 else None, out)
            errors = errors - rebuilt * described[:, None]
    current = dict(zip(rows, errors.unbind(0), strict=True))
    changed = dict(current)
    for edit in edits:
        key = (edit.prompt, edit.position)
        value = edit.times * changed[key]
        changed[key] = value if edit.plus is None else value + edit.plus.to(value)
    deltas = torch.stack([changed[key] - current[key] for key in rows])
    new.index_put_((prompts, positions), deltas, accumulate=True)


def positions_skipped(spliced: SplicedModel, run: Run) -> Bool[Tensor, "pos"]:
    """Returns at which positions of a run no dictionary is applied."""
    mask = torch.ones(run.n_tokens, dtype=torch.bool, device=run.embed.device)
    mask[spliced.kept_positions(run.n_tokens)] = False
    return mask


def _note_values(number: int, edits: _Applied, values: dict[tuple[int, int, int, int], float]) -> None:
    assert edits.values is not None
    for prompt, position, index, value in zip(
        edits.prompts.tolist(), edits.positions.tolist(), edits.indices.tolist(), edits.values.tolist(), strict=True
    ):
        values[prompt, number, index, position] = value
