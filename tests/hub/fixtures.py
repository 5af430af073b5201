"""Fixtures for tests that talk to a loopback hub; a folder's conftest imports those it needs."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.server import Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine that huggingface_hub talks to, with empty caches and nobody logged in."""
    state = Hub()
    settle(state, tmp_path, monkeypatch)
    yield state
    state.close()


def settle(state: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns huggingface_hub, which reads its settings when it is imported, to a hub and to caches in a folder."""
    from huggingface_hub import constants, file_download, hf_api

    from circuitsae.dictionaries import hub as ours

    cache = str(folder / "huggingface")
    monkeypatch.setenv("CIRCUITSAE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(constants, "HUGGINGFACE_HUB_CACHE", cache, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    address = state.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # releases before 1.0 have the name in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
    monkeypatch.setattr(hf_api.api, "endpoint", state.url)
    monkeypatch.setattr(ours, "PAUSE", 0.01)
    monkeypatch.setattr(ours, "RECENT", 0.0)


def environment(state: Hub, folder: Path) -> dict[str, str]:
    """Returns the environment of a process that is to use a loopback hub."""
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE")}
    return kept | {
        "HF_ENDPOINT": state.url,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "CIRCUITSAE_CACHE": str(folder / "cache"),
        "NO_PROXY": "127.0.0.1",
    }
