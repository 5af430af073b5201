"""Prompts of many tokens: one line of tokens that can be read, empty columns folded."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from tests.browser.opened import Opened
from tests.synthetic import synthetic_circuit

pytestmark = pytest.mark.browser

WORDS = (
    "The quick fox jumps over an extraordinarily uncharacteristic \u0627\u0644\u0643\u062a\u0627\u0628 "
    "\U0001f600\U0001f680 \u65e5\u672c\u8a9e and , runs at night"
).split()
BOXES = """() => [...document.querySelectorAll('.cg-stage .cg-token, .cg-stage .cg-axis > g')].map((element) => {
  const rect = element.querySelector('rect'), text = element.querySelector('text').getBoundingClientRect();
  const box = (rect || element).getBoundingClientRect();
  return { left: box.left, right: box.right, top: box.top, bottom: box.bottom, textLeft: text.left, textRight: text.right,
           height: text.height };
}).sort((a, b) => a.left - b.left)"""


def _tokens(n: int) -> list[str]:
    return [(" " if i else "") + WORDS[i % len(WORDS)] for i in range(n)]


@pytest.mark.parametrize(("n", "width"), [(74, 1280), (220, 1280), (220, 390)])
def test_tokens_stand_in_one_line_and_can_be_read(open_page: Callable[..., Opened], n: int, width: int) -> None:
    circuit = synthetic_circuit(seed=3, n_features=90, tokens=_tokens(n), n_edges=400)
    opened = open_page(circuit, viewport={"width": width, "height": 900})
    boxes = opened.page.evaluate(BOXES)
    assert 20 < len(boxes) <= n
    assert max(box["top"] for box in boxes) - min(box["top"] for box in boxes) < 12
    for one, after in pairwise(boxes):
        assert one["right"] <= after["left"] + 0.5
    for box in boxes:
        assert box["left"] - 0.5 <= box["textLeft"] and box["textRight"] <= box["right"] + 0.5
        assert box["height"] >= 11
    nodes = opened.page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.cg-stage .cg-feature, .cg-stage .cg-error')]"
        ".map((node) => node.getBoundingClientRect().bottom))"
    )
    assert nodes <= min(box["top"] for box in boxes)


def test_empty_columns_are_folded_and_unfolded(open_page: Callable[..., Opened]) -> None:
    circuit = synthetic_circuit(seed=3, n_features=12, tokens=_tokens(60), n_edges=60)
    opened = open_page(circuit)
    gaps = opened.page.locator(".cg-gap")
    folded = gaps.evaluate_all("(all) => all.map((gap) => Number(gap.textContent.match(/\\+(\\d+)/)[1]))")
    assert gaps.count() > 1 and min(folded) >= 3
    before = opened.page.locator(".cg-stage .cg-token").count()
    assert before == 60 - sum(folded)
    # By the pointer and by the keyboard; Fit folds again.
    gaps.last.click(force=True)
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-token").count() == before + folded[-1]
    gaps.first.focus()
    opened.page.keyboard.press("Enter")
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-token").count() == before + folded[-1] + folded[0]
    opened.page.get_by_role("button", name="Fit").click()
    opened.settle()
    assert opened.page.locator(".cg-stage .cg-token").count() == before
    # A token that is selected stands in sight, with its edges.
    hidden: Any = opened.page.evaluate(
        "() => { const { circuit } = CircuitGraph.shown; const gap = Number(document.querySelector('.cg-gap').dataset.gap);"
        " return circuit.key.find((key, i) => circuit.kind[i] === 'token' && circuit.position[i] === gap + 1); }"
    )
    opened.call("view.select([a]);", hidden)
    assert opened.node(hidden).count() == 1 and opened.node(hidden).is_visible()
