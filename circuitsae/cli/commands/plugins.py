"""`circuitsae plugins`: what is registered, by whom, and what is broken; and the beginning of a new one."""

import argparse
from pathlib import Path

from circuitsae import registry
from circuitsae.cli.output import Console, table
from circuitsae.errors import InputError, PluginError, UnknownNameError

DESCRIPTION = """\
Lists what is registered under a name: metrics, methods, loaders, pruners, groupings, exporters, labels and presets,
with the distribution that each comes from. Other distributions add theirs by entry points (docs/plugins.md); those are
imported, and one that can't be is marked as broken. It takes nothing else down.

'circuitsae plugins new NAME' writes a distribution of your own with a metric, a method, an exporter and tests.
"""

EXAMPLES = """\
examples:
  circuitsae plugins exporters
  circuitsae plugins new my-metrics
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "kind", nargs="?", metavar="KIND", help=f"only these: {', '.join(registry.KINDS)}; or new, to write one"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="what the new one is called")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the new one goes (circuitsae-NAME)")
    parser.add_argument("--check", action="store_true", help="import the built-in ones too; status 1 if one is broken")


def run(args: argparse.Namespace, console: Console) -> None:
    """Lists them, or writes a new one.

    Raises:
        InputError: The new one's name or folder can't be used.
        UnknownNameError: There is no such kind.
        PluginError: With `--check`, some can't be imported.
    """
    if args.kind == "new":
        _write(args, console)
        return
    if args.name is not None or args.output is not None:
        raise InputError("A name and a folder are for a new plugin: circuitsae plugins new NAME.")
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


def _write(args: argparse.Namespace, console: Console) -> None:
    from circuitsae.cli.scaffold import write_plugin

    if args.name is None:
        raise InputError("The new plugin has no name; expected one, such as: circuitsae plugins new my-metrics.")
    folder = write_plugin(args.name, None if args.output is None else Path(args.output))
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    if console.as_json:
        console.json({"folder": str(folder), "files": files})
        return
    console.print(f"{folder} has a metric, a method, an exporter and tests:")
    for file in files:
        console.print(f"  {file}")
    console.print(f"Next: pip install -e '{folder}[test]' && pytest {folder}")


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
