"""Speeches -> candidates -> judgements -> pairs: the preference dataset.

Judging and pairing are artifacts of their own: another pairing rule reads the same judgements.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from psychocounsel import console
from psychocounsel.audits import audit_judge, plan_audit
from psychocounsel.config.models import EndpointConfig, PoolConfig
from psychocounsel.config.stages import BuildPreferencesConfig
from psychocounsel.console import progress
from psychocounsel.corpora import CorpusPlans, open_corpus, plan_corpus
from psychocounsel.costs import PaidCalls, audit_costs, preference_costs
from psychocounsel.dataset_facts import gather_dataset_facts, write_dataset_card
from psychocounsel.domain import Candidate
from psychocounsel.endpoints import keep_restricted_text_here, require_listed, require_usable
from psychocounsel.errors import ConfigError, PsychoCounselError
from psychocounsel.interrupts import go_on, stop_requests
from psychocounsel.judges import judge_spending, judge_standing, open_judge, plan_judge
from psychocounsel.judging.draws import draw_metrics, histograms
from psychocounsel.judging.judge import (
    addressing_judge,
    missing_by_topic,
    missing_share,
    require_judged,
)
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.pairs import (
    distinct_candidates,
    open_rule,
    pair_splits,
    pairing_settings,
    words_by_side,
)
from psychocounsel.reporting.audit_words import audit_lines
from psychocounsel.responders import NOT_IN_FILE, Respondents, plan_responder, respond
from psychocounsel.responses.pool import speeches_of
from psychocounsel.store.artifacts import Artifact, Draft, Parent, Plan
from psychocounsel.store.retrying import asked_again, note_failed
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import (
    read_candidates,
    read_speeches,
    write_candidates,
    write_judgements,
    write_pairs,
)

VERSION = 2
STAGE = "build-preferences"


class PreferencePlans(NamedTuple):
    """What the stage makes, in order."""

    corpus: CorpusPlans
    asked: Plan | None
    judgements: Plan
    preferences: Plan
    audit: Plan


def plan(config: BuildPreferencesConfig, store: Store) -> PreferencePlans:
    """Return what a config means, without making it.

    Raises:
        ConfigError: nobody answers the speeches, restricted text would reach a remote judge or responder, or
            one is remote and the run offline.
    """
    _keep_restricted_text_here(config)
    corpus = plan_corpus(config.corpus, store)
    asked = _plan_asked(config, corpus, store)
    if corpus.candidates is None and asked is None:
        raise ConfigError(
            "nobody answers the speeches",
            where="corpus.candidates, pool",
            remedy="give ready responses or a pool",
        )
    judgements = _plan_judgements(config, corpus, asked, store)
    pairs = Plan(
        "preferences",
        config.name,
        STAGE,
        VERSION,
        {"pairing": pairing_settings(config, store)},
        (judgements.as_parent("judgements"), *judgements.parents),
    )
    return PreferencePlans(corpus, asked, judgements, pairs, plan_audit(config, judgements))


def _plan_asked(config: BuildPreferencesConfig, corpus: CorpusPlans, store: Store) -> Plan | None:
    if config.pool is None:
        return None
    planned = [plan_responder(each, store, f"responder {each.author}") for each in config.pool.responders]
    settings = {
        "responders": [each.settings for each in planned],
        "per_speech": config.pool.per_speech,
        "draw_seed": config.pool.seed,
        "seed": config.seed,
    }
    models = tuple(parent for each in planned for parent in each.parents)
    parents = (corpus.speeches.as_parent("speeches"), *models)
    asked = Plan("candidates", f"{config.name}-pool", STAGE, VERSION, settings, parents)
    return asked_again(asked, store) if config.retry_failed else asked


def _plan_judgements(
    config: BuildPreferencesConfig, corpus: CorpusPlans, asked: Plan | None, store: Store
) -> Plan:
    parents = [corpus.speeches.as_parent("speeches")]
    if corpus.candidates is not None:
        parents.append(corpus.candidates.as_parent("ready candidates"))
    if asked is not None:
        parents.append(asked.as_parent("asked candidates"))
    judge = plan_judge(config.judge, store)
    judged = Plan(
        "judgements", config.name, STAGE, VERSION, {"judge": judge.settings}, tuple(parents), judge.notices
    )
    return asked_again(judged, store) if config.retry_failed else judged


def build_preferences(config: BuildPreferencesConfig, store: Store) -> Artifact:
    """Build the preference dataset of a config, or return it if it exists.

    The audit of its judge comes last: an error there leaves the dataset as it stands.

    Raises:
        ConfigError: restricted text would reach a remote judge or responder, or one cannot be asked.
        EndpointError: an endpoint refuses.
        IncompleteError: an endpoint does not answer; what was answered is kept.
        DataQualityError: too many answers or judgements failed, or no pair is left in a split.
        Preempted: a signal asked to stop; what was answered is kept.
    """
    plans = plan(config, store)
    _require_usable(config, plans, store)
    if store.find(plans.judgements) is None:
        open_rule(config, store)  # a tokenizer that cannot be loaded is told before anything is paid
    with stop_requests() as stop:
        open_corpus(config.corpus, store, stop, progress)
        go_on(stop, plans.judgements.ref)
        if plans.asked is not None and config.pool is not None:
            pool = config.pool
            store.make(plans.asked, lambda draft: _ask(pool, config.seed, store, draft, stop))
            go_on(stop, plans.asked.ref)
        store.make(plans.judgements, lambda draft: _judge(config, store, draft, stop))
        pairs = store.make(plans.preferences, lambda draft: _pair(config, store, draft))
        _audit(config, plans, store, stop)
    return pairs


def _audit(
    config: BuildPreferencesConfig, plans: PreferencePlans, store: Store, stop: Callable[[], bool]
) -> None:
    """Tell what the judge is worth; the dataset stands already, whatever becomes of the audit."""
    try:
        audit = store.make(plans.audit, lambda draft: audit_judge(config, store, draft, stop))
    except PsychoCounselError:
        console.note(
            f"preferences {plans.preferences.ref} stands; the audit of its judge is owed, and with retest, "
            "one_principle and canaries of audit at 0 nothing is asked for it"
        )
        raise
    if audit.is_new:
        console.note(f"what the judge is worth ({audit.kind}/{audit.ref}):")
        for line in audit_lines(audit.metrics):
            console.note(f"  {line}")


def _require_usable(config: BuildPreferencesConfig, plans: PreferencePlans, store: Store) -> None:
    """Check the endpoints of whatever is still to be made, before the first of them is paid."""
    endpoints: dict[str, EndpointConfig | None] = {}
    if config.corpus.topics is not None and store.find(plans.corpus.speeches) is None:
        endpoints["corpus.topics"] = config.corpus.topics.endpoint
    if config.pool is not None and plans.asked is not None and store.find(plans.asked) is None:
        endpoints |= {f"responder {each.author}": each.endpoint for each in config.pool.responders}
    is_judged = store.find(plans.judgements) is not None
    if not is_judged:
        endpoints |= config.judge.named_endpoints
    require_usable(endpoints, store)
    if plans.asked is not None and store.find(plans.asked) is None and not is_judged:
        require_listed(config.judge.endpoints, store)


def _keep_restricted_text_here(config: BuildPreferencesConfig) -> None:
    responders = config.pool.responders if config.pool else ()
    endpoints = [*config.judge.endpoints, *(each.endpoint for each in responders)]
    keep_restricted_text_here(
        endpoints, {source.path: source.data_class for source in config.corpus.speeches}
    )


def costs(config: BuildPreferencesConfig, store: Store) -> list[PaidCalls]:
    """Return the paid calls that are still owed; nothing is asked and nothing written."""
    plans = plan(config, store)
    if store.find(plans.judgements) is None:
        return preference_costs(config, plans.corpus, plans.asked, store)
    return [] if store.find(plans.audit) else audit_costs(config, plans.judgements, store)


def _ask(pool: PoolConfig, seed: int, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    speeches = [each.speech for each in read_speeches(store.open(draft.parent("speeches")))]
    candidates: dict[tuple[str, str], Candidate] = {}
    failed: dict[str, dict[str, int]] = {}
    spend: dict[str, Any] = {}
    repeated = 0
    for responder in pool.responders:
        asked = Respondents(speeches_of(responder, speeches, pool), seed)
        responded = respond(responder, asked, store, stop)
        failed[responder.author] = responded.failed
        if responded.spend:
            spend[responder.author] = responded.spend["spend"]
        for candidate in responded.candidates:
            repeated += (candidate.speech_id, candidate.text) in candidates
            candidates.setdefault((candidate.speech_id, candidate.text), candidate)
    order = {speech.id: at for at, speech in enumerate(speeches)}
    write_candidates(
        draft, sorted(candidates.values(), key=lambda each: (order[each.speech_id], each.author))
    )
    counts = {"kept": len(candidates), "repeated_text": repeated, "failed": failed}
    draft.write_metrics({**counts, "spend": spend} if spend else counts)
    statuses = [(why, count) for by_status in failed.values() for why, count in by_status.items()]
    note_failed(draft, sum(count for why, count in statuses if why != NOT_IN_FILE))


def _judge(config: BuildPreferencesConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(draft.parent("speeches")))}
    candidates = distinct_candidates(store, draft.plan.parents)
    items = [(speeches[each.speech_id], each) for each in candidates if each.text]
    with open_judge(config.judge, store, stop, may_wait=True) as judge:
        with progress("judging responses", len(items), lambda: judge_standing(judge)) as advance:
            judgements = judge.rate(items, advance)
        draft.notes["judge"] = judge.name
        principles, spend = judge.principles, judge_spending(judge)
    by_topic = missing_by_topic([speech for speech, _ in items], judgements)
    require_judged(judgements, "judgements", config.judge.max_missing_share)
    note_failed(draft, missing_share(judgements).missing)
    write_judgements(draft, judgements, principles)
    draft.write_metrics(
        {
            "left_out": _left_out(store, draft.plan.parents, candidates),
            "judged": len(judgements),
            "status": dict(sorted(Counter(each.status.value for each in judgements).items())),
            "addresses_judge": addressing_judge(judgements),
            "missing_by_topic": {topic: share._asdict() for topic, share in by_topic.items()},
            "histograms": histograms(judgements, principles),
            **draw_metrics(judgements, principles),
            **spend,
        }
    )


def _left_out(store: Store, parents: Sequence[Parent], distinct: Sequence[Candidate]) -> dict[str, int]:
    """Count the candidates that are not judged; with `judged` they add up to all of the parents'."""
    rows = sum(len(read_candidates(store.open(parent))) for parent in parents if parent.kind == "candidates")
    empty = sum(not each.text for each in distinct)
    return {"repeated_text": rows - len(distinct), "empty": empty}


def _pair(config: BuildPreferencesConfig, store: Store, draft: Draft) -> None:
    rubric = load_rubric(config.judge.rubric)
    pairings = pair_splits(config, open_rule(config, store), store, draft.plan.parents)
    for split, pairing in pairings.items():
        if pairing.pairs:
            write_pairs(draft, split, pairing.pairs, rubric.principle_ids)
    draft.notes["scale"] = [rubric.minimum, rubric.maximum]
    metrics = {split: pairing.as_dict() for split, pairing in pairings.items()}
    draft.write_metrics({"pairing": metrics, "words": words_by_side(pairings)})
    pairs = {split: pairing.pairs for split, pairing in pairings.items()}
    write_dataset_card(draft, gather_dataset_facts(store, draft, pairs, rubric))
