"""The architectures: how pre-activations become sparse activations, and which tensors that takes.

A dictionary's encoder is one matrix product and an activation. Each activation is a small class that turns a block
`u = z @ W_enc` (rows by a range of features) into active entries and says what, where a feature is active, its value
is as an affine function of `u`: `value = gain * u + bias`. SAEs, transcoders, skip transcoders and cross-layer
transcoders differ in the decoder alone, so the table below is their product with the activations.

Sources: `sae_lens/saes/{standard,gated,topk,abstopk,jumprelu}_sae.py` and `transcoder.py` (6.54).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.errors import DictionaryError, near_matches

Vectors = Mapping[str, Tensor]
"""Per-feature vectors by name, those of the block's features; `decoder_norm` among them where it is asked for."""

Entries = tuple[Int[Tensor, " _"], Int[Tensor, " _"], Float[Tensor, " _"]]
"""Rows, indices and values of a block's active features, sorted by row, then index, counted from the block's start."""


class Activation(ABC):
    """How pre-activations become activations.

    Attributes:
        vectors: Per-feature tensors that it needs.
        needs_k: Whether a fixed number of features per row stays active, so that it must see whole rows.
    """

    vectors: tuple[str, ...] = ("b_enc",)
    needs_k: bool = False

    @abstractmethod
    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns the active entries of a block; `u` may be overwritten."""

    def affine(self, vectors: Vectors) -> tuple[Tensor | None, Tensor]:
        """Returns gain (`None` means 1) and bias of a feature's value in terms of `u`."""
        return None, vectors["b_enc"]


class Relu(Activation):
    """`relu(u + b_enc)`."""

    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns the positive entries."""
        u += vectors["b_enc"]
        return _where(u > 0, u)


class JumpRelu(Activation):
    """`relu(p)` where `p = u + b_enc` exceeds the feature's threshold, else 0."""

    vectors = ("b_enc", "threshold")

    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns the entries above their threshold; under a negative one relu still holds."""
        u += vectors["b_enc"]
        return _where(u > vectors["threshold"].clamp_min(0), u)


class Gated(Activation):
    """`relu(u * exp(r_mag) + b_mag)` where `u + b_gate > 0`, else 0. Its slope is that of the magnitude path."""

    vectors = ("b_gate", "b_mag", "r_mag")

    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns the entries whose gate is open and whose magnitude is positive."""
        is_open = u + vectors["b_gate"] > 0
        u *= vectors["r_mag"].exp()
        u += vectors["b_mag"]
        return _where(is_open & (u > 0), u)

    def affine(self, vectors: Vectors) -> tuple[Tensor | None, Tensor]:
        """Returns the magnitude path's gain and bias."""
        return vectors["r_mag"].exp(), vectors["b_mag"]


class TopK(Activation):
    """The `k` largest of `p = u + b_enc` in each row, relu'd.

    Which of equal values stays is torch.topk's choice, as in SAELens. With `rescale_acts_by_decoder_norm`, `p` is in
    units of the decoder row's norm.
    """

    needs_k = True

    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns the positive ones among each row's `k` largest."""
        assert k is not None
        self._scaled(u, vectors)
        values, indices = torch.topk(u, k, dim=-1, sorted=False)
        return _by_row(values, indices, values > 0)

    def affine(self, vectors: Vectors) -> tuple[Tensor | None, Tensor]:
        """Returns the decoder norms as gain where activations are rescaled by them."""
        norm = vectors.get("decoder_norm")
        return norm, vectors["b_enc"] if norm is None else vectors["b_enc"] * norm

    def _scaled(self, u: Tensor, vectors: Vectors) -> None:
        u += vectors["b_enc"]
        if "decoder_norm" in vectors:
            u *= vectors["decoder_norm"]


class AbsTopK(TopK):
    """The `k` largest of |p| in each row, their signs kept: features fire in both directions (arXiv 2510.00404)."""

    def select(self, u: Float[Tensor, "row block"], vectors: Vectors, k: int | None) -> Entries:
        """Returns each row's `k` entries of largest magnitude that are not zero."""
        assert k is not None
        self._scaled(u, vectors)
        indices = torch.topk(u.abs(), k, dim=-1, sorted=False).indices
        values = u.gather(-1, indices)
        return _by_row(values, indices, values != 0)


@dataclass(frozen=True, slots=True)
class Architecture:
    """An activation and a kind of decoder.

    Attributes:
        name: As in `cfg.json`.
        activation: How pre-activations become activations.
        is_transcoder: Whether it writes another hook point than it reads; b_dec and W_dec then have the output's width.
        has_skip: Whether a linear path W_skip [d_out, d_in] leads from the raw input to the first output.
        is_cross_layer: Whether each feature has one decoder row per output: W_dec [d_sae, output, d_out].
    """

    name: str
    activation: Activation
    is_transcoder: bool = False
    has_skip: bool = False
    is_cross_layer: bool = False

    @property
    def needs_k(self) -> bool:
        """Whether the configuration must say how many features a row keeps."""
        return self.activation.needs_k

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors it must have, and no others."""
        return ("W_enc", "W_dec", *self.activation.vectors, "b_dec", *(("W_skip",) if self.has_skip else ()))


def _table() -> dict[str, Architecture]:
    saes = {"standard": Relu(), "gated": Gated(), "topk": TopK(), "abstopk": AbsTopK(), "jumprelu": JumpRelu()}
    table = {name: Architecture(name, activation) for name, activation in saes.items()}
    for prefix, activation in {"": Relu(), "jumprelu_": JumpRelu(), "topk_": TopK()}.items():
        for is_cross_layer in (False, True):
            for has_skip in (False, True):
                name = f"{prefix}{'skip_' if has_skip else ''}{'cross_layer_' if is_cross_layer else ''}transcoder"
                table[name] = Architecture(name, activation, True, has_skip, is_cross_layer)
    return table


ARCHITECTURES: dict[str, Architecture] = _table()
"""By the name that `cfg.json` gives; the topk and cross-layer transcoders are ours, the others SAELens' own."""

IDENTITY = Architecture("identity", Relu())
"""The neuron dictionary's, which has no weights and is never read from a file."""

_UNSUPPORTED = {
    "temporal": "its features depend on earlier positions through attention",
    "matching_pursuit": "its features are chosen one after another, so no activation is a fixed function of the input",
    "batchtopk": "it exists for training only: save it with save_inference_model, which makes it a jumprelu",
    "matryoshka_batchtopk": "it exists for training only: save it with save_inference_model, which makes it a jumprelu",
}


def find_architecture(name: str, origin: str) -> Architecture:
    """Returns the architecture of that name.

    Raises:
        DictionaryError: It is unknown, or known and not supported; the message says why and what is.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    supported = f"supported are {', '.join(ARCHITECTURES)}."
    if name in _UNSUPPORTED:
        raise DictionaryError(
            f"{origin} has the architecture {name!r}, which can't be traced: {_UNSUPPORTED[name]}; {supported}"
        )
    near = near_matches(name, ARCHITECTURES)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise DictionaryError(
        f"{origin} has the unknown architecture {name!r}; {hint}{supported[0].upper()}{supported[1:]}"
    )


def _where(mask: Tensor, values: Tensor) -> Entries:
    rows, indices = mask.nonzero(as_tuple=True)
    return rows, indices, values[rows, indices]


def _by_row(values: Tensor, indices: Tensor, keep: Tensor) -> Entries:
    """Sorts each row's picks by index and drops those not kept."""
    indices, order = indices.sort(dim=-1)
    keep = keep.gather(-1, order)
    rows = keep.nonzero(as_tuple=True)[0]
    return rows, indices[keep], values.gather(-1, order)[keep]
