"""`load_dictionary`: folders, names, objects and strangers' loaders, and what it says to a misspelt one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsae import registry
from circuitsae.dictionaries import saelens
from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.loaders import FolderLoader, Loader, SaelensLoader, load_dictionary
from circuitsae.dictionaries.reader import CONFIG, WEIGHTS, save_folder
from circuitsae.errors import DictionaryError, InputError, UnknownNameError
from tests.dictionaries.reference import random_dictionary, random_tensors


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A folder with three dictionaries at different depths, one of them of a higher layer by number than by name."""
    folder = tmp_path / "release"
    for layer, name in ((10, "a"), (2, "b/c"), (9, "d")):
        hook = f"blocks.{layer}.hook_resid_post"
        dictionary = Dictionary.from_tensors(
            architecture="standard", hook_in=hook, tensors=random_tensors("standard", seed=layer)
        )
        save_folder(dictionary, folder / name)
    save_folder(dictionary, folder / "a" / "checkpoints" / "1000")  # inside a dictionary: its own affair
    (folder / "README.md").write_text("not a dictionary")
    return folder


@pytest.fixture
def without_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saelens, "release_names", lambda: ())


def test_one_folder_is_one_dictionary_however_it_is_given(release: Path) -> None:
    for spec in (release / "a", str(release / "a"), str(release / "a" / CONFIG), str(release / "a" / WEIGHTS)):
        (dictionary,) = load_dictionary(spec)
        assert dictionary.site == "blocks.10.hook_resid_post"


def test_a_folder_of_folders_gives_them_in_the_order_of_layers(release: Path) -> None:
    sites = [dictionary.site for dictionary in load_dictionary(release)]
    assert sites == [f"blocks.{layer}.hook_resid_post" for layer in (2, 9, 10)]


def test_a_home_folder_is_expanded(release: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(release))
    assert len(load_dictionary("~/a")) == 1


def test_options_reach_the_loader(release: Path) -> None:
    (dictionary,) = load_dictionary(release / "a", hook_in="blocks.10.hook_out", source="mine")
    assert (dictionary.site, dictionary.source) == ("blocks.10.hook_out", "mine")


def test_a_folder_without_dictionaries_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DictionaryError, match=rf"no dictionary in {tmp_path} or below it; expected .* found nothing"):
        load_dictionary(tmp_path)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(DictionaryError, match=r"found model\.safetensors"):
        load_dictionary(tmp_path)


def test_a_half_written_folder_is_no_silence(release: Path) -> None:
    (release / "a" / CONFIG).unlink()
    with pytest.raises(DictionaryError, match=r"There is no cfg\.json in"):
        load_dictionary(release / "a")


def test_dictionaries_and_strangers_objects() -> None:
    dictionary = random_dictionary("standard")
    assert load_dictionary(dictionary) == [dictionary]
    with pytest.raises(
        InputError, match=r"is given as a folder, .* or a torch module with W_enc and W_dec, not as Linear"
    ):
        load_dictionary(torch.nn.Linear(2, 2))


def test_a_misspelt_folder_gets_its_neighbours(release: Path) -> None:
    with pytest.raises(UnknownNameError, match=rf"did you mean '{release}'\? A dictionary is a folder with cfg\.json"):
        load_dictionary(release.parent / "releas")


@pytest.mark.usefixtures("without_sae_lens")
def test_a_release_without_sae_lens_names_the_extra() -> None:
    with pytest.raises(DictionaryError, match=r"RELEASE/ID .* needs sae_lens: pip install 'circuitsae\[saelens\]'"):
        load_dictionary("gpt2-small-res-jb/blocks.8.hook_resid_pre")


def test_a_release_is_recognised_by_its_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saelens, "release_names", lambda: ("gpt2-small-res-jb",))
    found, asked = random_dictionary("standard"), []
    monkeypatch.setattr(saelens, "from_release", lambda *given, **options: asked.append((given, options)) or found)
    for spec in ("gpt2-small-res-jb/blocks.8.hook_resid_pre", "saelens://some-release/layer_1/width_16k"):
        load_dictionary(spec, hook_in="h")
    assert asked == [
        (("gpt2-small-res-jb", "blocks.8.hook_resid_pre"), {"hook_in": "h"}),
        (("some-release", "layer_1/width_16k"), {"hook_in": "h"}),
    ]


@pytest.fixture
def plugins() -> Iterator[None]:
    yield
    for name in ("neurons", "broken", "object"):
        registry.unregister("loaders", name)


class NeuronsLoader:
    """`neurons:HOOK` as one dictionary."""

    def matches(self, spec: str) -> bool:
        return spec.startswith("neurons:")

    def load(self, spec: str, **options: Any) -> list[Dictionary]:
        return [random_dictionary("standard", source=spec, **options)]


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("target", [NeuronsLoader, NeuronsLoader()])
def test_a_strangers_loader_is_asked(target: Any) -> None:
    registry.register("loaders", "neurons", target)
    (dictionary,) = load_dictionary("neurons:h", apply_b_dec_to_input=False)
    assert dictionary.source == "neurons:h" and not dictionary.config.apply_b_dec_to_input


@pytest.mark.usefixtures("plugins", "without_sae_lens")
def test_a_broken_loader_is_named_and_passed_over(release: Path) -> None:
    registry.register("loaders", "broken", "no_such_module:Loader", order=-100)
    with pytest.warns(
        UserWarning, match=r"plugin 'broken' .* can't be loaded: ModuleNotFoundError.* It is passed over"
    ):
        assert len(load_dictionary(release)) == 3


@pytest.mark.parametrize("loader", [FolderLoader(), SaelensLoader(), NeuronsLoader()])
def test_loaders_are_of_the_protocol(loader: object) -> None:
    assert isinstance(loader, Loader)


def test_the_built_in_loaders_are_registered() -> None:
    assert {"folder", "saelens"} <= set(registry.names("loaders"))
    assert registry.get("loaders", "folder") is FolderLoader
