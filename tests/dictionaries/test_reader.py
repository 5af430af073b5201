"""Files: what is written is read, only what is needed is read, and every kind of damage has its sentence."""

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from circuitsae.dictionaries.base import Dictionary
from circuitsae.dictionaries.cache import CACHE
from circuitsae.dictionaries.reader import (
    CONFIG,
    WEIGHTS,
    FileWeights,
    SafetensorsFile,
    read_folder,
    replacing,
    save_folder,
    write_safetensors,
)
from circuitsae.errors import DictionaryError, InputError
from tests.dictionaries import reference
from tests.dictionaries.reference import naive, random_dictionary, random_input, random_tensors

EVERY = reference.SAES + reference.TRANSCODERS + reference.CROSS_LAYER


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", EVERY)
def test_what_is_saved_is_read(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    original = random_dictionary(architecture, dtype=dtype, normalize_activations="layer_norm", prepend_bos=False)
    assert save_folder(original, tmp_path / "new" / "folder") == tmp_path / "new" / "folder"
    again = read_folder(tmp_path / "new" / "folder")
    assert (again.architecture, again.hook_in, again.hook_outs) == (architecture, original.hook_in, original.hook_outs)
    assert (again.d_in, again.d_sae, again.d_out, again.prepend_bos) == (7, 23, original.d_out, False)
    assert again.config.normalize_activations == "layer_norm"
    for name in original.weights.names:
        assert torch.equal(again.weights.view(name), original.weights.view(name))
        assert again.weights.dtype(name) == dtype
    x = random_input()
    torch.testing.assert_close(again.decode(again.encode(x), x), original.decode(original.encode(x), x))
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == [CONFIG, WEIGHTS]


def test_safetensors_agrees_on_the_files(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(4).half(), "c": torch.zeros(0, 2), "d": torch.tensor(2.0)}
    write_safetensors(tmp_path / "ours", tensors)
    safetensors.torch.save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    read_by_them, read_by_us = safetensors.torch.load_file(tmp_path / "ours"), SafetensorsFile(tmp_path / "theirs")
    assert set(read_by_us.entries) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(read_by_them[name], tensor)
        assert torch.equal(read_by_us.view(name), tensor)


def test_a_tensor_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    tensor = torch.randn(5)
    header = json.dumps({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}).encode()
    header += b" " * ((1 - len(header)) % 4)
    assert (8 + len(header)) % 4 == 1
    (tmp_path / "odd").write_bytes(len(header).to_bytes(8, "little") + header + tensor.numpy().tobytes())
    assert torch.equal(SafetensorsFile(tmp_path / "odd").view("a"), tensor)


def test_fingerprint_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard"), tmp_path)
    digest = hashlib.sha256((tmp_path / WEIGHTS).read_bytes()).hexdigest()
    assert read_folder(tmp_path).fingerprint == digest


def test_an_encoder_stored_transposed_and_tensors_of_two_files(tmp_path: Path) -> None:
    tensors = random_tensors("standard", dtype=torch.float16)
    write_safetensors(tmp_path / "enc", {"e": tensors["W_enc"].T, "b_enc": tensors["b_enc"]})
    write_safetensors(tmp_path / "dec", {"W_dec": tensors["W_dec"], "b_dec": tensors["b_dec"]})
    enc, dec = SafetensorsFile(tmp_path / "enc"), SafetensorsFile(tmp_path / "dec")
    weights = FileWeights(
        {"W_enc": (enc, "e", True), "b_enc": (enc, "b_enc", False)}
        | {name: (dec, name, False) for name in ("W_dec", "b_dec")}
    )
    dictionary = Dictionary(random_dictionary("standard").config, weights)
    x = random_input()
    expected = naive(random_dictionary("standard", dtype=torch.float16), x)
    for budget in (None, 0):
        CACHE.budget = budget
        assert (dictionary.encode(x).features.to_dense() - expected.features).abs().max() < 1e-10
        dictionary.release()
    CACHE.budget = None
    assert dictionary.weights.origin == f"{tmp_path / 'enc'}, {tmp_path / 'dec'}"
    assert len(dictionary.fingerprint) == 64


class Watched(FileWeights):
    """File weights that note what is read of matrices."""

    def __init__(self, file: SafetensorsFile) -> None:
        super().__init__({name: (file, name, False) for name in file.entries})
        self.read: list[tuple[str, str, list[int]]] = []

    def whole(self, name: str, dtype: torch.dtype, device: torch.device) -> Tensor:
        if name.startswith("W_"):
            self.read.append(("whole", name, []))
        return super().whole(name, dtype, device)

    def block(self, name: str, start: int, stop: int, buffer: Tensor | None) -> Tensor:
        self.read.append(("block", name, list(range(start, stop))))
        return super().block(name, start, stop, buffer)

    def rows(
        self, name: str, indices: Tensor, dtype: torch.dtype, device: torch.device, part: int | None = None
    ) -> Tensor:
        self.read.append(("rows", name, indices.tolist()))
        return super().rows(name, indices, dtype, device, part)

    def columns(self, name: str, indices: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.read.append(("columns", name, indices.tolist()))
        return super().columns(name, indices, dtype, device)


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu_transcoder", "cross_layer_transcoder"])
def test_after_encoding_only_active_rows_and_columns_are_read(architecture: str, tmp_path: Path) -> None:
    save_folder(random_dictionary(architecture, dtype=torch.float16), tmp_path)
    weights = Watched(SafetensorsFile(tmp_path / WEIGHTS))
    dictionary = Dictionary(read_folder(tmp_path).config, weights)
    x = random_input(2)
    encoding = dictionary.encode(x)
    assert weights.read == [("block", "W_enc", list(range(23)))]
    active = sorted(set(encoding.features.indices.tolist()))
    assert 0 < len(active) < dictionary.d_sae
    dictionary.release()  # without the converted encoder at hand
    weights.read.clear()
    rows, indices = encoding.features.rows, encoding.features.indices
    dictionary.decode(encoding)
    dictionary.project(torch.ones(2, dictionary.d_out), rows, indices)
    dictionary.pre_activations(x, rows, indices)
    dictionary.encoder_rows(indices)
    dictionary.reconstruct(x, encoding.features)
    assert {(how, name) for how, name, _ in weights.read} == {("rows", "W_dec"), ("columns", "W_enc")}
    for how, name, touched in weights.read:
        assert set(touched) <= set(active), f"{how} of {name} read {touched}, active are {active}"


def test_features_that_are_not_active_may_be_damaged(tmp_path: Path) -> None:
    original = random_dictionary("standard", dtype=torch.float32)
    x = random_input(2)
    encoding = original.encode(x)
    active = sorted(set(encoding.features.indices.tolist()))
    tensors = {name: torch.full_like(original.weights.view(name), float("nan")) for name in ("W_enc", "W_dec")}
    for name in ("b_enc", "b_dec"):
        tensors[name] = original.weights.view(name)
    tensors["W_enc"][:, active] = original.weights.view("W_enc")[:, active]
    tensors["W_dec"][active] = original.weights.view("W_dec")[active]
    save_folder(original, tmp_path)
    write_safetensors(tmp_path / WEIGHTS, tensors)
    poisoned = read_folder(tmp_path)
    rows, indices = encoding.features.rows, encoding.features.indices
    torch.testing.assert_close(poisoned.decode(encoding, x), original.decode(encoding, x))
    assert (poisoned.pre_activations(x, rows, indices) - encoding.features.values).abs().max() < 1e-12
    with pytest.raises(DictionaryError, match=f"W_enc in {tmp_path / WEIGHTS} holds NaN or infinity"):
        poisoned.encode(x)
    with pytest.raises(DictionaryError, match=f"W_dec in {tmp_path / WEIGHTS} holds NaN or infinity"):
        poisoned.decoder_rows(torch.arange(23))


@pytest.mark.parametrize("budget", [0, 1 << 30])
@pytest.mark.parametrize("name", ["W_enc", "W_dec", "b_enc", "b_dec"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_bad_number_anywhere_is_found_in_use(
    name: str, dtype: torch.dtype, value: float, budget: int, tmp_path: Path
) -> None:
    tensors = random_tensors("standard", dtype=dtype)
    tensors[name].view(-1)[-1] = value
    save_folder(random_dictionary("standard"), tmp_path)
    write_safetensors(tmp_path / WEIGHTS, tensors)
    dictionary = read_folder(tmp_path)
    CACHE.budget = budget
    try:
        with pytest.raises(DictionaryError, match=f"{name} in {tmp_path / WEIGHTS} holds NaN or infinity"):
            dictionary.encode(random_input())
            dictionary.decoder_rows(torch.arange(23))
    finally:
        CACHE.budget = None


def test_release_lets_go_of_the_file_and_reading_goes_on(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    dictionary = read_folder(tmp_path)
    x = random_input(dtype=torch.float32)
    before = dictionary.encode(x)  # kept, and yet holds nothing of the file
    assert str(tmp_path) in Path("/proc/self/maps").read_text() or not Path("/proc/self/maps").exists()
    dictionary.release()
    if Path("/proc/self/maps").exists():
        assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    torch.testing.assert_close(dictionary.encode(x).features.values, before.features.values)


def test_a_file_that_changed_under_us_is_not_read(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard"), tmp_path)
    dictionary = read_folder(tmp_path)
    dictionary.release()
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    with pytest.raises(DictionaryError, match="has changed since it was opened; open the dictionary again"):
        dictionary.encode(random_input())
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(DictionaryError, match="can't be read: No such file or directory"):
        dictionary.encode(random_input())


def test_the_mapped_file_stays_as_it_is(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    before = (tmp_path / WEIGHTS).read_bytes()
    read_folder(tmp_path).weights.view("W_enc").zero_()
    assert (tmp_path / WEIGHTS).read_bytes() == before


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrites the header of a safetensors file, the data left as they are."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    replaced = change(header)
    encoded = json.dumps(header if replaced is None else replaced).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


def move(name: str, by: int) -> Callable[[dict[str, Any]], None]:
    def change(header: dict[str, Any]) -> None:
        header[name]["data_offsets"] = [offset + by for offset in header[name]["data_offsets"]]

    return change


def put(name: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda header: header[name].update({key: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move("W_dec", 8), "is damaged: W_dec begins at byte .* and leaves a gap before it"),
        (move("W_enc", -8), "is damaged: W_enc begins at byte .* and overlaps the tensor before it"),
        (move("b_enc", 4096), "is truncated: b_enc ends at byte"),
        (move("W_dec", -4096), "is damaged: shape and offsets of W_dec must be whole numbers"),
        (put("W_enc", "shape", [7, 22]), r"is damaged: W_enc has 644 bytes where \[7, 22\] of F32 take 616"),
        (put("W_enc", "shape", [7, -23]), "shape and offsets of W_enc must be whole numbers"),
        (put("W_enc", "shape", [7.0, 23]), "shape and offsets of W_enc must be whole numbers"),
        (put("W_enc", "dtype", "I32"), "W_enc in .* has the type 'I32'; weights must be F64, F32, F16, BF16"),
        (put("W_enc", "dtype", ["F32"]), r"W_enc in .* has the type \['F32'\]"),
        (lambda header: header["b_enc"].pop("dtype") and None, "the header's entry for b_enc lacks dtype, shape or"),
        (lambda header: header.update(b_enc=3), "the header's entry for b_enc lacks dtype, shape or data_offsets"),
        (lambda header: [1], "its header is no JSON object"),
        (lambda header: header.pop("b_enc") and None, "is damaged: 92 bytes follow the last tensor"),
    ],
)
def test_damaged_headers(change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    rewritten(tmp_path / WEIGHTS, change)
    with pytest.raises(DictionaryError, match=message) as caught:
        read_folder(tmp_path)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: b"", "is truncated: 0 bytes are too few"),
        (lambda raw: raw[:7], "is truncated: 7 bytes are too few"),
        (lambda raw: raw[:100], "is truncated: the header ends at byte"),
        (lambda raw: raw[:-1], "is truncated: b_enc ends at byte"),
        (lambda raw: raw[: len(raw) // 2], "is truncated: W_"),
        (lambda raw: raw + b"x", "is damaged: 1 bytes follow the last tensor"),
        (
            lambda raw: b"\xff" * 8 + raw[8:],
            "is not a safetensors file: its header would be 18446744073709551615 bytes",
        ),
        (lambda raw: b"\x80\x02}q\x00X\x01" + raw, "is not a safetensors file"),
        (lambda raw: raw[:8] + b"\x00" + raw[9:], "its header is not JSON"),
        (lambda raw: (90_000).to_bytes(8, "little") + b"[" * 90_000, "its header is not JSON"),
    ],
)
def test_damaged_files(damage: Callable[[bytes], bytes], message: str, tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(damage((tmp_path / WEIGHTS).read_bytes()))
    with pytest.raises(DictionaryError, match=message) as caught:
        read_folder(tmp_path)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


@pytest.mark.parametrize("length", range(0, 3000, 97))
def test_a_file_cut_anywhere_is_refused(length: int, tmp_path: Path) -> None:
    save_folder(random_dictionary("gated", dtype=torch.float32), tmp_path)
    raw = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(raw[: min(length, len(raw) - 1)])
    with pytest.raises(DictionaryError, match="truncated"):
        read_folder(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_random_damage_gives_a_dictionary_or_our_own_error(data: st.DataObject, tmp_path: Path) -> None:
    save_folder(random_dictionary("jumprelu", dtype=torch.float32), tmp_path)
    raw = bytearray((tmp_path / WEIGHTS).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.one_of(st.integers(0, 400), st.integers(0, len(raw) - 1)))
        raw[at] = data.draw(st.integers(0, 255))
    (tmp_path / WEIGHTS).write_bytes(bytes(raw))
    try:
        dictionary = read_folder(tmp_path)
        x = random_input(2)
        dictionary.decode(dictionary.encode(x), x)
    except DictionaryError as error:
        assert str(tmp_path / WEIGHTS) in str(error)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DictionaryError, match=rf"There is no cfg.json in {tmp_path / 'none'}; a dictionary's folder holds"
    ):
        read_folder(tmp_path / "none")
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(DictionaryError, match=rf"There is no weights file {tmp_path / WEIGHTS}"):
        read_folder(tmp_path)
    (tmp_path / WEIGHTS).mkdir()
    with pytest.raises(DictionaryError, match=rf"{WEIGHTS} can't be read: Is a directory"):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("[" * 100_000, "is not JSON"),
        ("{} " * (6 << 20), "too many for a dictionary's settings"),
        (b"\xff\xfe".decode("latin-1"), "is not JSON"),
    ],
)
def test_a_configuration_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    save_folder(random_dictionary("standard"), tmp_path)
    (tmp_path / CONFIG).write_text(text, encoding="latin-1")
    with pytest.raises(DictionaryError, match=message) as caught:
        read_folder(tmp_path)
    assert str(tmp_path / CONFIG) in str(caught.value)


def test_an_old_scaling_factor_is_dropped_when_it_is_one_and_refused_otherwise(tmp_path: Path) -> None:
    save_folder(random_dictionary("standard", dtype=torch.float32), tmp_path)
    tensors = random_tensors("standard", dtype=torch.float32)
    write_safetensors(tmp_path / WEIGHTS, tensors | {"scaling_factor": torch.ones(23)})
    assert "scaling_factor" not in read_folder(tmp_path).weights.names
    write_safetensors(tmp_path / WEIGHTS, tensors | {"scaling_factor": torch.full((23,), 1.5)})
    with pytest.raises(DictionaryError, match="holds a scaling_factor that is not 1"):
        read_folder(tmp_path)


def test_hook_points_and_source_may_be_given(tmp_path: Path) -> None:
    save_folder(random_dictionary("transcoder"), tmp_path)
    dictionary = read_folder(
        tmp_path, hook_in="blocks.1.mlp.hook_in", hook_outs=["blocks.1.mlp.hook_out"], source="mine"
    )
    assert (dictionary.hook_in, dictionary.site, dictionary.source) == (
        "blocks.1.mlp.hook_in",
        "blocks.1.mlp.hook_out",
        "mine",
    )
    assert read_folder(tmp_path).source == str(tmp_path)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = random_dictionary("standard", dtype=torch.float32)
    large.weights.view("W_dec")[3, 3] = 1e30
    with pytest.raises(DictionaryError, match="W_dec holds weights that float16 can't represent"):
        save_folder(large, tmp_path / "new", dtype=torch.float16)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"'{tmp_path / 'file'}' is there and not empty"):
        save_folder(large, tmp_path / "file")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="no space left on device"):
        save_folder(large, tmp_path / "full")
    assert os.listdir(tmp_path) == ["file"]


def test_a_dictionary_that_is_there_stays_when_its_successor_cannot_be_written(tmp_path: Path) -> None:
    dictionary = random_dictionary("standard", dtype=torch.float32)
    save_folder(dictionary, tmp_path)
    dictionary.weights.view("W_dec")[3, 3] = 1e30
    with pytest.raises(DictionaryError, match="can't represent"):
        save_folder(dictionary, tmp_path, dtype=torch.float16)
    assert sorted(os.listdir(tmp_path)) == [CONFIG, WEIGHTS] and read_folder(tmp_path).d_sae == dictionary.d_sae


def test_an_interrupted_rewrite_is_not_taken_for_a_dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_folder(random_dictionary("standard"), tmp_path)
    real = os.replace

    def once_only(source: Any, target: Any) -> None:
        if Path(target).name == CONFIG:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", once_only)
    with pytest.raises(KeyboardInterrupt):
        save_folder(random_dictionary("topk"), tmp_path)
    assert os.listdir(tmp_path) == [WEIGHTS]
    with pytest.raises(DictionaryError, match=r"There is no cfg\.json"):
        read_folder(tmp_path)


def test_replacing_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    with replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads RssAnon from Linux' /proc")
def test_a_dictionary_larger_than_the_budget_is_streamed(tmp_path: Path) -> None:
    """In a process of its own: 96 MB of float16 weights, 192 MB as float32, used in a tenth of that."""
    d_in, d_sae = 256, 98_304
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "W_enc": torch.randn(d_in, d_sae, generator=generator, dtype=torch.float32).half(),
        "W_dec": torch.randn(d_sae, d_in, generator=generator, dtype=torch.float32).half(),
        "b_enc": torch.full((d_sae,), -48.0).half(),
        "b_dec": torch.zeros(d_in).half(),
    }
    save_folder(Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=tensors), tmp_path)
    program = """
        import sys, threading, time
        import torch
        torch.set_num_threads(1)
        from circuitsae.dictionaries.base import Dictionary
        from circuitsae.dictionaries.reader import read_folder

        def anonymous():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

        def use(dictionary):
            for _ in range(2):
                encoding = dictionary.encode(x)
            x_hat = dictionary.decode(encoding)
            dictionary.project(x, encoding.features.rows, encoding.features.indices)
            return encoding.features.n_active, float(x_hat.sum())

        x = torch.randn(40, 256, generator=torch.Generator().manual_seed(1))
        small = {"W_enc": torch.randn(256, 512).half(), "W_dec": torch.randn(512, 256).half()}
        small |= {"b_enc": torch.zeros(512).half(), "b_dec": torch.zeros(256).half()}
        use(Dictionary.from_tensors(architecture="standard", hook_in="h", tensors=small))  # libraries settle
        dictionary = read_folder(sys.argv[1])
        before, peak, done = anonymous(), 0, False

        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous())
                time.sleep(0.001)

        thread = threading.Thread(target=watch)
        thread.start()
        active, total = use(dictionary)
        done = True
        thread.join()
        print(peak - before, active, total)
    """
    answers = {}
    for budget in (0, 1 << 30):
        environment = {**os.environ, "CIRCUITSAE_CACHE_BYTES": str(budget), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        megabytes, active, total = finished.stdout.split()
        answers[budget] = int(megabytes), int(active), float(total)
    streamed, kept = answers[0], answers[1 << 30]
    assert streamed[1] == kept[1] > 0
    assert streamed[2] == pytest.approx(kept[2], rel=1e-4)
    assert kept[0] > 96  # the converted encoder
    assert streamed[0] < 32, answers  # a range of the encoder, a block of pre-activations, pieces of the decoder
