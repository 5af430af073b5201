"""Centred writing weights: the basis of the residual stream that HookedTransformer gives its users by default.

Every LayerNorm subtracts the mean over the width, so what writes to the residual stream may have its own mean taken out:
no output of the model changes, but the stream does, and dictionaries trained on one do not fit the other. Done as
`HookedTransformer.from_pretrained(center_writing_weights=True)` does it.
"""

from typing import Any

import torch

from circuitsae.errors import InputError


def is_centred(model: Any) -> bool:
    """Tells whether a TransformerLens model's embeddings have no mean over the width, as after centring."""
    embedding = getattr(model, "W_E", None)
    if embedding is None:
        return False
    rows = embedding[:256].detach().double()
    return bool(rows.mean(-1).abs().max() < 1e-3 * rows.abs().mean())


@torch.no_grad()
def centre_writing_weights(model: Any) -> None:
    """Takes the mean over the width out of everything that writes to the residual stream of a GPT-2, in place.

    The unembedding, which GPT-2 shares with the embedding, gets a copy of its own first.

    Raises:
        InputError: The model is not a GPT-2; in others not everything that reads the stream is a LayerNorm, or it is
            not known here.
    """
    if type(model).__name__ != "GPT2LMHeadModel":
        raise InputError(
            f"Writing weights are centred in GPT-2 models, which these dictionaries were trained on, not in a "
            f"{type(model).__name__}."
        )
    stack = model.transformer
    model.lm_head.weight = torch.nn.Parameter(stack.wte.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    writers = [stack.wte.weight, stack.wpe.weight]
    for block in stack.h:
        for layer in (block.attn.c_proj, block.mlp.c_proj):  # Conv1D: [in, out]
            writers += [layer.weight, layer.bias]
    for weight in writers:
        weight -= weight.mean(dim=-1, keepdim=True)
