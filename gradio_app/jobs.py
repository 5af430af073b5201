"""Work that takes time: in a thread, with progress that is passed on, stopped when asked or when it takes too long."""

import contextvars
import queue
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from circuitsae.errors import CancelledError, InputError
from circuitsae.progress import Progress

T = TypeVar("T")
_END = object()


EACH = 8
AT_ONCE = (
    32  # pieces waiting and running in all; each holds one of gradio's 40 threads, and files are served by the others
)


def owner_of(session: str | None, address: str | None) -> str:
    """Returns who owns a piece of work: a session, or, where there is none, a call that nobody else can stop.

    Calls without a session from one address are those of one client, and take turns as one.
    """
    return f"session:{session}" if session else f"address:{address}/{secrets.token_hex(16)}"


def _client(owner: str) -> str:
    return owner.partition("/")[0]


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


class Turns:
    """Lets one in at a time, clients by turns and each client's own in the order they came in; one may give up."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[str, deque[object]] = OrderedDict()  # clients in the order of their turns
        self._inside: object | None = None
        self._changed = threading.Condition()

    def enter(self, client: str, gave_up: Callable[[], bool], ahead: Callable[[int], None]) -> object | None:
        """Waits for its turn and returns a ticket for `leave`; `None` once `gave_up` says so.

        Args:
            client: Whose turn it is to be.
            gave_up: Whether it is wanted no more.
            ahead: Told, while it waits, about how many come before it.
        """
        ticket = object()
        with self._changed:
            self._waiting.setdefault(client, deque()).append(ticket)
            while self._inside is not None or next(iter(self._waiting.values()))[0] is not ticket:
                if gave_up():
                    self._remove(client, ticket)
                    self._changed.notify_all()
                    return None
                ahead(self._ahead(client, ticket))
                self._changed.wait(0.05)
            self._remove(client, ticket)
            if client in self._waiting:
                self._waiting.move_to_end(client)
            self._inside = ticket
        return ticket

    def leave(self, ticket: object) -> None:
        """Lets the next one in."""
        with self._changed:
            assert self._inside is ticket
            self._inside = None
            self._changed.notify_all()

    def _remove(self, client: str, ticket: object) -> None:
        self._waiting[client].remove(ticket)
        if not self._waiting[client]:
            del self._waiting[client]

    def _ahead(self, client: str, ticket: object) -> int:
        """Returns how many come before one: other clients have as many turns, if they want them, as this one."""
        own = self._waiting[client].index(ticket)
        others = sum(min(own + 1, len(queue)) for name, queue in self._waiting.items() if name != client)
        return own + others + (self._inside is not None)


class Jobs:
    """Pieces of work, each belonging to somebody who may stop it; one runs at a time, and clients take turns.

    The client of a piece of work is what stands before the first `/` of its owner's name.

    Args:
        deadline: Seconds that a piece may work.
        each: Pieces that a client may have waiting and running.
    """

    def __init__(self, deadline: float, each: int = EACH) -> None:
        self._deadline, self._each = deadline, each
        self._turns = Turns()
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

        While others are before it, it says so once a second: whoever passes the steps on sees then that nobody listens.

        Raises:
            CancelledError: It was asked to stop.
            InputError: Its client has too much waiting already, or it worked longer than the deadline; waiting for its
                turn does not count.
            Exception: Whatever the work raised.
        """
        stop = threading.Event()
        steps: queue.SimpleQueue[Step | Done[T] | BaseException | None] = queue.SimpleQueue()
        began, worked, told = [0.0], [0.0], [0.0]  # the present turn's start; seconds of those before; when told last
        waited = [0.0]  # since when it waits for its turn, or said so
        late = threading.Event()
        client = _client(owner)

        def ahead(before: int) -> None:
            now = time.monotonic()
            if before and now - waited[0] > 1:
                waited[0] = now
                steps.put(Step(0, 0, f"Waiting for the model, {before} before this"))

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
            waited[0] = time.monotonic()
            ticket = self._turns.enter(client, stop.is_set, ahead)
            if ticket is None:
                raise CancelledError("Cancelled before it began.")
            began[0] = time.monotonic()
            try:
                return part()
            finally:
                worked[0] += time.monotonic() - began[0]
                self._turns.leave(ticket)

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
            if sum(len(stops) for name, stops in self._stops.items() if _client(name) == client) >= self._each:
                raise InputError(f"{self._each} of your questions are being answered; ask again when one of them is.")
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
