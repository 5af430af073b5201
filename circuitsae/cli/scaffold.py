"""What `circuitsae plugins new` writes: a distribution with a metric, a method, an exporter, and tests that pass."""

import re
from pathlib import Path

from circuitsae import __version__
from circuitsae.errors import InputError
from circuitsae.files import making

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "@distribution@"
version = "0.1.0"
description = "A metric, a method and an export format for circuitsae"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["circuitsae>=@version@"]

[project.optional-dependencies]
test = ["pytest>=8"]

# A line a plugin: the name that people type, and where the object is. circuitsae finds these once this is installed.
[project.entry-points."circuitsae.metrics"]
@name@-margin = "@package@.metrics:Margin"

[project.entry-points."circuitsae.methods"]
@name@-shuffled = "@package@.methods:Shuffled"

[project.entry-points."circuitsae.exporters"]
@name@-list = "@package@.exporters:as_node_list"

[tool.hatch.build.targets.wheel]
packages = ["src/@package@"]

[tool.pytest.ini_options]
testpaths = ["tests"]
""",
    "README.md": """\
# @distribution@

A metric (`@name@-margin`), a method (`@name@-shuffled`) and an export format (`@name@-list`) for circuitsae.

```sh
pip install -e '.[test]'
pytest
circuitsae plugins metrics
circuitsae trace "The keys to the cabinet" --preset tiny --metric @name@-margin --answer " are" --method @name@-shuffled \
  -o circuit.json
circuitsae export circuit.json --format @name@-list -o nodes.txt
```

Change `metrics.py`, `methods.py` and `exporters.py` in `src/@package@` into your own; the names are in `pyproject.toml`.
Other kinds of plugin (loaders, pruners, labels, presets) are in circuitsae's docs, page Plugins.
""",
    "src/@package@/__init__.py": """\
\"\"\"A metric, a method and an export format for circuitsae.\"\"\"
""",
    "src/@package@/metrics.py": """\
\"\"\"A metric: a frozen dataclass whose fields become options, and one method that turns its words into token ids.\"\"\"

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from circuitsae.task.metrics import Answer, BoundMetric, resolve_position
from circuitsae.task.vocabulary import Vocabulary


@dataclass(frozen=True)
class Margin:
    \"\"\"Logit of the answer minus the largest logit of any other token.\"\"\"

    name: ClassVar[str] = "@name@-margin"
    answer: Answer
    position: int = -1

    def resolve(self, vocabulary: Vocabulary, n_tokens: int) -> BoundMetric:
        \"\"\"Returns the metric for prompts of `n_tokens` tokens.\"\"\"
        answer = vocabulary.token_id(self.answer)
        position = resolve_position(self.position, n_tokens)

        def function(logits: Tensor) -> Tensor:  # [batch 1 d_vocab], since one position is read
            others = logits[:, 0].clone()
            others[:, answer] = -float("inf")
            return logits[:, 0, answer] - others.amax(-1)

        word = vocabulary.string(answer)
        text = f"logit of {word!r} minus the largest other logit"
        description = {"name": self.name, "answer": word, "position": position, "description": text}
        return BoundMetric(function, (position,), description)
""",
    "src/@package@/methods.py": """\
\"\"\"A method: a class that is called with a context and its options, and gives every node's effect.\"\"\"

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from circuitsae.attribution.context import Context
from circuitsae.attribution.nodes import NodeEffects


class Shuffled:
    \"\"\"Attribution patching, its effects dealt out anew among each site's features: what a method must do better than.\"\"\"

    name: ClassVar[str] = "@name@-shuffled"
    cost: ClassVar[str] = "1 forward + 1 backward"

    @dataclass(frozen=True)
    class Options:
        \"\"\"`seed` of the shuffling. Options become `--method-option NAME=VALUE` and controls in the app.\"\"\"

        seed: int = 0

    def __call__(self, context: Context, options: Options) -> NodeEffects:
        \"\"\"Returns the effects of all nodes; `context` has the clean run, the baseline, and gradients when asked.\"\"\"
        effects = context.effects(*context.gradients())
        generator = torch.Generator().manual_seed(options.seed)
        blocks = []
        for block in effects.blocks:
            if block.kind == "feature":
                order = torch.randperm(len(block), generator=generator).to(block.effects.device)
                block = replace(block, effects=block.effects[order])
            blocks.append(block)
        return replace(effects, blocks=tuple(blocks))
""",
    "src/@package@/exporters.py": """\
\"\"\"An export format: a function from a circuit to the file's contents.\"\"\"

from circuitsae.graph.circuit import Circuit


def as_node_list(circuit: Circuit) -> str:
    \"\"\"One node a line, strongest first: its key, a tab, its effect.\"\"\"
    return "".join(f"{row['node']}\\t{row['effect']:+.4f}\\n" for row in circuit.nodes_table() if "effect" in row)
""",
    "tests/test_metrics.py": """\
\"\"\"The metric's value against its definition, on logits made by hand.\"\"\"

import pytest
import torch
from @package@.metrics import Margin

from circuitsae.errors import TaskError
from circuitsae.task.vocabulary import Vocabulary


def test_margin_is_the_answers_logit_minus_the_best_other():
    metric = Margin(answer=1).resolve(Vocabulary(None, d_vocab=3), n_tokens=4)
    assert metric.positions == (3,)
    logits = torch.tensor([[[2.0, 5.0, 3.0]], [[2.0, 5.0, 9.0]]])
    assert metric(logits).tolist() == [2.0, -4.0]


def test_an_answer_outside_the_vocabulary_is_refused():
    with pytest.raises(TaskError, match="outside the vocabulary"):
        Margin(answer=3).resolve(Vocabulary(None, d_vocab=3), n_tokens=4)
""",
    "tests/test_methods.py": """\
\"\"\"The method on the preset `tiny`, which ships with circuitsae and loads in a second.\"\"\"

import pytest
import torch
from @package@.metrics import Margin

import circuitsae as cs


@pytest.fixture(scope="module")
def spliced():
    return cs.load("tiny")


def effects_of(spliced, **options):
    return cs.node_effects(spliced, cs.Task("The old keys", metric=Margin(" are")), **options)


def test_each_site_keeps_its_effects_in_another_order(spliced):
    true, shuffled = effects_of(spliced, method="attribution-patching"), effects_of(spliced, method="@name@-shuffled")
    assert shuffled.metric == true.metric
    for a, b in zip(true.features(), shuffled.features(), strict=True):
        torch.testing.assert_close(a.effects.sort().values, b.effects.sort().values)
    assert any(not torch.equal(a.effects, b.effects) for a, b in zip(true.features(), shuffled.features(), strict=True))


def test_the_seed_decides_the_order(spliced):
    first, again, other = (
        effects_of(spliced, method="@name@-shuffled", seed=seed).strongest(5) for seed in (1, 1, 2)
    )
    assert first == again != other
""",
}


def write_plugin(name: str, folder: Path | None = None) -> Path:
    """Writes a distribution that adds a metric, a method and an exporter, whole or not at all, and returns its folder.

    Args:
        name: Lower-case letters, digits and single `-`; it begins the plugins' names.
        folder: Where to; `circuitsae-NAME` here by default. It must not be there yet, or be empty.

    Raises:
        InputError: The name can't be used, or the folder is not empty or can't be made.
    """
    bare = name.removeprefix("circuitsae-")
    if not _NAME.fullmatch(bare) or len(bare) > 60:
        raise InputError(
            f"The name {name[:80]!r} can't be used; expected lower-case letters, digits and '-', such as 'my-metrics'."
        )
    distribution = f"circuitsae-{bare}"
    folder = Path(distribution) if folder is None else folder
    values = {
        "@name@": bare,
        "@package@": distribution.replace("-", "_"),
        "@distribution@": distribution,
        "@version@": __version__,
    }
    with making(folder) as made:
        for path, text in _FILES.items():
            for placeholder, value in values.items():
                path, text = path.replace(placeholder, value), text.replace(placeholder, value)
            file = made / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    return folder
