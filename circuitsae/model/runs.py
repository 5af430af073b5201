"""One forward pass taken apart: at every site the active features, their decoder rows and the error.

A dictionary is read, used and released; what is kept of a run is sparse: features' positions, indices and activations,
the decoder rows of those that are active, and one error vector a site and position (DESIGN.md, section 4).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from circuitsae.dictionaries.active import SparseFeatures
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.neurons import NeuronDictionary
from circuitsae.errors import SpliceError, TaskError
from circuitsae.model import points
from circuitsae.model.finite import checked
from circuitsae.model.hooks import Hook, Passed, Prefix
from circuitsae.model.spliced import OnRead, OnWrite, SplicedModel
from circuitsae.model.tapes import is_long
from circuitsae.task.metrics import BoundMetric

_SUM = 0  # the mode "sum" in torch's own numbering


class DecoderRows:
    """A dictionary's decoder rows of some features, `[unique d_out]` for each hook point that it writes.

    They are read when asked for and kept until they are forgotten: of a run they are what takes most memory.
    """

    def __init__(self, dictionary: Dictionary, unique: Int[Tensor, "unique"], like: Tensor) -> None:
        self._dictionary, self._unique, self._device, self._dtype = dictionary, unique, like.device, like.dtype
        self._rows: dict[int, Tensor] = {}

    @classmethod
    def of(cls, dictionary: Dictionary, unique: Int[Tensor, "unique"], like: Tensor) -> "DecoderRows":
        """Returns a dictionary's rows of some features; of neurons, whose rows are unit vectors, without making them."""
        return (UnitRows if isinstance(dictionary, NeuronDictionary) else DecoderRows)(dictionary, unique, like)

    def __len__(self) -> int:
        return len(self._dictionary.hook_outs)

    def __getitem__(self, out: int) -> Tensor:
        out = range(len(self))[out]  # the error that ends an iteration, too
        if out not in self._rows:
            rows = self._dictionary.decoder_rows(self._unique, out)
            self._rows[out] = rows.to(device=self._device, dtype=self._dtype)
        return self._rows[out]

    def here(self) -> list[Tensor]:
        """Returns the rows that are kept at present."""
        return list(self._rows.values())

    def take(self, out: int, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n d_out"]:
        """Returns some of the rows."""
        return self[out][numbers]

    def along(
        self, out: int, vectors: Float[Tensor, "pos d_out"], rows: Int[Tensor, "n"], numbers: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Returns `vectors[rows[k]]` times row `numbers[k]` for every k; `rows` ascend."""
        return sampled_products(vectors, rows, self[out], numbers)

    def multiply(
        self, out: int, vectors: Float[Tensor, "part d_out"], numbers: Int[Tensor, "n"], into: Float[Tensor, "part n"]
    ) -> None:
        """Writes every vector times each of some rows."""
        torch.mm(vectors, self[out][numbers].T.to(vectors.dtype), out=into)

    def written(
        self, out: int, weights: Float[Tensor, "n"], rows: Int[Tensor, "n"], numbers: Int[Tensor, "n"], n_rows: int
    ) -> Float[Tensor, "pos d_out"]:
        """Returns, at every position, the sum of `weights[k]` times row `numbers[k]` over the k there; `rows` ascend."""
        return weighted_rows(weights, rows, self[out], numbers, n_rows)

    def squares(self) -> Float[Tensor, "unique"]:
        """Returns the rows' squared norms, over all that the dictionary writes."""
        return torch.stack([(self[out].double() ** 2).sum(-1) for out in range(len(self))]).sum(0)

    def forget(self) -> None:
        """Gives the memory back; what is asked for later is read again."""
        self._rows.clear()


class UnitRows(DecoderRows):
    """Those of a neuron dictionary: row k is the unit vector of neuron `unique[k]`, so products are picked, not computed."""

    def take(self, out: int, numbers: Int[Tensor, "n"]) -> Float[Tensor, "n d_out"]:
        rows = self._dictionary.decoder_rows(self._unique[numbers], out)
        return rows.to(device=self._device, dtype=self._dtype)

    def along(
        self, out: int, vectors: Float[Tensor, "pos d_out"], rows: Int[Tensor, "n"], numbers: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        return vectors[rows, self._unique[numbers]]

    def multiply(
        self, out: int, vectors: Float[Tensor, "part d_out"], numbers: Int[Tensor, "n"], into: Float[Tensor, "part n"]
    ) -> None:
        into.copy_(vectors[:, self._unique[numbers]])

    def written(
        self, out: int, weights: Float[Tensor, "n"], rows: Int[Tensor, "n"], numbers: Int[Tensor, "n"], n_rows: int
    ) -> Float[Tensor, "pos d_out"]:
        found = weights.new_zeros(n_rows, self._dictionary.d_out)
        return found.index_put((rows, self._unique[numbers]), weights, accumulate=True)

    def squares(self) -> Float[Tensor, "unique"]:
        return torch.ones(len(self._unique), dtype=torch.float64, device=self._device)


@dataclass(frozen=True)
class FeatureRun:
    """One dictionary on one prompt.

    Attributes:
        dictionary: The dictionary.
        x_in: What it read.
        kept: The positions at which it is applied, ascending (see `SplicedModel.applied`).
        features: The active features; rows are positions of the prompt.
        scale: What its reconstruction is multiplied by at each position (see `Encoding.scale`), `None` for 1.
        unique: The distinct active features, ascending.
        inverse: For each active feature, its number in `unique`.
        decoders: For each hook point written, the decoder rows of `unique`.
    """

    dictionary: Dictionary
    x_in: Float[Tensor, "pos d_in"]
    kept: Int[Tensor, "kept"]
    features: SparseFeatures
    scale: Float[Tensor, "pos"] | None
    unique: Int[Tensor, "unique"]
    inverse: Int[Tensor, "active"]
    decoders: DecoderRows


@dataclass(frozen=True)
class SiteRun:
    """A hook point that dictionaries write to, on one prompt: `x = sum of features + bias + skip + error`.

    Attributes:
        hook: The hook point.
        x: Its value.
        bias: The part of the reconstruction that no feature carries; zero at skipped positions.
        skip: What linear skip paths add, `None` where there are none.
        error: What the dictionaries leave unexplained; the whole of `x` at skipped positions.
        kept: The positions at which its dictionaries are applied, ascending.
    """

    hook: str
    x: Float[Tensor, "pos d_out"]
    bias: Float[Tensor, "pos d_out"]
    skip: Float[Tensor, "pos d_out"] | None
    error: Float[Tensor, "pos d_out"]
    kept: Int[Tensor, "kept"]

    def skipped(self) -> Bool[Tensor, "pos"]:
        """Returns at which positions no dictionary is applied."""
        mask = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        mask[self.kept] = False
        return mask


@dataclass(frozen=True)
class Run:
    """A forward pass of one prompt, taken apart.

    Attributes:
        tokens: The prompt.
        features: One entry a dictionary, in `SplicedModel.dictionaries`' order.
        sites: One entry a hook point written.
        embed: The token embeddings.
        logits: Scores at `kept` positions.
        scores: What the unembedding gives there, before the model scales or caps it.
        kept: The positions whose logits are there; the last is the prompt's last.
        metric: The metric's value, `None` where none was asked for.
        prefixes: The residual stream entering the layers where a run may start again.
    """

    tokens: Int[Tensor, "pos"]
    features: tuple[FeatureRun, ...]
    sites: dict[str, SiteRun]
    embed: Float[Tensor, "pos d_model"]
    logits: Float[Tensor, "kept d_vocab"]
    scores: Float[Tensor, "kept d_vocab"]
    kept: tuple[int, ...]
    metric: float | None
    prefixes: dict[int, Prefix] = field(repr=False, default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """The prompt's length."""
        return int(self.tokens.shape[0])

    def tensors(self) -> list[Tensor | None]:
        """Returns all that the run holds in memory at present."""
        found: list[Tensor | None] = [self.tokens, self.embed, self.logits]
        for f in self.features:
            own = (f.x_in, f.kept, f.scale, f.unique, f.inverse, *f.decoders.here())
            found += [*own, f.features.rows, f.features.indices, f.features.values]
        for site in self.sites.values():
            found += [site.x, site.bias, site.skip, site.error, site.kept]
        return found + [prefix.residual for prefix in self.prefixes.values()]

    def prefix(self, layer: int) -> Prefix | None:
        """Returns the highest stored start at or below a layer."""
        below = [at for at in self.prefixes if at <= layer]
        return self.prefixes[max(below)] if below else None


@dataclass(frozen=True)
class Readout:
    """What is scored at the end of a run: the positions whose logits are computed, and the metric on them.

    With `uncapped` the metric is given what the unembedding gives, before the model scales or caps it.
    """

    metric: BoundMetric | None
    n_tokens: int
    uncapped: bool = False

    @property
    def kept(self) -> tuple[int, ...]:
        """The positions whose logits are computed, ascending."""
        if self.metric is None or self.metric.reads is not None:
            return (self.n_tokens - 1,)
        if self.metric.positions is None:
            return tuple(range(self.n_tokens))
        return tuple(sorted({*self.metric.positions, self.n_tokens - 1}))

    def of(self, captured: "Captured") -> Float[Tensor, "batch"]:
        """Returns the metric of each prompt of a run, whether it reads logits or an activation.

        Raises:
            NotFiniteError: It is NaN or infinite.
        """
        assert self.metric is not None
        if self.metric.reads is None:
            logits = captured.scores if self.uncapped else captured.logits
            assert logits is not None
            return self.value(logits)
        assert captured.observed is not None
        x = captured.observed
        return self._checked(self.metric(x if self.metric.positions is None else x[:, list(self.metric.positions)]))

    def vanishes(self, logits: Float[Tensor, "batch kept d_vocab"]) -> bool:
        """Whether the metric's gradient by the logits is zero there though it is not nearby: nothing of first order acts."""
        if self.metric is None or self.metric.reads is not None:
            return False
        sizes = []
        beside = torch.arange(logits.shape[-1], device=logits.device).cos()
        for step in (0.0, 1.0):
            with torch.enable_grad():
                # In half precision rounding would hide that it is zero.
                wide = logits.detach() if logits.dtype in (torch.float32, torch.float64) else logits.detach().float()
                leaf = (wide + step * beside.to(wide)).requires_grad_()
                value = self.value(leaf)
                if not value.requires_grad:
                    return False
                (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
            sizes.append(0.0 if gradient is None else float(gradient.abs().max()))
        return sizes[0] <= 1e-5 * sizes[1] and sizes[1] > 0

    def _checked(self, value: Tensor) -> Tensor:
        assert self.metric is not None
        return checked(value, str(self.metric.description.get("description", self.metric.description.get("name"))))

    def value(self, logits: Float[Tensor, "batch kept d_vocab"]) -> Float[Tensor, "batch"]:
        """Returns the metric of each prompt from the logits at `kept`.

        Raises:
            TaskError: The metric reads an activation, not the logits; `of` takes that from a run.
        """
        assert self.metric is not None
        if self.metric.reads is not None:
            raise TaskError(
                f"The metric {self.metric.description.get('name')!r} reads {self.metric.reads!r}, not the logits; it can "
                "be explained by node_effects, but not here."
            )
        if self.metric.positions is None:
            return self._checked(self.metric(logits))
        kept = self.kept
        return self._checked(self.metric(logits[:, [kept.index(p) for p in self.metric.positions]]))


@dataclass(frozen=True)
class Captured:
    """What a forward pass left in the autograd graph.

    Attributes:
        x_in: By dictionary, what it read, `[batch pos d_in]`.
        x_out: By hook point written, its value (after what `on_write` put there), `[batch pos d_out]`.
        embed: The token embeddings, the leaf that the graph starts from, `[batch pos d_model]`.
        residuals: By layer, the residual stream entering it.
        logits: Scores at the readout's positions, `[batch kept d_vocab]`; `None` if the run stopped earlier.
        observed: The activation that the metric reads, `[batch pos d]`; `None` where it reads the logits.
        scores: What the unembedding gives, before the model scales or caps it; `None` as with the logits.
    """

    x_in: dict[int, Tensor]
    x_out: dict[str, Tensor]
    embed: Tensor
    residuals: dict[int, Tensor]
    logits: Tensor | None
    observed: Tensor | None = None
    scores: Tensor | None = None

    def prompt(self, number: int) -> "Captured":
        """Returns what is one prompt's of a batch, off the graph and in memory of its own."""

        def one(x: Tensor) -> Tensor:
            return x.detach()[number : number + 1].clone()

        return Captured(
            {key: one(x) for key, x in self.x_in.items()},
            {key: one(x) for key, x in self.x_out.items()},
            one(self.embed),
            {key: one(x) for key, x in self.residuals.items()},
            None if self.logits is None else one(self.logits),
            None if self.observed is None else one(self.observed),
            None if self.scores is None else one(self.scores),
        )


EMBED = "hook_embed"


def forward(
    spliced: SplicedModel,
    tokens: Int[Tensor, "batch pos"],
    readout: Readout,
    *,
    on_read: OnRead | None = None,
    on_write: OnWrite | None = None,
    extra: Sequence[tuple[str, Hook]] = (),
    residuals_at: Sequence[int] = (),
    leaf_embed: bool = False,
    start: Prefix | None = None,
    stop_at: str | None = None,
    until: int | None = None,
) -> Captured:
    """Runs the model once and captures what the dictionaries read and what stands where they write.

    With `leaf_embed` the embeddings are a detached leaf that requires a gradient, from which the graph grows.
    `extra` hooks (freezes, edits) run before the capture at their hook point, `Passed` after it; those outside the layers
    that are computed are left out. With `until` the run ends where the residual stream enters that layer, and captures it there.
    """
    x_in: dict[int, Tensor] = {}
    x_out: dict[str, Tensor] = {}
    residuals: dict[int, Tensor] = {}
    embed: list[Tensor] = []

    def check_shape(name: str, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[:2] != tokens.shape:
            raise SpliceError(
                f"The hook point {name!r} of {spliced.hooked.family} gives {list(x.shape)} for {tokens.shape[0]} prompt(s) of "
                f"{tokens.shape[1]} tokens, not a vector for each prompt and position, so no dictionary can be there."
            )

    def read(number: int, x: Tensor) -> None:
        check_shape(spliced.reads[number], x)
        x_in[number] = x
        if on_read is not None:
            on_read(number, x)

    def write(name: str, x: Tensor) -> Tensor | None:
        check_shape(name, x)
        new = None if on_write is None else on_write(name, x)
        if new is None and leaf_embed:
            # A tensor of its own that the model goes on with from here: `x` may be a view off the path (a head axis), or
            # the stream itself where it forks, and lead to more than what reads this hook point.
            new = x.view_as(x)
        if new is not None and leaf_embed and not new.requires_grad:  # nothing below depends on the embeddings
            new = new.detach().requires_grad_()
        x_out[name] = x if new is None else new
        return new

    def at_embed(x: Tensor) -> Tensor | None:
        if leaf_embed:
            x = x.detach().requires_grad_()
        embed.append(x)
        return x if leaf_embed else None

    observed: list[Tensor] = []

    def observe(x: Tensor) -> Tensor:
        observed.append(x.flatten(2))
        return x.view_as(x)  # what is written here comes after the reading and doesn't act on it

    first = 0 if start is None else start.layer

    def computed(name: str) -> bool:
        layer = spliced.hooked.layer(name)
        return first <= layer and (until is None or layer < until)

    extra = [(name, hook) for name, hook in extra if computed(name)]
    hooks: list[tuple[str, Hook]] = [(EMBED, at_embed), *((n, h) for n, h in extra if not isinstance(h, Passed))]
    if readout.metric is not None and readout.metric.reads is not None and computed(readout.metric.reads):
        hooks.append((readout.metric.reads, observe))
    for layer in residuals_at if until is None else [*residuals_at, until]:
        hooks.append((spliced.hooked.residual_name(layer), lambda x, layer=layer: residuals.__setitem__(layer, x)))
    hooks += [
        (name, hook)
        for name, hook in spliced.splice(read, write)
        if computed(name) and (stop_at is None or spliced.order(name) <= spliced.order(stop_at))
    ]
    hooks += [(name, hook) for name, hook in extra if isinstance(hook, Passed)]
    if until is not None:
        stop_at = spliced.hooked.residual_name(until)
    scores: list[Tensor] = []
    logits = spliced.hooked.forward(tokens, hooks, start=start, logits_at=readout.kept, stop_at=stop_at, scores=scores)
    seen = observed[0] if observed else None
    return Captured(x_in, x_out, embed[0], residuals, logits, seen, scores[0] if scores else None)


def start_layers(spliced: SplicedModel, n_tokens: int) -> list[int]:
    """Returns the layers at which later runs want to start: where a dictionary reads or writes, and above residual sites.

    Of a prompt whose tape is cut that is every layer.
    """
    if is_long(spliced, n_tokens):
        return list(range(1, spliced.n_layers))
    layers = {spliced.hooked.layer(name) for name in (*spliced.reads, *spliced.written)}
    layers |= {points.entered(name) or 0 for name in spliced.written}
    return sorted(layer for layer in layers if 0 < layer < spliced.n_layers)


def start_below(spliced: SplicedModel, run: Run, layers: Sequence[int], readout: Readout) -> Prefix | None:
    """Returns where runs that change something from these layers on start: not above what the metric reads, either."""
    reads = None if readout.metric is None else readout.metric.reads
    needed = [*layers, *([] if reads is None else [spliced.hooked.layer(reads)])]
    return run.prefix(min(needed)) if layers else None


def take_apart(
    spliced: SplicedModel, tokens: Sequence[int], captured: Captured, readout: Readout, like: Run | None = None
) -> Run:
    """Encodes what a forward pass captured: one dictionary at a time, each released after use.

    With `like`, a run of equal length, dictionaries are applied at the positions at which they are there.
    """
    with torch.no_grad():
        x_in = [_working(captured.x_in[number][0]) for number in range(len(spliced.dictionaries))]
        kept = spliced.applied(x_in) if like is None else tuple(f.kept for f in like.features)
        features = tuple(_encode(d, x, at) for d, x, at in zip(spliced.dictionaries, x_in, kept, strict=True))
        runs = tuple(f for f, _ in features)
        sites = {name: _site(spliced, name, _working(captured.x_out[name][0]), features) for name in spliced.written}
        logits, scores = captured.logits, captured.scores
        assert logits is not None and scores is not None
        return Run(
            tokens=torch.tensor(list(tokens), device=spliced.device),
            features=runs,
            sites=sites,
            embed=_working(captured.embed[0].detach()),
            logits=logits[0].detach(),
            scores=scores[0].detach(),
            kept=readout.kept,
            metric=None if readout.metric is None else float(readout.of(captured)[0]),
            prefixes={layer: Prefix(layer, x.detach()) for layer, x in captured.residuals.items()},
        )


def run_clean(
    spliced: SplicedModel, tokens: Sequence[int], metric: BoundMetric | None = None, like: Run | None = None
) -> Run:
    """Runs one prompt and takes it apart (see `take_apart`). Cost: one forward pass, one encoding a dictionary."""
    return run_together(spliced, [tokens], metric, like)[0]


def run_together(
    spliced: SplicedModel,
    prompts: Sequence[Sequence[int]],
    metric: BoundMetric | None = None,
    like: Run | None = None,
) -> list[Run]:
    """Runs prompts of one length in one batch and takes each apart, for less than one at a time takes.

    Dictionaries are applied where they are in `like`, by default the first prompt's run.
    """
    readout = Readout(metric, len(prompts[0]))
    batch = torch.tensor([list(tokens) for tokens in prompts], device=spliced.device)
    with torch.no_grad():
        captured = forward(spliced, batch, readout, residuals_at=start_layers(spliced, readout.n_tokens))
    found: list[Run] = []
    for number, tokens in enumerate(prompts):
        own = captured if len(prompts) == 1 else captured.prompt(number)
        found.append(take_apart(spliced, tokens, own, readout, like or (found[0] if found else None)))
    return found


def sampled_products(
    vectors: Float[Tensor, "pos d"],
    rows: Int[Tensor, "n"],
    table: Float[Tensor, "unique d"],
    inverse: Int[Tensor, "n"],
) -> Float[Tensor, "n"]:
    """Returns `vectors[rows[k]] . table[inverse[k]]` for every k: a dense product sampled where features are active.

    Rows must ascend. This is what a sparse decode's weights get in a backward pass, for which torch has an operation that
    gathers nothing: 2 to 10 times as fast as gathering, and no memory.
    """
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return backward(vectors.contiguous(), table, inverse, _starts(rows, len(vectors)), rows, _SUM, -1)


def weighted_rows(
    weights: Float[Tensor, "n"],
    rows: Int[Tensor, "n"],
    table: Float[Tensor, "unique d"],
    inverse: Int[Tensor, "n"],
    n_rows: int,
) -> Float[Tensor, "pos d"]:
    """Returns, at every position, the sum of `weights[k] * table[inverse[k]]` over the k there: a sparse decode.

    Rows must ascend.
    """
    return functional.embedding_bag(inverse, table, _starts(rows, n_rows), mode="sum", per_sample_weights=weights)


def _starts(rows: Int[Tensor, "n"], n_rows: int) -> Int[Tensor, "pos"]:
    """Returns where each row's entries begin."""
    return torch.searchsorted(rows, torch.arange(n_rows, device=rows.device))


def _encode(dictionary: Dictionary, x: Tensor, kept: Tensor) -> "tuple[FeatureRun, tuple[Tensor, ...]]":
    """Encodes the kept positions of one prompt; also gives the biases, expanded to them."""
    n_tokens = int(x.shape[0])
    everywhere = len(kept) == n_tokens
    encoding = dictionary.encode(x if everywhere else x[kept])
    features, scale = encoding.features, encoding.scale
    if not everywhere:
        features = SparseFeatures(kept[features.rows], features.indices, features.values, n_tokens, features.d_sae)
        if scale is not None:
            scale = torch.ones(n_tokens, dtype=scale.dtype, device=scale.device).index_put_((kept,), scale)
    unique, inverse = torch.unique(features.indices, return_inverse=True)
    decoders = DecoderRows.of(dictionary, unique, x)
    return FeatureRun(dictionary, x, kept, features, scale, unique, inverse, decoders), encoding.biases


def _site(
    spliced: SplicedModel,
    name: str,
    x: Tensor,
    encoded: "Sequence[tuple[FeatureRun, tuple[Tensor, ...]]]",
) -> SiteRun:
    n_tokens = int(x.shape[0])
    kept = encoded[spliced.writers[name][0][0]][0].kept
    bias = torch.zeros_like(x)
    skip: Tensor | None = None
    decoded = torch.zeros_like(x)
    for number, out in spliced.writers[name]:
        run, biases = encoded[number]
        bias[kept] += biases[out]
        features = run.features
        weights = features.values if run.scale is None else features.values * run.scale[features.rows]
        decoded += run.decoders.written(out, weights, features.rows, run.inverse, n_tokens)
        path = run.dictionary.skip(run.x_in[kept]) if out == 0 else None
        if path is not None:
            skip = torch.zeros_like(x) if skip is None else skip
            skip[kept] += path
    error = x - decoded - bias
    if skip is not None:
        error -= skip
    return SiteRun(name, x, bias, skip, error, kept)


def _working(x: Tensor) -> Tensor:
    """Dictionaries and products work in float32 at least, whatever the model runs in."""
    x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
