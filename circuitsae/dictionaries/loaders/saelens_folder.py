"""SAELens' own format: `cfg.json` and `sae_weights.safetensors`; also what `save_folder` writes."""

from collections.abc import Collection

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders.plugin import Folder, Format
from circuitsae.dictionaries.reader import CONFIG, WEIGHTS, read_folder


class SaelensFolder(Format):
    """A dictionary as SAELens' `save_model` writes it."""

    name = "saelens-folder"
    files = f"{CONFIG} and {WEIGHTS}"
    origin = "SAELens 2 to 6, and `save_folder`"

    def wanted(self, names: Collection[str]) -> list[str]:
        """Returns the two files; one alone is a folder that was left half written, which reading it says."""
        return [name for name in (CONFIG, WEIGHTS) if name in names]

    def read(self, folder: Folder) -> list[Dictionary]:
        """Opens it; see `circuitsae.dictionaries.reader.read_folder`."""
        return [read_folder(folder.path, hook_in=folder.hook_in, hook_outs=folder.hook_outs, source=folder.source)]
