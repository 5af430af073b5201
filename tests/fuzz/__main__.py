"""One target by atheris, from good files on, guided by which lines of the package are reached:

    python -m tests.fuzz circuit -max_total_time=600

Arguments after the target's name are libFuzzer's. Targets named `loader_...` damage a dictionary's files.
"""

import functools
import importlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # its published stubs lack half of it

with atheris.instrument_imports(include=["circuitsae"]):
    from tests.dictionaries import strangers
    from tests.fuzz.seeds import good_files
    from tests.fuzz.targets import TARGETS, survives


def loaders(folder: Path) -> dict[str, tuple[Callable[[bytes], object], bytes]]:
    """Returns, by target, what puts bytes in the place of a dictionary's file and loads it, and the file as it was."""
    found: dict[str, tuple[Callable[[bytes], object], bytes]] = {}
    for kinds in (strangers.FILES, strangers.SETTINGS):
        for kind, (name, write) in kinds.items():
            place = folder / f"{name.split('.')[0]}-{kind.replace(' ', '-')}"
            place.mkdir()
            write(place)

            def load(data: bytes, place: Path = place, name: str = name) -> None:
                (place / name).write_bytes(data)
                strangers.use(place)

            ending = kind.replace(" ", "_").replace("-", "_").replace(".", "_")
            key = f"loader_{ending}" if kinds is strangers.FILES else f"loader_{ending}_settings"
            found[key] = (load, (place / name).read_bytes())
    return found


def exchange(data: bytes, seed: int) -> bytes | None:
    """Returns a JSON document in which one part stands in another's place; `None` for what is no JSON."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    draw = random.Random(seed)
    places: list[tuple[Any, Any]] = []

    def walk(part: Any) -> None:
        items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for key, value in items:
            places.append((part, key))
            walk(value)

    walk(document)
    if not places:
        return None
    (to, key), (source, other) = draw.choice(places), draw.choice(places)
    odd = [
        None,
        True,
        -1,
        0,
        1e308,
        2**70,
        10**400,
        "\ud800",
        float("nan"),
        "",
        "token@0",
        "../..",
        [],
        {},
        [[]],
        source[other],
    ]
    to[key] = draw.choice(odd)
    try:
        return json.dumps(document).encode()
    except (ValueError, RecursionError):  # a part that now holds itself
        return None


def main() -> None:
    """Runs the target that the first argument names."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = good_files(folder)
        targets = loaders(folder)
        targets |= {name: (functools.partial(survives, target), files[name]) for name, target in TARGETS.items()}
        name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
        if name not in targets:
            sys.exit(f"Which target? {', '.join(targets)}")
        run, seed = targets[name]
        (folder / "seeds").mkdir()
        (folder / "seeds" / "good").write_bytes(seed)

        def mutate(data: bytes, max_size: int, seed: int) -> bytes:
            made = exchange(data, seed) if seed % 2 else None
            return made if made is not None and len(made) <= max_size else atheris.Mutate(data, max_size)

        arguments = [sys.argv[0], f"-max_len={max(4096, 2 * len(seed))}", *sys.argv[1:], str(folder / "seeds")]
        atheris.Setup(arguments, run, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
