import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from circuitsae import registry
from circuitsae.errors import InputError, PluginError, UnknownNameError
from circuitsae.presets import default_preset, find_preset, list_presets, preset_problems, read_preset, reference_of

MINE = 'name = "{}"\nsummary = "mine"\ndictionaries = ["./sae"]\n[model]\nfolder = "./model"\n'


def user_preset(tmp_path: Path, name: str, text: str | None = None) -> Path:
    path = tmp_path / "presets" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text if text is not None else MINE.format(name))
    return path


def test_the_shipped_presets_are_listed_and_sound() -> None:
    shipped = {preset.name: preset for preset in list_presets()}
    assert set(shipped) >= {"smollm2", "tiny", "tiny-transcoders"} and preset_problems() == []
    for preset in shipped.values():
        assert preset.summary and preset.licence and preset.origin and preset.memory > 0 and preset.disk > 0
        assert all((folder / "cfg.json").is_file() for folder in preset.dictionary_folders())
        assert preset.card is not None and preset.card_text().startswith("# ")
        for example in preset.examples:
            assert example.name and example.foil and example.patch


def test_listing_and_presence_need_no_torch() -> None:
    code = (
        "import sys; from circuitsae.presets import is_present, list_presets; [is_present(p) for p in list_presets()]; "
        "print({'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_users_preset_is_found_by_name_and_by_file(tmp_path: Path) -> None:
    path = user_preset(tmp_path, "mine")
    assert [preset.name for preset in list_presets()][-1] == "mine"
    assert find_preset("mine") == find_preset(path) == find_preset(str(path)) == read_preset(path)
    assert find_preset(find_preset("mine")) == read_preset(path)


def test_a_preset_is_found_again_by_name_or_by_its_file(tmp_path: Path) -> None:
    inside = find_preset(user_preset(tmp_path, "mine"))
    assert reference_of(inside) == "mine" and reference_of(find_preset("tiny")) == "tiny"
    for name in ("elsewhere", "tiny"):  # one that no folder lists, and one whose name is another's
        path = tmp_path / f"{name}.toml"
        path.write_text(MINE.format(name))
        assert reference_of(find_preset(path)) == str(path)
        assert find_preset(reference_of(find_preset(path))) == find_preset(path)


def test_several_folders_may_hold_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.toml").write_text(MINE.format(name))
    monkeypatch.setenv("CIRCUITSAE_PRESETS", f"{tmp_path / 'one'}:{tmp_path / 'two'}:{tmp_path / 'none'}")
    assert find_preset("one").name == "one" and find_preset("two").name == "two"


def test_an_unknown_name_gives_near_matches(tmp_path: Path) -> None:
    user_preset(tmp_path, "mine")
    with pytest.raises(UnknownNameError, match=r"No preset is called 'smolm2'; did you mean 'smollm2'\?"):
        find_preset("smolm2")
    with pytest.raises(UnknownNameError) as caught:
        find_preset("zzz")
    assert "'mine'" in str(caught.value) and "'tiny'" in str(caught.value) and "circuitsae presets" in str(caught.value)


def test_a_broken_file_is_named_and_takes_nothing_down(tmp_path: Path) -> None:
    user_preset(tmp_path, "broken", "name = ")
    user_preset(tmp_path, "mine")
    assert find_preset("mine").name == "mine"
    assert "broken" not in [preset.name for preset in list_presets()]
    (problem,) = preset_problems()
    assert "broken.toml is not valid TOML" in problem
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        find_preset("broken")


def test_a_name_that_is_taken_is_a_problem_and_the_first_stays(tmp_path: Path) -> None:
    path = user_preset(tmp_path, "tiny")
    assert find_preset("tiny").source != path
    (problem,) = preset_problems()
    assert str(path) in problem and "the name 'tiny' is taken by" in problem


def test_a_plugin_gives_a_preset_or_its_file(tmp_path: Path) -> None:
    path = user_preset(tmp_path, "elsewhere")
    preset = read_preset(path)
    path.rename(tmp_path / "elsewhere.toml")
    registry.register("presets", "by-object", preset)
    registry.register("presets", "by-file", tmp_path / "elsewhere.toml")
    registry.register("presets", "by-mistake", 3)
    try:
        assert find_preset("by-object") == preset
        assert find_preset("by-file").name == "elsewhere"
        with pytest.raises(PluginError, match=r"'by-mistake' .* is int; expected"):
            find_preset("by-mistake")
        assert len(preset_problems()) == 1 and "by-mistake" in preset_problems()[0]
        assert "tiny" in [p.name for p in list_presets()]
    finally:
        for name in ("by-object", "by-file", "by-mistake"):
            registry.unregister("presets", name)


def test_tiny_stands_in_until_smollm2_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_preset().name == "tiny"
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (model / name).write_text("{}")
    monkeypatch.setenv("CIRCUITSAE_SMOLLM2", str(model))
    assert default_preset().name == "smollm2"


HOSTILE = {
    "deep": "a = " + "[" * 20_000,
    "inline": "a = " + "{b = " * 2_000 + "1" + "}" * 2_000,
    "digits": MINE.format("digits").replace("[model]", f"download = {'9' * 5_000}\n[model]"),
    "hexadecimal": MINE.format("hexadecimal").replace("[model]", f"download = 0x{'f' * 20_000}\n[model]"),
    "dotted": ".".join("a" * 20_000) + " = 1",
    "large": "# " + "x" * 70_000,
    "infinite": MINE.format("infinite").replace("[model]", "skip_sinks = inf\n[model]"),
    "far": MINE.format("far").replace("[model]", f"skip_positions = [{10**400}]\n[model]"),
}


def test_hostile_presets_are_left_out_with_a_sentence_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in HOSTILE.items():
        user_preset(tmp_path, name, text)
    os.mkfifo(tmp_path / "presets" / "pipe.toml")
    (tmp_path / "presets" / "folder.toml").mkdir()
    user_preset(tmp_path, "mine")
    monkeypatch.setenv("CIRCUITSAE_PRESETS", str(tmp_path / "presets"))
    tracemalloc.start()
    try:
        assert [p.name for p in list_presets() if p.source and p.source.parent == tmp_path / "presets"] == ["mine"]
        assert tracemalloc.get_traced_memory()[1] < 64e6
    finally:
        tracemalloc.stop()
    problems = preset_problems()
    assert len(problems) == len(HOSTILE) + 2 and all(p.startswith("The preset file ") for p in problems)
    assert all(len(p) < 400 + len(str(tmp_path)) for p in problems)


def test_a_broken_preset_breaks_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIRCUITSAE_PRESETS", str(tmp_path / "presets"))
    for name, text in HOSTILE.items():
        user_preset(tmp_path, name, text)
        with pytest.raises(InputError, match="The preset file"):
            read_preset(tmp_path / "presets" / f"{name}.toml")
    assert find_preset("tiny").name == "tiny"
