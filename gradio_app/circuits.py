"""Makes the circuits that are shown before a model is loaded: `python -m gradio_app.circuits`, for presets that are here."""

import sys
from pathlib import Path

import circuitsae as cs
from circuitsae.labels import label_circuit, preset_labels
from circuitsae.presets import find_preset, is_present
from gradio_app.forms import Form
from gradio_app.settings import make_settings

NODES = 96
MEASURED = 16


def make_circuit(preset: str, spliced: cs.SplicedModel) -> cs.Circuit:
    """Returns the circuit of that example of a preset whose strongest nodes do most nearly what is predicted.

    Before that comes one whose strongest node has others above it: ablating it changes what is seen there.
    """
    made: list[cs.Circuit] = []
    for example in find_preset(preset).examples:
        form = Form(preset, example.prompt, example.answer, example.foil or "", nodes=NODES)
        made.append(cs.trace(spliced, form.task(), measure=MEASURED, **form.options()))
    best = min(made, key=lambda circuit: (_is_last(circuit, circuit.strongest(1)[0]), _gap(circuit)))
    store = preset_labels(preset)
    if store is not None:
        label_circuit(best, store)
    return best


def _is_last(circuit: cs.Circuit, node: str) -> bool:
    """Returns whether no other node of the circuit is in a later layer than one."""
    layers = [data["layer"] for _, data in circuit.graph.nodes(data=True) if "layer" in data]
    return circuit[node]["layer"] == max(layers)


def _gap(circuit: cs.Circuit) -> float:
    """Returns how far the prediction of one of the five strongest nodes is off, as a share of what is measured."""
    pairs = [(circuit[key]["effect"], circuit[key]["measured_effect"]) for key in circuit.strongest(5)]
    return max(abs(a - b) / abs(b) for a, b in pairs)


def main() -> None:
    """Writes `circuits/PRESET.json` for every preset that is here."""
    folder = Path(__file__).with_name("circuits")
    folder.mkdir(exist_ok=True)
    for preset in sys.argv[1:] or make_settings(None).presets:
        if is_present(find_preset(preset)):
            make_circuit(preset, cs.load(preset)).save(folder / f"{preset}.json")


if __name__ == "__main__":
    main()
