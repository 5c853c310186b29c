"""Trackers: what they are told of trainings and of online rounds, and that nothing leaves this machine offline."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from miniature import LENGTH, OPTIMISATION, SAMPLING
from psychocounsel.config.loading import load_config
from psychocounsel.config.schema import AlignConfig, BaseModelConfig, TrainRewardConfig
from psychocounsel.errors import ConfigError
from psychocounsel.stages.align import align
from psychocounsel.stages.base_model import create_base_model
from psychocounsel.stages.train_reward import train_reward
from psychocounsel.store.store import Store
from running import Miniature

FAKE = """
import json, os
from types import SimpleNamespace

run = None
context_vars = SimpleNamespace(current_space_id=SimpleNamespace(get=lambda: None))

def tell(**entry):
    with open(os.environ["FAKE_TRACKER_LOG"], "a") as stream:
        stream.write(json.dumps(entry) + chr(10))

class Config(dict):
    def update(self, values, allow_val_change):
        super().update(values)

class Run:
    summary = {}

    def __init__(self, given):
        self.name = given["name"]
        tell(begun=given, mode=os.environ.get("WANDB_MODE"))

    def log(self, values, step=None):
        tell(run=self.name, step=step, values=values)

    def finish(self):
        global run
        run = None
        tell(ended=self.name)

    def _label(self, code):
        pass

def init(**given):
    global run
    assert run is None, "a run has not ended"
    run = Run(given)
    return run

def log(values, step=None):
    run.log(values, step)

def finish():
    run.finish()

config = Config()
"""
ENVIRONMENT = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR", "WANDB_PROJECT", "WANDB_MODE", "WANDB_ERROR_REPORTING")


@pytest.fixture
def store(miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name in ENVIRONMENT:  # is undone in the end
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return Store(Path(shutil.copytree(miniature.store, tmp_path / "store")), offline=True)


def install(tracker: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for a tracker on the path, and return the file into which it writes how it was called."""
    package = folder / "packages" / tracker
    (package / "sdk" / "lib").mkdir(parents=True)
    (package / "__init__.py").write_text(FAKE, encoding="utf-8")
    (package / "sdk" / "lib" / "config_util.py").write_text("class ConfigError(Exception): pass", encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    for name in (tracker, *(f"{tracker}.{each}" for each in ("sdk", "sdk.lib", "sdk.lib.config_util"))):
        monkeypatch.setitem(sys.modules, name, None)  # is undone in the end; what is imported here as well
        del sys.modules[name]
    monkeypatch.setenv("FAKE_TRACKER_LOG", str(folder / "log"))
    return folder / "log"


def reward_config(tracker: str, name: str = "tracked") -> TrainRewardConfig:
    shared = {"optimisation": {**OPTIMISATION, "tracker": tracker}, "length": LENGTH}
    return TrainRewardConfig.model_validate(
        {"name": name, "base_model": "mini-base", "preferences": "mini", "epochs": 1, "max_pairs": 16, **shared}
    )


def online_config(tracker: str) -> AlignConfig:
    online = {
        **{"speeches": "mini", "reward_model": "mini", "unfinished": "penalise", "sampling": SAMPLING},
        **{"rounds": 2, "steps_per_round": 3, "speeches_per_round": 8, "candidates_per_speech": 3},
        "probe": {"speeches": 2},
    }
    shared = {"optimisation": {**OPTIMISATION, "tracker": tracker}, "length": LENGTH}
    return AlignConfig.model_validate(
        {"name": "tracked", "mode": "online", "policy": "mini-base", "online": online, **shared}
    )


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_every_training_is_a_run_and_the_probes_of_the_rounds_are_another(
    tracker: str, miniature: Miniature, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = install(tracker, tmp_path, monkeypatch)
    path = miniature.recipe / "make-base-model.yaml"
    base = load_config(BaseModelConfig, path, [f"sft.tracker={tracker}", "name=tracked-base", "seed=1"])
    made = [train_reward(reward_config(tracker), store), align(online_config(tracker), store)]
    made.append(create_base_model(base, store))
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert {each["mode"] for each in told if "begun" in each} == {"offline"}
    assert os.environ["WANDB_DIR"].startswith(str(store.root))
    values: dict[str, list[dict[str, Any]]] = {}
    for each in told:
        if "run" in each:
            values.setdefault(each["run"], []).append(each)
    trained = [
        *(made[0].folder.name, made[2].folder.name),
        *(each.folder.name for each in store.artifacts("policies") if "-round-" in each.ref),
    ]
    trained = [each for each in trained if each.startswith("tracked")]
    assert len(trained) == 4
    for name in trained:
        assert "train/loss" in values[name][0]["values"]
        assert [each for each in told if each.get("ended") == name]
    (probes,) = values.keys() - set(trained)
    assert [each["step"] for each in values[probes]] == [0, 1, 2]
    rounds = made[1].metrics["rounds"]
    for each, probe in zip(
        values[probes], [made[1].metrics["initial"], *(row["probe"] for row in rounds)], strict=True
    ):
        assert each["values"]["probe/kl/per_answer"] == probe["kl"]["per_answer"]
        assert each["values"]["probe/reward/mean"] == probe["reward"]["mean"]
    # What is up to date is not told again, and the tracker is no part of an id.
    assert align(online_config("none"), store).id == align(online_config(tracker), store).id == made[1].id
    assert len(log.read_text().splitlines()) == len(told)


def test_tensorboard_has_a_folder_for_every_run(store: Store) -> None:
    pytest.importorskip("tensorboard")
    made = train_reward(reward_config("tensorboard"), store)
    align(online_config("tensorboard"), store)
    folders = {each.parent.name for each in (store.root / "trackers" / "tensorboard").glob("*/events.*")}
    assert made.folder.name in folders
    assert len(folders) == 4


def test_what_a_tracker_needs_is_said_before_anything_begins(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for run in (lambda: train_reward(reward_config("trackio"), store), lambda: align(online_config("trackio"), store)):
        with pytest.raises(ConfigError) as caught:
            run()
        assert caught.value.remedy == "pip install trackio"
    monkeypatch.undo()
    install("trackio", tmp_path, monkeypatch)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/elsewhere")
    with pytest.raises(ConfigError, match="TRACKIO_SPACE_ID"):
        train_reward(reward_config("trackio"), store)
