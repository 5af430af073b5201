"""The page's parts are announced with the page: the browser fetches them while gradio's own script still starts.

Gradio's frontend asks for each component's script only once it has read which components there are, a good third of the
time until something is seen. Which files those are stands in its bundle; where that reads otherwise than expected (a
later gradio), nothing is announced and the page works as before.
"""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

_TABLE = re.compile(r"__vite__mapDeps=.*?\[(\"\./.*?)\]")


@cache
def component_files(kinds: frozenset[str]) -> tuple[str, ...]:
    """Returns the names of the files, in gradio's folder of assets, that a page of these kinds of components needs."""
    folder = resources.files("gradio").joinpath("templates", "frontend", "assets")
    found: dict[str, None] = {}  # in order, none twice
    for file in folder.iterdir() if folder.is_dir() else ():
        if re.match(r"Blocks-[\w-]+\.(js|css)$", file.name):
            found[file.name] = None
        elif re.match(r"index-[\w-]+\.js$", file.name):
            names = _table(file.read_text("utf-8"))
            if any(name.startswith("core-") for name in names):  # it is the page's own script, and needs them all
                found |= dict.fromkeys(names)
        elif re.match(r"core-[\w-]+\.js$", file.name):
            text = file.read_text("utf-8")
            for kind in sorted(kinds):
                found |= dict.fromkeys(_files_of(kind, text))
    return tuple(found)


def _table(text: str) -> list[str]:
    """Returns the files that a script of the bundle may ask for, in the order in which it counts them."""
    table = _TABLE.search(text)
    return re.findall(r'"\./([^"]+)"', table[1]) if table else []


def _files_of(kind: str, text: str) -> list[str]:
    """Returns the files of one kind of component, as the script that looks them up has them."""
    names, found = _table(text), []
    for parts in re.findall(rf"[{{,]{re.escape(kind)}:\{{([^}}]*import[^}}]*)\}}", text):
        used = re.sub(r"\bexample:\(\)=>.*?(?=,\w+:\(\)=>|$)", "", parts)  # how it looks in a gallery of examples
        found += re.findall(r"import\(`\./([\w.-]+\.js)`\)", used)
        numbers = [int(n) for group in re.findall(r"mapDeps\(\[([\d,]+)\]\)", used) for n in group.split(",")]
        found += [names[n] for n in numbers if n < len(names)]
    return [name for name in found if not name.startswith("index-")]  # which the page names itself


def link_header(files: Iterable[str]) -> str:
    """Returns the value of the header `Link` that announces files."""
    ways = {"js": "rel=modulepreload", "css": "rel=preload; as=style; crossorigin"}
    return ", ".join(f"<./assets/{name}>; {ways[name.rpartition('.')[2]]}" for name in files)
