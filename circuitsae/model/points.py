"""Where things lie in a model, read off the names of its hook points: the only place that knows these names by heart.

What takes a layer gives names, whether or not a model has them; what takes a `HookedModel` gives only those that it has.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from circuitsae.errors import SpliceError
from circuitsae.names import layer_of

if TYPE_CHECKING:
    from circuitsae.model.hooks import HookedModel
    from circuitsae.model.spliced import SplicedModel

STREAM = ENTERS, MIDDLE, LEAVES = "hook_resid_pre", "hook_resid_mid", "hook_resid_post"
"""The parts of a layer where all of the residual stream passes."""

# Their scales act on queries and keys alone: held patterns hold what comes of them, and no residual stream passes there.
_OF_QUERIES_AND_KEYS = re.compile(r"\.(q|k|qk|query|key)_(\w*_?layer)?norm\b")


_QUERIES_AND_KEYS = (".attn.hook_q", ".attn.hook_k", ".attn.q.hook_out", ".attn.k.hook_out")
_MLP_NAMES = ("mlp", "ffn", "feed_forward", "moe", "channel_mix")
_HEAD_INPUTS = ("hook_q_input", "hook_k_input", "hook_v_input")
# What attention may read, from which its values come.
_VALUE_INPUTS = ("attn.v.hook_in", "attn.hook_in", "ln1.hook_out", "ln1.hook_normalized")
# When a hook point of a block is computed, and whether it is in the attention or the MLP. What is not listed feeds all.
_STAGES = {
    "attn.hook_q": (1, "attn"),
    "attn.hook_k": (1, "attn"),
    "attn.hook_v": (1, "attn"),
    "attn.hook_z": (2, "attn"),
    "hook_attn_out": (3, "attn"),
    "mlp.hook_pre": (5, "mlp"),
    "mlp.hook_pre_linear": (5, "mlp"),
    "mlp.hook_post": (6, "mlp"),
    "hook_mlp_out": (7, "mlp"),
}


def of(layer: int, part: str) -> str:
    """Returns the name of a layer's hook point.

    >>> of(3, "attn.hook_z")
    'blocks.3.attn.hook_z'
    """
    return f"blocks.{layer}.{part}"


def within(name: str) -> str:
    """Returns a hook point's name within its layer; the name itself outside the blocks.

    >>> within("blocks.3.attn.hook_z"), within("hook_embed")
    ('attn.hook_z', 'hook_embed')
    """
    return name.partition(f"blocks.{layer_of(name)}.")[2] or name


def part(name: str) -> str:
    """Returns the last part of a hook point's name.

    >>> part("blocks.3.attn.hook_z")
    'hook_z'
    """
    return name.rpartition(".")[2]


def each_layer(hooked: "HookedModel", *parts: str) -> list[str]:
    """Returns the hook points of these names in every layer that has them, bottom to top."""
    found = (of(layer, part) for layer in range(hooked.n_layers) for part in parts)
    return [name for name in found if hooked.has(name)]


# the residual stream, and how far up a hook point is


def layer_at(name: str, n_layers: int) -> int:
    """Returns the block that a hook point belongs to: 0 for those before the blocks, `n_layers` for those after."""
    found = layer_of(name)
    if found is not None:
        return found
    return 0 if "embed" in name and "unembed" not in name else n_layers


def depth(hooked: "HookedModel", name: str) -> float:
    """Returns about how far up the model a hook point is, in layers."""
    layer, inside = hooked.layer(name), within(name)
    if inside == name or inside in (ENTERS, "hook_attn_in", "ln1.hook_normalized", "ln1.hook_out", "attn.hook_in"):
        return float(layer)
    if inside in (LEAVES, "hook_mlp_out", "ln2_post.hook_out"):
        return layer + 1.0
    return layer + 0.35 if inside.startswith(("attn.", "hook_attn")) else layer + 0.4


def stream(layer: int) -> tuple[str, str, str]:
    """Returns the names of a layer's hook points where all of the residual stream passes, in order."""
    return of(layer, ENTERS), of(layer, MIDDLE), of(layer, LEAVES)


def residuals(hooked: "HookedModel") -> list[str]:
    """Returns the hook points above the first where all of the residual stream passes."""
    return each_layer(hooked, MIDDLE, LEAVES)


def is_residual(name: str) -> bool:
    """Whether a name is one of the residual stream's."""
    return part(name) in STREAM


def is_middle(name: str) -> bool:
    """Whether a name is that of the residual stream between attention and MLP."""
    return part(name) == MIDDLE


def entered(name: str) -> int | None:
    """Returns the layer that the residual stream enters at a hook point, `None` for those elsewhere.

    >>> entered("blocks.3.hook_resid_post"), entered("blocks.3.hook_resid_pre"), entered("blocks.3.hook_mlp_out")
    (4, 3, None)
    """
    layer = layer_of(name)
    return None if layer is None else {ENTERS: layer, LEAVES: layer + 1}.get(part(name))


def reads_stream(name: str) -> bool:
    """Whether a hook point is the residual stream, or what a normalisation makes of it."""
    inside = within(name)
    return inside.startswith(("hook_resid_", "ln1.", "ln2.")) or inside in (
        "hook_mlp_in",
        "hook_attn_in",
        "mlp.hook_in",
    )


def segment_of(spliced: "SplicedModel", read: str | None) -> int:
    """Returns the layer where the run for a target must start: above the nearest residual site below it."""
    limit = spliced.n_layers if read is None else spliced.hooked.layer(read)
    ordered = read in spliced.reads or read in spliced.written  # a metric may read anywhere
    starts = [0]
    for hook in spliced.written:
        start = entered(hook)
        if start is None or not 0 < start <= limit or start == spliced.n_layers:
            continue
        if (
            read is None
            or spliced.hooked.layer(hook) < limit
            or (ordered and spliced.order(hook) < spliced.order(read))
        ):
            starts.append(start)
    return max(starts)


def is_branch(hooked: "HookedModel", name: str) -> bool:
    """Whether a hook point is what one part of a layer reads, such as `ln2.hook_in`: the residual stream passes beside it."""
    own = str(hooked.point(name).name)
    return not is_residual(name) and own.endswith(".hook_in") and own.count(".") > 2


def feeds(hooked: "HookedModel", below: str, above: str) -> bool:
    """Whether what is written at one hook point may act on another; true where that is not known."""
    layers = [hooked.layer(name) for name in (below, above)]
    if layers[0] != layers[1]:
        return layers[0] < layers[1]
    stages = [_STAGES.get(within(name)) for name in (below, above)]
    if stages[0] is None or stages[1] is None:
        return True
    (first, branch), (second, other) = stages[0], stages[1]
    if branch != other and getattr(hooked.cfg, "parallel_attn_mlp", False):
        return False
    return first < second


# normalisations, attention, MLPs


def patterns(hooked: "HookedModel") -> list[str]:
    """Returns the hook points of attention patterns."""
    return each_layer(hooked, "attn.hook_pattern")


def scales(hooked: "HookedModel") -> list[str]:
    """Returns the hook points of the scales of all normalisations but those of queries and keys."""
    found = (name for name in hooked.names if name.endswith(".hook_scale") and not of_queries_or_keys(name))
    return sorted(found, key=lambda name: (hooked.layer(name), name))


def of_queries_or_keys(name: str) -> bool:
    """Whether a module or hook point belongs to a normalisation of queries or keys."""
    return _OF_QUERIES_AND_KEYS.search(name) is not None


def query_and_key_scales(hooked: "HookedModel", layer: int) -> list[str]:
    """Returns the hook points of the scales by which one layer's queries and keys are normalised."""
    own = (name for name in hooked.names if name.endswith(".hook_scale") and of_queries_or_keys(name))
    return [name for name in own if hooked.layer(name) == layer]


def layer_outputs(hooked: "HookedModel") -> list[str]:
    """Returns the hook points where attention and MLPs write to the residual stream."""
    return each_layer(hooked, "hook_attn_out", "hook_mlp_out")


def output_around(name: str) -> str | None:
    """Returns the name of what the layer's attention or MLP writes, for a hook point inside of it; `None` for others.

    >>> output_around("blocks.3.attn.hook_z"), output_around("blocks.3.hook_resid_post")
    ('blocks.3.hook_attn_out', None)
    """
    layer, inside = layer_of(name), within(name)
    if layer is None:
        return None
    if inside.startswith("attn.") or inside in _HEAD_INPUTS:
        return of(layer, "hook_attn_out")
    return of(layer, "hook_mlp_out") if inside.startswith("mlp.") or part(name) == "hook_post" else None


def projections(hooked: "HookedModel", which: str = "qkv") -> list[str]:
    """Returns the hook points of queries, keys and values."""
    return each_layer(hooked, *(f"attn.hook_{one}" for one in which))


def is_query_or_key(name: str) -> bool:
    """Whether a hook point is that of queries or keys."""
    return name.endswith(_QUERIES_AND_KEYS)


def pattern(layer: int) -> str:
    """Returns the name of the attention pattern that a layer's queries and keys make."""
    return of(layer, "attn.hook_pattern")


def heads(layer: int) -> tuple[str, str, str, str]:
    """Returns the names of values, what the heads give, the pattern, and the output product."""
    return of(layer, "attn.hook_v"), of(layer, "attn.hook_z"), pattern(layer), of(layer, "attn.o.hook_out")


def scores(layer: int) -> tuple[str, str, str, str]:
    """Returns the names of queries, keys, the scores that these make, and the pattern."""
    return of(layer, "attn.hook_q"), of(layer, "attn.hook_k"), of(layer, "attn.hook_attn_scores"), pattern(layer)


def value_inputs(layer: int) -> tuple[str, ...]:
    """Returns the names of what a layer's values may be made of, the nearest first."""
    return tuple(of(layer, part) for part in _VALUE_INPUTS)


def head_input(layer: int, which: str) -> str:
    """Returns the name of what the heads make their queries, keys or values of, where each head has its own."""
    return of(layer, f"hook_{which}_input")


def head_inputs(hooked: "HookedModel") -> list[str]:
    """Returns the hook points where each head has an input of its own."""
    return each_layer(hooked, *_HEAD_INPUTS)


class Mlp(NamedTuple):
    """The hook points of one layer's MLP: `post = f(pre)`, or `f(pre) * linear` where it is gated."""

    layer: int
    pre: str
    linear: str | None
    post: str
    out: str


def mlp(hooked: "HookedModel", layer: int) -> Mlp | None:
    """Returns the names of a layer's MLP, `None` where it has none."""
    pre, linear, post, out = (
        of(layer, part) for part in ("mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post", "hook_mlp_out")
    )
    modules = [name.lower() for name, _ in hooked.model.blocks[layer].named_children()]
    if not hooked.has(out) and not any(known in name for name in modules for known in _MLP_NAMES):
        return None
    return Mlp(layer, pre, linear if hooked.has(linear) else None, post, out)


def mlp_values(hooked: "HookedModel") -> list[str]:
    """Returns the hook points of what MLPs make: inside, and what they write."""
    return each_layer(hooked, "mlp.hook_post", "hook_mlp_out")


@contextlib.contextmanager
def split_inputs(hooked: "HookedModel") -> Iterator[None]:
    """Makes the model compute each head's queries, keys and values from an input of its own, and puts that back.

    Raises:
        SpliceError: The model can't.
    """
    if getattr(hooked.cfg, "use_split_qkv_input", False):
        yield
        return
    try:
        hooked.model.set_use_split_qkv_input(True)
    except (AttributeError, NotImplementedError, ValueError, RuntimeError) as error:
        raise SpliceError(
            f"{hooked.family} has no inputs of its own for each attention head, so a path can't lead into one: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        yield
    finally:
        hooked.model.set_use_split_qkv_input(False)
