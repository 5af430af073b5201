"""Labels for a circuit: from the source that was named, else from the store that comes with the preset."""

from collections.abc import Iterable
from typing import Any

from circuitsae.cli.output import Console
from circuitsae.errors import CircuitsaeError
from circuitsae.graph.circuit import Circuit


def label(
    circuit: Circuit, source: str | None, preset: str | None, console: Console, dictionaries: Iterable[Any] = ()
) -> None:
    """Labels a circuit's features, in place. Labels that nobody asked for are no reason to fail: then it is said.

    Args:
        circuit: What is labelled.
        source: As for `open_labels`; `"none"` for no labels, `None` for the preset's own.
        preset: The preset that it was traced with.
        console: Where to say what went wrong.
        dictionaries: Those attached, for sources that go by what these say of themselves.

    Raises:
        CircuitsaeError: The named source can't be used.
    """
    from circuitsae.labels import label_circuit, open_labels, preset_labels

    if source == "none":
        return
    if source is not None:
        if source.rstrip(":") == "neuronpedia":
            from circuitsae.labels.neuronpedia import neuronpedia_ids

            store = open_labels("neuronpedia:", sites=neuronpedia_ids(dictionaries))
        else:
            store = open_labels(source)
        label_circuit(circuit, store)
        return
    try:
        store = preset_labels(preset)
        if store is not None:
            label_circuit(circuit, store)
    except CircuitsaeError as error:
        console.note(f"No labels: {error}")
