"""Config -> Judge, answers of a responder: the one place that connects to models.

Crafts receive what is opened here, so that a test hands them a fake and patches nothing.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from psychocounsel.config.models import EndpointConfig, JudgeConfig, ResponderConfig
from psychocounsel.console import progress, step_progress
from psychocounsel.domain import Candidate, Speech, content_id
from psychocounsel.judging.chat_judge import ChatJudge, ChatJudgeSettings
from psychocounsel.judging.judge import Judge
from psychocounsel.judging.offline import OfflineJudge
from psychocounsel.judging.prompting import Asking, prompt_digests
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.llm.chat import ChatModel
from psychocounsel.llm.engine import AskPolicy
from psychocounsel.llm.journal import Journal
from psychocounsel.responses.asking import ask_responder, counsellor_prompt
from psychocounsel.responses.ready import ready_responses
from psychocounsel.speeches.normalising import clean_text
from psychocounsel.store.artifacts import Kind, Parent
from psychocounsel.store.digests import digest_of
from psychocounsel.store.references import resolve_model
from psychocounsel.store.store import Store
from psychocounsel.store.tables.sources import read_rows, source_identity

JOURNAL_FILE = "journal/replies.sqlite"
POLICY_KINDS: tuple[Kind, ...] = ("policies", "base-models")


class JudgePlan(NamedTuple):
    """What decides a judge's ratings, and what must head everything made with it."""

    settings: dict[str, Any]
    notices: tuple[str, ...]


def plan_judge(config: JudgeConfig) -> JudgePlan:
    """Return what identifies the judge of a config, without connecting to it."""
    rubric = load_rubric(config.rubric)
    settings = {**config.identity(), "rubric": rubric.digest}
    if config.endpoint is None:
        offline = OfflineJudge(rubric)
        return JudgePlan({**settings, "offline": dict(offline.identity)}, (offline.notice,))
    return JudgePlan({**settings, "prompts": prompt_digests()}, ())


@contextmanager
def open_judge(config: JudgeConfig, store: Store, stop: Callable[[], bool]) -> Generator[Judge]:
    """Yield the judge of a config; its replies are journalled in the store."""
    rubric = load_rubric(config.rubric)
    if config.endpoint is None:
        yield OfflineJudge(rubric)
        return
    with open_journal(store) as journal:
        model = open_endpoint(config.endpoint, store)
        settings = ChatJudgeSettings(
            Asking(config.temperature, config.max_tokens),
            config.endpoint.max_attempts,
            config.endpoint.concurrency,
            stop,
        )
        yield ChatJudge(model, rubric, journal, settings)


def is_loopback(base_url: str | None) -> bool:
    """Whether an address stays on this machine."""
    host = urlsplit(base_url or "").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def open_journal(store: Store) -> Journal:
    """Return the journal of paid replies, one per store."""
    return Journal(store.root / JOURNAL_FILE)


def open_endpoint(endpoint: EndpointConfig, store: Store) -> ChatModel:
    """Return the chat model behind an endpoint."""
    from psychocounsel.llm.openai_client import OpenAIChatModel  # the client takes a second to import

    return OpenAIChatModel(endpoint, store.offline)


class ResponderPlan(NamedTuple):
    """What identifies a responder: settings, and the artifact that it is, if it is one."""

    settings: dict[str, Any]
    parents: tuple[Parent, ...]


def plan_responder(responder: ResponderConfig, store: Store, role: str) -> ResponderPlan:
    """Return what decides a responder's answers."""
    settings = responder.identity()
    if responder.endpoint is not None:
        return ResponderPlan({**settings, "prompt": digest_of(counsellor_prompt())}, ())
    if responder.file is not None:
        return ResponderPlan({**settings, "file": source_identity(responder.file, "train")}, ())
    model = resolve_model(store, responder.model or "", POLICY_KINDS)
    return ResponderPlan({**settings, "model": model.identity}, model.parents(role))


class Respondents(NamedTuple):
    """The speeches that one responder answers, and the seed of its draws."""

    speeches: Sequence[Speech]
    seed: int


class Responded(NamedTuple):
    """Candidates, and requests that ended without one, by status."""

    candidates: list[Candidate]
    failed: dict[str, int]


def respond(
    responder: ResponderConfig, asked: Respondents, store: Store, stop: Callable[[], bool]
) -> Responded:
    """Return one answer of a responder to each speech, whatever stands behind it."""
    if responder.endpoint is not None:
        return _ask_endpoint(responder, responder.endpoint, asked, store, stop)
    if responder.file is not None:
        rows = read_rows(responder.file)
        answered = ready_responses(rows, responder.author, asked.speeches, clean_text)
        return Responded(answered, _unanswered(len(asked.speeches) - len(answered)))
    return _sample(responder, asked, store)


def _unanswered(count: int) -> dict[str, int]:
    return {"not_in_file": count} if count else {}


def _ask_endpoint(
    responder: ResponderConfig,
    endpoint: EndpointConfig,
    asked: Respondents,
    store: Store,
    stop: Callable[[], bool],
) -> Responded:
    model = open_endpoint(endpoint, store)
    with (
        open_journal(store) as journal,
        progress(f"asking {responder.author}", len(asked.speeches)) as advance,
    ):
        policy = AskPolicy(
            max_attempts=endpoint.max_attempts, concurrency=endpoint.concurrency, stop=stop, progress=advance
        )
        answers = ask_responder(model, responder, asked.speeches, journal, policy)
    return Responded(answers.candidates, answers.failed)


def _sample(responder: ResponderConfig, asked: Respondents, store: Store) -> Responded:
    from psychocounsel.llm.local_model import Generator as LocalGenerator  # torch: only when a model answers
    from psychocounsel.training.sampling import SampleRequest, sample_candidates

    policy = resolve_model(store, responder.model or "", POLICY_KINDS).policy(store)
    generator = LocalGenerator.load(policy)
    # Two responders with one model and one seed would otherwise give the same answer.
    seed = int(content_id("responder", responder.author, str(asked.seed)), 16) >> 1
    request = SampleRequest(responder.author, 1, responder.sampling, responder.chat, seed)
    with step_progress(f"answers of {responder.author}") as report:
        candidates = sample_candidates(generator, generator.tokenizer, asked.speeches, request, report)
    return Responded(candidates, {})
