"""From what a user writes to dictionaries: `load_dictionary` asks each loader plugin in turn whether it knows the form.

A loader is an object with `matches(spec)` and `load(spec, **options)`, registered under `circuitsae.loaders`. Built in
are folders on this machine and SAELens' releases; other forms are plugins like a stranger's. A plugin is asked in the
order of its `order` (0 by default, lowest first), then of its name.
"""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

from circuitsae import registry
from circuitsae.dictionaries import saelens
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.reader import CONFIG, WEIGHTS, read_folder
from circuitsae.errors import DictionaryError, InputError, PluginError, UnknownNameError, near_matches
from circuitsae.names import feature, sort_key


@runtime_checkable
class Loader(Protocol):
    """What a loader plugin offers; a class is instantiated without arguments, an object taken as it is."""

    def matches(self, spec: str) -> bool:
        """Tells, at once and without reading weights, whether `spec` is of this loader's form."""
        ...

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Returns the dictionaries that `spec` names."""
        ...


class FolderLoader:
    """A folder in SAELens' format, or a folder with such folders below it."""

    def matches(self, spec: str) -> bool:
        """Tells whether there is such a folder; one of its two files names it as well."""
        path = Path(spec).expanduser()
        return path.is_dir() or (path.name in (CONFIG, WEIGHTS) and path.is_file())

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Opens the dictionary, or all below the folder in the order of the model's layers.

        Args:
            spec: The folder.
            **options: `hook_in`, `hook_outs` and `source`, as for `read_folder`.

        Raises:
            DictionaryError: There is no dictionary in it, or one is damaged.
        """
        path = Path(spec).expanduser()
        folder = path if path.is_dir() else path.parent
        if (folder / CONFIG).exists() or (folder / WEIGHTS).exists():
            return [read_folder(folder, **options)]
        found = [read_folder(below, **options) for below in _folders_below(folder)]
        if not found:
            holds = sorted(entry.name for entry in folder.iterdir())[:5]
            raise DictionaryError(
                f"There is no dictionary in {folder} or below it; expected folders with {CONFIG} and {WEIGHTS}, "
                f"found {', '.join(holds) or 'nothing'}."
            )
        return sorted(found, key=lambda dictionary: sort_key(feature(dictionary.site, 0)))


class SaelensLoader:
    """One dictionary of SAELens' registry, as `RELEASE/ID` (or `saelens://RELEASE/ID`); needs the extra `saelens`."""

    def matches(self, spec: str) -> bool:
        """Tells whether it begins with the name of a release, without importing SAELens."""
        return spec.startswith(saelens.SCHEME) or spec.partition("/")[0] in saelens.release_names()

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Fetches it; see `circuitsae.dictionaries.saelens.from_release`.

        Raises:
            MissingExtraError: sae_lens is not installed.
            UnknownNameError: There is no such release or id.
            FetchError: The download failed.
        """
        release, _, sae_id = spec.removeprefix(saelens.SCHEME).partition("/")
        return [saelens.from_release(release, sae_id, **options)]


def load_dictionary(spec: Any, **options: Any) -> list[Dictionary]:
    """Returns the dictionaries that `spec` stands for.

    Args:
        spec: A folder (or a folder of folders), `RELEASE/ID` of SAELens' registry, any other form that a loader plugin
            knows, a `Dictionary`, or a SAELens object.
        **options: Passed on to the loader.

    Raises:
        UnknownNameError: No loader knows the name; the message gives near matches.
        DictionaryError: Nothing has a name near it, or it is found and can't be used.
        InputError: `spec` is of none of these kinds.
    """
    if isinstance(spec, Dictionary):
        return [spec]
    if saelens.is_saelens_object(spec):
        return [saelens.from_object(spec, **options)]
    if not isinstance(spec, (str, os.PathLike)):
        raise InputError(
            f"A dictionary is given as a folder, a name, a Dictionary or a SAELens object, not as {type(spec).__name__}"
        )
    text = os.fspath(spec)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    for loader in _loaders():
        if loader.matches(text):
            return loader.load(text, **options)
    _raise_unknown(text)


def _loaders() -> Iterable[Loader]:
    """Yields the loaders in the order they are asked; a broken one is named in a warning and passed over."""
    for plugin in sorted(registry.plugins("loaders"), key=lambda p: (p.extra.get("order", 0), p.name)):
        try:
            loader = plugin.load()
            yield loader() if isinstance(loader, type) else loader
        except PluginError as error:
            warnings.warn(f"{error} It is passed over.", stacklevel=3)


def _folders_below(folder: Path) -> list[Path]:
    """Returns the outermost folders below with a configuration, not following links."""
    found: list[Path] = []
    for where, folders, files in os.walk(folder):
        if CONFIG in files:
            found.append(Path(where))
            folders.clear()
    return sorted(found)


def _raise_unknown(spec: str) -> NoReturn:
    """Looks for what was meant: a folder of a similar name beside it, or a release."""
    path = Path(spec).expanduser()
    parent = path.parent
    beside = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    known = [str(parent / name) for name in near_matches(path.name, beside)]
    releases = saelens.release_names()
    release, _, sae_id = spec.partition("/")
    known += [f"{near}/{sae_id}" if sae_id else near for near in near_matches(release, releases)]
    hint = "A dictionary is a folder with cfg.json and sae_weights.safetensors, or RELEASE/ID of SAELens' registry"
    hint += "." if releases else ", which needs sae_lens: pip install 'circuitsae[saelens]'."
    if not known:
        raise DictionaryError(f"There is no dictionary {spec!r}, and no name near it. {hint}")
    raise UnknownNameError("dictionary", spec, known, hint)
