"""Kills commands that write, and looks at what they leave:

    python -m tests.faults --kills 500

Each command is first run to its end in a process of its own. Then it is killed: exactly before and after each renaming of a
file, the rest at random times, always in the folder that the kills before it left. Nothing there may ever be half a file, and
one more run must end with what the first one gave and nothing else. At last each is run on a full disk, which must be said in
a sentence, and two of it at once.
"""

import argparse
import dataclasses
import importlib
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from circuitsae.__main__ import main as run_command
from circuitsae.graph.circuit import Circuit
from tests.presets.llama import make_small_llama

IMPORTED = (  # what each fork would have to import
    "circuitsae.evaluation.page", "circuitsae.labels.describing", "circuitsae.presets.conversion", "circuitsae.testing",
    "circuitsae.tracing.steps", "circuitsae.task.reading", "gguf", "transformer_lens", "transformers",
    "transformer_lens.model_bridge", "huggingface_hub", "accelerate", "safetensors.numpy", "networkx",
)  # fmt: skip
PROMPT = ("The keys to the cabinet", "--answer", " are", "--foil", " is", "--preset", "tiny")
TASKS = ("agreement-simple", "-n", "2", "--preset", "tiny", "--random", "1", "--grid", "0.1", "1", "--bootstrap", "0")
PRESET = f"""
name = "small"
summary = "small"
dictionaries = ["./sae"]
[model]
wheel = "small-llama==0.1"
sha256 = "{"0" * 64}"
member = "model.gguf"
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line that writes into the current folder.

    Attributes:
        name: What it is called in the report.
        arguments: `{inputs}` is a folder with what it may read: circuit.json, text.txt, model.gguf, preset.toml.
        weight: How often it is killed, against the others: those that take longer less often.
    """

    name: str
    arguments: tuple[str, ...]
    weight: int = 2


COMMANDS = [
    Command("trace", ("trace", *PROMPT, "-o", "c.json", "-o", "c.html")),
    Command("effects", ("effects", *PROMPT, "-o", "e.csv")),
    Command("scan", ("scan", *PROMPT, "--nodes", "2", "-o", "s.csv")),
    Command("tasks", ("tasks", "ioi", "-n", "5", "--preset", "tiny", "-o", "t.jsonl")),
    Command("export", ("export", "{inputs}/circuit.json", "-o", "x.csv", "-o", "x.svg", "-o", "x.graphml")),
    Command("evaluate", ("evaluate", *TASKS, "--store", "store", "-o", "e.json")),
    Command("batch", ("batch", *TASKS[:5], "--max-nodes", "8", "-o", "b"), 1),
    Command("report", ("report", *TASKS, "--circuits", "1", "--measure", "1", "-o", "r.html"), 1),
    Command("describe", ("describe", "--preset", "tiny", "--text", "{inputs}/text.txt", "-o", "l.parquet"), 1),
    Command("plugins", ("plugins", "new", "mine", "-o", "plugin")),
    Command(
        "space", ("space", "push", "a/b", "--dry-run", "--folder", "space", "--settings", "{inputs}/spaces.yaml"), 1
    ),
    Command("fetch", ("fetch", "{inputs}/preset.toml", "--from", "{inputs}/model.gguf")),
]


def make_inputs(folder: Path) -> None:
    """Writes what the commands read."""
    folder.mkdir()
    root = Path(__file__).parents[2]
    make_small_llama(folder / "model.gguf")
    (folder / "preset.toml").write_text(PRESET)
    (folder / "text.txt").write_text("The keys to the cabinet are here .\n" * 8)
    (folder / "spaces.yaml").write_bytes((root / "spaces.yaml").read_bytes())
    done = run(Command("trace", ("trace", *PROMPT, "-o", "circuit.json")), folder, folder)
    assert done.status == 0, done


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of a command: its status (minus the signal that ended it), seconds, and what it wrote to the terminal."""

    status: int
    seconds: float
    said: str

    @property
    def is_refused(self) -> bool:
        """Whether it ended as one that can't write ends: by one sentence of the package's own."""
        last = self.said.rstrip().rpartition("\n")[2]
        return self.status in (1, 2) and last.startswith("circuitsae: ") and "unexpected" not in last


def start(command: Command, inputs: Path, folder: Path, prepare: Callable[[], object] | None = None) -> tuple[int, int]:
    """Starts a command in a fork of this process, which has everything imported; `prepare` is called there first.

    Returns:
        The fork's number, and where to read what it says.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        os.environ["CIRCUITSAE_CACHE"] = str(folder / "cache")
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False, buffering=1)
        try:
            if prepare is not None:
                prepare()
            os._exit(run_command([part.format(inputs=inputs) for part in command.arguments]))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(70)
    os.close(writing)
    return child, reading


def end(child: int, reading: int, began: float) -> Run:
    """Waits for a fork."""
    with open(reading, "rb") as said:
        text = said.read().decode("utf-8", "replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Run(status, time.monotonic() - began, text)


def run(
    command: Command,
    inputs: Path,
    folder: Path,
    prepare: Callable[[], object] | None = None,
    kill_after: float | None = None,
) -> Run:
    """Runs a command in a fork to its end, or kills it after some seconds."""
    began = time.monotonic()
    child, reading = start(command, inputs, folder, prepare)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)  # it is not waited for before: its number is its own
    return end(child, reading, began)


class AtRename:
    """Called in a fork, kills it before or after one of its renamings; or counts them."""

    def __init__(self, number: int | None, *, is_after: bool = False, count: Path | None = None) -> None:
        self.number, self.is_after, self.count, self.seen = number, is_after, count, 0

    def __call__(self) -> None:
        for name in ("replace", "rename"):
            setattr(os, name, self._around(getattr(os, name)))

    def _around(self, rename: Callable[..., None]) -> Callable[..., None]:
        def renamed(*args: Any, **kwargs: Any) -> None:
            self.seen += 1
            if self.count is not None:
                self.count.write_text(str(self.seen))
            if self.seen == self.number and not self.is_after:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args, **kwargs)
            if self.seen == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        return renamed


def check_whole(path: Path) -> None:
    """Reads a file as what its name says, to its end."""
    content = path.read_bytes()
    if path.suffix == ".parquet":
        pyarrow.parquet.read_table(path)
    elif path.suffix == ".json":
        assert isinstance(json.loads(content), dict)
        if path.name == "c.json":
            Circuit.load(path)
    elif path.suffix == ".jsonl":
        assert [json.loads(line) for line in content.splitlines()] and content.endswith(b"\n")
    elif path.suffix in (".html", ".svg", ".graphml"):
        assert content.rstrip().endswith((b"</html>", b"</svg>", b"</graphml>"))


def files_in(folder: Path) -> dict[str, int]:
    """Returns the files that are no leftovers of a killed process nor locks, and their sizes."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".lock", ".pyc"))
    return {
        str(p.relative_to(folder)): p.stat().st_size
        for p in found
        if not any(part.startswith(".circuitsae-") for part in p.relative_to(folder).parts)
    }


def leftovers_in(folder: Path) -> list[str]:
    """Returns what is being written, or was."""
    return [str(p.relative_to(folder)) for p in folder.rglob(".circuitsae-*")]


def check_run(run: Run, command: Command) -> None:
    """A folder that an earlier run made whole is not written over; nothing else may go wrong."""
    assert run.status == 0 or (run.is_refused and "is there and not empty" in run.said), f"{command.name}: {run.said}"


def check_folder(folder: Path, want: dict[str, int], command: Command) -> None:
    """Nothing is there that a whole run does not give, and what is there is whole."""
    there = files_in(folder)
    assert set(there) <= set(want), f"{command.name} left {sorted(set(there) - set(want))}"
    for name in there:
        check_whole(folder / name)
    made_whole = [n for n in ("plugin", "space", "cache") if any(f.startswith(f"{n}/") for f in there)]
    assert not made_whole or set(there) == set(want), f"{command.name}: half a folder"


def killed(command: Command, inputs: Path, work: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Kills a command that often, and returns what was seen; anything that must not be is an AssertionError."""
    first, folder, count = work / "first", work / "killed", work / "count"
    first.mkdir(parents=True)
    folder.mkdir()
    done = run(command, inputs, first, AtRename(None, count=count))
    assert done.status == 0, f"{command.name}: {done.said}"
    want, renames = files_in(first), int(count.read_text())
    assert want and renames, command.name
    plan: list[AtRename | float] = [AtRename(n + 1, is_after=late) for n in range(renames) for late in (False, True)]
    plan = draw.sample(plan, min(len(plan), -(-kills // 2)))
    plan += [draw.uniform(0, 1.1 * done.seconds) for _ in range(kills - len(plan))]
    draw.shuffle(plan)
    dead = 0
    for kill in plan:
        prepare, seconds = (kill, None) if isinstance(kill, AtRename) else (None, kill)
        seen = run(command, inputs, folder, prepare, seconds)
        dead += seen.status == -signal.SIGKILL
        if seen.status != -signal.SIGKILL:
            check_run(seen, command)
        check_folder(folder, want, command)
    check_run(run(command, inputs, folder), command)
    assert set(files_in(folder)) == set(want) and not leftovers_in(folder), f"{command.name}: {leftovers_in(folder)}"
    return (
        {"command": command.name, "runs": len(plan), "killed": dead, "renames": renames}
        | full(command, inputs, work, want)
        | {"seconds": round(done.seconds, 2)}
    )


def full(command: Command, inputs: Path, work: Path, want: dict[str, int]) -> dict[str, Any]:
    """Runs a command on a disk on which no file grows beyond half of its largest one; then two of it at once."""
    folder = work / "full"
    folder.mkdir()
    size = max(want.values()) // 2
    seen = run(command, inputs, folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert seen.is_refused and "file too large" in seen.said.lower(), f"{command.name}: {seen.said}"
    check_folder(folder, want, command)
    assert not leftovers_in(folder), f"{command.name} left {leftovers_in(folder)}"
    began = time.monotonic()
    both = [end(*one, began) for one in [start(command, inputs, folder) for _ in range(2)]]
    assert any(one.status == 0 for one in both) and all(one.status == 0 or one.is_refused for one in both), both
    check_folder(folder, want, command)
    assert set(files_in(folder)) == set(want) and not leftovers_in(folder), f"{command.name}: {leftovers_in(folder)}"
    return {"largest": 2 * size, "refused": sum(one.status != 0 for one in both)}


def main(argv: Sequence[str] | None = None) -> int:
    """Kills all commands, or those named, and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("commands", nargs="*", help="all by default")
    args = parser.parse_args(argv)
    missing = {"space"} if importlib.util.find_spec("gradio") is None else set()
    chosen = [c for c in COMMANDS if (c.name in args.commands if args.commands else c.name not in missing)]
    shares = [max(1, round(args.kills * c.weight / sum(c.weight for c in chosen))) for c in chosen]
    total = 0
    with tempfile.TemporaryDirectory() as place:
        for module in IMPORTED:
            importlib.import_module(module)
        make_inputs(Path(place) / "inputs")
        for command, kills in zip(chosen, shares, strict=True):
            seen = killed(command, Path(place) / "inputs", Path(place) / command.name, kills, random.Random(args.seed))
            total += seen["killed"]
            print(json.dumps(seen), flush=True)  # noqa: T201
    print(json.dumps({"killed": total}), flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
