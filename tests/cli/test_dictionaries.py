"""`circuitsae dictionaries`: SAELens' registry, with a small one in its place and with its own where it is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from circuitsae.cli.main import run
from circuitsae.dictionaries import releases
from circuitsae.errors import DictionaryError

REGISTRY = """\
gpt2-small-res-jb:
  conversion_func: null
  model: gpt2-small
  repo_id: jbloom/GPT2-Small-SAEs-Reformatted
  saes:
  - id: blocks.0.hook_resid_pre
    l0: 10.0
    neuronpedia: gpt2-small/0-res-jb
    path: blocks.0.hook_resid_pre
    variance_explained: 0.999
  - id: 7
    path: 7
gemma-scope-2b-pt-res:
  conversion_func: gemma_2
  model: google/gemma-2-2b
  repo_id: google/gemma-scope-2b-pt-res
  saes:
  - id: layer_0/width_16k/average_l0_105
    path: layer_0/width_16k/average_l0_105
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "pretrained_saes.yaml"
    path.write_text(REGISTRY)
    monkeypatch.setattr(releases, "registry_file", lambda: path)
    return path


@pytest.mark.usefixtures("registry")
def test_releases_of_a_model_are_listed_with_or_without_its_organisation(capsys: pytest.CaptureFixture[str]) -> None:
    for model in ("gemma-2-2b", "google/gemma-2-2b"):
        assert run(["dictionaries", "--model", model]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].split() == ["release", "model", "dictionaries", "repository"]
        assert [line.split()[0] for line in lines[1:]] == ["gemma-scope-2b-pt-res"]


@pytest.mark.usefixtures("registry")
def test_a_release_shows_what_to_write_for_each_dictionary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dictionaries", "gpt2-small-res-jb"]) == 0
    out = capsys.readouterr().out
    assert "gpt2-small-res-jb/blocks.0.hook_resid_pre  10" in " ".join(out.split("\n")).replace("   ", "  ")
    assert "gpt2-small-res-jb/7" in out and "https://huggingface.co/jbloom/GPT2-Small-SAEs-Reformatted" in out


@pytest.mark.usefixtures("registry")
def test_json_has_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dictionaries", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["releases"]
    assert {row["release"]: row["dictionaries"] for row in rows} == {"gpt2-small-res-jb": 2, "gemma-scope-2b-pt-res": 1}
    assert run(["dictionaries", "gpt2-small-res-jb", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["entries"][0] == {
        "id": "blocks.0.hook_resid_pre", "path": "blocks.0.hook_resid_pre", "l0": 10.0, "variance_explained": 0.999,
        "neuronpedia": "gpt2-small/0-res-jb",
    }  # fmt: skip


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "gpt2-smal"], "registry is called 'gpt2-smal'; did you mean 'gpt2-small'?"),
        (
            ["gpt2-small-res-jp"],
            "No release of SAELens is called 'gpt2-small-res-jp'; did you mean 'gpt2-small-res-jb'?",
        ),
    ],
)
def test_misspelt_names_get_near_ones(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dictionaries", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_without_sae_lens_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(releases, "registry_file", lambda: None)
    assert run(["dictionaries"]) == 1
    assert (
        "SAELens' registry of releases needs sae_lens, which is not installed: pip install 'circuitsae[saelens]'"
        in (capsys.readouterr().err)
    )


def test_a_registry_of_another_form_is_said_so(registry: Path) -> None:
    registry.write_text("a: [1]\n")
    releases._read.cache_clear()
    with pytest.raises(DictionaryError, match=r"can't be read as sae_lens' of 6\.30 or later"):
        releases.list_releases()


def test_neither_torch_nor_sae_lens_is_imported() -> None:
    code = (
        "import sys; from circuitsae.dictionaries.releases import registry_file, list_releases; "
        "print(len(list_releases()) if registry_file() else 0, {'torch', 'sae_lens'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "set()" and (int(count) == 0 or int(count) > 100)
