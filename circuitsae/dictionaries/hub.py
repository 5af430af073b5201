"""Files of the Hugging Face hub: listed, pinned to a commit, fetched into the hub's own cache, and checked.

What huggingface_hub leaves open is done here: errors of the server are tried again, what came is compared with the hash
that the hub has for it, and a listing is remembered so that what was fetched once is found again without a network.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from circuitsae.errors import FetchError, InputError
from circuitsae.files import write_whole
from circuitsae.folders import cache_folder

SCHEME = "hf://"

TRIES = 3
"""How often a request is made whose failure may pass."""

PAUSE = 1.0
"""Seconds before the second try; the third waits twice as long."""

RECENT = 60.0
"""Seconds for which a listing is not asked for again: a preset names dozens of dictionaries in one repository."""

SECRET = re.compile(r"hf_[A-Za-z0-9]{8,}|(?i:bearer)\s+\S+")
"""What is never repeated of an answer, an address or a log."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PASSING = (408, 429, 500, 502, 503, 504)
_MAX_LISTING = 64 << 20

_recent: dict[tuple[str, str], tuple[float, "Listing"]] = {}

T = TypeVar("T")


class HubPath(NamedTuple):
    """A place on the hub: a repository, a folder or file in it (`""` is its root), and a revision."""

    repository: str
    path: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        inside = f"/{self.path}" if self.path else ""
        return f"{SCHEME}{self.repository}{inside}" + (f"@{self.revision}" if self.revision else "")


class HubFile(NamedTuple):
    """A file as the hub lists it; the hashes are hexadecimal, sha256 for large files, git's own for small ones."""

    size: int | None = None
    sha256: str | None = None
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a repository at one commit.

    Attributes:
        repository: Its name, `org/name`.
        commit: The commit that the revision stood for.
        files: All of its files, by path.
    """

    repository: str
    commit: str
    files: dict[str, HubFile] = field(default_factory=dict)

    def below(self, path: str) -> list[str]:
        """Returns the paths of the files in a folder and below it, or of the one file that it names."""
        start = f"{path}/" if path else ""
        return sorted(name for name in self.files if name == path or name.startswith(start))


def parse_path(text: str) -> HubPath:
    """Reads `hf://org/name/path@revision`; `?revision=` in place of `@` is understood too.

    Example:
        >>> parse_path("hf://org/saes/layer_3@v1.0")
        HubPath(repository='org/saes', path='layer_3', revision='v1.0')

    Raises:
        InputError: It is of another form, or its path leads out of the repository.
    """
    rest, _, revision = text.removeprefix(SCHEME).partition("?revision=")
    if not revision:
        rest, _, revision = rest.partition("@")
    parts = [part for part in rest.split("/") if part]
    good = len(parts) >= 2 and all(map(_PART.fullmatch, parts[:2])) and is_inside("/".join(parts[2:]))
    if not text.startswith(SCHEME) or not good or not _is_revision(revision):
        raise InputError(f"{text!r} is not a place on the hub; expected hf://ORG/NAME, hf://ORG/NAME/PATH@REVISION.")
    return HubPath("/".join(parts[:2]), "/".join(parts[2:]), revision or None)


def is_inside(path: str) -> bool:
    """Tells whether a stranger's relative path stays in the folder that it is joined to.

    Example:
        >>> is_inside("a/b.npz"), is_inside("../b"), is_inside("/etc"), is_inside("a/../../b")
        (True, False, False, False)
    """
    parts = PurePosixPath(path).parts
    has_drive = any(part[1:2] == ":" for part in parts)  # another drive's, on Windows
    return not (path.startswith("/") or "\\" in path or "\0" in path or has_drive or ".." in parts)


def list_files(place: HubPath) -> Listing:
    """Lists the repository's files at the place's revision (`main` if it names none).

    A commit that was listed before is not asked for again. Without a network, what was listed before is what there is.

    Raises:
        FetchError: The repository is not there or not for this user, or the hub can't be reached and nothing of it was
            fetched before.
    """
    import huggingface_hub
    from huggingface_hub import constants

    revision = place.revision or constants.DEFAULT_REVISION
    if _COMMIT.fullmatch(revision) and (known := _listed_before(place.repository, revision)) is not None:
        return known
    if constants.HF_HUB_OFFLINE:
        if (known := _remembered(place.repository, revision)) is not None:
            return known
        raise FetchError(
            f"{place} was not fetched before, and the hub is not to be asked (HF_HUB_OFFLINE is set): unset it once."
        )

    asked, known = _recent.get((place.repository, revision), (-RECENT, None))
    if known is not None and time.monotonic() - asked < RECENT:
        return known

    def ask() -> Any:
        return huggingface_hub.HfApi().model_info(place.repository, revision=revision, files_metadata=True)

    try:
        info = _retried(ask)
    except Exception as error:
        known = _remembered(place.repository, revision) if _is_passing(error) else None
        if known is None:
            raise explained(error, place) from error
        _recent[place.repository, revision] = time.monotonic(), known
        return known
    files = {one.rfilename: HubFile(one.size, _lfs_hash(one.lfs), one.blob_id) for one in info.siblings or ()}
    listing = Listing(place.repository, info.sha or revision, {n: f for n, f in files.items() if n and is_inside(n)})
    _remember(listing, revision)
    _recent[place.repository, revision] = time.monotonic(), listing
    return listing


def fetch_files(listing: Listing, paths: Iterable[str]) -> Path:
    """Fetches files into the hub's cache unless they are there, and returns the folder of the commit.

    A connection that is cut is taken up where it broke off. What comes is compared with the hash that the hub lists.

    Raises:
        FetchError: A file is not there or not for this user, its contents are not what the hub lists, or there is no
            room; nothing half done is left in sight.
    """
    paths = sorted(set(paths))
    snapshot = snapshot_folder(listing)
    missing = [path for path in paths if not (snapshot / path).is_file()]
    _check_room(listing, missing, snapshot)
    for path in missing:
        _fetch_file(listing, path, snapshot)
    return snapshot


def remembered(place: HubPath) -> Listing | None:
    """Returns what a place's repository was listed as before, asking no network; else what lies in the hub's cache."""
    return _remembered(place.repository, place.revision or "main")


def is_fetched(place: HubPath) -> bool:
    """Tells, asking no network, whether a file was fetched, or something of a folder."""
    listing = remembered(place)
    return listing is not None and (snapshot_folder(listing) / place.path).exists()


def snapshot_folder(listing: Listing) -> Path:
    """Returns the folder of a commit in the hub's cache."""
    return _cache_root() / f"models--{listing.repository.replace('/', '--')}" / "snapshots" / listing.commit


def explained(error: Exception, place: HubPath) -> FetchError:
    """Returns the sentence that a person needs for whatever huggingface_hub, the network or the disk came up with.

    No header, no token and no address with a signature in it is repeated.
    """
    from huggingface_hub import errors

    if isinstance(error, FetchError):
        return error
    where = str(place)
    status = _status(error)
    if isinstance(error, errors.GatedRepoError):
        return FetchError(
            f"The hub gives {where} only to those who have accepted its terms: do so on "
            f"https://huggingface.co/{place.repository}, then log in (hf auth login) or set HF_TOKEN."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return FetchError(f"The hub's repository {place.repository} has no revision {place.revision or 'main'!r}.")
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return FetchError(f"The hub has no file {where}.")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return FetchError(
            f"The hub has no repository {where}, or it is private: log in (hf auth login) or set HF_TOKEN."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return FetchError(f"There is no room left to store {where}; $HF_HOME names another folder.")
    if status is not None:
        again = " after several tries; try again later" if status in _PASSING else ""
        return FetchError(f"{where} could not be fetched: the hub answered with status {status}{again}.")
    if _is_connection(error) or isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return FetchError(
            f"{where} could not be fetched from the hub: it can't be reached, and this was not fetched before."
        )
    return FetchError(f"{where} could not be fetched from the hub: {_first_line(error)}")


def _fetch_file(listing: Listing, path: str, snapshot: Path) -> None:
    import huggingface_hub

    place = HubPath(listing.repository, path, listing.commit)
    try:
        found = Path(
            _retried(lambda: huggingface_hub.hf_hub_download(listing.repository, path, revision=listing.commit))
        )
    except Exception as error:
        raise explained(error, place) from error
    listed = listing.files.get(path, HubFile())
    problem = _difference(found, listed)
    if problem:
        blob = found.resolve()
        found.unlink(missing_ok=True)
        if "blobs" in blob.parts:
            blob.unlink(missing_ok=True)
        raise FetchError(f"{place} is damaged: {problem}; nothing of it was kept, so try again.")


def _difference(file: Path, listed: HubFile) -> str:
    """Returns in what a file differs from what the hub lists, or nothing."""
    size = file.stat().st_size
    if listed.size is not None and size != listed.size:
        return f"it has {size} bytes, and the hub lists {listed.size}"
    if listed.sha256:
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        return "" if found == listed.sha256 else f"its sha256 is {found}, and the hub lists {listed.sha256}"
    if listed.blob and _COMMIT.fullmatch(listed.blob):
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        digest.update(file.read_bytes())
        found = digest.hexdigest()
        return "" if found == listed.blob else f"its git hash is {found}, and the hub lists {listed.blob}"
    return ""


def _check_room(listing: Listing, paths: list[str], folder: Path) -> None:
    """Says before a download, not after hours of it, that there is no room for it."""
    wanted = sum(listing.files.get(path, HubFile()).size or 0 for path in paths)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if wanted > free:
        place = HubPath(listing.repository, "", listing.commit)
        raise FetchError(
            f"There is no room left to store {place}: it takes {wanted / 1e9:.1f} GB, and {there} has {free / 1e9:.1f} "
            "GB free; $HF_HOME names another folder."
        )


def _retried(ask: Callable[[], T]) -> T:
    """Asks again, after a pause, where the failure is one that may pass."""
    for attempt in range(TRIES):
        try:
            return ask()
        except Exception as error:
            if attempt == TRIES - 1 or not _is_passing(error):
                raise
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _is_passing(error: Exception) -> bool:
    status = _status(error)
    return status in _PASSING if status is not None else _is_connection(error)


def _is_connection(error: BaseException) -> bool:
    """The network's own errors; huggingface_hub hides some of them behind a `LocalEntryNotFoundError`."""
    seen: BaseException | None = error
    while seen is not None:
        kind = type(seen)
        if kind.__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            return _status(seen) is None
        if isinstance(seen, (ConnectionError, TimeoutError)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _status(error: BaseException) -> int | None:
    """Returns the status of the server's answer, looked for in what led to the error too."""
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        seen = seen.__cause__ or seen.__context__
    return None


def _lfs_hash(lfs: Any) -> str | None:
    if lfs is None:
        return None
    return lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)


def _is_revision(revision: str) -> bool:
    return is_inside(revision) and not any(c.isspace() or c in "?#%" for c in revision)


def _first_line(error: Exception) -> str:
    line = str(error).strip().split("\n")[0] or type(error).__name__
    return SECRET.sub("(secret)", re.sub(r"https?://\S+\?\S+", "(address)", line))


# What was listed and fetched before


def _cache_root() -> Path:
    """Returns huggingface_hub's cache, by its own rules where it is not imported: that takes longer than a listing."""
    if "huggingface_hub.constants" in sys.modules:
        return Path(sys.modules["huggingface_hub.constants"].HF_HUB_CACHE)
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if named := os.environ.get(variable):
            return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def _memory(repository: str, revision: str) -> Path:
    return cache_folder() / "hub" / repository.replace("/", "--") / f"{revision.replace('/', '--')}.json"


def _remember(listing: Listing, revision: str) -> None:
    """Keeps a listing under its revision and its commit. That the cache can't be written is no reason to fail."""
    files = {name: list(f) for name, f in listing.files.items()}
    text = json.dumps({"commit": listing.commit, "files": files}, allow_nan=False)
    with contextlib.suppress(OSError, InputError):
        for name in {revision, listing.commit}:
            path = _memory(listing.repository, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole({path: text.encode()})


def _remembered(repository: str, revision: str) -> Listing | None:
    """Returns what was listed before; else what lies in the hub's cache, for one filled by others."""
    return _listed_before(repository, revision) or _in_cache(repository, revision)


def _listed_before(repository: str, revision: str) -> Listing | None:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        path = _memory(repository, revision)
        if path.stat().st_size <= _MAX_LISTING:
            kept = json.loads(path.read_text(encoding="utf-8"))
            files = {name: HubFile(*about) for name, about in kept["files"].items() if is_inside(name)}
            if _COMMIT.fullmatch(kept["commit"]):
                return Listing(repository, kept["commit"], files)
    return None


def _in_cache(repository: str, revision: str) -> Listing | None:
    folder = _cache_root() / f"models--{repository.replace('/', '--')}"
    commit = revision
    with contextlib.suppress(OSError):
        commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
    snapshot = folder / "snapshots" / commit
    if not commit.isalnum() or not snapshot.is_dir():
        return None
    found = {path.relative_to(snapshot).as_posix(): HubFile() for path in snapshot.rglob("*") if path.is_file()}
    return Listing(repository, commit, found) if found else None
