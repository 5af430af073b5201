"""Sparse feature activations: what a dictionary says about a few rows, kept as indices and values from the start.

A dictionary 24,000 wide has some fifty features active per position, so a dense `[row, d_sae]` array is almost all
zeros; nothing in this package keeps one. Entries are sorted by row, then index, and no (row, index) occurs twice.

>>> import torch
>>> features = SparseFeatures.from_dense(torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 3.0]]))
>>> features.rows.tolist(), features.indices.tolist(), features.values.tolist()
([0, 1, 1], [1, 0, 2], [2.0, 1.0, 3.0])
>>> features.value_at(torch.tensor([1, 0]), torch.tensor([2, 2])).tolist()
[3.0, 0.0]
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae.errors import InputError


@dataclass(frozen=True, slots=True)
class SparseFeatures:
    """Active features of one dictionary on `n_rows` rows (positions of a prompt), sorted by row, then index.

    Attributes:
        rows: Row of each active feature, int64.
        indices: Its index in the dictionary, int64.
        values: Its activation, not zero (unless a method says so).
        n_rows: Rows encoded, those without an active feature included.
        d_sae: Width of the dictionary.
    """

    rows: Int[Tensor, " active"]
    indices: Int[Tensor, " active"]
    values: Float[Tensor, " active"]
    n_rows: int
    d_sae: int

    @classmethod
    def empty(
        cls, n_rows: int, d_sae: int, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> "SparseFeatures":
        """Returns `n_rows` rows on which nothing is active."""
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return cls(none, none, torch.zeros(0, dtype=dtype, device=device), n_rows, d_sae)

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "row d_sae"]) -> "SparseFeatures":
        """Returns the entries of `dense` that are not zero."""
        rows, indices = dense.nonzero(as_tuple=True)
        return cls(rows, indices, dense[rows, indices], dense.shape[0], dense.shape[1])

    @classmethod
    def from_entries(
        cls,
        rows: Int[Tensor, " active"],
        indices: Int[Tensor, " active"],
        values: Float[Tensor, " active"],
        n_rows: int,
        d_sae: int,
    ) -> "SparseFeatures":
        """Returns entries given in any order, sorted; the entries' values are taken as they are.

        Raises:
            InputError: A (row, index) is given twice or lies outside `[n_rows, d_sae]`.
        """
        rows, indices = rows.long(), indices.long()
        if rows.numel():
            outside = (rows < 0) | (rows >= n_rows) | (indices < 0) | (indices >= d_sae)
            if bool(outside.any()):
                at = int(outside.nonzero()[0])
                raise InputError(
                    f"Entry (row {int(rows[at])}, feature {int(indices[at])}) lies outside {n_rows} rows "
                    f"of {d_sae} features."
                )
            keys, order = (rows * d_sae + indices).sort()
            if bool((keys[1:] == keys[:-1]).any()):
                at = int(keys[1:][keys[1:] == keys[:-1]][0])
                raise InputError(f"Feature {at % d_sae} is given twice for row {at // d_sae}.")
            rows, indices, values = rows[order], indices[order], values[order]
        return cls(rows, indices, values, n_rows, d_sae)

    @property
    def n_active(self) -> int:
        """Number of entries."""
        return self.values.shape[0]

    @property
    def keys(self) -> Int[Tensor, " active"]:
        """`row * d_sae + index` of each entry, strictly ascending."""
        return self.rows * self.d_sae + self.indices

    def to_dense(self) -> Float[Tensor, "row d_sae"]:
        """Returns the dense array; for tests and small dictionaries only."""
        dense = torch.zeros(self.n_rows, self.d_sae, dtype=self.values.dtype, device=self.values.device)
        dense[self.rows, self.indices] = self.values
        return dense

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "SparseFeatures":
        """Returns the entries on another device or with another type of value."""
        device = self.values.device if device is None else device
        return replace(
            self,
            rows=self.rows.to(device),
            indices=self.indices.to(device),
            values=self.values.to(device=device, dtype=dtype or self.values.dtype),
        )

    def with_values(self, values: Float[Tensor, " active"]) -> "SparseFeatures":
        """Returns the same entries with other values."""
        return replace(self, values=values)

    def select(self, mask: Bool[Tensor, " active"]) -> "SparseFeatures":
        """Returns the entries where `mask` is true; rows and width stay."""
        return replace(self, rows=self.rows[mask], indices=self.indices[mask], values=self.values[mask])

    def row_offsets(self) -> Int[Tensor, " row_and_one"]:
        """Returns where each row's entries begin, [n_rows + 1]: row `r` holds `offsets[r]` up to `offsets[r + 1]`."""
        return torch.searchsorted(self.rows, torch.arange(self.n_rows + 1, device=self.rows.device))

    def unique_indices(self) -> tuple[Int[Tensor, " unique"], Int[Tensor, " active"]]:
        """Returns the distinct features, ascending, and for each entry its place among them."""
        unique, inverse = torch.unique(self.indices, return_inverse=True)
        return unique, inverse

    def find(self, rows: Int[Tensor, " k"], indices: Int[Tensor, " k"]) -> Int[Tensor, " k"]:
        """Returns the entry that holds each (row, index), -1 where that feature is not active."""
        wanted = rows * self.d_sae + indices
        if not self.n_active:
            return torch.full_like(wanted, -1)
        keys = self.keys
        at = torch.searchsorted(keys, wanted).clamp_max(self.n_active - 1)
        inside = (indices >= 0) & (indices < self.d_sae) & (rows >= 0) & (rows < self.n_rows)
        return torch.where((keys[at] == wanted) & inside, at, -1)

    def value_at(self, rows: Int[Tensor, " k"], indices: Int[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Returns the activation at each (row, index), 0 where that feature is not active."""
        at = self.find(rows, indices)
        if not self.n_active:
            return torch.zeros(at.shape, dtype=self.values.dtype, device=self.values.device)
        return torch.where(at >= 0, self.values[at.clamp_min(0)], 0)

    def union_with(self, other: "SparseFeatures") -> "tuple[SparseFeatures, SparseFeatures]":
        """Returns both on the union of their entries: equal rows and indices, and 0 where only the other one is active.

        Raises:
            InputError: The two differ in rows or width.
        """
        if (self.n_rows, self.d_sae) != (other.n_rows, other.d_sae):
            raise InputError(
                f"Features of {self.n_rows} rows of {self.d_sae} can't be joined with {other.n_rows} rows "
                f"of {other.d_sae}."
            )
        keys = torch.unique(torch.cat([self.keys, other.keys]))
        rows, indices = keys // self.d_sae, keys % self.d_sae
        mine, theirs = self.value_at(rows, indices), other.value_at(rows, indices)
        return (
            SparseFeatures(rows, indices, mine, self.n_rows, self.d_sae),
            SparseFeatures(rows, indices, theirs, self.n_rows, self.d_sae),
        )

    @staticmethod
    def concatenate(parts: "Iterable[SparseFeatures]") -> "SparseFeatures":
        """Returns the rows of all parts, one part below the other.

        Raises:
            InputError: There is no part, or widths differ.
        """
        parts = list(parts)
        if not parts or len({p.d_sae for p in parts}) > 1:
            widths = sorted({p.d_sae for p in parts})
            raise InputError(
                f"Features are joined row-wise from one or more parts of equal width; got widths {widths}."
            )
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.n_rows)
        return SparseFeatures(
            torch.cat([p.rows + start for p, start in zip(parts, starts, strict=False)]),
            torch.cat([p.indices for p in parts]),
            torch.cat([p.values for p in parts]),
            starts[-1],
            parts[0].d_sae,
        )


@dataclass(frozen=True, slots=True)
class Encoding:
    """What `Dictionary.encode` returns: `x_hat = scale * (sum_i f_i * decoder_row_i) + bias`, plus a skip path if any.

    Attributes:
        features: Active features of every row.
        scale: Factor of each row's features in the reconstruction, of dictionaries that normalise their input and undo
            it; `None` means 1.
        biases: For each output, what of the reconstruction no feature carries, the skip path left out; one row where
            all rows share it.
    """

    features: SparseFeatures
    scale: Float[Tensor, " row"] | None
    biases: tuple[Float[Tensor, "#row _d_out"], ...]
