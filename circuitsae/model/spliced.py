"""A model with dictionaries attached. Nothing is stored on the model itself: hooks live for one forward pass."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import DictionaryError, InputError, UnknownNameError
from circuitsae.folders import shareable
from circuitsae.model.hooks import Hook, HookedModel
from circuitsae.task.vocabulary import Vocabulary

OnRead = Callable[[int, Tensor], None]
"""Called with a dictionary's number and what it reads, `[batch pos d_in]`."""
OnWrite = Callable[[str, Tensor], Tensor | None]
"""Called with a hook point that dictionaries write to and its value, `[batch pos d_out]`; may give a replacement."""


class SplicedModel:
    """A TransformerLens model and the dictionaries that describe its activations.

    At every site `x_out = sum_i f_i W_dec[i] + b_dec + error`, so the spliced model computes exactly what the model
    computes; what changes is that features and errors can be read, differentiated and set.

    Args:
        model: A TransformerBridge, or a HookedTransformer where transformer_lens is older than 4.
        dictionaries: Folders in SAELens' format, `Dictionary` objects, sae_lens objects, or names that a loader knows.
        skip_positions: Positions at which no dictionary is applied: the whole vector there is the error node's.
        skip_sinks: Neither are they where a vector has more than this many times the prompt's median norm at its site:
            attention sinks, which dictionaries are commonly not trained on. `None` or infinity for no such rule.
        name: What saved circuits call the model; the configuration's name by default.
        prepend_bos: Whether text gets the model's BOS; what the dictionaries' configurations say by default.
        preset: Name of the preset that this came from, kept in saved circuits.

    Raises:
        UnknownNameError: A dictionary's hook point is not in the model.
        DictionaryError: A dictionary's width is not its hook point's, or two write to one hook point.
        SpliceError: `model` is not a TransformerLens model.
    """

    def __init__(
        self,
        model: Any,
        dictionaries: Iterable[Any],
        *,
        skip_positions: Sequence[int] = (),
        skip_sinks: float | None = None,
        name: str | None = None,
        prepend_bos: bool | None = None,
        preset: str | None = None,
    ) -> None:
        self.hooked = HookedModel(model)
        self.model = model
        self.dictionaries: tuple[Dictionary, ...] = tuple(_loaded(dictionaries))
        if not self.dictionaries:
            raise DictionaryError("No dictionary was given; expected at least one folder, name or Dictionary.")
        self.skip_positions = tuple(sorted({int(p) for p in skip_positions}))
        if skip_sinks is not None and not skip_sinks > 1:
            raise InputError(f"skip_sinks is {skip_sinks}; expected a multiple of the median norm above 1, or None.")
        self.skip_sinks = None if skip_sinks is None or math.isinf(skip_sinks) else float(skip_sinks)
        self.preset = preset
        self.revision: str | None = None
        """The commit of the hub's repository that the model is from, where `load` fetched it."""
        self.loading: Mapping[str, Any] | None = None
        """The arguments of `load` that give this model in another process, where there are such."""
        cfg = model.cfg
        self.name: str = name or str(getattr(cfg, "model_name", None) or type(model).__name__)
        self.n_layers = self.hooked.n_layers
        self.d_model: int = int(cfg.d_model)
        self.n_ctx: int | None = getattr(cfg, "n_ctx", None)
        if prepend_bos is None:
            prepend_bos = _agreed_bos(self.dictionaries)
        self.vocabulary = Vocabulary(
            getattr(model, "tokenizer", None),
            int(cfg.d_vocab_out if cfg.d_vocab_out > 0 else cfg.d_vocab),
            prepend_bos=prepend_bos,
        )
        self._name_of = self._same_points()
        self.reads = tuple(self._name_of[d.hook_in] for d in self.dictionaries)
        self.writers = self._find_writers()
        self.written = tuple(self.writers)
        device = self.hooked.device
        for dictionary in self.dictionaries:
            # Folded weights (decoder-norm rescaling) are computed in double precision for a model in double precision.
            dictionary.to(device, torch.float64 if self.hooked.dtype == torch.float64 else None)
        self._check_sites_unique()
        self._order: dict[str, int] | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The site ids, in the order of the dictionaries."""
        return tuple(d.site for d in self.dictionaries)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.hooked.device

    def canonical(self, hook: str) -> str:
        """Returns the one name that is used here for a hook point of the sites, where a Bridge knows several."""
        return self._name_of[hook]

    def dictionary(self, site: str) -> Dictionary:
        """Returns the dictionary attached at a site.

        Raises:
            UnknownNameError: None is.
        """
        return self.dictionaries[self.dictionary_number(site)]

    def dictionary_number(self, site: str) -> int:
        """Returns the number of the dictionary attached at a site, see `dictionary`."""
        if site not in self.sites:
            raise UnknownNameError("site of this spliced model", site, self.sites)
        return self.sites.index(site)

    def restrict(self, sites: Iterable[str]) -> "SplicedModel":
        """Returns the same model with only some of its sites.

        Raises:
            UnknownNameError: One of them is not attached.
        """
        chosen = [self.dictionary(site) for site in sites]
        keep = [d for d in self.dictionaries if any(d is c for c in chosen)]
        return SplicedModel(
            self.model,
            keep,
            skip_positions=self.skip_positions,
            skip_sinks=self.skip_sinks,
            name=self.name,
            prepend_bos=self.vocabulary.prepend_bos,
            preset=self.preset,
        )

    def skipping(self, positions: Sequence[int], *, sinks: bool = True) -> "SplicedModel":
        """Returns the same model with other positions at which no dictionary is applied, and perhaps no rule on sinks."""
        other = self.restrict(self.sites)
        if not sinks:
            other.skip_sinks = None
        other.skip_positions = tuple(sorted({int(p) for p in positions}))
        return other

    def kept_positions(self, n_tokens: int) -> list[int]:
        """Returns the positions that `skip_positions` leaves; of a run, `applied` says where dictionaries are applied."""
        skipped = {p % n_tokens for p in self.skip_positions if -n_tokens <= p < n_tokens}
        return [p for p in range(n_tokens) if p not in skipped]

    def no_sinks(self, norms: Float[Tensor, "pos"]) -> Bool[Tensor, "pos"]:
        """Returns which vectors of one prompt at a site, given their norms, are no attention sinks by `skip_sinks`."""
        return norms <= (math.inf if self.skip_sinks is None else self.skip_sinks) * norms.median()

    def applied(self, x_in: Sequence[Float[Tensor, "pos _d_in"]]) -> tuple[Int[Tensor, "_kept"], ...]:
        """Returns, for each dictionary, the positions at which it is applied, given what each reads on a prompt.

        Dictionaries that write to one hook point share its error nodes, and so their positions: what is a sink for one
        is skipped by all.
        """
        kept = torch.tensor(self.kept_positions(len(x_in[0])), device=self.device, dtype=torch.long)
        if self.skip_sinks is None or not len(kept):
            return (kept,) * len(self.dictionaries)
        masks = [self.no_sinks(x[kept].norm(dim=-1)) for x in x_in]
        for _ in masks:  # a cross-layer transcoder links what shares its hook points, so once is not always enough
            for writers in self.writers.values():
                shared = torch.stack([masks[number] for number, _ in writers]).all(0)
                for number, _ in writers:
                    masks[number] = shared
        return tuple(kept[mask] for mask in masks)

    def splice(self, on_read: OnRead | None = None, on_write: OnWrite | None = None) -> list[tuple[str, Hook]]:
        """Returns the hooks of one forward pass that visits every site.

        At a hook point an autoencoder reads before the write there (it reads what it re-expresses); all others read
        what was written. Activations come flattened to `[batch pos width]` (`hook_z` has a head axis in the model).
        """
        hooks: list[tuple[str, Hook]] = []
        for name in dict.fromkeys((*self.reads, *self.written)):
            own = [n for n, r in enumerate(self.reads) if r == name and self._writes(n, name)]
            others = [n for n, r in enumerate(self.reads) if r == name and not self._writes(n, name)]
            writes = name in self.writers and on_write is not None

            def hook(
                x: Tensor, name: str = name, own: list[int] = own, others: list[int] = others, writes: bool = writes
            ) -> Tensor | None:
                flat = x.flatten(2) if x.ndim > 3 else x
                self._check_width(name, flat.shape[-1])
                if on_read is not None:
                    for number in own:
                        on_read(number, flat)
                new = on_write(name, flat) if writes and on_write is not None else None
                if on_read is not None:
                    for number in others:
                        on_read(number, flat if new is None else new)
                return None if new is None else new.view(x.shape)

            hooks.append((name, hook))
        return hooks

    def order(self, name: str) -> int:
        """Returns when a hook point fires in a forward pass, counted over the sites' hook points (after a first run)."""
        if self._order is None:
            fired: dict[str, int] = {}

            def note(name: str) -> Hook:
                def hook(x: Tensor) -> None:
                    fired[name] = len(fired)

                return hook

            hooks = [(n, note(n)) for n in dict.fromkeys((*self.reads, *self.written))]
            with torch.no_grad():
                self.hooked.forward(torch.zeros(1, 1, dtype=torch.long, device=self.device), hooks, logits_at=[0])
            self._order = fired
        return self._order[self._name_of.get(name, name)]

    def describe(self) -> list[dict[str, Any]]:
        """Returns what saved circuits keep of the dictionaries."""
        return [
            {
                "site": d.site,
                "hook_in": d.hook_in,
                "hook_outs": list(d.hook_outs),
                "architecture": d.architecture,
                "d_sae": d.d_sae,
                "source": shareable(d.source),
                "fingerprint": d.fingerprint,
            }
            for d in self.dictionaries
        ]

    def _writes(self, number: int, name: str) -> bool:
        return any(n == number for n, _ in self.writers.get(name, ()))

    def _same_points(self) -> dict[str, str]:
        """Maps every hook point name in use to one name a `HookPoint`, since a Bridge has several for some."""
        chosen: dict[int, str] = {}
        same: dict[str, str] = {}
        for dictionary in self.dictionaries:
            for name in (*dictionary.hook_outs, dictionary.hook_in):
                same[name] = chosen.setdefault(id(self.hooked.point(name)), name)
        return same

    def _find_writers(self) -> dict[str, list[tuple[int, int]]]:
        """Finds who writes each hook point: `name -> [(number of the dictionary, which of its outputs)]`."""
        writers: dict[str, list[tuple[int, int]]] = {}
        for number, dictionary in enumerate(self.dictionaries):
            for out, name in enumerate(dictionary.hook_outs):
                writers.setdefault(self._name_of[name], []).append((number, out))
        for name, found in writers.items():
            several = [self.dictionaries[n] for n, _ in found]
            if len(several) > 1 and any(len(d.hook_outs) == 1 for d in several) and not _one_transcoder(several):
                raise DictionaryError(
                    f"Two dictionaries write to {name!r} ({', '.join(d.source for d in several)}); expected one, since "
                    "both would describe the same vector. Choose with sites=."
                )
        return writers

    def _check_sites_unique(self) -> None:
        sites = self.sites
        for site in sites:
            if sites.count(site) > 1:
                raise DictionaryError(f"Two dictionaries have the site {site!r}; expected one dictionary a site.")

    def _check_width(self, name: str, width: int) -> None:
        for number, dictionary in enumerate(self.dictionaries):
            if self.reads[number] == name and dictionary.d_in != width:
                raise DictionaryError(
                    f"The dictionary {dictionary.source} reads vectors of width {dictionary.d_in}, but {name!r} of "
                    f"{self.name} has width {width}; expected a dictionary trained on this model and hook point."
                )
            if self._writes(number, name) and dictionary.d_out != width:
                raise DictionaryError(
                    f"The dictionary {dictionary.source} writes vectors of width {dictionary.d_out}, but {name!r} of "
                    f"{self.name} has width {width}; expected a dictionary trained on this model and hook point."
                )


def _one_transcoder(dictionaries: Sequence[Dictionary]) -> bool:
    """Whether they are the layers of one cross-layer transcoder, which jointly write each hook point."""
    return all(d.is_cross_layer for d in dictionaries)


def _loaded(dictionaries: Iterable[Any]) -> Iterable[Dictionary]:
    if isinstance(dictionaries, (str, bytes)):
        raise InputError("Dictionaries are given as a list; expected [folder, ...], not one string.")
    for given in dictionaries:
        if isinstance(given, Dictionary):
            yield given
            continue
        from circuitsae.dictionaries.loaders import load_dictionary

        yield from load_dictionary(given)


def _agreed_bos(dictionaries: Sequence[Dictionary]) -> bool:
    wanted = {d.prepend_bos for d in dictionaries}
    if len(wanted) > 1:
        with_bos = [d.source for d in dictionaries if d.prepend_bos]
        raise DictionaryError(
            f"Some dictionaries were trained with a BOS token ({with_bos[0]}, ...) and some without; say which to use "
            "with prepend_bos=True or False."
        )
    return wanted.pop()
