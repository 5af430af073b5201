"""Circuits as a dataset on the Hugging Face hub: the saved forms, pages, pictures and tables, with a card."""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from circuitsae import __version__
from circuitsae.errors import FetchError, InputError
from circuitsae.export.drawings import as_svg
from circuitsae.export.formats import as_csv, as_html
from circuitsae.files import write_whole
from circuitsae.graph.circuit import Circuit
from circuitsae.graph.schema import shown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def write_dataset(
    circuits: Mapping[str, Circuit], folder: str | os.PathLike[str], licence: str | None = None
) -> list[Path]:
    """Writes circuits as a dataset's folder and returns its files.

    `circuits/NAME.json` is the saved form, `pages/NAME.html` draws it, `pictures/NAME.svg` shows it in the card, and
    `nodes/NAME.csv` and `edges/NAME.csv` are the tables that the hub's viewer shows; `README.md` is the card.

    Args:
        circuits: By name: letters, digits, `-`, `_` and `.`.
        folder: Where to; made where it is not there.
        licence: The card's licence, as the hub abbreviates it (`cc-by-4.0`).

    Raises:
        InputError: There is no circuit, a name or the licence can't be used, or the folder can't be written.
    """
    if not circuits:
        raise InputError("There is no circuit to publish; expected at least one.")
    for name in circuits:
        if not _NAME.fullmatch(name):
            raise InputError(f"The name {shown(name)} can't be a file's; expected letters, digits, '-', '_' and '.'.")
    if licence is not None and not _LICENCE.fullmatch(licence):
        raise InputError(
            f"The licence {shown(licence)} can't be used; expected the hub's short form, such as 'cc-by-4.0'."
        )
    folder = Path(folder)
    contents: dict[Path, bytes] = {}
    for name, circuit in circuits.items():
        tables = as_csv(circuit)
        contents |= {
            folder / "circuits" / f"{name}.json": circuit.to_json().encode(),
            folder / "pages" / f"{name}.html": as_html(circuit).encode("utf-8", "backslashreplace"),
            folder / "pictures" / f"{name}.svg": as_svg(circuit).encode("utf-8", "replace"),
            folder / "nodes" / f"{name}.csv": tables[".nodes.csv"].encode("utf-8", "replace"),
            folder / "edges" / f"{name}.csv": tables[".edges.csv"].encode("utf-8", "replace"),
        }
    contents[folder / "README.md"] = dataset_card(circuits, licence).encode("utf-8", "replace")
    try:
        for path in contents:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Can't write {str(folder)!r}: {error.strerror or error}.") from error
    write_whole(contents)
    return list(contents)


def dataset_card(circuits: Mapping[str, Circuit], licence: str | None = None) -> str:
    """Returns the card of a dataset of circuits: what each explains, of which model, how it was traced and what it
    leaves out. Prompts and labels stand in it as text that no renderer takes for markup."""
    head: dict[str, Any] = {
        "tags": ["circuitsae", "interpretability", "sparse-autoencoders", "circuits"],
        "configs": [
            {"config_name": part, "data_files": f"{part}/*.csv", **({"default": True} if part == "nodes" else {})}
            for part in ("nodes", "edges")
        ],
        **({"license": licence} if licence else {}),
    }
    lines = [
        "---",
        *(f"{name}: {json.dumps(value, allow_nan=False)}" for name, value in head.items()),
        "---",
        "",
        "# Circuits",
        "",
    ]
    lines += [
        f"Traced with circuitsae {__version__}. `circuits/NAME.json` is the whole graph; `pages/NAME.html` draws it, without",
        "a network.",
        "",
        "```python",
        "import circuitsae as cs",
        "",
        f'circuit = cs.Circuit.load("circuits/{next(iter(circuits))}.json")',
        "```",
        "",
    ]
    for name, circuit in circuits.items():
        about, kept = circuit.graph.graph, circuit.graph.graph.get("kept", {})
        lines += [f"## {name}", "", f"![{name}](pictures/{name}.svg)", ""]
        rows = [
            ("prompt", circuit.prompt),
            ("against", about.get("patch") if isinstance(about.get("patch"), str) else ""),
            ("metric", about.get("metric", {}).get("description", "")),
            ("value", _number(about.get("metric_value"))),
            ("model", about.get("model", {}).get("name", "")),
            ("dictionaries", ", ".join(map(str, about.get("sites", [])))),
            (
                "method",
                " ".join(str(about.get(key, "")) for key in ("method", "baseline", "gradient", "linearisation")),
            ),
            ("nodes, edges", f"{len(circuit):,}, {circuit.graph.number_of_edges():,}"),
            ("share of |effect| kept", _number(kept.get("effect_share"))),
        ]
        lines += [f"- {what}: {_code(value)}" for what, value in rows if value and value.strip()]
        lines.append("")
    return "\n".join(lines)


def push_dataset(
    circuits: Mapping[str, Circuit],
    repository: str,
    *,
    private: bool = False,
    licence: str | None = None,
    message: str = "Circuits",
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Uploads circuits to a dataset repository of the Hugging Face hub, made where there is none, and returns its
    address. One commit; files of other circuits that are there stay, the card is written anew.

    Args:
        circuits: By name; see `write_dataset`.
        repository: `NAME/DATASET`.
        private: Whether a new repository is private; one that is there stays as it is.
        licence: The card's licence.
        message: The commit's.
        token: The hub's token; the one that `hf auth login` keeps by default.
        endpoint: The hub's address; huggingface_hub's own by default.

    Raises:
        InputError: A name can't be used.
        FetchError: The hub can't be reached, or refuses.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise InputError(
            f"{shown(repository)} is no dataset's name; expected NAME/DATASET, such as 'someone/circuits'."
        )
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token, library_name="circuitsae", library_version=__version__)
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(circuits, folder, licence)
        try:
            address = api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, repo_type="dataset", folder_path=folder, commit_message=message)
        except Exception as error:  # the hub's errors, and those of the HTTP library below it, change between versions
            raise FetchError(_sentence(error, repository)) from error
    return str(address)


def _sentence(error: Exception, repository: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__name__ == "LocalTokenNotFoundError":
        return f"The hub wants to know who uploads to {repository}: hf auth login, or set HF_TOKEN."
    if type(error).__name__ == "OfflineModeIsEnabled":
        return f"Nothing can be uploaded to {repository} while HF_HUB_OFFLINE is set."
    if status is not None:
        hint = ": hf auth login with a token that may write" if status in (401, 403, 404) else ""
        return f"The hub refuses the upload to {repository} (status {status}){hint}."
    return f"The upload to {repository} failed: {(str(error) or type(error).__name__).splitlines()[0].rstrip('.')}."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _code(text: str) -> str:
    """Returns text as a code span that nothing in it can leave: longer fences than it has, on one line."""
    text = " ".join(text.split())[:500]
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
