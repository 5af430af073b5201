"""Matching the nodes of different prompts' circuits: by position, by the slots of their common template, or not at all."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.circuit import Circuit

Align = Literal["position", "template", "sum"]
ALIGNMENTS: tuple[str, ...] = get_args(Align)

_SHOWN = 3  # texts of one place


@dataclass(frozen=True)
class Alignment:
    """Where each circuit's positions go.

    Attributes:
        places: By circuit and position, its number in the common prompt; `None` where positions are summed over.
        tokens: The common prompt's texts: the token, or those that stand there, or a slot's name; `None` likewise.
    """

    places: tuple[tuple[int, ...], ...] | None
    tokens: tuple[str, ...] | None


class Aligning:
    """Finds where the positions of one circuit after another go; of a circuit itself nothing is kept.

    Args:
        align: See `align_circuits`.
        slots: By circuit, the slot's name at each position.
        texts: By circuit, its tokens: for `"template"` without slots, which looks at all prompts before the first.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: Slots that are not asked for.
    """

    def __init__(
        self, align: str, slots: Sequence[Sequence[str]] | None = None, texts: Sequence[Sequence[str]] | None = None
    ) -> None:
        check_alignment(align, ())
        if slots is not None and align != "template":
            raise InputError(f"slots are for align='template'; align={align!r} was given.")
        self.align, self.slots, self.count = align, slots, 0
        self._models: set[str] = set()
        self._fingerprints: dict[str, str] = {}
        self._number: dict[str, int] = {}
        self._columns: list[dict[str, None]] | None = None
        self._common = None if align != "template" or slots is not None else _by_common_tokens(texts or [])

    def add(self, circuit: Circuit) -> tuple[int, ...] | None:
        """Returns the places of one more circuit's positions, `None` where positions are summed over.

        Raises:
            InputError: It is of another model or other dictionaries, or can't be aligned so.
        """
        self._check_comparable(circuit)
        number, self.count = self.count, self.count + 1
        if self.align == "sum":
            return None
        if self._common is not None:
            assert self._common.places is not None
            return self._common.places[number]
        texts = tokens_of(circuit)
        if self.slots is not None:
            row = self.slots[number] if number < len(self.slots) else ()
            if len(row) != len(texts):
                raise InputError(
                    f"slots has {len(row)} names for circuit {number}; expected one a token of its prompt, {len(texts)}."
                )
            return tuple(self._number.setdefault(name, len(self._number)) for name in row)
        if self._columns is None:
            self._columns = [{} for _ in texts]
        check_alignment(self.align, [len(self._columns), len(texts)])
        for column, text in zip(self._columns, texts, strict=True):
            if len(column) <= _SHOWN:
                column[text] = None
        return tuple(range(len(texts)))

    def tokens(self) -> tuple[str, ...] | None:
        """Returns the common prompt's texts, once all circuits have been seen; `None` where positions are summed over.

        Raises:
            InputError: There was no circuit, or there are slots for more.
        """
        if not self.count:
            raise InputError("No circuit was given; expected at least one.")
        if self.slots is not None and len(self.slots) != self.count:
            raise InputError(f"slots is for {len(self.slots)} circuits; there are {self.count}.")
        if self._common is not None:
            return self._common.tokens
        if self._columns is not None:
            return tuple(_joined(column) for column in self._columns)
        return None if self.align == "sum" else tuple(self._number)

    def _check_comparable(self, circuit: Circuit) -> None:
        """Refuses circuits whose nodes of one name are different things."""
        about = circuit.graph.graph
        self._models |= {str(about.get("model", {}).get("name", ""))} - {""}
        if len(self._models) > 1:
            raise InputError(f"The circuits are of different models ({', '.join(sorted(self._models))}); expected one.")
        for dictionary in about.get("dictionaries", []):
            site, fingerprint = str(dictionary.get("site", "")), str(dictionary.get("fingerprint", ""))
            if fingerprint and self._fingerprints.setdefault(site, fingerprint) != fingerprint:
                raise InputError(
                    f"The circuits were traced with different dictionaries at {site!r}; a feature of one is no feature of "
                    "the other."
                )


def align_circuits(circuits: Sequence[Circuit], align: str, slots: Sequence[Sequence[str]] | None = None) -> Alignment:
    """Matches positions of circuits.

    Args:
        circuits: At least one.
        align: `"position"`: equal positions, for prompts of equal length. `"template"`: equal slots: those that `slots`
            names, or else the tokens that all prompts share in order, with the runs between them as slots `{1}`, `{2}`.
            `"sum"`: all positions of a feature are one node.
        slots: By circuit, the slot's name at each position. Positions of one name become one.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: There are no circuits, they are of different models or dictionaries, or can't be aligned so.
    """
    aligning = Aligning(align, slots, [tokens_of(circuit) for circuit in circuits])
    places = [aligning.add(circuit) for circuit in circuits]
    return Alignment(None if align == "sum" else tuple(place or () for place in places), aligning.tokens())


def check_alignment(align: str, lengths: Sequence[int], slots: Sequence[Sequence[str]] | None = None) -> None:
    """Says before there are circuits what would be wrong with aligning those of prompts of these lengths.

    Raises:
        UnknownNameError: There is no such alignment.
        InputError: Prompts of several lengths by position, or slots that don't fit.
    """
    if align not in ALIGNMENTS:
        raise UnknownNameError("alignment", align, ALIGNMENTS)
    if slots is not None and align != "template":
        raise InputError(f"slots are for align='template'; align={align!r} was given.")
    if align == "position" and len(set(lengths)) > 1:
        raise InputError(
            f"The circuits' prompts have from {min(lengths)} to {max(lengths)} tokens; expected one length. Align them "
            "by template, or sum over positions ('sum')."
        )
    if slots is not None and [len(row) for row in slots] != list(lengths):
        raise InputError(
            f"slots has {[len(row) for row in slots]} names; expected one a token of each prompt, {list(lengths)}."
        )


def _by_common_tokens(texts: Sequence[Sequence[str]]) -> Alignment:
    """Takes the tokens that all prompts have in one order as fixed; what stands between two of them is one slot."""
    common = list(texts[0]) if texts else []
    for other in texts[1:]:
        matcher = difflib.SequenceMatcher(None, common, other, autojunk=False)
        common = [token for block in matcher.get_matching_blocks() for token in common[block.a : block.a + block.size]]
    # By prompt and position, the number of common tokens before it, and whether it is one.
    marks: list[list[tuple[int, bool]]] = []
    for found in texts:
        row: list[tuple[int, bool]] = []
        for token in found:
            at = sum(fixed for _, fixed in row)
            row.append((at, at < len(common) and token == common[at]))
        marks.append(row)
    order = sorted({(at, fixed) for row in marks for at, fixed in row})
    number = {mark: place for place, mark in enumerate(order)}
    gaps = [mark for mark in order if not mark[1]]
    tokens = [common[at] if fixed else f"{{{gaps.index((at, fixed)) + 1}}}" for at, fixed in order]
    return Alignment(tuple(tuple(number[mark] for mark in row) for row in marks), tuple(tokens))


def tokens_of(circuit: Circuit) -> list[str]:
    """Returns the prompt's tokens; empty texts up to the last position where the circuit does not record them."""
    recorded: list[str] | None = circuit.graph.graph.get("tokens")
    if recorded is not None:
        return recorded
    nodes: list[Mapping[str, Any]] = [data for _, data in circuit.graph.nodes(data=True)]
    return [""] * (max((data.get("position", -1) for data in nodes), default=-1) + 1)


def _joined(texts: Iterable[str]) -> str:
    """Returns the text that stands at one place, or up to three of those that do."""
    found = list(dict.fromkeys(texts))
    return "|".join(found[:_SHOWN]) + ("|…" if len(found) > _SHOWN else "")
