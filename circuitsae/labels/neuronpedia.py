"""Labels from Neuronpedia: its web API, a feature at a time, and the files that it exports for a whole dictionary.

A dictionary is there a "source" of a model: `gpt2-small/8-res-jb`. What comes back is a stranger's: sizes are limited,
types are checked, and texts are only ever texts.
"""

import gzip
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from circuitsae import folders
from circuitsae.errors import FetchError, InputError
from circuitsae.files import write_whole
from circuitsae.graph.schema import shown
from circuitsae.labels.records import Context, Description

ADDRESS = "https://www.neuronpedia.org"

_LARGEST_ANSWER = 32 << 20
_LONGEST_LINE = 8 << 20
_MOST_UNPACKED = 16 << 30
_LONGEST_TEXT = 10_000
_CONTEXTS, _BEFORE, _AFTER = 5, 24, 8
_TRIES = 4
_AT_ONCE = 4
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
# Which hook point the sources of well-known sets describe, by what follows the layer in their name.
_KNOWN_SETS = (
    (r"res-jb", "hook_resid_pre"),
    (r"(?:gemmascope|llamascope)-(?:2-)?res-.*", "hook_resid_post"),
    (r"(?:gemmascope|llamascope)-(?:2-)?mlp-.*", "hook_mlp_out"),
    (r"gemmascope-(?:2-)?transcoder-.*", "hook_mlp_out"),
    (r"(?:gemmascope-(?:2-)?att|att-kk).*", "attn.hook_z"),
)


class NeuronpediaLabels:
    """Labels asked of Neuronpedia's API. Answers are kept on disk, so that a feature is asked for once.

    Args:
        sources: `SITE=MODEL/SOURCE`, several with commas between them; `MODEL/SOURCE` alone where its name says the
            site (`gpt2-small/8-res-jb`). Empty where `sites` is given.
        sites: The same as a mapping; what dictionaries say of themselves is found by `neuronpedia_ids`.
        base: Where the API is; `$CIRCUITSAE_NEURONPEDIA` by default, or Neuronpedia's own.
        key: Neuronpedia's API key, `$NEURONPEDIA_API_KEY` by default; not needed for reading.
        timeout: Seconds that one answer may take.
        cache: Folder for answers; the package's cache by default, `None` keeps them in memory only.

    Raises:
        InputError: A source can't be read, or its site is not known.
    """

    name = "neuronpedia"

    def __init__(
        self,
        sources: str = "",
        sites: Mapping[str, str] | None = None,
        *,
        base: str | None = None,
        key: str | None = None,
        timeout: float = 20.0,
        cache: "str | os.PathLike[str] | None" = "",
    ) -> None:
        self.sources = {**_parse_sources(sources), **{s: _identifier(i) for s, i in (sites or {}).items()}}
        if not self.sources:
            raise InputError(
                "No Neuronpedia source was named; expected SITE=MODEL/SOURCE, such as "
                "'blocks.8.hook_resid_pre=gpt2-small/8-res-jb'."
            )
        self.base = (base or os.environ.get("CIRCUITSAE_NEURONPEDIA") or ADDRESS).rstrip("/")
        if not self.base.startswith(("https://", "http://")):
            raise InputError(f"The address {self.base!r} is not a web address; expected https://...")
        self._key = key or os.environ.get("NEURONPEDIA_API_KEY")
        self._timeout = timeout
        self._cache = folders.cache_folder() / "neuronpedia" if cache == "" else None if cache is None else Path(cache)
        self._opener = urllib.request.build_opener(_SameHost)
        self._found: dict[tuple[str, int], Description | None] = {}
        self._lock = threading.Lock()

    def label(self, site: str, index: int) -> str:
        """Returns a feature's label, empty where there is none; see `describe`."""
        found = self.describe(site, index)
        return "" if found is None else found.label

    def labels(self, features: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Returns the labels of those of many features that have one, a few asked for at once; see `describe`."""
        wanted = [key for key in features if key[0] in self.sources]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                labels = list(pool.map(lambda key: self.label(*key), wanted))
            except FetchError:
                pool.shutdown(cancel_futures=True)
                raise
        return {key: label for key, label in zip(wanted, labels, strict=True) if label}

    def describe(self, site: str, index: int) -> Description | None:
        """Returns what Neuronpedia knows of a feature, `None` where it has none of that name.

        Raises:
            FetchError: It can't be reached, refuses, or answers with something else; said after a few tries.
        """
        source = self.sources.get(site)
        if source is None or index < 0:
            return None
        with self._lock:
            if (site, index) in self._found:
                return self._found[site, index]
        answer = self._kept(source, index)
        if answer is None:
            answer = self._ask(source, index)
            self._keep(source, index, answer)
        found = None if not answer else description_of(answer, site, index, f"{ADDRESS}/{source}/{index}")
        with self._lock:
            self._found[site, index] = found
        return found

    def _ask(self, source: str, index: int) -> dict[str, Any]:
        """Returns the API's answer, empty where it has no such feature."""
        address = f"{self.base}/api/feature/{source}/{index}"
        headers = {"Accept": "application/json", "User-Agent": "circuitsae"} | (
            {"x-api-key": self._key} if self._key else {}
        )
        problem = ""
        for attempt in range(_TRIES):
            wait = 0.5 * 2**attempt
            try:
                with self._opener.open(urllib.request.Request(address, headers=headers), timeout=self._timeout) as got:
                    body = got.read(_LARGEST_ANSWER + 1)
                if len(body) > _LARGEST_ANSWER:
                    raise FetchError(f"Neuronpedia's answer for {source}/{index} is over {_LARGEST_ANSWER:,} bytes.")
                answer = _json(body)
                if not isinstance(answer, dict):
                    raise FetchError(f"{address} answered with something else than a feature: {shown(answer)}.")
                return answer
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 404:
                        return {}
                    problem = f"status {error.code}"
                    if error.code in (401, 403):
                        raise FetchError(
                            f"Neuronpedia refuses {source}/{index} ({problem}); set NEURONPEDIA_API_KEY where the "
                            "source is private."
                        ) from None
                    if error.code != 429 and error.code < 500:
                        raise FetchError(f"Neuronpedia can't answer for {source}/{index}: {problem}.") from None
                    wait = max(wait, min(_seconds(error.headers.get("Retry-After")), 30.0))
            except (OSError, ValueError) as error:
                if isinstance(error, FetchError):
                    raise
                problem = str(getattr(error, "reason", "") or error) or type(error).__name__
            if attempt + 1 < _TRIES:
                time.sleep(wait)
        raise FetchError(f"Neuronpedia ({self.base}) can't be reached: {problem}.")

    def _place(self, source: str, index: int) -> Path | None:
        host = re.sub(r"[^A-Za-z0-9.-]", "_", urllib.parse.urlsplit(self.base).netloc)
        return None if self._cache is None else self._cache / host / source / f"{index}.json"

    def _kept(self, source: str, index: int) -> dict[str, Any] | None:
        place = self._place(source, index)
        try:
            kept = None if place is None else _json(place.read_bytes())
        except (OSError, ValueError):  # not there, or damaged: it is asked for again
            return None
        return kept if isinstance(kept, dict) else None

    def _keep(self, source: str, index: int, answer: dict[str, Any]) -> None:
        place = self._place(source, index)
        if place is None:
            return
        small = {name: answer[name] for name in _KEPT if name in answer}
        if isinstance(small.get("activations"), list):
            small["activations"] = small["activations"][:_CONTEXTS]
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole({place: json.dumps(small, allow_nan=False).encode()})
        except (OSError, ValueError, InputError):  # a cache that can't be written costs time, nothing else
            return


class NeuronpediaExport:
    """Labels in files that Neuronpedia exports: a folder a source, with `explanations/`, and perhaps `features/` and
    `activations/`, of `.jsonl` or `.jsonl.gz` files; or one such file of explanations.

    Explanations are read at the first question; the larger files only when a feature is described, up to the line
    that is wanted.

    Args:
        sources: `SITE=FOLDER`, several with commas between them; `FOLDER` alone where its name says the site.
        max_unpacked: Bytes that a compressed file may unpack to.

    Raises:
        InputError: A folder is not there, or its site is not known.
    """

    def __init__(self, sources: str | os.PathLike[str], *, max_unpacked: int = _MOST_UNPACKED) -> None:
        self.folders: dict[str, Path] = {}
        for part in os.fspath(sources).split(","):
            site, equals, path = part.partition("=")
            folder = Path(path if equals else part)
            if not folder.exists():
                raise InputError(f"There is no folder or file {str(folder)!r}.")
            self.folders[site if equals else _known_site(folder.name.partition(".jsonl")[0])] = folder
        self.name = "neuronpedia"
        self._max_unpacked = max_unpacked
        self._labels: dict[str, dict[int, str]] = {}
        self._seen: dict[Path, set[int]] = {}
        self._lock = threading.RLock()

    def label(self, site: str, index: int) -> str:
        """Returns a feature's label, empty where there is none.

        Raises:
            InputError: A file is damaged, or over the limits.
        """
        return self._site(site).get(index, "")

    def labels(self, features: Iterable[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Returns the labels of those of many features that have one."""
        return {(site, index): label for site, index in features if (label := self.label(site, index))}

    def describe(self, site: str, index: int) -> Description | None:
        """Returns what the files say of a feature, `None` where they say nothing.

        Raises:
            InputError: A file is damaged, or over the limits.
        """
        label = self.label(site, index)
        folder = self.folders.get(site)
        if folder is None:
            return None
        with self._lock:
            answer: dict[str, Any] = next(self._rows(folder / "features", index), {})
            answer["activations"] = list(self._rows(folder / "activations", index))
        answer["explanations"] = [{"description": label}] if label else []
        if not label and len(answer) == 2 and not answer["activations"]:
            return None
        return description_of(answer, site, index)

    def _site(self, site: str) -> dict[int, str]:
        with self._lock:
            if site not in self._labels and site in self.folders:
                folder, found = self.folders[site], {}
                files = [folder] if folder.is_file() else _files(folder / "explanations") or _files(folder)
                for file in files:
                    for row in self._lines(file):
                        index, text = _whole(row.get("index")), row.get("description")
                        if index is not None and isinstance(text, str):
                            found.setdefault(index, text.strip()[:_LONGEST_TEXT])
                self._labels[site] = found
            return self._labels.get(site, {})

    def _rows(self, folder: Path, index: int) -> Iterator[dict[str, Any]]:
        """Yields the rows about one feature; files are gone through once to learn which features each holds."""
        for file in _files(folder):
            if file not in self._seen:
                indices = (_whole(row.get("index")) for row in self._lines(file))
                self._seen[file] = {found for found in indices if found is not None}
            if index in self._seen[file]:
                yield from (row for row in self._lines(file) if _whole(row.get("index")) == index)

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        unpacked, number = 0, 0
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                while line := file.readline(_LONGEST_LINE + 1):
                    number += 1
                    unpacked += len(line)
                    if len(line) > _LONGEST_LINE or unpacked > self._max_unpacked:
                        limit = _LONGEST_LINE if len(line) > _LONGEST_LINE else self._max_unpacked
                        raise InputError(f"{str(path)!r}, line {number}: over {limit:,} bytes, which is refused.")
                    if line.strip():
                        row = _json(line)
                        if not isinstance(row, dict):
                            raise InputError(f"{str(path)!r}, line {number}: expected an object; got {shown(row)}.")
                        yield row
        except (OSError, EOFError, ValueError, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{str(path)!r} can't be read past line {number}: {shown(str(error))[1:-1]}.") from None


def neuronpedia_ids(dictionaries: Iterable[Any]) -> dict[str, str]:
    """Returns by site the `MODEL/SOURCE` that dictionaries' own metadata name (SAELens keeps it as `neuronpedia_id`)."""
    found: dict[str, str] = {}
    for dictionary in dictionaries:
        named = dictionary.metadata.get("neuronpedia_id")
        if isinstance(named, str) and named:
            found[dictionary.site] = named
    return found


def description_of(answer: Mapping[str, Any], site: str, index: int, address: str = "") -> Description:
    """Returns one of Neuronpedia's features as a description. Parts of unexpected types are left out."""
    explanations = [row for row in _list(answer.get("explanations")) if isinstance(row, dict)]
    texts = [text.strip() for row in explanations if isinstance(text := row.get("description"), str) and text.strip()]
    heights = [_number(value) for value in _list(answer.get("freq_hist_data_bar_heights"))]
    middles = [_number(value) for value in _list(answer.get("freq_hist_data_bar_values"))]
    width = None
    if len(middles) == len(heights) > 1 and middles[0] is not None and middles[1] is not None:
        width = middles[1] - middles[0]
    # bars that do not start at 0 can't be told in this package's terms
    counted = width is not None and width > 0 and abs((middles[0] or 0.0) - width / 2) < width
    rows = [row for row in _list(answer.get("activations")) if isinstance(row, dict)]
    contexts = sorted(filter(None, map(_context, rows)), key=lambda context: -context.activation)
    return Description(
        site,
        index,
        label=texts[0][:_LONGEST_TEXT] if texts else "",
        source="neuronpedia",
        promoted=_pairs(answer.get("pos_str"), answer.get("pos_values")),
        suppressed=_pairs(answer.get("neg_str"), answer.get("neg_values")),
        contexts=tuple(contexts[:_CONTEXTS]),
        density=_number(answer.get("frac_nonzero")),
        largest=_number(answer.get("maxActApprox")) or (contexts[0].activation if contexts else None),
        histogram=tuple(max(int(h or 0), 0) for h in heights) if counted else (),
        bin_width=width if counted else None,
        address=address,
    )


_KEPT = (
    *("explanations", "activations", "pos_str", "pos_values", "neg_str", "neg_values", "frac_nonzero"),
    *("maxActApprox", "freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
)


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows a redirection on the same host only: another one must not get the key."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if (old.scheme, old.netloc) != (new.scheme, new.netloc):
            raise FetchError(f"{req.full_url} sends us to {new.scheme}://{new.netloc}, which is another host.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _context(row: Mapping[str, Any]) -> Context | None:
    tokens, values = _list(row.get("tokens")), [_number(v) for v in _list(row.get("values"))]
    if not tokens or len(tokens) != len(values) or not all(isinstance(token, str) for token in tokens):
        return None
    peak = max(range(len(values)), key=lambda place: values[place] or 0.0)
    start, stop = max(0, peak - _BEFORE), peak + 1 + _AFTER
    shown_tokens = tuple(token[:_LONGEST_TEXT] for token in tokens[start:stop])
    return Context(shown_tokens, tuple(value or 0.0 for value in values[start:stop]), peak - start)


def _pairs(texts: Any, amounts: Any) -> tuple[tuple[str, float], ...]:
    pairs = zip(_list(texts), map(_number, _list(amounts)), strict=False)
    return tuple((text[:_LONGEST_TEXT], amount or 0.0) for text, amount in pairs if isinstance(text, str))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("its JSON is nested too deep") from None


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number - number == 0 else None


def _whole(value: Any) -> int | None:
    """Returns an index, which the files hold as text."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    return value if type(value) is int and 0 <= value < 10**15 else None


def _seconds(text: str | None) -> float:
    return float(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else 0.0


def _files(folder: Path) -> list[Path]:
    """Returns a folder's `.jsonl` and `.jsonl.gz` files, those with a number by its value."""
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if file.name.endswith((".jsonl", ".jsonl.gz")) and file.is_file()]

    def order(file: Path) -> tuple[int, str]:
        digits = re.search(r"\d{1,9}", file.name)
        return (int(digits[0]) if digits else -1, file.name)

    return sorted(files, key=order)


def _parse_sources(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        site, equals, source = part.partition("=")
        source = _identifier(source if equals else part)
        found[site if equals else _known_site(source.partition("/")[2])] = source
    return found


def _identifier(text: str) -> str:
    """Checks `MODEL/SOURCE`, which becomes part of an address and of a path."""
    parts = text.split("/")
    if len(parts) != 2 or not all(_IDENTIFIER.fullmatch(part) for part in parts):
        raise InputError(
            f"{text[:100]!r} is no Neuronpedia source; expected MODEL/SOURCE, such as 'gpt2-small/8-res-jb'."
        )
    return text


def _known_site(source: str) -> str:
    """Returns the site that a source's name stands for."""
    layer, dash, rest = source.partition("-")
    if dash and layer.isascii() and layer.isdigit():
        for pattern, hook in _KNOWN_SETS:
            if re.fullmatch(pattern, rest):
                return f"blocks.{int(layer)}.{hook}"
    raise InputError(f"The name {source[:100]!r} does not say which site it is for; write SITE=... before it.")
