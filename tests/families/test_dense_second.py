"""Transformers whose MLPs are whole, the second half: every number is right or refused, and docs/models.md says so."""

import pytest

from tests.families.checking import check
from tests.families.configurations import DENSE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", sorted(DENSE)[len(DENSE) // 2 :])
def test_every_number_of_a_family_is_right_or_refused(family: str) -> None:
    check(family)
