"""The words that the shipped task sets are made of. A model's vocabulary decides which of them are used."""

WOMEN: tuple[str, ...] = tuple(
    "Mary Anna Emma Sarah Laura Alice Jane Kate Lucy Helen Rose Julia Clara Ellen Ruth Grace Martha Diana Nora Amy Susan "
    "Linda Karen Lisa Jennifer Jessica Elizabeth Michelle Rachel Rebecca Emily Nancy Barbara Maria Sophia Victoria"
    .split()
)  # fmt: skip
MEN: tuple[str, ...] = tuple(
    "John James Paul Peter Tom David Mark Daniel Robert Henry George Jack Simon Luke Adam Frank Oscar Martin Victor Arthur "
    "Kevin Brian Scott Eric Michael William Thomas Richard Andrew Joseph Charles Matthew Anthony Steven Edward Alex"
    .split()
)  # fmt: skip
PLACES: tuple[str, ...] = tuple(
    "store park school office garden market station hospital library church beach river kitchen museum restaurant hotel"
    .split()
)  # fmt: skip
GIFTS: tuple[str, ...] = tuple(
    "drink book ring letter flower key picture cup ball cake hat pen coin map snack bone basketball computer kiss".split()
)
GIVING: tuple[str, ...] = tuple("gave handed passed sent offered brought showed".split())

PEOPLE: dict[str, str] = {
    "boy": "boys", "girl": "girls", "teacher": "teachers", "doctor": "doctors", "farmer": "farmers",
    "friend": "friends", "student": "students", "writer": "writers", "painter": "painters", "soldier": "soldiers",
    "king": "kings", "queen": "queens", "lawyer": "lawyers", "singer": "singers", "driver": "drivers",
    "sailor": "sailors", "guard": "guards", "nurse": "nurses", "brother": "brothers", "sister": "sisters",
    "manager": "managers", "athlete": "athletes", "parent": "parents", "officer": "officers", "customer": "customers",
    "senator": "senators", "minister": "ministers", "author": "authors", "pilot": "pilots", "dancer": "dancers",
    "child": "children", "man": "men", "woman": "women",
}  # fmt: skip
THINGS: dict[str, str] = {
    "key": "keys", "cabinet": "cabinets", "book": "books", "door": "doors", "window": "windows", "table": "tables",
    "chair": "chairs", "box": "boxes", "letter": "letters", "picture": "pictures", "car": "cars", "tree": "trees",
    "house": "houses", "cup": "cups", "bottle": "bottles", "road": "roads", "boat": "boats", "lamp": "lamps",
    "ring": "rings", "coat": "coats", "map": "maps", "clock": "clocks", "report": "reports", "flower": "flowers",
    "bridge": "bridges", "wall": "walls", "gate": "gates", "bag": "bags",
}  # fmt: skip
BELONGINGS: tuple[str, ...] = tuple("key book ring letter cup coat map bag picture bottle".split())
PREPOSITIONS: tuple[str, ...] = tuple("near behind beside with above by".split())
AUXILIARIES: tuple[tuple[str, str], ...] = (("is", "are"), ("was", "were"), ("has", "have"))
FEELINGS: tuple[tuple[str, str], ...] = (
    ("likes", "like"), ("sees", "see"), ("knows", "know"), ("follows", "follow"), ("helps", "help"), ("fears", "fear"),
    ("loves", "love"), ("finds", "find"), ("avoids", "avoid"), ("admires", "admire"),
)  # fmt: skip

EVENTS: tuple[str, ...] = tuple(
    "war reign siege trial plague strike voyage drought famine project campaign expedition dynasty revolt empire journey "
    "exhibition rebellion alliance truce conflict construction occupation".split()
)
CENTURIES: tuple[str, ...] = ("11", "12", "13", "14", "15", "16", "17", "18", "19")

CAPITALS: dict[str, str] = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Greece": "Athens", "Russia": "Moscow",
    "Japan": "Tokyo", "China": "Beijing", "Poland": "Warsaw", "Sweden": "Stockholm", "Norway": "Oslo",
    "Portugal": "Lisbon", "Hungary": "Budapest", "Turkey": "Ankara", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "England": "London", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Egypt": "Cairo", "Austria": "Vienna",
    "Ireland": "Dublin", "Canada": "Ottawa", "Cuba": "Havana", "Iran": "Tehran", "Iraq": "Baghdad", "Peru": "Lima",
    "Belgium": "Brussels", "Ukraine": "Kiev", "India": "Delhi", "Kenya": "Nairobi", "Switzerland": "Bern",
}  # fmt: skip
