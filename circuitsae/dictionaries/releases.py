"""SAELens' registry of releases, read from the file that comes with sae_lens; neither it nor torch is imported."""

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from circuitsae.errors import DictionaryError, MissingExtraError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Entry:
    """A dictionary of a release.

    Attributes:
        id: Its name in the release.
        path: Where it lies in the release's repository.
        l0: Features active per token, where the registry says so.
        variance_explained: Share of its input's variance that it explains, where the registry says so.
        neuronpedia: Its name on Neuronpedia.
    """

    id: str
    path: str
    l0: float | None = None
    variance_explained: float | None = None
    neuronpedia: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """Dictionaries of one origin for one model.

    Attributes:
        name: What `RELEASE/ID` begins with.
        model: The model, by TransformerLens' name.
        repository: Where they lie on the hub.
        conversion: SAELens' converter, `None` for its own format.
        entries: Its dictionaries.
    """

    name: str
    model: str
    repository: str
    conversion: str | None
    entries: tuple[Entry, ...]


def list_releases(model: str | None = None) -> list[Release]:
    """Returns the registry's releases, of one model where it is named; `org/` before a model's name may be left out.

    Raises:
        MissingExtraError: sae_lens is not installed.
        UnknownNameError: No release is of that model; the message gives near matches.
    """
    releases = list(_registry().values())
    if model is None:
        return releases
    short = model.rpartition("/")[2].casefold()
    found = [r for r in releases if r.model.rpartition("/")[2].casefold() == short]
    if not found:
        models = sorted({release.model for release in releases})
        raise UnknownNameError("model with dictionaries in SAELens' registry", model, models)
    return found


def find_release(name: str) -> Release:
    """Returns the release of a name.

    Raises:
        MissingExtraError: sae_lens is not installed.
        UnknownNameError: None is called that; the message gives near matches.
    """
    releases = _registry()
    if name not in releases:
        raise UnknownNameError("release of SAELens", name, releases)
    return releases[name]


def registry_file() -> Path | None:
    """Returns the registry's file, `None` where sae_lens is not installed."""
    found = importlib.util.find_spec("sae_lens")
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / "pretrained_saes.yaml"
        if path.is_file():
            return path
    return None


def _registry() -> dict[str, Release]:
    path = registry_file()
    if path is None:
        raise MissingExtraError("SAELens' registry of releases", "sae_lens", "saelens")
    return _read(path)


@cache
def _read(path: Path) -> dict[str, Release]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C takes a second, the other ten
    try:
        table: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        return {name: _release(name, about) for name, about in table.items()}
    except (yaml.YAMLError, OSError, KeyError, TypeError, AttributeError) as error:
        raise DictionaryError(
            f"The registry {path} can't be read as sae_lens' of 6.30 or later: {error!r:.120}."
        ) from error


def _release(name: str, about: dict[str, Any]) -> Release:
    entries = tuple(
        Entry(
            id=str(one["id"]),
            path=str(one["path"]),
            l0=one.get("l0"),
            variance_explained=one.get("variance_explained"),
            neuronpedia=str(one.get("neuronpedia") or ""),
        )
        for one in about["saes"]
    )
    return Release(name, str(about["model"]), str(about["repo_id"]), about.get("conversion_func"), entries)
