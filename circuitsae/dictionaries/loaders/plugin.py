"""What a loader plugin is: `Loader` knows a form of name, `Format` knows the files of a folder, wherever that lies."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from circuitsae import registry
from circuitsae.dictionaries.base import Dictionary
from circuitsae.errors import DictionaryError, PluginError


@runtime_checkable
class Loader(Protocol):
    """What a loader plugin offers; a class is instantiated without arguments, an object taken as it is."""

    def matches(self, spec: str) -> bool:
        """Tells, at once and without reading weights, whether `spec` is of this loader's form."""
        ...

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Returns the dictionaries that `spec` names."""
        ...


@dataclass(frozen=True)
class Folder:
    """A folder whose dictionaries are asked for.

    Attributes:
        path: Where it lies on this machine.
        names: Those of its files that are wanted.
        source: Where it is from, as circuits record it: a path, or `hf://ORG/NAME/PATH@COMMIT`.
        hook_in: Hook point it reads, where the files name none or another spelling is wanted.
        hook_outs: Hook points it writes, likewise.
        k: How many features a row keeps, where the files don't say.
    """

    path: Path
    names: Sequence[str]
    source: str
    hook_in: str | None = None
    hook_outs: Sequence[str] | None = None
    k: int | None = None

    @property
    def hooks(self) -> tuple[str, ...] | None:
        """The hook points that are asked for: the one read, then those written, which is the same unless said."""
        return (self.hook_in, *(self.hook_outs or (self.hook_in,))) if self.hook_in else None

    def kept(self, said: object, origin: object) -> int:
        """Returns how many features a row of a top-k dictionary keeps: what the files say, else what is given.

        Raises:
            DictionaryError: Neither is a whole number of at least one.
        """
        k = self.k if said is None else said
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise DictionaryError(
                f"{origin} is of a top-k dictionary and has k {k!r:.60}; expected how many features a row keeps: say it "
                "with k=."
            )
        return k


class Format(ABC):
    """A loader plugin for a file format: it says which files make a dictionary, and reads them.

    Folders on this machine and on the hub come with it: `FolderLoader` and `HubLoader` ask every registered format
    which of a folder's files it knows. `NAME:FOLDER` (`NAME:hf://...`) asks this format alone.

    Attributes:
        name: What it is registered under.
        files: What a dictionary of this format consists of, for messages.
        origin: Whose format it is, for the documentation.
    """

    name: ClassVar[str]
    files: ClassVar[str]
    origin: ClassVar[str] = ""

    @abstractmethod
    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns those of a folder's files that make dictionaries of this format; none if it knows nothing there."""

    @abstractmethod
    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens what a folder holds; weights are read when they are needed.

        Raises:
            DictionaryError: The files are damaged, or name no hook point.
            FetchError: Files that these refer to can't be fetched.
        """

    def matches(self, spec: str) -> bool:
        """Tells whether this format is asked for by name."""
        return spec.startswith(f"{self.name}:")

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        """Opens what is asked for by name, whatever else its files look like.

        Raises:
            DictionaryError: There is nothing of this format.
            FetchError: It can't be fetched.
        """
        from circuitsae.dictionaries.loaders.places import open_place

        return open_place(spec.removeprefix(f"{self.name}:"), [self], **options)


def loaders() -> Iterable[Loader]:
    """Yields the loaders in the order they are asked; a broken one is named in a warning and passed over."""
    for plugin in sorted(registry.plugins("loaders"), key=lambda p: (p.extra.get("order", 0), p.name)):
        try:
            loader = plugin.load()
            yield loader() if isinstance(loader, type) else loader
        except PluginError as error:
            warnings.warn(f"{error} It is passed over.", stacklevel=3)


def formats() -> list[Format]:
    """Returns the loaders that know a file format, in the order they are asked."""
    return [loader for loader in loaders() if isinstance(loader, Format)]
