"""Node effects: by how much the metric changes when a node is set to its baseline.

`node_effects` is the entry; the methods themselves are plugins (group `methods`) that get a `Context` and give
`NodeEffects`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae import names, registry
from circuitsae.attribution.baselines import Baseline, FeatureNodes, feature_nodes, make_baseline
from circuitsae.errors import CancelledError, InputError, MissingExtraError, NodeError, UnknownNameError
from circuitsae.model.runs import (
    Captured,
    Readout,
    Run,
    forward,
    run_clean,
    start_layers,
    take_apart,
)
from circuitsae.model.spliced import OnWrite, SplicedModel
from circuitsae.task.task import PreparedTask, Task

Gradient = Literal["pass-through", "through-dictionary"]
GRADIENTS: tuple[str, ...] = get_args(Gradient)

Progress = Callable[[int, int, str], object]
"""Called with work done, work in all and a word for it; returning `False` (or raising) cancels."""


@dataclass(frozen=True)
class NodeBlock:
    """Nodes of one kind at one place, by position then index. All tensors are `[node]`.

    Attributes:
        kind: `"feature"`, `"error"` or `"token"`.
        site: The site (features), the hook point (errors), empty for tokens.
        positions: Their positions in the prompt.
        indices: Their features; `None` for other kinds.
        activations: Features' activations; the norms of error vectors and embeddings.
        baselines: What they are set to; norms likewise.
        effects: Change of the metric when the node is set to its baseline.
        slopes: Derivative of the metric by a feature's activation; `None` for other kinds.
    """

    kind: Literal["feature", "error", "token"]
    site: str
    positions: Int[Tensor, "node"]
    indices: Int[Tensor, "node"] | None
    activations: Float[Tensor, "node"]
    baselines: Float[Tensor, "node"]
    effects: Float[Tensor, "node"]
    slopes: Float[Tensor, "node"] | None = None

    def __len__(self) -> int:
        return int(self.positions.shape[0])

    def part(self, which: Tensor) -> "NodeBlock":
        """Returns some of the nodes, chosen by a mask or by their numbers."""
        return NodeBlock(
            self.kind,
            self.site,
            self.positions[which],
            None if self.indices is None else self.indices[which],
            self.activations[which],
            self.baselines[which],
            self.effects[which],
            None if self.slopes is None else self.slopes[which],
        )

    def key(self, number: int) -> str:
        """Returns the key of the block's node of that number."""
        position = int(self.positions[number])
        if self.kind == "token":
            return names.token(position)
        if self.kind == "error":
            return names.error(self.site, position)
        assert self.indices is not None
        return names.feature(self.site, int(self.indices[number]), position)


@dataclass(frozen=True)
class NodeEffects:
    """The effects of all nodes: features that are active, error nodes and tokens, sparse, at every site.

    Attributes:
        blocks: Features of each dictionary, errors of each hook point written, tokens.
        metric: The metric's value on the prompt.
        baseline_metric: Its value on the patch prompt, `None` where the baseline is another.
        method, baseline, gradient, options: How they were computed.
        token_strings: The prompt's tokens.
        passes: What it cost, in forward and backward passes of the model over one prompt.
    """

    blocks: tuple[NodeBlock, ...]
    metric: float
    baseline_metric: float | None
    method: str
    baseline: str
    gradient: str
    options: Mapping[str, Any]
    token_strings: tuple[str, ...]
    skipped: frozenset[int] = frozenset()
    passes: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(b) for b in self.blocks)

    def features(self) -> tuple[NodeBlock, ...]:
        """Returns the feature blocks, in the dictionaries' order."""
        return tuple(b for b in self.blocks if b.kind == "feature")

    def errors(self) -> tuple[NodeBlock, ...]:
        """Returns the error blocks, in the order of the hook points written."""
        return tuple(b for b in self.blocks if b.kind == "error")

    def tokens(self) -> NodeBlock:
        """Returns the tokens' block."""
        return next(b for b in self.blocks if b.kind == "token")

    def offered(self, block: NodeBlock, skipped: bool = False) -> "NodeBlock":
        """Returns a block without the error nodes at skipped positions, unless those are asked for."""
        if skipped or block.kind != "error" or not self.skipped:
            return block
        out = torch.tensor(sorted(self.skipped), device=block.positions.device)
        return block.part(~torch.isin(block.positions, out))

    def records(
        self, kinds: Sequence[str] = ("feature", "error", "token"), *, skipped: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Yields one plain record a node: node, kind, site, index, position, token, activation, baseline, effect.

        Error nodes at skipped positions, which hold the whole vector there, only with `skipped`.
        """
        for block in self.blocks:
            if block.kind not in kinds:
                continue
            block = self.offered(block, skipped)
            columns = [
                block.positions.tolist(),
                [None] * len(block) if block.indices is None else block.indices.tolist(),
                block.activations.tolist(),
                block.baselines.tolist(),
                block.effects.tolist(),
            ]
            for number, (position, index, activation, baseline, effect) in enumerate(zip(*columns, strict=True)):
                yield {
                    "node": block.key(number),
                    "kind": block.kind,
                    "site": block.site or None,
                    "index": index,
                    "position": position,
                    "token": self.token_strings[position],
                    "activation": activation,
                    "baseline": baseline,
                    "effect": effect,
                }

    def strongest(self, n: int = 10, kinds: Sequence[str] = ("feature",)) -> list[dict[str, Any]]:
        """Returns the records of the `n` nodes with the largest |effect|, strongest first."""
        chosen = [b for block in self.blocks if block.kind in kinds and len(b := self.offered(block))]
        if not chosen:
            return []
        sizes = torch.cat([b.effects.abs().double() for b in chosen])
        top = torch.zeros(len(sizes), dtype=torch.bool, device=sizes.device)
        top[sizes.topk(min(n, len(sizes))).indices] = True
        # Records are made for the strongest only: a long prompt has tens of thousands of nodes.
        parts = top.split([len(b) for b in chosen])
        strongest = replace(self, blocks=tuple(b.part(p) for b, p in zip(chosen, parts, strict=True)))
        return sorted(strongest.records(), key=lambda r: (-abs(r["effect"]), names.sort_key(r["node"])))

    def effect_of(self, node: str) -> float:
        """Returns one node's effect.

        Raises:
            NodeError: The node is not among these.
        """
        key = names.parse(node)
        for block in self.blocks:
            if block.kind != key.kind or (key.site or "") != block.site:
                continue
            if not isinstance(key.position, int):
                continue
            match = torch.eq(block.positions, key.position)
            if block.indices is not None:
                match &= torch.eq(block.indices, key.index if key.index is not None else -1)
            if bool(match.any()):
                return float(block.effects[match][0])
        raise NodeError(f"There is no node {node!r} among these effects; strongest(20) lists some that there are.")

    def to_dataframe(self) -> Any:
        """Returns a pandas DataFrame, one row a node.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtraError("to_dataframe()", "pandas", "dataframe") from error
        return pandas.DataFrame.from_records(
            list(self.records()),
            columns=["node", "kind", "site", "index", "position", "token", "activation", "baseline", "effect"],
        ).astype({"index": "Int64"})


@dataclass(frozen=True)
class NoOptions:
    """Options of a method that has none."""


class Method(Protocol):
    """What a method plugin is: a class whose instance, called with a context and options, gives all nodes' effects.

    `Options` is a frozen dataclass; the command and the app build their controls from its fields. `cost` says in words
    what the method costs in passes over one prompt.
    """

    name: ClassVar[str]
    cost: ClassVar[str]
    Options: ClassVar[type]

    def __call__(self, context: "Context", options: Any) -> NodeEffects:
        """Computes the effects."""
        ...


class Context:
    """What a method works with: one task on one model, its clean run, baseline and nodes.

    The clean run is made when first asked for; `gradients` makes it together with the backward pass, so that
    attribution patching costs one forward and one backward pass in all.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        task: PreparedTask,
        *,
        method: str,
        baseline: str,
        gradient: str = "pass-through",
        reference: Sequence[Sequence[int]] | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if gradient not in GRADIENTS:
            raise UnknownNameError("gradient", gradient, GRADIENTS)
        self.spliced, self.task = spliced, task
        self.method, self.gradient = method, gradient
        self.options = dict(options or {})
        self.readout = Readout(task.metric, len(task.tokens))
        self.batch = torch.tensor([task.tokens], device=spliced.device)
        self.passes = {"forward": 0.0, "backward": 0.0}
        self._progress = progress
        self._baseline_name, self._reference = baseline, reference
        self._run: Run | None = None
        self._baseline: Baseline | None = None
        self._nodes: tuple[FeatureNodes, ...] | None = None

    def tick(self, done: int, total: int, what: str) -> None:
        """Reports progress.

        Raises:
            CancelledError: The caller's callback said `False`.
        """
        if self._progress is not None and self._progress(done, total, what) is False:
            raise CancelledError(f"Cancelled after {done} of {total} {what}.")

    @property
    def run(self) -> Run:
        """The clean run."""
        if self._run is None:
            self.passes["forward"] += 1
            self._run = run_clean(self.spliced, self.task.tokens, self.task.metric)
        return self._run

    @property
    def baseline(self) -> Baseline:
        """What nodes are set to. The patch prompt is run when this is first asked for."""
        if self._baseline is None:
            patch = None
            if self._baseline_name == "patch" and self.task.patch_tokens is not None:
                self.passes["forward"] += 1
                patch = run_clean(self.spliced, self.task.patch_tokens, self.task.metric)
            self._baseline = make_baseline(
                self.spliced,
                self._baseline_name,
                n_tokens=len(self.task.tokens),
                patch=patch,
                reference=self._reference,
                progress=self._progress,
            )
        return self._baseline

    @property
    def nodes(self) -> tuple[FeatureNodes, ...]:
        """The feature nodes, one entry a dictionary."""
        if self._nodes is None:
            self._nodes = tuple(
                feature_nodes(run, features)
                for run, features in zip(self.run.features, self.baseline.features, strict=True)
            )
        return self._nodes

    def gradients(self, **passes: Any) -> tuple[dict[str, Float[Tensor, "pos d_out"]], Float[Tensor, "pos d_model"]]:
        """Returns the metric's gradient at every hook point written and at the embeddings, at the clean run.

        With the `pass-through` gradient this is the gradient of the bare model; with `through-dictionary` the error is
        a constant and the gradient below a site flows through decode and encode. Cost: one backward pass, and one
        forward pass that also serves as the clean run. Keyword arguments go to `forward` (hooks, say).
        """
        with torch.enable_grad():
            on_write: OnWrite | None = None
            if self.gradient == "through-dictionary":
                on_write = self._through_dictionaries(passes)
            captured = forward(
                self.spliced,
                self.batch,
                self.readout,
                leaf_embed=True,
                on_write=on_write,
                residuals_at=[] if self._run is not None else start_layers(self.spliced),
                **passes,
            )
            self.passes["forward"] += 1
            at = [captured.x_out[name] for name in self.spliced.written]
            found = self._backward(captured, [*at, captured.embed])
        if self._run is None and not passes:
            self._run = take_apart(self.spliced, self.task.tokens, captured, self.readout)
        *sites, embed = [_full(g[0], self.run.embed.dtype) for g in found]
        return dict(zip(self.spliced.written, sites, strict=True)), embed

    def _backward(self, captured: Captured, inputs: Sequence[Tensor]) -> list[Tensor]:
        assert captured.logits is not None
        value = self.readout.value(captured.logits)
        if not value.requires_grad:
            raise InputError("The metric does not depend on the logits in a way that can be differentiated.")
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
        self.passes["backward"] += 1
        return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]

    def _through_dictionaries(self, passes: dict[str, Any]) -> OnWrite:
        """Returns the splice that lets gradients flow through decode and encode; values stay what they are."""
        spliced, run = self.spliced, self.run
        read: dict[int, Tensor] = {}
        passes["on_read"] = read.__setitem__  # every dictionary reads before it writes

        def on_write(name: str, x: Tensor) -> Tensor:
            rebuilt = torch.zeros_like(x)
            for number, out in spliced.writers[name]:
                feature_run = run.features[number]
                features = feature_run.features
                x_in = read[number][0].to(run.embed.dtype)
                values = feature_run.dictionary.pre_activations(x_in, features.rows, features.indices)
                if feature_run.scale is not None:
                    values = values * feature_run.scale[features.rows]
                decoded = torch.zeros(x.shape[1:], dtype=values.dtype, device=x.device).index_add(
                    0, features.rows, values[:, None] * feature_run.decoders[out][feature_run.inverse]
                )
                if out == 0 and run.sites[name].skip is not None:
                    kept = spliced.kept_positions(len(x_in))
                    path = feature_run.dictionary.skip(x_in[kept])
                    if path is not None:
                        decoded = decoded.index_add(0, torch.tensor(kept, device=x.device), path)
                rebuilt = rebuilt + decoded.to(x.dtype)
            return rebuilt + (x - rebuilt).detach()

        return on_write

    def effects(
        self,
        gradients: Mapping[str, Float[Tensor, "pos d_out"]],
        embed_gradient: Float[Tensor, "pos d_model"],
    ) -> NodeEffects:
        """Returns the effects that gradients predict: `gradient . (baseline - value)` for every node.

        A feature's is `(W_dec[i] . g) * (a' - a)`, an error node's `g . (e' - e)` (DESIGN.md, section 3.2). The
        gradients may be averages over several points, or of a modified backward pass.
        """
        blocks: list[NodeBlock] = []
        for number, nodes in enumerate(self.nodes):
            dictionary = self.spliced.dictionaries[number]
            slopes = torch.zeros_like(nodes.activations)
            for out, hook in enumerate(dictionary.hook_outs):
                slopes = slopes + nodes.along(gradients[self.spliced.canonical(hook)], out)
            effects = slopes * (nodes.baselines - nodes.activations)
            blocks.append(self.feature_block(number, effects, slopes))
        for hook in self.spliced.written:
            error = self.run.sites[hook].error
            delta = -error if self.baseline.errors is None else self.baseline.errors[hook] - error
            blocks.append(self.error_block(hook, (gradients[hook] * delta).sum(-1)))
        embed = self.run.embed
        delta = -embed if self.baseline.embed is None else self.baseline.embed - embed
        blocks.append(self.token_block((embed_gradient * delta).sum(-1)))
        return self.finish(blocks)

    def feature_block(self, number: int, effects: Tensor, slopes: Tensor | None) -> NodeBlock:
        """Returns the block of one dictionary's features with these effects."""
        nodes = self.nodes[number]
        site = self.spliced.dictionaries[number].site
        return NodeBlock(
            "feature", site, nodes.positions, nodes.indices, nodes.activations, nodes.baselines, effects, slopes
        )

    def error_block(self, hook: str, effects: Float[Tensor, "pos"]) -> NodeBlock:
        """Returns the block of one hook point's error nodes with these effects."""
        error = self.run.sites[hook].error
        norms = error.norm(dim=-1)
        base = torch.zeros_like(norms) if self.baseline.errors is None else self.baseline.errors[hook].norm(dim=-1)
        return NodeBlock("error", hook, torch.arange(len(norms), device=norms.device), None, norms, base, effects)

    def token_block(self, effects: Float[Tensor, "pos"]) -> NodeBlock:
        """Returns the block of the tokens with these effects."""
        norms = self.run.embed.norm(dim=-1)
        base = torch.zeros_like(norms) if self.baseline.embed is None else self.baseline.embed.norm(dim=-1)
        return NodeBlock("token", "", torch.arange(len(norms), device=norms.device), None, norms, base, effects)

    def finish(self, blocks: Sequence[NodeBlock]) -> NodeEffects:
        """Returns the blocks with what the context knows of how they came about."""
        assert self.run.metric is not None
        n_tokens = len(self.task.tokens)
        kept = set(self.spliced.kept_positions(n_tokens))
        return NodeEffects(
            blocks=tuple(blocks),
            metric=self.run.metric,
            baseline_metric=self.baseline.metric,
            method=self.method,
            baseline=self.baseline.name,
            gradient=self.gradient,
            options=self.options,
            token_strings=self.task.strings,
            skipped=frozenset(range(n_tokens)) - kept,
            passes=dict(self.passes),
        )


def node_effects(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "attribution-patching",
    baseline: str | None = None,
    gradient: str = "pass-through",
    sites: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
    reference: Sequence[str | Sequence[int]] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> NodeEffects:
    """Returns by how much the metric changes when each node is set to its baseline: `m(ablated) - m(clean)`.

    Predicted, unless the method is `ablation`: attribution patching gives `grad_a m . (a' - a)` for every feature and
    error node at every site and position at once, at the cost of one forward and one backward pass of the bare model
    (two forwards with a patch prompt), plus sparse products with the decoder rows that are active. It misleads where the
    metric is far from linear between value and baseline; `method="ablation"` or `intervene` checks it.

    Args:
        spliced: The model with its dictionaries.
        task: Prompt, metric and perhaps a patch prompt.
        method: Name of a method plugin (`circuitsae plugins` lists them).
        baseline: `"zero"`, `"patch"` (the default when the task has a patch prompt) or `"mean"`.
        gradient: `"pass-through"` or `"through-dictionary"`, see DESIGN.md, section 3.2.
        sites: Some of the sites; all when `None`.
        skip_positions: Positions at which no dictionary is applied; the model's when `None`.
        reference: Prompts that the `"mean"` baseline is taken over.
        progress: Called with work done, work in all, and a word; returning `False` cancels.
        **options: The method's own, such as `steps=10` for integrated gradients.

    Raises:
        TaskError: The task does not fit the model.
        UnknownNameError: No such method, baseline, gradient or site.
        InputError: An option that the method does not have, or a baseline without what it needs.
    """
    context = make_context(
        spliced,
        task,
        method=method,
        baseline=baseline,
        gradient=gradient,
        sites=sites,
        skip_positions=skip_positions,
        reference=reference,
        progress=progress,
        options=options,
    )
    return run_method(context)


def make_context(
    spliced: SplicedModel,
    task: Task,
    *,
    method: str = "attribution-patching",
    baseline: str | None = None,
    gradient: str = "pass-through",
    sites: Sequence[str] | None = None,
    skip_positions: Sequence[int] | None = None,
    reference: Sequence[str | Sequence[int]] | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
) -> Context:
    """Prepares a task for a method; see `node_effects` for the arguments."""
    if sites is not None:
        spliced = spliced.restrict(sites)
    if skip_positions is not None:
        spliced = spliced.skipping(skip_positions)
    prepared = task.prepare(spliced.vocabulary, spliced.n_ctx)
    if baseline is None:
        baseline = "zero" if prepared.patch_tokens is None else "patch"
    return Context(
        spliced,
        prepared,
        method=method,
        baseline=baseline,
        gradient=gradient,
        reference=None if reference is None else [spliced.vocabulary.encode(r) for r in reference],
        options=options,
        progress=progress,
    )


def run_method(context: Context) -> NodeEffects:
    """Runs the method that a context names.

    Raises:
        UnknownNameError: There is no such method.
        InputError: An option that it does not have.
    """
    method: Method = registry.get("methods", context.method)()
    known = [f.name for f in fields(method.Options)]
    for name in context.options:
        if name not in known:
            raise InputError(
                f"The method {context.method!r} has no option {name!r}; it has {', '.join(known) or 'none'}."
            )
    options = method.Options(**context.options)
    context.options = asdict(options)
    return method(context, options)


def _full(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.detach().to(dtype)
