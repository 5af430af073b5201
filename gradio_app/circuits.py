"""Makes the circuits that are shown before a model is loaded: `python -m gradio_app.circuits`, for presets that are here."""

import sys
from pathlib import Path
from statistics import correlation

import circuitsae as cs
from circuitsae.labels import label_circuit, preset_labels
from circuitsae.presets import find_preset, is_present
from gradio_app.forms import Form
from gradio_app.settings import make_settings

NODES = 96
MEASURED = 16
HOLDS = 0.85
"""Correlation of predicted and measured effects from which a prediction is said to hold."""


def make_circuit(preset: str, spliced: cs.SplicedModel) -> cs.Circuit:
    """Returns the circuit of a preset's longest example whose predictions hold, its strongest nodes measured.

    Where they hold for none, it is the one where they hold best.
    """
    made: list[tuple[float, cs.Circuit]] = []
    for example in find_preset(preset).examples:
        form = Form(preset, example.prompt, example.answer, example.foil or "", nodes=NODES)
        circuit = cs.trace(spliced, form.task(), measure=MEASURED, **form.options())
        measured = [data for _, data in circuit.graph.nodes(data=True) if "measured_effect" in data]
        made.append(
            (
                correlation([data["effect"] for data in measured], [data["measured_effect"] for data in measured]),
                circuit,
            )
        )
    store = preset_labels(preset)
    holding = [pair for pair in made if pair[0] >= HOLDS]
    longest = max(holding, key=lambda pair: len(pair[1].tokens), default=None)
    best = (longest or max(made, key=lambda pair: pair[0]))[1]
    if store is not None:
        label_circuit(best, store)
    return best


def main() -> None:
    """Writes `circuits/PRESET.json` for every preset that is here."""
    folder = Path(__file__).with_name("circuits")
    folder.mkdir(exist_ok=True)
    for preset in sys.argv[1:] or make_settings(None).presets:
        if is_present(find_preset(preset)):
            make_circuit(preset, cs.load(preset)).save(folder / f"{preset}.json")


if __name__ == "__main__":
    main()
