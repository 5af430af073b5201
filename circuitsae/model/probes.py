"""What one tensor of a forward pass depends on in another, measured by vector-Jacobian products.

Reading weights tells what a model should do; these tell what it does: whether a path exists, and whether a map acts on
each position alone as a gain, as every normalisation does once its scale is held constant.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_SEED = 20_240_521


@dataclass(frozen=True)
class Pointwise:
    """A map that acts on each position alone: `y = gain * (x - mean(x))` plus a constant, or without the mean.

    Attributes:
        gain: `[pos d]`, `None` for 1.
        centred: Whether the mean is taken off.
    """

    gain: Float[Tensor, "pos d"] | None
    centred: bool

    def pull(self, g: Float[Tensor, "pos target d"]) -> Float[Tensor, "pos target d"]:
        """Returns the Jacobian below the map from the one above."""
        if self.gain is None:
            return g
        g = g * self.gain[: g.shape[0], None]
        return g.sub_(g.mean(-1, keepdim=True)) if self.centred else g

    def pull_rows(self, rows: Float[Tensor, "target d"], at: Int[Tensor, "target"]) -> Float[Tensor, "target d"]:
        """Returns the same for targets of one position each."""
        if self.gain is None:
            return rows
        rows = rows * self.gain[at]
        return rows.sub_(rows.mean(-1, keepdim=True)) if self.centred else rows


class Probe:
    """Recognises maps by products with known and random vectors.

    Args:
        tolerance: What two roads to one number may differ by, relative to the largest.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self.generator = torch.Generator().manual_seed(_SEED)

    def pointwise(self, y: Tensor, x: Tensor) -> Pointwise | None:
        """Returns y's dependence on x if it acts on each position alone as a gain, after a mean is taken off or not.

        With `J^T g = gain * g`, minus its mean if the map is centred, the products with `1` and with another vector b
        give the gain: centred, `J^T b - b * J^T 1 = mean(gain) * b - mean(gain * b)`, two unknowns at each position.
        """
        if y.shape != x.shape or y.ndim != 3:
            return None
        b = self.random(y).abs() + 1
        ones = torch.ones_like(b)
        first, second = vjp(y, x, ones), vjp(y, x, b)
        if first is None or second is None:
            return None
        size = second.abs().mean(-1, keepdim=True)
        centred = bool((second.mean(-1, keepdim=True).abs() <= 10 * self.tolerance * size + 1e-300).all())
        gain = first
        if centred:
            spread = b - b.mean(-1, keepdim=True)
            gain = first + ((second - b * first) * spread).sum(-1, keepdim=True) / spread.square().sum(-1, keepdim=True)
        found = Pointwise(gain[0].detach(), centred)
        r = self.random(y)
        expected = vjp(y, x, r)
        if expected is None or not self.agrees(found.pull(r[0][:, None])[:, 0], expected[0]):
            return None
        return Pointwise(None, False) if not centred and bool((gain == 1).all()) else found

    def random(self, like: Tensor) -> Tensor:
        """Returns a random vector at every place of a tensor."""
        return torch.randn(like.shape, generator=self.generator, dtype=torch.float64).to(like)

    def agrees(self, found: Tensor, expected: Tensor) -> bool:
        """Whether two roads to one number give the same."""
        return close(found, expected, self.tolerance)


def tolerance(dtype: torch.dtype) -> float:
    """Returns what two orders of one computation may differ by, relative to the largest number."""
    return {torch.float64: 1e-10, torch.float32: 2e-4}.get(dtype, 5e-2)


def close(found: Tensor, expected: Tensor, limit: float) -> bool:
    """Whether two tensors differ by no more than a share of their largest number."""
    size = max(float(expected.abs().max()), float(found.abs().max())) if expected.numel() else 0.0
    return found.shape == expected.shape and bool((found - expected).abs().max() <= limit * size + 1e-300)


def vjp(y: Tensor, x: Tensor, g: Tensor) -> Tensor | None:
    """Returns `g . dy/dx`, `None` where y does not depend on x."""
    if y is x:
        return g
    if not y.requires_grad or not x.requires_grad:
        return None
    return torch.autograd.grad(y, x, g, retain_graph=True, allow_unused=True)[0]


def reaches(x: Tensor, y: Tensor) -> bool:
    """Whether y is computed from x."""
    return vjp(y, x, torch.zeros_like(y)) is not None
