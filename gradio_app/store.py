"""The circuits that are on people's screens, held by id within a budget of bytes."""

import json
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from circuitsae.errors import InputError
from circuitsae.export.view import view_payload
from circuitsae.graph.circuit import Circuit
from gradio_app.forms import Form

_BYTES_A_LETTER = 14  # of the payload; what networkx' dictionaries take for the same numbers, measured


@dataclass
class Entry:
    """A circuit that can be looked at, and what it came from.

    Attributes:
        id: Its name in the page, which nobody can guess.
        circuit: The circuit.
        payload: What the drawing is given, as JSON.
        form: What was asked; `None` for an uploaded circuit that names no preset here.
        colours: Further ways of colouring its nodes, as the drawing's overlay has them (a comparison's).
    """

    id: str
    circuit: Circuit
    payload: str
    form: Form | None
    colours: list[dict[str, Any]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        return _BYTES_A_LETTER * len(self.payload)

    @property
    def keys(self) -> list[str]:
        """The nodes' keys in the payload's order."""
        from circuitsae import names

        return sorted(self.circuit.graph, key=names.sort_key)


class Store:
    """Entries by id, the least recently used dropped first; those that are pinned stay."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._pinned: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def add(
        self,
        circuit: Circuit,
        form: Form | None,
        *,
        pinned_as: str | None = None,
        colours: list[dict[str, Any]] | None = None,
    ) -> Entry:
        """Takes in a circuit and returns its entry."""
        payload = json.dumps(view_payload(circuit), separators=(",", ":"), allow_nan=False)
        entry = Entry(pinned_as or secrets.token_urlsafe(12), circuit, payload, form, colours or [])
        with self._lock:
            if pinned_as is not None:
                self._pinned[entry.id] = entry
                return entry
            self._entries[entry.id] = entry
            while len(self._entries) > 1 and sum(e.size for e in self._entries.values()) > self._budget:
                self._entries.popitem(last=False)
        return entry

    def get(self, id: Any) -> Entry:
        """Returns the entry of an id.

        Raises:
            InputError: It is not there, or not any more.
        """
        with self._lock:
            entry = self._pinned.get(id) if isinstance(id, str) else None
            if entry is None and isinstance(id, str) and id in self._entries:
                self._entries.move_to_end(id)
                entry = self._entries[id]
        if entry is None:
            raise InputError("This circuit is no longer in the app's memory; press Trace to have it again.")
        return entry

    @property
    def size(self) -> int:
        """About how many bytes all entries take that can be dropped."""
        with self._lock:
            return sum(e.size for e in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)
