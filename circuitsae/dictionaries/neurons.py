"""The neuron dictionary: every coordinate of a hook point is a feature, W is the identity, nothing is unexplained.

`load(model, dictionaries="neurons")` attaches one to every MLP after its nonlinearity, so that a model for which nobody has
trained dictionaries can be traced. The baseline that dictionaries are measured against (feature-circuits calls it identity dictionaries), and the way to
trace single neurons at `blocks.L.mlp.hook_post`. The identity matrix is never made.

>>> import torch
>>> neurons = identity_dictionary("blocks.0.mlp.hook_post", 4)
>>> encoding = neurons.encode(torch.tensor([[0.0, -2.0, 0.0, 3.0]]))
>>> encoding.features.indices.tolist(), encoding.features.values.tolist()
([1, 3], [-2.0, 3.0])
"""

import hashlib

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.dictionaries.active import Encoding, SparseFeatures
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import DictionaryConfig, reshape_at
from circuitsae.dictionaries.weights import MemoryWeights
from circuitsae.errors import InputError

NEURONS = "neurons"
"""The name under which every MLP's neurons are asked for, in place of dictionaries."""


def identity_dictionary(hook: str, d: int, *, prepend_bos: bool = True) -> "NeuronDictionary":
    """Returns the dictionary whose features are the `d` coordinates of a hook point (hook_z flattened).

    Raises:
        InputError: `d` is not a positive number.
    """
    if d < 1:
        raise InputError(f"A neuron dictionary has one feature per coordinate of its hook point; {d} is no width.")
    config = DictionaryConfig("identity", hook, (hook,), reshape_activations=reshape_at(hook), prepend_bos=prepend_bos)
    return NeuronDictionary(config, d)


class NeuronDictionary(Dictionary):
    """Features are neurons: a feature's activation is its coordinate, of either sign; see `identity_dictionary`."""

    def __init__(self, config: DictionaryConfig, d: int) -> None:
        self._d = d
        super().__init__(config, MemoryWeights({}, origin=f"the neurons at {config.hook_in}"), source=f"identity:{d}")

    @property
    def fingerprint(self) -> str:
        """The sha256 of its width; there are no weights."""
        return hashlib.sha256(f"identity {self._d}".encode()).hexdigest()

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"]) -> Encoding:
        """Returns the coordinates that are not zero."""
        x = self._arithmetic(x)
        return Encoding(SparseFeatures.from_dense(x), *self.scale_and_biases(x))

    @torch.no_grad()
    def encode_only(self, x: Float[Tensor, "row d_in"], indices: Int[Tensor, " k"]) -> Encoding:
        """Returns the coordinates `indices` that are not zero."""
        encoding = self.encode(x)
        wanted = torch.isin(encoding.features.indices, indices.to(x.device))
        return Encoding(encoding.features.select(wanted), None, encoding.biases)

    def pre_activations(
        self,
        x: Float[Tensor, "row d_in"],
        rows: Int[Tensor, " k"],
        indices: Int[Tensor, " k"],
        *,
        frozen: bool = False,
    ) -> Float[Tensor, " k"]:
        """Returns the coordinates themselves, differentiable."""
        self._check_indices(indices)
        return self._arithmetic(x)[rows, indices]

    def scale_and_biases(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, " row"] | None, tuple[Tensor, ...]]:
        """Returns a scale of `None`, and biases of 0."""
        return None, (x.new_zeros(1, self._d),)

    def encoder_rows(
        self, indices: Int[Tensor, " k"], *, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, " k"]]:
        """Returns unit vectors, and biases of 0."""
        rows = self.decoder_rows(indices, dtype=dtype)
        return rows, rows.new_zeros(rows.shape[0])

    def decoder_rows(
        self, indices: Int[Tensor, " k"], out: int = 0, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "k d_out"]:
        """Returns unit vectors."""
        self._part(out)
        self._check_indices(indices)
        rows = torch.zeros(indices.shape[0], self._d, dtype=dtype or self.dtype, device=self.device)
        return rows.scatter_(1, indices.to(self.device)[:, None], 1)

    @torch.no_grad()
    def project(
        self, vectors: Float[Tensor, "row d_out"], rows: Int[Tensor, " k"], indices: Int[Tensor, " k"], out: int = 0
    ) -> Float[Tensor, " k"]:
        """Returns coordinate `indices[j]` of `vectors[rows[j]]`."""
        self._part(out)
        self._check_indices(indices)
        return vectors[rows, indices]

    @torch.no_grad()
    def weighted_sum(self, features: SparseFeatures, out: int = 0) -> Float[Tensor, "row d_out"]:
        """Returns each row's activations at their coordinates."""
        self._part(out)
        return features.to_dense()

    def reconstruct(
        self, x: Float[Tensor, "row d_in"], features: SparseFeatures, out: int = 0, *, frozen: bool = False
    ) -> Float[Tensor, "row d_out"]:
        """Returns `x` where `features` are, 0 elsewhere; differentiable."""
        self._part(out)
        return self._arithmetic(x) * features.with_values(torch.ones_like(features.values)).to_dense()

    def _shapes(self) -> tuple[int, int, int]:
        return self._d, self._d, self._d
