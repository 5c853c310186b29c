"""ResponderConfig, speeches -> Responded: one answer to each speech, whatever stands behind its author."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig, PoolConfig, ResponderConfig
from psychocounsel.corpus.sources import SourceRow, read_rows, source_identity
from psychocounsel.corpus.text import clean_text
from psychocounsel.errors import DataQualityError, IncompleteError, InputError, counted
from psychocounsel.llm.cancel import CancelToken, interruptible
from psychocounsel.llm.cost import budget_of
from psychocounsel.llm.endpoints import (
    endpoint_settings,
    log_spending,
    open_endpoint,
    open_journal,
)
from psychocounsel.llm.journal import Journal
from psychocounsel.llm.runner import RunPolicy, pending_indices, run_requests
from psychocounsel.llm.types import (
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    resolved_base_url,
)
from psychocounsel.reporting.console import progress, step_progress
from psychocounsel.store.artifacts import Parent
from psychocounsel.store.references import POLICY_KINDS, resolve_model
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, ReplyStatus, Speech, content_id


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


def ask_responder(model: ChatModel, asked: Asked, journal: Journal, policy: RunPolicy) -> Answers:
    """Ask one responder to answer each speech once.

    A reply cut by its token limit is kept as an unfinished candidate; refusals, filtered, empty and lost
    replies are counted and give no candidate. What `policy` accepts is set here.
    """
    replies = run_requests(model, asked.requests(), journal, replace(policy, accept=_accept_answer))
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
    places = pending_indices(requests, model.fingerprint, journal, _accept_answer)
    return [requests[place] for place in places]


def _accept_answer(index: int, reply: ChatReply) -> bool:
    del index
    return _is_answer(reply)


def _is_answer(reply: ChatReply) -> bool:
    """Whether a reply makes a candidate: asking again for one that was cut would only pay for it twice."""
    return reply.status in (ReplyStatus.VALID, ReplyStatus.CUT) and bool(reply.text.strip())


SPEECH_COLUMN = "speech"
RESPONSE_COLUMN = "response"

CleanText = Callable[[object, str, str], str]
"""Cell, its column and its place -> clean text, as the speeches of a corpus were cleaned."""


def ready_responses(
    rows: Iterable[SourceRow], author: str, speeches: Sequence[Speech], clean_text: CleanText
) -> list[Candidate]:
    """Return the response to each speech from rows with the columns `speech` and `response`.

    The first response to a speech counts; a speech without one has no candidate.

    Raises:
        InputError: a column is missing, or a cell holds what no table can.
        DataQualityError: no row answers one of the speeches.
    """
    texts: dict[str, str] = {}
    for row in rows:
        speech, response = (_cell(row, column, clean_text) for column in (SPEECH_COLUMN, RESPONSE_COLUMN))
        if response:
            texts.setdefault(speech, response)
    answered = [Candidate(each.id, author, texts[each.text]) for each in speeches if each.text in texts]
    if not answered:
        raise DataQualityError(
            "no row answers one of the speeches", where=author, remedy="repeat each speech word for word"
        )
    return answered


def _cell(row: SourceRow, column: str, clean_text: CleanText) -> str:
    if column not in row.values:
        known = ", ".join(row.values)
        raise InputError(
            f"there is no column {column!r}",
            where=row.where,
            remedy=f"name two columns {SPEECH_COLUMN} and {RESPONSE_COLUMN}; there are: {known}",
        )
    return clean_text(row.values[column], column, row.where)


NOT_IN_FILE = "not_in_file"


class ResponderPlan(NamedTuple):
    """What identifies a responder: settings, and the artifact that it is, if it is one."""

    settings: dict[str, Any]
    parents: tuple[Parent, ...]


def plan_responder(responder: ResponderConfig, store: Store, role: str) -> ResponderPlan:
    """Return what decides a responder's answers.

    Raises:
        ConfigError: offline, and its endpoint is not on this machine; or nothing answers to its reference.
    """
    settings = responder.fingerprint()
    if responder.endpoint is not None:
        return ResponderPlan({**settings, "endpoint": endpoint_settings(responder.endpoint, store)}, ())
    if responder.file is not None:
        # Neither sampling nor a chat format shapes what stands in a file.
        return ResponderPlan({"author": responder.author, "file": source_identity(responder.file, "train")}, ())
    model = resolve_model(store, responder.model or "", POLICY_KINDS)
    return ResponderPlan({**settings, "model": model.fingerprint}, model.parents(role))


class ResponseRequest(NamedTuple):
    """The speeches that one responder answers, and the seed of its draws."""

    speeches: Sequence[Speech]
    seed: int


class Responded(NamedTuple):
    """Candidates, requests that ended without one, by status, and what they cost, for `metrics.json`."""

    candidates: list[Candidate]
    failed: dict[str, int]
    spend: dict[str, Any]


def respond(responder: ResponderConfig, asked: ResponseRequest, store: Store, cancel: CancelToken) -> Responded:
    """Return one answer of a responder to each speech, whatever stands behind it.

    Raises:
        IncompleteError: its endpoint left requests unanswered: they are owed, and so is the rest.
        DataQualityError: more speeches than `max_missing_share` got no answer otherwise.
        RunCancelledError: SIGINT or SIGTERM came.
    """
    if responder.endpoint is not None:
        responded = _ask_endpoint(responder, responder.endpoint, asked, store, cancel)
    elif responder.file is not None:
        rows = read_rows(responder.file)
        answered = ready_responses(rows, responder.author, asked.speeches, clean_text)
        responded = Responded(answered, _unanswered(len(asked.speeches) - len(answered)), {})
    else:
        responded = _sample(responder, asked, store, cancel)
    _require_answered(responder, responded, len(asked.speeches))
    return responded


def _unanswered(count: int) -> dict[str, int]:
    return {NOT_IN_FILE: count} if count else {}


def _require_answered(responder: ResponderConfig, responded: Responded, asked: int) -> None:
    missing = sum(responded.failed.values())
    if missing > responder.max_missing_share * asked:
        again = "add them to the file" if responder.file else "run the same command to ask those again"
        raise DataQualityError(
            f"{missing} of {asked} speeches got no answer ({counted(responded.failed)})",
            where=f"responder {responder.author}",
            remedy=f"{again}, or raise its max_missing_share ({responder.max_missing_share:g})",
        )


def _ask_endpoint(
    responder: ResponderConfig,
    endpoint: EndpointConfig,
    asked: ResponseRequest,
    store: Store,
    cancel: CancelToken,
) -> Responded:
    model, budget = open_endpoint(endpoint, store), budget_of(endpoint)
    with (
        open_journal(store) as journal,
        progress(f"asking {responder.author}", len(asked.speeches), lambda: budget.spending.standing) as advance,
    ):
        policy = RunPolicy(
            max_attempts=endpoint.max_attempts,
            concurrency=endpoint.concurrency,
            cancel=cancel,
            progress=advance,
            budget=budget,
        )
        answers = ask_responder(model, Asked(responder, *asked), journal, policy)
    _require_replies(responder, endpoint, answers)
    return Responded(answers.candidates, answers.failed, log_spending(budget.spending, responder.author))


def _require_replies(responder: ResponderConfig, endpoint: EndpointConfig, answers: Answers) -> None:
    if lost := answers.failed.get(ReplyStatus.ERROR.value, 0):
        asked = len(answers.candidates) + sum(answers.failed.values())
        raise IncompleteError(
            f"{lost} of {asked} requests to {responder.author} were not answered: {answers.lost_because}",
            where=resolved_base_url(endpoint),
            remedy="see to the endpoint, then run the same command again; only what is owed is asked",
        )


def _sample(responder: ResponderConfig, asked: ResponseRequest, store: Store, cancel: CancelToken) -> Responded:
    from psychocounsel.training.generate import AnswerGenerator, sample_candidates  # imports torch

    policy = resolve_model(store, responder.model or "", POLICY_KINDS).policy(store)
    generator = AnswerGenerator.load(policy)
    label = f"answers of {responder.author}"
    with step_progress(label) as report:
        watch = interruptible(report, cancel, label)
        candidates = sample_candidates(
            generator,
            asked.speeches,
            author=responder.author,
            per_speech=1,
            sampling=responder.sampling,
            chat=responder.chat,
            seed=draw_number(responder.author, asked.seed),
            progress=watch,
        )
    return Responded(candidates, {}, {})


def draw_responders(speech: Speech, pool: PoolConfig) -> tuple[ResponderConfig, ...]:
    """Return `per_speech` different responders; the same speech, pool and seed give the same draw."""
    ranked = sorted(pool.responders, key=lambda each: content_id("draw", str(pool.seed), speech.id, each.author))
    return tuple(ranked[: pool.per_speech])


def speeches_of(responder: ResponderConfig, speeches: Sequence[Speech], pool: PoolConfig) -> list[Speech]:
    """Return the speeches that a responder of the pool was drawn for."""
    return [speech for speech in speeches if responder in draw_responders(speech, pool)]
