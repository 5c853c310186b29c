"""The miniature recipe end to end: a second run is up to date, and a changed line reruns what it affects."""

import re
from pathlib import Path

import pytest

from miniature import STEPS
from psychocounsel.config.recipe import load_points, recipe_folder
from psychocounsel.errors import StoreError
from psychocounsel.stages.recipe import dry_run, run_recipe
from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.schemas import read_speeches
from psychocounsel.store.store import Store
from running import Cli, Ended, Miniature, Warm

STEP = re.compile(r"^ +[a-z, ]+? {2,}(\d+) +(\d+) +[\d.]+\xa0% +(.*)$", re.MULTILINE)
REF = re.compile(r"^(?:created: |up to date: )?([a-z-]+) +([\w.-]+@[0-9a-f]{8})", re.MULTILINE)


def refs(printed: str) -> set[str]:
    """Return every `kind name@id8` at the beginning of a line."""
    return {" ".join(found) for found in REF.findall(printed)}


def made(store: Path) -> set[str]:
    return {f"{each.kind} {each.ref}" for each in Store(store).artifacts()}


def test_nothing_is_removed_between_two_steps(miniature: Miniature, tmp_path: Path) -> None:
    points, store = load_points(recipe_folder(str(miniature.recipe)), (), []), Store(tmp_path)
    chosen = [step.stage == "build-preferences" for step in points[0].steps]

    def remove(_: Artifact) -> None:
        with pytest.raises(StoreError), store.in_use(alone=True):
            pass

    (run,) = run_recipe(points, chosen, store, lambda *_: None, remove)
    assert run.artifacts
    with store.in_use(alone=True):
        assert run_recipe(points, chosen, store, lambda *_: None, lambda _: None), "nothing is pending"


def test_every_step_makes_its_artifact_and_counts_add_up(miniature: Miniature) -> None:
    kinds = [line.split()[1] for line in miniature.ended.out.splitlines() if line.startswith("created:")]
    assert kinds == ["base-models", "preferences", "reward-models", "policies", "policies", "comparisons", "reports"]
    label, _, path = miniature.ended.out.splitlines()[-1].partition(": ")
    assert (label, Path(path).is_absolute()) == ("report", True)
    assert Path(path).read_text(encoding="utf-8").startswith("<!doctype html>")
    steps = STEP.findall(miniature.ended.out)
    assert len(steps) == 9  # speeches, candidates, judgements, the pairs of three splits, the pairs of three trainings
    for came, kept, reasons in steps:
        assert int(came) == int(kept) + sum(int(number) for number in re.findall(r"\d+", reasons))


def test_changed_evaluation_line_reruns_evaluation_and_report(miniature: Miniature, cli: Cli, store: Path) -> None:
    before = made(store)
    assert cli("run", miniature.recipe, "--store", store, "--set", "eval-winrate.confidence=0.9").code == 0
    after = made(store)
    assert {each.partition("@")[0] for each in after - before} == {"comparisons mini", "reports mini"}
    (original,) = (each for each in before if each.startswith("comparisons "))
    assert original.partition("@")[2] not in cli("show", "comparisons/mini", "--store", store).out
    again = cli("run", miniature.recipe, "--store", store)
    assert again.code == 0
    assert original.partition("@")[2] in cli("show", "comparisons/mini", "--store", store).out, "its run was the last"
    steps = [line for line in again.out.splitlines() if line.startswith(("created", "up to date"))]
    assert len(steps) == len(STEPS)
    assert all(line.startswith("up to date: ") for line in steps)
    assert made(store) == after
    assert refs(again.out) == refs(miniature.ended.out), "a name means what this run made, not the newest artifact"


def test_changed_training_line_reruns_that_training_alone(miniature: Miniature, warm: Warm, store: Path) -> None:
    before = made(store)
    ended = warm.run("run", miniature.recipe, "--store", store, "--set", "align-dpo.beta=0.3")
    assert ended.code == 0, ended.err
    assert {each.partition("@")[0] for each in made(store) - before} == {"policies mini-dpo"}


def test_changed_learning_rate_reruns_what_the_reward_model_affects(
    miniature: Miniature, cli: Cli, store: Path
) -> None:
    line = "train-reward.optimisation.learning_rate=0.002"
    rows = cli("run", miniature.recipe, "--store", store, "--dry-run", "-v", "--set", line).out.splitlines()
    pending, reused = ({row.split()[0] for row in rows if row.endswith(end)} for end in ("pending", "up to date"))
    online = {"scores", "preferences", "reference-logps", "candidates", "probes"}
    assert pending == online | {"reward-models", "policies", "comparisons", "reports"}
    assert {"base-models", "speeches", "judgements"} <= reused
    round_one = next(row for row in rows if "candidates      mini-online-round-01" in row)
    assert round_one.endswith("up to date")  # the first answers come from the initial policy


def test_dry_run_writes_nothing_and_has_the_ids_of_the_real_run(miniature: Miniature, cli: Cli, tmp_path: Path) -> None:
    store = tmp_path / "store"
    ended = cli("run", miniature.recipe, "--store", store, "--dry-run", "-v")
    assert ended.code == 0
    assert not store.exists()
    assert refs(ended.out) == made(miniature.store)
    # The model that they train does not exist yet, but its shape is known.
    needs = [line for line in ended.out.splitlines() if line.startswith("training ")]
    assert ["GB of memory" in line for line in needs] == [True] * 3
    assert "nothing to pay" in ended.out


def test_a_dry_run_counts_what_a_judge_of_probes_would_compare(miniature: Miniature, cli: Cli) -> None:
    judge = "align.online.probe.judge={backend: endpoint, endpoint: {model: gpt-4o-2024-08-06}}"
    dry_run = ("run", miniature.recipe, "--store", miniature.store, "--only", "align", "--dry-run", "--set", judge)
    ended = cli(*dry_run, "--set", "align.online.probe.draws=3")
    assert ended.code == 0, ended.err
    (speeches,) = Store(miniature.store).artifacts("speeches")
    held_out = sum(row.split == "dev" for row in read_speeches(speeches))
    # In both orders: the extremes of every probe, and after each of two rounds three draws against the initial ones.
    assert f": {2 * held_out * (1 + 2 * (3 + 1))} calls, up to " in ended.out
    assert "$" in ended.out
    assert "nothing to pay" not in ended.out


def test_speed_knobs_and_names_change_no_id(miniature: Miniature, cli: Cli) -> None:
    knobs = ["--set", "train-reward.optimisation.per_device_batch_size=8"]
    ended = cli("run", miniature.recipe, "--store", miniature.store, "--dry-run", *knobs)
    assert "pending" not in {row.split()[-1] for row in ended.out.splitlines()}
    assert len(ended.out.splitlines()) < 60


def names_of(ended: Ended) -> list[str]:
    return [line.split()[2].partition("@")[0] for line in ended.out.splitlines() if line.startswith("created:")]


def test_some_steps_run_alone_and_what_they_need_is_named(miniature: Miniature, warm: Warm, tmp_path: Path) -> None:
    def run(*argv: str) -> Ended:
        return warm.run("run", miniature.recipe, "--store", tmp_path / "store", *argv)

    begun = run("--only", "build-preferences")  # the corpus, which the first step has too, is its own
    assert (begun.code, names_of(begun)) == (0, ["mini"]), begun.err
    begun = run("--until", "build-preferences")
    assert (begun.code, names_of(begun)) == (0, ["mini-base"])
    run("--from", "align-dpo", "--until", "align").says(2, "reward-models mini@", "--until train-reward")
    assert not list((tmp_path / "store").glob("policies/*"))
    run("--only", "eval-winrate", "--dry-run").says(2, "policies mini-online@", "--until align")
    alone = run("--only", "align-dpo")  # the reward model that is left out before it is not needed
    assert (alone.code, names_of(alone)) == (0, ["mini-dpo"]), alone.err
    run("--only", "align-dp").says(2, "--only", "did you mean 'align-dpo'?")
    run("--from", "align", "--until", "align-dpo").says(2, "no step")


def test_a_dry_run_knows_that_a_limit_ended_an_online_run(miniature: Miniature, warm: Warm, store: Path) -> None:
    run = ("run", miniature.recipe, "--store", store, "--set", "align.online.stop_when={unfinished_share: 0.0}")
    ended = warm.run(*run, "--only", "align")
    assert (ended.code, names_of(ended)) == (0, ["mini-online"]), ended.err
    preview = warm.run(*run, "--only", "align", "--dry-run")
    assert (preview.code, "pending" in preview.out) == (0, False)
    assert warm.run(*run, "--only", "eval-winrate").code == 0  # the shorter run is what its name means


def test_results_are_shown_step_by_step_and_not_lost_with_a_later_one(miniature: Miniature, cli: Cli) -> None:
    steps = ("--from", "train-reward", "--until", "align-dpo", "--set", "align-dpo.length.max_length_tokens=40")
    ended = cli("run", miniature.recipe, "--store", miniature.store, *steps)
    assert ended.code == 4
    assert "up to date: reward-models mini@" in ended.out
    assert "accuracy, test" in ended.out


def test_a_name_means_what_a_step_that_was_left_out_made(miniature: Miniature, cli: Cli, store: Path) -> None:
    other = cli(
        "run", miniature.recipe, "--store", store, "--only", "eval-winrate", "--set", "eval-winrate.confidence=0.9"
    )
    assert (other.code, names_of(other)) == (0, ["mini"])
    again = cli("run", miniature.recipe, "--store", store, "--only", "report")
    assert again.code == 0, again.err
    assert refs(again.out) < refs(miniature.ended.out)  # not about the comparison of the other confidence


def test_a_dry_run_of_the_papers_recipe_counts_calls_and_fetches_nothing(tmp_path: Path, no_way_out: None) -> None:
    points = load_points(recipe_folder("llama3-8b"), ["corpus.expected_speeches=2000"], [])
    steps = points[0].steps
    (first, *_) = dry_run(points, [True] * len(steps), Store(tmp_path, offline=True))
    calls = {each.purpose: each for each in first.calls}
    assert calls["rating responses"].endpoint.model == "gpt-4o-2024-08-06"
    assert calls["rating responses"].calls == 4 * 2_000
    assert "2,000 speeches" in calls["rating responses"].estimate
    answers = {f"answers of {each.author}" for each in steps[0].config.pool.responders}
    assert set(calls) == {"naming topics", "rating responses", "auditing the judge", *answers}
    assert list(tmp_path.iterdir()) == []
