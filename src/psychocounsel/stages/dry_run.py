"""Config -> PaidCalls: how many calls a run would make to endpoints, told before it makes one.

What the journal holds costs nothing. Where the texts to be sent do not exist yet, the figures are upper
bounds, and say so.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from psychocounsel.config.components import EndpointConfig, JudgeConfig, PoolConfig, ResponderConfig
from psychocounsel.config.schema import BuildPreferencesConfig, EvalWinrateConfig, TopicsConfig
from psychocounsel.corpus.build import CorpusPlans, read_corpus
from psychocounsel.corpus.topic_model import plan_to_name_topics
from psychocounsel.evaluation.winrate import sample_speeches
from psychocounsel.judging.judge import ComparisonTask, ComparisonTasks
from psychocounsel.judging.judges import plan_to_ask
from psychocounsel.llm.batch.ledger import digests_in_batches
from psychocounsel.llm.cost import Price, TokenCounter, Tokens, price_of
from psychocounsel.llm.endpoints import planned_journal, planned_model
from psychocounsel.llm.types import ChatRequest, endpoint_fingerprint, resolved_base_url
from psychocounsel.stages.audit import able_to_gain, audit_requests, read_rated, samples_of
from psychocounsel.stages.respond import Asked, owed_answers, speeches_of
from psychocounsel.store.artifacts import ArtifactSpec
from psychocounsel.store.references import HUB, resolve
from psychocounsel.store.schemas import read_candidates, read_speeches
from psychocounsel.store.store import Store
from psychocounsel.types import Candidate, Speech

SHORTEST_CACHED_PREFIX_TOKENS = 1024
"""Of a prompt's beginning that providers keep for later calls."""

_AUDITING = "auditing the judge"
_COMPARING = "comparing answers"
_RATING = "rating answers"
_TOPICS = "naming topics"


@dataclass(frozen=True)
class PaidCalls:
    """Calls to one endpoint that are still owed.

    Attributes:
        model: as the config names it.
        base_url: where it is asked.
        purpose: what for.
        calls: None where they cannot be counted yet; `hint` says why.
        tokens: of all prompts, of the prefix that they share and a provider may cache, and of the answers,
            each at its longest.
        tokens_are_exact: whether the prompts were counted with the model's own vocabulary.
        price: of the model; None if nobody told it.
        is_upper_bound: answers are still to be given, and were reckoned at their longest.
        hint: what there is to say instead of a number.
        has_batches: whether `--batch` would ask them in batches.
        awaited: calls besides, that are with the provider in batches and are not paid again.
    """

    model: str
    base_url: str
    purpose: str
    calls: int | None
    tokens: Tokens = field(default_factory=Tokens)
    tokens_are_exact: bool = False
    price: Price | None = None
    is_upper_bound: bool = False
    hint: str = ""
    awaited: int = 0
    has_batches: bool = False


class Expected(NamedTuple):
    """A speech that awaits an answer, and how many tokens that may have."""

    speech: Speech
    max_new_tokens: int

    @property
    def blank(self) -> Candidate:
        """The answer, before anybody gave it."""
        return Candidate(self.speech.id, "nobody", "")


def preference_costs(
    config: BuildPreferencesConfig, corpus: CorpusPlans, asked: ArtifactSpec | None, store: Store
) -> list[PaidCalls]:
    """Return what asking the pool and rating its answers and the ready ones would take.

    A corpus that would have to be fetched from the Hub is not read for it: its calls cannot be counted yet.
    """
    if store.find(corpus.speeches) is None and _is_on_the_hub(config):
        return _unread(config)
    speeches, ready = _corpus_as_it_is(config, corpus, store)
    topics = [] if store.find(corpus.speeches) else _naming_topics(config.corpus.topics, store, speeches)
    return [*topics, *_asking_and_rating(config, asked, store, speeches, ready)]


def _asking_and_rating(
    config: BuildPreferencesConfig,
    asked: ArtifactSpec | None,
    store: Store,
    speeches: Sequence[Speech],
    ready: Sequence[Candidate],
) -> list[PaidCalls]:
    by_id = {speech.id: speech for speech in speeches}
    made = None if asked is None else store.find(asked)
    answered = ready if made is None else [*ready, *read_candidates(made)]
    items = [(by_id[each.speech_id], each) for each in answered if each.text]
    if made is not None or config.pool is None:
        audit = _auditing(config, store, Auditable(items, items))
        return [*_rating(config.judge, store, items, []), *audit]
    drawn = _drawn(config.pool, speeches)
    asking = [_answering(Asked(each, [one.speech for one in expected], config.seed), store) for each, expected in drawn]
    expected = [one for _, each in drawn for one in each]
    rating = _rating(config.judge, store, items, expected)
    audit = _auditing(config, store, _with_stand_ins(items, expected))
    return [*(call for calls in asking for call in calls), *rating, *audit]


class Auditable(NamedTuple):
    """Responses that an audit draws from, those of them that could gain a point, how long others may be."""

    items: Sequence[tuple[Speech, Candidate]]
    able: Sequence[tuple[Speech, Candidate]]
    max_new_tokens: int = 0


def _with_stand_ins(items: Sequence[tuple[Speech, Candidate]], expected: Sequence[Expected]) -> Auditable:
    """Put a number for each answer that nobody gave yet: two of them must not look the same."""
    numbers = [(each.speech, Candidate(each.speech.id, "nobody", str(at))) for at, each in enumerate(expected)]
    both = [*items, *numbers]
    return Auditable(both, both, max((each.max_new_tokens for each in expected), default=0))


def audit_costs(config: BuildPreferencesConfig, judgements: ArtifactSpec, store: Store) -> list[PaidCalls]:
    """Return what auditing the judge would take, once everything is judged."""
    made = store.find(judgements)
    rated = [] if made is None else read_rated(store, made)
    able = [each.item for each in able_to_gain(rated, config)]
    return _auditing(config, store, Auditable([each.item for each in rated], able))


def _auditing(config: BuildPreferencesConfig, store: Store, auditable: Auditable) -> list[PaidCalls]:
    """Return the calls of the judge's audit; before anything is rated, every response could gain a point."""
    calls: list[PaidCalls] = []
    for member in config.judge.members:
        if member.endpoint is not None:
            with plan_to_ask(member, member.endpoint, store) as judge:
                owed = audit_requests(judge, samples_of(auditable.items, auditable.able, config.audit))
            longest = auditable.max_new_tokens * len(owed)
            calls += [_calls(store, member.endpoint, _AUDITING, owed, longest, bool(longest))] if owed else []
    return calls


def _is_on_the_hub(config: BuildPreferencesConfig) -> bool:
    sources = (*config.corpus.speeches, *config.corpus.candidates)
    return any(source.path.startswith(HUB) for source in sources)


def _unread(config: BuildPreferencesConfig) -> list[PaidCalls]:
    responders = config.pool.responders if config.pool else ()
    hint = "counted once the speeches are fetched from the Hub"
    wanted = [(f"answers of {each.author}", each.endpoint) for each in responders]
    if config.corpus.topics is not None:
        wanted.insert(0, (_TOPICS, config.corpus.topics.endpoint))
    wanted += [(_RATING, each) for each in config.judge.endpoints]
    if any(config.audit.fingerprint().values()):
        wanted += [(_AUDITING, each) for each in config.judge.endpoints]
    return _uncounted(wanted, hint)


def _uncounted(wanted: Sequence[tuple[str, EndpointConfig | None]], hint: str) -> list[PaidCalls]:
    return [
        PaidCalls(endpoint.model, resolved_base_url(endpoint), purpose, None, hint=hint)
        for purpose, endpoint in wanted
        if endpoint is not None
    ]


def _drawn(pool: PoolConfig, speeches: Sequence[Speech]) -> list[tuple[ResponderConfig, list[Expected]]]:
    return [
        (each, [Expected(one, each.sampling.max_new_tokens) for one in speeches_of(each, speeches, pool)])
        for each in pool.responders
    ]


def _corpus_as_it_is(
    config: BuildPreferencesConfig, corpus: CorpusPlans, store: Store
) -> tuple[list[Speech], list[Candidate]]:
    """Return speeches and ready candidates, from the store if they are in it, else from their sources."""
    speeches = store.find(corpus.speeches)
    ready = None if corpus.candidates is None else store.find(corpus.candidates)
    if speeches is None or (ready is None and corpus.candidates is not None):
        reading = read_corpus(config.corpus)
        return reading.speeches, reading.candidates
    return [each.speech for each in read_speeches(speeches)], [] if ready is None else read_candidates(ready)


def winrate_costs(
    config: EvalWinrateConfig, policy: ArtifactSpec, reference: ArtifactSpec, store: Store
) -> list[PaidCalls]:
    """Return what answering for both sides and comparing their answers would take."""
    corpus = resolve(store, config.speeches, "speeches")
    if isinstance(corpus, ArtifactSpec):
        return _unknown_yet(config)
    speeches = sample_speeches(
        [row.speech for row in read_speeches(corpus) if row.split == config.split], config.max_speeches, config.seed
    )
    found = [store.find(planned) for planned in (policy, reference)]
    sides = [{each.speech_id: each for each in read_candidates(one)} for one in found if one is not None]
    if len(sides) == 2:
        compared = ComparisonTasks.of({each.id: each for each in speeches}, sides[0], sides[1])
        return _comparing(config.judge, store, [*compared.forward, *compared.backward], 0)
    calls: list[PaidCalls] = []
    for responder, answers in zip((config.policy, config.reference), found, strict=True):
        calls += _answering(Asked(responder, speeches, config.seed), store) if answers is None else []
    longest = max(each.sampling.max_new_tokens for each in (config.policy, config.reference))
    blank = [Expected(each, longest).blank for each in speeches]
    both = [ComparisonTask(*pair) for pair in zip(speeches, blank, blank, strict=True)]
    return [*calls, *_comparing(config.judge, store, both, longest)]


def _unknown_yet(config: EvalWinrateConfig) -> list[PaidCalls]:
    each_speech = f"for each speech of the split {config.split}; counted once the speeches are read"
    answers = [(f"answers of {each.author}", each.endpoint) for each in (config.policy, config.reference)]
    comparing = [
        call
        for member in config.judge.members
        for call in _uncounted([(_COMPARING, member.endpoint)], f"{2 * member.samples} {each_speech}")
    ]
    return [*_uncounted(answers, f"1 {each_speech}"), *comparing]


def _naming_topics(config: TopicsConfig | None, store: Store, speeches: Sequence[Speech]) -> list[PaidCalls]:
    if config is None or config.endpoint is None:
        return []
    with plan_to_name_topics(config, config.endpoint, store) as assigner:
        return [_calls(store, config.endpoint, _TOPICS, assigner.pending(speeches), 0)]


def _rating(
    config: JudgeConfig,
    store: Store,
    answered: Sequence[tuple[Speech, Candidate]],
    expected: Sequence[Expected],
) -> list[PaidCalls]:
    if config.panel:
        members = (_rating(each, store, answered, expected) for each in config.members)
        return [call for calls in members for call in calls]
    if config.endpoint is None:
        return []
    with plan_to_ask(config, config.endpoint, store) as judge:
        owed = judge.owed_ratings(answered)
        # One by one: two answers that nobody gave yet are two, though they look the same.
        blank = [ask for each in expected for ask in judge.owed_ratings([(each.speech, each.blank)])]
    longest = config.samples * sum(each.max_new_tokens for each in expected)
    calls = _calls(store, config.endpoint, _RATING, [*owed, *blank], longest, bool(expected))
    return [replace(calls, has_batches=config.backend == "endpoint")]


def _comparing(
    config: JudgeConfig, store: Store, comparisons: Sequence[ComparisonTask], max_new_tokens: int
) -> list[PaidCalls]:
    """Return the calls of comparisons in both orders; `max_new_tokens` is 0 when all answers exist."""
    if config.panel:
        members = (_comparing(each, store, comparisons, max_new_tokens) for each in config.members)
        return [call for calls in members for call in calls]
    if config.endpoint is None:
        return []
    with plan_to_ask(config, config.endpoint, store) as judge:
        owed = judge.owed_comparisons(comparisons)
    is_upper_bound = bool(max_new_tokens)
    requests = [*owed, *owed] if is_upper_bound else owed
    longest = 2 * max_new_tokens * len(requests)
    calls = _calls(store, config.endpoint, _COMPARING, requests, longest, is_upper_bound)
    return [replace(calls, has_batches=config.backend == "endpoint")]


def _answering(asked: Asked, store: Store) -> list[PaidCalls]:
    endpoint = asked.responder.endpoint
    if endpoint is None:
        return []
    with planned_journal(store) as journal:
        owed = owed_answers(planned_model(endpoint), asked, journal)
    return [_calls(store, endpoint, f"answers of {asked.responder.author}", owed, 0)]


def _calls(
    store: Store,
    endpoint: EndpointConfig,
    purpose: str,
    requests: Sequence[ChatRequest],
    more_tokens: int,
    is_upper_bound: bool = False,
) -> PaidCalls:
    owed = _not_awaited(requests, endpoint, store)
    awaited, requests = len(requests) - len(owed), owed
    counter = TokenCounter(endpoint.model)
    tokens = Tokens(
        prompt=sum(map(counter.prompt, requests)) + more_tokens,
        cached=_shared_prefix_tokens(requests, counter),
        completion=sum(request.max_tokens for request in requests),
    )
    base_url, price = resolved_base_url(endpoint), price_of(endpoint)
    exact = counter.is_exact
    return PaidCalls(
        endpoint.model,
        base_url,
        purpose,
        len(requests),
        tokens,
        exact,
        price,
        is_upper_bound,
        awaited=awaited,
    )


def _not_awaited(requests: Sequence[ChatRequest], endpoint: EndpointConfig, store: Store) -> Sequence[ChatRequest]:
    """Return the requests that are not with the provider in batches already."""
    with planned_journal(store) as journal:
        awaited = digests_in_batches(journal)
    if not awaited:
        return requests
    identity = endpoint_fingerprint(endpoint)
    return [request for request in requests if request.digest(identity) not in awaited]


def _shared_prefix_tokens(requests: Sequence[ChatRequest], counter: TokenCounter) -> int:
    """Return how many prompt tokens repeat a beginning sent before, long enough for providers to keep."""
    heads = Counter(request.messages[0].content for request in requests if len(request.messages) > 1)
    repeated = ((counter.text(head), count - 1) for head, count in heads.items())
    return sum(tokens * count for tokens, count in repeated if tokens >= SHORTEST_CACHED_PREFIX_TOKENS)
