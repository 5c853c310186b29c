#!/usr/bin/env python3
"""Print how many modules each module imports, directly or not, and fail if there is an import cycle.

    scripts/import_closure.py                                     the stages
    scripts/import_closure.py stages.align llm.runner             these modules
    scripts/import_closure.py --list stages.align                 and what is in the closure

Static: every `import` statement counts, those inside functions too; those under TYPE_CHECKING do not.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
PACKAGE = "psychocounsel"


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name, without the empty `__init__.py` of packages."""
    paths = [path for path in (SOURCE / PACKAGE).rglob("*.py") if path.stat().st_size]
    names = (path.relative_to(SOURCE).with_suffix("").as_posix().removesuffix("/__init__") for path in paths)
    return dict(zip((name.replace("/", ".") for name in names), paths, strict=True))


def imported(node: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything that a syntax tree imports, outside TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (each.name for each in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            yield from (f"{child.module}.{each.name}" for each in child.names)
        yield from imported(child)


def import_graph() -> dict[str, set[str]]:
    """Return, for every module of the package, the modules of the package that it imports."""
    known = modules()
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    return {name: {each for each in imported(tree) if each in known} - {name} for name, tree in trees.items()}


def closure(graph: dict[str, set[str]], start: str) -> set[str]:
    """Return a module and everything that it imports, directly or not."""
    found, pending = {start}, [start]
    while pending:
        new = graph[pending.pop()] - found
        found |= new
        pending += new
    return found


def main() -> int:
    """Print the closures; return 1 if there is an import cycle, 2 for an unknown module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="without the package's name; default: every stage")
    parser.add_argument("--list", action="store_true", help="name the modules of each closure")
    options = parser.parse_args()
    graph, paths = import_graph(), modules()
    wanted = [f"{PACKAGE}.{each}" for each in options.modules]
    if unknown := [each for each in wanted if each not in graph]:
        print(f"error: no such module: {', '.join(unknown)}", file=sys.stderr)
        return 2
    for name in wanted or sorted(each for each in graph if each.startswith(f"{PACKAGE}.stages.")):
        members = sorted(closure(graph, name))
        lines = sum(paths[each].read_text(encoding="utf-8").count("\n") for each in members)
        print(f"{name.removeprefix(PACKAGE + '.'):32} {len(members):3} modules {lines:6} lines")
        if options.list:
            print("".join(f"    {each.removeprefix(PACKAGE + '.')}\n" for each in members), end="")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as cycle:
        print(f"error: import cycle: {' -> '.join(cycle.args[1])}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
