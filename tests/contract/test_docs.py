"""The docs can't lie: generated pages are as the code gives them, every plugin is explained, README's commands exist."""

import configparser
import importlib.util
import re
from pathlib import Path

import pytest

from circuitsae import registry

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_generated_pages_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setenv("COLUMNS", "100")
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == generate.cli_page(), "run 'make fix'"
    loaders = (DOCS / "loaders.md").read_text(encoding="utf-8")
    assert loaders == generate.loaders_page(loaders), "run 'make fix'"
    assert all(f"`{form.name}`" in loaders and form.origin for form in generate.formats())


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_kind_of_plugin_and_every_built_in_is_explained(kind: registry.Kind) -> None:
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    assert f"`circuitsae.{kind}`" in page
    # those of the package: pages that run as tests register some of their own
    for plugin in (plugin for plugin in registry.plugins(kind) if plugin.distribution == "circuitsae"):
        assert f"`{plugin.name}`" in page, f"docs/plugins.md does not mention {plugin.name} ({kind})"


def test_contributing_lists_the_rooms_that_the_import_rules_know() -> None:
    rules = configparser.ConfigParser()
    rules.read(ROOT / ".importlinter")
    layers = rules["importlinter:contract:rooms"]["layers"].strip()
    assert f"```text\n{layers}\n```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    # and that there are no others: the rules are exhaustive, but know packages and modules only by what they import
    rooms = {
        path.stem for path in (ROOT / "circuitsae").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(re.findall(r"\w+", layers)) == rooms - {"__init__", "__main__"}


def test_make_targets_in_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z]+)", (ROOT / "README.md").read_text()))
    assert {"demo", "test"} <= named <= targets
