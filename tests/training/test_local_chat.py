"""A model on this machine judges: batched, journalled, and never a number that it did not write."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers_server import make_untrained_llama

from psychocounsel.config.components import EndpointConfig, JudgeConfig, SamplingConfig
from psychocounsel.judging.judge import Judge
from psychocounsel.judging.judges import open_judge
from psychocounsel.llm.endpoints import open_journal
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, ignore_progress, run_requests
from psychocounsel.llm.session import Session, open_session
from psychocounsel.llm.types import ChatReply, ChatRequest, Message
from psychocounsel.store.store import Store
from psychocounsel.training.generate import Answer, AnswerGenerator, LocalChatModel
from psychocounsel.types import Candidate, Policy, ReplyStatus, Speech

SPEECH = Speech("Since the move I lie awake, and nobody here knows my name.")
ITEMS = [(SPEECH, Candidate(SPEECH.id, "alder", text)) for text in ("What was that like?", "Sleep more.")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local-judge") / "model"
    make_untrained_llama([SPEECH.text], folder)
    return folder


@pytest.fixture(scope="module")
def generator(weights: Path) -> AnswerGenerator:
    return AnswerGenerator.load(Policy(str(weights)))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", offline=True)


class Batches:
    """A generator that says nothing new and remembers the sizes of its batches."""

    def __init__(self, generator: AnswerGenerator) -> None:
        self.tokenizer = generator.tokenizer
        self._generator = generator
        self.sizes: list[int] = []

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, seed: int) -> list[Answer]:
        self.sizes.append(len(prompts))
        return self._generator.generate(prompts, sampling, seed)


FINGERPRINT = {"model": "tiny", "base_url": "local"}


def requests(count: int, temperature: float) -> list[ChatRequest]:
    messages = [(Message("system", "Answer."), Message("user", f"item {place}")) for place in range(count)]
    return [ChatRequest(each, temperature, 1.0, max_tokens=6) for each in messages]


def asked(generator: Any, batch_size: int, temperature: float, path: Path) -> list[ChatReply]:
    policy = RunPolicy(lambda index, reply: True, max_attempts=1, concurrency=batch_size)
    with Journal(path) as journal:
        model = LocalChatModel(generator, FINGERPRINT, batch_size, lambda digest: len(journal.replies(digest)))
        return run_requests(model, requests(9, temperature), journal, policy)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_batch_size_decides_the_speed_only(generator: AnswerGenerator, tmp_path: Path, temperature: float) -> None:
    batches = Batches(generator)
    together = asked(batches, 8, temperature, tmp_path / "together.sqlite")
    assert together == asked(generator, 1, temperature, tmp_path / "alone.sqlite")
    # The engine sends the first one alone.
    assert batches.sizes == [1, 8]
    assert all(reply.prompt_tokens > 2 and reply.model == "tiny" for reply in together)


def tries(generator: AnswerGenerator, path: Path, max_attempts: int) -> list[str]:
    """Send one request, accept nothing, and return the text of every reply that the journal holds."""
    (request,) = requests(1, 1.0)
    with Journal(path) as journal:
        model = LocalChatModel(generator, FINGERPRINT, 1, lambda digest: len(journal.replies(digest)))
        run_requests(model, [request], journal, RunPolicy(lambda index, reply: False, max_attempts))
        return [each.text for each in journal.replies(request.digest(model.fingerprint))]


def test_every_try_is_a_sample_of_its_own_however_tries_spread_over_runs(
    generator: AnswerGenerator, tmp_path: Path
) -> None:
    at_once = tries(generator, tmp_path / "one.sqlite", 4)
    assert len(set(at_once)) == 4
    for max_attempts in (1, 3):
        several = tries(generator, tmp_path / "other.sqlite", max_attempts)
    assert several == at_once


def judge_of(weights: Path, **changes: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"backend": "local", "model": str(weights), "max_tokens": 8} | changes)


def test_an_untrained_judge_rates_nothing_and_its_replies_are_kept(weights: Path, store: Store) -> None:
    def rate(judge: Judge) -> list[ReplyStatus]:
        judgements = judge.rate(ITEMS, ignore_progress)
        assert all(not each.ratings and each.reason and each.judge == "model" for each in judgements)
        return [each.status for each in judgements]

    for run in (1, 2):  # what failed in one run is sampled anew in the next
        with open_session(store) as session:
            statuses = rate(open_judge(judge_of(weights, temperature=1.0), session, "rating"))
        assert set(statuses) <= {ReplyStatus.CUT, ReplyStatus.INVALID, ReplyStatus.EMPTY}
        with open_journal(store) as journal:
            texts = [row.reply.text for row in journal.rows() if row is not None]
        assert len(texts) == len(set(texts)) >= run * len(ITEMS)


def test_a_plan_names_the_weights_and_not_the_folder(weights: Path, store: Store, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(weights)
    here, there = (open_judge(judge_of(each), Session(store), "rating") for each in (weights, moved))
    assert here.fingerprint == there.fingerprint
    assert "weights" in str(here.fingerprint["model"])
    assert here.warnings == ()


@pytest.mark.parametrize(
    "judge",
    [
        {"backend": "local"},
        {"backend": "offline", "model": "base"},
        {"backend": "local", "model": "base", "endpoint": EndpointConfig(model="m")},
    ],
)
def test_a_backend_takes_what_it_needs_and_nothing_else(judge: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="backend: "):
        JudgeConfig.model_validate(judge)
