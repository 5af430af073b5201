"""Numbers that are not finite: found where logits and metrics pass, and said with what they come from."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from circuitsae.errors import NotFiniteError


def overflows(logits: Tensor) -> bool:
    """Whether logits hold NaN or infinity; minus infinity is a token that a model rules out."""
    return logits.numel() > 0 and not bool(logits.detach().amax().isfinite())


def not_finite(hooked: Any, tokens: Tensor) -> NotFiniteError:
    """Returns the error for logits that are not finite: the first weight or activation that is not, its type, what helps.

    Args:
        hooked: The `HookedModel` that gave them.
        tokens: What it was run on. It is run once more, bare.
    """
    for name, parameter in hooked.model.named_parameters():
        if not bool(parameter.detach().sum().isfinite()) and not bool(parameter.detach().isfinite().all()):
            plain = name.replace("_original_component.", "").replace("original_model.", "")
            return NotFiniteError(
                f"The model's logits are not finite, since its weight {plain!r} ({_type(parameter)}) is not: it holds NaN "
                "or infinity. Load weights that are whole, or in a type that holds them: float32 or bfloat16."
            )
    seen: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Any:
        def hook(x: Any) -> None:
            known = (
                isinstance(x, Tensor) and x.is_floating_point() and "attn_scores" not in name
            )  # masked ones are -inf
            if known and not seen and not bool(x.detach().isfinite().all()):
                seen.append((name, x.detach()))

        return hook

    points = {id(point): name for name, point in reversed(list(hooked.points.items()))}  # a point's first name stays
    with torch.no_grad():
        hooked.attempt(tokens, [(name, watch(name)) for name in points.values()])
    if not seen:
        return NotFiniteError(
            "The logits are not finite with what this run changes, while those of the bare model are: values were set that "
            f"are too large for {_type(hooked)}, or lead to NaN. Set smaller ones, or load the model in float32."
        )
    name, x = seen[0]
    at = sorted({p for p in (~x.isfinite()).nonzero()[:, 1].tolist()}) if x.ndim > 1 else []
    where = f" at position {at[0]}" if at else ""
    helps = (
        "float16 holds nothing above 65,504: load the model in bfloat16 or float32."
        if x.dtype == torch.float16
        else "Load the model in float32, and see that its weights are those it was trained with."
    )
    return NotFiniteError(
        f"The model's logits are not finite: the first activation that is not is {name!r}{where} ({_type(x)}). {helps}"
    )


def checked(value: Tensor, text: str) -> Tensor:
    """Returns a metric's values.

    Raises:
        NotFiniteError: One is not finite.
    """
    if not bool(value.detach().isfinite().all()):
        raise NotFiniteError(
            f"The metric is not finite ({text}; {_type(value)}); expected a number. Where a token's probability is 0, or a "
            "number too large for the type, ask for a logit, or load the model in float32."
        )
    return value


def refuse_effects(site: str, effects: Sequence[Tensor]) -> None:
    """Refuses effects that are not finite.

    Raises:
        NotFiniteError: One is not: gradients overflowed.
    """
    for x in effects:
        if not bool(x.isfinite().all()):
            raise NotFiniteError(
                f"The effects of nodes at {site or 'the embeddings'} are not finite while the metric is: gradients are too "
                "large for the model's type. Load it in bfloat16 or float32."
            )


def _type(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")
