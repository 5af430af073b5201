"""Matching the nodes of different prompts' circuits: by position, by the slots of their common template, or not at all."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from circuitsae import names
from circuitsae.errors import InputError, UnknownNameError
from circuitsae.graph.circuit import Circuit

Align = Literal["position", "template", "sum"]
ALIGNMENTS: tuple[str, ...] = get_args(Align)


@dataclass(frozen=True)
class Alignment:
    """Where each circuit's positions go.

    Attributes:
        places: By circuit and position, its number in the common prompt; `None` where positions are summed over.
        tokens: The common prompt's texts: the token, or those that stand there, or a slot's name; `None` likewise.
    """

    places: tuple[tuple[int, ...], ...] | None
    tokens: tuple[str, ...] | None

    def key(self, circuit: int, key: str) -> str:
        """Returns the common key of one circuit's node."""
        node = names.parse(key)
        if not isinstance(node.position, int):
            return key
        return str(node.at(None if self.places is None else self.places[circuit][node.position]))


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
    if not circuits:
        raise InputError("No circuit was given; expected at least one.")
    texts = [] if align == "sum" else [_tokens(circuit) for circuit in circuits]
    lengths = [len(found) for found in texts]
    check_alignment(align, lengths, slots)
    _check_comparable(circuits)
    if align == "sum":
        return Alignment(None, None)
    if align == "position":
        common = tuple(_joined(column) for column in zip(*texts, strict=True))
        return Alignment(tuple(tuple(range(n)) for n in lengths), common)
    if slots is None:
        return _by_common_tokens(texts)
    number: dict[str, int] = {}
    places = tuple(tuple(number.setdefault(name, len(number)) for name in row) for row in slots)
    return Alignment(places, tuple(number))


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
    common = list(texts[0])
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


def _check_comparable(circuits: Sequence[Circuit]) -> None:
    """Refuses circuits whose nodes of one name are different things."""
    models = {str(c.graph.graph.get("model", {}).get("name", "")) for c in circuits} - {""}
    if len(models) > 1:
        raise InputError(f"The circuits are of different models ({', '.join(sorted(models))}); expected one.")
    known: dict[str, str] = {}
    for circuit in circuits:
        for dictionary in circuit.graph.graph.get("dictionaries", []):
            site, fingerprint = str(dictionary.get("site", "")), str(dictionary.get("fingerprint", ""))
            if fingerprint and known.setdefault(site, fingerprint) != fingerprint:
                raise InputError(
                    f"The circuits were traced with different dictionaries at {site!r}; a feature of one is no feature of "
                    "the other."
                )


def _tokens(circuit: Circuit) -> list[str]:
    """Returns the prompt's tokens; empty texts up to the last position where the circuit does not record them."""
    recorded: list[str] | None = circuit.graph.graph.get("tokens")
    if recorded is not None:
        return recorded
    nodes: list[Mapping[str, Any]] = [data for _, data in circuit.graph.nodes(data=True)]
    return [""] * (max((data.get("position", -1) for data in nodes), default=-1) + 1)


def _joined(texts: Sequence[str]) -> str:
    """Returns the text that stands at one place, or up to three of those that do."""
    found = list(dict.fromkeys(texts))
    return "|".join(found[:3]) + ("|…" if len(found) > 3 else "")
