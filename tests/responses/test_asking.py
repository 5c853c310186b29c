"""Speech -> Candidate: what is asked, and which replies become candidates."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from psychocounsel.config.models import ChatFormat, EndpointConfig, ResponderConfig, SamplingConfig
from psychocounsel.domain import Candidate, ReplyStatus, Speech
from psychocounsel.llm.chat import ChatReply, ChatRequest
from psychocounsel.llm.engine import AskPolicy
from psychocounsel.llm.journal import Journal
from psychocounsel.responses.asking import Answers, ask_responder, chat_request, counsellor_prompt

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
    def identity(self) -> Mapping[str, str]:
        return {"model": "fake-2026-01-01"}

    async def ask(self, request: ChatRequest) -> ChatReply:
        text = request.messages[-1].content
        self.asked.append(text)
        return self._script(text, self.asked.count(text))


def reply(text: str, status: ReplyStatus = ReplyStatus.VALID) -> ChatReply:
    return ChatReply(status, text, "fake-2026-01-01", 5, 5)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "replies.sqlite") as opened:
        yield opened


def ask(model: ScriptedModel, journal: Journal) -> Answers:
    return ask_responder(model, RESPONDER, SPEECHES, journal, AskPolicy(max_attempts=2, concurrency=2))


def test_a_request_holds_the_client_and_how_to_answer() -> None:
    request = chat_request(SPEECHES[0], RESPONDER)
    assert [(each.role, each.content) for each in request.messages] == [
        ("system", counsellor_prompt()),
        ("user", "speech 0"),
    ]
    assert (request.temperature, request.top_p, request.max_tokens) == (0.5, 0.9, 77)
    own = RESPONDER.model_copy(update={"chat": ChatFormat(system_prompt="Be brief.")})
    assert chat_request(SPEECHES[0], own).messages[0].content == "Be brief."


def test_the_prompt_of_a_counsellor_forbids_diagnosis() -> None:
    assert "Do not diagnose" in counsellor_prompt()
    assert counsellor_prompt() == counsellor_prompt().strip()


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
