"""Text to tokens: what can't be tokens of the model is said, never replaced silently."""

import pytest

import circuitsae as cs
from circuitsae.errors import TaskError
from circuitsae.task.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return cs.load("tiny").vocabulary


def test_text_gets_the_bos_token_and_reads_back(words: Vocabulary) -> None:
    ids = words.encode("the key to the cabinets")
    assert ids[0] == words.bos_token_id and "".join(words.strings(ids[1:])).split() == "the key to the cabinets".split()


@pytest.mark.parametrize("text", ["the kye to the cabinets", "the key to the kye"])
def test_a_word_that_the_model_does_not_know_is_named_with_near_ones(words: Vocabulary, text: str) -> None:
    with pytest.raises(
        TaskError, match=r"The word 'kye' is not in this model's vocabulary of \d+ tokens; near it: 'key'"
    ):
        words.encode(text)


def test_so_is_an_answer(words: Vocabulary) -> None:
    with pytest.raises(TaskError, match="The word 'xylophonist' is not in this model's vocabulary"):
        words.token_id("xylophonist")


def test_the_unknown_token_itself_may_be_asked_for(words: Vocabulary) -> None:
    assert words.tokenizer.unk_token_id in words.encode("the " + words.tokenizer.unk_token)


def test_an_answer_of_two_tokens_is_split(words: Vocabulary) -> None:
    with pytest.raises(TaskError, match=r"is 2 tokens, .*key.* \+ .*cabinets.*; expected a single token"):
        words.token_id("key cabinets")


@pytest.mark.parametrize("prompt", ["", "  ", []])
def test_an_empty_prompt_is_said(words: Vocabulary, prompt: str) -> None:
    with pytest.raises(TaskError, match="The prompt is white space" if prompt == "  " else "The prompt is empty"):
        words.encode(prompt)


@pytest.mark.parametrize("token_id", [-1, 10**6, True, 1.5])
def test_what_is_no_token_id_is_said(words: Vocabulary, token_id: object) -> None:
    with pytest.raises(TaskError, match="token id"):
        words.encode([1, token_id])  # type: ignore[list-item]
