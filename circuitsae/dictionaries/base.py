"""A dictionary: sparse features read at one hook point and written at another, whatever its architecture.

Everything that splicing and attribution need is here in the few operations that keep memory small: encode to sparse
activations, decoder rows and encoder rows of named features, their pre-activations differentiable in the input, and the
parts of the reconstruction that no feature carries. Normalisation, decoder-norm rescaling and `b_dec` in the input are
done as SAELens does them (`process_sae_in` in `sae_lens/saes/sae.py`) and folded so that, for every architecture,

    x_hat = scale * sum_i f_i * row_i + bias + skip(x).

>>> import torch
>>> W = torch.eye(3)
>>> sae = Dictionary.from_tensors(architecture="standard", hook_in="blocks.0.hook_resid_post",
...     tensors={"W_enc": W, "W_dec": W, "b_enc": torch.zeros(3), "b_dec": torch.zeros(3)})
>>> encoding = sae.encode(torch.tensor([[0.5, 0.0, -1.0]]))
>>> encoding.features.indices.tolist(), encoding.features.values.tolist()
([0], [0.5])
>>> sae.decode(encoding).tolist()
[[0.5, 0.0, 0.0]]
"""

import itertools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitsae.dictionaries.active import Encoding, SparseFeatures
from circuitsae.dictionaries.architectures import ARCHITECTURES, IDENTITY, Architecture, Entries
from circuitsae.dictionaries.cache import CACHE
from circuitsae.dictionaries.config import SETTINGS, DictionaryConfig, check_tensors, parse_config
from circuitsae.dictionaries.normalisation import Normalised, normalised
from circuitsae.dictionaries.products import multiply
from circuitsae.dictionaries.weights import MemoryWeights, Weights, picked_rows
from circuitsae.errors import DictionaryError, InputError, UnknownNameError

BLOCK_BYTES = 64 << 20
"""Bound on a dense block of pre-activations [row, feature]; longer prompts are encoded in several."""

RANGE_BYTES = 8 << 20
"""The encoder is worked on in ranges of features of this size, which the processor's own cache can hold."""

PIECE_BYTES = 2 << 20
"""Decoder rows, and entries gathered from them, are worked on in pieces of this size, for the same reason."""

DENSE_SHARE = 48
"""A dense product over (rows x distinct features) replaces gathering when at least one in so many entries is wanted."""

_owners = itertools.count()


class Dictionary:
    """One dictionary at one site. Weights are read when needed; see `read_folder` and `from_tensors`.

    Attributes:
        config: Its settings.
        weights: Where its weights come from.
        hook_in: Hook point it reads.
        hook_outs: Hook points it writes; an SAE writes where it reads, a cross-layer transcoder to several.
        d_in: Width it reads, hook_z flattened to [head * d_head].
        d_out: Width it writes.
        d_sae: Number of features.
        source: Where it is from, as circuits record it.
        device: Where `decoder_rows` and its like are returned.
        dtype: Their type: float32 unless the weights are float64 or `to` says otherwise.
    """

    def __init__(self, config: DictionaryConfig, weights: Weights, *, source: str = "memory") -> None:
        self.config, self.weights, self.source = config, weights, source
        self._architecture: Architecture = ARCHITECTURES.get(config.architecture, IDENTITY)
        self.d_in, self.d_sae, self.d_out = self._shapes()
        is_double = any(weights.dtype(name) == torch.float64 for name in weights.names)
        self.dtype = torch.float64 if is_double else torch.float32
        self.device = torch.device("cpu")
        self._fingerprint: str | None = None
        self._read_before = False  # whether the encoder has been gone through since the last release
        self._owner = next(_owners)
        weakref.finalize(self, CACHE.release, self._owner)

    @classmethod
    def from_tensors(
        cls,
        *,
        architecture: str,
        hook_in: str,
        tensors: Mapping[str, Tensor],
        hook_outs: Sequence[str] | str | None = None,
        source: str = "memory",
        **cfg: Any,
    ) -> "Dictionary":
        """Returns a dictionary over tensors in memory, which are shared, not copied.

        Args:
            architecture: One of `ARCHITECTURES`.
            hook_in: Hook point it reads.
            tensors: W_enc [d_in, d_sae], W_dec [d_sae, d_out] (cross-layer: [d_sae, output, d_out]), b_dec [d_out]
                (cross-layer: [output, d_out]), and the architecture's own: b_enc, threshold, b_gate, b_mag, r_mag
                [d_sae], W_skip [d_out, d_in].
            hook_outs: Hook points it writes; transcoders need it.
            source: Where it is from, as circuits will record it.
            **cfg: Further settings by SAELens' names: k, normalize_activations, apply_b_dec_to_input, prepend_bos, ...

        Raises:
            UnknownNameError: A setting has no such name.
            DictionaryError: A setting or a tensor is missing or not possible, or a tensor is of the wrong shape.
        """
        for name in cfg:
            if name not in SETTINGS:
                raise UnknownNameError("setting of a dictionary", name, SETTINGS)
        prepend_bos = cfg.pop("prepend_bos", True)
        metadata = {"sae_lens_version": "6", "prepend_bos": prepend_bos, **cfg.pop("metadata", {})}
        config = parse_config(
            {"architecture": architecture, **cfg, "metadata": metadata},
            origin=f"The dictionary at {hook_in}",
            hook_in=hook_in,
            hook_outs=[hook_outs] if isinstance(hook_outs, str) else hook_outs,
        )
        config.metadata.pop("sae_lens_version", None)
        return cls(config, MemoryWeights(tensors, origin=f"the dictionary at {hook_in}"), source=source)

    def __repr__(self) -> str:
        writes = "" if self.hook_outs == (self.hook_in,) else f" -> {', '.join(self.hook_outs)}"
        shape = f"{self.d_in}x{self.d_sae}"
        return f"<{type(self).__name__} {self.architecture} {shape} {self.hook_in}{writes} from {self.source}>"

    @property
    def hook_in(self) -> str:
        """Hook point it reads."""
        return self.config.hook_in

    @property
    def hook_outs(self) -> tuple[str, ...]:
        """Hook points it writes."""
        return self.config.hook_outs

    @property
    def site(self) -> str:
        """Name of its site in node keys: the hook point it writes, or for several the one it reads."""
        return self.hook_outs[0] if len(self.hook_outs) == 1 else self.hook_in

    @property
    def architecture(self) -> str:
        """Name of its architecture."""
        return self.config.architecture

    @property
    def prepend_bos(self) -> bool:
        """Whether it was trained with a BOS token before the text."""
        return self.config.prepend_bos

    @property
    def reshape_activations(self) -> str:
        """ "hook_z" where [head, d_head] is flattened to the width it reads, else "none"."""
        return self.config.reshape_activations

    @property
    def metadata(self) -> dict[str, Any]:
        """What else its file says."""
        return self.config.metadata

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes another hook point than it reads."""
        return self._architecture.is_transcoder

    @property
    def is_cross_layer(self) -> bool:
        """Whether each feature has one decoder row per output, as in a cross-layer transcoder."""
        return self._architecture.is_cross_layer

    @property
    def has_skip(self) -> bool:
        """Whether a linear path leads from the input to the first output beside the features."""
        return self._architecture.has_skip

    @property
    def fingerprint(self) -> str:
        """The sha256 of its weights file, hexadecimal; computed when first asked for."""
        if self._fingerprint is None:
            self._fingerprint = self.weights.fingerprint()
        return self._fingerprint

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """Sets where rows are returned from now on, and as float32 or float64 (half precision means float32)."""
        if device is not None:
            device = torch.empty(0, device=device).device  # "cuda" and "cuda:0" are the same
            if device != self.device:
                self.release()
            self.device = device
        if dtype is not None:
            self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return self

    def release(self) -> None:
        """Drops converted weights and unmaps the file; the next call reads what it needs again."""
        CACHE.release(self._owner)
        self.weights.release()
        self._read_before = False

    def check_width(self, d_in: int, d_out: int | None = None) -> None:
        """Compares its widths with those of the model's hook points.

        Raises:
            DictionaryError: They differ; the message gives both.
        """
        if d_in != self.d_in:
            raise DictionaryError(
                f"The dictionary from {self.source} reads {self.d_in} numbers per position, but {self.hook_in} "
                f"has {d_in}: it was made for another model or hook point."
            )
        if d_out is not None and d_out != self.d_out:
            raise DictionaryError(
                f"The dictionary from {self.source} writes {self.d_out} numbers per position, but "
                f"{', '.join(self.hook_outs)} has {d_out}: it was made for another model or hook point."
            )

    # encoding

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "row d_in"]) -> Encoding:
        """Returns the active features of each row, sparse, and the parts of the reconstruction that none carries.

        Computed on `x`'s device, in float64 if `x` is, else in float32. Cost: one product with the encoder. Memory: a
        block of `BLOCK_BYTES` and a range of the encoder; from the second time on the encoder, if the cache has room.

        Raises:
            DictionaryError: `x` has the wrong width, or weights that were read hold NaN or infinity.
        """
        x = self._arithmetic(x)
        features = self._features(self._centred(self.normalise(x)))
        return Encoding(features, *self.scale_and_biases(x))

    @torch.no_grad()
    def encode_only(self, x: Float[Tensor, "row d_in"], indices: Int[Tensor, " k"]) -> Encoding:
        """Returns the encoding of each row with the features `indices` (ascending) alone, as if there were no others.

        Cost: one product with their encoder columns; where a fixed number of features per row stays active, with the
        whole encoder, since the others decide which.
        """
        if self._architecture.needs_k:
            encoding = self.encode(x)
            wanted = torch.isin(encoding.features.indices, indices.to(x.device))
            return replace(encoding, features=encoding.features.select(wanted))
        x = self._arithmetic(x)
        z, at = self._centred(self.normalise(x)), indices.to(x.device)
        u = z @ self._columns(indices, z.dtype, z.device).T
        rows, places, values = self._select(u, {name: v[at] for name, v in self._vectors(z.dtype, z.device).items()})
        features = SparseFeatures(rows, at[places], values, z.shape[0], self.d_sae)
        return Encoding(features, *self.scale_and_biases(x))

    def pre_activations(
        self,
        x: Float[Tensor, "row d_in"],
        rows: Int[Tensor, " k"],
        indices: Int[Tensor, " k"],
        *,
        frozen: bool = False,
    ) -> Float[Tensor, " k"]:
        """Returns, differentiable in `x`, the value of feature `indices[j]` at row `rows[j]` as if it were active.

        `W_enc_i . norm(x) + b_i` (Gated: the magnitude path; decoder-norm rescaling included), which equals the
        activation where the feature is active and has its slope. Reads only those features' encoder columns.

        Args:
            x: Inputs.
            rows: Row of each.
            indices: Feature of each.
            frozen: Holds the statistics of the dictionary's own input normalisation constant.
        """
        z = self._centred(self.normalise(x, frozen=frozen))
        unique, place = torch.unique(indices, return_inverse=True)
        columns, bias = self._encoder(unique, z.dtype, z.device)
        # the dense product keeps [row, distinct feature] for the backward pass, gathering several times [k, d_in]
        if z.shape[0] * unique.numel() <= max(DENSE_SHARE, self.d_in // 4) * indices.numel():
            return torch.addmm(bias, z, columns.T)[rows, place]
        return torch.linalg.vecdot(z.index_select(0, rows), columns[place]) + bias[place]

    def normalise(self, x: Float[Tensor, "row d_in"], *, frozen: bool = False) -> Float[Tensor, "row d_in"]:
        """Returns `norm(x)`, what `encoder_rows` are to be multiplied with; `x` itself for most dictionaries.

        Differentiable; `frozen` holds mean, deviation or norm constant.
        """
        return normalised(self._arithmetic(x), self.config.normalize_activations, frozen=frozen).x

    def scale_and_biases(self, x: Float[Tensor, "row d_in"]) -> tuple[Float[Tensor, " row"] | None, tuple[Tensor, ...]]:
        """Returns `scale` and `biases` of the encoding of `x` (see `Encoding`), differentiable in `x`."""
        normal = normalised(self._arithmetic(x), self.config.normalize_activations)
        scale = self._output_scale(normal)
        return None if scale is None else scale[:, 0], self._biases(normal)

    def encoder_rows(
        self, indices: Int[Tensor, " k"], *, dtype: torch.dtype | None = None
    ) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, " k"]]:
        """Returns directions and biases with `pre_activation = direction . norm(x) + bias`, `b_dec` folded in.

        Reads those columns of the encoder alone. Given on `device`, in `dtype` or the dictionary's own.
        """
        columns, bias = self._encoder(indices, dtype or self.dtype, self.device)
        if self.config.apply_b_dec_to_input:
            bias = bias - columns @ self._cached("b_dec", columns.dtype, self.device)
        return columns, bias

    # decoding

    def decoder_rows(
        self, indices: Int[Tensor, " k"], out: int = 0, *, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "k d_out"]:
        """Returns what one unit of each feature's activation adds to output `out`, up to the row's `scale`.

        Reads those rows alone. Given on `device`, in `dtype` or the dictionary's own.
        """
        dtype = dtype or self.dtype
        self._check_indices(indices)
        part = self._part(out)
        rows = self.weights.rows("W_dec", indices, dtype, self.device, part)
        if self.config.rescale_acts_by_decoder_norm:
            norm = rows.norm(dim=-1, keepdim=True)
            rows = rows / torch.where(norm > 0, norm, 1)
        return rows

    @torch.no_grad()
    def project(
        self, vectors: Float[Tensor, "row d_out"], rows: Int[Tensor, " k"], indices: Int[Tensor, " k"], out: int = 0
    ) -> Float[Tensor, " k"]:
        """Returns `decoder_row[indices[j]] . vectors[rows[j]]`; of a gradient, that is its slope along the feature.

        Decoder rows are read once per feature, in pieces, whatever `k` is.
        """
        result = torch.empty(indices.shape, dtype=vectors.dtype, device=vectors.device)
        dtype = arithmetic_dtype(vectors)
        for at, place, weights, is_dense in self._decoder_pieces(indices, vectors.shape[0], out, dtype, vectors.device):
            if is_dense:
                found = (vectors.to(dtype) @ weights.T)[rows[at], place]
            else:
                found = torch.linalg.vecdot(vectors[rows[at]].to(dtype), weights[place])
            result[at] = found.to(result.dtype)
        return result

    @torch.no_grad()
    def decode(
        self, encoding: Encoding, x: Float[Tensor, "row d_in"] | None = None, out: int = 0
    ) -> Float[Tensor, "row d_out"]:
        """Returns the reconstruction of output `out`, bias included, and the skip path if `x` is given.

        Raises:
            InputError: The encoding is of a dictionary of another width.
        """
        features = encoding.features
        if features.d_sae != self.d_sae:
            raise InputError(
                f"An encoding over {features.d_sae} features can't be decoded by a dictionary of {self.d_sae}."
            )
        result = self.weighted_sum(features, out)
        if encoding.scale is not None:
            result = result * encoding.scale[:, None]
        result = result + encoding.biases[out]
        skip = None if x is None else self.skip(x, out)
        return result if skip is None else result + skip

    @torch.no_grad()
    def weighted_sum(self, features: SparseFeatures, out: int = 0) -> Float[Tensor, "row d_out"]:
        """Returns `sum_i f_i * decoder_row_i` for every row; no scale, no bias."""
        values = features.values
        result = torch.zeros(features.n_rows, self.d_out, dtype=values.dtype, device=values.device)
        pieces = self._decoder_pieces(features.indices, features.n_rows, out, values.dtype, values.device)
        for at, place, weights, is_dense in pieces:
            if is_dense:
                dense = torch.zeros(features.n_rows, weights.shape[0], dtype=values.dtype, device=values.device)
                dense[features.rows[at], place] = values[at]
                result.addmm_(dense, weights)
            else:
                result.index_add_(0, features.rows[at], weights[place] * values[at, None])
        return result

    def skip(self, x: Float[Tensor, "row d_in"], out: int = 0) -> Float[Tensor, "row d_out"] | None:
        """Returns `W_skip @ x`, differentiable, or `None` where no linear path leads to output `out`."""
        if not self.has_skip or out != 0:
            return None
        x = self._arithmetic(x)
        return x @ self._cached("W_skip", x.dtype, x.device).T

    def reconstruct(
        self, x: Float[Tensor, "row d_in"], features: SparseFeatures, out: int = 0, *, frozen: bool = False
    ) -> Float[Tensor, "row d_out"]:
        """Returns the reconstruction as a function of `x` with the set of active features held fixed.

        Equals `decode(encode(x), x)` where `features` are those active at `x`, and has its gradient there (the one that
        passes "through the dictionary"). The graph holds encoder and decoder rows of each block's distinct features.
        """
        x = self._arithmetic(x)
        normal = normalised(x, self.config.normalize_activations, frozen=frozen)
        z = self._centred(normal.x)
        parts: list[Tensor] = []
        offsets = features.row_offsets()
        for start, stop in _row_blocks(
            offsets.tolist(), RANGE_BYTES // (max(self.d_in, self.d_out) * x.element_size())
        ):
            entries = slice(int(offsets[start]), int(offsets[stop]))
            unique, place = torch.unique(features.indices[entries], return_inverse=True)
            columns, bias = self._encoder(unique, x.dtype, x.device)
            mask = torch.zeros(stop - start, unique.numel(), dtype=x.dtype, device=x.device)
            mask[features.rows[entries] - start, place] = 1
            values = torch.addmm(bias, z[start:stop], columns.T) * mask
            parts.append(values @ self.decoder_rows(unique, out, dtype=x.dtype).to(x.device))
        result = torch.cat(parts) if parts else x.new_zeros(0, self.d_out)
        scale = self._output_scale(normal)
        result = (result if scale is None else result * scale) + self._biases(normal)[out]
        skip = self.skip(x, out)
        return result if skip is None else result + skip

    # what the above is made of

    def _shapes(self) -> tuple[int, int, int]:
        return check_tensors(self.config, self.weights)

    def _arithmetic(self, x: Tensor) -> Tensor:
        """Checks the width of an input and lifts half precision to float32."""
        if x.ndim != 2 or x.shape[1] != self.d_in:
            raise DictionaryError(
                f"The dictionary at {self.hook_in} (from {self.source}) reads rows of {self.d_in} numbers; "
                f"got shape {list(x.shape)}."
            )
        return x.to(arithmetic_dtype(x))

    def _centred(self, x: Tensor) -> Tensor:
        if not self.config.apply_b_dec_to_input:
            return x
        return x - self._cached("b_dec", x.dtype, x.device)

    def _output_scale(self, normal: Normalised) -> Tensor | None:
        """Factor of the features in the output, [row 1]. A transcoder does not undo its normalisation."""
        return None if self._architecture.is_transcoder else normal.scale

    def _biases(self, normal: Normalised) -> tuple[Tensor, ...]:
        """`b_dec` of every output, scaled and shifted as the output is."""
        b_dec = self._cached("b_dec", normal.x.dtype, normal.x.device).reshape(-1, 1, self.d_out)
        scale = self._output_scale(normal)
        if scale is None:
            return tuple(b_dec.clone())  # an encoding must not hold a mapped file
        return (b_dec[0] * scale if normal.shift is None else b_dec[0] * scale + normal.shift,)

    def _features(self, z: Tensor) -> SparseFeatures:
        """Encodes prepared rows, one range of features after another; where k are kept, whole rows are put together."""
        needs_k, dtype, device = self._architecture.needs_k, z.dtype, z.device
        vectors = self._vectors(dtype, device)
        parts: list[tuple[int, int, Entries]] = []  # first row, first feature, entries
        n_features = self.d_sae if needs_k else min(self.d_sae, self._range_step(dtype))
        rows_per_block = max(1, BLOCK_BYTES // (n_features * dtype.itemsize))
        blocks = [(start, z[start : start + rows_per_block]) for start in range(0, z.shape[0], rows_per_block)]
        # one array for all blocks: freed and made again, they would leave holes between the entries that stay
        scratch = z.new_empty(min(z.shape[0], rows_per_block), n_features)
        if needs_k:
            for row, block in blocks:
                u = scratch[: block.shape[0]]
                for start, stop, piece in self._encoder_ranges(dtype, device):
                    multiply(block, piece, out=u[:, start:stop])
                parts.append((row, 0, self._select(u, vectors)))
        else:
            for start, stop, piece in self._encoder_ranges(dtype, device):
                here = {name: vector[start:stop] for name, vector in vectors.items()}
                for row, block in blocks:
                    u = multiply(block, piece, out=scratch[: block.shape[0], : stop - start])
                    parts.append((row, start, self._select(u, here)))
        return self._assemble(parts, z)

    def _select(self, u: Tensor, vectors: Mapping[str, Tensor]) -> Entries:
        return self._architecture.activation.select(u, vectors, self.config.k)

    def _assemble(self, parts: list[tuple[int, int, Entries]], z: Tensor) -> SparseFeatures:
        if not parts:
            return SparseFeatures.empty(z.shape[0], self.d_sae, dtype=z.dtype, device=z.device)
        rows = torch.cat([entries[0] + row for row, _, entries in parts])
        indices = torch.cat([entries[1] + start for _, start, entries in parts])
        values = torch.cat([entries[2] for _, _, entries in parts])
        if any(start for _, start, _ in parts):
            order = (rows * self.d_sae + indices).argsort()
            rows, indices, values = rows[order], indices[order], values[order]
        return SparseFeatures(rows, indices, values, z.shape[0], self.d_sae)

    def _range_step(self, dtype: torch.dtype) -> int:
        return max(1, RANGE_BYTES // (self.d_in * dtype.itemsize))

    def _encoder_ranges(self, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[int, int, Tensor]]:
        """Yields (first feature, end, columns of W_enc) in pieces of about `RANGE_BYTES`, each good until the next.

        A first reading converts piece by piece, which costs no more than reading converted ones; only an encoder that
        is read again is converted whole for the cache, so that going once through many dictionaries fills no memory.
        """
        key, kept, buffer = self._key("W_enc", dtype, device), None, None
        step = self._range_step(dtype)
        if not self.weights.is_ready("W_enc", dtype, device):
            kept = CACHE.peek(key)
            if kept is None and self._read_before and CACHE.fits(self.d_in * self.d_sae * dtype.itemsize):
                kept = CACHE.get(key, lambda: self.weights.whole("W_enc", dtype, device))
            if kept is None:
                buffer = torch.empty(self.d_in * min(step, self.d_sae), dtype=dtype, device=device)
        for start in range(0, self.d_sae, step):
            stop = min(self.d_sae, start + step)
            if kept is not None:
                yield start, stop, kept[:, start:stop]
            else:
                yield start, stop, self.weights.block("W_enc", start, stop, buffer)
        self._read_before = True

    def _encoder(self, indices: Tensor, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Directions [k, d_in] and biases [k] with value = direction . z + bias; from the cache if they are there."""
        columns = self._columns(indices, dtype, device)
        activation, at = self._architecture.activation, indices.to(device)
        vectors = {name: self._cached(name, dtype, device)[at] for name in activation.vectors}
        if self.config.rescale_acts_by_decoder_norm:
            vectors["decoder_norm"] = self.weights.rows("W_dec", indices, dtype, device).norm(dim=-1)
        gain, bias = activation.affine(vectors)
        return columns if gain is None else columns * gain[:, None], bias

    def _columns(self, indices: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Encoder columns [k, d_in], from the cache if they are there."""
        self._check_indices(indices)
        kept = CACHE.peek(self._key("W_enc", dtype, device))
        if kept is not None:
            return picked_rows(kept.T, indices)
        return self.weights.columns("W_enc", indices, dtype, device)

    def _vectors(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        """Whole per-feature vectors that the activation needs."""
        vectors = {name: self._cached(name, dtype, device) for name in self._architecture.activation.vectors}
        if self.config.rescale_acts_by_decoder_norm:
            key = self._key("decoder_norm", dtype, device)
            vectors["decoder_norm"] = CACHE.get(key, lambda: self._decoder_norm(dtype, device))
        return vectors

    def _decoder_norm(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Norms of all decoder rows, read in pieces."""
        step = max(1, PIECE_BYTES // (self.d_out * dtype.itemsize))
        ranges = (torch.arange(at, min(at + step, self.d_sae)) for at in range(0, self.d_sae, step))
        return torch.cat([self.weights.rows("W_dec", piece, dtype, device).norm(dim=-1) for piece in ranges])

    def _cached(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.weights.is_ready(name, dtype, device):
            return self.weights.whole(name, dtype, device)
        return CACHE.get(self._key(name, dtype, device), lambda: self.weights.whole(name, dtype, device))

    def _key(self, name: str, dtype: torch.dtype, device: torch.device) -> tuple[int, str, torch.dtype, str]:
        return self._owner, name, dtype, str(device)

    def _part(self, out: int) -> int | None:
        if not 0 <= out < len(self.hook_outs):
            raise InputError(
                f"There is no output {out}: the dictionary at {self.hook_in} writes {', '.join(self.hook_outs)}."
            )
        return out if self._architecture.is_cross_layer else None

    def _check_indices(self, indices: Tensor) -> None:
        if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= self.d_sae):
            wrong = indices[(indices < 0) | (indices >= self.d_sae)]
            raise InputError(
                f"Feature {int(wrong[0])} is not in the dictionary at {self.site}, which has 0 to {self.d_sae - 1}."
            )

    def _decoder_pieces(
        self, indices: Tensor, n_rows: int, out: int, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, bool]]:
        """Goes through entries feature by feature, so that each decoder row is read once and little is held at a time.

        Yields (some of the entries, the place of each in the rows, distinct decoder rows, whether so many entries want
        them that a dense product over all `n_rows` is best). Neither rows nor, where they are to be gathered, entries
        are more than fit `PIECE_BYTES`.
        """
        if not indices.numel():
            return
        step = max(1, PIECE_BYTES // (self.d_out * dtype.itemsize))
        ascending, order = indices.sort()
        unique, counts = torch.unique_consecutive(ascending, return_counts=True)
        ends = [0, *counts.cumsum(0).tolist()]
        for first in range(0, unique.numel(), step):
            last = min(first + step, unique.numel())
            rows = self.decoder_rows(unique[first:last], out, dtype=dtype).to(device)
            places = torch.repeat_interleave(torch.arange(last - first, device=indices.device), counts[first:last])
            start, stop = ends[first], ends[last]
            is_dense = n_rows * (last - first) <= DENSE_SHARE * (stop - start)
            entries = stop - start if is_dense else step
            for at in range(start, stop, entries):
                end = min(stop, at + entries)
                yield order[at:end], places[at - start : end - start], rows, is_dense


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """Returns the type that a dictionary computes in, given such an input: float64 or float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _row_blocks(offsets: list[int], entries: int) -> list[tuple[int, int]]:
    """Cuts rows into blocks of at most `entries` entries (one row at least)."""
    blocks: list[tuple[int, int]] = []
    start = 0
    for stop in range(1, len(offsets)):
        if stop - start > 1 and offsets[stop] - offsets[start] > entries:
            blocks.append((start, stop - 1))
            start = stop - 1
    if len(offsets) > 1:
        blocks.append((start, len(offsets) - 1))
    return blocks
