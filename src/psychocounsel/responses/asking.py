"""Speech -> Candidate: ask counsellors for replies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from psychocounsel.config.models import ResponderConfig
from psychocounsel.domain import Candidate, ReplyStatus, Speech, content_id
from psychocounsel.llm.chat import ChatModel, ChatReply, ChatRequest, Message
from psychocounsel.llm.engine import AskPolicy, ask_all, owed_places
from psychocounsel.llm.journal import Journal


class Asked(NamedTuple):
    """Who is asked to answer which speeches, and the seed of the draws."""

    responder: ResponderConfig
    speeches: Sequence[Speech]
    seed: int

    def requests(self) -> list[ChatRequest]:
        """Return one request for each speech."""
        return [chat_request(speech, self.responder, self.seed) for speech in self.speeches]


class Answers(NamedTuple):
    """Candidates in the order of the speeches, and how many requests ended otherwise, by status.

    `lost_because` is what was said of the last request that nobody answered.
    """

    candidates: list[Candidate]
    failed: dict[str, int]
    lost_because: str = ""


def draw_number(author: str, seed: int) -> int:
    """Return the number of an author's draws (63 bits).

    Two authors with one model and one seed would otherwise give the same answers.
    """
    return int(content_id("responder", author, str(seed)), 16) >> 1


def chat_request(speech: Speech, responder: ResponderConfig, seed: int) -> ChatRequest:
    """Return the request that asks a responder to answer a client."""
    sampling, prompt = responder.sampling, responder.chat.system_prompt
    system = (Message("system", prompt),) if prompt else ()
    return ChatRequest(
        messages=(*system, Message("user", speech.text)),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        sample_index=draw_number(responder.author, seed),
    )


def ask_responder(model: ChatModel, asked: Asked, journal: Journal, policy: AskPolicy) -> Answers:
    """Ask one responder to answer each speech once.

    A reply cut by its token limit is kept as an unfinished candidate; refusals, filtered, empty and lost
    replies are counted and give no candidate. What `policy` accepts is set here.
    """
    replies = ask_all(model, asked.requests(), journal, replace(policy, accept=_accept_answer))
    failed: Counter[str] = Counter()
    candidates: list[Candidate] = []
    lost_because = ""
    for speech, reply in zip(asked.speeches, replies, strict=True):
        if _is_answer(reply):
            is_finished = reply.status is ReplyStatus.VALID
            candidates.append(Candidate(speech.id, asked.responder.author, reply.text.strip(), is_finished))
        else:
            failed[reply.status.value] += 1
            lost_because = lost_because if reply.answered else reply.reason
    return Answers(candidates, dict(sorted(failed.items())), lost_because)


def owed_answers(model: ChatModel, asked: Asked, journal: Journal) -> list[ChatRequest]:
    """Return what `ask_responder` would have to ask at least once; nothing is asked."""
    requests = asked.requests()
    places = owed_places(requests, model.identity, journal, _accept_answer)
    return [requests[place] for place in places]


def _accept_answer(index: int, reply: ChatReply) -> bool:
    del index
    return _is_answer(reply)


def _is_answer(reply: ChatReply) -> bool:
    """Whether a reply makes a candidate: asking again for one that was cut would only pay for it twice."""
    return reply.status in (ReplyStatus.VALID, ReplyStatus.CUT) and bool(reply.text.strip())
