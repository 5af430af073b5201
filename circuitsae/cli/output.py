"""What the command shows: results on stdout, notes and progress on stderr, tables, numbers and tokens as text."""

import contextlib
import io
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from circuitsae.errors import CircuitsaeError
from circuitsae.files import reason_of
from circuitsae.progress import Progress

if TYPE_CHECKING:
    from circuitsae.tracing.estimates import Estimate

_DELAY = 0.3  # seconds that work may take before a bar is drawn for it


@runtime_checkable
class Stream(Protocol):
    """What a bar is drawn on."""

    def write(self, text: str, /) -> int:
        """Writes text."""
        ...

    def flush(self) -> None:
        """Sends on what was written."""
        ...


class Console:
    """Where a command writes.

    While a command runs, other libraries' `print` goes to stderr, so that stdout holds the result and nothing else.

    Args:
        as_json: The result is one JSON document.
        quiet: No notes and no progress bars on stderr; errors are still said there.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet, self.status = as_json, quiet, 0
        self._out, self._err = sys.stdout, sys.stderr
        for stream in (self._out, self._err):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # half characters of strangers' texts

    @property
    def width(self) -> int | None:
        """Columns of the terminal that reads the result; `None` where a file or a pipe does."""
        return shutil.get_terminal_size().columns if self._out.isatty() else None

    def print(self, text: str = "") -> None:
        """Writes a line of the result.

        Raises:
            CircuitsaeError: It can't be written; that nobody reads it any more is left to the caller.
        """
        with self._writing():
            print(text, file=self._out)

    def flush(self) -> None:
        """Writes what is still held back.

        Raises:
            CircuitsaeError: As for `print`.
        """
        with self._writing():
            self._out.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # what is held back would be tried again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            raise CircuitsaeError(f"The result can't be written to stdout: {reason_of(error)}.") from error

    def heading(self, text: str) -> None:
        """Writes a heading, bold where a person reads it."""
        bold = self._out.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.print(f"\033[1m{text}\033[0m" if bold else text)

    def text(self, text: str) -> None:
        """Writes lines of the result; a terminal gets them cut to its width, and nothing in them acts on it."""
        for line in text.splitlines():
            self.print(cut(printable(line), self.width))

    def report(self, text: str) -> None:
        """Writes lines of the result, the first as their heading."""
        first, _, rest = text.partition("\n")
        self.heading(cut(printable(first), self.width))
        self.text(rest)

    def cost(self, estimate: "Estimate") -> None:
        """Writes what something will cost."""
        if self.as_json:
            self.json(estimate.to_json())
        else:
            self.report(estimate.describe())

    def wrote(self, files: Sequence[Path]) -> None:
        """Says which files were written, and how large they are."""
        for file in files:
            self.note(f"wrote {file} ({file_size(file.stat().st_size)})")

    def json(self, value: Any) -> None:
        """Writes the result as JSON."""
        self.print(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))

    def note(self, text: str) -> None:
        """Says something that is not the result."""
        if not self.quiet:
            self._say(text)

    def error(self, text: str) -> None:
        """Says why it failed."""
        self._say(f"circuitsae: {text}")

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk below stderr is no reason to lose the result
            print(printable(text), file=self._err, flush=True)

    @contextlib.contextmanager
    def only_results_on_stdout(self) -> Iterator[None]:
        """Sends whatever else prints or warns to stderr, a line each."""

        def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
            if "circuitsae" in filename:
                self.note(f"warning: {message}")

        with contextlib.redirect_stdout(self._err), warnings.catch_warnings():
            warnings.showwarning = show
            yield

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Gives a callback `(done, total, what)` that draws a bar on stderr, a new one for each `what`.

        No bar is drawn when quiet, or when stderr is not a terminal.
        """
        if self.quiet or not self._err.isatty():
            yield lambda done, total, what: None
            return
        bars = _Bars(self._err)
        try:
            yield bars
        finally:
            bars.close()


class _Bars:
    """Draws one bar at a time; the work it shows names itself."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._what = stream, ""
        self._bar: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is None or what != self._what:
            from tqdm import tqdm

            self.close()
            self._what = what
            self._bar = tqdm(total=total, desc=what, file=self._stream, leave=False, dynamic_ncols=True, delay=_DELAY)
            if total >= 1_000_000:  # bytes
                self._bar.unit, self._bar.unit_scale, self._bar.unit_divisor = "B", True, 1000
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str, width: int | None = None) -> list[str]:
    """Returns the lines of a table with aligned columns, empty ones left out; what is over `width` is cut.

    Args:
        headers: A name for each column.
        rows: The cells.
        align: `l` or `r` for each column.
        width: Columns there are, `None` for any number.

    Example:
        >>> print("\\n".join(table(["token", "effect"], [["a", "-1.5"], ["but", "+10.0"]], "lr")))
        token  effect
        a        -1.5
        but     +10.0
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *rows, strict=True))
    keep = [i for i, column in enumerate(columns) if any(column[1:])] or list(range(len(columns)))
    widths = {i: max(map(len, columns[i])) for i in keep}
    lines = []
    for row in [headers, *rows]:
        cells = [row[i].rjust(widths[i]) if align[i] == "r" else row[i].ljust(widths[i]) for i in keep]
        line = "  ".join(cells).rstrip()
        lines.append(cut(line, width))
    return lines


def cut(line: str, width: int | None) -> str:
    """Returns a line of at most `width` columns; `None` is any number.

    Example:
        >>> cut("a long label", 8), cut("short", 8)
        ('a long …', 'short')
    """
    return line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…"


def number(value: float | None, *, signed: bool = False) -> str:
    """Returns a number with three decimals, in scientific notation where those would not show it; `""` for None.

    Example:
        >>> number(1.23456), number(-0.00001234), number(2, signed=True), number(None)
        ('1.235', '-1.23e-05', '+2.000', '')
    """
    if value is None:
        return ""
    size = abs(value)
    style = ".3f" if size == 0 or 1e-3 <= size < 1e5 else ".2e"
    return format(value, ("+" if signed else "") + style)


def percent(share: float) -> str:
    """Returns a share as a percentage.

    Example:
        >>> percent(0.8651), percent(0.0004)
        ('87 %', '0.04 %')
    """
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2g} %"


def quoted(token: str) -> str:
    """Returns a token in quotes, its spaces seen and nothing in it acting on the terminal."""
    return f'"{printable(token)}"'


def counted(n: int, one: str, many: str) -> str:
    """Returns a number with its noun.

    Example:
        >>> counted(1, "dictionary", "dictionaries")
        '1 dictionary'
    """
    return f"{n:,} {one if n == 1 else many}"


def printable(text: str) -> str:
    """Returns text in which control characters are written out, so that strangers' labels can't drive a terminal.

    Example:
        >>> printable("a\\x1b[31mb")
        'a\\\\x1b[31mb'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def file_size(n_bytes: int) -> str:
    """Returns a file's size for people.

    Example:
        >>> file_size(512), file_size(92_871_040)
        ('512 B', '93 MB')
    """
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if n_bytes >= 10 or unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000  # type: ignore[assignment]
    return f"{n_bytes:.1f} GB"
