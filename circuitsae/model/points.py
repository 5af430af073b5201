"""Where things lie in a model, read off the names of its hook points: the only place that knows these names by heart.

Each function takes a `HookedModel` and gives only hook points that the model has.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from circuitsae.errors import SpliceError

if TYPE_CHECKING:
    from circuitsae.model.hooks import HookedModel

# Their scales act on queries and keys alone: held patterns hold what comes of them, and no residual stream passes there.
_OF_QUERIES_AND_KEYS = re.compile(r"\.(q|k|qk|query|key)_(\w*_?layer)?norm\b")


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


def layer_outputs(hooked: "HookedModel") -> list[str]:
    """Returns the hook points where attention and MLPs write to the residual stream."""
    return each_layer(hooked, "hook_attn_out", "hook_mlp_out")


def part(name: str) -> str:
    """Returns the last part of a hook point's name.

    >>> part("blocks.3.attn.hook_z")
    'hook_z'
    """
    return name.rpartition(".")[2]


def each_layer(hooked: "HookedModel", *parts: str) -> list[str]:
    """Returns the hook points of these names in every layer that has them, bottom to top."""
    names = (f"blocks.{layer}.{part}" for layer in range(hooked.n_layers) for part in parts)
    return [name for name in names if hooked.has(name)]


def projections(hooked: "HookedModel") -> list[str]:
    """Returns the hook points of queries, keys and values."""
    return each_layer(hooked, "attn.hook_q", "attn.hook_k", "attn.hook_v")


def residuals(hooked: "HookedModel") -> list[str]:
    """Returns the hook points where all of the residual stream passes."""
    return each_layer(hooked, "hook_resid_mid", "hook_resid_post")


def is_branch(hooked: "HookedModel", name: str) -> bool:
    """Whether a hook point is what one part of a layer reads, such as `ln2.hook_in`: the residual stream passes beside it."""
    own = hooked.point(name)
    asked_as_stream = part(name).startswith("hook_resid_")
    return not asked_as_stream and str(own.name).endswith(".hook_in") and str(own.name).count(".") > 2


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
