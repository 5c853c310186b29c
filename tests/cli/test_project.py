"""Projects of one's own: what `init` writes is loaded, begins to run, and fits the schemas that editors read."""

import errno
import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest

import psychocounsel
from psychocounsel.cli.project import init
from psychocounsel.config.components import JudgeConfig, recipes_folder
from psychocounsel.config.loading import read_config_file
from psychocounsel.config.recipe import RECIPE_FILE, bundled_recipes, load_recipe
from psychocounsel.config.schema import AlignConfig, BuildPreferencesConfig, EvalWinrateConfig
from psychocounsel.errors import IncompleteError
from psychocounsel.judging.rubric import load_rubric
from running import Cli, Warm


@pytest.mark.parametrize("recipe", bundled_recipes())
def test_a_copy_of_a_recipe_is_valid(recipe: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = cli("init", "mine", "--from", recipe)
    assert ended.code == 0, ended.err
    first, second = (line.partition(": ")[2] for line in ended.out.splitlines()[-2:])
    assert "psychocounsel run mine --dry-run" in (first, second), "before anything is paid"
    before, after = load_recipe(recipes_folder() / recipe), load_recipe(Path("mine"))
    assert [step.stage for step in after] == [step.stage for step in before]
    assert {step.config.name.startswith("mine") for step in after} == {recipe != "qwen-7b-24gb"}
    assert f"{recipe}/" not in (Path("mine") / RECIPE_FILE).read_text(encoding="utf-8")
    for old, new in zip(before, after, strict=True):
        judge = getattr(old.config, "judge", None)
        if isinstance(judge, JudgeConfig) and old.stage != "eval-crisis":
            assert new.config.judge.rubric == "mine/rubric.yaml", "to be edited"
            words = load_rubric(new.config.judge.rubric)
            assert (words.digest, words.offline) == ((shipped := load_rubric(judge.rubric)).digest, shipped.offline)
    jsonschema = pytest.importorskip("jsonschema")
    for path in Path("mine").glob("*.yaml"):
        named = path.read_text(encoding="utf-8").splitlines()[0].partition("$schema=")[2]
        schema = json.loads((path.parent / named).read_text(encoding="utf-8"))
        jsonschema.validate(read_config_file(path).data, schema)


def test_a_new_project_reads_its_speeches_and_knows_what_it_would_create(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "Our Helpline").code == 0
    read = cli("corpus", "Our Helpline")
    assert (read.code, "created: speeches our-helpline@" in read.out) == (0, True), read.err
    assert read.out.splitlines()[-1].endswith("next: psychocounsel run 'Our Helpline'")
    shutil.copy("Our Helpline/corpus.yaml", "Our Helpline/others.yaml")
    others = cli("corpus", "Our Helpline/others.yaml", "--set", "name=others")
    assert "psychocounsel show speeches/others@" in others.out.splitlines()[-1], "no step of the recipe reads it"
    planned = cli("run", "Our Helpline", "--dry-run")
    assert (planned.code, "comparisons     our-helpline-online@" in planned.out) == (0, True), planned.err


def test_a_project_has_one_store_wherever_a_command_is_given(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "mine").code == 0
    assert "created: speeches" in cli("corpus", "mine").out
    assert "--store mine/data" in cli("list").out
    assert not psychocounsel.run_stage("corpus", "mine/corpus.yaml").is_new
    monkeypatch.chdir(tmp_path / "mine")
    assert "up to date: speeches" in cli("corpus", ".").out
    assert "speeches" in cli("list").out
    elsewhere = cli("corpus", ".", "--store", tmp_path / "other")
    assert elsewhere.out.splitlines()[-1].endswith(f"--store {tmp_path / 'other'}")
    assert [path.name for path in tmp_path.iterdir() if path.name == "data"] == []


def test_a_judge_without_a_rubric_is_told_where_the_project_has_one(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "mine").code == 0
    dry_run = ("run", "mine", "--until", "build-preferences", "--dry-run")
    planned = cli(*dry_run)
    assert "rubric: mine/rubric.yaml (3 principles)" in planned.out
    assert "names no rubric" not in planned.err
    config = tmp_path / "mine" / "build-preferences.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("judge: judge.yaml", "judge: {backend: offline}"))
    planned = cli(*dry_run)
    assert "rubric: seven-principles (7 principles)" in planned.out
    assert "names no rubric" in planned.err


@pytest.mark.parametrize("recipe", ["starter", "motivational-interviewing"])
def test_one_file_names_the_judge_of_a_whole_project(
    recipe: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "mine", "--from", recipe).code == 0
    judge = tmp_path / "mine" / "judge.yaml"
    words = judge.read_text(encoding="utf-8")
    judge.write_text(words.replace("backend: offline", "backend: endpoint\nendpoint: {model: m}"), encoding="utf-8")
    configs = [step.config for step in load_recipe(Path("mine"))]
    judged = [each.judge.backend for each in configs if isinstance(each, BuildPreferencesConfig | EvalWinrateConfig)]
    probes = [each.online.probe for each in configs if isinstance(each, AlignConfig) and each.online]
    assert {*judged, *(probe.judge.backend for probe in probes if probe and probe.judge)} == {"endpoint"}


@pytest.mark.slow
def test_a_new_project_runs_to_its_report(cli: Cli, warm: Warm, tmp_path: Path) -> None:
    assert cli("init", tmp_path / "mine").code == 0
    ended = warm.run("run", tmp_path / "mine", "--store", tmp_path / "store")
    assert ended.code == 0, ended.err
    page = Path(ended.out.splitlines()[-1].removeprefix("report: ")).read_text(encoding="utf-8")
    assert "restricted" in page


def test_a_project_can_be_copied(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "mine").code == 0
    (tmp_path / "mine" / "notes.bin").write_bytes(b"\xff\x00")
    assert cli("init", "ours", "--from", "mine").code == 0
    judge = (tmp_path / "ours" / "judge.yaml").read_text(encoding="utf-8")
    assert judge == (tmp_path / "mine" / "judge.yaml").read_text(encoding="utf-8")
    assert (tmp_path / "ours" / "notes.bin").read_bytes() == b"\xff\x00"
    assert {step.config.name.partition("-")[0] for step in load_recipe(Path("ours"))} == {"ours"}


def test_commands_in_a_copy_can_be_pasted_whatever_its_folder_is_called(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "Mein Projekt \\1").code == 0
    assert "psychocounsel run 'Mein Projekt \\1'\n" in Path("Mein Projekt \\1", RECIPE_FILE).read_text(encoding="utf-8")


def test_a_copy_keeps_the_words_of_its_rubric(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init", "safety").code == 0
    assert cli("init", "ours", "--from", "safety").code == 0  # names of artifacts change, and principles do not
    safety, ours = (load_rubric(f"{name}/rubric.yaml") for name in ("safety", "ours"))
    assert (ours.principles, ours.safety) == (safety.principles, "safety")


def test_a_mistake_in_the_rubric_is_told_before_a_model_is_trained(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", tmp_path / "mine").code == 0
    rubric = tmp_path / "mine" / "rubric.yaml"
    rubric.write_text(rubric.read_text(encoding="utf-8").replace("5: ", "6: "), encoding="utf-8")
    ended = cli("run", tmp_path / "mine", "--store", tmp_path / "store")
    ended.says(2, "rubric.yaml line", "principles.0.anchors")
    assert not (tmp_path / "store" / "base-models").exists()


@pytest.mark.parametrize("step", ["align-dpo.policy", "eval-winrate.reference.model"])
def test_a_reference_to_nothing_in_a_late_step_is_told_before_the_first_step(
    cli: Cli, tmp_path: Path, step: str
) -> None:
    """The steps before may pay a judge."""
    assert cli("init", tmp_path / "mine").code == 0
    ended = cli("run", tmp_path / "mine", "--store", tmp_path / "store", "--set", f"{step}=nothing")
    ended.says(2, "nothing", step.rpartition(".")[2])
    assert not list((tmp_path / "store").glob("*/*/"))


@pytest.mark.parametrize(
    ("kind", "has_template", "message"),
    [
        ("llama", False, "no chat template"),
        ("granite", True, "no reward head"),
        ("mistral3", True, "no model of the type mistral3"),
    ],
)
def test_a_model_that_no_training_can_take_is_told_before_the_first_step(
    cli: Cli, tmp_path: Path, kind: str, has_template: bool, message: str
) -> None:
    from psychocounsel.training.tiny_llama import train_tokenizer

    mute = tmp_path / "mute"
    train_tokenizer(["How are you?"], 400, 2048).save_pretrained(mute)
    if not has_template:
        (mute / "chat_template.jinja").unlink()
    (mute / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    assert cli("init", tmp_path / "mine").code == 0
    words = ("--store", tmp_path / "store", "--set", f"train-reward.base_model={mute}")
    for more in ((), ("--dry-run",)):
        cli("run", tmp_path / "mine", *words, *more).says(2, "mute", message)
    assert not list((tmp_path / "store").glob("*/*/"))


@pytest.mark.parametrize(
    ("setting", "package"),
    [("align.online.sampler.backend=vllm", "vllm"), ("align-dpo.optimisation.optimizer=adamw_8bit", "bitsandbytes")],
)
def test_a_package_that_a_late_step_needs_is_told_before_the_first_step(
    cli: Cli, tmp_path: Path, setting: str, package: str
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    assert cli("init", tmp_path / "mine").code == 0
    words = ("run", tmp_path / "mine", "--store", tmp_path / "store", "--set", setting)
    cli(*words).says(2, package, "pip install")
    assert not list((tmp_path / "store").glob("*/*/"))
    assert cli(*words, "--dry-run").code == 0  # which may be asked for on another machine


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    cli("init", tmp_path / "mine").says(2, "mine", "exists already")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    cli("init", tmp_path / "other", "--from", "quickstrat").says(2, "did you mean 'quickstart'?")
    assert not (tmp_path / "other").exists()


def test_a_full_disk_leaves_a_project_to_begin_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(IncompleteError, match="No space left") as fault:
        init(tmp_path / "mine")
    assert fault.value.where == str(tmp_path / "mine")


def test_a_schema_marks_mistakes(cli: Cli) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(cli("schema", "judge").out)
    for judge in ({"backend": "endpoint", "endpoint": {"base_url": "http://127.0.0.1/v1"}}, {"panel": []}):
        jsonschema.validate(judge, schema)
    for judge in ({"backend": "oflline"}, {"endpoint": {"modle": "x"}}, {"samples": 0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(judge, schema)
    cli("schema", "jugde").says(2, "did you mean 'judge'?")


def test_recipes_are_listed_with_what_they_need(cli: Cli) -> None:
    lines = cli("recipes").out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == bundled_recipes()
    assert sum(line.startswith("  needs: ") and len(line) > 20 for line in lines) == len(bundled_recipes())
