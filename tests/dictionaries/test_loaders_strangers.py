"""Strangers' files, by the thousand: whatever the bytes, loaders give a dictionary or one sentence of the package's own."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitsae.dictionaries import hub
from circuitsae.dictionaries.config import parse_config
from circuitsae.dictionaries.loaders.places import find
from circuitsae.dictionaries.loaders.plugin import formats as known_formats
from circuitsae.errors import InputError
from tests.dictionaries import formats
from tests.dictionaries.strangers import FILES, SETTINGS, use

EXAMPLES = 1000 if os.environ.get("HYPOTHESIS_PROFILE") == "search" else 50
quick = settings(
    max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A sound folder of each kind."""
    folders = {}
    for kind, (_, write) in FILES.items():
        folders[kind] = tmp_path_factory.mktemp("sound") / "made"
        write(folders[kind])
        assert use(folders[kind]) == ""
    return folders


def changed(folder: Path, name: str, content: bytes, scratch: Path) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(folder, scratch)
    (scratch / name).write_bytes(content)
    return scratch


@pytest.mark.parametrize("kind", FILES)
@given(data=st.binary(max_size=400))
@quick
def test_any_bytes_as_weights(kind: str, sound: dict[str, Path], data: bytes, tmp_path: Path) -> None:
    assert use(changed(sound[kind], FILES[kind][0], data, tmp_path / "x"))


@pytest.mark.parametrize("kind", FILES)
@given(
    edits=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4
    ),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
@quick
def test_sound_weights_with_bytes_changed(
    kind: str, sound: dict[str, Path], edits: list[tuple[float, bytes]], cut: float | None, tmp_path: Path
) -> None:
    name = FILES[kind][0]
    content = bytearray((sound[kind] / name).read_bytes())
    for at, new in edits:
        start = int(at * len(content))
        content[start : start + len(new)] = new
    use(
        changed(
            sound[kind], name, bytes(content if cut is None else content[: int(cut * len(content))]), tmp_path / "x"
        )
    )


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(["topk", "../x", "k"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
KEYS = [
    "activation", "k", "d_in", "signed", "transcode", "trainer", "dict_class", "submodule_name", "layer", "lm_name",
    "model_kind", "feature_input_hook", "feature_output_hook", "transcoders", "architecture", "hook_name", "metadata",
    "normalize_activations", "reshape_activations", "d_sae", "sae_lens_version", "hook_names_out",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*which is not known here")
@pytest.mark.parametrize("kind", SETTINGS)
@given(table=st.dictionaries(st.sampled_from(KEYS), values, max_size=5), is_inner=st.booleans())
@quick
def test_any_settings(kind: str, table: dict[str, Any], is_inner: bool, tmp_path: Path) -> None:
    name, write = SETTINGS[kind]
    folder = tmp_path / "x"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder)
    (folder / name).write_text(json.dumps({"trainer": table} if is_inner else table))  # JSON is YAML too
    use(folder)


@pytest.mark.filterwarnings("ignore:.*which is not known here")
@given(table=st.dictionaries(st.sampled_from(KEYS), values, max_size=8))
@settings(max_examples=3 * EXAMPLES)
def test_any_configuration_of_saelens(table: dict[str, Any]) -> None:
    try:
        parse_config(table, origin="it", hook_in="h")
    except InputError as error:
        assert "it" in str(error)


@given(text=st.text(max_size=300))
@quick
def test_any_text_as_yaml(text: str, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    if not folder.exists():
        formats.write_transcoder_set(folder, n_layers=1)
    (folder / "config.yaml").write_text(text, encoding="utf-8", errors="replace")
    use(folder)


names = st.text(st.sampled_from("ab./\\_-0123456789:~\0 "), max_size=20)
files = st.sampled_from(["params.npz", "ae.pt", "cfg.json", "config.yaml", "layer_0.safetensors", "x"])


@given(paths=st.lists(st.tuples(names, files).map("/".join), max_size=8))
@settings(max_examples=3 * EXAMPLES)
def test_any_listing_is_searched_within_its_place(paths: list[str]) -> None:
    inside = [path for path in paths if hub.is_inside(path)]
    for where, _, found in find(inside, known_formats()):
        for name in found:
            joined = f"{where}/{name}" if where else name
            assert joined in inside
            assert Path("/root", joined).resolve().is_relative_to("/root")


@given(text=st.text(max_size=60).map(lambda t: f"hf://{t}") | names.map(lambda t: f"hf://o/n/{t}"))
@settings(max_examples=3 * EXAMPLES)
def test_any_place_on_the_hub_is_read_or_refused(text: str) -> None:
    try:
        place = hub.parse_path(text)
    except InputError:
        return
    assert hub.parse_path(str(place)) == place
    assert Path("/root", place.repository, place.path).resolve().is_relative_to(Path("/root", place.repository))
