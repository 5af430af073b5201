"""One cache for all dictionaries of the process: converted weights, least recently used first out, under a byte budget.

Encoders are stored as float16 or bfloat16 and used as float32, so what is worth keeping is the converted copy. A tensor
larger than the whole budget is never kept: its dictionary streams it instead. The budget is `CIRCUITSAE_CACHE_BYTES`
(bytes), by default 1 GiB or a quarter of the machine's memory, whichever is less.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from torch import Tensor

from circuitsae.errors import InputError

VARIABLE = "CIRCUITSAE_CACHE_BYTES"
Key = tuple[Hashable, ...]


class WeightCache:
    """Tensors by key under a byte budget; a key's first part is its owner. Safe to use from several threads."""

    def __init__(self, budget: int | None = None) -> None:
        self._budget = budget
        self._entries: OrderedDict[Key, Tensor] = OrderedDict()
        self._used = 0
        self._lock = threading.RLock()

    @property
    def budget(self) -> int:
        """Bytes that may be kept.

        Raises:
            InputError: `CIRCUITSAE_CACHE_BYTES` is not a whole number of bytes.
        """
        if self._budget is None:
            self._budget = _default_budget()
        return self._budget

    @budget.setter
    def budget(self, budget: int | None) -> None:
        with self._lock:
            self._budget = budget
            self._make_room(0)

    @property
    def used(self) -> int:
        """Bytes kept now."""
        return self._used

    def fits(self, nbytes: int) -> bool:
        """Tells whether a tensor of this size could be kept, others dropped if need be."""
        return nbytes <= self.budget

    def peek(self, key: Key) -> Tensor | None:
        """Returns what is kept under a key, if anything."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def get(self, key: Key, make: Callable[[], Tensor]) -> Tensor:
        """Returns what is kept under a key, or makes it and keeps it if the budget allows."""
        with self._lock:
            found = self.peek(key)
            if found is not None:
                return found
            made = make()
            nbytes = made.nbytes
            if self.fits(nbytes):
                self._make_room(nbytes)
                self._entries[key] = made
                self._used += nbytes
            return made

    def release(self, owner: Hashable | None = None) -> None:
        """Drops everything of one owner, or everything."""
        with self._lock:
            for key in [k for k in self._entries if owner is None or k[0] == owner]:
                self._used -= self._entries.pop(key).nbytes

    def _make_room(self, nbytes: int) -> None:
        while self._entries and self._used + nbytes > self.budget:
            _, oldest = self._entries.popitem(last=False)
            self._used -= oldest.nbytes


def _default_budget() -> int:
    given = os.environ.get(VARIABLE)
    if given is not None:
        if not given.strip().isdigit():
            raise InputError(
                f"{VARIABLE} is {given!r}; expected a whole number of bytes, such as 1073741824 (0 keeps nothing)."
            )
        return int(given)
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        memory = 4 << 30
    return min(1 << 30, memory // 4)


CACHE = WeightCache()


def release() -> None:
    """Drops every converted weight of the process; dictionaries read them again when next used."""
    CACHE.release()
