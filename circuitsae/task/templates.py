"""Seeded templates of the shipped task sets: each draws one clean prompt, its counterfactual, and their two answers.

A template asks for words through `Words`, which gives those that one vocabulary has: every word that differs between the
two prompts, and every answer, is a single token there, so that prompt and patch have equal length. Where the sets come
from: indirect objects, Wang et al. 2022 (arXiv 2211.00593); agreement, Marks et al. 2024 (arXiv 2403.19647), after Finlayson
et al. 2021; greater-than, Hanna et al. 2023 (arXiv 2305.00586); gendered pronouns, Mathwin et al. 2023.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from circuitsae.errors import TaskError
from circuitsae.task import words as given
from circuitsae.task.vocabulary import Vocabulary


class Drawn(NamedTuple):
    """One task of a set: its words, the kind of case it is, and its form: prompts of one form have words in one order."""

    clean: str
    patch: str
    answer: str
    foil: str
    case: str
    form: str


class Words:
    """Which words one vocabulary has, and as a single token."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        if vocabulary.tokenizer is None:
            raise TaskError(
                "The task sets are text and this model has no tokenizer; write its tasks as token ids "
                '({"clean": [1, 2], ...}, one a line) and read them with read_tasks.'
            )
        self._vocabulary = vocabulary
        self._unknown: int | None = getattr(vocabulary.tokenizer, "unk_token_id", None)
        self._sizes: dict[str, int] = {}

    def size(self, text: str) -> int:
        """Returns how many tokens a text is; 0 where some of it is not in the vocabulary."""
        if text not in self._sizes:
            ids = list(self._vocabulary.tokenizer(text, add_special_tokens=False)["input_ids"])
            # A tokenizer with an end-of-text token as its "unknown" never gives it for words; one by words does.
            self._sizes[text] = 0 if self._unknown is not None and self._unknown in ids else len(ids)
        return self._sizes[text]

    def single(self, text: str) -> bool:
        """Whether a text is one token."""
        return self.size(text) == 1

    def nouns(self, pairs: Mapping[str, str]) -> list[tuple[str, str]]:
        """Returns (singular, plural) pairs of single tokens."""
        return self.pairs(list(pairs.items()))

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Returns the pairs of which both words are single tokens after a space."""
        return [(one, many) for one, many in pairs if self.single(f" {one}") and self.single(f" {many}")]

    def singles(self, found: Sequence[str]) -> list[str]:
        """Returns the words that are single tokens after a space."""
        return [word for word in found if self.single(f" {word}")]


Template = Callable[[Words, random.Random], Drawn]


def indirect_object(words: Words, r: random.Random) -> Drawn:
    """`When Mary and John went to the store, John gave a drink to` -> ` Mary`; in the patch it is Mary who gives."""
    names = words.singles((*given.WOMEN, *given.MEN))
    first, second = r.sample(names, 2)
    is_abba = r.random() < 0.5
    answer, giver = (first, second) if is_abba else (second, first)
    place, gift, gave = _drawn(r, words, given.PLACES), _drawn(r, words, given.GIFTS), _drawn(r, words, given.GIVING)
    forms = (
        "When {first} and {second} went to the {place},",
        "After {first} and {second} went to the {place},",
        "While {first} and {second} were at the {place},",
    )
    number = r.randrange(len(forms))
    opening = forms[number].format(first=first, second=second, place=place)
    clean, patch = (f"{opening} {who} {gave} a {gift} to" for who in (giver, answer))
    order = "abba" if is_abba else "baba"
    return Drawn(clean, patch, f" {answer}", f" {giver}", order, f"{order} {number}")


def agreement_simple(words: Words, r: random.Random) -> Drawn:
    """`The keys` -> ` are`, not ` is`."""
    return _agreeing(words, r, {**given.PEOPLE, **given.THINGS}, "The {noun}")


def agreement_nounpp(words: Words, r: random.Random) -> Drawn:
    """`The keys near the cabinet` -> ` are`, not ` is`: another noun, of either number, stands between."""
    between = r.choice(r.choice(words.nouns(given.THINGS)))
    preposition = _drawn(r, words, given.PREPOSITIONS)
    return _agreeing(words, r, given.PEOPLE, f"The {{noun}} {preposition} the {between}")


def agreement_rc(words: Words, r: random.Random) -> Drawn:
    """`The boys that the king likes` -> ` are`, not ` is`: a relative clause stands between subject and verb."""
    is_plural = r.random() < 0.5
    between = r.choice(words.nouns(given.PEOPLE))[is_plural]
    verb = r.choice(words.pairs(given.FEELINGS))[is_plural]
    return _agreeing(words, r, given.PEOPLE, f"The {{noun}} that the {between} {verb}")


def agreement_within_rc(words: Words, r: random.Random) -> Drawn:
    """`The boy that the kings` -> ` like`, not ` likes`: the verb in the relative clause has a subject of its own."""
    subject = r.choice(r.choice(words.nouns(given.PEOPLE)))
    return _agreeing(words, r, given.PEOPLE, f"The {subject} that the {{noun}}", given.FEELINGS)


def greater_than(words: Words, r: random.Random) -> Drawn:
    """`The war lasted from 1745 to 17` -> `81`, not `21`; the patch begins so early that both are possible.

    Where a tokenizer takes digits one at a time, the answers are the tens (`8`, `2`).
    """
    start = r.randrange(20, 80)
    early = r.randrange(2, 10)
    later, sooner = r.randrange(start // 10 + 1, 10), r.randrange(1, start // 10)
    answer, foil = f"{later}{r.randrange(10)}", f"{sooner}{r.randrange(10)}"
    if not (words.single(answer) and words.single(foil)):
        answer, foil = answer[0], foil[0]
    event, century = _drawn(r, words, given.EVENTS), r.choice(given.CENTURIES)
    forms = (
        "The {event} lasted from {start} to {century}",
        "The {event} lasted from the year {start} to the year {century}",
    )
    number = r.randrange(len(forms))
    clean, patch = (
        forms[number].format(event=event, start=f"{century}{year:02d}", century=century) for year in (start, early)
    )
    return Drawn(clean, patch, answer, foil, ("short", "long")[number], str(number))


def capitals(words: Words, r: random.Random) -> Drawn:
    """`The capital of France is` -> ` Paris`, not ` London`; the patch asks of England."""
    (country, capital), (other, foil) = r.sample(words.pairs(list(given.CAPITALS.items())), 2)
    return Drawn(
        f"The capital of {country} is", f"The capital of {other} is", f" {capital}", f" {foil}", "capital", "capital"
    )


def pronouns(words: Words, r: random.Random) -> Drawn:
    """`Mary lost the key because` -> ` she`, not ` he`; the patch is about John."""
    woman, man = r.choice(words.singles(given.WOMEN)), r.choice(words.singles(given.MEN))
    name, other, answer, foil = (woman, man, " she", " he") if r.random() < 0.5 else (man, woman, " he", " she")
    thing, place = _drawn(r, words, given.BELONGINGS), _drawn(r, words, given.PLACES)
    quality, job = r.choice(("good", "great", "bad")), r.choice(("cook", "friend", "teacher", "writer", "singer"))
    forms = {
        "question": f"So {{name}} is such a {quality} {job}, isn't",
        "went": f"{{name}} went to the {place} and",
        "lost": f"{{name}} lost a {thing} because",
    }
    form = r.choice([form for form, text in forms.items() if words.size(text.format(name=name))])
    clean, patch = forms[form].format(name=name), forms[form].format(name=other)
    return Drawn(clean, patch, answer, foil, "woman" if name == woman else "man", form)


TEMPLATES: dict[str, Template] = {
    "ioi": indirect_object,
    "agreement-simple": agreement_simple,
    "agreement-nounpp": agreement_nounpp,
    "agreement-within-rc": agreement_within_rc,
    "agreement-rc": agreement_rc,
    "greater-than": greater_than,
    "capitals": capitals,
    "pronouns": pronouns,
}


def _agreeing(
    words: Words,
    r: random.Random,
    nouns: Mapping[str, str],
    form: str,
    verbs: Sequence[tuple[str, str]] = given.AUXILIARIES,
) -> Drawn:
    is_plural = r.random() < 0.5
    noun, verb = r.choice(words.nouns(nouns)), r.choice(words.pairs(verbs))
    clean, patch = form.format(noun=noun[is_plural]), form.format(noun=noun[not is_plural])
    case = "plural" if is_plural else "singular"
    return Drawn(clean, patch, f" {verb[is_plural]}", f" {verb[not is_plural]}", case, "subject")


def _drawn(r: random.Random, words: Words, found: Sequence[str]) -> str:
    return r.choice(words.singles(found))
