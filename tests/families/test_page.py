"""docs/models.md, and that what judges the rows finds faults."""

import pytest
import torch
from torch import Tensor

from circuitsae.model import checks
from circuitsae.model.hooks import HookedModel
from circuitsae.model.spliced import SplicedModel
from circuitsae.testing.judging import judge
from circuitsae.testing.reference import slopes
from tests.attribution.architectures import TOKENS, bridge, dictionary
from tests.families.configurations import FAMILIES
from tests.families.page import PAGE, page, read


def test_the_page_is_what_its_rows_give_and_has_every_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = read(text)
    assert set(rows) == set(FAMILIES)
    table = "| family |"
    assert page(rows).partition(table)[2] == text.partition(table)[2]
    assert "wrong" not in "".join(cell for row in rows.values() for cell in row.values())


def test_slopes_are_right_and_say_how_far_they_can_be_trusted() -> None:
    def values(steps: Tensor) -> Tensor:
        return torch.stack([steps.exp(), steps.sin() / (1 + steps), (1e6 * steps.abs())], dim=1)

    slope, error = slopes(values)
    assert torch.allclose(slope, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), atol=1e-9)
    rounded, doubt = slopes(lambda steps: values(steps).float())
    assert ((rounded - slope).abs()[:2] <= 10 * doubt[:2] + 1e-5).all() and (error[:2] < 1e-9).all()


def test_a_wrong_number_is_found_and_a_refusal_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bridge("neox")
    spliced = SplicedModel(model, [dictionary("blocks.1.hook_mlp_out")], prepend_bos=False)
    assert judge(spliced, TOKENS, cells=["effects"])["effects"].state == "right"
    whole = HookedModel.forward

    def halved(self: HookedModel, tokens: Tensor, hooks: list, **settings: object) -> object:
        return whole(self, tokens, [*hooks, ("blocks.1.hook_attn_out", lambda x: 0.5 * x)], **settings)

    monkeypatch.setattr(HookedModel, "forward", halved)
    judged = judge(spliced, TOKENS, cells=["effects", "interventions"])
    assert {cell.state for cell in judged.values()} == {"wrong"}
    monkeypatch.undo()

    def refuse(*args: object, **settings: object) -> None:
        raise checks.SpliceError("This does not hold.")

    monkeypatch.setattr("circuitsae.testing.judging.node_effects", refuse)
    assert str(judge(spliced, TOKENS, cells=["effects"])["effects"]) == "refused: This does not hold."
