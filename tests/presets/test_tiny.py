"""What the card of `tiny` says, measured again through the package."""

import re
from pathlib import Path

import pytest
import torch

import circuitsae as cs
from circuitsae.presets import find_preset
from recipes.tiny import evaluation, language

N = 60


@pytest.fixture(scope="module")
def tiny() -> cs.SplicedModel:
    return cs.load("tiny")


def card_rows(n_columns: int) -> list[list[str]]:
    rows = [
        line.strip("| ").split(" | ") for line in find_preset("tiny").card_text().splitlines() if line.startswith("| ")
    ]
    return [row for row in rows if len(row) == n_columns and "---" not in row[0]][1:]


@pytest.mark.parametrize("task", language.TASKS)
def test_held_out_accuracy_is_what_the_card_says(tiny: cs.SplicedModel, task: str) -> None:
    (stated,) = [float(row[2].removesuffix(" %")) / 100 for row in card_rows(4) if row[0] == task]
    right = 0
    for question in language.questions(task, N, seed=77):
        tokens = torch.tensor([tiny.vocabulary.encode(question.prompt)])
        with torch.no_grad():
            logits = tiny.model(tokens, return_type="logits")[0, -1]
        answers, foils = ([tiny.vocabulary.token_id(t) for t in texts] for texts in (question.answers, question.foils))
        right += bool(logits[answers].max() > logits[foils].max())
    assert stated >= 0.95 and right / N >= 0.95
    assert abs(right / N - stated) <= 3 * (0.05 * 0.95 / N) ** 0.5


@pytest.mark.parametrize("preset", ["tiny", "tiny-transcoders"])
def test_the_dictionaries_explain_what_the_card_says(preset: str) -> None:
    """Encodes and decodes with the package's own reader what the recipe measured with arithmetic of its own."""
    spliced = cs.load(preset)
    home = Path(find_preset(preset).card).parent  # type: ignore[arg-type]
    tokens = torch.tensor(language.rows(*language.encoder(home / "model"), evaluation.ROWS, 64, evaluation.ROW_SEED))
    seen: dict[str, torch.Tensor] = {}
    names = {name for d in spliced.dictionaries for name in (d.hook_in, *d.hook_outs)}
    hooks = [(name, lambda x, hook, name=name: seen.update({name: x[:, 1:].flatten(0, 1)})) for name in names]
    with torch.no_grad():
        spliced.model.run_with_hooks(tokens, fwd_hooks=hooks)
    stated = {}
    for row in card_rows(6):
        layer, parts = row[1], re.findall(r"`blocks\.L\.([\w.]+)`", row[0])
        stated[tuple(f"blocks.{layer}.{part}" for part in parts)] = [float(number) for number in row[2:]]
    for dictionary in spliced.dictionaries:
        x, y = seen[dictionary.hook_in], seen[dictionary.hook_outs[0]]
        encoding = dictionary.encode(x)
        error = y - dictionary.decode(encoding)
        fvu = float(error.pow(2).sum() / (y - y.mean(0)).pow(2).sum())
        l0 = len(encoding.features.values) / len(x)
        fired = len(encoding.features.indices.unique())
        own = tuple(dict.fromkeys((dictionary.hook_in, *dictionary.hook_outs)))
        said_fvu, said_explained, said_l0, said_fired = stated[own]
        assert abs(fvu - said_fvu) < 2e-4 and abs(1 - fvu - said_explained) < 2e-4, own
        assert abs(l0 - said_l0) < 0.06 and abs(fired - said_fired) <= 2, own
        assert fvu < 0.1
        assert dictionary.metadata["heldout"]["fvu"] == said_fvu


def test_a_word_is_one_token_with_or_without_its_space(tiny: cs.SplicedModel) -> None:
    vocabulary = tiny.vocabulary
    assert vocabulary.token_id(" Mary") == vocabulary.token_id("Mary")
    prompt = "The war lasted from 1732 to 17"
    ids = vocabulary.encode(prompt)
    assert vocabulary.strings(ids) == ["<bos>", " The", " war", " lasted", " from", " 17", "32", " to", " 17"]
    assert vocabulary.token_id("45") not in (vocabulary.token_id("17"), vocabulary.token_id(" 17"))
    assert vocabulary.encode("The  store , Mary. ") == vocabulary.encode("The store, Mary.")


def test_every_example_fits_and_is_answered_rightly() -> None:
    for name in ("tiny", "tiny-transcoders"):
        spliced = cs.load(name, sites=["blocks.0.hook_mlp_out"])
        for example in find_preset(name).examples:
            task = (spliced.vocabulary.encode(example.prompt), spliced.vocabulary.encode(example.patch or ""))
            unknown = spliced.model.tokenizer.unk_token_id
            assert len(task[0]) == len(task[1]) and unknown not in task[0] + task[1]
            answer, foil = (spliced.vocabulary.token_id(text or "") for text in (example.answer, example.foil))
            assert unknown not in (answer, foil)
            with torch.no_grad():
                clean, patched = (spliced.model(torch.tensor([t]), return_type="logits")[0, -1] for t in task)
            assert clean[answer] > clean[foil]
            assert (clean[answer] - clean[foil]) - (patched[answer] - patched[foil]) > 0.5, example.name


def test_it_is_small() -> None:
    home = Path(find_preset("tiny").card).parent  # type: ignore[arg-type]
    assert sum(file.stat().st_size for file in home.rglob("*") if file.is_file()) < 6e6
    assert sum(p.numel() for p in cs.load("tiny").model.original_model.parameters()) < 3e6


def test_held_out_cases_are_not_in_the_training_text() -> None:
    stream = language.sentences(5)
    seen = {next(stream) for _ in range(20_000)}
    for task in language.TASKS:
        for question in language.questions(task, 40, seed=3):
            ends = tuple(question.prompt + end for end in question.answers + question.foils)
            assert not any(sentence.startswith(ends) for sentence in seen)
    learned = language.questions("distractor", 400, seed=3, held=False)
    assert any(any(sentence.startswith(question.prompt) for sentence in seen) for question in learned)
