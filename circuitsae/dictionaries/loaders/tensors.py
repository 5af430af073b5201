"""Weights as strangers' formats keep them: numpy's archives read in place, pickles read without running them, and
safetensors with a few small tensors beside them.
"""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from circuitsae.dictionaries.reader import FileWeights, SafetensorsFile, plain
from circuitsae.dictionaries.weights import MemoryWeights, Weights, pieces
from circuitsae.errors import DictionaryError

_MAX_PACKED = 64 << 20
"""What a compressed member of an archive may unpack to, unless it shrank by no more than weights do."""

_MAX_RATIO = 8
_MAX_MEMBERS = 10_000
_LOCAL_HEADER = 30  # bytes of a zip member's header before its name


class Member(NamedTuple):
    """One array of an archive: its type, shape, order, and the byte at which its numbers begin (None: compressed)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    start: int | None
    info: zipfile.ZipInfo
    header: int


class Archive:
    """A `.npz` file. No pickle is ever loaded from it; what is stored uncompressed is read where it lies.

    Attributes:
        path: The file.
        members: Its arrays by name.

    Raises:
        DictionaryError: It is missing, damaged, or holds something other than floating-point arrays.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map: np.memmap | None = None
        try:
            self.size = self.path.stat().st_size
            with zipfile.ZipFile(self.path) as archive:
                infos = archive.infolist()
                if len(infos) > _MAX_MEMBERS:
                    raise DictionaryError(f"{self.path} holds {len(infos)} members; a dictionary has a handful.")
                self.members = {i.filename.removesuffix(".npy"): self._member(archive, i) for i in infos}
        except FileNotFoundError:
            raise DictionaryError(f"There is no weights file {self.path}.") from None
        except DictionaryError:
            raise
        except Exception as error:  # zipfile and numpy have many ways of saying that a header makes no sense
            raise DictionaryError(f"{self.path} is not a readable .npz file: {_first_line(error)}.") from error

    def array(self, name: str) -> np.ndarray:
        """Returns an array, in place where it is stored so; its numbers need not be aligned."""
        dtype, shape, is_fortran, start, info, header = self.members[name]
        count = int(np.prod(shape, dtype=np.int64))
        if start is None:
            try:
                with zipfile.ZipFile(self.path) as archive, archive.open(info) as packed:
                    raw = packed.read(header + count * dtype.itemsize)[header:]
                    flat = np.frombuffer(raw, dtype=dtype, count=count)
            except Exception as error:
                raise DictionaryError(f"{name} in {self.path} can't be unpacked: {_first_line(error)}.") from error
        else:
            if self._map is None:
                if self.path.stat().st_size != self.size:
                    raise DictionaryError(f"{self.path} has changed since it was opened; open the dictionary again.")
                self._map = np.memmap(self.path, mode="r", dtype=np.uint8)
            flat = self._map[start : start + count * dtype.itemsize].view(dtype)
        return flat.reshape(shape, order="F" if is_fortran else "C")

    def release(self) -> None:
        """Unmaps the file once no array of it is in use."""
        self._map = None

    def sha256(self) -> str:
        """Returns the sha256 of the file, hexadecimal."""
        return file_hash(self.path)

    def _member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
        if info.flag_bits & 1:
            raise DictionaryError(f"{info.filename} in {self.path} is encrypted.")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            if version not in read:
                raise DictionaryError(
                    f"{info.filename} in {self.path} is of numpy's format {version}; expected 1 or 2."
                )
            shape, is_fortran, dtype = read[version](member)
            header = member.tell()
        if dtype.hasobject:
            raise DictionaryError(
                f"{info.filename} in {self.path} holds pickled objects, which are not loaded; expected plain numbers."
            )
        if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8) or not dtype.isnative:
            raise DictionaryError(f"{info.filename} in {self.path} holds {dtype}; expected floating-point numbers.")
        shape = tuple(int(n) for n in shape)
        nbytes = int(np.prod(shape, dtype=object)) * dtype.itemsize if shape else dtype.itemsize
        if any(n < 0 for n in shape) or header + nbytes != info.file_size:
            raise DictionaryError(
                f"{info.filename} in {self.path} is damaged: {list(shape)} of {dtype} do not fit {info.file_size} bytes."
            )
        if info.compress_type != zipfile.ZIP_STORED:
            if info.file_size > max(_MAX_PACKED, _MAX_RATIO * info.compress_size):
                raise DictionaryError(
                    f"{info.filename} in {self.path} would unpack from {info.compress_size} to {info.file_size} bytes, "
                    "which no weights do; it is not read."
                )
            return Member(dtype, shape, is_fortran, None, info, header)
        return Member(dtype, shape, is_fortran, self._start(info) + header, info, header)

    def _start(self, info: zipfile.ZipInfo) -> int:
        """Returns where a member's bytes begin, which only its own header tells."""
        with open(self.path, "rb") as file:
            file.seek(info.header_offset)
            header = file.read(_LOCAL_HEADER)
        start = info.header_offset + _LOCAL_HEADER + int.from_bytes(header[26:28], "little")
        start += int.from_bytes(header[28:30], "little")
        if len(header) < _LOCAL_HEADER or start + info.file_size > self.size:
            raise DictionaryError(f"{self.path} is truncated: {info.filename} ends beyond the end of the file.")
        return start


class ArchiveWeights(Weights):
    """Tensors of a `.npz` file, read by rows, columns and ranges as they are asked for.

    Args:
        archive: The file.
        names: For each tensor the array's name in the file.
        factors: What tensors are multiplied with when they are read.
    """

    def __init__(self, archive: Archive, names: Mapping[str, str], factors: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self._archive, self._names, self._factors = archive, dict(names), dict(factors or {})
        self.origin = str(archive.path)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, from its header."""
        return self._archive.members[self._names[name]].shape

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type a tensor is stored in, from its header."""
        return torch.from_numpy(np.empty(0, dtype=self._archive.members[self._names[name]].dtype)).dtype

    def is_ready(self, name: str, dtype: torch.dtype, device: torch.device) -> bool:
        """Tells that nothing can be used as it lies: an archive's numbers need not be aligned."""
        return False

    def view(self, name: str) -> Tensor:
        """Returns a copy of a whole tensor."""
        return self._tensor(name, self._array(name))

    def whole(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns a whole tensor, converted piece by piece.

        Raises:
            DictionaryError: It holds NaN or infinity.
        """
        array = self._array(name)
        result = torch.empty(array.shape, dtype=dtype, device=device)
        if not array.ndim:
            return self._check(name, result.copy_(self._tensor(name, array)))
        for at, piece in pieces(result):
            self._check(name, piece.copy_(self._tensor(name, array[at : at + piece.shape[0]])))
        return result

    def block(self, name: str, start: int, stop: int, buffer: Tensor | None) -> Tensor:
        """Returns columns `start` to `stop` of a matrix, converted.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        columns = self._tensor(name, self._array(name)[:, start:stop])
        if buffer is not None:
            columns = buffer[: columns.numel()].view(columns.shape).copy_(columns)
        return self._check(name, columns)

    def rows(
        self, name: str, indices: Int[Tensor, " k"], dtype: torch.dtype, device: torch.device, part: int | None = None
    ) -> Tensor:
        """Returns rows of a tensor, converted. Reads nothing but those rows.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        array = self._array(name) if part is None else self._array(name)[:, part]
        picked = self._tensor(name, array[indices.cpu().numpy()])
        return self._check(name, picked.to(device=device, dtype=dtype))

    def columns(self, name: str, indices: Int[Tensor, " k"], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns columns of a matrix as rows, converted. Reads nothing but those columns.

        Raises:
            DictionaryError: They hold NaN or infinity.
        """
        picked = self._tensor(name, self._array(name)[:, indices.cpu().numpy()].T)
        return self._check(name, picked.to(device=device, dtype=dtype))

    def release(self) -> None:
        """Unmaps the file."""
        super().release()
        self._archive.release()

    def fingerprint(self) -> str:
        """Returns the sha256 of the file."""
        return self._archive.sha256()

    def _array(self, name: str) -> np.ndarray:
        return self._archive.array(self._names[name])

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.array(array, order="C"))
        return tensor * self._factors[name] if name in self._factors else tensor


class MixedWeights(FileWeights):
    """Tensors of safetensors files, and small ones that were made from them.

    Args:
        tensors: As for `FileWeights`.
        made: The others, by name.
    """

    def __init__(
        self, tensors: Mapping[str, tuple[SafetensorsFile, str, bool]], made: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(tensors)
        self._made = dict(made or {})

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted({*self._tensors, *self._made})

    def view(self, name: str) -> Tensor:
        """Returns a tensor that shares the mapped file, or one that was made."""
        return self._made[name] if name in self._made else super().view(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape."""
        return tuple(self._made[name].shape) if name in self._made else super().shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type a tensor is stored in."""
        return self._made[name].dtype if name in self._made else super().dtype(name)


class PickledWeights(MemoryWeights):
    """Tensors of a file that torch wrote, mapped where torch can map them; released ones are read again.

    Args:
        path: The file.
        choose: Gets what `read_pickle` returns and gives the tensors by name.
    """

    def __init__(self, path: Path, choose: Callable[[], dict[str, Tensor]]) -> None:
        super().__init__({}, origin=str(path))
        self._path, self._choose = path, choose
        self._tensors = {name: tensor.detach() for name, tensor in choose().items()}
        self._names = sorted(self._tensors)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return self._names

    def view(self, name: str) -> Tensor:
        """Returns a tensor as it is stored.

        Raises:
            DictionaryError: The file has changed since it was opened.
        """
        if not self._tensors:
            self._tensors = {key: tensor.detach() for key, tensor in self._choose().items()}
        if name not in self._tensors:
            raise DictionaryError(f"{self._path} has changed since it was opened; open the dictionary again.")
        return self._tensors[name]

    def release(self) -> None:
        """Drops the tensors; the file is read again when one is asked for."""
        super().release()
        self._tensors = {}

    def fingerprint(self) -> str:
        """Returns the sha256 of the file."""
        return file_hash(self._path)


class Inert:
    """What stands in for a class that a pickle names and that holds settings: its attributes, and no code."""


def read_pickle(path: Path, inert: tuple[str, ...] = ()) -> Any:
    """Returns what torch saved in a file, of tensors, containers and numbers alone: no code of it is run.

    Args:
        path: The file.
        inert: Full names of classes of which the attributes are wanted; `Inert` objects take their place.

    Raises:
        DictionaryError: It is missing or damaged, or it would run code, whatever that does.
    """
    if not path.is_file():
        raise DictionaryError(f"There is no weights file {path}.")
    size = path.stat().st_size
    is_mapped = _check_stored(path, size)
    allowed: list[Any] = [(type("Inert", (Inert,), {}), name) for name in inert]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # weights_only: torch's own unpickler, which knows how to rebuild tensors and refuses every other call
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped or None)
    except Exception as error:  # a stranger's bytes can make any error of torch's unpickler
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise DictionaryError(
                f"{path} holds more than tensors, so loading it could run a stranger's code: it is not read, and nothing "
                "of it was run. Save the weights as safetensors, or as a plain state dict."
            ) from error
        raise DictionaryError(f"{path} is not a readable torch file: {_first_line(error)}.") from error
    return found


def tensors_of(found: Any, path: Path) -> dict[str, Tensor]:
    """Returns the floating-point tensors of a state dict, and of its whole numbers those of one element.

    Raises:
        DictionaryError: It is no state dict, or a tensor claims more numbers than the file has.
    """
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise DictionaryError(f"{path} holds a {type(found).__name__}; expected a state dict, of tensors by name.")
    size = path.stat().st_size
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise DictionaryError(f"{name} in {path} is not a plain tensor ({value.layout}, {value.dtype}).")
        if value.numel() * value.element_size() > size:
            raise DictionaryError(f"{name} in {path} claims {value.numel()} numbers, more than the file holds.")
        tensors[plain(name)] = value
    return tensors


def file_hash(path: Path) -> str:
    """Returns the sha256 of a file, hexadecimal.

    Raises:
        DictionaryError: It can't be read any more.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DictionaryError(f"{path} can't be read: {error.strerror or error}.") from error


def _check_stored(path: Path, size: int) -> bool:
    """Tells whether torch wrote a zip file, which can be mapped; it never compresses one, so a bomb does not pass."""
    try:
        if not zipfile.is_zipfile(path):
            return False
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # zipfile has many ways of saying that a directory makes no sense
        raise DictionaryError(f"{path} is not a readable torch file: {_first_line(error)}.") from error
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(i.file_size for i in infos) > size:
        raise DictionaryError(f"{path} is not a file that torch wrote: parts of it are compressed or overlap.")
    return True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
