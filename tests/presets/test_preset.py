from pathlib import Path

import pytest

from circuitsae.errors import InputError
from circuitsae.presets import Example, FolderModel, HubModel, WheelModel, read_preset

GOOD = """
name = "mine"
summary = "a model of mine"
dictionaries = ["./saes/one", "gpt2-small-res-jb/blocks.8.hook_resid_pre"]
[model]
folder = "./model"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_folders_are_seen_from_the_file_and_names_are_left_alone(tmp_path: Path) -> None:
    preset = read_preset(written(tmp_path, GOOD))
    assert preset.model == FolderModel(tmp_path / "model")
    assert preset.dictionaries == (str(tmp_path / "saes" / "one"), "gpt2-small-res-jb/blocks.8.hook_resid_pre")
    assert preset.dictionary_folders() == [tmp_path / "saes" / "one"]
    assert (preset.prepend_bos, preset.skip_positions, preset.gated, preset.examples) == (None, (), False, ())
    assert preset.card_text() == "a model of mine"


def test_everything_that_can_be_said_is_read(tmp_path: Path) -> None:
    (tmp_path / "card.md").write_text("# Mine")
    text = GOOD.replace(
        '[model]\nfolder = "./model"',
        """
        prepend_bos = false
        skip_positions = [0, -1]
        skip_sinks = 4
        card = "card.md"
        origin = "here"
        licence = "MIT"
        gated = true
        download = 1
        disk = 2
        memory = 3
        [model]
        hub = "org/name"
        revision = "abc"
        [[examples]]
        prompt = "The keys"
        answer = " are"
        [[examples]]
        name = "number"
        prompt = "The keys"
        answer = " are"
        foil = " is"
        patch = "The key"
        """,
    )
    preset = read_preset(written(tmp_path, text))
    assert preset.model == HubModel("org/name", "abc")
    assert preset.prepend_bos is False and preset.skip_positions == (0, -1) and preset.gated
    assert preset.skip_sinks == 4.0
    assert (preset.origin, preset.licence, preset.download, preset.disk, preset.memory) == ("here", "MIT", 1, 2, 3)
    assert preset.examples == (
        Example("The keys", " are"),
        Example("The keys", " are", foil=" is", patch="The key", name="number"),
    )
    assert preset.card_text() == "# Mine"


def test_a_wheel_is_a_model_source(tmp_path: Path) -> None:
    wheel = f'wheel = "a==1"\nsha256 = "{"0" * 64}"\nmember = "a/b.gguf"'
    preset = read_preset(written(tmp_path, GOOD.replace('folder = "./model"', wheel)))
    assert preset.model == WheelModel("a==1", "0" * 64, "a/b.gguf")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "mine"\n', "", "'name' is missing."),
        ('name = "mine"', 'name = "My Model"', "name is 'My Model'; expected lower-case letters"),
        ('name = "mine"', "name = 3", "name is 3; expected text."),
        ('name = "mine"', 'name = ""', "name is ''; expected text."),
        ("summary", "sumary", "'summary' is missing."),
        ('name = "mine"', 'name = "mine"\nmemmory = 3', "the key 'memmory' is unknown; did you mean 'memory'?"),
        ('name = "mine"', 'name = "mine"\nmemory = "big"', "memory is 'big'; expected a number of bytes."),
        ('name = "mine"', 'name = "mine"\ngated = 1', "gated is 1; expected true or false."),
        ('name = "mine"', 'name = "mine"\nskip_positions = 0', "skip_positions is 0; expected a list of positions."),
        ('name = "mine"', 'name = "mine"\nskip_positions = [0.5]', "skip_positions holds 0.5; expected whole numbers."),
        (
            'name = "mine"',
            'name = "mine"\nskip_sinks = 0.5',
            "skip_sinks is 0.5; expected a multiple of the median norm",
        ),
        ('name = "mine"', 'name = "mine"\ncard = "none.md"', "card names 'none.md', but there is no file"),
        ('name = "mine"', 'name = "mine"\nexamples = [3]', "examples[0] is 3; expected a table."),
        ('name = "mine"', 'name = "mine"\nexamples = [{prompt = "a"}]', "'answer' is missing in examples[0]."),
        ('folder = "./model"', "", "model must hold one of 'folder', 'hub' and 'wheel'; it holds none."),
        ('folder = "./model"', 'folder = "a"\nhub = "b"', "it holds folder, hub."),
        (
            'folder = "./model"',
            'hub = "a"\nrevison = "b"',
            "the key 'revison' is unknown in model; did you mean 'revision'?",
        ),
        ('[model]\nfolder = "./model"', 'model = "gpt2"', "model is 'gpt2'; expected a table."),
        (
            'folder = "./model"',
            'wheel = "a"\nsha256 = "0"\nmember = "b"',
            "model.wheel is 'a'; expected 'name==version'.",
        ),
        ('folder = "./model"', 'wheel = "a==1"\nsha256 = "0"\nmember = "b"', "expected 64 hexadecimal digits."),
        ('["./saes/one", "gpt2-small-res-jb/blocks.8.hook_resid_pre"]', "[]", "dictionaries is empty"),
        ('["./saes/one", "gpt2-small-res-jb/blocks.8.hook_resid_pre"]', "[1]", "dictionaries[0] is 1; expected text."),
        ('name = "mine"', "name = ", "is not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    path = written(tmp_path, GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        read_preset(path)
    assert said in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_text_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_preset(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_preset(tmp_path / "binary.toml")
