"""Running a model with nodes set to other values, many prompts' worth at once.

A feature edit changes what is written by `(new - current) * W_dec[i]`, an error edit by `new - current` error, so a site
without an edit is untouched. `current` is the live value: what the node has in the edited run, below its own edit. All
edits of one batch share the clean prefix below the lowest edited site (DESIGN.md, section 3.5).
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitsae.model import points
from circuitsae.model.checks import require
from circuitsae.model.hooks import Hook, Prefix
from circuitsae.model.runs import EMBED, Captured, Readout, Run, forward, start_below
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


@dataclass(frozen=True, slots=True)
class ReadingEdit:
    """Gives features the values that they would have if their dictionary read `change` more than it does."""

    prompt: int
    number: int
    indices: tuple[int, ...]
    position: int
    change: Float[Tensor, "d_in"]


@dataclass(frozen=True, slots=True)
class HeadEdit:
    """Adds to the residual stream that one attention head's queries, keys or values read."""

    prompt: int
    layer: int
    head: int
    input: Literal["q", "k", "v"]
    position: int
    change: Float[Tensor, "d_model"]

    @property
    def hook(self) -> str:
        """The hook point of that input, `[batch pos head d_model]`."""
        return points.head_input(self.layer, self.input)


@dataclass(frozen=True, slots=True)
class FinalEdit:
    """Adds to the residual stream that the final normalisation and the unembedding read."""

    prompt: int
    position: int
    change: Float[Tensor, "d_model"]


Edit = FeatureEdit | VectorEdit | ReadingEdit | HeadEdit | FinalEdit


def placed(edit: Edit, prompt: int, position: int | None = None) -> Edit:
    """Returns an edit as one of another copy of the prompt, or of another position."""
    return replace(edit, prompt=prompt) if position is None else replace(edit, prompt=prompt, position=position)


@dataclass
class Edited:
    """What a batch of edited runs gave.

    Attributes:
        captured: What the dictionaries read and what stands where they write, by name, batched.
        logits: Scores at the readout's positions, `[batch kept d_vocab]`.
        values: The value that each edited feature was given, by (prompt, dictionary, index, position).
        start: The layer from which the runs were computed; below, they are the clean run.
        held: Whether nodes without an edit were held at their clean values.
    """

    captured: Captured
    logits: Float[Tensor, "batch kept d_vocab"]
    values: dict[tuple[int, int, int, int], float]
    start: int
    held: bool = False


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
    held: bool = False,
    extra: Sequence[tuple[str, Hook]] = (),
    want_values: bool = False,
    start: Prefix | None = None,
) -> Edited:
    """Runs `n_prompts` copies of a prompt, each with its edits.

    Args:
        spliced: The model.
        run: The prompt's clean run.
        readout: What is scored.
        edits: All edits; `edit.prompt` says which copy each belongs to. Edits of one node apply in their order.
        n_prompts: Number of copies.
        errors_frozen: Holds all error nodes at their clean values instead of computing them in the edited run.
        held: Holds all nodes without an edit at their clean values, error nodes too; what an edited node is set to is
            then relative to its clean value. What the dictionaries read is still what reaches them directly.
        extra: Further hooks, freezes say.
        want_values: Whether to fill `Edited.values`.
        start: Where the runs start; below the lowest edit when `None`.
    """
    if start is None:
        start = start_below(spliced, run, [edit_layer(spliced, edit) for edit in edits], readout)
    feature_edits = {n: _as_tensors(group, run.embed) for n, group in _by(edits, FeatureEdit, "number").items()}
    reading_edits = _by(edits, ReadingEdit, "number")
    vector_edits = _by(edits, VectorEdit, "hook")
    read: dict[int, Tensor] = {}
    values: dict[tuple[int, int, int, int], float] = {}
    clean_read = {n: f.x_in[None].expand(n_prompts, -1, -1) for n, f in enumerate(run.features)} if held else read

    def on_write(name: str, x: Tensor) -> Tensor | None:
        writers = spliced.writers[name]
        touched = [(number, out) for number, out in writers if number in feature_edits]
        moved = [(number, out) for number, out in writers if number in reading_edits]
        vectors = vector_edits.get(name, [])
        if not touched and not moved and not vectors and not errors_frozen and not held:
            return None
        new = x.to(run.embed.dtype)
        original = new
        if held:
            original = run.sites[name].x.expand(n_prompts, -1, -1)
            new = original + _skip_change(spliced, run, name, read, n_prompts)
        elif errors_frozen:
            rebuilt = reconstruction(spliced, run, name, read, new)
            new = rebuilt + run.sites[name].error
            new = torch.where(run.sites[name].skipped()[:, None], run.sites[name].error, new)
        else:
            new = new.clone()
        for number, out in touched:
            _apply_features(spliced, number, out, feature_edits[number], clean_read[number], new)
        for number, out in moved:
            _apply_readings(spliced, number, out, reading_edits[number], clean_read[number], new, values)
        if vectors:
            site = run.sites[name]
            clean = site.error if errors_frozen or held else None
            _apply_errors(spliced, name, vectors, clean_read, original, new, site.skipped(), clean)
        return new.to(x.dtype)

    hooks = list(extra)
    if EMBED in vector_edits:
        hooks.append((EMBED, _setting(vector_edits[EMBED])))
    heads = _by(edits, HeadEdit, "hook")
    hooks += [(name, _adding(group)) for name, group in heads.items()]
    first = 0 if start is None else start.layer
    hooks = [(name, hook) for name, hook in hooks if name == EMBED or spliced.hooked.layer(name) >= first]
    final = [edit for edit in edits if isinstance(edit, FinalEdit)]
    with torch.no_grad(), split_inputs(spliced, bool(heads)), _final_added(spliced, final):
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
    else:
        values = {}
    assert captured.logits is not None
    return Edited(captured, captured.logits, values, first, held)


def live_hooks(
    spliced: SplicedModel,
    edits: Sequence[FeatureEdit | VectorEdit],
    skipped: Mapping[str, Bool[Tensor, "pos"]],
    like: Tensor,
) -> list[tuple[str, Hook]]:
    """Returns the hooks of a forward pass of any tokens, in which edits apply to what they find there.

    Args:
        spliced: The model.
        edits: Edits; positions count from the first token that is passed.
        skipped: By hook point written, the positions at which no dictionary is applied.
        like: A tensor of the type and device to compute in.
    """
    feature_edits = {n: _as_tensors(group, like) for n, group in _by(edits, FeatureEdit, "number").items()}
    vector_edits = _by(edits, VectorEdit, "hook")
    read: dict[int, Tensor] = {}

    def on_write(name: str, x: Tensor) -> Tensor | None:
        touched = [(number, out) for number, out in spliced.writers[name] if number in feature_edits]
        vectors = vector_edits.get(name, [])
        if not touched and not vectors:
            return None
        original = x.to(like.dtype)
        new = original.clone()
        for number, out in touched:
            _apply_features(spliced, number, out, feature_edits[number], read[number], new)
        if vectors:
            _apply_errors(spliced, name, vectors, read, original, new, skipped[name], None)
        return new.to(x.dtype)

    numbers = {
        *feature_edits,
        *(number for name in vector_edits if name != EMBED for number, _ in spliced.writers[name]),
    }
    points = {spliced.reads[n] for n in numbers} | {*vector_edits}
    points |= {spliced.canonical(hook) for n in feature_edits for hook in spliced.dictionaries[n].hook_outs}
    hooks = [(name, hook) for name, hook in spliced.splice(read.__setitem__, on_write) if name in points]
    return [(EMBED, _setting(vector_edits[EMBED])), *hooks] if EMBED in vector_edits else hooks


@contextlib.contextmanager
def split_inputs(spliced: SplicedModel, wanted: bool = True) -> Iterator[None]:
    """Makes the model compute each head's queries, keys and values from an input of its own, and puts that back.

    Raises:
        SpliceError: The model can't.
    """
    if not wanted:
        yield
        return
    require(spliced, "split")
    with spliced.hooked.held(), points.split_inputs(spliced.hooked):
        yield


def batch_size(spliced: SplicedModel, n_tokens: int, budget: int = 128 * 2**20) -> int:
    """Returns how many copies of a prompt run at once within a byte budget."""
    d_mlp, heads = spliced.hooked.d_mlp, spliced.hooked.n_heads
    floats = n_tokens * (3 * d_mlp + 6 * spliced.d_model + 3 * heads * n_tokens) + 2 * spliced.vocabulary.d_vocab
    return max(1, min(64, budget // (4 * floats)))


def reconstruction(
    spliced: SplicedModel, run: Run, name: str, read: Mapping[int, Tensor], like: Tensor
) -> Float[Tensor, "batch pos d_out"]:
    """Returns what the dictionaries make of their live inputs at a hook point, at every position."""
    batch, n_tokens = like.shape[:2]
    rebuilt = torch.zeros_like(like)
    for number, out in spliced.writers[name]:
        dictionary = spliced.dictionaries[number]
        x = read[number].reshape(batch * n_tokens, -1).to(like.dtype)
        rebuilt += dictionary.decode(dictionary.encode(x), x if out == 0 else None, out).view(like.shape)
    return rebuilt


def edit_layer(spliced: SplicedModel, edit: Edit) -> int:
    """Returns the layer from which a run with an edit must be computed."""
    layer = spliced.hooked.layer
    if isinstance(edit, (FeatureEdit, ReadingEdit)):
        outs = [layer(hook) for hook in spliced.dictionaries[edit.number].hook_outs]
        return min([*outs, layer(spliced.reads[edit.number])])
    if isinstance(edit, HeadEdit):
        return edit.layer
    if isinstance(edit, FinalEdit):
        return spliced.n_layers - 1
    return 0 if edit.hook == EMBED else _error_layer(spliced, edit.hook)


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


def _as_tensors(edits: Sequence[FeatureEdit], like: Tensor) -> _Applied:
    """Composes the edits of one node, in their order, into one affine map each."""
    composed: dict[tuple[int, int, int], tuple[float, float]] = {}
    for edit in edits:
        node = (edit.prompt, edit.position, edit.index)
        times, plus = composed.get(node, (1.0, 0.0))
        composed[node] = (edit.times * times, edit.times * plus + edit.plus)
    device, dtype = like.device, like.dtype
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
    name: str,
    edits: Sequence[VectorEdit],
    read: Mapping[int, Tensor],
    original: Float[Tensor, "batch pos d"],
    new: Float[Tensor, "batch pos d"],
    skipped: Bool[Tensor, "pos"],
    clean: Float[Tensor, "pos d"] | None,
) -> None:
    rows = sorted({(e.prompt, e.position) for e in edits})
    at = torch.tensor(rows, device=new.device)
    prompts, positions = at[:, 0], at[:, 1]
    if clean is not None:
        errors = clean[positions]
    else:
        errors = original[prompts, positions]
        described = ~skipped[positions]
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


def _apply_readings(
    spliced: SplicedModel,
    number: int,
    out: int,
    edits: Sequence[ReadingEdit],
    read: Tensor,
    new: Float[Tensor, "batch pos d"],
    values: dict[tuple[int, int, int, int], float],
) -> None:
    dictionary = spliced.dictionaries[number]
    at = torch.tensor([(e.prompt, e.position) for e in edits], device=new.device)
    x = read[at[:, 0], at[:, 1]].to(new.dtype)
    moved = x + torch.stack([e.change.to(x) for e in edits])
    rows = torch.tensor([n for n, e in enumerate(edits) for _ in e.indices], device=new.device)
    indices = torch.tensor([i for e in edits for i in e.indices], device=new.device)
    wanted = torch.unique(indices)
    before, after = dictionary.encode_only(x, wanted), dictionary.encode_only(moved, wanted)
    given = after.features.value_at(rows, indices)
    deltas = given - before.features.value_at(rows, indices)
    if before.scale is not None:
        deltas = deltas * before.scale[rows]
    for row, index, value in zip(rows.tolist(), indices.tolist(), given.tolist(), strict=True):
        values[edits[row].prompt, number, index, edits[row].position] = value
    unique, inverse = torch.unique(indices, return_inverse=True)
    written = dictionary.decoder_rows(unique, out).to(new)[inverse]
    new.index_put_((at[rows, 0], at[rows, 1]), deltas[:, None] * written, accumulate=True)


def _skip_change(
    spliced: SplicedModel, run: Run, name: str, read: Mapping[int, Tensor], n_prompts: int
) -> Float[Tensor, "batch pos d"] | float:
    """Returns by how much linear skip paths write other than on the clean run: they pass on what they read."""
    skip = run.sites[name].skip
    if skip is None:
        return 0.0
    change = -skip.expand(n_prompts, -1, -1)
    kept = run.sites[name].kept.tolist()
    for number, out in spliced.writers[name]:
        # what is read below the start of the run is the clean run's
        x = read[number] if number in read else run.features[number].x_in.expand(n_prompts, -1, -1)
        x = x[:, kept].to(skip.dtype)
        path = spliced.dictionaries[number].skip(x.flatten(0, 1), out)
        if path is not None:
            change = change.index_add(1, torch.tensor(kept, device=skip.device), path.view(n_prompts, len(kept), -1))
    return change


def _setting(edits: Sequence[VectorEdit]) -> Hook:
    def hook(x: Tensor) -> Tensor:
        new = x.clone()
        for edit in edits:
            value = edit.times * new[edit.prompt, edit.position]
            new[edit.prompt, edit.position] = value if edit.plus is None else value + edit.plus.to(new.dtype)
        return new

    return hook


def _adding(edits: Sequence[HeadEdit]) -> Hook:
    def hook(x: Tensor) -> Tensor:
        new = x.clone()
        for edit in edits:
            new[edit.prompt, edit.position, edit.head] += edit.change.to(new.dtype)
        return new

    return hook


@contextlib.contextmanager
def _final_added(spliced: SplicedModel, edits: Sequence[FinalEdit]) -> Iterator[None]:
    if not edits:
        yield
        return

    def add(args: tuple[Tensor, ...], kwargs: dict[str, object]) -> tuple[object, object]:
        new = args[0].clone()
        for edit in edits:
            new[edit.prompt, edit.position] += edit.change.to(new.dtype)
        return (new, *args[1:]), kwargs

    with spliced.hooked.altered(spliced.model.ln_final, add):
        yield


def _note_values(number: int, edits: _Applied, values: dict[tuple[int, int, int, int], float]) -> None:
    assert edits.values is not None
    for prompt, position, index, value in zip(
        edits.prompts.tolist(), edits.positions.tolist(), edits.indices.tolist(), edits.values.tolist(), strict=True
    ):
        values[prompt, number, index, position] = value
