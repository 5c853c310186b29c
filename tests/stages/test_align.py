"""Policies in the store: stopped training resumes to the same weights; online rounds keep their order."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from psychocounsel.store.artifacts import Artifact
from psychocounsel.store.store import Store
from running import Ended, Miniature, Warm, WarmRun, await_until

BENCH = Path(__file__).parents[2] / "scripts" / "bench"
SAVING = ["--set", "optimisation.save_every_steps=2", "--set", "seed=1"]


@pytest.fixture
def store(miniature: Miniature, tmp_path: Path) -> Path:
    return Path(shutil.copytree(miniature.store, tmp_path / "store"))


def named(store: Path, kind: str, name: str) -> Artifact:
    return [each for each in Store(store).artifacts() if (each.kind, each.name) == (kind, name)][-1]


def weights(artifact: Artifact) -> bytes:
    return artifact.file("model.safetensors").read_bytes()


def weight_digest(artifact: Artifact) -> str:
    return artifact.manifest["files"]["model.safetensors"]["sha256"]


@pytest.fixture(scope="module")
def uninterrupted(
    miniature: Miniature, warm: Warm, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, Artifact]:
    """A policy and a reward model of some more steps, trained in one go."""
    store = Path(shutil.copytree(miniature.store, tmp_path_factory.mktemp("whole") / "store"))
    for command, config in COMMANDS.values():
        ended = warm.run(command, miniature.recipe / f"{config}.yaml", "--store", store, *more_steps(command))
        assert ended.code == 0, ended.err
    return named(store, "policies", "mini-dpo"), named(store, "reward-models", "mini")


COMMANDS = {"policies": ("align", "align-dpo"), "reward-models": ("train-reward", "train-reward")}


def more_steps(command: str) -> list[str]:
    return [*SAVING, *(["--set", "max_steps=12"] if command == "align" else [])]


def start(warm: Warm, miniature: Miniature, store: Path, kind: str) -> WarmRun:
    command, config = COMMANDS[kind]
    return warm.start(command, miniature.recipe / f"{config}.yaml", "--store", store, *more_steps(command))


def stop_in_training(run: WarmRun, store: Path, kind: str, *signals: signal.Signals) -> Ended:
    await_until(lambda: any(store.glob(f"{kind}/*/work/checkpoint-2")))
    for each in signals:
        run.send(each)
    return run.wait()


@pytest.mark.parametrize(
    ("kind", "signum", "is_damaged"),
    [("policies", signal.SIGTERM, True), ("reward-models", signal.SIGINT, False)],
)
def test_stopped_training_resumes_to_the_same_weights(
    miniature: Miniature,
    warm: Warm,
    store: Path,
    uninterrupted: tuple[Artifact, Artifact],
    kind: str,
    signum: signal.Signals,
    is_damaged: bool,
) -> None:
    whole = uninterrupted[kind == "reward-models"]
    stopped = stop_in_training(start(warm, miniature, store, kind), store, kind, signum)
    assert stopped.code == 75, stopped.err
    assert f"{signum.name}: saving after the current step" in stopped.err
    assert "stopped after step" in stopped.err
    assert "run the same command again" in stopped.err
    assert whole.id not in {each.id for each in Store(store).artifacts()}
    checkpoints = list(store.glob(f"{kind}/*/work/checkpoint-*"))
    newest = max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
    if is_damaged:
        (newest / "optimizer.pt").write_bytes(b"")
    under_another_path = Path(os.path.relpath(store, Path.cwd()))
    finished = start(warm, miniature, under_another_path, kind).wait()
    assert finished.code == 0, finished.err
    assert "resumes" in finished.err
    assert ("skipped" in finished.err) is is_damaged  # as a checkpoint of another run is, too
    again = named(store, kind, whole.name)
    warnings = [each for each in again.warnings if newest.name in each]
    assert len(warnings) == is_damaged
    assert again.id == whole.id
    assert weights(again) == weights(whole)
    assert not again.file("work").exists()


def test_second_signal_ends_at_once(miniature: Miniature, warm: Warm, store: Path) -> None:
    run = start(warm, miniature, store, "policies")
    ended = stop_in_training(run, store, "policies", signal.SIGINT, signal.SIGTERM)
    assert ended.code == 75
    assert "stopped after step" not in ended.err


def test_rounds_have_their_artifacts_seeds_and_losses_and_the_best_is_named(miniature: Miniature) -> None:
    first, last = (named(miniature.store, "policies", f"mini-online-round-0{number}") for number in (1, 2))
    result = named(miniature.store, "policies", "mini-online")
    base = named(miniature.store, "base-models", "mini-base")
    for policy in (first, last):
        assert policy.parent("initial policy").id == base.id
    assert first.parent("previous policy").id == base.id
    assert last.parent("previous policy").id == first.id
    for name in ("mini-online-round-01", "mini-online-round-02"):
        for kind in ("candidates", "scores", "preferences"):
            assert named(miniature.store, kind, name)
    assert first.manifest["settings"]["seed"] != last.manifest["settings"]["seed"]
    assert weight_digest(first) != weight_digest(last)  # one of them may have dropped its weights
    sampled = [named(miniature.store, "candidates", f"mini-online-round-0{number}") for number in (1, 2)]
    assert sampled[0].manifest["settings"]["seed"] != sampled[1].manifest["settings"]["seed"]
    losses = [each.metrics["training"]["history"][0]["loss"] for each in (first, last)]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[1] != pytest.approx(0.693147, abs=1e-5)  # the policy has left the reference
    assert weight_digest(result) == weight_digest(last)
    rewards = [each["probe"]["reward"]["mean"] for each in result.metrics["rounds"]]
    assert result.manifest["notes"]["best"]["name"] == (first if rewards[0] > rewards[1] else last).name


def test_run_killed_in_any_phase_ends_equal_and_repeats_no_artifact(
    miniature: Miniature, warm: Warm, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    from train_kills import OnlineRuns, Place

    for folder in store.glob("*/mini-online*"):
        shutil.rmtree(folder)
    runs, run = OnlineRuns(warm, miniature.recipe / "align.yaml", store, ()), tmp_path / "run"
    places = [Place(0, "probe"), Place(1, "sample"), Place(1, "save"), Place(1, "reference"), Place(2, "train")]
    killed = runs.kill(run, [(place, 0.0) for place in places])
    result = named(miniature.store, "policies", "mini-online")
    rounds = [each for each in Store(miniature.store).artifacts() if each.name.startswith("mini-online-round-")]
    assert len(rounds) == 13  # in two rounds six, and a probe before them
    outcome = runs.complete(run, killed, [*rounds, result])
    assert outcome.different == []
    assert outcome.made_again == []
    assert len(killed.created) >= 11


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_flipped_byte_in_weights_is_found_set_aside_and_rebuilt(miniature: Miniature, warm: Warm, store: Path) -> None:
    base = named(store, "base-models", "mini-base")
    whole = weights(base)
    flip_byte(base.file("model.safetensors"))
    align = ["align", miniature.recipe / "align-dpo.yaml", "--store", store, "--set", "beta=0.3"]
    ended = warm.run(*align)
    assert ended.code == 3, ended.err
    assert f"base-models {base.ref} is damaged: model.safetensors has other bytes" in ended.err
    assert "run the recipe" in ended.err
    (aside,) = store.glob(f"base-models/.damaged-{base.folder.name}-*")
    assert (aside / "model.safetensors").read_bytes() != whole
    before = {each.id for each in Store(store).artifacts()}
    assert base.id not in before
    ended = warm.run("run", miniature.recipe, "--store", store)
    assert ended.code == 0, ended.err
    assert {each.id for each in Store(store).artifacts()} - before == {base.id}
    assert weights(named(store, "base-models", "mini-base")) == whole
    assert warm.run(*align).code == 0


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("align-dpo", "policy=mini-bas", "did you mean 'mini-base'?"),
        ("align-dpo", "preferences=mimi", "did you mean 'mini'?"),
        ("align-dpo", "mode=online", "mode: online needs an online block"),
        ("align", "online.reward_model=reward-models/none", "reward-models"),
    ],
)
def test_unresolvable_references(miniature: Miniature, warm: Warm, config: str, override: str, message: str) -> None:
    ended = warm.run("align", miniature.recipe / f"{config}.yaml", "--store", miniature.store, "--set", override)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_of_several_keys_with_one_name_that_of_the_missing_artifact_is_named(
    miniature: Miniature, warm: Warm, store: Path
) -> None:
    shutil.rmtree(store / "reward-models")
    ended = warm.run("align", miniature.recipe / "align.yaml", "--store", store, "--dry-run")
    assert ended.code == 2
    assert "--set online.reward_model=" in ended.err
    words = ("--store", store, "--set", "policy.model=mini", "--dry-run")  # the name of its speeches, and of no policy
    ended = warm.run("eval-winrate", miniature.recipe / "eval-winrate.yaml", *words)
    assert ended.code == 2
    assert "--set policy.model=" in ended.err
