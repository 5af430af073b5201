"""The app as a Hugging Face Space: the folder is built, uploaded, and watched until it runs.

`spaces.yaml` holds the Space's card (the keys of a Space's README, passed on as they are) and, under `deploy`, what the
hub is told besides. The folder holds `app.py`, requirements pinned to what is installed here, the README, and the package
itself, so that a Space shows what this checkout shows.
"""

import contextlib
import importlib.metadata
import importlib.util
import re
import shutil
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import circuitsae
from circuitsae.dictionaries.hub import SECRET
from circuitsae.errors import CircuitsaeError, FetchError, InputError, MissingExtraError, near_matches
from circuitsae.files import making

SETTINGS = "spaces.yaml"
PACKAGES = ("circuitsae", "gradio_app")

_APP = '''\
"""Starts the app as a Hugging Face Space does; the port comes from the environment."""

import os

import gradio_app.zero  # noqa: F401  (before torch)
from gradio_app.app import space

demo, options = space()

if __name__ == "__main__":
    demo.launch(
        server_name=os.environ.get("GRADIO_SERVER_NAME") or "0.0.0.0",
        server_port=int(os.environ.get("GRADIO_SERVER_PORT") or os.environ.get("PORT") or 7860),
        **options,
    )
'''
_CPU_INDEX = "--extra-index-url https://download.pytorch.org/whl/cpu"
_MAX_SETTINGS = 1 << 20
_BROKEN = re.compile(r".*ERROR|STOPPED|PAUSED|DELETING|NO_APP_FILE")
_LOG_LINES = 40

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class SpaceSettings:
    """What `spaces.yaml` says.

    Attributes:
        card: The front matter of the Space's README.
        hardware: What the Space runs on; None for the hub's default.
        variables: Environment variables, open to all.
        sleep: Seconds without visitors after which it sleeps, where the hardware lets one choose; None for the default.
    """

    card: dict[str, Any]
    hardware: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    sleep: int | None = None


def find_settings(given: str | None) -> Path:
    """Returns the settings' file: the one that is named, one in this folder, or that of the checkout.

    Raises:
        InputError: There is none.
    """
    checkout = Path(circuitsae.__file__).parents[1]
    places = [Path(given).expanduser()] if given is not None else [Path(SETTINGS), checkout / SETTINGS]
    for path in places:
        if path.is_file():
            return path
    raise InputError(
        f"There is no file {places[0]} with the Space's settings; run this in circuitsae's checkout, or give --settings."
    )


def read_settings(path: Path) -> SpaceSettings:
    """Reads the settings.

    Raises:
        InputError: The file is not YAML, or a key under `deploy` is unknown or of the wrong type.
    """
    import yaml

    try:
        if path.stat().st_size > _MAX_SETTINGS:
            raise InputError(f"{path} has {path.stat().st_size} bytes, too many for a Space's settings.")
        table = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())[:160]}.") from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise InputError(f"{path} holds no table; expected the keys of a Space's card, and deploy.")
    card = dict(table)
    deploy = card.pop("deploy", None) or {}
    known = ("hardware", "variables", "sleep")
    if not isinstance(deploy, dict):
        raise InputError(f"{path}: deploy is {deploy!r:.60}; expected a table with {', '.join(known)}.")
    for key in deploy:
        if key not in known:
            near = near_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(known)}."
            raise InputError(f"{path}: the key {key!r} is unknown in deploy; {hint}")
    hardware, variables, sleep = deploy.get("hardware"), deploy.get("variables") or {}, deploy.get("sleep")
    if hardware is not None and not isinstance(hardware, str):
        raise InputError(f"{path}: deploy.hardware is {hardware!r:.60}; expected a name such as cpu-basic.")
    if not isinstance(variables, dict) or not all(isinstance(v, str) for kv in variables.items() for v in kv):
        raise InputError(f"{path}: deploy.variables is {variables!r:.60}; expected names and texts (quote numbers).")
    if sleep is not None and (not isinstance(sleep, int) or isinstance(sleep, bool)):
        raise InputError(f"{path}: deploy.sleep is {sleep!r:.60}; expected a number of seconds.")
    if card.get("sdk") != "gradio" or card.get("app_file", "app.py") != "app.py":
        raise InputError(f"{path}: expected sdk: gradio and app_file: app.py, which is what is built.")
    for key in ("title", "sdk_version", "python_version"):
        if not isinstance(card.get(key), str):
            raise InputError(f"{path}: {key} is {card.get(key)!r:.60}; expected text (quote versions).")
    return SpaceSettings(card, hardware, variables, sleep)


def requirements(settings: SpaceSettings) -> list[str]:
    """Returns the lines of requirements.txt: what the app needs, all of it, in the versions that are installed here.

    Raises:
        MissingExtraError: What the app needs is not installed.
        InputError: The card asks for another gradio than the one that is installed.
    """
    pins: dict[str, str] = {}
    for requirement in _own_requirements():
        _pin(requirement, pins)
    gradio = pins["gradio"]
    if settings.card["sdk_version"] != gradio:
        raise InputError(
            f"{SETTINGS} asks for gradio {settings.card['sdk_version']} (sdk_version), and {gradio} is installed and "
            "tested here; make them the same."
        )
    # without a GPU the plain wheels would bring gigabytes of CUDA
    lines = [_CPU_INDEX] if (settings.hardware or "cpu-basic").startswith("cpu") else []
    return lines + [f"{name}=={version}" for name, version in sorted(pins.items())]


def build_folder(settings: SpaceSettings, folder: Path) -> list[str]:
    """Writes the Space's folder, whole or not at all, and returns its files' paths, sorted.

    Raises:
        InputError: The folder has something in it, or the settings don't fit what is installed.
        MissingExtraError: What the app needs is not installed.
    """
    lines = requirements(settings)
    with making(folder) as made:
        (made / "app.py").write_text(_APP, encoding="utf-8")
        (made / "requirements.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (made / "README.md").write_text(_readme(settings), encoding="utf-8")
        for name in PACKAGES:
            source = _package_folder(name)
            shutil.copytree(source, made / name, ignore=shutil.ignore_patterns("__pycache__", "*.py[co]", ".*"))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def push(
    name: str,
    settings: SpaceSettings,
    folder: Path,
    *,
    is_private: bool = False,
    wait: float | None = 1800,
    pause: float = 5.0,
    say: Say = lambda text: None,
) -> str:
    """Creates or updates a Space from a built folder, waits until it runs, and returns its address.

    Args:
        name: `ORG/NAME`.
        settings: What the hub is told.
        folder: As `build_folder` writes it.
        is_private: Whether only you see it, where it is made now.
        wait: Seconds to wait until it runs; None for not at all.
        pause: Seconds between looks.
        say: Told of each step.

    Raises:
        InputError: The name is not of that form.
        FetchError: Nobody is logged in, the hub refuses, or it can't be reached.
        CircuitsaeError: The Space does not come to run; its log was said.
    """
    import huggingface_hub

    check_name(name)
    if huggingface_hub.get_token() is None:
        raise FetchError(
            "Nobody is logged in to the Hugging Face hub: hf auth login, or set HF_TOKEN, to push a Space."
        )
    api = huggingface_hub.HfApi()
    with _explained(name), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # labels are data files, and they are meant to be there
        hardware: Any = settings.hardware
        made = api.create_repo(
            name, repo_type="space", space_sdk="gradio", space_hardware=hardware, private=is_private, exist_ok=True
        )
        say(f"{name}: uploading")
        for key, value in settings.variables.items():
            api.add_space_variable(name, key, value)
        api.upload_folder(
            repo_id=name,
            repo_type="space",
            folder_path=folder,
            delete_patterns="*",
            commit_message=f"circuitsae {circuitsae.__version__}",
        )
        runtime = api.get_space_runtime(name)
        if hardware is not None and hardware not in (runtime.hardware, runtime.requested_hardware):
            api.request_space_hardware(name, hardware)
        if settings.sleep is not None:
            api.set_space_sleep_time(name, settings.sleep)
    if wait is not None:
        _wait(api, name, wait, pause, say)
    return str(made)


def check_name(name: str) -> None:
    """Checks that a Space's name is `ORG/NAME`.

    Raises:
        InputError: It is not.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", name):
        raise InputError(f"{name!r} is no Space's name; expected ORG/NAME, such as your-name/circuitsae.")


def _wait(api: Any, name: str, wait: float, pause: float, say: Say) -> None:
    """Looks at the Space until it runs."""
    end, seen = time.monotonic() + wait, ""
    while True:
        with _explained(name):
            stage = str(api.get_space_runtime(name).stage)
        if stage != seen:
            say(f"{name}: {stage.lower().replace('_', ' ')}")
            seen = stage
        if stage == "RUNNING":
            return
        if _BROKEN.fullmatch(stage):
            for line in _logs(api, name, is_build=stage in ("BUILD_ERROR", "CONFIG_ERROR", "NO_APP_FILE")):
                say(line)
            raise CircuitsaeError(
                f"The Space {name} does not run: {stage}; the end of its log is above, all of it on its page on the hub."
            )
        if time.monotonic() > end:
            raise CircuitsaeError(
                f"The Space {name} was not running after {wait:.0f} s, its stage is {stage}; see its page on the hub."
            )
        time.sleep(pause)


def _logs(api: Any, name: str, *, is_build: bool) -> list[str]:
    """Returns the end of a Space's log. That it can't be had is no further failure."""
    if not hasattr(api, "fetch_space_logs"):
        return ["(this release of huggingface_hub can't fetch logs)"]
    try:
        lines = [line.rstrip("\n") for line in api.fetch_space_logs(name, build=is_build)]
    except Exception as error:  # the network's or the hub's
        return [f"(its log can't be had: {type(error).__name__})"]
    return [SECRET.sub("(secret)", line) for line in lines[-_LOG_LINES:]]


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what the hub and the network come up with into one sentence."""
    try:
        yield
    except CircuitsaeError:
        raise
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = SECRET.sub("(secret)", (str(error).strip() or type(error).__name__).splitlines()[0])
        if status in (401, 403):
            said = (
                f"The hub does not let you write the Space {name} (status {status}): log in as who may (hf auth login) with "
                "a token that may write."
            )
        elif status == 402:
            said = (
                f"The hub makes the Space {name} on this hardware for paid plans alone (status 402); choose other hardware "
                "under deploy in spaces.yaml."
            )
        elif status is not None:
            said = f"The Space {name} could not be pushed: the hub answered with status {status}."
        else:
            said = f"The Space {name} could not be pushed: {said}"
        raise FetchError(said) from error


def _readme(settings: SpaceSettings) -> str:
    """Returns the card: the settings' keys as front matter, and a few lines for people."""
    from huggingface_hub import SpaceCardData

    front = SpaceCardData(**settings.card).to_yaml(line_break="\n")
    return (
        f"---\n{front.strip()}\n---\n\n# {settings.card['title']}\n\n{settings.card.get('short_description', '')}\n\n"
        f"Made with circuitsae {circuitsae.__version__} (`circuitsae space push`). Nothing but a model and the package "
        "is needed to run it: no token, no account. Prompts are not kept.\n"
    )


def _package_folder(name: str) -> Path:
    found = importlib.util.find_spec(name)
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise MissingExtraError("A Space", name, "app")
    return Path(folders[0])


def _own_requirements() -> list[Any]:
    """Returns what the package and its app ask for, from the checkout's pyproject.toml or what is installed."""
    from packaging.requirements import Requirement

    project = Path(circuitsae.__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
        return [Requirement(text) for text in (*table["dependencies"], *table["optional-dependencies"]["app"])]
    texts = importlib.metadata.requires("circuitsae") or []
    found = [Requirement(text) for text in texts]
    return [one for one in found if one.marker is None or one.marker.evaluate({"extra": "app"})]


def _pin(requirement: Any, pins: dict[str, str]) -> None:
    """Pins a requirement to the installed version, and all that it asks for."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    todo: list[tuple[Any, frozenset[str]]] = [(requirement, frozenset(requirement.extras))]
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        wanted, extras = todo.pop()
        name = canonicalize_name(wanted.name)
        if (name, extras) in done:
            continue
        done.add((name, extras))
        try:
            version = importlib.metadata.version(name)
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            raise MissingExtraError("Building a Space", name, "app") from None
        pins[name] = version.partition("+")[0]  # torch's local label names its index
        for text in needs:
            need = Requirement(text)
            if any(_applies(need, extra) for extra in ("", *extras)):
                todo.append((need, frozenset(need.extras)))


def _applies(requirement: Any, extra: str) -> bool:
    return requirement.marker is None or bool(requirement.marker.evaluate({"extra": extra}))


def summary(files: Iterable[str], folder: Path) -> Mapping[str, Any]:
    """Returns what a built folder holds, for a person or as JSON."""
    files = list(files)
    return {
        "files": len(files),
        "bytes": sum((folder / name).stat().st_size for name in files),
        "requirements": (folder / "requirements.txt").read_text(encoding="utf-8").splitlines(),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }
