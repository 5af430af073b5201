"""`circuitsae doctor` on models whose arithmetic is single precision inside, and on presets that have no example."""

import json
from pathlib import Path

import pytest

import circuitsae.presets
from circuitsae.cli.main import run
from circuitsae.model.spliced import SplicedModel
from circuitsae.presets import find_preset, is_present
from circuitsae.testing.judging import CELLS, judge
from tests.families.building import TOKENS, build, dictionary, values_at


@pytest.mark.parametrize("family", ["Llama", "Gemma2"])
def test_norms_in_single_precision_are_no_fault(family: str) -> None:
    model, _ = build(family)
    hook = "blocks.0.hook_resid_post"
    spliced = SplicedModel(model, [dictionary(values_at(model, [hook]), hook)], prepend_bos=False, name=family)
    judged = judge(spliced, TOKENS)
    assert {name: str(cell) for name, cell in judged.items()} == dict.fromkeys(CELLS, "right")
    assert judged["interventions"].limit is not None and judged["interventions"].limit < 1e-3


def test_a_preset_without_examples_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Path(circuitsae.presets.__file__).parent / "tiny"
    file = tmp_path / "mine.toml"
    lines = [
        'name = "mine"',
        'summary = "no examples"',
        f'dictionaries = ["{(tiny / "saes" / "blocks.1.hook_resid_post").as_posix()}"]',
        "[model]",
        f'folder = "{(tiny / "model").as_posix()}"',
    ]
    file.write_text("\n".join(lines), encoding="utf-8")
    assert run(["doctor", str(file), "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["checks"]} == {"right"}


def test_two_presets_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "tiny", "--preset", "tiny-transcoders"]) == 2
    assert "Two presets are named" in capsys.readouterr().err


@pytest.mark.smollm2
@pytest.mark.slow
@pytest.mark.skipif(not is_present(find_preset("smollm2")), reason="circuitsae fetch smollm2")
def test_the_default_model_is_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "smollm2", "--json"]) == 0
    assert {row["state"] for row in json.loads(capsys.readouterr().out)["checks"]} == {"right"}
