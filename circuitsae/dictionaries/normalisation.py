"""How a dictionary normalises its input, and how its output undoes it, as SAELens does both.

Source: `SAE._setup_activation_normalization` in `sae_lens/saes/sae.py` (6.54). SAELens keeps the statistics on the
object between encode and decode; here they are values.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, where

NORMALISATIONS = ("none", "expected_average_only_in", "covariance_whitening", "constant_norm_rescale", "layer_norm")
"""The second and third are folded into the weights by whoever saves the dictionary: at run time they do nothing."""

LAYER_NORM_EPS = 1e-5


class Normalised(NamedTuple):
    """A normalised input, and `scale` and `shift` [row 1] by which an SAE's output undoes it; None for 1 and 0."""

    x: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


def normalised(x: Float[Tensor, "row d_in"], how: str, *, frozen: bool = False) -> Normalised:
    """Normalises rows: the deviation is unbiased, eps outside the root; a row of zeros stays zero (SAELens: NaN).

    Differentiable in `x`; `frozen` holds mean, deviation and norm constant.
    """
    if how == "layer_norm":
        mean = x.mean(dim=-1, keepdim=True)
        centred = x - (mean.detach() if frozen else mean)
        deviation = centred.std(dim=-1, keepdim=True)
        if frozen:
            mean, deviation = mean.detach(), deviation.detach()
        return Normalised(centred / (deviation + LAYER_NORM_EPS), deviation, mean)
    if how == "constant_norm_rescale":
        norm = x.norm(dim=-1, keepdim=True)
        scale = (norm.detach() if frozen else norm) / x.shape[-1] ** 0.5
        return Normalised(x / where(scale > 0, scale, 1), scale)
    return Normalised(x)
