"""Dictionaries on disk: SAELens' folders (`cfg.json` + `sae_weights.safetensors`), mapped and read on demand.

Opening a folder reads the configuration and the header of the weights, some kilobytes; rows and columns are fetched
when they are asked for. The layout is SAELens' (W_enc [d_in, d_sae], W_dec [d_sae, d_out]; `sae_lens/saes/*.py`), the
container is safetensors' (8 bytes of header length, a JSON header, the raw tensors).
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.config import parse_config, to_saelens
from circuitsae.dictionaries.marks import marked
from circuitsae.dictionaries.weights import Weights, pieces
from circuitsae.errors import DictionaryError
from circuitsae.files import making, replacing

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20
_MAX_CONFIG = 16 << 20


class Entry(NamedTuple):
    """One tensor of a safetensors file: its type, shape and bytes `start` to `stop` of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class SafetensorsFile:
    """A safetensors file mapped into memory. The header is validated in full when it is opened.

    Attributes:
        path: The file.
        entries: Its tensors by name.

    Raises:
        DictionaryError: The file is missing, truncated, has a damaged header, offsets that overlap or leave gaps, or a
            tensor that is not of a floating type.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._map: mmap.mmap | None = None
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                self.entries = _read_header(self.path, file.read(8), file, size)
        except FileNotFoundError:
            raise DictionaryError(f"There is no weights file {self.path}.") from None
        except OSError as error:
            raise DictionaryError(f"{self.path} can't be read: {error.strerror or error}.") from error
        self._size = size
        self._hash: str | None = None

    def view(self, name: str) -> Tensor:
        """Returns a tensor that shares the mapped bytes: nothing is read until it is used.

        Raises:
            DictionaryError: The file has shrunk or vanished since it was opened.
        """
        dtype, shape, start, stop = self.entries[name]
        if start == stop:
            return torch.zeros(shape, dtype=dtype)
        mapped = self._mapped()
        if start % dtype.itemsize:  # the format allows it, vector loads may not
            return torch.frombuffer(bytearray(mapped[start:stop]), dtype=dtype).view(shape)
        return torch.frombuffer(mapped, dtype=dtype, count=math.prod(shape), offset=start).view(shape)

    def release(self) -> None:
        """Forgets the mapping; it goes when the last tensor that shares it does."""
        self._map = None

    def sha256(self) -> str:
        """Returns the sha256 of the file, hexadecimal; computed once."""
        if self._hash is None:
            with open(self.path, "rb") as file:
                self._hash = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hash

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            try:
                with open(self.path, "rb") as file:
                    if os.fstat(file.fileno()).st_size != self._size:
                        raise DictionaryError(
                            f"{self.path} has changed since it was opened; open the dictionary again."
                        )
                    # copy-on-write: torch wants a writable buffer, the file stays untouched
                    self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                raise DictionaryError(f"{self.path} can't be read: {error.strerror or error}.") from error
        return self._map


class FileWeights(Weights):
    """Tensors of one or more safetensors files.

    Args:
        tensors: For each name a file, the name of the tensor in it, and whether it is stored transposed.
    """

    def __init__(self, tensors: Mapping[str, tuple[SafetensorsFile, str, bool]]) -> None:
        super().__init__()
        self._tensors = dict(tensors)
        self._files = list({id(file): file for file, _, _ in self._tensors.values()}.values())
        self.origin = ", ".join(str(file.path) for file in self._files)

    @property
    def names(self) -> list[str]:
        """Names of the tensors, sorted."""
        return sorted(self._tensors)

    def view(self, name: str) -> Tensor:
        """Returns a tensor that shares the mapped file."""
        file, key, transposed = self._tensors[name]
        return file.view(key).T if transposed else file.view(key)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns a tensor's shape, from the header."""
        file, key, transposed = self._tensors[name]
        shape = file.entries[key].shape
        return shape[::-1] if transposed else shape

    def dtype(self, name: str) -> torch.dtype:
        """Returns the type a tensor is stored in, from the header."""
        file, key, _ = self._tensors[name]
        return file.entries[key].dtype

    def release(self) -> None:
        """Unmaps the files, once no tensor of theirs is in use."""
        super().release()
        for file in self._files:
            file.release()

    def fingerprint(self) -> str:
        """Returns the sha256 of the file; of several files, that of their hashes in a row."""
        hashes = [file.sha256() for file in self._files]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def plain(name: str) -> str:
    """Returns a tensor's name without what torch.compile puts before it."""
    return name.removeprefix("_orig_mod.")


def read_folder(
    path: str | os.PathLike[str],
    *,
    hook_in: str | None = None,
    hook_outs: Sequence[str] | None = None,
    source: str | None = None,
) -> Dictionary:
    """Opens a dictionary stored in SAELens' format; its weights are read when they are needed.

    Args:
        path: Folder with `cfg.json` and `sae_weights.safetensors`.
        hook_in: Hook point it reads, where the configuration names none or another spelling is wanted.
        hook_outs: Hook points it writes, likewise.
        source: Where it is from, as circuits will record it; the path by default.

    Raises:
        DictionaryError: A file is missing or damaged, the architecture is not supported, tensors are missing or of the
            wrong shape, or a hook point is not named.
    """
    folder = Path(path)
    cfg = marked(read_json(folder / CONFIG), str(folder.absolute()) if source is None else source)
    file = SafetensorsFile(folder / WEIGHTS)
    weights = FileWeights({plain(name): (file, name, False) for name in file.entries if name != "scaling_factor"})
    _check_scaling_factor(file, cfg)
    config = parse_config(cfg, origin=str(folder / CONFIG), hook_in=hook_in, hook_outs=hook_outs)
    return Dictionary(config, weights, source=str(path) if source is None else source)


def save_folder(dictionary: Dictionary, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
    """Writes a dictionary in SAELens' format, so that `read_folder` and SAELens itself can open it.

    Each file is written under a temporary name and moved into place, the configuration last: a folder that is not
    complete is not taken for a dictionary.

    Args:
        dictionary: What to write.
        path: Folder, made if need be.
        dtype: Type of the stored weights; as they are by default.

    Returns:
        The folder.

    Raises:
        InputError: The folder can't be written.
        DictionaryError: Weights don't fit the type, or a setting is NaN or infinite.
    """
    folder = Path(path)
    weights = dictionary.weights
    if not weights.names:
        raise DictionaryError(
            f"The dictionary at {dictionary.site} ({dictionary.architecture}) has no weights to save."
        )
    views = {name: weights.view(name) for name in weights.names}
    stored = dtype or max((v.dtype for v in views.values()), key=lambda d: d.itemsize)
    cfg = to_saelens(dictionary.config, dictionary.d_in, dictionary.d_sae, dictionary.d_out, stored)
    try:
        text = json.dumps(cfg, indent=1, allow_nan=False) + "\n"
    except ValueError:
        raise DictionaryError(
            f"The settings of the dictionary at {dictionary.site} hold NaN or infinity, which JSON can't; expected numbers."
        ) from None
    place = contextlib.nullcontext(folder) if folder.is_dir() else making(folder)
    with place as made, replacing(made / CONFIG) as settings, replacing(made / WEIGHTS) as weights_file:
        settings.write_text(text, encoding="utf-8")
        write_safetensors(weights_file, views, dtype=dtype)
        (made / CONFIG).unlink(missing_ok=True)  # never beside the weights of another dictionary
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Writes tensors to a safetensors file, converted piece by piece.

    Raises:
        DictionaryError: A weight is too large for `dtype`.
    """
    header: dict[str, Any] = {}
    at = 0
    for name in sorted(tensors):
        stored = dtype or tensors[name].dtype
        nbytes = tensors[name].numel() * stored.itemsize
        header[name] = {"dtype": _NAMES[stored], "shape": list(tensors[name].shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    encoded = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in sorted(tensors):
            for _, piece in pieces(tensors[name]):
                converted = piece.to(device="cpu", dtype=dtype or piece.dtype).contiguous()
                if dtype is not None and not bool(converted.isfinite().all()):
                    raise DictionaryError(
                        f"{name} holds weights that {str(dtype).removeprefix('torch.')} can't represent."
                    )
                file.write(converted.reshape(-1).view(torch.uint8).numpy().data)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        DictionaryError: The file is missing, not JSON, or not an object.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise DictionaryError(f"{path} has {path.stat().st_size} bytes, too many for a dictionary's settings.")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DictionaryError(
            f"There is no {path.name} in {path.parent}; a dictionary's folder holds {CONFIG} and {WEIGHTS}."
        ) from None
    except OSError as error:
        raise DictionaryError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"{path} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise DictionaryError(
            f"{path} holds a {type(found).__name__}; expected a JSON object with the dictionary's settings."
        )
    return found


def _check_scaling_factor(file: SafetensorsFile, cfg: Mapping[str, Any]) -> None:
    """Old files carry a `scaling_factor`; like SAELens we drop one that is all ones and support no other."""
    if "scaling_factor" in file.entries and not bool(
        torch.allclose(file.view("scaling_factor").float(), torch.ones(1))
    ):
        raise DictionaryError(
            f"{file.path} holds a scaling_factor that is not 1 (finetuning_scaling_factor "
            f"{cfg.get('finetuning_scaling_factor')!r}), which is not supported; fold it into the other weights first."
        )


def _read_header(path: Path, length_bytes: bytes, file: Any, size: int) -> dict[str, Entry]:
    """Parses and validates a safetensors header."""
    if len(length_bytes) < 8:
        raise DictionaryError(f"{path} is truncated: {size} bytes are too few for a safetensors file.")
    length = int.from_bytes(length_bytes, "little")
    if length > _MAX_HEADER:
        raise DictionaryError(f"{path} is not a safetensors file: its header would be {length} bytes long.")
    if 8 + length > size:
        raise DictionaryError(f"{path} is truncated: the header ends at byte {8 + length}, the file at byte {size}.")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise DictionaryError(f"{path} is not a safetensors file: its header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise DictionaryError(f"{path} is not a safetensors file: its header is no JSON object.")
    entries: dict[str, Entry] = {}
    for name, described in header.items():
        if name != "__metadata__":
            entries[name] = _entry(path, name, described, 8 + length)
    end = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop > size:
            raise DictionaryError(f"{path} is truncated: {name} ends at byte {entry.stop}, the file at byte {size}.")
        if entry.start != end:
            how = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise DictionaryError(
                f"{path} is damaged: {name} begins at byte {entry.start} and {how} (byte {end} expected)."
            )
        end = entry.stop
    if end != size:
        raise DictionaryError(f"{path} is damaged: {size - end} bytes follow the last tensor.")
    return entries


def _entry(path: Path, name: str, described: Any, data_start: int) -> Entry:
    """Returns one validated entry of the header."""
    try:
        kind, shape, (start, stop) = described["dtype"], tuple(described["shape"]), described["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise DictionaryError(
            f"{path} is damaged: the header's entry for {name} lacks dtype, shape or data_offsets."
        ) from None
    if not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
        raise DictionaryError(
            f"{path} is damaged: shape and offsets of {name} must be whole numbers, not {shape}, {start}, {stop}."
        )
    dtype = _DTYPES.get(str(kind))
    if dtype is None:
        raise DictionaryError(f"{name} in {path} has the type {kind!r}; weights must be {', '.join(_DTYPES)}.")
    nbytes = math.prod(shape) * dtype.itemsize
    if stop - start != nbytes:
        raise DictionaryError(
            f"{path} is damaged: {name} has {stop - start} bytes where {list(shape)} of {kind} take {nbytes}."
        )
    return Entry(dtype, shape, data_start + start, data_start + stop)
