"""Recipes: how their configs are loaded and changed, and that every bundled one is valid."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from miniature import write_recipe, write_yaml
from psychocounsel.config.components import locate, recipes_folder
from psychocounsel.config.loading import load_config, read_config_file
from psychocounsel.config.recipe import (
    RECIPE_FILE,
    RecipeConfig,
    StageName,
    SweepPoint,
    config_argument,
    load_points,
    load_recipe,
    recipe_folder,
    stage_config,
)
from psychocounsel.errors import ConfigError

FOLDERS = sorted(path.parent for path in recipes_folder().glob(f"*/{RECIPE_FILE}"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "recipe")


def test_a_seed_goes_to_every_step(recipe: Path) -> None:
    steps = load_recipe(recipe, ["seed=7", "align.seed=9"])
    seeds = {step.name: step.config.seed for step in steps if step.stage != "report"}
    assert seeds.pop("align") == 9
    assert set(seeds.values()) == {7}


def test_a_shared_block_is_changed_in_every_step(recipe: Path) -> None:
    steps = load_recipe(recipe, ["corpus.split.seed=3", "judge.max_missing_share=0.5"])
    configs = {step.name: step.config for step in steps}
    assert configs["make-base-model"].corpus.split.seed == configs["build-preferences"].corpus.split.seed == 3
    assert (
        configs["build-preferences"].judge.max_missing_share == configs["eval-winrate"].judge.max_missing_share == 0.5
    )


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("eval-winrat.seed=1", "did you mean 'eval-winrate'?"),
        ("eval-winrate.sead=1", "did you mean 'eval-winrate.seed'?"),
        ("judge.smaples=3", "did you mean 'judge.samples'?"),
        ("align.online.rounds=x", "--set align.online.rounds: online.rounds: Input"),
        ("align.online=[1", "--set align.online line 1: not valid YAML"),
        ("stepps=1", "did you mean 'steps'?"),
        ("seed", "write --set key.sub=value"),
        ("beta=0.3", "did you mean 'align-dpo.beta' or 'align.beta'?"),
        ("split.test_share=0.3", "did you mean 'corpus.split.test_share'?"),
        ("align.learning_rate=1", "did you mean 'align.optimisation.learning_rate'?"),
        ("corpus.min_chars=1", "did you mean 'corpus.cleaning.min_chars'?"),
        ("zzz=1", "known: make-base-model"),
    ],
)
def test_a_wrong_override_suggests_the_full_key(recipe: Path, override: str, fragment: str) -> None:
    with pytest.raises(ConfigError) as fault:
        load_recipe(recipe, [override])
    assert fragment in str(fault.value)


POLICIES = """\
policies:
  - {author: dpo, model: mini-dpo}
  - {author: told, model: mini-base, chat: {system_prompt: Listen.}}
"""


def list_policies(recipe: Path, policies: str = POLICIES) -> None:
    path = recipe / "eval-winrate.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["policy"]
    write_yaml(path, content)
    path.write_text(path.read_text(encoding="utf-8") + policies, encoding="utf-8")


def test_a_list_of_policies_stands_for_one_config_each(recipe: Path) -> None:
    list_policies(recipe)
    overrides = [
        "eval-winrate.policies.1.author=asked",
        "eval-winrate.name=all",
        "eval-winrate.policy.sampling.top_p=0.5",
    ]
    configs = [step.config for step in load_recipe(recipe, overrides) if step.stage == "eval-winrate"]
    assert [each.name for each in configs] == ["all-dpo", "all-asked"]
    assert [each.policy.chat.system_prompt for each in configs] == ["", "Listen."]
    assert [each.policy.sampling.top_p for each in configs] == [0.5, 0.5]
    assert configs[0].reference == configs[1].reference


@pytest.mark.parametrize(
    ("policies", "fragments"),
    [
        ("policies: []\n", ["line 11: policies is not a list"]),
        ("policies: {author: dpo}\n", ["policies is not a list"]),
        (POLICIES.replace("told", "dpo"), ["policies is not a list of blocks with different authors"]),
        (POLICIES + "policy: {author: x, model: y}\n", ["in place of a policy"]),
        (POLICIES.replace("told, model", "told, modle"), ["line 13: policy.modle", "did you mean"]),
    ],
)
def test_faults_of_a_list_of_policies_name_their_line(recipe: Path, policies: str, fragments: list[str]) -> None:
    list_policies(recipe, policies)
    with pytest.raises(ConfigError) as fault:
        load_recipe(recipe)
    assert [each for each in fragments if each not in str(fault.value)] == [], fault.value


def test_faults_of_all_steps_are_reported_together(recipe: Path) -> None:
    write_yaml(recipe / "report.yaml", {"name": "mini"})
    (recipe / "align.yaml").write_text("name: mini\nmode: onlin\n", encoding="utf-8")
    with pytest.raises(ConfigError) as fault:
        load_recipe(recipe)
    assert "report.yaml" in str(fault.value)
    assert "align.yaml" in str(fault.value)


def test_a_recipe_may_be_named_by_its_file(recipe: Path) -> None:
    assert recipe_folder(str(recipe / RECIPE_FILE)) == recipe_folder(str(recipe)) == recipe


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mien", "there is no such recipe or folder; did you mean 'mine'?"),
        ("quikstart", "did you mean 'quickstart'?"),
        ("mine/align.yaml", "the recipe is mine, of which --only align runs this step"),
    ],
)
def test_what_is_no_recipe_suggests_one(
    name: str, hint: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recipe, "mine")
    with pytest.raises(ConfigError, match=re.escape(hint)):
        recipe_folder(name)


@pytest.mark.parametrize(
    ("stage", "name", "found"),
    [
        ("align", "quickstart", "quickstart/align.yaml"),
        ("align", "quickstart/align-dpo", "quickstart/align-dpo.yaml"),
        ("corpus", "quickstart", "quickstart/corpus.yaml"),
        ("eval-crisis", "crisis-suite", "crisis-suite/eval-crisis.yaml"),
    ],
)
def test_a_stage_finds_its_config_by_the_name_of_a_recipe(stage: StageName, name: str, found: str) -> None:
    config = stage_config(stage, name)
    assert config == recipes_folder() / found
    assert config_argument(stage, config) == name


def test_a_stage_finds_its_config_in_a_folder_beside(recipe: Path) -> None:
    assert stage_config("align", str(recipe)) == recipe / "align.yaml"
    (recipe / "align.yaml").rename(recipe / "align-online.yaml")
    content = (recipe / RECIPE_FILE).read_text(encoding="utf-8")
    (recipe / RECIPE_FILE).write_text(content.replace("align.yaml", "align-online.yaml"), encoding="utf-8")
    assert stage_config("report", str(recipe)) == recipe / "report.yaml"
    with pytest.raises(ConfigError, match=r"recipe/align-dpo, recipe/align-online"):
        stage_config("align", str(recipe))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("quickstrat", "did you mean 'quickstart'?"),
        ("zzz", "known: counsel-chat"),
        ("quickstart/align-bpo", "quickstart/align-dpo, quickstart/align"),
        ("crisis-suite", "none"),
    ],
)
def test_a_name_without_a_config_of_the_stage_is_an_error(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as fault:
        stage_config("align", name)
    assert hint in str(fault.value)


def named_files(path: Path) -> set[str]:
    """Return the YAML files that a config names as steps, in place of a block or in one."""

    def texts(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from texts(each)

    return {text for text in texts(read_config_file(path).data) if text.endswith(".yaml")}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_file_of_a_bundled_recipe_is_loaded_by_it(folder: Path) -> None:
    steps = load_recipe(folder)
    files = {path.name for path in folder.glob("*.yaml")}
    reached = {RECIPE_FILE}.union(*(named_files(folder / name) for name in files))
    assert files == reached
    assert {f"{step.name}.yaml" for step in steps} <= files
    assert all(path.read_text(encoding="utf-8").startswith("# ") for path in folder.glob("*.yaml"))
    assert load_config(RecipeConfig, folder / RECIPE_FILE).needs


@pytest.mark.parametrize("recipe", ["llama3-3b", "llama3-8b", "released"])
def test_recipes_for_the_paper_measure_every_cell_of_its_table(recipe: str) -> None:
    steps = load_recipe(recipe_folder(recipe))
    rates = [step.config for step in steps if step.stage == "eval-winrate" and step.config.judge.backend == "endpoint"]
    cells = {(each.policy.author, each.constraint is not None): f"comparisons/{each.name}" for each in rates}
    assert set(cells) >= {(author, arm) for author in ("base", "dpo", "online") for arm in (False, True)}
    assert set(cells.values()) <= set(steps[-1].config.artifacts), "all are in the report"


def test_bundled_paths_are_samples() -> None:
    assert locate("bundled:speeches.jsonl").is_file()
    assert locate("speeches.jsonl") == Path("speeches.jsonl")


@pytest.mark.parametrize(
    ("sweeps", "name"),
    [
        (["align.beta=0.05,0.1"], "mini-align.beta-0.05"),
        (["align-dpo.beta=0.05,0.1"], "mini-align-dpo.beta-0.05"),  # another sweep, other names downstream
        (["align.policy=Org/A,org/B"], "mini-align.policy-org-a"),
        (["align.policy=Org/A,org/a,org-a"], None),
        (["align.seed=1,2", f"align.policy={'a' * 60}b,{'a' * 60}c"], None),
    ],
)
def test_points_have_names_of_their_own(recipe: Path, sweeps: list[str], name: str | None) -> None:
    points = load_points(recipe, [], sweeps)
    names = [point.named("mini") for point in points]
    assert len(set(names)) == len(points)
    assert name in (None, names[0])
    for each in (*names, *(point.named("m" * 64) for point in points)):
        assert load_recipe(recipe, [f"align.name={each}"])


def test_a_point_keeps_the_sign() -> None:
    assert [SweepPoint((f"a.b={value}",), []).named("mini") for value in (-0.1, 0.1)] == [
        "mini-a.b--0.1",
        "mini-a.b-0.1",
    ]
