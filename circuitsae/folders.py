"""Where a user's own files lie: the cache of converted models, and the settings' folder with their presets."""

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
