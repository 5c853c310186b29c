"""Datasets and models of the Hub: fetched once, read from this machine, or streamed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hub_server import HubServer, Repository

from miniature import SAMPLES, rows, write_recipe, write_yaml
from psychocounsel.errors import InputError
from psychocounsel.store.hub import hub_rows
from psychocounsel.store.store import Store
from running import ENVIRONMENT, Ended


@pytest.mark.parametrize("broken", [ConnectionError, httpx2.ReadError])  # the latter is what the Hub's client raises
def test_a_hub_stream_that_breaks_is_an_input_error(broken: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[tuple[Any, ...]] = []

    def load_dataset(*names: Any, **options: Any) -> Iterator[dict[str, Any]]:
        requested.append((*names, options))
        yield {"text": "one"}
        raise broken("the connection was lost")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = hub_rows("owner/name@abc", "test", "small")
    assert next(rows) == {"text": "one"}
    with pytest.raises(InputError, match="was lost") as fault:
        next(rows)
    assert fault.value.where == "hub:owner/name@abc split test"
    assert requested == [("owner/name", "small", {"split": "test", "revision": "abc", "streaming": True})]


COUNT = 40
CARD = b"""---
configs:
- config_name: default
  data_files:
  - {split: train, path: questions.jsonl}
---
"""


def speeches() -> bytes:
    kept = rows(SAMPLES / "speeches.jsonl")[:COUNT]
    return "".join(json.dumps({"text": row["text"]}) + "\n" for row in kept).encode()


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        server.repositories["dataset/talk/questions"] = Repository(
            branches={"main": {"README.md": CARD, "questions.jsonl": speeches()}}
        )
        server.repositories["model/talk/tiny"] = Repository(
            branches={"main": {"config.json": b"{}", "model.safetensors": b"weights", "original/params.json": b"{}"}}
        )
        yield server


class Machine:
    """Runs commands with a cache of the Hub of their own."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self._home = {"HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        self._hub = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}

    def run(self, *argv: str | Path, online: bool = True) -> Ended:
        command = [sys.executable, "-m", "psychocounsel", *map(str, argv)]
        # Offline, the libraries refuse to connect.
        hub = self._hub if online else {"HF_HUB_OFFLINE": "1"}
        env = {**os.environ, **ENVIRONMENT, **self._home, **hub}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def machine(hub: HubServer, tmp_path: Path) -> Machine:
    return Machine(hub, tmp_path)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a recipe whose speeches and base model are on the Hub."""
    folder = write_recipe(tmp_path / "recipe")
    source = {"path": "hub:talk/questions", "columns": {"text": "text"}, "licence": "mit", "data_class": "public"}
    write_yaml(folder / "corpus.yaml", {"name": "talk", "speeches": [source]})
    write_yaml(folder / "recipe.yaml", {"description": "", "steps": [{"stage": "corpus", "config": "corpus.yaml"}]})
    return folder


@pytest.mark.integration
def test_what_was_fetched_is_read_without_a_connection(
    hub: HubServer, machine: Machine, recipe: Path, tmp_path: Path
) -> None:
    machine.run("run", recipe, "--store", tmp_path / "before", online=False).says(2, "hub:talk/questions")
    fetched = machine.run("fetch", recipe)
    assert fetched.code == 0, fetched.err
    assert "dataset talk/questions: " in fetched.out
    asked = len(hub.asked)
    done = machine.run("run", recipe, "--store", tmp_path / "store", online=False)
    assert (done.code, len(hub.asked)) == (0, asked), done.err
    (made,) = Store(tmp_path / "store").artifacts("speeches")
    assert made.metrics["funnel"]["kept"] == COUNT


@pytest.mark.integration
def test_a_dry_run_estimates_until_the_data_are_fetched(machine: Machine, recipe: Path, tmp_path: Path) -> None:
    endpoint = {"model": "gpt-4o-2024-08-06"}
    responders = [{"author": author, "endpoint": endpoint} for author in ("elm", "oak")]
    build = {"name": "talk", "corpus": "corpus.yaml", "pool": {"responders": responders, "per_speech": 2}}
    write_yaml(recipe / "build-preferences.yaml", {**build, "judge": {"backend": "endpoint", "endpoint": endpoint}})
    write_yaml(
        recipe / "eval-winrate.yaml",
        {
            **{"name": "talk", "speeches": "talk", "judge": {"backend": "endpoint", "endpoint": endpoint}},
            **{"policy": responders[0], "reference": responders[1]},
        },
    )
    steps = [{"stage": name, "config": f"{name}.yaml"} for name in ("build-preferences", "eval-winrate")]
    write_yaml(recipe / "recipe.yaml", {"description": "", "steps": steps})
    dry_run = ["run", recipe, "--dry-run", "--store", tmp_path / "store"]
    unknown = machine.run(*dry_run, online=False)
    assert "psychocounsel fetch" in unknown.out
    estimated = machine.run(*dry_run, "--set", "corpus.expected_speeches=1000", online=False)
    assert estimated.code == 0, estimated.err
    (rated,) = [line for line in estimated.out.splitlines() if "rating responses" in line]
    (compared,) = [line for line in estimated.out.splitlines() if "comparing answers" in line]
    assert " 2,000 calls, " in rated
    assert " 200 calls, " in compared, "both orders of a tenth of the speeches"
    assert all(line.endswith("; an estimate") for line in (rated, compared))
    assert "an estimate for 1,000 speeches" in estimated.out.splitlines()[-1]
    assert machine.run("fetch", recipe).code == 0
    counted = machine.run(*dry_run, "--set", "corpus.expected_speeches=1000", online=False)
    assert f" {2 * COUNT} calls, " in next(line for line in counted.out.splitlines() if "rating responses" in line)
    assert "estimate" not in counted.out
    assert "to pay in all: " in counted.out


@pytest.mark.integration
def test_the_test_speeches_of_a_release_are_estimated_too(tmp_path: Path, machine: Machine) -> None:
    recipe = tmp_path / "released"
    recipe.mkdir()
    endpoint = {"model": "gpt-4o-2024-08-06"}
    sides = {side: {"author": side, "endpoint": endpoint} for side in ("policy", "reference")}
    terms = {"licence": "mit", "data_class": "public"}
    release = {"name": "talk", "source": "hub:talk/pairs", "expected_test_speeches": 50, **terms}
    write_yaml(recipe / "import-preferences.yaml", release)
    evaluation = {"name": "talk", "speeches": "talk", "judge": {"backend": "endpoint", "endpoint": endpoint}}
    write_yaml(recipe / "eval-winrate.yaml", {**evaluation, **sides})
    steps = [{"stage": name, "config": f"{name}.yaml"} for name in ("import-preferences", "eval-winrate")]
    write_yaml(recipe / "recipe.yaml", {"description": "", "steps": steps})
    estimated = machine.run("run", recipe, "--dry-run", "--store", tmp_path / "store", online=False)
    assert estimated.code == 0, estimated.err
    (compared,) = [line for line in estimated.out.splitlines() if "comparing answers" in line]
    assert " 100 calls, " in compared
    assert compared.endswith("; an estimate")


@pytest.mark.integration
def test_of_a_model_the_weights_come_only_if_they_are_wanted(machine: Machine, recipe: Path) -> None:
    step = {"stage": "train-reward", "config": "train-reward.yaml"}
    content = {"name": "talk", "base_model": "hub:talk/tiny", "preferences": "talk"}
    shared = {"learning_rate": 1.0e-3, "global_batch_size": 8, "per_device_batch_size": 4}
    write_yaml(recipe / "train-reward.yaml", {**content, "optimisation": shared})
    write_yaml(recipe / "recipe.yaml", {"description": "", "steps": [step]})
    for flags, files in (((), ["config.json"]), (("--weights",), ["config.json", "model.safetensors"])):
        ended = machine.run("fetch", recipe, *flags)
        assert ended.code == 0, ended.err
        folder = Path(ended.out.strip().rpartition(" in ")[2])
        assert sorted(path.name for path in folder.iterdir()) == files


def test_a_repository_that_is_not_there_is_named(hub: HubServer, machine: Machine, recipe: Path) -> None:
    hub.repositories.clear()
    machine.run("fetch", recipe).says(2, "hub:talk/questions")
