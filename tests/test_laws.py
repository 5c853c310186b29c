"""The laws of the house that no other checker holds us to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import psychocounsel

SOURCE = Path(psychocounsel.__file__).parent
MODULES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
MEDIAN_FUNCTION_LINES = 15
NO_ARROW = {
    "errors.py",  # nouns, nothing flows through them
    "__main__.py",
    "store/lock.py",
}
FORBIDDEN_NAMES = {"utils.py", "helpers.py", "common.py", "misc.py"}


def module_id(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_module_opens_with_its_arrow(path: Path) -> None:
    first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n\n")[0]
    assert first
    if module_id(path) not in NO_ARROW:
        assert "->" in first


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_sizes_to_feel_at_home_in(path: Path) -> None:
    assert path.read_text(encoding="utf-8").count("\n") <= MAX_FILE_LINES
    too_long = {node.name: lines(node) for node in functions(path) if lines(node) > MAX_FUNCTION_LINES}
    assert not too_long


def test_functions_are_short_on_the_whole() -> None:
    sizes = sorted(lines(node) for path in MODULES for node in functions(path))
    assert sizes[len(sizes) // 2] <= MEDIAN_FUNCTION_LINES


def test_packages_are_empty() -> None:
    assert not [path for path in SOURCE.rglob("__init__.py") if path.read_bytes()]


def test_every_helper_has_an_owner() -> None:
    assert not {path.name for path in MODULES} & FORBIDDEN_NAMES


def test_nothing_is_printed() -> None:
    calls = {
        module_id(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert not calls


def test_every_check_that_is_silenced_is_named() -> None:
    bare = re.compile(r"#\s*(noqa(?!:)|type:\s*ignore(?!\[)|pyright:\s*ignore(?!\[))")
    assert not [module_id(path) for path in MODULES if bare.search(path.read_text(encoding="utf-8"))]


def test_imports_are_absolute() -> None:
    relative = [
        module_id(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative
