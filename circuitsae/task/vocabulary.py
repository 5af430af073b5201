"""Text to token ids and back, with the beginning-of-sequence token that the dictionaries were trained with."""

from collections.abc import Iterable, Sequence
from typing import Any

from circuitsae.errors import TaskError, near_matches


class Vocabulary:
    """A model's tokens.

    Args:
        tokenizer: A transformers tokenizer, or `None` for models without one (prompts are then token ids).
        d_vocab: Number of tokens that the model scores.
        prepend_bos: Whether text gets the beginning-of-sequence token, as the dictionaries' configuration says.
            Token ids are taken as they are.
    """

    def __init__(self, tokenizer: Any, d_vocab: int, *, prepend_bos: bool = True) -> None:
        self.tokenizer = tokenizer
        self.d_vocab = d_vocab
        self.prepend_bos = prepend_bos

    @property
    def bos_token_id(self) -> int | None:
        """The beginning-of-sequence token's id, `None` where the tokenizer has none."""
        return None if self.tokenizer is None else self.tokenizer.bos_token_id

    def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Returns a prompt's token ids; text gets the model's BOS, ids are taken as they are.

        Raises:
            TaskError: The prompt is empty, is text where there is no tokenizer, or holds a word or an id outside the
                vocabulary.
        """
        if isinstance(prompt, str):
            ids = self._split(prompt) if prompt else []
            if not ids:  # white space is tokens to most tokenizers, but not to all
                what = "white space, of which this model's tokenizer makes no token" if prompt else "empty"
                raise TaskError(f"The prompt is {what}; expected at least one token of text.")
            bos = self.bos_token_id
            return [bos, *ids] if self.prepend_bos and bos is not None and ids[:1] != [bos] else ids
        if not isinstance(prompt, Iterable):
            raise TaskError(f"The prompt is {prompt!r}; expected text or a list of token ids.")
        ids = [self._check(t) for t in prompt]
        if not ids:
            raise TaskError("The prompt is empty; expected at least one token id.")
        return ids

    def token_id(self, answer: str | int) -> int:
        """Returns the id of a single token given as text or as an id.

        Raises:
            TaskError: The text is several tokens, whose split the message gives, or a word outside the vocabulary.
        """
        if not isinstance(answer, str):
            return self._check(answer)
        ids = self._split(answer)
        if len(ids) == 1:
            return ids[0]
        if not ids:
            raise TaskError("The answer is empty; expected one token, such as ' Mary'.")
        hint = ""
        if not answer.startswith(" ") and len(self._split(" " + answer)) == 1:
            hint = f" (with a leading space, {' ' + answer!r} is one)"
        elif answer != answer.strip() and len(self._split(answer.strip())) == 1:
            hint = f" (without the space, {answer.strip()!r} is one)"
        raise TaskError(
            f"The answer {answer!r} is {len(ids)} tokens, {' + '.join(repr(self.string(i)) for i in ids)}; "
            f"expected a single token{hint}. To explain all of it, end the prompt with it and ask for the metric 'loss', "
            f"continuation {answer!r}."
        )

    def string(self, token_id: int) -> str:
        """Returns a token's text, or `<id>` where there is no tokenizer."""
        if self.tokenizer is None:
            return f"<{token_id}>"
        return self.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)

    def strings(self, token_ids: Sequence[int]) -> list[str]:
        """Returns each token's text."""
        return [self.string(int(t)) for t in token_ids]

    def _split(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise TaskError(f"This model has no tokenizer: give token ids, not the text {text!r}.")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise TaskError(f"{text[:60]!r} holds half a character (a lone surrogate); expected Unicode text.")
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is not None and unknown in ids and self.tokenizer.unk_token not in text:
            word = self._word(text, ids.index(unknown))
            near = near_matches(word, [self.string(i).strip() for i in range(self.d_vocab)])
            raise TaskError(
                f"The word {word!r} is not in this model's vocabulary of {self.d_vocab} tokens; "
                + (f"near it: {', '.join(map(repr, near))}." if near else "expected words that it knows.")
            )
        return ids

    def _word(self, text: str, number: int) -> str:
        """Returns the part of a text that its token of that number stands for."""
        if not getattr(self.tokenizer, "is_fast", False):
            return text
        start, end = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][
            number
        ]
        return text[start:end].strip()

    def _check(self, token_id: Any) -> int:
        if isinstance(token_id, bool) or not hasattr(token_id, "__index__"):
            raise TaskError(f"{token_id!r} is not a token id; expected a whole number below {self.d_vocab}.")
        token_id = int(token_id)
        if not 0 <= token_id < self.d_vocab:
            raise TaskError(f"The token id {token_id} is outside the vocabulary; expected 0 to {self.d_vocab - 1}.")
        return token_id
