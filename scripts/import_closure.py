#!/usr/bin/env python3
"""Print how many modules each module imports, directly or not, and fail if there is an import cycle.

    scripts/import_closure.py                                     the stages
    scripts/import_closure.py stages.align llm.runner             these modules
    scripts/import_closure.py --list stages.align                 and what is in the closure

Static: every `import` statement counts, those inside functions too; those under TYPE_CHECKING do not
(grimp, which import-linter brings, reads them).
"""

import argparse
import sys

import grimp
import networkx as nx

PACKAGE = "psychocounsel"


def main() -> int:
    """Print the closures; return 1 if there is an import cycle, 2 for an unknown module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="without the package's name; default: every stage")
    parser.add_argument("--list", action="store_true", help="name the modules of each closure")
    options = parser.parse_args()
    imports = grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)
    wanted = [f"{PACKAGE}.{each}" for each in options.modules]
    if unknown := [each for each in wanted if each not in imports.modules]:
        print(f"error: no such module: {', '.join(unknown)}", file=sys.stderr)
        return 2
    for name in wanted or sorted(imports.find_children(f"{PACKAGE}.stages")):
        members = sorted({name, *imports.find_upstream_modules(name)})
        print(f"{name.removeprefix(f'{PACKAGE}.'):32} {len(members):3} modules")
        if options.list:
            print("".join(f"    {each.removeprefix(f'{PACKAGE}.')}\n" for each in members), end="")
    edges = [(name, each) for name in imports.modules for each in imports.find_modules_directly_imported_by(name)]
    if cycle := next(nx.simple_cycles(nx.DiGraph(edges)), None):
        print(f"error: import cycle: {' -> '.join(cycle)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
