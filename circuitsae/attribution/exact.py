"""Effects by really ablating: the check of every prediction, and the method for small graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context, NodeBlock, NodeEffects
from circuitsae.errors import NodeError
from circuitsae.model.edits import Edit, FeatureEdit, VectorEdit, batch_size, run_edited
from circuitsae.model.runs import EMBED


class Ablation:
    """Sets every node to its baseline, one at a time, and runs the model.

    Nodes of one layer are ablated in batches that share the clean prefix below it, so the cost is far less than one
    forward pass a node.
    """

    name: ClassVar[str] = "ablation"
    cost: ClassVar[str] = "1 forward a node, batched, from the node's layer on"

    @dataclass(frozen=True)
    class Options:
        """`tokens`: whether token nodes are ablated too (each needs a whole forward pass)."""

        tokens: bool = True

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        """See [Method][circuitsae.attribution.effects.Method]."""
        blocks: list[NodeBlock] = []
        edits: list[Edit] = []
        sizes: list[int] = []
        for number, nodes in enumerate(context.nodes):
            part = [
                FeatureEdit(0, number, index, position, 0.0, value)
                for index, position, value in zip(
                    nodes.indices.tolist(), nodes.positions.tolist(), nodes.baselines.tolist(), strict=True
                )
            ]
            edits += part
            sizes.append(len(part))
        n_tokens = len(context.task.tokens)
        hooks = [*context.spliced.written, *([EMBED] if options.tokens else [])]
        for hook in hooks:
            edits += [_vector_edit(context, hook, position) for position in range(n_tokens)]
            sizes.append(n_tokens)
        found = list(measure(context, edits).split(sizes))
        for number in range(len(context.nodes)):
            blocks.append(context.feature_block(number, found.pop(0), None))
        for hook in context.spliced.written:
            blocks.append(context.error_block(hook, found.pop(0)))
        blocks.append(
            context.token_block(
                found.pop(0) if options.tokens else torch.zeros(n_tokens, dtype=context.run.embed.dtype)
            )
        )
        return context.finish(blocks)


def measure_nodes(context: Context, keys: Sequence[str]) -> list[float]:
    """Returns the measured effect of setting each node to its baseline, one at a time.

    Raises:
        NodeError: A key is not that of a feature, error or token node of the context's model.
    """
    return measure(context, [ablating_edit(context, key) for key in keys]).tolist()


def ablating_edit(context: Context, key: str) -> Edit:
    """Returns the edit that sets a node to the context's baseline."""
    node = names.parse(key)
    if not isinstance(node.position, int) or node.kind not in ("feature", "error", "token"):
        raise NodeError(f"{key!r} can't be ablated; expected a feature, error or token node at one position.")
    if node.kind == "feature":
        assert node.site is not None and node.index is not None
        number = context.spliced.dictionary_number(node.site)
        at = torch.tensor([node.position], device=context.spliced.device)
        index = torch.tensor([node.index], device=context.spliced.device)
        value = context.baseline.feature_values(number, at, index)
        return FeatureEdit(0, number, node.index, node.position, 0.0, 0.0 if value is None else float(value))
    return _vector_edit(
        context, EMBED if node.kind == "token" else context.spliced.canonical(str(node.site)), node.position
    )


def measure(context: Context, edits: Sequence[Edit]) -> Tensor:
    """Returns the change of the metric that each edit causes by itself, `[edit]`.

    Cost: about one forward pass an edit, from the edited layer on, in batches.
    """
    spliced, run = context.spliced, context.run
    result = torch.zeros(len(edits), dtype=run.embed.dtype)
    if not edits:
        return result
    order = sorted(range(len(edits)), key=lambda n: _layer(context, edits[n]))
    size = batch_size(spliced, run.n_tokens)
    done = 0
    while done < len(order):
        # One batch holds edits of one layer: all start from there.
        layer = _layer(context, edits[order[done]])
        batch = [n for n in order[done : done + size] if _layer(context, edits[n]) == layer]
        placed = [_for_prompt(edits[n], k) for k, n in enumerate(batch)]
        edited = run_edited(spliced, run, context.readout, placed, len(batch))
        values = context.readout.value(edited.logits).to(result)
        assert run.metric is not None
        result[batch] = values - run.metric
        context.passes["forward"] += len(batch) * (1 - edited.start / spliced.n_layers)
        done += len(batch)
        context.tick(done, len(order), "ablations")
    return result


def _layer(context: Context, edit: Edit) -> int:
    spliced = context.spliced
    if isinstance(edit, FeatureEdit):
        return spliced.hooked.layer(spliced.reads[edit.number])
    return 0 if edit.hook == EMBED else spliced.hooked.layer(edit.hook)


def _vector_edit(context: Context, hook: str, position: int) -> VectorEdit:
    baseline = context.baseline
    if hook == EMBED:
        plus = None if baseline.embed is None else baseline.embed[position]
    else:
        plus = None if baseline.errors is None else baseline.errors[hook][position]
    return VectorEdit(0, hook, position, 0.0, plus)


def _for_prompt(edit: Edit, prompt: int) -> Edit:
    if isinstance(edit, FeatureEdit):
        return FeatureEdit(prompt, edit.number, edit.index, edit.position, edit.times, edit.plus)
    return VectorEdit(prompt, edit.hook, edit.position, edit.times, edit.plus)
