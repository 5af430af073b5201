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
    """Returns the names of the files, in gradio's folder of assets, that kinds of components are made with."""
    folder = resources.files("gradio").joinpath("templates", "frontend", "assets")
    found: dict[str, None] = {}
    for file in folder.iterdir() if folder.is_dir() else ():
        if re.match(r"Blocks-[\w-]+\.(js|css)$", file.name):
            found[file.name] = None
        if not re.match(r"core-[\w-]+\.js$", file.name):
            continue
        text = file.read_text("utf-8")
        table = _TABLE.search(text)
        names = re.findall(r'"\./([^"]+)"', table[1]) if table else []
        for kind in sorted(kinds):
            for parts in re.findall(rf"[{{,]{re.escape(kind)}:\{{([^}}]*import[^}}]*)\}}", text):
                used = re.sub(
                    r"\bexample:\(\)=>.*?(?=,\w+:\(\)=>|$)", "", parts
                )  # how it looks in a gallery of examples
                numbers = [int(n) for group in re.findall(r"mapDeps\(\[([\d,]+)\]\)", used) for n in group.split(",")]
                needed = re.findall(r"import\(`\./([\w.-]+\.js)`\)", used) + [
                    names[n] for n in numbers if n < len(names)
                ]
                found |= dict.fromkeys(name for name in needed if not name.startswith("index-"))  # which the page names
    return tuple(found)


def link_header(files: Iterable[str]) -> str:
    """Returns the value of the header `Link` that announces files."""
    ways = {"js": "rel=modulepreload", "css": "rel=preload; as=style; crossorigin"}
    return ", ".join(f"<./assets/{name}>; {ways[name.rpartition('.')[2]]}" for name in files)
