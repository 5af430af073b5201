"""Work that takes time: in a thread, with progress that is passed on, stopped when asked or when it takes too long."""

import contextvars
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuitsae.errors import CancelledError, InputError
from circuitsae.progress import Progress

T = TypeVar("T")
_END = object()


def nobody() -> str:
    """Returns an owner of its own for a caller without a session, whose work nobody else can stop."""
    return f"nobody-{secrets.token_hex(16)}"


@dataclass(frozen=True)
class Step:
    """How far a piece of work has come: done, in all, and a word for it."""

    done: int
    total: int
    what: str


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a piece of work gave."""

    value: T


class TicketLock:
    """Lets one in at a time, in the order in which they came; one who waits may give up."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._changed = threading.Condition()

    def enter(self, gave_up: Callable[[], bool]) -> object | None:
        """Waits for its turn and returns a ticket for `leave`; `None` once `gave_up` says so."""
        ticket = object()
        with self._changed:
            self._waiting.append(ticket)
            while self._waiting[0] is not ticket:
                if gave_up():
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
                    return None
                self._changed.wait(0.05)
        return ticket

    def leave(self, ticket: object) -> None:
        """Lets the next one in."""
        with self._changed:
            self._waiting.remove(ticket)
            self._changed.notify_all()


class Jobs:
    """Pieces of work, each belonging to somebody who may stop it; one runs at a time, and long ones take turns."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._turn = TicketLock()
        self._stops: dict[str, set[threading.Event]] = {}
        self._lock = threading.Lock()

    def cancel(self, owner: str) -> int:
        """Asks all work of an owner, and of those under its name (`owner/...`), to stop; returns how many pieces."""
        with self._lock:
            names = [name for name in self._stops if name == owner or name.startswith(f"{owner}/")]
            stops = [stop for name in names for stop in self._stops[name]]
        for stop in stops:
            stop.set()
        return len(stops)

    def run(self, owner: str, work: Callable[[Progress], T]) -> T:
        """Does a piece of work and returns what it gives; see `stream`."""
        for step in self.stream(owner, work):
            if isinstance(step, Done):
                return step.value
        raise CancelledError("Cancelled.")

    def stream(self, owner: str, work: Callable[[Progress], T | Iterator[T]]) -> Iterator[Step | Done[T]]:
        """Does a piece of work in a thread and yields its progress (at most ten a second) and its result.

        Work that gives an iterator yields a result for each of its parts, and lets others run between them. Whoever
        stops iterating stops the work, when it next reports its progress.

        Raises:
            CancelledError: It was asked to stop.
            InputError: It worked longer than the deadline; waiting for its turn does not count.
            Exception: Whatever the work raised.
        """
        stop = threading.Event()
        steps: queue.SimpleQueue[Step | Done[T] | BaseException | None] = queue.SimpleQueue()
        began, worked, told = [0.0], [0.0], [0.0]  # the present turn's start; seconds of those before; when told last
        late = threading.Event()

        def progress(done: int, total: int, what: str) -> bool:
            now = time.monotonic()
            if worked[0] + now - began[0] > self._deadline:
                late.set()
                return False
            if now - told[0] > 0.1:
                told[0] = now
                steps.put(Step(done, total, what))
            return not stop.is_set()

        def turn(part: Callable[[], Any]) -> Any:
            ticket = self._turn.enter(stop.is_set)
            if ticket is None:
                raise CancelledError("Cancelled before it began.")
            began[0] = time.monotonic()
            try:
                return part()
            finally:
                worked[0] += time.monotonic() - began[0]
                self._turn.leave(ticket)

        def do() -> None:
            try:
                result = turn(lambda: work(progress))
                if isinstance(result, Iterator):
                    while (part := turn(lambda: next(result, _END))) is not _END:
                        steps.put(Done(part))
                else:
                    steps.put(Done(result))
                steps.put(None)
            except BaseException as error:
                steps.put(error)

        with self._lock:
            self._stops.setdefault(owner, set()).add(stop)
        try:
            # ZeroGPU asks the context whose request this is.
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=(do,), daemon=True, name="circuitsae-job").start()
            while True:
                step = steps.get()
                if step is None:
                    return
                if isinstance(step, BaseException):
                    if late.is_set() and isinstance(step, CancelledError):
                        raise InputError(f"Stopped after {self._deadline:g} seconds, which is the limit here.")
                    raise step
                yield step
        finally:
            stop.set()
            with self._lock:
                mine = self._stops.get(owner, set())
                mine.discard(stop)
                if not mine:
                    self._stops.pop(owner, None)
