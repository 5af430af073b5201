"""From interventions, as a person writes them, to edits of a run."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from circuitsae import names
from circuitsae.attribution.effects import Context
from circuitsae.attribution.exact import ablating_edit
from circuitsae.errors import InputError, NodeError, UnknownNameError
from circuitsae.interventions.kinds import (
    Ablate,
    AblateEdge,
    Add,
    Intervention,
    PathPatch,
    Scale,
    Set,
    Steer,
    Swap,
    Value,
)
from circuitsae.interventions.positions import NEW, select, split_key
from circuitsae.model.edits import Edit, FeatureEdit, VectorEdit
from circuitsae.model.hooks import Hook
from circuitsae.model.runs import EMBED, Run, run_clean

KINDS = "Ablate, Scale, Add, Set, Swap, Steer, PathPatch or AblateEdge"

EditAt = Callable[[int], Edit]
"""The edit of a node at a position."""


def compile_edits(context: Context, given: Intervention, *, extra: Sequence[tuple[str, Hook]] = ()) -> list[Edit]:
    """Turns one intervention on a prompt into edits, one a position.

    Args:
        context: The prompt's.
        given: The intervention.
        extra: Hooks of the run that finds out what a path carries, freezes say.

    Raises:
        NodeError: The key names no node of this model and prompt.
        InputError: A value of the wrong kind.
    """
    if isinstance(given, AblateEdge):
        given = PathPatch(Ablate(given.source), [given.target])
    if isinstance(given, PathPatch):
        from circuitsae.interventions.paths import compile_path

        return compile_path(context, given, extra)
    node, selector, at = compile_node(context, given)
    if selector == NEW:
        raise NodeError(f"{given.node!r} means the tokens that are written; that is for generate().")
    return [at(position) for position in node_positions(context, given.node, node, selector)]


def compile_node(context: Context, given: Intervention) -> tuple[names.NodeKey, str, EditAt]:
    """Returns an intervention's node, its positions as written, and the edit at a position.

    At positions past the prompt (of tokens that are written) ablation sets to zero.

    Raises:
        NodeError: The key names no node of this model and prompt.
        InputError: A value of the wrong kind.
    """
    if not isinstance(given, (Ablate, Scale, Add, Set, Swap, Steer)):
        raise InputError(f"{given!r} is not an intervention; expected {KINDS}.")
    key = given.node
    if isinstance(given, Steer) and split_key(key)[1] is None:
        key = f"{key}@*"
    node, selector = checked(context, key)
    if node.kind in (names.BIAS, names.METRIC):
        raise NodeError(f"The {node.kind} node can't be set; expected a feature, error or token node.")
    assert selector is not None
    n_tokens = len(context.task.tokens)

    def edit(position: int, times: float, value: Value | None) -> Edit:
        if node.kind == "feature":
            assert node.site is not None and node.index is not None
            number = context.spliced.dictionary_number(node.site)
            return FeatureEdit(
                0, number, node.index, position, times, 0.0 if value is None else _number(value, given.node)
            )
        hook = EMBED if node.kind == "token" else context.spliced.canonical(str(node.site))
        return VectorEdit(0, hook, position, times, _vector(context, hook, value, given.node))

    if isinstance(given, Ablate):

        def at(position: int) -> Edit:
            return ablating_edit(context, str(node.at(position))) if position < n_tokens else edit(position, 0.0, None)

    elif isinstance(given, Scale):

        def at(position: int) -> Edit:
            return edit(position, float(given.by), None)

    elif isinstance(given, (Add, Set)):
        times = 1.0 if isinstance(given, Add) else 0.0

        def at(position: int) -> Edit:
            return edit(position, times, given.value)

    elif isinstance(given, Swap):
        other = run_clean(context.spliced, context.spliced.vocabulary.encode(given.prompt))

        def at(position: int) -> Edit:
            return edit(position, 0.0, _value_on(context, other, node, given, position))

    else:
        amount = _steering(context, node, given)

        def at(position: int) -> Edit:
            return edit(position, 1.0, amount)

    return node, selector, at


def node_positions(
    context: Context, key: str, node: names.NodeKey, selector: str, n_total: int | None = None
) -> list[int]:
    """Returns the positions of an edit; for all or a slice, those at which the dictionaries are applied."""
    n_tokens = len(context.task.tokens)
    found = select(key, selector, n_tokens, n_total)
    if isinstance(node.position, int) or node.kind == "token":
        return found
    kept = set(_kept(context, node))
    return [p for p in found if p in kept or p >= n_tokens]


def _kept(context: Context, node: names.NodeKey) -> list[int]:
    """Returns the positions at which a feature's or error node's dictionaries are applied."""
    spliced, run, site = context.spliced, context.run, str(node.site)
    if node.kind == "feature":
        return run.features[spliced.dictionary_number(site)].kept.tolist()
    return run.sites[spliced.canonical(site)].kept.tolist()


def checked(context: Context, key: str) -> tuple[names.NodeKey, str | None]:
    """Parses a node key and checks it against the model and the prompt; also gives its positions as written.

    The node's position is a number where the key names one, `"*"` where it names several.

    Raises:
        NodeError: It names no node of this model and prompt.
        UnknownNameError: Nor a site.
    """
    if key in (names.BIAS, names.METRIC):
        return names.parse(key), None
    base, selector = split_key(key)
    try:
        node, spliced = names.parse(base), context.spliced
    except NodeError:
        names.parse(key)  # says what is wrong with the key as it was given
        raise
    n_tokens = len(context.task.tokens)
    if selector is None:
        raise NodeError(f"{key!r} names no position; add one, '{key}@{n_tokens - 1}', or '{key}@*' for all.")
    several = ":" in selector or selector in ("*", NEW)
    node = node.at("*" if several else select(key, selector, n_tokens)[0])
    if node.kind == "feature":
        dictionary = spliced.dictionary(str(node.site))
        if node.index is not None and node.index >= dictionary.d_sae:
            raise NodeError(
                f"{key!r} is outside its dictionary, which has features 0 to {dictionary.d_sae - 1}"
                f"{_active_hint(context, spliced.dictionary_number(str(node.site)), node.position)}."
            )
        if isinstance(node.position, int) and node.position not in _kept(context, node):
            raise NodeError(
                f"{key!r} is at a skipped position, where no dictionary is applied; the error node "
                f"{names.error(str(node.site), node.position)!r} holds the whole vector there."
            )
    elif node.kind == "error" and node.site not in spliced.written:
        try:
            spliced.canonical(str(node.site))
        except KeyError:
            raise UnknownNameError("hook point written by a dictionary", node.site, spliced.written) from None
    return node, selector


def _value_on(context: Context, other: Run, node: names.NodeKey, given: Swap, position: int) -> Value:
    """Returns a node's value on another prompt."""
    at = position if given.position is None else given.position
    if not -other.n_tokens <= at < other.n_tokens:
        raise NodeError(
            f"{given.node!r} can't be swapped: the other prompt has positions 0 to {other.n_tokens - 1}, not {at}; "
            "position= says where to read."
        )
    at %= other.n_tokens
    if node.kind == "token":
        return other.embed[at]
    if node.kind == "error":
        return other.sites[context.spliced.canonical(str(node.site))].error[at]
    features = other.features[context.spliced.dictionary_number(str(node.site))].features
    where = torch.tensor([at], device=context.spliced.device)
    index = torch.tensor([node.index], device=context.spliced.device)
    return float(features.value_at(where, index))


def _steering(context: Context, node: names.NodeKey, given: Steer) -> float:
    if node.kind != "feature":
        raise NodeError(f"{given.node!r} is not a feature; Steer adds features, Add any node's values.")
    if given.unit == "activation":
        return float(given.strength)
    if given.unit != "norm":
        raise UnknownNameError("unit of steering", given.unit, ("activation", "norm"))
    assert node.index is not None
    spliced, run = context.spliced, context.run
    dictionary = spliced.dictionary(str(node.site))
    x = run.sites[spliced.canonical(dictionary.hook_outs[0])].x
    typical = x[run.sites[spliced.canonical(dictionary.hook_outs[0])].kept].norm(dim=-1).mean()
    row = dictionary.decoder_rows(torch.tensor([node.index], device=spliced.device)).to(x)
    scale = run.features[spliced.dictionary_number(str(node.site))].scale
    written = row.norm() * (1.0 if scale is None else scale.mean())
    return float(given.strength * typical / written)


def _active_hint(context: Context, number: int, position: names.Position) -> str:
    if not isinstance(position, int):
        return ""
    features = context.run.features[number].features
    here = features.rows == position
    top = features.values[here].abs().topk(min(3, int(here.sum()))).indices
    indices = features.indices[here][top].tolist()
    return f"; active at position {position}: {', '.join(map(str, indices))}, ..." if indices else ""


def _number(value: Value, key: str) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise InputError(f"A feature's value is one number; {key!r} was given {_shape(value)}.")


def _vector(context: Context, hook: str, value: Value | None, key: str) -> Tensor | None:
    if value is None or (isinstance(value, (int, float)) and value == 0):
        return None
    width = context.run.embed.shape[-1] if hook == EMBED else context.run.sites[hook].x.shape[-1]
    vector = torch.as_tensor(value, dtype=context.run.embed.dtype, device=context.run.embed.device).flatten()
    if vector.shape[0] != width:
        raise InputError(f"The value of {key!r} is a vector of {width} numbers, or 0; given was {_shape(value)}.")
    return vector


def _shape(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)[:60]
