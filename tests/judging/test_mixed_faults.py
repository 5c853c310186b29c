"""600 ratings through every fault of server and line: each gets its outcome, none is paid twice."""

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from chat_server import ChatServer, Fault, Reply, answer_by_schema, error_fault

from fake_model import client_of, count_replies
from psychocounsel.config.components import EndpointConfig
from psychocounsel.judging.judges import ChatJudge
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.judging.scorers import SamplingParams, TextScorer
from psychocounsel.llm.client import OpenAIChatModel
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.rate_limit import RetryPolicy
from psychocounsel.types import Candidate, Judgement, ReplyStatus, Speech

ITEMS, SEED, ATTEMPTS = 600, 20, 2
QUICK = RetryPolicy(max_tries=4, first_wait_seconds=0.02, longest_wait_seconds=0.04)
SECONDS, IN_FLIGHT = 3.0, 24
RUBRIC = load_rubric("seven-principles")
SPEECH = Speech("Since the move I don't sleep, and nobody here knows my name.")
PAIRS = [(SPEECH, Candidate(SPEECH.id, "alder", f"What is night {number} like?")) for number in range(ITEMS)]

FREE: Mapping[str, Fault] = {
    "429": error_fault(429, "slow down", headers={"Retry-After": "0.01"}),
}
UNPAID: Mapping[str, Fault] = {
    "500": error_fault(500, "oh"),
    "503": error_fault(503, "busy", headers={"Retry-After": "0"}),
}
MAYBE_PAID: Mapping[str, Fault] = {
    "dropped before the work": Fault(reset=True),
    "dropped after the work": Fault(reset=True, delay_seconds=0.02),
    "cut body": Fault(cut=True, body=b'{"choices": [{"index": 0, "message": {"content": "half of it'),
    "bad JSON": Fault(body=b'{"choices": [{"index": 0, "mess'),
    "no completion": Fault(body=b"<html>proxy</html>"),
}
DRIP: Mapping[str, Fault] = {"drip": Fault(drip_seconds=10.0)}
FAULTS: Mapping[str, Fault] = {**FREE, **UNPAID, **MAYBE_PAID, **DRIP}

ENDS: Mapping[str, ReplyStatus] = {
    "good": ReplyStatus.VALID,
    "fenced": ReplyStatus.VALID,
    "among words": ReplyStatus.VALID,
    "trailing comma": ReplyStatus.VALID,
    "refused": ReplyStatus.REFUSAL,
    "filtered": ReplyStatus.CONTENT_FILTER,
    "prompt filtered": ReplyStatus.CONTENT_FILTER,
    "cut at its limit": ReplyStatus.CUT,
    "empty": ReplyStatus.EMPTY,
    "wrong id": ReplyStatus.INVALID,
    "no JSON": ReplyStatus.INVALID,
    "off the scale": ReplyStatus.INVALID,
    "never answered": ReplyStatus.ERROR,
}


class Fate(NamedTuple):
    """What befalls a request before it is answered, and how it ends."""

    before: tuple[str, ...]
    end: str


def fates() -> list[Fate]:
    """Draw who meets what: one request in ten ends badly, one in six meets faults on its way."""
    draw = random.Random(SEED)  # noqa: S311
    ends = [*ENDS]
    endings = draw.choices(ends, [60 if end == "good" else 1.2 for end in ends], k=ITEMS)
    lines = list(MAYBE_PAID)
    drawn = [
        Fate(tuple(draw.choices(["429", "500", "503", *lines], k=draw.randrange(1, 4))), end)
        if draw.random() < 0.16
        else Fate((), end)
        for end in endings
    ]
    for place in draw.sample(range(ITEMS), 4):
        drawn[place] = drawn[place]._replace(before=("drip",))
    # More of them than all tries together: they cost none.
    for place in draw.sample(range(ITEMS), 3):
        drawn[place] = Fate(("429",) * (ATTEMPTS * QUICK.max_tries + 1), "good")
    return drawn


@dataclass
class Storm:
    """Answers each item by its fate, and counts."""

    fates: list[Fate]
    met: dict[int, list[str]] = field(default_factory=dict[int, list[str]])
    answered: Counter[int] = field(default_factory=Counter[int])
    turn: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, body: Mapping[str, Any], number: int) -> Reply | Fault:
        told = re.search(r"What is night (\d+) like", body["messages"][1]["content"])
        assert told is not None
        item = int(told[1])
        with self.turn:
            met = self.met.setdefault(item, [])
            fate = self.fates[item]
            if len(met) < len(fate.before):
                met.append(fate.before[len(met)])
                return FAULTS[met[-1]]
            if fate.end == "never answered":
                met.append("500")
                return FAULTS["500"]
            self.answered[item] += 1
            return ending(fate.end, body, number)


def ending(end: str, body: Mapping[str, Any], number: int) -> Reply | Fault:
    text = answer_by_schema(body, number).text or ""
    if end == "prompt filtered":
        return error_fault(400, "flagged", "content_filter")
    replies = {
        "good": Reply(text),
        "fenced": Reply(f"```json\n{text}\n```"),
        "among words": Reply(f"I gave 5 for warmth. {text} That is all."),
        "trailing comma": Reply(text.replace("}}", ",}}")),
        "refused": Reply(None, refusal="I would rather not."),
        "filtered": Reply(text, finish_reason="content_filter"),
        "cut at its limit": Reply(text, finish_reason="length"),
        "empty": Reply(" \n"),
        "wrong id": Reply(re.sub(r'"item_id": "\w+"', '"item_id": "0123456789abcdef"', text)),
        "no JSON": Reply("Empathy: 5, and 5 for all the others."),
        "off the scale": Reply(re.sub(r'("empathy": )\d', r"\g<1>10", text)),
    }
    return replies[end]


@dataclass(frozen=True)
class Outcome:
    """What a run through the storm left."""

    storm: Storm
    judgements: list[Judgement]
    replies_kept: int
    lost_responses: int


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    storm = Storm(fates())
    with Journal(tmp_path_factory.mktemp("storm") / "j.sqlite") as journal, ChatServer(storm) as server:
        endpoint = EndpointConfig(
            model="judge", base_url=server.base_url, timeout_seconds=SECONDS, concurrency=IN_FLIGHT
        )
        model = OpenAIChatModel(endpoint, offline=True, retry=QUICK)
        client = client_of(model, journal, ATTEMPTS, concurrency=IN_FLIGHT)
        judgements = ChatJudge(client, RUBRIC).rate(PAIRS, lambda _: None)
        return Outcome(storm, judgements, count_replies(journal), len(journal.lost_responses()))


def test_all_of_them_end_as_they_should(outcome: Outcome) -> None:
    expected = [ENDS[fate.end] for fate in outcome.storm.fates]
    assert set(expected) == set(ReplyStatus)
    assert [judgement.status for judgement in outcome.judgements] == expected


def test_a_good_answer_is_asked_for_once_and_a_bad_one_as_often_as_allowed(outcome: Outcome) -> None:
    storm = outcome.storm
    for item, fate in enumerate(storm.fates):
        if fate.end == "never answered":
            # Being turned away took none of its tries.
            assert sum(met not in FREE for met in storm.met[item]) == ATTEMPTS * QUICK.max_tries
        else:
            is_good = ENDS[fate.end] is ReplyStatus.VALID
            assert storm.answered[item] == (1 if is_good else ATTEMPTS), (item, fate)
            assert tuple(storm.met[item]) == fate.before


def test_every_answer_is_kept_and_every_broken_line_is_told(outcome: Outcome) -> None:
    met = Counter(each for faults in outcome.storm.met.values() for each in faults)
    assert set(met) == set(FAULTS)
    assert outcome.replies_kept == outcome.storm.answered.total()
    assert outcome.lost_responses == sum(met[name] for name in (*MAYBE_PAID, *DRIP))


def test_the_ratings_are_those_that_were_sent(outcome: Outcome) -> None:
    sampling = SamplingParams()
    for (speech, candidate), judgement in zip(PAIRS, outcome.judgements, strict=True):
        request = TextScorer(RUBRIC).rating_request(speech, candidate, sampling).request
        turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        schema = {"json_schema": {"schema": request.response_schema}}
        sent = json.loads(answer_by_schema({"messages": turns, "response_format": schema}, 0).text or "")
        assert judgement.ratings == (sent["ratings"] if judgement.status is ReplyStatus.VALID else {})
