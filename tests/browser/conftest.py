"""One browser for all pages, and one circuit to look at."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from circuitsae.graph.circuit import Circuit
from tests.browser.app import App, served
from tests.browser.opened import ARGUMENTS, CHROMIUM, Opened
from tests.synthetic import synthetic_circuit


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium; the test is skipped, with the reason, where it or playwright is missing."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on the path; CHROMIUM=... names one")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def circuit() -> Circuit:
    """A circuit of 80 features; nobody may change it."""
    return synthetic_circuit(seed=4, n_features=80, n_edges=2000)


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """A function that exports a circuit as a page and opens it; at the end each page must have kept silent."""
    pages: list[Opened] = []

    def open_page(circuit: Circuit, state: dict[str, Any] | None = None, **options: Any) -> Opened:
        (path,) = circuit.export(tmp_path / f"circuit{len(pages)}.html", state=state)
        pages.append(Opened(browser, path, **options))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture
def opened(open_page: Callable[..., Opened], circuit: Circuit) -> Opened:
    """The circuit's page, 1280 x 900."""
    return open_page(circuit)


@pytest.fixture(scope="session")
def app_address() -> Iterator[str]:
    """The address of an app with `tiny`, its model loaded."""
    pytest.importorskip("gradio", reason="the app needs the extra 'app'")
    with served("tiny") as (address, service):
        service.models.spliced("tiny")
        yield address


@pytest.fixture
def open_app(browser: Any, app_address: str) -> Iterator[Callable[..., App]]:
    """A function that opens the app; at the end each page must have kept silent."""
    pages: list[App] = []

    def open_app(query: str = "", **options: Any) -> App:
        pages.append(App(browser, app_address, query, **options))
        return pages[-1]

    yield open_app
    for page in pages:
        page.close()


@pytest.fixture
def app(open_app: Callable[..., App]) -> App:
    """The app, 1280 x 900."""
    return open_app()
