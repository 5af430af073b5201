"""What the panel says of a feature besides its numbers: from a label store where there is one, else from the weights."""

from typing import Any

import torch

from circuitsae import names
from circuitsae.graph.circuit import Circuit
from circuitsae.labels import LabelStore
from circuitsae.model.spliced import SplicedModel

N_TOKENS = 10
N_CONTEXTS = 6


def card_sections(
    spliced: SplicedModel | None, store: LabelStore | None, circuit: Circuit, key: str
) -> list[dict[str, Any]]:
    """Returns a node's sections for the drawing's panel (docs/drawing.md, `setCard`).

    Args:
        spliced: The model, for what no store says; `None` while it is loaded.
        store: Labels that come with the preset.
        circuit: The circuit.
        key: The node's key.
    """
    node = names.parse(key)
    if node.kind != "feature" or node.site is None or node.index is None:
        return []
    found = None if store is None else store.describe(node.site, node.index)
    promoted = [list(pair) for pair in found.promoted] if found else []
    suppressed = [list(pair) for pair in found.suppressed] if found else []
    if not promoted and spliced is not None and node.site in spliced.sites:
        if node.index >= spliced.dictionary(node.site).d_sae:
            return []
        promoted, suppressed = logit_tokens(spliced, node.site, node.index)
    sections: list[dict[str, Any]] = []
    if found is not None and found.label and found.label != circuit[key].get("label"):
        sections.append({"title": f"Label ({found.source})", "text": found.label})
    if found is not None and found.density is not None:
        often = f"Active on {100 * found.density:.2g}% of the tokens"
        sections.append(
            {"title": "How often", "text": often + (f", at most {found.largest:.3g}." if found.largest else ".")}
        )
    if promoted:
        sections.append({"title": "Promotes, by its direct way to the logits", "tokens": promoted[:N_TOKENS]})
        sections.append({"title": "Suppresses", "tokens": suppressed[:N_TOKENS]})
    if found is not None and found.contexts:
        contexts = [list(zip(c.tokens, c.activations, strict=True)) for c in found.contexts[:N_CONTEXTS]]
        sections.append({"title": "Most active on", "contexts": contexts})
    return sections


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
