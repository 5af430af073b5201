"""Keys and values of a prompt's attention, so that a run may start at a middle position.

Nothing before an edited position depends on it, so a run that edits there needs only the positions from there on, and
the earlier ones' keys and values from the clean run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitsae.model.runs import Run
from circuitsae.model.spliced import SplicedModel


@dataclass(frozen=True)
class KeyValues:
    """The keys and values of every layer on one prompt, `[1 head pos d_head]` each."""

    layers: tuple[tuple[Float[Tensor, "1 _head pos _d_head"], Float[Tensor, "1 _head pos _d_head"]], ...]

    def before(self, position: int, batch: int) -> Any:
        """Returns a cache of transformers that holds the positions before `position`, for a batch; `None` for the first."""
        if position == 0:
            return None
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            cache.update(
                keys[:, :, :position].expand(batch, -1, -1, -1),
                values[:, :, :position].expand(batch, -1, -1, -1),
                layer,
            )
        return cache


def key_values(spliced: SplicedModel, run: Run) -> KeyValues | None:
    """Returns a prompt's keys and values, `None` where the model can't start from them.

    Whether it can is tried: the second half of the prompt, run from the first half's keys and values, must give the
    clean logits. Cost: one and a half forward passes.
    """
    if not hasattr(spliced.model, "original_model"):  # a HookedTransformer has a cache of its own kind
        return None
    try:
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.no_grad():
            spliced.hooked.forward(run.tokens[None], logits_at=[run.n_tokens - 1], cache=cache)
            found = KeyValues(tuple((layer.keys, layer.values) for layer in cache.layers))  # type: ignore[arg-type]
            half = run.n_tokens // 2
            logits = spliced.hooked.forward(
                run.tokens[None, half:], logits_at=[run.n_tokens - 1 - half], cache=found.before(half, 1)
            )
    except (
        AttributeError,
        ImportError,
        IndexError,
        KeyError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ):
        return None
    if logits is None or len(found.layers) != spliced.n_layers:
        return None
    clean = run.logits[-1]
    tolerance = 1e-4 if clean.dtype == torch.float32 else 1e-9 if clean.dtype == torch.float64 else 2e-2
    holds = (logits[0, -1] - clean).abs().max() <= tolerance * clean.abs().max()
    return found if bool(holds) else None
