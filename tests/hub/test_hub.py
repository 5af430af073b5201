"""Files from the hub: pinned, taken up where they broke off, checked, found again offline, and refused in one sentence."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from circuitsae.dictionaries import hub as ours
from circuitsae.dictionaries.hub import HubPath, fetch_files, list_files, parse_path
from circuitsae.errors import FetchError, InputError
from tests.hub.server import Hub

SMALL, LARGE = b'{"k": 1}', bytes(range(256)) * 4096
PLACE = HubPath("org/saes")


def have(hub: Hub, **options: Any) -> str:
    return hub.add("org/saes", {"a/cfg.json": SMALL, "a/weights.bin": LARGE, "README.md": b"# card"}, **options)


def one_sentence(error: pytest.ExceptionInfo[FetchError]) -> str:
    text = str(error.value)
    assert "\n" not in text and "http://127" not in text and "hf_this" not in text
    return text


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("hf://org/name", HubPath("org/name")),
        ("hf://org/name/", HubPath("org/name")),
        ("hf://org/name/a/b.npz", HubPath("org/name", "a/b.npz")),
        ("hf://org/name/a@v1", HubPath("org/name", "a", "v1")),
        ("hf://org/name/sae_24576:v1", HubPath("org/name", "sae_24576:v1")),
        ("hf://org/name/a?revision=pr/1", HubPath("org/name", "a", "pr/1")),
        ("hf://org/name@" + "0" * 40, HubPath("org/name", "", "0" * 40)),
    ],
)
def test_places_on_the_hub_are_read(text: str, place: HubPath) -> None:
    assert parse_path(text) == place
    assert parse_path(str(place)) == place


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://org", "hf://org/name/../other", "hf://../x/y", "hf://o/n/a@..", "hf://o/n/a\\b", "https://o/n",
     "hf://o/n/C:/x", "hf://o/n@a b"],
)  # fmt: skip
def test_other_texts_are_no_place_on_the_hub(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a place on the hub; expected hf://ORG/NAME"):
        parse_path(text)


def test_files_are_fetched_once_and_a_revision_stands_for_a_commit(hub: Hub) -> None:
    commit = have(hub)
    listing = list_files(PLACE)
    assert listing.commit == commit
    assert listing.below("a") == ["a/cfg.json", "a/weights.bin"]
    assert listing.below("a/cfg.json") == ["a/cfg.json"]
    folder = fetch_files(listing, listing.below("a"))
    assert folder.name == commit and (folder / "a/weights.bin").read_bytes() == LARGE
    assert not (folder / "README.md").exists()
    before = len(hub.requests)
    assert fetch_files(listing, listing.below("a")) == folder
    assert list_files(HubPath("org/saes", "", commit)) == listing
    assert len(hub.requests) == before


def test_a_listing_is_asked_for_once_in_a_while(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub)
    monkeypatch.setattr(ours, "RECENT", 60.0)
    monkeypatch.setattr(ours, "_recent", {})
    first = list_files(PLACE)
    hub.add("org/saes", {"new": b""})
    assert list_files(PLACE) is first
    assert len([path for _, path, _ in hub.requests if "/api/models/" in path]) == 1
    monkeypatch.setattr(ours, "RECENT", 0.0)
    assert list_files(PLACE) != first


def test_a_pinned_revision_stays_what_it_was(hub: Hub) -> None:
    first = have(hub)
    hub.add("org/saes", {"a/cfg.json": b"{}"}, branch="main")
    assert list_files(PLACE).commit != first
    pinned = list_files(HubPath("org/saes", "", first))
    assert (fetch_files(pinned, ["a/cfg.json"]) / "a/cfg.json").read_bytes() == SMALL


def test_a_cut_connection_is_taken_up_where_it_broke_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub)
    from huggingface_hub import constants

    hub.cuts["weights.bin"] = [300_000]
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    folder = fetch_files(list_files(PLACE), ["a/weights.bin"])
    assert (folder / "a/weights.bin").read_bytes() == LARGE
    ranges = hub.gets("weights.bin")
    assert len(ranges) == 2 and ranges[0] is None
    assert ranges[1] is not None and 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 300_000


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_server_that_stumbles_is_asked_again(hub: Hub, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.failures = {"revision/main": [status, status], "weights.bin": [status, status]}
    folder = fetch_files(list_files(PLACE), ["a/weights.bin"])
    assert (folder / "a/weights.bin").read_bytes() == LARGE


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("revision/main", "hf://org/saes could not be fetched: the hub answered with status 503 after several tries"),
        ("weights.bin", r"hf://org/saes/a/weights.bin@\w{40} could not be fetched: the hub answered with status 503"),
    ],
)
def test_a_server_that_stays_down_is_said_so(hub: Hub, end: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.failures = {end: [503] * 50}
    with pytest.raises(FetchError, match=said) as caught:
        fetch_files(list_files(PLACE), ["a/weights.bin"])
    one_sentence(caught)
    assert len([path for _, path, _ in hub.requests if path.endswith(end)]) <= 8 * ours.TRIES  # some releases try too


def test_a_repository_a_revision_and_a_file_that_are_not_there(hub: Hub) -> None:
    have(hub)
    with pytest.raises(
        FetchError, match=r"no repository hf://org/none, or it is private: log in \(hf auth login\)"
    ) as no:
        list_files(HubPath("org/none"))
    one_sentence(no)
    with pytest.raises(FetchError, match=r"The hub's repository org/saes has no revision 'v9'\.") as no:
        list_files(HubPath("org/saes", "", "v9"))
    one_sentence(no)
    with pytest.raises(FetchError, match=r"The hub has no file hf://org/saes/b\.npz@") as no:
        fetch_files(list_files(PLACE), ["b.npz"])
    one_sentence(no)


@pytest.mark.parametrize("logged_in", [False, True])
def test_a_gated_repository_says_how_to_log_in(hub: Hub, logged_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub, gated=True)
    if logged_in:
        monkeypatch.setenv("HF_TOKEN", "hf_thisisnotthetoken")
    said = r"only to those who have accepted its terms: do so on https://huggingface.co/org/saes, then log in \(hf auth"
    with pytest.raises(FetchError, match=said) as caught:
        list_files(PLACE)
    assert "hf_thisisnot" not in one_sentence(caught)


def test_who_is_logged_in_gets_a_gated_repository(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert (fetch_files(list_files(PLACE), ["a/cfg.json"]) / "a/cfg.json").read_bytes() == SMALL


@pytest.mark.parametrize(("path", "kind"), [("a/weights.bin", "sha256"), ("a/cfg.json", "git hash")])
def test_contents_that_are_not_what_the_hub_lists_are_not_kept(hub: Hub, path: str, kind: str, tmp_path: Path) -> None:
    have(hub)
    true = {"a/weights.bin": LARGE, "a/cfg.json": SMALL}[path]
    hub.repositories["org/saes"].lies[path] = true[:-1] + b"?"
    listing = list_files(PLACE)
    with pytest.raises(
        FetchError, match=rf"{path}@\w+ is damaged: its {kind} is \w+, and the hub lists \w+;"
    ) as caught:
        fetch_files(listing, [path])
    one_sentence(caught)
    kept = (tmp_path / "huggingface" / "models--org--saes").rglob("*")
    assert not [file for file in kept if file.is_file() and true[:-1] in file.read_bytes()]
    hub.repositories["org/saes"].lies.clear()
    assert (fetch_files(listing, [path]) / path).read_bytes() == true


def test_what_was_fetched_is_found_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    have(hub)
    listing = list_files(PLACE)
    folder = fetch_files(listing, listing.below("a"))
    hub.close()
    assert fetch_files(list_files(PLACE), listing.below("a")) == folder  # it can't be reached
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert list_files(PLACE) == listing  # it is not to be asked
    with pytest.raises(FetchError, match=r"was not fetched before, and the hub is not to be asked \(HF_HUB_OFFLINE is"):
        list_files(HubPath("org/other"))


def test_a_cache_that_others_filled_is_used(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    commit = have(hub)
    huggingface_hub.hf_hub_download("org/saes", "a/cfg.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    listing = list_files(PLACE)
    assert (listing.commit, list(listing.files)) == (commit, ["a/cfg.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # where it can be asked, the rest is there too
    assert len(list_files(HubPath("org/saes", "", commit)).files) == 3


def test_a_hub_that_cannot_be_reached_is_said_so(hub: Hub) -> None:
    hub.close()
    with pytest.raises(FetchError, match="hf://org/saes could not be fetched from the hub: it can't be reached") as no:
        list_files(PLACE)
    one_sentence(no)


def test_a_full_disk_is_said_before_the_download(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    have(hub)
    listing = list_files(PLACE)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(
        FetchError, match=r"There is no room left to store hf://org/saes@\w+: it takes 0.0 GB"
    ) as caught:
        fetch_files(listing, ["a/weights.bin"])
    one_sentence(caught)
    assert not hub.gets("weights.bin")


def test_a_disk_that_fills_up_is_said_so(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/dev/full takes no byte: as a full disk does."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    from huggingface_hub import file_download

    have(hub)
    real = file_download.http_get

    def into_the_full(url: str, temp_file: Any, **options: Any) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            real(url, full, **options)

    monkeypatch.setattr(file_download, "http_get", into_the_full)
    with pytest.raises(FetchError, match=r"There is no room left to store hf://org/saes/a/weights\.bin@") as caught:
        fetch_files(list_files(PLACE), ["a/weights.bin"])
    one_sentence(caught)
    monkeypatch.undo()
    assert not [f for f in (tmp_path / "huggingface").rglob("*.bin")]


def test_a_remembered_listing_that_is_damaged_is_not_used(hub: Hub, tmp_path: Path) -> None:
    commit = have(hub)
    listing = list_files(PLACE)
    memory = tmp_path / "cache" / "hub" / "org--saes" / f"{commit}.json"
    for text in ("", "[]", '{"commit": "x", "files": {}}', '{"commit": 1, "files": 2}'):
        memory.write_text(text)
        assert list_files(HubPath("org/saes", "", commit)) == listing


def test_no_secret_is_repeated() -> None:
    error = OSError(errno.EIO, "GET https://host/x?X-Amz-Signature=abc with hf_abcdefghijkl and Bearer xyz")
    said = str(ours.explained(error, PLACE))
    assert "abc" not in said.replace("(secret)", "") and "xyz" not in said and "Signature" not in said
