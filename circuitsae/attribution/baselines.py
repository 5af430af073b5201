"""What a node is set to when it is ablated: zero, its value on the patch prompt, or a mean over reference prompts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.model.runs import DecoderRows, FeatureRun, Run, run_clean
from circuitsae.model.spliced import SplicedModel
from circuitsae.progress import Progress, report

BaselineName = Literal["zero", "mean", "patch"]
BASELINES: tuple[str, ...] = get_args(BaselineName)


@dataclass(frozen=True)
class Baseline:
    """The values that nodes are set to.

    Attributes:
        name: Which baseline this is.
        features: One entry a dictionary; `None` for all zero.
        errors: By hook point written, `[pos d_out]`; `None` for all zero.
        embed: Token embeddings, `[pos d_model]`; `None` for zero.
        metric: The metric on the patch prompt, `None` elsewhere.
    """

    name: BaselineName
    features: tuple[SparseFeatures | None, ...]
    errors: dict[str, Float[Tensor, "pos _d_out"]] | None = None
    embed: Float[Tensor, "pos d_model"] | None = None
    metric: float | None = None

    def feature_values(
        self, number: int, rows: Int[Tensor, "n"], indices: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"] | None:
        """Returns the baseline of a dictionary's features, `None` for all zero."""
        features = self.features[number]
        return None if features is None else features.value_at(rows, indices)


@dataclass(frozen=True)
class FeatureNodes:
    """A dictionary's feature nodes: those active on the prompt or in the baseline, by position then index.

    Attributes:
        positions: Their positions.
        indices: Their features.
        activations: Their activations on the prompt (zero for those that only the baseline has).
        baselines: What they are set to.
        scale: What the reconstruction is multiplied by at each position, `None` for 1.
        inverse: Each node's number in `decoders`.
        decoders: For each hook point written, the decoder rows.
    """

    positions: Int[Tensor, "node"]
    indices: Int[Tensor, "node"]
    activations: Float[Tensor, "node"]
    baselines: Float[Tensor, "node"]
    scale: Float[Tensor, "pos"] | None
    inverse: Int[Tensor, "node"]
    decoders: DecoderRows

    def along(self, vectors: Float[Tensor, "pos d_out"], out: int = 0) -> Float[Tensor, "node"]:
        """Returns each node's decoder row, scaled as it is written, times the vector at its position."""
        result = self.decoders.along(out, vectors, self.positions, self.inverse)
        return result if self.scale is None else result * self.scale[self.positions]

    def written(self, weights: Float[Tensor, "node"], n_tokens: int, out: int = 0) -> Float[Tensor, "pos d_out"]:
        """Returns what the nodes write when each has the activation `weights`."""
        if self.scale is not None:
            weights = weights * self.scale[self.positions]
        return self.decoders.written(out, weights, self.positions, self.inverse, n_tokens)


def feature_nodes(run: FeatureRun, baseline: SparseFeatures | None) -> FeatureNodes:
    """Returns the nodes of one dictionary: the union of the run's and the baseline's active features."""
    features = run.features
    if baseline is not None:  # where the dictionary is not applied there are no nodes
        baseline = baseline.select(torch.isin(baseline.rows, run.kept))
    if baseline is None:
        zero = torch.zeros_like(features.values)
        return FeatureNodes(
            features.rows, features.indices, features.values, zero, run.scale, run.inverse, run.decoders
        )
    mine, theirs = features.union_with(baseline)
    unique, inverse = torch.unique(mine.indices, return_inverse=True)
    decoders = run.decoders if len(unique) == len(run.unique) else DecoderRows.of(run.dictionary, unique, run.x_in)
    return FeatureNodes(mine.rows, mine.indices, mine.values, theirs.values, run.scale, inverse, decoders)


def make_baseline(
    spliced: SplicedModel,
    name: str,
    *,
    n_tokens: int,
    patch: Run | None,
    reference: Sequence[Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Baseline:
    """Builds a baseline.

    Args:
        spliced: The model.
        name: `"zero"`, `"patch"` or `"mean"`.
        n_tokens: The prompt's length.
        patch: The run of the patch prompt, where the task has one.
        reference: Token ids of the reference prompts of the mean. Where all are as long as the prompt, the mean is
            taken at each position; else over all positions at which the dictionaries are applied.
        progress: Called with prompts done, their number and a word; returning `False` cancels.

    Raises:
        UnknownNameError: There is no such baseline.
        InputError: `"patch"` without a patch prompt, `"mean"` without reference prompts.
    """
    if name == "zero":
        return Baseline("zero", (None,) * len(spliced.dictionaries))
    if name == "patch":
        if patch is None:
            raise InputError(
                "The baseline 'patch' needs a counterfactual; give the task a patch prompt of equal length."
            )
        return Baseline(
            "patch",
            tuple(f.features for f in patch.features),
            {hook: site.error for hook, site in patch.sites.items()},
            patch.embed,
            patch.metric,
        )
    if name == "mean":
        if not reference:
            raise InputError("The baseline 'mean' needs reference prompts; give reference=[prompt, ...].")
        return _mean(spliced, reference, n_tokens, progress)
    raise UnknownNameError("baseline", name, BASELINES)


def _mean(
    spliced: SplicedModel,
    reference: Sequence[Sequence[int]],
    n_tokens: int,
    progress: Progress | None,
) -> Baseline:
    aligned = all(len(tokens) == n_tokens for tokens in reference)
    kept = spliced.kept_positions(n_tokens)
    cells: list[list[SparseFeatures]] = [[] for _ in spliced.dictionaries]
    errors: dict[str, Tensor] = {}
    embed: Tensor | None = None
    n_rows = {hook: 0 for hook in spliced.written}
    n_tokens_seen = 0
    for done, tokens in enumerate(reference):
        run = run_clean(spliced, tokens)
        own = spliced.kept_positions(len(tokens))
        n_tokens_seen += 1 if aligned else len(own)
        for number, features in enumerate(run.features):
            cells[number].append(features.features)
        for hook, site in run.sites.items():
            n_rows[hook] += 1 if aligned else len(site.kept)
            total = site.error if aligned else site.error[site.kept].sum(0, keepdim=True)
            errors[hook] = errors[hook] + total if hook in errors else total
        total = run.embed if aligned else run.embed[own].sum(0, keepdim=True)
        embed = total if embed is None else embed + total
        report(progress, done + 1, len(reference), "reference prompts")
    assert embed is not None
    rows = [n_rows[spliced.canonical(d.hook_outs[0])] for d in spliced.dictionaries]
    features = tuple(_mean_features(found, n, n_tokens, aligned, kept) for found, n in zip(cells, rows, strict=True))
    if not aligned:
        # One mean vector for every position; the skipped ones keep it too, so that the error node there has a baseline.
        errors = {hook: total.expand(n_tokens, -1) for hook, total in errors.items()}
        embed = embed.expand(n_tokens, -1)
    return Baseline("mean", features, {h: t / max(n_rows[h], 1) for h, t in errors.items()}, embed / n_tokens_seen)


def _mean_features(
    found: Sequence[SparseFeatures], n_rows: int, n_tokens: int, aligned: bool, kept: Sequence[int]
) -> SparseFeatures:
    d_sae = found[0].d_sae
    rows = torch.cat([f.rows if aligned else torch.zeros_like(f.rows) for f in found])
    indices = torch.cat([f.indices for f in found])
    values = torch.cat([f.values for f in found])
    key, inverse = torch.unique(rows * d_sae + indices, return_inverse=True)
    mean = torch.zeros(len(key), dtype=values.dtype, device=values.device).index_add_(0, inverse, values) / n_rows
    if aligned:
        return SparseFeatures(key // d_sae, key % d_sae, mean, n_tokens, d_sae)
    positions = torch.tensor(kept, device=key.device)
    return SparseFeatures(
        positions.repeat_interleave(len(key)), key.repeat(len(kept)), mean.repeat(len(kept)), n_tokens, d_sae
    )
