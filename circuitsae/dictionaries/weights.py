"""Where a dictionary's weights come from: a mapped file or tensors in memory, read by rows, columns or blocks.

Whatever is read is checked for NaN and infinity then and there, so a damaged file is named by file and tensor, and what
is never touched costs nothing.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from circuitsae.errors import DictionaryError

CHUNK_BYTES = 8 << 20
"""Weights are converted and checked in pieces of this size, so that a conversion needs no second copy."""


class Weights(ABC):
    """Named tensors of one dictionary.

    Attributes:
        origin: What to call them in messages: a path, or "tensors in memory".
    """

    origin: str

    def __init__(self) -> None:
        self._checked: set[tuple[str, tuple[int, int] | None]] = set()  # what is used as it lies is checked once

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""

    @abstractmethod
    def view(self, name: str) -> Tensor:
        """Returns a tensor as it is stored, without a copy and unchecked."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a sha256 of the weights, hexadecimal."""

    def release(self) -> None:
        """Drops what can be read again."""
        self._checked.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape."""
        return tuple(self.view(name).shape)

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type a tensor is stored in."""
        return self.view(name).dtype

    def is_ready(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Tells whether a tensor can be used as it lies, with no conversion."""
        view = self.view(name)
        return view.dtype == dtype and view.device == device

    def whole(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a whole tensor: as it lies if type and device are right, else converted piece by piece.

        Raises:
            DictionaryError: It holds NaN or infinity.
        """
        view = self.view(name)
        flip = is_turned(view)  # go along the rows of the file
        if view.dtype == dtype and view.device == device:
            if (name, None) not in self._checked:
                for _, piece in pieces(view.T if flip else view):
                    self._check(name, piece)
                self._checked.add((name, None))
            return view
        converted = torch.empty_like(view, dtype=dtype, device=device)
        source, target = (view.T, converted.T) if flip else (view, converted)
        for at, piece in pieces(source):
            part = target[at : at + piece.shape[0]] if target.ndim else target
            part.copy_(piece)
            self._check(name, part)
        return converted

    def block(self, name: str, start: int, stop: int, buffer: Tensor | None) -> Tensor:
        """Returns columns `start` to `stop` of a matrix: as they lie, or converted into `buffer` if one is given.

        The buffer is flat; in it they lie as they are stored, since turning them takes longer than converting them.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        columns = self.view(name)[:, start:stop]
        if buffer is not None:
            stored = columns.T if is_turned(columns) else columns
            converted = buffer[: stored.numel()].view(stored.shape).copy_(stored)
            return self._check(name, converted.T if stored is not columns else converted)
        if (name, (start, stop)) not in self._checked:
            self._check(name, columns)
            self._checked.add((name, (start, stop)))
        return columns

    def rows(
        self, name: str, indices: Int[Tensor, " k"], dtype: torch.dtype, device: torch.device, part: int | None = None
    ) -> Tensor:
        """Returns rows of a tensor, converted; of `[d_sae, part, d_out]` only one part. Reads nothing but those rows.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        view = self.view(name)
        if part is not None:
            view = view[:, part]
        return self._check(name, picked_rows(view, indices).to(device=device, dtype=dtype))

    def columns(self, name: str, indices: Int[Tensor, " k"], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns columns of a matrix as rows `[k, d_in]`, converted. Reads nothing but those columns.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        return self._check(name, picked_rows(self.view(name).T, indices).to(device=device, dtype=dtype))

    def _check(self, name: str, piece: Tensor) -> Tensor:
        """Returns `piece` if all of it is finite. The sum is one fast pass; a suspicious one is looked at again."""
        if not bool(piece.sum().isfinite()) and not bool(piece.isfinite().all()):
            raise DictionaryError(
                f"{name} in {self.origin} holds NaN or infinity; the weights are damaged: "
                "fetch or train the dictionary again."
            )
        return piece


class MemoryWeights(Weights):
    """Tensors in memory, shared and not copied."""

    def __init__(self, tensors: Mapping[str, Tensor], origin: str = "tensors in memory") -> None:
        super().__init__()
        self.origin = origin
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._tensors)

    def view(self, name: str) -> Tensor:
        """Returns a tensor as it was given."""
        return self._tensors[name]

    def fingerprint(self) -> str:
        """Returns the sha256 over names, types, shapes and bytes, in the order of the names."""
        digest = hashlib.sha256()
        for name in self.names:
            tensor = self._tensors[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            for _, piece in pieces(tensor):
                digest.update(piece.contiguous().cpu().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def is_turned(tensor: Tensor) -> bool:
    """Whether a matrix is stored transposed: its columns, not its rows, lie together in memory."""
    return tensor.ndim == 2 and tensor.stride(0) < tensor.stride(1)


def picked_rows(tensor: Tensor, indices: Int[Tensor, " k"]) -> Tensor:
    """Returns some rows of a tensor, rows together in memory, whichever way the tensor itself lies there.

    `index_select` along the second axis copies all of a matrix that is not contiguous, so that is asked of one only that
    is; along the first it reads no more than it is asked for.
    """
    indices = indices.to(tensor.device)
    if tensor.ndim == 2 and tensor.T.is_contiguous():
        return tensor.T.index_select(1, indices).T.contiguous()
    return tensor.index_select(0, indices)


def pieces(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yields (first row, rows) of about `CHUNK_BYTES` each; a scalar is one piece."""
    if tensor.ndim == 0:
        yield 0, tensor
        return
    row_bytes = max(1, tensor[0].numel() * max(4, tensor.element_size())) if tensor.shape[0] else 1
    step = max(1, CHUNK_BYTES // row_bytes)
    for start in range(0, tensor.shape[0], step):
        yield start, tensor[start : start + step]
