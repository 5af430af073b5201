"""Path patching: what an edit of one node does by way of chosen receivers only."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context
from circuitsae.errors import InputError, NodeError, UnknownNameError
from circuitsae.interventions.compiling import checked, compile_edits, node_positions
from circuitsae.interventions.freezing import held_layers
from circuitsae.interventions.kinds import PathPatch
from circuitsae.interventions.positions import select, split_key
from circuitsae.model import points
from circuitsae.model.edits import (
    Edit,
    FeatureEdit,
    FinalEdit,
    HeadEdit,
    ReadingEdit,
    VectorEdit,
    placed,
    run_edited,
    split_inputs,
)
from circuitsae.model.hooks import Hook
from circuitsae.model.spliced import SplicedModel

ALONG = ("nodes", "residual")

_HEAD = re.compile(r"blocks\.(\d+)\.hook_([qkv])_input/(\d+)")


@dataclass(frozen=True)
class _Receiver:
    """Something that reads what an edit changes: a feature, an attention head's input, or the final residual stream."""

    key: str
    positions: tuple[int, ...]
    number: int | None = None
    index: int | None = None
    layer: int | None = None
    input: Literal["q", "k", "v"] | None = None

    @property
    def hook(self) -> str:
        assert self.layer is not None and self.input is not None
        return points.head_input(self.layer, self.input)


def compile_path(context: Context, given: PathPatch, extra: Sequence[tuple[str, Hook]]) -> list[Edit]:
    """Returns the edits of the receivers: each reads what the sender's edit, everything between held, adds to its input.

    Cost: one forward pass of two prompts, from the sender's layer on.

    Raises:
        NodeError: A receiver is none, or is computed before the sender.
        UnknownNameError: `along` is not a way that there is.
    """
    if given.along not in ALONG:
        raise UnknownNameError("way for a path to lead along", given.along, ALONG)
    through = [given.through] if isinstance(given.through, str) else list(given.through)
    receivers = [_receiver(context, key) for key in through]
    if not receivers:
        raise NodeError("A path leads through one receiver at least; through= was empty.")
    spliced, run = context.spliced, context.run
    edits = compile_edits(context, given.edit, extra=extra)
    hooks = list(extra)
    if given.along == "residual":
        own = _within(spliced, edits)
        hooks += held_layers(context, own)
    heads: dict[str, Tensor] = {}

    def keep(name: str) -> Hook:
        def hook(x: Tensor) -> None:
            heads[name] = x.detach()

        return hook

    wanted = {r.hook for r in receivers if r.input is not None}
    if wanted and any(points.part(name) == "hook_scale" for name, _ in extra):
        raise InputError(
            f"A path into {min(wanted)!r} can't have normalisation='frozen': what is put there is normalised anew. Let it lead "
            "to features or the metric, or leave normalisation free."
        )
    final: list[Tensor] = []
    kept = spliced.hooked.altered(spliced.model.ln_final, lambda args, kwargs: final.append(args[0].detach()))
    with split_inputs(spliced, bool(wanted)), kept:
        # Two copies, one of them without the edit: the difference is then of runs that were computed alike.
        edited = run_edited(
            spliced,
            run,
            context.readout,
            [placed(edit, 1) for edit in edits],
            2,
            held=given.along == "nodes",
            extra=[*hooks, *((name, keep(name)) for name in wanted)],
        )
    found: list[Edit] = []
    for receiver in receivers:
        x = (
            heads.get(receiver.hook)
            if receiver.input is not None
            else final[0]
            if receiver.number is None
            else edited.captured.x_in.get(receiver.number)
        )
        if x is None:
            raise NodeError(f"No path leads from {given.node!r} to {receiver.key!r}, which is computed before it.")
        if receiver.input is not None:
            x = x[:, :, receiver.index]
        change = (x[1] - x[0]).to(run.embed.dtype)
        for position in receiver.positions:
            if not bool(change[position].any()):
                continue
            found.append(_edit_of(receiver, position, change[position]))
    return found


def _edit_of(receiver: _Receiver, position: int, change: Tensor) -> Edit:
    if receiver.input is not None:
        assert receiver.layer is not None and receiver.index is not None
        return HeadEdit(0, receiver.layer, receiver.index, receiver.input, position, change)
    if receiver.number is not None:
        assert receiver.index is not None
        return ReadingEdit(0, receiver.number, (receiver.index,), position, change)
    return FinalEdit(0, position, change)


def _receiver(context: Context, key: str) -> _Receiver:
    spliced, n_tokens = context.spliced, len(context.task.tokens)
    if key == names.METRIC:
        return _Receiver(key, tuple(range(n_tokens)))
    base, selector = split_key(key)
    head = _HEAD.fullmatch(base)
    if head is None:
        node, selector = checked(context, key)
        if node.kind != "feature" or selector is None:
            raise NodeError(
                f"{key!r} can't receive a path; expected a feature, an attention head's input such as "
                "'blocks.7.hook_v_input/3@9', or 'metric'."
            )
        positions = node_positions(context, key, node, selector)
        return _Receiver(key, tuple(positions), spliced.dictionary_number(str(node.site)), node.index)
    layer, which, index = int(head[1]), head[2], int(head[3])
    cfg: Any = spliced.hooked.cfg
    n_heads = int(cfg.n_heads) if which == "q" else int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
    if layer >= spliced.n_layers or index >= n_heads:
        raise NodeError(
            f"There is no attention head {key!r}; layers are 0 to {spliced.n_layers - 1}, and "
            f"{'queries' if which == 'q' else 'keys and values'} have heads 0 to {n_heads - 1}."
        )
    positions = select(key, "*" if selector is None else selector, n_tokens)
    return _Receiver(key, tuple(positions), None, index, layer, cast(Literal["q", "k", "v"], which))


def _within(spliced: SplicedModel, edits: Sequence[Edit]) -> set[str]:
    """Returns the layer outputs that the edited nodes lie inside of, such as `hook_z` in the attention layer."""
    inside: set[str] = set()
    for edit in edits:
        if isinstance(edit, (FeatureEdit, ReadingEdit)):
            hooks = list(spliced.dictionaries[edit.number].hook_outs)
        else:
            hooks = [edit.hook] if isinstance(edit, (VectorEdit, HeadEdit)) else []
        inside.update(filter(None, map(points.output_around, hooks)))
    return inside
