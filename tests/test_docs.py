"""README and docs: links lead somewhere, commands and config fragments are ones that the program takes."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import typer
import yaml
from pydantic import ValidationError

from psychocounsel.cli.main import app
from psychocounsel.config.base import Settings
from psychocounsel.config.components import JudgeConfig
from psychocounsel.config.loading import load_configs, read_yaml
from psychocounsel.config.recipe import (
    STAGES,
    StageName,
    bundled_recipes,
    load_points,
    recipe_folder,
    select_steps,
    stage_config,
)
from psychocounsel.config.schema import AlignConfig
from psychocounsel.judging.rubric import RubricFile
from running import ENVIRONMENT

CLONE = Path(__file__).parents[1]
DOCS = sorted((CLONE / "docs").rglob("*.md"))
PAGES = [*sorted(CLONE.glob("*.md")), *DOCS, *sorted((CLONE / "data" / "samples").rglob("*.md"))]
MODELS: dict[str, type[Settings]] = {
    **{str(name): stage.config for name, stage in STAGES.items()},
    "judge": JudgeConfig,
    "rubric": RubricFile,
}
FOREIGN = ("gateway",)
"""Files of other programs."""
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: where it begins, the words after the fence, and what is in it."""

    where: str
    info: str
    text: str


def blocks(path: Path) -> Iterator[Block]:
    text = path.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(f"{path.relative_to(CLONE)}:{line}", found[2].strip(), found[3])


def prose(path: Path) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))


def anchors(path: Path) -> list[str]:
    """Return the anchors of the headings, as the Hub of repositories and mkdocs both write them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(CLONE)))
def test_links_and_headings(path: Path) -> None:
    faults: list[str] = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            faults.append(target)
    assert faults == []
    own = anchors(path)
    assert path.name == "CHANGELOG.md" or len(own) == len(set(own))
    assert len(re.findall(r"^# ", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)) == 1


def test_every_page_is_in_the_table_of_contents() -> None:
    def files(entry: Any) -> Iterator[str]:
        values = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ()
        yield from (entry,) if isinstance(entry, str) else (file for each in values for file in files(each))

    nav = yaml.safe_load((CLONE / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    shown = [file for file in files(nav) if not file.startswith("reference/")]
    assert sorted(shown) == sorted(str(path.relative_to(CLONE / "docs")) for path in DOCS)
    linked = re.findall(r"\]\(([^)#]+)\)", (CLONE / "docs" / "README.md").read_text(encoding="utf-8"))
    assert {*shown} <= {*linked, "README.md"}


def test_pages_that_code_and_configs_mention_exist() -> None:
    files = [path for folder in ("src", "configs", "scripts", "tests") for path in (CLONE / folder).rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".yaml", ".sh", ".j2")]
    named = {name for text in texts for name in re.findall(r"\bdocs/[\w/-]+\.md\b", text)}
    assert len(named) > 3
    assert [name for name in named if not (CLONE / name).is_file()] == []


def fragments() -> list[Block]:
    return [block for path in [CLONE / "README.md", *DOCS] for block in blocks(path) if block.info.startswith("yaml")]


@pytest.mark.parametrize("block", fragments(), ids=lambda block: block.where)
def test_every_config_fragment_is_valid(block: Block) -> None:
    """A fragment may lack keys, but all that it has must be right."""
    title = re.search(r'title="([\w-]+)\.yaml"', block.info)
    assert title is not None, 'say of which file this is: ```yaml title="align.yaml"'
    if title[1] in FOREIGN:
        return
    model = MODELS[title[1]]
    document: dict[str, Any] = read_yaml(block.text, block.where).data
    policies = document.pop("policies", [])
    for each in ({**document, "policy": policy} for policy in policies or [None]):
        given = {key: value for key, value in each.items() if value is not None}
        try:
            model.model_validate(given, context=CLONE)
        except ValidationError as invalid:
            assert [error for error in invalid.errors() if error["type"] != "missing"] == []


def commands() -> list[Block]:
    found: list[Block] = []
    for path in PAGES:
        for block in blocks(path):
            if block.info == "console":
                lines = re.findall(r"^ *\$ ((?:.*\\\n)*.*)$", block.text, re.MULTILINE)
                found += [Block(block.where, "", line.replace("\\\n", " ")) for line in lines]
    return found


@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.where} {command.text[:60]}")
def test_every_command_is_one_that_the_program_takes(
    command: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments are parsed, and settings of bundled recipes checked, but nothing runs."""
    words = shlex.split(command.text, comments=True)
    if words[0].startswith("scripts/"):
        assert (CLONE / words[0]).is_file()
        words = ["psychocounsel", "run", words[0].removeprefix("scripts/"), *words[1:]]
    if words[0] != "psychocounsel" or words[2:3] in (["test"], ["docs"]):
        return
    monkeypatch.chdir(CLONE)
    program: Any = typer.main.get_command(app)
    while hasattr(program, "commands"):
        words = words[1:]
        program = program.commands[words[0]]
    given = program.make_context(words[0], words[1:]).params
    name, sets = words[0], given.get("sets") or []
    if name == "run" and (CLONE / "configs" / given["recipe"]).is_dir():
        steps = load_points(recipe_folder(given["recipe"]), sets, given["sweep"] or [])[0].steps
        select_steps(steps, given["only"] or [], given["until"], given["start"])
    named = str(given.get("config") or given.get("source"))
    if name in MODELS and named.split("/")[0] in ("configs", *bundled_recipes()):
        load_configs(MODELS[name], stage_config(cast("StageName", name), named), sets)


def test_commands_in_the_heads_of_configs_name_the_file() -> None:
    heads = [path for path in (CLONE / "configs").glob("*/*.yaml") if path.name != "recipe.yaml"]
    commands = [(path, re.match(r"# psychocounsel ([\w-]+) (\S+)", path.read_text(encoding="utf-8"))) for path in heads]
    found = [(path, head) for path, head in commands if head]
    assert len(found) > 40
    assert [path for path, head in found if stage_config(cast("StageName", head[1]), head[2]) != path] == []


def test_heads_of_configs_that_need_a_gpu_say_that_they_never_ran_on_one() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (CLONE / "configs").glob("*/*.yaml")}
    weights = re.compile(r"^\W*\b(?:base_model|policy|model): hub:", re.MULTILINE)
    needing = {path for path, text in texts.items() if weights.search(text)}
    needing |= {path.with_name("recipe.yaml") for path in needing}
    needing |= {path for path in texts if path.parent.name == "accelerate" and path.stem != "cpu"}
    assert len(needing) > 20
    heads = {path: "".join(re.findall(r"\A(?:#.*\n)+", texts[path])) for path in needing}
    assert [path for path, head in heads.items() if not re.search(r"(?:Not yet run|Not run) on a GPU", head)] == []


def test_readme_is_short() -> None:
    assert len((CLONE / "README.md").read_text(encoding="utf-8")) < 8_000


def measured_in(path: Path) -> str:
    """Return the parts of a page that report measurements."""
    parts = re.split(r"^(?=## )", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if path.name == "README.md":
        return "".join(part for part in parts if part.startswith(("## Why", "## Results")))
    return "".join(part for part in parts if not part.startswith("## What was never measured"))


@pytest.mark.parametrize(("page", "least"), [("README.md", 30), ("docs/results.md", 50)])
def test_figures_of_the_results_are_those_of_the_benchmarks(page: str, least: int) -> None:
    measured = measured_in(CLONE / page)
    benchmarks = (CLONE / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+\.\d+|\d{1,3}(?:,\d{3})+|\d{3,}", measured)
    assert len(figures) > least
    assert [
        each for each in figures if not re.search(rf"(?<![\d.,]){re.escape(each)}(?![\d]|[.,]\d)", benchmarks)
    ] == []


def test_the_reference_from_the_code_is_complete_and_its_links_lead_somewhere() -> None:
    spec = importlib.util.spec_from_file_location("reference", CLONE / "scripts" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    for page in (reference.config(), reference.metrics()):
        linked = set(re.findall(r"\]\(#([\w-]+)\)", page))
        assert len(linked) > 10
        assert linked <= set(re.findall(r"\{#([\w-]+)\}", page))
    assert all(f"`{key}`" in reference.config() for key in AlignConfig.model_fields)
    assert all(f"## `psychocounsel {name}`" in reference.commands() for name in ("run", "align", "annotate export"))


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed (scripts/docs installs it)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=CLONE, env={**os.environ, **ENVIRONMENT}, capture_output=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = [page.read_text(encoding="utf-8") for page in (tmp_path / "site").rglob("*.html")]
    loaded = re.compile(r"<(?:script|img)[^>]* src=\"(https?:[^\"]*)|<link[^>]*stylesheet[^>]* href=\"(https?:[^\"]*)")
    assert [found for page in pages for found in loaded.findall(page)] == []


def test_workflows_run_scripts_of_this_clone() -> None:
    files = list((CLONE / ".github" / "workflows").glob("*.yml"))
    jobs = [job for path in files for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()]
    scripts = [step["run"].split()[0] for job in jobs for step in job["steps"] if "run" in step]
    assert {".ci/run", "scripts/docs", "scripts/test"} == set(scripts)
    assert [name for name in scripts if not os.access(CLONE / name, os.X_OK)] == []


def run_line(line: str, folder: Path) -> None:
    """Run a command of the docs in a folder, without a terminal or a browser."""
    command = [sys.executable, "-m", "psychocounsel", *shlex.split(line, comments=True)[1:]]
    settings: dict[str, Any] = {"cwd": folder, "env": {**os.environ, **ENVIRONMENT, "BROWSER": "true"}}
    ended = subprocess.run(command, **settings, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, (line, ended.stderr)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    """All its commands in their order, on the project's example speeches."""
    lines = [each.text for each in commands() if each.where.startswith("docs/tutorial.md")]
    for line in lines:
        if line.startswith("psychocounsel"):
            run_line(line, tmp_path)
    reports = (tmp_path / "my-project" / "data").glob("reports/my-project-*/report.html")
    assert len(list(reports)) == 2  # of the run, of the change


@pytest.mark.slow
def test_commands_about_the_quickstart_run_on_what_it_made(tmp_path: Path) -> None:
    lines = {
        each.text.partition("#")[0].strip() for each in commands() if " quickstart" in each.text.replace("/", "/ ")
    }
    # The others take long, need labels of people, or send something.
    others = ("run", "init", "align", "anchor", "push")
    looks = [each for each in lines if "--dry-run" in each or each.split()[1] not in others]
    assert len(looks) > 8
    run_line("psychocounsel run quickstart", tmp_path)
    for line in sorted(looks):
        run_line(line, tmp_path)
