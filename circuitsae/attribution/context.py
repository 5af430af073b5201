"""What a method works with: one task on one model, its clean run, its gradients, baseline and nodes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.attribution.backward import differentiate
from circuitsae.attribution.baselines import Baseline, FeatureNodes, feature_nodes, make_baseline
from circuitsae.attribution.nodes import NodeBlock, NodeEffects
from circuitsae.errors import FlatMetricError, InputError, UnknownNameError
from circuitsae.model.caching import KeyValues, key_values
from circuitsae.model.checks import freezes, verify
from circuitsae.model.finite import refuse_effects
from circuitsae.model.hooks import Hook
from circuitsae.model.runs import (
    EMBED,
    Captured,
    Readout,
    Run,
    forward,
    run_clean,
    run_together,
    start_layers,
    take_apart,
)
from circuitsae.model.spliced import SplicedModel
from circuitsae.model.tapes import cuts, is_long
from circuitsae.progress import Progress, report
from circuitsae.task.task import PreparedTask

Gradient = Literal["pass-through", "through-dictionary", "frozen"]
GRADIENTS: tuple[str, ...] = get_args(Gradient)


@dataclass
class _Kept:
    """What has been computed of one task on one model, shared by all the questions asked about it."""

    run: Run | None = None
    patch: Run | None = None  # until it has become the baseline
    baseline: Baseline | None = None
    nodes: tuple[FeatureNodes, ...] | None = None
    key_values: list[KeyValues | None] = field(default_factory=list)
    more: dict[Hashable, Mapping[str, Tensor]] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})


class Context:
    """What a method works with: one task on one model, its clean run, baseline and nodes, and one question about them.

    The clean run is made when first asked for, on a model on which the splice is known to hold; `gradients` makes it
    together with the backward pass, so that attribution patching costs one forward and one backward pass in all.
    `asking` gives a context for another question, which shares what has been computed.

    Args:
        spliced: The model.
        task: Prompt and metric.
        method: The method that answers.
        baseline: What nodes are set to.
        gradient: Which gradients it takes.
        reference: Prompts of the `"mean"` baseline, as text or token ids.
        given: A baseline made beforehand, in place of `baseline`.
        options: The method's own options.
        progress: Called with work done, work in all, and a word.
    """

    def __init__(
        self,
        spliced: SplicedModel,
        task: PreparedTask,
        *,
        method: str,
        baseline: str,
        gradient: str = "pass-through",
        reference: Sequence[str | Sequence[int]] | None = None,
        given: Baseline | None = None,
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.spliced, self.task = spliced, task
        self.readout = Readout(task.metric, len(task.tokens))
        self.batch = torch.tensor([task.tokens], device=spliced.device)
        self.baseline_name = baseline
        self.reference = None if reference is None else [r if isinstance(r, str) else list(r) for r in reference]
        self.reference_tokens = None if reference is None else [spliced.vocabulary.encode(r) for r in reference]
        self._given, self._kept = given, _Kept(baseline=given)
        self._ask(method, gradient, options, progress)

    def _ask(self, method: str, gradient: str, options: Mapping[str, Any] | None, progress: Progress | None) -> None:
        if gradient not in GRADIENTS:
            raise UnknownNameError("gradient", gradient, GRADIENTS)
        self.method, self.gradient, self.options = method, gradient, dict(options or {})
        self.progress = progress
        self._before = dict(self._kept.passes)

    def asking(
        self,
        method: str,
        *,
        gradient: str = "pass-through",
        options: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> "Context":
        """Returns a context for another question about the same task; what has been computed, or will be, is shared.

        Raises:
            UnknownNameError: There is no such gradient.
        """
        other = copy(self)
        other._ask(method, gradient, options, progress)
        return other

    @property
    def passes(self) -> dict[str, float]:
        """Forward and backward passes of the model over one prompt so far, all questions together."""
        return self._kept.passes

    @property
    def spent(self) -> dict[str, float]:
        """Those since this question was asked."""
        return {kind: count - self._before[kind] for kind, count in self.passes.items()}

    def report(self, done: int, total: int, what: str) -> None:
        """Reports progress.

        Raises:
            CancelledError: The caller's callback said `False`.
        """
        report(self.progress, done, total, what)

    @property
    def run(self) -> Run:
        """The clean run.

        Raises:
            SpliceError: On this model the splice does not hold at some site.
        """
        kept = self._kept
        if kept.run is None:
            verify(self.spliced)
            kept.passes["forward"] += 1
            kept.run = run_clean(self.spliced, self.task.tokens, self.task.metric)
        return kept.run

    @property
    def metric(self) -> float:
        """The metric on the clean run."""
        assert self.run.metric is not None
        return self.run.metric

    def run_together(self) -> None:
        """Makes the clean run and that of a patch prompt that is the baseline in one batch, where memory allows.

        Cheaper than one after the other, and as exact; but rounded differently than a run by itself.
        """
        kept, fits = self._kept, not is_long(self.spliced, len(self.task.tokens))
        if kept.run is None and self._patch_tokens is not None and fits:
            verify(self.spliced)
            kept.passes["forward"] += 2
            prompts = (self.task.tokens, self._patch_tokens)
            kept.run, kept.patch = run_together(self.spliced, prompts, self.task.metric)

    @property
    def _patch_tokens(self) -> Sequence[int] | None:
        """The patch prompt, where the baseline is one."""
        return self.task.patch_tokens if self.baseline_name == "patch" else None

    @property
    def baseline(self) -> Baseline:
        """What nodes are set to. The patch prompt is run when this is first asked for."""
        kept = self._kept
        if kept.baseline is None:
            run, patch = self.run, kept.patch
            if patch is None and self._patch_tokens is not None:
                kept.passes["forward"] += 1
                patch = run_clean(self.spliced, self._patch_tokens, self.task.metric, like=run)
            kept.patch = None
            kept.baseline = make_baseline(
                self.spliced,
                self.baseline_name,
                n_tokens=len(self.task.tokens),
                patch=patch,
                reference=self.reference_tokens,
                progress=self.progress,
            )
        return kept.baseline

    @property
    def nodes(self) -> tuple[FeatureNodes, ...]:
        """The feature nodes, one entry a dictionary."""
        if self._kept.nodes is None:
            self._kept.nodes = tuple(
                feature_nodes(run, features)
                for run, features in zip(self.run.features, self.baseline.features, strict=True)
            )
        return self._kept.nodes

    @property
    def key_values(self) -> KeyValues | None:
        """The clean run's keys and values, `None` where the model can't start from them."""
        kept = self._kept
        if not kept.key_values:
            kept.key_values.append(key_values(self.spliced, self.run))
            kept.passes["forward"] += 1.5
        return kept.key_values[0]

    def once(self, key: Hashable, make: Callable[[], Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        """Returns other activations of the clean run, by name; made when first asked for, at one forward pass."""
        more = self._kept.more
        if key not in more:
            more[key] = make()
            self.passes["forward"] += 1
        return more[key]

    @property
    def nbytes(self) -> int:
        """How many bytes what has been computed holds."""
        kept = self._kept
        tensors: list[Tensor | None] = [t for values in kept.more.values() for t in values.values()]
        tensors += [t for found in kept.key_values if found is not None for pair in found.layers for t in pair]
        for run in (kept.run, kept.patch):
            tensors += [] if run is None else run.tensors()
        for nodes in kept.nodes or ():
            tensors += [nodes.positions, nodes.indices, nodes.activations, nodes.baselines, nodes.scale, nodes.inverse]
            tensors += nodes.decoders.here()
        if kept.baseline is not None:
            tensors += [kept.baseline.embed, *(kept.baseline.errors or {}).values()]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}
        return sum(storages.values())

    def forget_rows(self) -> None:
        """Gives decoder rows, most of what a run holds, back to be read again if they are asked for."""
        for nodes in self._kept.nodes or ():
            nodes.decoders.forget()
        for features in () if self._kept.run is None else self._kept.run.features:
            features.decoders.forget()

    def forget(self) -> None:
        """Gives everything back that has been computed; what is asked for later is computed anew."""
        self._kept.__dict__.update(_Kept(baseline=self._given, passes=self._kept.passes).__dict__)

    def gradients(
        self, extra: Sequence[tuple[str, Hook]] = ()
    ) -> tuple[dict[str, Float[Tensor, "pos _d_out"]], Float[Tensor, "pos d_model"]]:
        """Returns the metric's gradient at every hook point written and at the embeddings, at the clean run.

        With the `pass-through` gradient this is the gradient of the bare model; with `through-dictionary` the error is
        a constant and the gradient below a site flows through decode and encode; with `frozen` attention patterns and
        normalisation scales are constants. Cost: one backward pass, and one forward pass that also serves as the clean
        run where nothing modifies it; over a prompt so long that its tape is cut (see `model.tapes`), one more forward.

        Args:
            extra: Hooks that modify the backward pass (see [circuitsae.attribution.rules][]); they must leave values
                what they are.
        """
        if is_long(self.spliced, len(self.task.tokens)):
            return self._gradients_in_pieces(extra)
        captured, value = self.linearise(extra, run_too=not extra and self.gradient == "pass-through")
        at = [captured.x_out[name] for name in self.spliced.written]
        *sites, embed = self.backward(value, [*at, captured.embed])
        return {name: g[0] for name, g in zip(self.spliced.written, sites, strict=True)}, embed[0]

    def _gradients_in_pieces(
        self, extra: Sequence[tuple[str, Hook]]
    ) -> tuple[dict[str, Float[Tensor, "pos _d_out"]], Float[Tensor, "pos d_model"]]:
        spliced, run = self.spliced, self.run
        if self.readout.vanishes(run.logits[None]):
            raise self._flat
        through = self.gradient == "through-dictionary"
        at = cuts(spliced, run.n_tokens, joined=range(len(spliced.dictionaries)) if through else ())
        found = differentiate(
            spliced,
            self.batch,
            self.readout,
            [*spliced.written, EMBED],
            {layer: run.prefixes[layer].residual for layer in at},
            extra=[*self.freezing(), *extra],
            **self._splice_through() if through else {},
        )
        self.passes["forward"] += 1
        self.passes["backward"] += 1
        of = {**{name: site.x for name, site in run.sites.items()}, EMBED: run.embed}
        gradients = {
            name: found[name][0].to(x.dtype) if name in found else torch.zeros_like(x) for name, x in of.items()
        }
        embed = gradients.pop(EMBED)
        return gradients, embed

    def linearise(self, extra: Sequence[tuple[str, Hook]] = (), *, run_too: bool = False) -> tuple[Captured, Tensor]:
        """Runs the model with an autograd graph from the embeddings on; gives what it captured and the metric.

        With `run_too` the pass also serves as the clean run, if that is not there yet. Cost: one forward pass.
        """
        verify(self.spliced)
        hooks, kept = [*self.freezing(), *extra], self._kept
        run_too = run_too and kept.run is None
        with torch.enable_grad():
            through = self.gradient == "through-dictionary"
            captured = forward(
                self.spliced,
                self.batch,
                self.readout,
                leaf_embed=True,
                residuals_at=start_layers(self.spliced, len(self.task.tokens)) if run_too else [],
                extra=hooks,
                **self._splice_through() if through else {},
            )
            value = self.readout.of(captured)
        self.passes["forward"] += 1
        if run_too:
            kept.run = take_apart(self.spliced, self.task.tokens, captured, self.readout)
        if captured.logits is not None and self.readout.vanishes(captured.logits):
            raise self._flat
        return captured, value

    @property
    def _flat(self) -> FlatMetricError:
        return FlatMetricError(str(self.task.metric.description.get("description")))

    def backward(self, value: Tensor, inputs: Sequence[Tensor], *, retain: bool = False) -> list[Tensor]:
        """Returns a metric's gradients by activations of a run, zero where it doesn't depend on them.

        Cost: one backward pass.

        Raises:
            InputError: The metric can't be differentiated.
        """
        if not value.requires_grad:
            raise InputError("The metric does not depend on the model in a way that can be differentiated.")
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True, retain_graph=retain)
        self.passes["backward"] += 1
        dtype = self.run.embed.dtype
        return [
            (torch.zeros_like(x) if g is None else g).detach().to(dtype) for x, g in zip(inputs, found, strict=True)
        ]

    def freezing(self) -> list[tuple[str, Hook]]:
        """Returns the hooks that the `frozen` gradient holds patterns and scales by; none for the other gradients."""
        return freezes(self.spliced) if self.gradient == "frozen" else []

    def _splice_through(self) -> dict[str, Any]:
        """Returns the splice that lets gradients flow through decode and encode; values stay what they are."""
        spliced, run = self.spliced, self.run
        read: dict[int, Tensor] = {}  # what each dictionary read in this run: every one reads before it writes

        def on_write(name: str, x: Tensor) -> Tensor:
            rebuilt = torch.zeros_like(x)
            for number, out in spliced.writers[name]:
                feature_run = run.features[number]
                features = feature_run.features
                x_in = read[number][0].to(run.embed.dtype)
                dictionary, kept = feature_run.dictionary, feature_run.kept
                values = dictionary.pre_activations(x_in, features.rows, features.indices)
                scale, biases = dictionary.scale_and_biases(x_in)
                if scale is not None:
                    values = values * scale[features.rows]
                decoded = feature_run.decoders.written(out, values, features.rows, feature_run.inverse, x.shape[1])
                if scale is not None:  # else they are constants
                    decoded = decoded.index_add(0, kept, biases[out][kept])
                if out == 0 and run.sites[name].skip is not None:
                    path = dictionary.skip(x_in[kept])
                    if path is not None:
                        decoded = decoded.index_add(0, kept, path)
                rebuilt = rebuilt + decoded.to(x.dtype)
            return rebuilt + (x - rebuilt).detach()

        return {"on_read": read.__setitem__, "on_write": on_write}

    def effects(
        self,
        gradients: Mapping[str, Float[Tensor, "pos _d_out"]],
        embed_gradient: Float[Tensor, "pos d_model"],
    ) -> NodeEffects:
        """Returns the effects that gradients predict: `gradient . (baseline - value)` for every node.

        A feature's is `(W_dec[i] . g) * (a' - a)`, an error node's `g . (e' - e)` (DESIGN.md, section 3.2). The
        gradients may be averages over several points, or of a modified backward pass.
        """
        blocks: list[NodeBlock] = []
        for number in range(len(self.nodes)):
            slopes = self.slopes(number, gradients)
            blocks.append(self.feature_block(number, slopes * self.feature_changes(number), slopes))
        for hook in self.spliced.written:
            blocks.append(self.error_block(hook, (gradients[hook] * self.vector_changes(hook)).sum(-1)))
        blocks.append(self.token_block((embed_gradient * self.vector_changes(EMBED)).sum(-1)))
        return self.finish(blocks)

    def slopes(self, number: int, gradients: Mapping[str, Float[Tensor, "pos _d_out"]]) -> Float[Tensor, "node"]:
        """Returns the metric's derivative by each of a dictionary's features: `W_dec[i] . g` over all that it writes."""
        nodes = self.nodes[number]
        slopes = torch.zeros_like(nodes.activations)
        for out, hook in enumerate(self.spliced.dictionaries[number].hook_outs):
            slopes = slopes + nodes.along(gradients[self.spliced.canonical(hook)], out)
        return slopes

    def feature_changes(self, number: int) -> Float[Tensor, "node"]:
        """Returns by how much each of a dictionary's features changes when it is set to its baseline."""
        return self.nodes[number].baselines - self.nodes[number].activations

    def vector_changes(self, hook: str) -> Float[Tensor, "pos d"]:
        """Returns the same for the error nodes of a hook point written, or for the tokens (`EMBED`)."""
        if hook == EMBED:
            embed = self.run.embed
            return -embed if self.baseline.embed is None else self.baseline.embed - embed
        error = self.run.sites[hook].error
        return -error if self.baseline.errors is None else self.baseline.errors[hook] - error

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
        """Returns the blocks with what the context knows of how they came about.

        Raises:
            NotFiniteError: Effects are NaN or infinite.
        """
        for block in blocks:
            refuse_effects(block.site, [block.effects])
        n_tokens = len(self.task.tokens)
        return NodeEffects(
            blocks=tuple(blocks),
            metric=self.metric,
            baseline_metric=self.baseline.metric,
            method=self.method,
            baseline=self.baseline.name,
            gradient=self.gradient,
            options=self.options,
            token_strings=self.task.strings,
            skipped={
                hook: frozenset(range(n_tokens)).difference(site.kept.tolist()) for hook, site in self.run.sites.items()
            },
            passes=self.spent,
        )
