"""Files and folders written whole or not at all, and files read only up to a size.

What is being written lies in a folder `.circuitsae-*.part` beside its place, which its process holds locked, and is forced
to the disk before it takes its place. A folder of that name that nobody holds was left by a process that died; whoever next
writes there removes it (where the file system has no locks it stays).
"""

import contextlib
import functools
import os
import secrets
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path

from circuitsae.errors import CircuitsaeError, InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY = ".circuitsae-*.part"


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes files, all of them before the first takes its place: a failure leaves nothing behind, and what was there stays.

    Raises:
        InputError: As for `replacing`.
    """
    with contextlib.ExitStack() as places:
        for path, content in reversed(list(contents.items())):  # left in the order given: an index comes last
            places.enter_context(replacing(path)).write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Gives a path to write a file to, which takes the place of `path` at the end, or is gone if anything was raised.

    A link stays, and so do a file's permissions; a device or a pipe is written to as it is.

    Raises:
        InputError: The folder is missing, the file or its folder can't be written, it is a folder, or the disk is full.
    """
    check_writable(path)
    with _explained(path):
        place = Path(os.path.realpath(path))
        if path.exists() and not path.is_file():
            yield path
            return
        with scratch(place.parent) as folder:
            yield folder / place.name
            move(folder / place.name, place)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Says that a file can't be written: before the work is done for it, not after.

    Raises:
        InputError: Its folder is missing or closed to us, or it is a folder itself.
    """
    path = Path(path)
    with _explained(path):
        if path.is_dir():
            raise InputError(f"Can't write {str(path)!r}: it is a folder; name a file in it.")
        if not path.parent.is_dir():
            raise InputError(f"Can't write {str(path)!r}: there is no folder {str(path.parent)!r}; make it first.")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise InputError(f"Can't write {str(path)!r}: permission denied.")


@contextlib.contextmanager
def making(folder: Path) -> Generator[Path]:
    """Gives a folder to fill, which becomes `folder` at the end, or is gone if anything was raised.

    Raises:
        InputError: `folder` has something in it, or can't be written.
    """
    with _explained(folder):
        place = Path(os.path.realpath(folder))
        place.parent.mkdir(parents=True, exist_ok=True)
        with scratch(place.parent) as temporary:
            if place.exists() and not (place.is_dir() and not any(place.iterdir())):
                raise InputError(f"{str(folder)!r} is there and not empty; name an empty folder, or a new one.")
            (temporary / place.name).mkdir()
            yield temporary / place.name
            move(temporary / place.name, place)


@contextlib.contextmanager
def scratch(parent: Path) -> Generator[Path]:
    """Gives a temporary folder in `parent`, which is gone afterwards."""
    _tidy_once(parent)
    while True:
        folder, held = parent / _TEMPORARY.replace("*", secrets.token_hex(6)), None
        folder.mkdir(mode=0o700)
        try:
            held = _lock(folder, shared=True)
        except (BlockingIOError, FileNotFoundError):  # another process took it for a leftover before it was locked
            continue
        except OSError:
            pass  # no locks here
        break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def move(made: Path, place: Path) -> None:
    """Forces a file or folder to the disk and moves it to its place; what is there goes."""
    for file in [made] if made.is_file() else made.rglob("*"):
        if file.is_file():
            with open(file, "rb" if fcntl else "rb+") as stream:
                os.fsync(stream.fileno())
    if place.is_dir():
        os.rename(place, made.with_name(f"{made.name}.replaced"))
    elif place.exists():
        shutil.copymode(place, made)
    os.replace(made, place)


def remove_leftovers(folder: Path) -> None:
    """Removes what processes that died left half written in a folder."""
    for path in folder.glob(_TEMPORARY):
        with contextlib.suppress(OSError):
            held = _lock(path, shared=False)
            shutil.rmtree(path, ignore_errors=True)
            os.close(held)


def is_temporary(path: Path) -> bool:
    """Whether a path is of something that is being written, here or by another process."""
    return path.match(_TEMPORARY)


@contextlib.contextmanager
def _explained(path: Path) -> Generator[None]:
    """Turns what the system says about a file that can't be written into the package's error."""
    try:
        os.fsencode(path)
        if "\0" in str(path):
            raise ValueError("embedded null character")
    except ValueError as error:
        raise InputError(f"Can't write {str(path)!r}: {reason_of(error)}.") from None
    try:
        yield
    except OSError as error:
        if isinstance(error, CircuitsaeError):
            raise
        raise InputError(f"Can't write {str(path)!r}: {reason_of(error)}.") from error


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
        raise InputError(f"Can't read {str(path)!r}: {reason_of(error)}.") from error
    if len(content) > max_bytes:
        raise InputError(f"The file {str(path)!r} is larger than {max_bytes:,} bytes; raise max_bytes to read it.")
    return content


def reason_of(error: OSError | ValueError) -> str:
    """Returns what the system gives as the reason, as the end of a sentence."""
    if isinstance(error, shutil.Error):  # several, each with its own
        first = str(error.args[0][0][-1])
        text = first.partition("] ")[2] or first
    else:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{text[:1].lower()}{text[1:]}"


@functools.cache
def _tidy_once(folder: Path) -> None:
    remove_leftovers(folder)


def _lock(folder: Path, *, shared: bool) -> int:
    """Locks a folder and returns the descriptor that holds it.

    Raises:
        BlockingIOError: Another process holds it.
        FileNotFoundError: It is gone.
        OSError: The system or the file system has no such locks.
    """
    if fcntl is None:
        raise OSError("no locks")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        os.stat(folder)  # gone since it was opened?
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
