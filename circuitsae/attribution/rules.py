"""Modified backward passes, as hooks that leave every value what it is and change only what gradients flow back.

A hook point's own gradient is read after its hooks ran, so a rule acts on what lies below the hook point it is at. Whoever
asks for a rule's hooks has it tried on the loaded model first (see [circuitsae.model.checks][]): all raise a `SpliceError`
where it doesn't hold.
"""

from typing import Any

import torch
from torch import Tensor

from circuitsae.attribution.factors import factors
from circuitsae.model import points
from circuitsae.model.checks import detaching, require
from circuitsae.model.hooks import Hook, Passed
from circuitsae.model.spliced import SplicedModel

Hooks = list[tuple[str, Hook]]


def frozen_scales(spliced: SplicedModel) -> Hooks:
    """Returns the hooks that hold normalisation scales constant."""
    require(spliced, "scales")
    return detaching(points.scales(spliced.hooked))


def frozen_patterns(spliced: SplicedModel) -> Hooks:
    """Returns the hooks that hold attention patterns constant."""
    require(spliced, "patterns")
    return detaching(points.patterns(spliced.hooked))


def relevant_mlps(spliced: SplicedModel) -> Hooks:
    """Returns the hooks that give MLPs the gradients of layer-wise relevance propagation.

    An activation function has the slope `f(z) / z` in place of `f'(z)` (identity rule). Where it gates another
    projection, `f(z) * u`, each factor gets half of the product's relevance (half rule): slopes `f(z) u / (2 z)` and
    `f(z) / 2`. So gradient times input is conserved through the MLP: biases aside, `x . dm/dx` is the same below as above.

    Raises:
        InputError: An MLP has no hook points inside, or they are not its factors (mixtures of experts).
    """
    hooks: Hooks = []
    for mlp in factors(spliced):
        seen: dict[str, Tensor] = {}
        hooks.append((mlp.pre, Passed(seen, "gate")))
        if mlp.linear is not None:
            hooks.append((mlp.linear, Passed(seen, "linear")))
        hooks.append((mlp.post, lambda x, seen=seen: _with_relevance(x, seen)))
    return hooks


def _with_relevance(post: Tensor, seen: dict[str, Tensor]) -> Tensor:
    """Returns the same values, with slope post / z by each of the inputs z, halved where there are two."""
    inputs = list(seen.values())
    value = post.detach()
    path = sum(z * torch.where(z == 0, 0, value / z).detach() for z in inputs) / len(inputs)
    seen.clear()
    return value + (path - path.detach())  # pyright: ignore[reportAttributeAccessIssue]


def scaled_inputs(spliced: SplicedModel, query: float, key: float, value: float) -> Hooks:
    """Returns the hooks that multiply what flows back through queries, keys and values."""
    require(spliced, "projections")
    shares = {"q": query, "k": key, "v": value}
    return [(name, _passing(by)) for which, by in shares.items() for name in points.projections(spliced.hooked, which)]


def scaled_gates(spliced: SplicedModel, gate: float, up: float) -> Hooks:
    """Returns the hooks that multiply what flows back through the two factors of gated MLPs, `f(gate) * up`.

    Raises:
        InputError: An MLP has no hook points inside, or they are not its factors (mixtures of experts).
    """
    gated = [mlp for mlp in factors(spliced) if mlp.linear is not None]
    return [(name, _passing(by)) for mlp in gated for name, by in ((mlp.pre, gate), (str(mlp.linear), up))]


def _passing(share: float) -> Hook:
    """Returns the hook that leaves values and passes a share of the gradient."""
    return lambda x: x * share + (x * (1 - share)).detach()


def soft_patterns(spliced: SplicedModel, temperature: float) -> Hooks:
    """Returns the hooks that take the softmax's backward pass at another temperature: that of `softmax(scores / T)`."""
    require(spliced, "softmax")
    return [(name, lambda x: _SoftPattern.apply(x, temperature)) for name in points.patterns(spliced.hooked)]


class _SoftPattern(torch.autograd.Function):
    """Identity on attention patterns `p`; going on back through the softmax gives what one at temperature T would.

    The softmax turns a gradient g into `p * (g - p . g)`. Handing it `q * (g - q . g) / p` with `q = p^(1/T) / sum`,
    which is `softmax(scores / T)` without masked keys, makes that `q * (g - q . g)`.
    """

    @staticmethod
    def forward(ctx: Any, pattern: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(pattern)
        ctx.temperature = temperature
        return pattern.view_as(pattern)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (pattern,), (gradient,) = ctx.saved_tensors, gradients
        tiny = torch.finfo(pattern.dtype).tiny
        soft = torch.where(pattern > tiny, pattern, 0) ** (1 / ctx.temperature)
        soft = soft / soft.sum(-1, keepdim=True)
        wanted = soft * (gradient - (soft * gradient).sum(-1, keepdim=True))
        return torch.where(pattern > tiny, wanted / pattern.clamp_min(tiny), 0), None


class LayerDrop:
    """Which layer's contribution passes no gradient back, changeable between backward passes over one graph."""

    def __init__(self) -> None:
        self.layer: int | None = None

    def hooks(self, spliced: SplicedModel) -> Hooks:
        """Returns the hooks at what each layer's attention and MLP add to the residual stream."""
        require(spliced, "layers")
        hooked = spliced.hooked
        return [(name, self._gate(hooked.layer(name))) for name in points.layer_outputs(hooked)]

    def _gate(self, layer: int) -> Hook:
        return lambda x: _Gate.apply(x, layer, self)


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: int, drop: LayerDrop) -> Tensor:
        ctx.layer, ctx.drop = layer, drop
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (torch.zeros_like(gradient) if ctx.drop.layer == ctx.layer else gradient), None, None
