"""From what a user writes to dictionaries. A loader is a plugin, registered under `circuitsae.loaders`.

Built in are folders on this machine (`folder`), the Hugging Face hub (`hub`), SAELens' registry (`saelens`), and the
formats that the first two can meet, a module each; others are plugins like a stranger's. A plugin is asked in the order
of its `order` (0 by default, lowest first), then of its name.
"""

from circuitsae.dictionaries.loaders.choice import SaelensLoader, load_dictionary
from circuitsae.dictionaries.loaders.places import FolderLoader, HubLoader
from circuitsae.dictionaries.loaders.plugin import Folder, Format, Loader

__all__ = ["Folder", "FolderLoader", "Format", "HubLoader", "Loader", "SaelensLoader", "load_dictionary"]
