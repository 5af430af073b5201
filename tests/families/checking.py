"""What is asked of a family's row."""

import importlib.metadata

import pytest

from tests.families.building import NotBuiltError, row
from tests.families.page import PAGE, read, versions


def check(family: str) -> None:
    """Judges a family, and holds docs/models.md to what is found where it was written with these versions."""
    if int(importlib.metadata.version("transformer_lens").partition(".")[0]) < 4:
        pytest.skip("the list is of TransformerLens 4: older ones lack families, and build others in another way")
    page = PAGE.read_text(encoding="utf-8")
    is_same = versions() in page
    try:
        found = row(family)
    except NotBuiltError as error:
        if is_same:
            raise
        pytest.skip(f"{family} can't be built with {versions()}: {error}")
    faults = {cell: text for cell, text in found.items() if "wrong: " in text or "crash: " in text}
    assert not faults
    if is_same:
        assert read(page)[family] == found, "docs/models.md is stale: python -m tests.families"
