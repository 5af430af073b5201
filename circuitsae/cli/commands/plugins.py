"""`circuitsae plugins`: what is registered, by whom, and what is broken."""

import argparse

from circuitsae import registry
from circuitsae.cli.output import Console, table
from circuitsae.errors import PluginError, UnknownNameError

DESCRIPTION = """\
Lists what is registered under a name: metrics, methods, loaders, pruners, exporters, labels and presets, with the
distribution that each comes from. Other distributions add theirs by entry points (docs/plugins.md); those are
imported, and one that can't be is marked as broken. It takes nothing else down.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description = DESCRIPTION
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"only these: {', '.join(registry.KINDS)}")
    parser.add_argument("--check", action="store_true", help="import the built-in ones too; status 1 if one is broken")


def run(args: argparse.Namespace, console: Console) -> None:
    """Lists them.

    Raises:
        UnknownNameError: There is no such kind.
        PluginError: With `--check`, some can't be imported.
    """
    found = registry.plugins(_kind(args.kind) if args.kind else None)
    problems = [_problem(plugin) if args.check or plugin.distribution != "circuitsae" else "" for plugin in found]
    rows = [
        {"kind": p.kind, "name": p.name, "from": p.distribution, "summary": _summary(p), "problem": problem}
        for p, problem in zip(found, problems, strict=True)
    ]
    clashes = registry.problems()
    if console.as_json:
        console.json({"plugins": rows, "clashes": clashes})
    else:
        for kind in dict.fromkeys(row["kind"] for row in rows):
            console.heading(kind)
            cells = [
                (f"  {row['name']}", row["from"], f"broken: {row['problem']}" if row["problem"] else row["summary"])
                for row in rows
                if row["kind"] == kind
            ]
            for line in table(("", "", ""), cells, "lll", console.width)[1:]:
                console.print(line)
        for clash in clashes:
            console.print(f"ignored, from {clash}")
    broken = [problem for problem in [*problems, *clashes] if problem]
    if args.check and broken:
        raise PluginError(" ".join(broken))


def _kind(name: str) -> registry.Kind:
    for kind in registry.KINDS:
        if name == kind:
            return kind
    raise UnknownNameError("kind of plugin", name, registry.KINDS)


def _problem(plugin: registry.Plugin) -> str:
    """Returns what is wrong with a plugin, nothing where it can be imported."""
    try:
        plugin.load()
    except PluginError as error:
        return str(error)
    return ""


def _summary(plugin: registry.Plugin) -> str:
    if plugin.summary or isinstance(plugin.target, str):
        return plugin.summary
    return (getattr(plugin.target, "__doc__", "") or "").strip().split("\n")[0]
