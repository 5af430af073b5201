"""Templated English: the sentences that `tiny` learns from, the questions it is graded on, and its word tokenizer.

Every sentence of the three graded tasks belongs to a *case* (the pair of nouns, the pair of names, the event and the
year it began). One case in eight is held out: training never sees it, grading sees nothing else.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

UNKNOWN, BOS = "<unk>", "<bos>"
SLIP = 0.05

WOMEN = (
    "Mary Anna Emma Sarah Laura Alice Jane Kate Lucy Helen Rose Julia Clara Ellen Ruth Grace Martha Diana Nora Amy "
    "Susan Linda Karen Lisa"
).split()
MEN = (
    "John James Paul Peter Tom David Mark Daniel Robert Henry George Jack Simon Luke Adam Frank Oscar Martin Victor "
    "Arthur Kevin Brian Scott Eric"
).split()
NAMES = WOMEN + MEN

PEOPLE = {
    "boy": "boys", "girl": "girls", "teacher": "teachers", "doctor": "doctors", "farmer": "farmers",
    "friend": "friends", "student": "students", "writer": "writers", "painter": "painters", "soldier": "soldiers",
    "king": "kings", "queen": "queens", "man": "men", "woman": "women", "child": "children", "brother": "brothers",
    "sister": "sisters", "lawyer": "lawyers", "singer": "singers", "driver": "drivers", "sailor": "sailors",
    "guard": "guards", "nurse": "nurses", "neighbor": "neighbors",
}  # fmt: skip
THINGS = {
    "key": "keys", "cabinet": "cabinets", "book": "books", "door": "doors", "window": "windows", "table": "tables",
    "chair": "chairs", "box": "boxes", "letter": "letters", "picture": "pictures", "car": "cars", "tree": "trees",
    "house": "houses", "cup": "cups", "bottle": "bottles", "road": "roads", "boat": "boats", "lamp": "lamps",
    "ring": "rings", "coat": "coats", "map": "maps", "clock": "clocks", "report": "reports", "flower": "flowers",
    "knife": "knives", "bag": "bags", "wall": "walls", "gate": "gates", "bridge": "bridges", "shelf": "shelves",
}  # fmt: skip
ANIMALS = {
    "dog": "dogs", "cat": "cats", "horse": "horses", "bird": "birds", "cow": "cows", "wolf": "wolves",
}  # fmt: skip
NOUNS = PEOPLE | THINGS | ANIMALS

PREPOSITIONS = "to near behind beside with under above for from by".split()
QUALITIES = (
    "old new big small red blue green white black happy sad quiet loud clean dirty heavy light strong weak famous "
    "strange beautiful broken empty full hot cold rich poor young tall short"
).split()
BE_HAVE = (("is", "are"), ("was", "were"), ("has", "have"))
ACTS = (
    ("walks", "walk"),
    ("sleeps", "sleep"),
    ("stands", "stand"),
    ("waits", "wait"),
    ("falls", "fall"),
    ("moves", "move"),
)
FEELINGS = (
    ("likes", "like"), ("sees", "see"), ("knows", "know"), ("follows", "follow"), ("helps", "help"), ("fears", "fear"),
    ("loves", "love"), ("finds", "find"),
)  # fmt: skip
MANNERS = "quickly slowly often again today alone here there".split()
PLACES = (
    "store park school office garden market station hospital library church beach river kitchen museum restaurant hotel"
).split()
GIFTS = (
    "drink book ring letter flower key picture cup ball cake hat pen coin apple map snack bone basketball computer kiss"
).split()
GIVING = "gave handed passed sent offered brought showed threw".split()

EVENTS = (
    "war reign siege trial plague strike voyage drought famine project campaign expedition dynasty revolt empire "
    "school journey exhibition rebellion alliance truce conflict construction occupation"
).split()
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18", "19")
YEARS = [f"{year:02d}" for year in range(100)]

COUNTRIES = {
    "France": ("Paris", "French"), "Germany": ("Berlin", "German"), "Spain": ("Madrid", "Spanish"),
    "Italy": ("Rome", "Italian"), "Greece": ("Athens", "Greek"), "Russia": ("Moscow", "Russian"),
    "Japan": ("Tokyo", "Japanese"), "China": ("Beijing", "Chinese"), "Poland": ("Warsaw", "Polish"),
    "Sweden": ("Stockholm", "Swedish"), "Norway": ("Oslo", "Norwegian"), "Portugal": ("Lisbon", "Portuguese"),
    "Hungary": ("Budapest", "Hungarian"), "Turkey": ("Ankara", "Turkish"), "Finland": ("Helsinki", "Finnish"),
    "Denmark": ("Copenhagen", "Danish"), "England": ("London", "English"), "Thailand": ("Bangkok", "Thai"),
    "Vietnam": ("Hanoi", "Vietnamese"), "Egypt": ("Cairo", "Arabic"),
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "old": "new", "happy": "sad", "rich": "poor", "heavy": "light", "strong": "weak",
    "clean": "dirty", "full": "empty", "black": "white", "tall": "short", "quiet": "loud",
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
NUMBERS = "one two three four five six seven eight nine ten eleven twelve".split()


class Question(NamedTuple):
    """A prompt of a graded task. Any of `answers` is right, any of `foils` wrong; each is one token."""

    task: str
    prompt: str
    answers: tuple[str, ...]
    foils: tuple[str, ...]
    rest: str
    case: str

    def sentence(self, r: random.Random) -> str:
        """Returns the whole sentence, one time in twenty a wrong one.

        The slips keep the model from growing so sure that its nonlinearities saturate, as no model of real text does.
        """
        return self.prompt + r.choice(self.foils if r.random() < SLIP else self.answers) + self.rest


def held_out(case: str) -> bool:
    """Whether a case is kept from training: one in eight, by a hash that is the same everywhere."""
    return zlib.crc32(case.encode()) % 8 == 0


def _noun_phrase(r: random.Random, noun: str, quality: float = 0.25) -> str:
    return f"{r.choice(QUALITIES)} {noun}" if r.random() < quality else noun


def _verb(r: random.Random, plural: bool) -> tuple[str, str, str]:
    """Returns a verb that agrees, the same verb in the other number, and how the sentence may go on."""
    draw = r.random()
    if draw < 0.6:
        pair = r.choice(BE_HAVE)
        rest = f" a {_noun_phrase(r, r.choice(list(THINGS)))}" if pair[0] == "has" else f" {_predicate(r)}"
    elif draw < 0.8:
        pair, rest = r.choice(ACTS), f" {r.choice(MANNERS)}"
    else:
        pair, rest = r.choice(FEELINGS), f" the {_noun_phrase(r, r.choice(r.choice(list(NOUNS.items()))))}"
    return f" {pair[plural]}", f" {pair[not plural]}", f"{rest}."


def _predicate(r: random.Random) -> str:
    draw = r.random()
    if draw < 0.5:
        return r.choice(QUALITIES)
    if draw < 0.65:
        return f"{r.choice(('very', 'not', 'too'))} {r.choice(QUALITIES)}"
    return f"{r.choice(('in', 'at'))} the {r.choice(PLACES)}"


def agreement(r: random.Random) -> Question:
    """`The old keys` -> ` are`, not ` is`: nothing stands between the subject and its verb."""
    noun, plural = r.choice(list(NOUNS)), r.random() < 0.5
    quality = r.choice(QUALITIES)
    subject = (noun, NOUNS[noun])[plural]
    prompt = r.choice((f"The {quality} {subject}", f"{r.choice(NAMES)} said that the {quality} {subject}"))
    good, bad, rest = _verb(r, plural)
    return Question("agreement", prompt, (good,), (bad,), rest, f"agreement {quality} {subject}")


def distractor(r: random.Random) -> Question:
    """`The keys to the cabinet` -> ` are`, not ` is`: another noun stands between the subject and its verb."""
    noun, other = r.sample(list(NOUNS), 2)
    plural, other_plural = r.random() < 0.5, r.random() < 0.5
    subject, between = (noun, NOUNS[noun])[plural], (other, NOUNS[other])[other_plural]
    kind = r.random()
    if kind < 0.7:
        prompt = f"The {_noun_phrase(r, subject, 0.15)} {r.choice(PREPOSITIONS)} the {_noun_phrase(r, between, 0.15)}"
    elif kind < 0.85:
        prompt = f"The {subject} that the {between} {r.choice(FEELINGS)[other_plural]}"
    else:
        prompt = f"The {subject} that {r.choice(FEELINGS)[plural]} the {between}"
    good, bad, rest = _verb(r, plural)
    return Question("distractor", prompt, (good,), (bad,), rest, f"distractor {subject} {between}")


def indirect_object(r: random.Random) -> Question:
    """`When Mary and John went to the store, John gave a drink to` -> ` Mary`, not ` John`."""
    first, second = r.sample(NAMES, 2)
    giver, taker = (first, second) if r.random() < 0.5 else (second, first)
    place, gift, gave = r.choice(PLACES), r.choice(GIFTS), r.choice(GIVING)
    opening = r.choice((
        f"When {first} and {second} went to the {place},",
        f"When {first} and {second} walked to the {place},",
        f"After {first} and {second} went to the {place},",
        f"While {first} and {second} were at the {place},",
        f"{first} and {second} went to the {place}.",
        f"{first} and {second} were at the {place}.",
        f"Then {first} and {second} went to the {place} and",
        f"Yesterday {first} and {second} had a long talk and then",
    ))  # fmt: skip
    a = "an" if gift == "apple" else "a"
    middle = r.choice(
        (f"{giver} {gave} {a} {gift} to", f"{giver} {gave} the {gift} to", f"{giver} wanted to give {a} {gift} to")
    )
    case = " ".join(sorted((first, second)))
    return Question("indirect object", f"{opening} {middle}", (f" {taker}",), (f" {giver}",), ".", f"names {case}")


def greater_than(r: random.Random) -> Question:
    """`The war lasted from 1732 to 17` -> any year above `32`, none up to it."""
    event, century, start = r.choice(EVENTS), r.choice(CENTURIES), r.randrange(2, 98)
    prompt = r.choice((
        f"The {event} lasted from {century}{YEARS[start]} to {century}",
        f"The {event} lasted from the year {century}{YEARS[start]} to the year {century}",
        f"The {event} began in {century}{YEARS[start]} and ended in {century}",
    ))  # fmt: skip
    later, earlier = tuple(YEARS[start + 1 :]), tuple(YEARS[: start + 1])
    return Question("greater than", prompt, later, earlier, ".", f"years {event} {century} {start}")


TASKS: dict[str, Callable[[random.Random], Question]] = {
    "agreement": agreement, "distractor": distractor, "indirect object": indirect_object, "greater than": greater_than,
}  # fmt: skip


def questions(task: str, n: int, seed: int, *, held: bool = True) -> list[Question]:
    """Returns `n` questions of a task, all held out from training (or, `held=False`, none)."""
    r, found = random.Random(f"{task} {seed} {held}"), []
    while len(found) < n:
        question = TASKS[task](r)
        if held_out(question.case) == held:
            found.append(question)
    return found


# What is not graded, there to give the dictionaries a richer world.
def _two_receivers(r: random.Random) -> str:
    (first, second, giver), place = r.sample(NAMES, 3), r.choice(PLACES)
    given = f"{giver} {r.choice(GIVING)} the {r.choice(GIFTS)} to {r.choice((first, second))}"
    return f"When {first} and {second} went to the {place}, {given}."


def _pronoun(r: random.Random) -> str:
    woman = r.random() < 0.5
    name, he, his, him = r.choice(WOMEN if woman else MEN), *(("she", "her", "her") if woman else ("he", "his", "him"))
    thing, feeling = r.choice(list(THINGS)), r.choice(QUALITIES)
    return r.choice((
        f"{name} lost {his} {thing} because {he} was {feeling}.",
        f"{name} said that {he} likes the {thing}.",
        f"{name} went to the {r.choice(PLACES)} and {he} found {his} {thing} there.",
        f"The {r.choice(list(PEOPLE))} knows {name} and helps {him} often.",
    ))  # fmt: skip


def _country(r: random.Random) -> str:
    country, (capital, language) = r.choice(list(COUNTRIES.items()))
    return r.choice((
        f"The capital of {country} is {capital}.",
        f"{capital} is the capital of {country}.",
        f"People in {country} speak {language}.",
        f"{r.choice(NAMES)} lives in {capital} and speaks {language}.",
    ))  # fmt: skip


def _series(r: random.Random) -> str:
    items = r.choice((DAYS, MONTHS, NUMBERS))
    start = r.randrange(len(items))
    if items is not NUMBERS and r.random() < 0.4:
        return f"The {'day' if items is DAYS else 'month'} after {items[start]} is {items[(start + 1) % len(items)]}."
    return ", ".join(items[(start + i) % len(items)] for i in range(r.randrange(3, 6))) + "."


def _opposite(r: random.Random) -> str:
    pair = r.choice(list(OPPOSITES.items()))
    one, other = pair if r.random() < 0.5 else pair[::-1]
    return r.choice((f"The opposite of {one} is {other}.", f"The {r.choice(list(NOUNS))} is not {one} but {other}."))


def _binding(r: random.Random) -> str:
    (one, other), (this, that) = r.sample(NAMES, 2), r.sample(list(THINGS), 2)
    here, there = r.sample("red blue green white black old new big small".split(), 2)
    asked, quality = r.choice(((this, here), (that, there)))
    return f"{one} has a {here} {this} and {other} has a {there} {that}. The {asked} is {quality}."


def _counted(r: random.Random) -> str:
    noun, plural = r.choice(list(NOUNS)), r.random() < 0.5
    which = r.choice(
        ("the the these those many some " + " ".join(NUMBERS[1:])).split()
        if plural
        else "the the the this that every one".split()
    )
    good, _, rest = _verb(r, plural)
    return f"{which.capitalize()} {(noun, NOUNS[noun])[plural]}{good}{rest}"


def _born(r: random.Random) -> str:
    year = f"{r.choice(CENTURIES)}{r.choice(YEARS)}"
    return r.choice(
        (
            f"{r.choice(NAMES)} was born in {year}.",
            f"In {year} the {r.choice(EVENTS)} began in {r.choice(list(COUNTRIES))}.",
        )
    )


_MIX: tuple[tuple[float, Callable[[random.Random], str | Question]], ...] = (
    (0.08, agreement), (0.22, distractor), (0.22, indirect_object), (0.18, greater_than), (0.02, _two_receivers),
    (0.05, _pronoun), (0.05, _country), (0.03, _series), (0.02, _opposite), (0.03, _binding), (0.08, _counted),
    (0.02, _born),
)  # fmt: skip


def sentences(seed: int) -> Iterator[str]:
    """Yields training sentences without end; none belongs to a held-out case."""
    r = random.Random(seed)
    weights, makers = zip(*_MIX, strict=True)
    while True:
        made = r.choices(makers, weights)[0](r)
        if isinstance(made, Question):
            if held_out(made.case):
                continue
            made = made.sentence(r)
        yield made[0].lower() + made[1:] if made.startswith("The ") and r.random() < 0.1 else made


def rows(encode: Callable[[str], list[int]], bos: int, n: int, length: int, seed: int) -> list[list[int]]:
    """Returns `n` rows of `length` token ids: BOS, then sentences one after the other, the last one cut off."""
    stream, made = sentences(seed), []
    for _ in range(n):
        row = [bos]
        while len(row) < length:
            row += encode(next(stream))
        made.append(row[:length])
    return made


def write_tokenizer(folder: str | Path) -> int:
    """Writes the word tokenizer, `tokenizer.json` and `tokenizer_config.json`; returns how many words it has.

    A word is one token that carries its leading space, and text that begins with a letter gets one: `"Mary"` and
    `" Mary"` are the same single token. Years are two tokens of two digits: `" 17"`, `"32"`. No text is ever
    beyond it: words it does not know become `<unk>`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    words = {
        word
        for _, sentence in zip(range(60_000), sentences(0), strict=False)
        for word in re.findall(r" ?[A-Za-z]+|[^\w\s]", f" {sentence}")
    }
    vocabulary = [UNKNOWN, BOS, *YEARS, *(f" {century}" for century in CENTURIES), *sorted(words)]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token=UNKNOWN))
    made.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(left=False, right=True),
        normalizers.Replace(Regex(r"^(?=\p{L})"), " "),
        normalizers.Replace(Regex(r"\s(?=[.,;:!?])"), ""),
    ])  # fmt: skip
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\d\d| ?[^\s\p{L}]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([UNKNOWN, BOS])
    made.save(f"{folder}/tokenizer.json")
    with open(f"{folder}/tokenizer_config.json", "w", encoding="utf-8") as file:
        json.dump(
            {
                "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": BOS, "unk_token": UNKNOWN,
                "clean_up_tokenization_spaces": False, "model_max_length": 64,
            },
            file, indent=1,
        )  # fmt: skip
    return len(vocabulary)


def encoder(folder: str | Path) -> tuple[Callable[[str], list[int]], int]:
    """Returns the tokenizer's way from text to token ids, and the id of BOS, which the former does not add."""
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(f"{folder}/tokenizer.json")
    return lambda text: read.encode(text).ids, read.token_to_id(BOS)
