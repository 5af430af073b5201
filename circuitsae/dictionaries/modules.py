"""A plain torch module as a dictionary: told by its parameters, and proven by calling it.

Parameters are W_enc, W_dec, b_enc, b_dec (and threshold, or b_gate, b_mag, r_mag), or two `torch.nn.Linear`s `encoder` and
`decoder`. What they do not say, whether the decoder's bias is subtracted first, the module's own `encode` or `forward` does.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import DictionaryError

_NAMES = {
    "W_enc": ("W_enc", "encoder.weight"), "W_dec": ("W_dec", "decoder.weight"), "b_enc": ("b_enc", "encoder.bias"),
    "b_dec": ("b_dec", "decoder.bias", "decoder_bias"), "threshold": ("threshold",), "b_gate": ("b_gate",),
    "b_mag": ("b_mag",), "r_mag": ("r_mag",),
}  # fmt: skip
_TOLERANCE = 1e-4  # of the largest activation: single precision, added up in another order


def is_module(given: object) -> bool:
    """Tells whether an object is a torch module with the parameters of a dictionary."""
    if not isinstance(given, torch.nn.Module):
        return False
    names = dict(given.state_dict())
    return all(any(name in names for name in _NAMES[part]) for part in ("W_enc", "W_dec"))


def from_module(
    module: torch.nn.Module,
    *,
    hook_in: str | None = None,
    hook_outs: Sequence[str] | str | None = None,
    k: int | None = None,
    source: str | None = None,
) -> Dictionary:
    """Returns a dictionary over a module's parameters, shared and not copied, that computes what the module computes.

    Args:
        module: It has `encode(x)`, or `forward(x)` that gives the reconstruction (alone, or first of several).
        hook_in: Hook point it reads; its attribute `hook_name` (or its `cfg`'s) by default.
        hook_outs: Hook points it writes, for a transcoder.
        k: Features kept per row, for top-k; its attribute `k` (or its `cfg`'s) by default.
        source: Where it is from, as circuits will record it; its class by default.

    Raises:
        DictionaryError: No hook point is named, or no known architecture gives what the module gives.
    """
    name = type(module).__name__
    hook_in = hook_in or _said(module, "hook_name") or _said(module, "hook_in")
    if not isinstance(hook_in, str):
        raise DictionaryError(
            f"The module {name} names no hook point; give it an attribute hook_name, such as "
            "'blocks.3.hook_resid_post', or say it with load_dictionary(module, hook_in=...)."
        )
    k = _said(module, "k") if k is None else k
    stored = {plain: tensor.detach() for plain, tensor in module.state_dict().items()}
    found = {ours: next((stored[t] for t in theirs if t in stored), None) for ours, theirs in _NAMES.items()}
    tensors: dict[str, Tensor] = {ours: tensor for ours, tensor in found.items() if tensor is not None}
    for part, linear in (("W_enc", "encoder.weight"), ("W_dec", "decoder.weight")):
        if part not in stored and linear in stored:
            tensors[part] = tensors[part].T
    d_in, d_sae = tensors["W_enc"].shape
    tensors.setdefault("b_dec", torch.zeros(tensors["W_dec"].shape[-1], dtype=tensors["W_dec"].dtype))
    if "b_gate" not in tensors:
        tensors.setdefault("b_enc", torch.zeros(d_sae, dtype=tensors["W_enc"].dtype))
    if "threshold" in tensors and tensors["threshold"].numel() == 1:
        tensors["threshold"] = tensors["threshold"].reshape(1).expand(d_sae)
    is_transcoder = hook_outs is not None and hook_outs not in (hook_in, [hook_in], (hook_in,))
    base = "gated" if "b_gate" in tensors else "jumprelu" if "threshold" in tensors else "topk" if k else "standard"
    kind = {"standard": "transcoder"}.get(base, f"{base}_transcoder") if is_transcoder else base
    x = torch.randn(16, d_in, generator=torch.Generator().manual_seed(0)).to(tensors["W_enc"])
    theirs = _called(module, x, name)
    for applies in (False,) if is_transcoder else (True, False):
        made = Dictionary.from_tensors(
            architecture=kind,
            hook_in=hook_in,
            hook_outs=hook_outs,
            tensors=tensors,
            source=source or f"a {name} in memory",
            apply_b_dec_to_input=applies,
            **({"k": int(k)} if base == "topk" and k else {}),
        )
        encoding = made.encode(x)
        ours = encoding.features.to_dense() if theirs.shape[-1] == d_sae else made.decode(encoding, x)
        if ours.shape == theirs.shape and (ours - theirs).abs().max() <= _TOLERANCE * theirs.abs().max().clamp_min(
            1e-30
        ):
            return made
    raise DictionaryError(
        f"The module {name} has the tensors of a {kind}, but computes something else; expected what the architectures of "
        "Dictionary.from_tensors compute, or a loader of your own (docs/loaders.md)."
    )


@torch.no_grad()
def _called(module: torch.nn.Module, x: Tensor, name: str) -> Tensor:
    """Returns a module's activations, or else its reconstruction."""
    was = module.training
    module.eval()
    try:
        given: Any = module.encode(x) if callable(getattr(module, "encode", None)) else module(x)  # pyright: ignore[reportCallIssue]
    except Exception as error:  # a stranger's code
        raise DictionaryError(
            f"The module {name} can't be called to see what it computes ({type(error).__name__}); expected encode(x), or "
            "forward(x) that gives the reconstruction; or use Dictionary.from_tensors."
        ) from error
    finally:
        module.train(was)
    first = given[0] if isinstance(given, tuple | list) else given
    if not isinstance(first, Tensor):
        raise DictionaryError(f"The module {name} gives a {type(first).__name__}; expected a tensor first.")
    return first


def _said(module: torch.nn.Module, name: str) -> Any:
    own = getattr(module, name, None)
    return (
        getattr(getattr(module, "cfg", None), name, None)
        if own is None
        else int(own)
        if isinstance(own, Tensor)
        else own
    )
