"""Where dictionaries lie: folders on this machine and on the hub. Which format they have, the registered formats tell."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from circuitsae.dictionaries import hub
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders.plugin import Folder, Format, formats
from circuitsae.errors import DictionaryError, FetchError, UnknownNameError, near_matches
from circuitsae.names import feature, sort_key

MANY = 64
"""More dictionaries than this are not fetched at one name: it is a whole release, of which one or a few are meant."""


class Found(NamedTuple):
    """A folder with files of a format; `folder` is relative to the place that was searched, `""` that place itself."""

    folder: str
    format: Format
    names: list[str]


class FolderLoader:
    """A folder on this machine with files of a known format, or one with such folders below it; or one of its files."""

    def matches(self, spec: str) -> bool:
        """Tells whether there is such a folder or file."""
        return Path(spec).expanduser().exists()

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Opens the dictionary, or all below the folder in the order of the model's layers.

        Args:
            spec: The folder, or one file in it.
            **options: `hook_in`, `hook_outs` and `source`, as for `Format.read`.

        Raises:
            DictionaryError: There is no dictionary in it, or one is damaged.
        """
        return open_place(spec, formats(), **options)


class HubLoader:
    """A folder or file of a repository on the Hugging Face hub: `hf://ORG/NAME/PATH@REVISION`."""

    def matches(self, spec: str) -> bool:
        """Tells whether it begins so."""
        return spec.startswith(hub.SCHEME)

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Fetches what is not there yet and opens it, all below a folder in the order of the model's layers.

        Raises:
            InputError: It is of another form.
            FetchError: It is not there, not for this user, or the download failed.
            DictionaryError: There is no dictionary in it, or one is damaged.
        """
        return open_place(spec, formats(), **options)


def open_place(spec: str, known: Sequence[Format], *, source: str | None = None, **options: Any) -> list[Dictionary]:
    """Opens every dictionary of these formats at a place, in the order of the model's layers.

    Raises:
        DictionaryError: There is none, or one is damaged.
        FetchError: It can't be fetched.
    """
    opened = _opened_on_hub if spec.startswith(hub.SCHEME) else _opened_here
    found = opened(spec, known, source, options)
    return sorted(found, key=lambda dictionary: sort_key(feature(dictionary.site, 0)))


def _opened_here(spec: str, known: Sequence[Format], source: str | None, options: dict[str, Any]) -> list[Dictionary]:
    path = Path(spec).expanduser()
    if not path.exists():
        raise DictionaryError(f"There is no folder {path} to read a dictionary from.")
    folder, only = (path, None) if path.is_dir() else (path.parent, path.name)
    found = _found_here(folder, known, only)
    if not found:
        holds = sorted(entry.name for entry in folder.iterdir())[:5]
        raise DictionaryError(
            f"There is no dictionary in {path} or below it; expected folders with {_expected(known)}, "
            f"found {', '.join(holds) or 'nothing'}."
        )
    named = len(found) == 1 and source is not None
    return [
        dictionary
        for where, form, names in found
        for dictionary in form.read(
            Folder(
                folder / where,
                names,
                source if named and source else str(Path(spec) / where if only is None else Path(spec)),
                **options,
            )
        )
    ]


def _found_here(folder: Path, known: Sequence[Format], only: str | None) -> list[Found]:
    """Returns the outermost folders with dictionaries, not following links."""
    found: list[Found] = []
    for where, folders, files in os.walk(folder):
        relative = Path(where).relative_to(folder).as_posix()
        here = _recognised("" if relative == "." else relative, files, known, only)
        if here is not None:
            found.append(here)
        if here is not None or only is not None:
            folders.clear()
    return sorted(found, key=lambda f: f.folder)


def _opened_on_hub(spec: str, known: Sequence[Format], source: str | None, options: dict[str, Any]) -> list[Dictionary]:
    place = hub.parse_path(spec)
    listing = hub.list_files(place)
    paths = listing.below(place.path)
    if not paths:
        near = near_matches(
            place.path, {"/".join(name.split("/")[: place.path.count("/") + 1]) for name in listing.files}
        )
        if near:
            raise UnknownNameError(f"file or folder in hf://{place.repository}", place.path, near)
        raise FetchError(f"The hub has no file or folder {place}.")
    is_file = paths == [place.path]
    folder, only = place.path.rpartition("/")[::2] if is_file else (place.path, None)
    inside = [
        path.removeprefix(f"{folder}/") if folder else path for path in (listing.below(folder) if is_file else paths)
    ]
    found = find(inside, known, only)
    if not found:
        raise DictionaryError(
            f"There is no dictionary in {place} or below it; expected folders with {_expected(known)}, "
            f"found {', '.join(sorted(inside)[:5])}."
        )
    if len(found) > MANY:
        shown = str(hub.HubPath(place.repository, _joined(folder, found[0].folder), place.revision))
        raise DictionaryError(f"{place} holds {len(found)} dictionaries, a whole release; name one, such as {shown}.")
    wanted = [_joined(folder, where, name) for where, _, names in found for name in names]
    snapshot = hub.fetch_files(listing, wanted)
    opened: list[Dictionary] = []
    for where, form, names in found:
        path = place.path if is_file else _joined(folder, where)
        origin = (
            source
            if source is not None and len(found) == 1
            else str(hub.HubPath(place.repository, path, listing.commit))
        )
        opened += form.read(Folder(snapshot / _joined(folder, where), names, origin, **options))
    return opened


def find(paths: Iterable[str], known: Sequence[Format], only: str | None = None) -> list[Found]:
    """Returns the outermost of the folders in a listing that hold dictionaries.

    Args:
        paths: Files, relative to the place that is searched.
        known: Formats, in the order they are asked.
        only: The one file of the place itself that is meant.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        by_folder.setdefault(folder, []).append(name)
    found: dict[str, Found] = {}
    for folder in sorted(by_folder, key=lambda f: (f.count("/") if f else -1, f)):
        parts = folder.split("/") if folder else []
        if any("/".join(parts[:i]) in found for i in range(len(parts))) or (only is not None and folder):
            continue
        here = _recognised(folder, by_folder[folder], known, only)
        if here is not None:
            found[folder] = here
    return [found[folder] for folder in sorted(found)]


def _recognised(folder: str, files: Sequence[str], known: Sequence[Format], only: str | None) -> Found | None:
    """Asks the formats in turn. Of a folder with a dictionary in each file, a file names just that one."""
    for form in known:
        names = form.wanted(files)
        if only is not None and only in names and form.wanted([only]):
            names = form.wanted([only])
        if names and (only is None or only in names):
            return Found(folder, form, names)
    return None


def _expected(known: Sequence[Format]) -> str:
    return ", or ".join(form.files for form in known)


def _joined(*parts: str) -> str:
    return "/".join(part for part in parts if part)
