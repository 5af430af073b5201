"""Running a model with all nodes but some set to their baselines, many choices of nodes at once.

This is what faithfulness asks for: `m(C)`, the metric with every node outside C at its baseline. A choice is one row of a
boolean array, so that a whole curve over circuit sizes is one batch, one forward pass a point. At a site

    x = scale * (sum of kept features + sum of the others' baselines) + bias + skip + error

where kept features have their live values (what the edited run below gives them), and a kept error node is live too or
held at its clean value (DESIGN.md, section 3.6).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae.dictionaries.active import Encoding, SparseFeatures
from circuitsae.dictionaries.base import Dictionary
from circuitsae.model.edits import Edited
from circuitsae.model.hooks import Hook
from circuitsae.model.runs import EMBED, Readout, Run, forward, start_below
from circuitsae.model.spliced import SplicedModel


@dataclass(frozen=True, slots=True)
class FeatureMask:
    """Which features of one dictionary each copy of a prompt keeps.

    Attributes:
        positions, indices: The features that are told apart, usually all that are active on the prompt or in the
            baseline, sorted by position, then index.
        kept: Whether each copy keeps each of them.
        baselines: What they are set to where they are not kept; `None` for zero.
        others: Whether each copy keeps features that are not listed (active in the edited run only); they become zero
            where it does not.
    """

    positions: Int[Tensor, "node"]
    indices: Int[Tensor, "node"]
    kept: Bool[Tensor, "copy node"]
    baselines: Float[Tensor, "node"] | None
    others: Bool[Tensor, "copy"]


@dataclass(frozen=True, slots=True)
class VectorMask:
    """Which error nodes of a hook point, or which token embeddings, each copy of a prompt keeps.

    Attributes:
        kept: Whether each copy keeps the one at each position.
        baselines: What they are set to where they are not kept; `None` for zero.
    """

    kept: Bool[Tensor, "copy pos"]
    baselines: Float[Tensor, "pos d"] | None = None


@dataclass(frozen=True)
class Masks:
    """What every copy of a prompt keeps. A dictionary or hook point that is not there keeps everything.

    Attributes:
        features: By number of the dictionary.
        errors: By hook point written.
        tokens: The token embeddings.
    """

    features: Mapping[int, FeatureMask] = field(default_factory=dict)
    errors: Mapping[str, VectorMask] = field(default_factory=dict)
    tokens: VectorMask | None = None


def run_masked(
    spliced: SplicedModel,
    run: Run,
    readout: Readout,
    masks: Masks,
    n_copies: int,
    *,
    errors_frozen: bool = False,
    extra: Sequence[tuple[str, Hook]] = (),
) -> Edited:
    """Runs `n_copies` copies of a prompt, each with all nodes that it does not keep at their baselines.

    Cost: one forward pass a copy, from the lowest masked layer on. Where a copy keeps a live error node, or features that
    are not listed, its inputs are encoded whole; else only with the encoder columns of features that some copy keeps.

    Args:
        spliced: The model.
        run: The prompt's clean run.
        readout: What is scored.
        masks: What each copy keeps.
        n_copies: Number of copies.
        errors_frozen: Holds kept error nodes at their clean values, instead of computing them in the edited run.
        extra: Further hooks, freezes say.
    """
    layers = [0] if masks.tokens is not None else []
    for number in masks.features:
        layers.append(spliced.hooked.layer(spliced.reads[number]))
    for hook in masks.errors:
        layers.append(spliced.hooked.layer(hook))
        layers += [spliced.hooked.layer(spliced.reads[number]) for number, _ in spliced.writers[hook]]
    start = start_below(spliced, run, layers, readout)
    splice = _MaskedSplice(spliced, run, masks, n_copies, errors_frozen)
    first = 0 if start is None else start.layer
    hooks = [(name, hook) for name, hook in extra if spliced.hooked.layer(name) >= first]
    if masks.tokens is not None:
        hooks.append((EMBED, splice.at_embed))
    with torch.no_grad():
        captured = forward(
            spliced,
            run.tokens.expand(n_copies, -1),
            readout,
            on_read=splice.read.__setitem__,
            on_write=splice.on_write,
            extra=hooks,
            start=start,
        )
    assert captured.logits is not None
    return Edited(captured, captured.logits, {}, first)


class _MaskedSplice:
    """What stands at each hook point of one batch of masked copies."""

    def __init__(self, spliced: SplicedModel, run: Run, masks: Masks, n_copies: int, errors_frozen: bool) -> None:
        self.spliced, self.run, self.masks = spliced, run, masks
        self.n_copies, self.errors_frozen = n_copies, errors_frozen
        self.read: dict[int, Tensor] = {}
        self._encoded: dict[int, tuple[Tensor, Tensor, Tensor | None, Encoding]] = {}
        self._whole = torch.ones(n_copies, run.n_tokens, dtype=torch.bool, device=run.embed.device)
        # Rows (copy, position) at which some node of a site is not kept; all others stay as the model computes them.
        self._changes = {number: self._changed(mask) for number, mask in masks.features.items()}

    def at_embed(self, x: Tensor) -> Tensor:
        mask = self.masks.tokens
        assert mask is not None
        return torch.where(mask.kept[..., None], x, 0 if mask.baselines is None else mask.baselines.to(x.dtype))

    def on_write(self, name: str, x: Tensor) -> Tensor | None:
        writers = self.spliced.writers[name]
        skipped = self.run.sites[name].skipped()
        errors = self.masks.errors.get(name)
        kept = self._whole if errors is None else errors.kept
        changed = ~kept
        for number, _ in writers:
            if number in self._changes:
                changed = changed | (self._changes[number] & ~skipped)
        if self.errors_frozen:
            changed = self._whole
        if not bool(changed.any()):
            return None
        new = x.to(self.run.embed.dtype).clone()
        copies, positions = changed.nonzero(as_tuple=True)
        kept = kept[copies, positions]
        described = ~skipped[positions]
        # Where the error node stays live, what is not kept is taken away from what stands there; elsewhere all is built.
        live = kept & (not self.errors_frozen)
        rows = torch.zeros(len(copies), new.shape[-1], dtype=new.dtype, device=new.device)
        if self.errors_frozen:
            rows[kept] = self.run.sites[name].error[positions[kept]]
        if errors is not None and errors.baselines is not None:
            rows[~kept] = errors.baselines[positions[~kept]].to(rows.dtype)
        rows[live] = new[copies[live], positions[live]]
        at = described.nonzero(as_tuple=True)[0]
        for number, out in writers:
            rows[at] += self._written(number, out, copies[at], positions[at], live[at])
        new[copies, positions] = rows
        return new.to(x.dtype)

    def _written(self, number: int, out: int, copies: Tensor, positions: Tensor, live: Tensor) -> Tensor:
        """Returns what the dictionary adds at these rows: all that it keeps, or minus what it does not where `live`."""
        dictionary, mask = self.spliced.dictionaries[number], self.masks.features.get(number)
        x = self.read[number][copies, positions].to(self.run.embed.dtype)
        encoding = self._encode(number, mask, x, copies, positions, live)
        features = encoding.features
        row_copies, row_positions = copies[features.rows], positions[features.rows]
        if mask is None:
            kept = torch.ones_like(row_copies, dtype=torch.bool)
        else:
            listed = mask.positions * dictionary.d_sae + mask.indices
            wanted = row_positions * dictionary.d_sae + features.indices
            at = torch.searchsorted(listed, wanted).clamp_max(max(len(listed) - 1, 0))
            found = listed[at] == wanted if len(listed) else torch.zeros_like(wanted, dtype=torch.bool)
            kept = mask.others[row_copies]
            kept[found] = mask.kept[row_copies[found], at[found]]
        taken = live[features.rows]
        used = kept != taken
        weights = torch.where(taken, -features.values, features.values)
        result = dictionary.weighted_sum(features.with_values(weights).select(used), out)
        if mask is not None and mask.baselines is not None:
            result += _baselines(dictionary, mask, out, copies, positions, self.n_copies, self.run.n_tokens)
        if encoding.scale is not None:
            result *= encoding.scale[:, None]
        built = ~live
        bias = encoding.biases[out]
        result[built] += bias if len(bias) == 1 else bias[built]
        skip = dictionary.skip(x[built]) if out == 0 else None
        if skip is not None:
            result[built] += skip
        return result

    def _encode(
        self, number: int, mask: FeatureMask | None, x: Tensor, copies: Tensor, positions: Tensor, live: Tensor
    ) -> Encoding:
        dictionary = self.spliced.dictionaries[number]
        if mask is None or bool(live.any()) or bool(mask.others[copies].any()):
            wanted = None
        else:
            wanted = torch.unique(mask.indices[mask.kept.any(0)])
        several = len(dictionary.hook_outs) > 1
        if several and number in self._encoded:
            *rows, before, encoding = self._encoded[number]
            same = wanted is before if wanted is None or before is None else torch.equal(wanted, before)
            if same and torch.equal(rows[0], copies) and torch.equal(rows[1], positions):
                return encoding
        encoding = dictionary.encode(x) if wanted is None else dictionary.encode_only(x, wanted)
        if several:  # a cross-layer transcoder is read once and written many times
            self._encoded[number] = (copies, positions, wanted, encoding)
        return encoding

    def _changed(self, mask: FeatureMask) -> Bool[Tensor, "copy pos"]:
        changed = torch.zeros_like(self._whole, dtype=torch.long)
        changed.index_add_(1, mask.positions, (~mask.kept).long())
        return (changed > 0) | ~mask.others[:, None]


def _baselines(
    dictionary: Dictionary,
    mask: FeatureMask,
    out: int,
    copies: Tensor,
    positions: Tensor,
    n_copies: int,
    n_tokens: int,
) -> Float[Tensor, "row d_out"]:
    """Returns what the baselines of the features that are not kept write at these rows, unscaled."""
    assert mask.baselines is not None
    nonzero = mask.baselines != 0
    at, indices, values = mask.positions[nonzero], mask.indices[nonzero], mask.baselines[nonzero]
    lost = ~mask.kept[:, nonzero]

    def written(which: Tensor, signed: Tensor) -> Tensor:
        copy, node = which.nonzero(as_tuple=True)
        entries = SparseFeatures(
            copy * n_tokens + at[node], indices[node], signed[node], n_copies * n_tokens, dictionary.d_sae
        )
        return dictionary.weighted_sum(entries, out).view(n_copies, n_tokens, -1)[copies, positions]

    if int(lost.sum()) * 2 < lost.numel():
        return written(lost, values)
    # Of small circuits: all baselines, which are the same for every copy, less those of the few that are kept.
    everything = dictionary.weighted_sum(SparseFeatures(at, indices, values, n_tokens, dictionary.d_sae), out)
    return everything[positions] + written(~lost, -values)
