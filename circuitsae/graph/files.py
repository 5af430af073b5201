"""Files written whole or not at all, and read only up to a size."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from circuitsae.errors import InputError


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes files under temporary names beside their places, then renames them all: a failure leaves nothing behind,
    and what was there before stays.

    Raises:
        InputError: A folder is missing or can't be written, a path is a folder, or the disk is full.
    """
    written: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            if path.is_dir():
                raise InputError(f"Can't write {str(path)!r}: it is a folder; name a file in it.")
            name = path.with_name(f".{path.name[:40]}.{secrets.token_hex(6)}.tmp")
            with open(name, "xb") as file:
                written[path] = name
                file.write(content)
        for path, name in written.items():
            os.replace(name, path)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
            folder = str(path.parent)
            raise InputError(f"Can't write {str(path)!r}: there is no folder {folder!r}; make it first.") from None
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Can't write {str(path)!r}: {reason[:1].lower()}{reason[1:]}.") from error
    finally:
        for name in written.values():
            name.unlink(missing_ok=True)


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Returns a file's contents.

    Raises:
        InputError: It is not there, can't be read, or is larger than `max_bytes`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"There is no file {str(path)!r}.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"Can't read {str(path)!r}: {reason[:1].lower()}{reason[1:]}.") from error
    if len(content) > max_bytes:
        raise InputError(f"The file {str(path)!r} is larger than {max_bytes:,} bytes; raise max_bytes to read it.")
    return content
