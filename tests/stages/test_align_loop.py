"""The online loop with a reward that is a known function of the text: it learns, it stops, it keeps what it should."""

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from miniature import LENGTH, OPTIMISATION
from psychocounsel.config.schema import AlignConfig
from psychocounsel.errors import StoreError
from psychocounsel.llm.session import Session
from psychocounsel.stages.online import OnlineDpo, RewardFunction, align_online
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.references import POLICY_KINDS, resolve, resolve_model
from psychocounsel.store.schemas import RewardScore
from psychocounsel.store.store import Store, damaged_files
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.types import Candidate, Speech
from running import Cli, Miniature


def oracle(value: Any) -> RewardFunction:
    """Return a reward function that gives every answer the value of its text."""

    def rewards(speeches: Sequence[Speech], candidates: Sequence[Candidate]) -> list[RewardScore]:
        del speeches
        return [RewardScore(each.id, value(each.text), value(each.text), 10) for each in candidates if each.text]

    return rewards


def share_of_vowels(text: str) -> float:
    return 10 * len(re.findall(r"[aeiou]", text.casefold())) / len(text)


@pytest.fixture
def store(miniature: Miniature, tmp_path: Path) -> Store:
    return Store(Path(shutil.copytree(miniature.store, tmp_path / "store")))


def online_run(store: Store, rewards: RewardFunction, optimisation: dict[str, Any], **online: Any) -> OnlineDpo:
    sampling = {"temperature": 1.0, "max_new_tokens": 16, "batch_size": 64}
    shared = {"speeches": "mini", "reward_model": "mini", "unfinished": "penalise", "unfinished_penalty": 0.0}
    config = AlignConfig.model_validate(
        {
            **{"name": "loop", "mode": "online", "policy": "mini-base", "length": LENGTH},
            "online": {**shared, "sampling": sampling, "speeches_per_round": 16, **online},
            "optimisation": {**OPTIMISATION, **optimisation},
        }
    )
    assert config.online is not None
    return OnlineDpo(config, config.online, Session(store), rewards)


def artifact_of(store: Store, ref: str) -> Artifact:
    found = resolve(store, ref, *POLICY_KINDS)
    assert isinstance(found, Artifact)
    return found


def rounds_of(result: Artifact) -> list[dict[str, Any]]:
    return result.metrics["rounds"]


FLAT = {"learning_rate": 3e-3, "scheduler": "constant", "warmup_share": 0.0}


@pytest.mark.slow
def test_the_true_reward_rises_while_the_policy_stays_near_the_reference(store: Store) -> None:
    online = {"rounds": 5, "candidates_per_speech": 6, "probe": {"draws": 8}}
    result = align_online(online_run(store, oracle(share_of_vowels), FLAT, **online))
    probes = [each["probe"] for each in rounds_of(result)]
    rewards = [result.metrics["initial"]["reward"]["mean"], *(each["reward"]["mean"] for each in probes)]
    assert rewards[0] + 0.2 < rewards[-1]
    assert sum(rewards[:3]) < sum(rewards[3:])
    assert all(0 < each["kl"]["k3_per_token"] < 0.5 for each in probes)
    assert 0 < probes[0]["kl"]["per_answer"] < probes[-1]["kl"]["per_answer"]


def test_a_reward_that_length_games_is_stopped_and_the_best_round_is_the_result(store: Store) -> None:
    limits = {"length_ratio": 1.02}
    online = {"rounds": 6, "candidates_per_speech": 6, "probe": {"draws": 8}, "stop_when": limits}
    run = online_run(store, oracle(lambda text: len(text.split())), FLAT, **online)
    result = align_online(run)
    rows = rounds_of(result)
    assert len(rows) < 6
    assert rows[-1]["stop"]
    assert not any(each["stop"] for each in rows[:-1])
    best = result.metrics["best"]
    assert best != len(rows) or best == 1
    assert any("ended after round" in warning for warning in result.warnings)
    assert resolve(store, "loop@best", "policies").name == f"loop-round-{best:02d}"
    assert align_online(run).id == result.id  # up to date
    # A result states the limit that ended its own run.
    later = align_online(
        online_run(
            store, oracle(lambda text: len(text.split())), FLAT, **{**online, "stop_when": {"length_ratio": 1.0201}}
        )
    )
    assert [bool(each["stop"]) for each in rounds_of(later)] == [bool(each["stop"]) for each in rows]
    assert rounds_of(later)[-1]["stop"] != rows[-1]["stop"]
    # Other limits are no other run: it goes on after the round at which it ended.
    further = online_run(
        store, oracle(lambda text: len(text.split())), FLAT, **{**online, "stop_when": {}, "rounds": 4}
    )
    longer = align_online(further)
    assert len(rounds_of(longer)) == 4
    assert rounds_of(longer)[0]["probe"] == rows[0]["probe"]


def test_weights_of_superseded_rounds_are_dropped_and_can_be_had_again(store: Store, cli: Cli) -> None:
    online = {"rounds": 3, "candidates_per_speech": 3}
    result = align_online(online_run(store, oracle(share_of_vowels), FLAT, **online))
    rounds = [resolve(store, f"loop-round-0{number}", "policies") for number in (1, 2, 3)]
    best = result.metrics["best"]
    for number, policy in enumerate(rounds, start=1):
        assert isinstance(policy, Artifact)
        has_weights = policy.file("model.safetensors").is_file()
        assert has_weights == (number in (best, 3))
        assert not list(policy.file("optimizer").glob("*"))
        assert damaged_files(policy) == {}
    superseded = next(each for number, each in enumerate(rounds, start=1) if number not in (best, 3))
    with pytest.raises(StoreError, match="dropped") as caught:
        resolve_model(store, superseded.ref, POLICY_KINDS).policy(store)
    assert "keep=all" in caught.value.remedy
    for command in ("show", "verify", "list"):
        ended = cli(command, *([superseded.ref] if command != "list" else []), "--store", store.root)
        assert ended.code == 0
        assert "dropped" in ended.out
    before = {each.id for each in store.artifacts()}
    again = online_run(store, oracle(share_of_vowels), FLAT, **online, keep="all")
    assert align_online(again).id == result.id
    assert {each.id for each in store.artifacts()} == before
    restored = resolve(store, superseded.ref, "policies")
    assert isinstance(restored, Artifact)
    assert restored.file("model.safetensors").is_file()
    digests = [each.manifest["files"]["model.safetensors"]["sha256"] for each in (superseded, restored)]
    assert digests[0] == digests[1]


def test_one_adapter_goes_through_all_rounds_and_the_result_has_it_merged(store: Store) -> None:
    online = {"rounds": 3, "candidates_per_speech": 6, "speeches_per_round": 8}
    lora = {**FLAT, "lora": {"rank": 2, "alpha": 4}}
    result = align_online(online_run(store, oracle(share_of_vowels), lora, **online))
    folders = [artifact_of(store, f"loop-round-0{number}").folder for number in (1, 2, 3)]
    adapters = [load_file(each / "adapter" / "adapter_model.safetensors") for each in folders]
    base = artifact_of(store, "mini-base").folder
    for folder in folders:
        config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["r"]) == (base.name, 2)
    for before, after in itertools.pairwise(adapters):
        moved = sum(float((after[name] - before[name]).square().sum()) for name in after)
        assert 0 < moved < 0.3 * sum(float(each.square().sum()) for each in after.values())
    with quiet_libraries():
        merged: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folders[2] / "adapter")
    expected = merged.merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(result.folder).state_dict()
    assert all(torch.allclose(values, expected[name], atol=1e-6) for name, values in found.items())
    assert not result.file("adapter").exists()
    # Trained again, the rounds whose merged weights were dropped get the same ones.
    digests = [json.loads((each / "manifest.json").read_text())["files"]["model.safetensors"] for each in folders]
    assert not all((each / "model.safetensors").exists() for each in folders)
    align_online(online_run(store, oracle(share_of_vowels), lora, **online, keep="all"))
    restored = [artifact_of(store, f"loop-round-0{number}") for number in (1, 2, 3)]
    assert [each.kept_files["model.safetensors"] for each in restored] == digests


def test_another_probe_measures_the_rounds_whose_weights_were_dropped(store: Store) -> None:
    online = {"rounds": 3, "candidates_per_speech": 6, "speeches_per_round": 8}
    first, second = (
        align_online(online_run(store, oracle(share_of_vowels), FLAT, **online, probe={"speeches": number}))
        for number in (3, 2)
    )
    assert [each["pairs"] for each in rounds_of(first)] == [each["pairs"] for each in rounds_of(second)]
    assert {each["probe"]["reward"]["n"] for each in rounds_of(second)} == {4}


def falling_with_every_probe() -> RewardFunction:
    """Return a reward function that values answers to probe speeches lower every time, so that round 1 is the best."""
    probes: list[int] = []

    def rewards(speeches: Sequence[Speech], candidates: Sequence[Candidate]) -> list[RewardScore]:
        found = oracle(share_of_vowels)(speeches, candidates)
        if len(candidates) % 3 == 0:
            return found
        probes.append(len(candidates))
        return [each._replace(reward=each.reward - 100 * len(probes)) for each in found]

    return rewards


def test_a_run_of_fewer_rounds_ends_with_the_weights_of_its_last_round(store: Store) -> None:
    online = {"candidates_per_speech": 3, "speeches_per_round": 12, "probe": {"speeches": 4, "draws": 1}}
    rewards = falling_with_every_probe()
    longer = align_online(online_run(store, rewards, FLAT, **online, rounds=3))
    assert longer.metrics["best"] == 1
    # Its second round, neither the best nor the last one, has lost its weights.
    shorter = align_online(online_run(store, rewards, FLAT, **online, rounds=2))
    first, second = (resolve(store, f"loop-round-0{number}", "policies") for number in (1, 2))
    assert isinstance(first, Artifact)
    assert isinstance(second, Artifact)
    assert damaged_files(first) == {}
    digests = [each.manifest["files"]["model.safetensors"]["sha256"] for each in (shorter, second)]
    assert digests[0] == digests[1]


def test_a_name_that_gets_another_meaning_meanwhile_changes_nothing(store: Store) -> None:
    base = artifact_of(store, "mini-base")
    online = {"rounds": 1, "candidates_per_speech": 6, "speeches_per_round": 8}
    undisturbed = Store(Path(shutil.copytree(store.root, store.root.with_name("undisturbed"))))
    expected = align_online(online_run(undisturbed, oracle(share_of_vowels), FLAT, **online))

    def rewards(speeches: Sequence[Speech], candidates: Sequence[Candidate]) -> list[RewardScore]:
        def build(writer: ArtifactWriter) -> None:
            shutil.copytree(base.folder, writer.folder, dirs_exist_ok=True)
            save_file({name: 2 * each for name, each in load_file(weights).items()}, writer.file(weights.name))

        weights = base.file("model.safetensors")
        store.make(ArtifactSpec("base-models", "mini-base", "test", 1, {}), build)
        return oracle(share_of_vowels)(speeches, candidates)

    result = align_online(online_run(store, rewards, FLAT, **online))
    assert artifact_of(store, "mini-base").id != base.id
    assert result.kept_files["model.safetensors"] == expected.kept_files["model.safetensors"]
    assert rounds_of(result) == rounds_of(expected)
