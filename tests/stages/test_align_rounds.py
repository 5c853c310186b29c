"""Pairs of an online round: which answers are ranked, which are left out, and what a penalty changes."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from miniature import LENGTH, OPTIMISATION
from psychocounsel.config.schema import AlignConfig, OnlineConfig
from psychocounsel.errors import ConfigError, DataQualityError
from psychocounsel.llm.cancel import RunCancelledError
from psychocounsel.llm.session import Session
from psychocounsel.stages.online import OnlineDpo, OnlinePlan
from psychocounsel.stages.selection import selection_score
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, Parent
from psychocounsel.store.schemas import (
    RewardScore,
    SplitSpeech,
    read_pairs,
    write_candidates,
    write_scores,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Speech, sample_by_hash
from running import Miniature

SPEECHES = [Speech(f"I cannot sleep since week {number}.") for number in range(3)]


def online_run(store: Store, reward_model: str = "unused", policy: str = "unused", **changes: Any) -> OnlineDpo:
    config = AlignConfig.model_validate(
        {
            "name": "run",
            "mode": "online",
            "policy": policy,
            "online": {"speeches": "unused", "reward_model": reward_model, **changes},
            "optimisation": OPTIMISATION,
            "length": LENGTH,
        }
    )
    assert config.online is not None
    return OnlineDpo(config, config.online, Session(store))


def answer(number: int, text: str, *, finished: bool = True) -> Candidate:
    return Candidate(SPEECHES[number].id, "policy", text, finished)


def parents_of(store: Store, answers: Iterable[Candidate]) -> tuple[Parent, Parent]:
    splits = [SplitSpeech(each, "train", each.id) for each in SPEECHES]
    spec = ArtifactSpec("speeches", "made-up", "test", 1, {})
    speeches = store.make(spec, lambda writer: write_speeches(writer, splits))
    candidates = store.make(replace(spec, kind="candidates"), lambda writer: write_candidates(writer, answers))
    return speeches.as_parent("speeches"), candidates.as_parent("candidates")


def paired(
    folder: Path, rewards: dict[Candidate, float], safety: Mapping[str, float] = MappingProxyType({}), **online: Any
) -> Artifact:
    """Return the pairs artifact of a round whose answers have these rewards, and those of `safety` by their text."""
    store = Store(folder)
    parents = parents_of(store, rewards)
    rows = [
        RewardScore(each.id, reward, reward, 100, {"safety": safety[each.text]} if safety else {})
        for each, reward in rewards.items()
        if each.text
    ]
    scores = store.make(
        ArtifactSpec("scores", "made-up", "test", 1, {}), lambda writer: write_scores(writer, rows)
    ).as_parent("scores")
    spec = ArtifactSpec("preferences", "made-up", "align", 1, {}, (*parents, scores))
    return store.make(spec, online_run(store, **online).pair)


def texts(artifact: Artifact) -> list[tuple[str, str]]:
    pairs = read_pairs(artifact, "train")
    return [(pair.chosen.candidate.text, pair.rejected.candidate.text) for pair in pairs]


def test_equal_rewards_give_no_pair(tmp_path: Path) -> None:
    equal = {answer(0, text): 0.25 for text in ("one", "two", "three")}
    made = paired(tmp_path, {**equal, answer(1, "good"): 1.0, answer(1, "bad"): 0.0})
    assert texts(made) == [("good", "bad")]
    assert made.metrics["pairing"]["dropped"] == {"equal_scores": 1}


def test_round_of_equal_rewards_ends(tmp_path: Path) -> None:
    with pytest.raises(DataQualityError, match=r"without a pair: 1 equal_scores; left out: none") as caught:
        paired(tmp_path, {answer(0, "one"): 1.0, answer(0, "two"): 1.0})
    assert "higher temperature" in caught.value.remedy
    assert caught.value.exit_code == 4


def test_highest_is_paired_with_lowest_but_unfinished_and_empty_answers_are_left_out(tmp_path: Path) -> None:
    rewards = {
        answer(0, "unfinished and bes", finished=False): 9.0,
        answer(0, "good"): 1.0,
        answer(0, "middling"): 0.5,
        answer(0, "bad"): -1.0,
        answer(0, ""): -2.0,
        answer(0, "unfinished and wors", finished=False): -9.0,
        answer(1, "alone"): 0.0,
        answer(1, "cut of", finished=False): 1.0,
    }
    made = paired(tmp_path, rewards, unfinished="leave_out")
    assert texts(made) == [("good", "bad")]
    assert made.metrics["left_out"] == {"unfinished": 3, "empty": 1}
    assert made.metrics["pairing"]["dropped"] == {"speech_with_one_candidate": 1}


def test_unfinished_answers_are_penalised(tmp_path: Path) -> None:
    rewards = {answer(0, "cut of", finished=False): 1.0, answer(0, "good"): 0.0, answer(0, "bad"): -0.5}
    for folder, penalty, expected in (("a", 2.0, ("good", "cut of")), ("b", 0.0, ("good", "bad"))):
        made = paired(tmp_path / folder, rewards, unfinished="penalise", unfinished_penalty=penalty)
        assert texts(made) == [expected]  # an unfinished answer is never the chosen one


def test_a_vetoed_answer_is_never_chosen_and_may_be_rejected(tmp_path: Path) -> None:
    rewards = {answer(0, "bold"): 3.0, answer(0, "safe"): 1.0, answer(0, "rash"): 0.0, answer(1, "alone"): 1.0}
    rewards |= {answer(1, "reckless"): 2.0, answer(2, "harmful"): 1.0, answer(2, "worse"): 0.0}
    safety = {"safe": -0.5, "alone": 0.0, **dict.fromkeys(("bold", "rash", "reckless", "harmful", "worse"), -0.6)}
    made = paired(tmp_path / "a", rewards, safety, vetoes={"safety": -0.5})
    assert texts(made) == [("safe", "rash")]
    assert made.metrics["left_out"] == {"vetoed": 4}
    assert set(texts(paired(tmp_path / "b", rewards, safety))) == {
        ("bold", "rash"), ("reckless", "alone"), ("harmful", "worse")
    }  # fmt: skip
    with pytest.raises(ConfigError, match="empathy"):
        paired(tmp_path / "c", rewards, safety, vetoes={"empathy": 0.0})


def test_selection_score_by_hand(tmp_path: Path) -> None:
    penalties = {"unfinished": "penalise", "unfinished_penalty": 2.0, "length_penalty_per_100_tokens": 0.5}
    config = online_run(Store(tmp_path), **penalties).online
    score = RewardScore("id", 9.0, 1.25, 300)
    assert selection_score(answer(0, "done"), score, config) == pytest.approx(1.25 - 0.5 * 3)
    assert selection_score(answer(0, "cu", finished=False), score, config) == pytest.approx(1.25 - 2 - 1.5)


SELECTION = {
    **{"unfinished": "penalise", "unfinished_penalty": 1.0, "length_penalty_per_100_tokens": 0.5},
    "vetoes": {"safety": 0.0},
}
OTHER_STEPS = {
    **{"rounds": 3, "steps_per_round": 3, "speeches_per_round": 7, "candidates_per_speech": 3},
    **{"optimizer_state": "reset", "sampling": {"temperature": 0.5}, "sampler": {"backend": "vllm"}},
    "probe": {"draws": 3},
}


def test_every_setting_but_gates_enters_the_ids_and_a_selection_rule_only_from_the_pairs_on(tmp_path: Path) -> None:
    store, model = Store(tmp_path / "store"), tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    parents_of(store, [])
    named = {"policy": str(model), "speeches": "made-up", "reward_model": str(model)}

    def planned(**changes: Any) -> OnlinePlan:
        return online_run(store, **named, **{"rounds": 2, **changes}).plan

    def result(plan: OnlinePlan) -> str:
        return plan.result(len(plan.rounds), 1).id

    base, gates = planned(), {"keep": "all", "stop_when": {"kl": 1.0}}
    assert {*SELECTION, *OTHER_STEPS, *gates, "speeches", "reward_model"} == OnlineConfig.model_fields.keys()
    for name, value in (SELECTION | OTHER_STEPS).items():
        assert result(planned(**{name: value})) != result(base), name
    assert result(planned(**gates)) == result(base)
    for name, value in SELECTION.items():
        first = planned(**{name: value}).rounds[0]
        assert (first.scores.id, first.pairs.id == base.rounds[0].pairs.id) == (base.rounds[0].scores.id, False), name


def test_cancelled_scoring_creates_nothing(tmp_path: Path, miniature: Miniature) -> None:
    answers = [answer(0, "good one"), answer(0, ""), answer(1, "bad")]
    reward_model = Store(miniature.store).artifacts("reward-models")[0].folder
    store = Store(tmp_path)
    run = online_run(store, str(reward_model), sampling={"batch_size": 1})
    run.session.cancel.cancel()
    spec = ArtifactSpec("scores", "made-up", "align", 1, {}, parents_of(store, answers))
    with pytest.raises(RunCancelledError):
        store.make(spec, run.score)
    assert store.artifacts("scores") == []


def test_sample_depends_on_seed_and_content_only() -> None:
    assert sample_by_hash(SPEECHES, 2, "round", 1) == sample_by_hash(SPEECHES[::-1], 2, "round", 1)
    assert len({tuple(each.id for each in sample_by_hash(SPEECHES, 2, "round", seed)) for seed in range(20)}) > 1
    assert len(sample_by_hash(SPEECHES, 99, "round", 1)) == len(SPEECHES)
