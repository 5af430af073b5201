"""What the panel says of a feature besides its numbers: from a label store where there is one, else from the weights."""

from typing import Any

import torch

from circuitsae import names
from circuitsae.graph.circuit import Circuit
from circuitsae.model.spliced import SplicedModel

N_TOKENS = 10


def card_sections(spliced: SplicedModel, circuit: Circuit, key: str) -> list[dict[str, Any]]:
    """Returns a node's sections for the drawing's panel (docs/drawing.md, `setCard`)."""
    node = names.parse(key)
    if node.kind != "feature" or node.site is None or node.index is None or node.site not in spliced.sites:
        return []
    dictionary = spliced.dictionary(node.site)
    if node.index >= dictionary.d_sae:
        return []
    promoted, suppressed = logit_tokens(spliced, node.site, node.index)
    return [
        {"title": "Promotes", "tokens": promoted, "text": "By its direct way to the logits."},
        {"title": "Suppresses", "tokens": suppressed},
    ]


def logit_tokens(spliced: SplicedModel, site: str, index: int) -> tuple[list[list[Any]], list[list[Any]]]:
    """Returns the tokens whose logits a feature's decoder row raises and lowers most by its direct way, with numbers.

    The row is multiplied with the unembedding alone, without the last normalisation: the order is what it says.
    """
    dictionary = spliced.dictionary(site)
    with torch.no_grad():
        row = dictionary.decoder_rows(torch.tensor([index], device=spliced.device), len(dictionary.hook_outs) - 1)[0]
        unembed = unembedding(spliced)
        if unembed is None or row.shape[0] != unembed.shape[0]:
            return [], []
        logits = row.to(unembed.dtype) @ unembed
        logits = logits - logits.mean()
        k = min(N_TOKENS, len(logits))
        top, low = logits.topk(k), (-logits).topk(k)
    string = spliced.vocabulary.string
    return (
        [[string(t), v] for t, v in zip(top.indices.tolist(), top.values.tolist(), strict=True)],
        [[string(t), -v] for t, v in zip(low.indices.tolist(), low.values.tolist(), strict=True)],
    )


def unembedding(spliced: SplicedModel) -> torch.Tensor | None:
    """Returns the unembedding `[d_model, d_vocab]`, `None` where the model names none."""
    found = getattr(spliced.model, "W_U", None)
    return found if isinstance(found, torch.Tensor) and found.ndim == 2 else None
