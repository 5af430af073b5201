"""No JSON that leaves the package holds NaN or infinity, which are none: refused where it is written, in a sentence."""

import ast
from pathlib import Path

import pytest

import circuitsae as cs
from circuitsae.dictionaries.reader import save_folder
from circuitsae.errors import DictionaryError, InputError
from circuitsae.export.circuit_tracer import write_viewer_folder
from tests.dictionaries.reference import random_dictionary

ROOT = Path(__file__).parents[2]
# What is hashed, and what a reader that refuses NaN is given at once, leaves nothing behind.
STAYS = {("circuitsae/evaluation/evaluator.py", "sha256_of"), ("gradio_app/api.py", "work")}
AROUND = {("gradio_app/api.py", outer) for outer in ("export", "add_endpoints")}  # the functions that the last is in


def test_whatever_is_written_refuses_nan() -> None:
    loose = set()
    for path in [*(ROOT / "circuitsae").rglob("*.py"), *(ROOT / "gradio_app").rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)):
            for call in (n for n in ast.walk(function) if isinstance(n, ast.Call)):
                strict = any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in call.keywords)
                if ast.unparse(call.func) in ("json.dumps", "json.dump") and not strict:
                    loose.add((path.relative_to(ROOT).as_posix(), function.name))
    assert loose - AROUND == STAYS


def test_a_setting_that_is_nan_is_a_sentence(tmp_path: Path) -> None:
    dictionary = random_dictionary("standard", metadata={"l1": float("nan")})
    with pytest.raises(DictionaryError, match="hold NaN or infinity"):
        save_folder(dictionary, tmp_path / "sae")
    assert not list(tmp_path.iterdir())


def test_a_list_of_graphs_with_nan_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "graph-metadata.json").write_text('{"graphs": [{"slug": "other", "threshold": NaN}]}')
    circuit = cs.Circuit.load(ROOT / "gradio_app" / "circuits" / "tiny.json")
    with pytest.raises(InputError, match="is damaged"):
        write_viewer_folder(circuit, tmp_path)
