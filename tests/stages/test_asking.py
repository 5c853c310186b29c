"""Speech -> Candidate: what is asked, and which replies become candidates."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from psychocounsel.config.components import ChatFormat, EndpointConfig, ResponderConfig, SamplingConfig
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy
from psychocounsel.llm.types import ChatReply, ChatRequest, RequestContext
from psychocounsel.stages.respond import Answers, Asked, ask_responder, chat_request
from psychocounsel.types import Candidate, ReplyStatus, Speech

RESPONDER = ResponderConfig(
    author="elm",
    endpoint=EndpointConfig(model="fake-2026-01-01"),
    sampling=SamplingConfig(temperature=0.5, top_p=0.9, max_new_tokens=77),
)
SPEECHES = [Speech(f"speech {number}") for number in range(4)]


class ScriptedModel:
    """Answers each request by its client's words and counts."""

    def __init__(self, script: Callable[[str, int], ChatReply]) -> None:
        self._script = script
        self.asked: list[str] = []

    @property
    def fingerprint(self) -> Mapping[str, str]:
        return {"model": "fake-2026-01-01"}

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        text = request.messages[-1].content
        self.asked.append(text)
        return self._script(text, self.asked.count(text))


def reply(text: str, status: ReplyStatus = ReplyStatus.VALID) -> ChatReply:
    return ChatReply(status, text, "fake-2026-01-01", 5, 5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.sqlite") as opened:
        yield opened


def ask(model: ScriptedModel, journal: Journal, responder: ResponderConfig = RESPONDER, seed: int = 0) -> Answers:
    policy = RunPolicy(max_attempts=2, concurrency=2)
    return ask_responder(model, Asked(responder, SPEECHES, seed), journal, policy)


def test_a_request_holds_the_client_and_how_to_answer_and_nothing_more() -> None:
    request = chat_request(SPEECHES[0], RESPONDER, 0)
    assert [(each.role, each.content) for each in request.messages] == [("user", "speech 0")]
    assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 77)
    told = RESPONDER.model_copy(update={"chat": ChatFormat(system_prompt="Be brief.")})
    assert [(each.role, each.content) for each in chat_request(SPEECHES[0], told, 0).messages] == [
        ("system", "Be brief."),
        ("user", "speech 0"),
    ]


def test_another_author_or_seed_is_another_draw_of_one_model(journal: Journal) -> None:
    model = ScriptedModel(lambda text, times: reply(f"answer {times}"))
    oak = RESPONDER.model_copy(update={"author": "oak"})
    drawn = [
        ask(model, journal, responder, seed).candidates[0].text
        for responder, seed in ((RESPONDER, 0), (oak, 0), (RESPONDER, 1), (RESPONDER, 0), (oak, 0))
    ]
    assert drawn == ["answer 1", "answer 2", "answer 3", "answer 1", "answer 2"]
    assert len(model.asked) == 3 * len(SPEECHES)


def test_what_was_said_of_a_lost_request_is_kept(journal: Journal) -> None:
    lost = ChatReply(ReplyStatus.ERROR, "", "fake", 0, 0, "the line broke")
    answers = ask(ScriptedModel(lambda text, _: lost if text == "speech 2" else reply("Oh.")), journal)
    assert (answers.failed, answers.lost_because) == ({"error": 1}, "the line broke")


def test_each_speech_is_answered_once_in_its_order(journal: Journal) -> None:
    model = ScriptedModel(lambda text, _: reply(f" On {text}. \n"))
    answers = ask(model, journal)
    assert answers.candidates == [Candidate(each.id, "elm", f"On {each.text}.") for each in SPEECHES]
    assert answers.failed == {}
    assert ask(model, journal) == answers
    assert sorted(model.asked) == [each.text for each in SPEECHES]


def test_what_is_no_answer_is_counted_by_its_status_and_gives_no_candidate(journal: Journal) -> None:
    script = {
        "speech 0": reply("I cannot help with that.", ReplyStatus.REFUSAL),
        "speech 1": reply("", ReplyStatus.EMPTY),
        "speech 2": reply("Oh.", ReplyStatus.CONTENT_FILTER),
        "speech 3": reply("  ", ReplyStatus.CUT),
    }
    answers = ask(ScriptedModel(lambda text, _: script[text]), journal)
    assert answers.candidates == []
    assert answers.failed == {"content_filter": 1, "cut": 1, "empty": 1, "refusal": 1}


def test_a_cut_answer_is_an_unfinished_candidate_and_is_paid_for_once(journal: Journal) -> None:
    model = ScriptedModel(lambda text, _: reply("It sounds as if", ReplyStatus.CUT))
    answers = ask(model, journal)
    assert [(each.text, each.finished) for each in answers.candidates] == [("It sounds as if", False)] * 4
    assert sorted(model.asked) == [each.text for each in SPEECHES]


def test_a_failure_is_tried_again(journal: Journal) -> None:
    def fail_once(text: str, attempt: int) -> ChatReply:
        return reply("Oh.") if attempt > 1 else reply("", ReplyStatus.EMPTY)

    answers = ask(ScriptedModel(fail_once), journal)
    assert len(answers.candidates) == 4
    assert answers.failed == {}
