"""Automatic descriptions: one pass over a text, and each decoder row through the unembedding.

Nothing here is an opinion of another model: tokens, contexts and counts come from the model and its dictionaries
alone, and are the same on every run.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from circuitsae import __version__
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import reshape_at
from circuitsae.errors import InputError, TaskError
from circuitsae.labels.parquet import ParquetLabels, write_store
from circuitsae.labels.records import Context, Description, short_label
from circuitsae.model.modes import in_own_mode
from circuitsae.model.spliced import SplicedModel
from circuitsae.names import layer_of
from circuitsae.progress import Progress, report
from circuitsae.task.vocabulary import Vocabulary

N_BINS = 32
_BLOCK = 8_192  # characters tokenised at once: much less would cut many words, much more makes tokenizers warn
_ROWS = 64 << 20  # bytes of logits held at once


@dataclass(frozen=True, slots=True)
class Recipe:
    """How features are described.

    Attributes:
        max_tokens: Tokens of text to go through; `None` for all of it.
        length: Tokens of one sequence, BOS included; at most what the model takes.
        batch: Sequences run at once.
        contexts: Contexts kept a feature.
        before, after: Tokens shown on either side of the peak.
        tokens: Promoted and suppressed tokens kept.
    """

    max_tokens: int | None = None
    length: int = 128
    batch: int = 8
    contexts: int = 5
    before: int = 11
    after: int = 4
    tokens: int = 8

    def __post_init__(self) -> None:
        for name in ("batch", "contexts", "tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if self.length < 2:
            raise InputError(f"length is {self.length}; expected at least 2 tokens a sequence.")
        if self.before < 0 or self.after < 0:
            raise InputError("before and after count tokens beside the peak; expected 0 or more.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max_tokens is {self.max_tokens}; expected at least 1, or None for the whole text.")


@in_own_mode
def describe(
    spliced: SplicedModel,
    texts: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> ParquetLabels:
    """Describes every feature of a model's dictionaries by a text, writes a Parquet store, and opens it.

    For each feature: the tokens that its decoder row promotes and suppresses (`promoted_tokens`), the stretches of text
    on which it is most active (one a sequence at most), on what share of the tokens it is active, the mean and the
    histogram of its activations, and a label made of these. Cost: a forward pass over the text, up to the highest site,
    one encoding a dictionary, and one product of all decoder rows with the unembedding.

    Args:
        spliced: The model with its dictionaries.
        texts: Plain text files, UTF-8; several are gone through in turn, a sequence from each.
        path: Where the store goes, whole or not at all.
        recipe: How much text, how many contexts; see `Recipe`.
        progress: Called with work done, work in all, and a word; returning `False` cancels.

    Raises:
        InputError: A text can't be read, or the path can't be written.
        TaskError: The model has no tokenizer, or the text is empty.
        CancelledError: `progress` said so.
    """
    recipe = recipe or Recipe()
    if spliced.n_ctx is not None and recipe.length > spliced.n_ctx:
        recipe = Recipe(**{**asdict(recipe), "length": spliced.n_ctx})
    files = [Path(text) for text in ([texts] if isinstance(texts, str | os.PathLike) else texts)]
    about = {
        "package_version": __version__,
        "model": spliced.name,
        "preset": spliced.preset,
        "dictionaries": [{"site": d.site, "fingerprint": d.fingerprint} for d in spliced.dictionaries],
        "texts": [{"name": file.name, "sha256": _hash(file)} for file in files],
        **asdict(recipe),
    }
    sequences = read_sequences(spliced, files, recipe.length, recipe.max_tokens)
    expected = recipe.max_tokens or sum(file.stat().st_size for file in files) // 4  # a token is about four bytes
    statistics, counted = gather(spliced, sequences, recipe, progress, expected)
    for each in statistics:
        each.dictionary.release()
    features = (f for each in statistics for f in describe_features(spliced, each, counted, recipe, progress))
    write_store(path, features, {**about, "counted": counted})
    return ParquetLabels(path)


def _hash(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Can't read the text {str(path)!r}: {reason[:1].lower()}{reason[1:]}.") from None


@dataclass
class Statistics:
    """What one dictionary did on the text so far; `feature` is [d_sae], contexts are [d_sae, kept, ...].

    Attributes:
        dictionary: Whose features.
        count: On how many tokens each was active.
        sums: Their activations' sum.
        bins: How many activations lie in each of `N_BINS` bins from 0 to `top`.
        top: The power of two at or above the largest activation, 0 before the first.
        peaks: The largest activations, one a sequence at most, largest first; 0 where there are fewer.
        windows: Token ids of the windows, -1 beyond a sequence's ends.
        values: The activations there.
        before: The place of the peak in its window.
    """

    dictionary: Dictionary
    count: Tensor
    sums: Tensor
    bins: Tensor
    top: Tensor
    peaks: Tensor
    windows: Tensor
    values: Tensor
    before: int

    @classmethod
    def empty(cls, dictionary: Dictionary, recipe: Recipe) -> "Statistics":
        """Returns those of a dictionary that has seen nothing."""
        n, kept, width = dictionary.d_sae, recipe.contexts, recipe.before + 1 + recipe.after
        return cls(
            dictionary,
            torch.zeros(n, dtype=torch.int64),
            torch.zeros(n, dtype=torch.float64),
            torch.zeros(n, N_BINS, dtype=torch.int64),
            torch.zeros(n),
            torch.zeros(n, kept),
            torch.full((n, kept, width), -1, dtype=torch.int32),
            torch.zeros(n, kept, width),
            recipe.before,
        )

    def add(self, tokens: Tensor, kept: Tensor, x: Tensor) -> None:
        """Takes in one batch.

        Args:
            tokens: Token ids, [batch, pos]; -1 past a sequence's end.
            kept: The places that count, as rows of the flattened batch, ascending.
            x: What the dictionary reads there, [row, d_in].
        """
        features = self.dictionary.encode(x).features
        device = self.count.device
        rows = kept[features.rows].to(device)
        indices, values = features.indices.to(device), features.values.to(device, torch.float32)
        positive = values > 0  # an activation below zero (identity, tanh) is no sign of a feature's meaning
        rows, indices, values = rows[positive], indices[positive], values[positive]
        self.count += torch.bincount(indices, minlength=len(self.count))
        self.sums.index_add_(0, indices, values.double())
        self._count_bins(indices, values)
        self._keep_peaks(tokens.to(device), rows, indices, values)

    def _count_bins(self, indices: Tensor, values: Tensor) -> None:
        largest = torch.zeros_like(self.top).scatter_reduce_(0, indices, values, "amax")
        wanted = torch.where(largest > 0, torch.exp2(torch.ceil(torch.log2(largest))), 0.0)
        # rounding in log2 must not leave the largest activation outside
        wanted = torch.where(wanted < largest, wanted * 2, wanted)
        fresh = (self.top == 0) & (wanted > 0)
        self.top[fresh] = wanted[fresh]
        while bool((grows := wanted > self.top).any()):
            pairs = self.bins[grows].unflatten(1, (N_BINS // 2, 2)).sum(-1)
            self.bins[grows] = torch.cat([pairs, torch.zeros_like(pairs)], dim=1)
            self.top[grows] *= 2
        bins = (values / self.top[indices] * N_BINS).long().clamp_max(N_BINS - 1)
        self.bins.view(-1).index_add_(0, indices * N_BINS + bins, torch.ones_like(bins))

    def _keep_peaks(self, tokens: Tensor, rows: Tensor, indices: Tensor, values: Tensor) -> None:
        n_sequences, length = tokens.shape
        n, kept = self.peaks.shape
        sequences = rows // length
        flat = sequences * n + indices
        largest = self.peaks.new_zeros(n_sequences * n).scatter_reduce_(0, flat, values, "amax")
        at = torch.full((n_sequences * n,), n_sequences * length, device=rows.device)
        is_peak = values == largest[flat]
        at.scatter_reduce_(0, flat[is_peak], rows[is_peak], "amin")  # of equal peaks the first, on every device
        found = torch.cat([self.peaks, largest.view(n_sequences, n).T], dim=1)
        peaks, order = found.sort(dim=1, descending=True, stable=True)
        peaks, order = peaks[:, :kept].contiguous(), order[:, :kept]
        entered = (order >= kept) & (peaks > 0)
        old = order.clamp_max(kept - 1)[..., None].expand(-1, -1, self.windows.shape[2])
        windows, activations = self.windows.gather(1, old), self.values.gather(1, old)
        feature, place = entered.nonzero(as_tuple=True)
        if len(feature):
            row = at.view(n_sequences, n)[order[feature, place] - kept, feature]
            sequence = row // length
            span = torch.arange(self.windows.shape[2], device=row.device) - self.before
            wide = row[:, None] + span
            inside = (wide >= sequence[:, None] * length) & (wide < (sequence[:, None] + 1) * length)
            ids = tokens.reshape(-1)[wide.clamp(0, tokens.numel() - 1)]
            windows[feature, place] = torch.where(inside, ids, -1).to(windows.dtype)
            keys = rows * n + indices  # ascending, as entries are sorted
            wanted = wide * n + feature[:, None]
            where = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
            hit = (keys[where] == wanted) & inside
            activations[feature, place] = torch.where(hit, values[where], 0.0)
        self.peaks, self.windows, self.values = peaks, windows, activations

    def contexts(self, index: int, string: Callable[[int], str]) -> tuple[Context, ...]:
        """Returns a feature's contexts, strongest first."""
        found = []
        for peak, ids, values in zip(
            self.peaks[index].tolist(), self.windows[index].tolist(), self.values[index].tolist(), strict=True
        ):
            if peak <= 0:
                break
            first = next(n for n, token in enumerate(ids) if token >= 0)
            shown = [(string(token), value) for token, value in zip(ids, values, strict=True) if token >= 0]
            texts, activations = zip(*shown, strict=True)
            found.append(Context(texts, activations, self.before - first))
        return tuple(found)


def read_sequences(
    spliced: SplicedModel, texts: Sequence[str | Path], length: int, max_tokens: int | None = None
) -> Iterator[list[int]]:
    """Yields token ids of `length` tokens at most, each with the BOS that the dictionaries expect, from all files in
    turn, so that each is heard however few tokens are wanted. A file is read piece by piece.

    Raises:
        InputError: A file can't be read, or is not UTF-8 text.
        TaskError: The model has no tokenizer.
    """
    bos = spliced.vocabulary.bos_token_id if spliced.vocabulary.prepend_bos else None
    room = length - (bos is not None)
    streams = [_chunks(spliced, Path(path), room) for path in texts]
    left = math.inf if max_tokens is None else max_tokens
    while streams and left > 0:
        for stream in list(streams):
            ids = next(stream, None)
            if ids is None:
                streams.remove(stream)
                continue
            ids = ids[: int(min(len(ids), left))]
            left -= len(ids)
            if ids:
                yield [bos, *ids] if bos is not None else ids


def _chunks(spliced: SplicedModel, path: Path, room: int) -> Iterator[list[int]]:
    ids: list[int] = []
    for text in _blocks(path):
        if not text.strip():
            continue
        ids += _ids(spliced.vocabulary, text)
        while len(ids) >= room:
            yield ids[:room]
            ids = ids[room:]
    if ids:
        yield ids


def _ids(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokenises running text, in which a word that the model lacks is its unknown token, as in any text it reads."""
    if vocabulary.tokenizer is None:
        raise TaskError("This model has no tokenizer, so that it can't read a text; its features can't be described.")
    return list(vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"])


def _blocks(path: Path) -> Iterator[str]:
    """Yields a file's text in pieces that end between words where there are any."""
    try:
        with open(path, encoding="utf-8") as file:
            rest = ""
            while piece := file.read(_BLOCK):
                text = rest + piece
                end = max(text.rfind("\n"), text.rfind(" "))
                if end <= 0 or len(text) > 4 * _BLOCK:
                    end = len(text) if len(text) > _BLOCK else 0
                yield text[:end]
                rest = text[end:]
            yield rest
    except UnicodeDecodeError:
        raise InputError(f"The text {str(path)!r} is not UTF-8.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Can't read the text {str(path)!r}: {reason[:1].lower()}{reason[1:]}.") from None


@torch.no_grad()
def gather(
    spliced: SplicedModel,
    sequences: Iterable[Sequence[int]],
    recipe: Recipe,
    progress: Progress | None = None,
    expected: int | None = None,
) -> tuple[list[Statistics], int]:
    """Runs the model over the sequences and returns each dictionary's statistics, and how many tokens were counted.

    Memory: the model, one batch's activations at one site, and a few windows a feature, however long the text.

    Args:
        spliced: Model and dictionaries.
        sequences: Token ids; positions that the model skips (BOS) count nowhere.
        recipe: How.
        progress: Called with tokens done, tokens expected, a word; returning `False` cancels.
        expected: How many tokens there will be, for `progress`.

    Raises:
        CancelledError: `progress` said so.
        TaskError: There is no sequence.
    """
    found = [Statistics.empty(dictionary, recipe) for dictionary in spliced.dictionaries]
    last = max(spliced.reads, key=spliced.order)
    counted = done = 0
    for batch in _batches(sequences, recipe.batch):
        width = max(map(len, batch))
        tokens = torch.full((len(batch), width), -1)
        mask = torch.zeros(len(batch), width, dtype=torch.bool)
        for row, ids in enumerate(batch):
            tokens[row, : len(ids)] = torch.tensor(ids)
            mask[row, spliced.kept_positions(len(ids))] = True
        kept = mask.flatten().nonzero()[:, 0]
        inputs = tokens.clamp_min(0).to(spliced.device)  # causal: padding on the right changes nothing before it

        def read(number: int, x: Tensor, tokens: Tensor = tokens, kept: Tensor = kept) -> None:
            kept = _without_sinks(x, kept, spliced)
            rows = x.flatten(0, 1)[kept.to(x.device)]
            rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
            found[number].add(tokens, kept, rows)

        reads = [(name, hook) for name, hook in spliced.splice(read) if name in spliced.reads]
        spliced.hooked.forward(inputs, reads, logits_at=[0], stop_at=last)
        counted += int(mask.sum())
        done += sum(map(len, batch))
        report(progress, min(done, expected or done), expected or done, "tokens described")
    if not counted:
        raise TaskError("The text holds no token to describe features by.")
    return found, counted


def _without_sinks(x: Tensor, kept: Tensor, spliced: SplicedModel) -> Tensor:
    """Returns the tokens, numbered through the batch, whose vectors aren't attention sinks in their sequence."""
    if spliced.skip_sinks is None:
        return kept
    norms = x.norm(dim=-1).flatten()[kept.to(x.device)].cpu()
    rows = kept // x.shape[1]
    inside = torch.ones(len(kept), dtype=torch.bool)
    for row in rows.unique():
        here = rows == row
        inside[here] = spliced.no_sinks(norms[here])
    return kept[inside]


def _batches(sequences: Iterable[Sequence[int]], size: int) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for ids in sequences:
        batch.append(ids)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


@torch.no_grad()
def promoted_tokens(
    spliced: SplicedModel, dictionary: Dictionary, n: int = 8, progress: Progress | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Returns what each feature's decoder row does to the logits by the direct way: the final norm, then the
    unembedding, as a logit lens reads it; constants that are there for every feature are taken off.

    As the norm divides by the row's length, the amounts compare tokens for one feature, not features. For `hook_z`
    the row goes through the layer's W_O first; a cross-layer transcoder's rows are added up.

    Returns:
        Token ids and amounts of the `n` most promoted, then of the most suppressed, [d_sae, n] each; `None` where the
        rows do not lie in the residual stream.
    """
    model: Any = spliced.model
    norm, unembed = getattr(model, "ln_final", None), model.unembed
    n = min(n, spliced.vocabulary.d_vocab)
    dtype, device = spliced.hooked.dtype, spliced.device
    step = max(1, _ROWS // (spliced.vocabulary.d_vocab * 4))
    results: list[tuple[Tensor, ...]] = []

    def logits(rows: Tensor) -> Tensor:
        x = rows.to(device, dtype)[None]
        return unembed(x if norm is None else norm(x))[0].float()

    nothing: Tensor | None = None
    for start in range(0, dictionary.d_sae, step):
        indices = torch.arange(start, min(start + step, dictionary.d_sae))
        rows = _residual_rows(model, dictionary, indices)
        if rows is None or rows.shape[1] != spliced.d_model:
            return None
        if nothing is None:
            nothing = logits(torch.zeros(1, spliced.d_model))
        amounts = logits(rows) - nothing
        up, down = amounts.topk(n), (-amounts).topk(n)
        results.append((up.indices.cpu(), up.values.cpu(), down.indices.cpu(), -down.values.cpu()))
        report(progress, int(indices[-1]) + 1, dictionary.d_sae, "features unembedded")
    dictionary.release()
    ups, up_values, downs, down_values = (torch.cat(part) for part in zip(*results, strict=True))
    return ups, up_values, downs, down_values


def _residual_rows(model: Any, dictionary: Dictionary, indices: Tensor) -> Tensor | None:
    rows = sum(dictionary.decoder_rows(indices, out) for out in range(len(dictionary.hook_outs)))
    assert isinstance(rows, Tensor)
    if reshape_at(dictionary.hook_outs[0]) == "none":
        return rows
    layer = layer_of(dictionary.hook_outs[0])
    try:
        w_out = model.blocks[layer].attn.W_O.detach()
    except AttributeError:
        return None
    return rows @ rearrange(w_out, "head d_head d_model -> (head d_head) d_model").to(rows)


def describe_features(
    spliced: SplicedModel, statistics: Statistics, counted: int, recipe: Recipe, progress: Progress | None = None
) -> Iterator[Description]:
    """Yields a description for every feature of a dictionary, in the order of its index."""
    dictionary = statistics.dictionary
    lens = promoted_tokens(spliced, dictionary, recipe.tokens, progress)
    strings: dict[int, str] = {}

    def string(token: int) -> str:
        if token not in strings:
            strings[token] = spliced.vocabulary.string(token)
        return strings[token]

    for index in range(dictionary.d_sae):
        promoted = suppressed = ()
        if lens is not None:
            ups, up_values, downs, down_values = (part[index].tolist() for part in lens)
            promoted = tuple((string(t), _short(v)) for t, v in zip(ups, up_values, strict=True))
            suppressed = tuple((string(t), _short(v)) for t, v in zip(downs, down_values, strict=True))
        contexts = statistics.contexts(index, string)
        contexts = tuple(Context(c.tokens, tuple(map(_short, c.activations)), c.peak) for c in contexts)
        count = int(statistics.count[index])
        bins = statistics.bins[index].tolist()
        while bins and bins[-1] == 0:
            bins.pop()
        yield Description(
            dictionary.site,
            index,
            # what a feature that was never active promotes says little about what it is for
            label=short_label(contexts, promoted) if count else "",
            source="automatic",
            promoted=promoted,
            suppressed=suppressed,
            contexts=contexts,
            density=count / counted,
            mean=_short(float(statistics.sums[index]) / count) if count else None,
            largest=_short(float(statistics.peaks[index, 0])) if count else None,
            histogram=tuple(bins),
            bin_width=float(statistics.top[index]) / N_BINS if count else None,
        )


def _short(value: float) -> float:
    """Three digits, and a float32 whose last bits are 0, so that stores compress well."""
    return float(f"{value:.3g}")
