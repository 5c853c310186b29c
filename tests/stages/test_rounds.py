"""Scores -> pairs of a round: whom a reward ranks, whom it must not, and what a penalty is worth."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from miniature import LENGTH, OPTIMISATION
from psychocounsel.config.schema import AlignConfig, OnlineConfig
from psychocounsel.errors import DataQualityError
from psychocounsel.llm.cancel import CancelToken, RunCancelledError
from psychocounsel.stages.align import drawn, pair_round, score_round, selection_score
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, Parent
from psychocounsel.store.schemas import (
    RewardScore,
    SplitSpeech,
    read_pairs,
    read_scores,
    write_candidates,
    write_scores,
    write_speeches,
)
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Policy, RewardModel, Speech

SPEECHES = [Speech(f"I cannot sleep since week {number}.") for number in range(3)]


def online(**changes: Any) -> OnlineConfig:
    return OnlineConfig.model_validate({"speeches": "made-up", "reward_model": "made-up", **changes})


def answer(number: int, text: str, *, finished: bool = True) -> Candidate:
    return Candidate(SPEECHES[number].id, "policy", text, finished)


def parents_of(store: Store, answers: Iterable[Candidate]) -> tuple[Parent, Parent]:
    speeches = store.make(
        ArtifactSpec("speeches", "made-up", "test", 1, {}),
        lambda writer: write_speeches(writer, [SplitSpeech(each, "train", each.id) for each in SPEECHES]),
    )
    candidates = store.make(
        ArtifactSpec("candidates", "made-up", "test", 1, {}), lambda writer: write_candidates(writer, answers)
    )
    return speeches.as_parent("speeches"), candidates.as_parent("candidates")


def paired(tmp_path: Path, config: OnlineConfig, rewards: dict[Candidate, float]) -> Artifact:
    """Return the pairs artifact of a round whose answers have these rewards."""
    store = Store(tmp_path)
    parents = parents_of(store, rewards)
    rows = [RewardScore(each.id, reward, reward, 100) for each, reward in rewards.items() if each.text]
    scores = store.make(
        ArtifactSpec("scores", "made-up", "test", 1, {}), lambda writer: write_scores(writer, rows)
    ).as_parent("scores")
    planned = ArtifactSpec("preferences", "made-up", "align", 1, {}, (*parents, scores))
    return store.make(planned, lambda writer: pair_round(config, store, writer))


def texts(artifact: Artifact) -> list[tuple[str, str]]:
    pairs = read_pairs(artifact, "train")
    return [(pair.chosen.candidate.text, pair.rejected.candidate.text) for pair in pairs]


def test_highest_is_paired_with_lowest(tmp_path: Path) -> None:
    rewards = {answer(0, "good"): 1.5, answer(0, "middling"): 0.0, answer(0, "bad"): -2.0}
    assert texts(paired(tmp_path, online(), rewards)) == [("good", "bad")]


def test_equal_rewards_give_no_pair(tmp_path: Path) -> None:
    equal = {answer(0, text): 0.25 for text in ("one", "two", "three")}
    made = paired(tmp_path, online(), {**equal, answer(1, "good"): 1.0, answer(1, "bad"): 0.0})
    assert texts(made) == [("good", "bad")]
    assert made.metrics["pairing"]["dropped"] == {"equal_scores": 1}


def test_round_of_equal_rewards_ends(tmp_path: Path) -> None:
    with pytest.raises(DataQualityError, match=r"without a pair: 1 equal_scores; left out: none") as caught:
        paired(tmp_path, online(), {answer(0, "one"): 1.0, answer(0, "two"): 1.0})
    assert "higher temperature" in caught.value.remedy
    assert caught.value.exit_code == 4


def test_unfinished_answers_are_left_out(tmp_path: Path) -> None:
    rewards = {
        answer(0, "unfinished and bes", finished=False): 9.0,
        answer(0, "good"): 1.0,
        answer(0, "bad"): -1.0,
        answer(0, "unfinished and wors", finished=False): -9.0,
        answer(1, "alone"): 0.0,
        answer(1, "cut of", finished=False): 1.0,
    }
    made = paired(tmp_path, online(unfinished="leave_out"), rewards)
    assert texts(made) == [("good", "bad")]
    assert made.metrics["left_out"] == {"unfinished": 3}
    assert made.metrics["pairing"]["dropped"] == {"speech_with_one_candidate": 1}


def test_unfinished_answers_are_penalised(tmp_path: Path) -> None:
    rewards = {answer(0, "cut of", finished=False): 1.0, answer(0, "good"): 0.0, answer(0, "bad"): -0.5}
    config = online(unfinished="penalise", unfinished_penalty=2.0)
    assert texts(paired(tmp_path, config, rewards)) == [("good", "cut of")]
    assert texts(paired(tmp_path / "free", online(unfinished="penalise", unfinished_penalty=0.0), rewards)) == [
        ("cut of", "bad")
    ]


def test_empty_answers_are_left_out(tmp_path: Path) -> None:
    rewards = {answer(0, ""): 0.0, answer(0, "good"): 1.0, answer(0, "bad"): 0.0}
    made = paired(tmp_path, online(), rewards)
    assert texts(made) == [("good", "bad")]
    assert made.metrics["left_out"] == {"empty": 1}


def test_selection_score_by_hand() -> None:
    config = online(unfinished="penalise", unfinished_penalty=2.0, length_penalty_per_100_tokens=0.5)
    score = RewardScore("id", 9.0, 1.25, 300)
    assert selection_score(answer(0, "done"), score, config) == pytest.approx(1.25 - 0.5 * 3)
    assert selection_score(answer(0, "cu", finished=False), score, config) == pytest.approx(1.25 - 2 - 1.5)


class SlowScorer:
    """Scores the answers one by one, each by the number of its words."""

    scale = RewardModel("made-up", 0.0, 1.0)

    @classmethod
    def load(cls, model: Policy, _: object) -> "SlowScorer":
        assert model == Policy("made-up/reward", "main")
        return cls()

    def raw(self, texts: list[str], _: int, progress: Callable[[int, int], None]) -> list[float]:
        for done in range(1, len(texts) + 1):
            progress(done, len(texts))
        return [float(len(text.split())) for text in texts]

    def response_tokens(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]


def scored(tmp_path: Path, cancel: CancelToken) -> Artifact:
    """Return the scores artifact of a round of three answers, one of them empty."""
    answers = [answer(0, "good one"), answer(0, ""), answer(1, "bad")]
    config = AlignConfig.model_validate(
        {
            "name": "made-up",
            "mode": "online",
            "policy": "hub:made-up/policy@main",
            "online": {"speeches": "made-up", "reward_model": "hub:made-up/reward@main"},
            "optimisation": OPTIMISATION,
            "length": LENGTH,
        }
    )
    assert config.online is not None
    own, store = config.online, Store(tmp_path)
    planned = ArtifactSpec("scores", "made-up", "align", 1, {}, parents_of(store, answers))
    return store.make(planned, lambda writer: score_round(config, own, store, writer, cancel))


@pytest.fixture
def slow_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = SimpleNamespace(Exchange=lambda _, response: response, RewardScorer=SlowScorer)
    monkeypatch.setitem(sys.modules, "psychocounsel.training.reward", made_up)


def test_every_answer_with_a_text_is_scored(tmp_path: Path, slow_scorer: None) -> None:
    rows = read_scores(scored(tmp_path, CancelToken()))
    assert [(each.raw_reward, each.tokens) for each in rows] == [(2.0, 8), (1.0, 3)]


def test_scoring_stops_when_it_is_asked_to(tmp_path: Path, slow_scorer: None) -> None:
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(RunCancelledError):
        scored(tmp_path, cancel)
    assert Store(tmp_path).artifacts("scores") == []


def test_draw_depends_on_seed_and_content_only() -> None:
    assert drawn(SPEECHES, 2, 1) == drawn(SPEECHES[::-1], 2, 1)
    assert len({tuple(each.id for each in drawn(SPEECHES, 2, seed)) for seed in range(20)}) > 1
    assert len(drawn(SPEECHES, 99, 1)) == len(SPEECHES)
