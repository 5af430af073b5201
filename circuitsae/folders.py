"""Where files lie: the cache of converted models, the settings' folder with the user's presets; paths fit to be shared."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """Returns the folder for what can be fetched again: `$CIRCUITSAE_CACHE`, or the platform's place for caches."""
    if named := os.environ.get("CIRCUITSAE_CACHE"):
        return Path(named).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "circuitsae"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "circuitsae" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "circuitsae"


def settings_folder() -> Path:
    """Returns the platform's folder for this program's settings."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "circuitsae"
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "circuitsae"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "circuitsae"


def shareable(source: str) -> str:
    """Returns where something is from, fit for a file that others get: no name of this machine's folders.

    What the package ships is named from the package on; of another folder the last two parts stay; names are as they are.

    Example:
        >>> shareable("/home/ann/saes/gpt2/blocks.8"), shareable("gpt2-small-res-jb/blocks.8")
        ('.../gpt2/blocks.8', 'gpt2-small-res-jb/blocks.8')
    """
    path = Path(source)
    if not path.is_absolute():
        return source
    package = Path(__file__).parent
    if path.is_relative_to(package):
        return f"circuitsae/{path.relative_to(package).as_posix()}"
    return f".../{'/'.join(path.parts[-2:])}"
