"""Files and folders are there whole or not at all, and what a dead process left goes."""

import contextlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitsae import files
from circuitsae.errors import InputError


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """A disk on which no file grows beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_all_files_are_written_before_the_first_takes_its_place(tmp_path: Path) -> None:
    first, last = tmp_path / "a", tmp_path / "b"
    files.write_whole({first: b"1", last: b"2"})
    with largest_file(1000), pytest.raises(InputError, match="b': file too large"):
        files.write_whole({first: b"new", last: b"x" * 2000})
    assert contents(tmp_path) == {"a": b"1", "b": b"2"} and len(list(tmp_path.iterdir())) == 2


def test_files_take_their_places_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that comes last never names what is not there."""
    order: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    files.write_whole({tmp_path / name: b"" for name in ("graph", "index")})
    assert order == ["graph", "index"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no/file", "there is no folder '.*no'; make it first"),
        ("", "it is a folder; name a file in it"),
        ("file/x", "there is no folder"),
        ("nul\0", "embedded null"),
        ("x" * 300, "file name too long"),
        ("\ud800", "surrogates not allowed"),
        ("/dev/full", "no space left on device"),
        ("/proc/x", "no such file"),
    ],
)
def test_a_path_that_cannot_be_written_is_said_in_a_sentence(path: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=f"Can't write .*{why}"):
        files.write_whole({tmp_path / path: b"x"})
    assert contents(tmp_path) == {"file": b""}


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path: Path) -> None:
    files.write_whole({Path("/dev/null"): b"x"})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    reading, writing = os.pipe()
    files.write_whole({Path(f"/dev/fd/{writing}"): b"x"})
    os.close(writing)
    assert os.read(reading, 9) == b"x"
    os.close(reading)


def test_links_stay_and_permissions_too(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write_whole({link: b"new"})
    assert link.is_symlink() and real.read_bytes() == b"new" and stat.S_IMODE(real.stat().st_mode) == 0o640


def test_an_error_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.replacing(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), files.making(tmp_path / "b") as made:
        (made / "x").write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_folder_is_made_whole_in_the_place_of_nothing_or_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty", "deep/er"):
        with files.making(tmp_path / name) as made:
            (made / "in").mkdir()
            (made / "in" / "x").write_bytes(b"1")
            assert not list(tmp_path.glob(f"{name}/*"))
        assert contents(tmp_path / name) == {"in/x": b"1"}
        with pytest.raises(InputError, match="is there and not empty"), files.making(tmp_path / name):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "empty", "new"]


WRITER = """
import sys
from pathlib import Path
from circuitsae import files
with files.scratch(Path(sys.argv[1])) as folder:
    (folder / "half").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_what_a_dead_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(files.__file__).parents[1])}
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdin is not None and writer.stdout is not None
    folder = Path(writer.stdout.readline().strip())
    files.remove_leftovers(tmp_path)
    assert (folder / "half").exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    (tmp_path / ".circuitsae-aaaaaaaaaaaa.part").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_bytes(b"")
    assert (folder / "half").exists()
    files.write_whole({tmp_path / "a": b""})
    assert not folder.exists() and (tmp_path / "a").exists() and (tmp_path / "mine" / "x").exists()


def test_a_folder_taken_for_a_leftover_before_it_was_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, taken = files._lock, list[Path]()

    def removed_first(folder: Path, *, shared: bool) -> int:
        if shared and not taken:
            taken.append(folder)
            files.remove_leftovers(tmp_path)
        return lock(folder, shared=shared)

    monkeypatch.setattr(files, "_lock", removed_first)
    files.write_whole({tmp_path / "a": b"1"})
    assert taken and contents(tmp_path) == {"a": b"1"}


def test_no_locks_are_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "fcntl", None)
    (tmp_path / ".circuitsae-aaaaaaaaaaaa.part").mkdir()
    files.write_whole({tmp_path / "a": b"1"})
    assert contents(tmp_path) == {"a": b"1"} and len(list(tmp_path.iterdir())) == 2
