"""State spaces, linear attention and convolutions: every number is right or refused, and docs/models.md says so."""

import pytest

from tests.families.checking import check
from tests.families.configurations import RECURRENT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", RECURRENT)
def test_every_number_of_a_family_is_right_or_refused(family: str) -> None:
    check(family)
