"""Speech -> Candidate: ask counsellors for replies."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from typing import NamedTuple

from psychocounsel.config.models import ResponderConfig
from psychocounsel.domain import Candidate, ReplyStatus, Speech
from psychocounsel.llm.chat import ChatModel, ChatReply, ChatRequest, Message
from psychocounsel.llm.engine import AskPolicy, ask_all, owed_places
from psychocounsel.llm.journal import Journal


class Answers(NamedTuple):
    """Candidates in the order of the speeches, and how many requests ended otherwise, by status."""

    candidates: list[Candidate]
    failed: dict[str, int]


def counsellor_prompt() -> str:
    """Return the system prompt for responders that bring none of their own."""
    return (
        resources.files("psychocounsel.responses")
        .joinpath("prompts/counsellor.txt")
        .read_text("utf-8")
        .strip()
    )


def chat_request(speech: Speech, responder: ResponderConfig) -> ChatRequest:
    """Return the request that asks a responder to answer a client."""
    system = responder.chat.system_prompt or counsellor_prompt()
    sampling = responder.sampling
    return ChatRequest(
        messages=(Message("system", system), Message("user", speech.text)),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
    )


def ask_responder(
    model: ChatModel,
    responder: ResponderConfig,
    speeches: Sequence[Speech],
    journal: Journal,
    policy: AskPolicy,
) -> Answers:
    """Ask one responder to answer each speech once.

    A reply cut by its token limit is kept as an unfinished candidate; refusals, filtered, empty and lost
    replies are counted and give no candidate. What `policy` accepts is set here.
    """
    requests = [chat_request(speech, responder) for speech in speeches]
    replies = ask_all(model, requests, journal, replace(policy, accept=_accept_answer))
    failed: Counter[str] = Counter()
    candidates: list[Candidate] = []
    for speech, reply in zip(speeches, replies, strict=True):
        if _is_answer(reply):
            is_finished = reply.status is ReplyStatus.VALID
            candidates.append(Candidate(speech.id, responder.author, reply.text.strip(), is_finished))
        else:
            failed[reply.status.value] += 1
    return Answers(candidates, dict(sorted(failed.items())))


def owed_answers(
    model: ChatModel, responder: ResponderConfig, speeches: Sequence[Speech], journal: Journal
) -> list[ChatRequest]:
    """Return what `ask_responder` would have to ask at least once; nothing is asked."""
    requests = [chat_request(speech, responder) for speech in speeches]
    places = owed_places(requests, model.identity, journal, _accept_answer)
    return [requests[place] for place in places]


def _accept_answer(index: int, reply: ChatReply) -> bool:
    del index
    return _is_answer(reply)


def _is_answer(reply: ChatReply) -> bool:
    """Whether a reply makes a candidate: asking again for one that was cut would only pay for it twice."""
    return reply.status in (ReplyStatus.VALID, ReplyStatus.CUT) and bool(reply.text.strip())
