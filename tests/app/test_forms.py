"""Fields and interventions of strangers: whatever they are, a form, a list, or one sentence."""

import json
from typing import Any

import pytest

from circuitsae.errors import InputError
from circuitsae.graph.circuit import Circuit
from gradio_app.exporting import FORMATS, export_files
from gradio_app.forms import read_form
from gradio_app.links import decode_state, encode_state
from gradio_app.operations import read_edits
from gradio_app.settings import Settings
from tests.synthetic import synthetic_circuit

SETTINGS = Settings("tiny", ("tiny",))
NODE = "blocks.0.hook_mlp_out/1@0"
ODD = [float("nan"), float("inf"), -float("inf"), 1e308, 10**400, 10**5000, True, [], {}, "\ud800", "x" * 100_000]


@pytest.mark.parametrize("value", ODD, ids=lambda v: repr(v)[:20] if not isinstance(v, int) else "int")
@pytest.mark.parametrize("field", ["nodes", "preset", "method", "linearisation"])
def test_odd_fields_are_refused_in_a_sentence(field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        read_form({"prompt": "The keys", field: value}, SETTINGS)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("form", [[], ["tiny"], 3, "form", None, True])
def test_a_form_that_is_none_is_refused(form: Any) -> None:
    with pytest.raises(InputError, match="expected fields by name"):
        read_form(form, SETTINGS)
    if form:
        state = decode_state(encode_state({"form": form}))
        with pytest.raises(InputError, match="expected fields by name"):
            read_form(state.get("form") or {}, SETTINGS)


@pytest.mark.parametrize("value", ODD[:-1], ids=lambda v: repr(v)[:20] if not isinstance(v, int) else "int")
@pytest.mark.parametrize("operation", ["scale", "set", "add"])
def test_odd_values_of_interventions_are_refused_in_a_sentence(operation: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{operation} needs a number"):
        read_edits([{"key": NODE, "op": operation, "value": value}])


@pytest.mark.parametrize(
    "edits", [None, "ablate", 3, [None], [[]], [{"key": None}], [{"key": NODE, "op": []}], [{}] * 501]
)
def test_what_is_no_list_of_interventions_is_refused(edits: Any) -> None:
    with pytest.raises(InputError):
        read_edits(edits)


@pytest.mark.parametrize("part", ["state", "options", "overlay", "note", "edits"])
@pytest.mark.parametrize(
    "value",
    [[], [1], 3, "x", {"pins": 3}, {"pins": [[], None, NODE]}, [None], float("nan"), 10**5000, {"x": 1e999}],
    ids=lambda value: type(value).__name__,
)
def test_what_a_page_claims_to_show_is_data(part: str, value: Any) -> None:
    circuit = synthetic_circuit(seed=1, n_features=5, n_edges=12)
    form = read_form({"prompt": "The keys", "preset": "tiny"}, SETTINGS)
    for format in FORMATS:
        try:
            files = export_files(circuit, format, form, {part: value})
        except InputError:
            continue
        assert all(isinstance(text, str) for text in files.values())


@pytest.mark.parametrize("value", [10**400, 1e309, float("nan"), [], "1"], ids=["huge", "inf", "nan", "list", "text"])
def test_an_effect_that_is_no_number_is_refused_before_anything_is_exported(value: Any) -> None:
    document = json.loads(synthetic_circuit(seed=1, n_features=3, n_edges=3).to_json())
    column = document["nodes"]["effect"]
    column[next(n for n, known in enumerate(column) if known is not None)] = value
    with pytest.raises(InputError):
        Circuit.from_json(json.dumps(document))
