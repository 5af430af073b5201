"""Makes the circuits that are shown before a model is loaded: `python -m gradio_app.circuits`, for presets that are here."""

import sys
from pathlib import Path

import circuitsae as cs
from circuitsae.presets import find_preset, is_present
from gradio_app.forms import Form
from gradio_app.settings import make_settings

NODES = 96


def make_circuit(preset: str, spliced: cs.SplicedModel) -> cs.Circuit:
    """Returns the circuit of a preset's first example, its 16 strongest nodes measured."""
    example = find_preset(preset).examples[0]
    form = Form(preset, example.prompt, example.answer, example.foil or "", nodes=NODES)
    return cs.trace(spliced, form.task(), measure=16, **form.options())


def main() -> None:
    """Writes `circuits/PRESET.json` for every preset that is here."""
    folder = Path(__file__).with_name("circuits")
    folder.mkdir(exist_ok=True)
    for preset in sys.argv[1:] or make_settings(None).presets:
        if is_present(find_preset(preset)):
            make_circuit(preset, cs.load(preset)).save(folder / f"{preset}.json")


if __name__ == "__main__":
    main()
