"""Pages of the documentation that come from the code: commands, config keys, metrics. A hook of mkdocs.

`python scripts/reference.py` prints them. Links that leave docs/ have no target on the site; their words stay.
"""

import inspect
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.cli import get_docs_for_click

from psychocounsel.cli.main import app
from psychocounsel.config.base import Gate, SpeedSetting
from psychocounsel.config.recipe import STAGES
from psychocounsel.judging.rubric import RubricFile
from psychocounsel.store.metrics import METRICS

MARKS = ((SpeedSetting, "speed"), (Gate, "gate"))


def commands() -> str:
    """Return the page of all commands, with their arguments and options, as typer writes it."""
    command = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="psychocounsel", title="Commands")


def config() -> str:
    """Return the page of all config keys: stages first, then the blocks that they have."""
    parts = [
        "# Config keys",
        "One YAML file per stage. A key without a default is required. `speed` marks keys that change how fast a "
        "result comes and not the result, `gate` those that only accept or refuse it: both stay out of an "
        "artifact's id.",
    ]
    stages = [(f"{name}.yaml", stage.config) for name, stage in STAGES.items()] + [("rubric.yaml", RubricFile)]
    blocks: dict[type[BaseModel], None] = {}
    for _, model in stages:
        _collect(model, blocks)
    tops = {model for _, model in stages}
    for title, model in [*stages, *((each.__name__, each) for each in blocks if each not in tops)]:
        rows = [
            f"| `{name}` | {_cell(_words(info.annotation))} | {_cell(_value(info))} | {_mark(info)} |"
            for name, info in model.model_fields.items()
        ]
        parts += [_heading(title, model), inspect.cleandoc(model.__doc__ or "")]
        parts += ["\n".join(["| key | value | default | |", "|---|---|---|---|", *rows])]
    return "\n\n".join(parts) + "\n"


def metrics() -> str:
    """Return the page of the shapes of metrics.json, by kind of artifact."""
    parts = [
        "# Shapes of metrics.json",
        "The keys by kind of artifact, from the code; [metrics.md](../metrics.md) explains them.",
    ]
    blocks: dict[type[BaseModel], None] = {}
    tops: dict[type[BaseModel], list[str]] = {}
    for kind, annotation in METRICS.items():
        for model in _models(annotation):
            tops.setdefault(model, []).append(kind)
            _collect(model, blocks)
    for model in [*tops, *(each for each in blocks if each not in tops)]:
        rows = [
            f"| `{info.alias or name}` | {_cell(_words(info.annotation))} |"
            for name, info in model.model_fields.items()
        ]
        title = " and ".join(tops[model]) if model in tops else model.__name__
        parts += [_heading(title, model), inspect.cleandoc(model.__doc__ or "")]
        parts += ["\n".join(["| key | value |", "|---|---|", *rows])] if rows else []
    return "\n\n".join(parts) + "\n"


def _heading(title: str, model: type[BaseModel]) -> str:
    return f"## {title} {{#{model.__name__.lower()}}}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models that an annotation names, at any depth."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation
    else:
        for argument in typing.get_args(getattr(annotation, "__value__", annotation)):
            yield from _models(argument)


def _collect(model: type[BaseModel], found: dict[type[BaseModel], None]) -> None:
    if model not in found:
        found[model] = None
        for info in model.model_fields.values():
            for each in _models(info.annotation):
                _collect(each, found)


def _words(annotation: Any) -> str:
    """Return an annotation as a reader of YAML sees it; models are links to their keys."""
    annotation = getattr(annotation, "__value__", annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin is typing.Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(_words(each) for each in arguments))
    if origin is not None and arguments and issubclass(origin, typing.Mapping):
        return f"{_words(arguments[1])} by {_words(arguments[0])}"
    if origin is tuple and Ellipsis not in arguments:
        return f"[{', '.join(map(_words, arguments))}]"
    if origin is not None and arguments:
        return f"list of {_words(arguments[0])}"
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _value(info: Any) -> str:
    if info.is_required():
        return ""
    value = info.get_default(call_default_factory=True) if info.default is PydanticUndefined else info.default
    if isinstance(value, BaseModel):
        return "its defaults"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`" if text else "empty"


def _mark(info: Any) -> str:
    return next((word for mark, word in MARKS if any(isinstance(each, mark) for each in info.metadata)), "")


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


PAGES = {"reference/commands.md": commands, "reference/config.md": config, "reference/metrics.md": metrics}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages: mkdocs calls this after it has listed docs/."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Keep the words of links to files outside docs/."""
    folder = Path(page.file.src_uri).parent

    def inside(link: re.Match[str]) -> str:
        target = link[2].partition("#")[0]
        is_outside = not re.match(r"[a-z]+:", target) and target and _climbs(folder / target)
        return link[1] if is_outside else link[0]

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", inside, markdown)


def _climbs(path: Path) -> bool:
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


if __name__ == "__main__":
    print("\n".join(page() for page in PAGES.values()))
