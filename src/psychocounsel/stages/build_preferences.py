"""Speeches -> candidates -> judgements -> pairs: the preference dataset.

Judging and pairing are artifacts of their own: another pairing rule reads the same judgements.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.models import PoolConfig
from psychocounsel.config.stages import BuildPreferencesConfig
from psychocounsel.connect import (
    Respondents,
    keep_restricted_text_here,
    open_judge,
    plan_judge,
    plan_responder,
    require_usable,
    respond,
)
from psychocounsel.console import progress
from psychocounsel.costs import PaidCalls, preference_costs
from psychocounsel.domain import Candidate, Judgement, ReplyStatus, ScoredCandidate
from psychocounsel.errors import ConfigError, DataQualityError
from psychocounsel.interrupts import go_on, stop_requests
from psychocounsel.judging.judge import missing_by_topic, missing_share
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.pairing import Pairing, ScoredSpeech, pair_by_gap, pair_extremes
from psychocounsel.reporting.cards import DatasetFacts, dataset_card
from psychocounsel.responses.pool import speeches_of
from psychocounsel.speeches.corpus import CorpusPlans, open_corpus, plan_corpus
from psychocounsel.store.artifacts import Artifact, Draft, Parent, Plan
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import (
    read_candidates,
    read_judgements,
    read_speeches,
    write_candidates,
    write_judgements,
    write_pairs,
)

VERSION = 1
STAGE = "build-preferences"


class PreferencePlans(NamedTuple):
    """What the stage makes, in order."""

    corpus: CorpusPlans
    asked: Plan | None
    judgements: Plan
    preferences: Plan


def plan(config: BuildPreferencesConfig, store: Store) -> PreferencePlans:
    """Return what a config means, without making it.

    Raises:
        ConfigError: nobody answers the speeches, restricted text would reach a remote judge or responder, or
            one is remote and the run offline.
    """
    _keep_restricted_text_here(config)
    corpus = plan_corpus(config.corpus)
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
        {"pairing": config.pairing.identity()},
        (judgements.as_parent("judgements"), *judgements.parents),
    )
    return PreferencePlans(corpus, asked, judgements, pairs)


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
    return Plan("candidates", f"{config.name}-pool", STAGE, VERSION, settings, parents)


def _plan_judgements(
    config: BuildPreferencesConfig, corpus: CorpusPlans, asked: Plan | None, store: Store
) -> Plan:
    parents = [corpus.speeches.as_parent("speeches")]
    if corpus.candidates is not None:
        parents.append(corpus.candidates.as_parent("ready candidates"))
    if asked is not None:
        parents.append(asked.as_parent("asked candidates"))
    judge = plan_judge(config.judge, store)
    return Plan(
        "judgements", config.name, STAGE, VERSION, {"judge": judge.settings}, tuple(parents), judge.notices
    )


def build_preferences(config: BuildPreferencesConfig, store: Store) -> Artifact:
    """Build the preference dataset of a config, or return it if it exists.

    Raises:
        ConfigError: restricted text would reach a remote judge or responder.
        DataQualityError: too many judgements failed, or no pair is left in a split.
        Preempted: a signal asked to stop; what was answered is kept.
    """
    plans = plan(config, store)
    if store.find(plans.judgements) is None:
        require_usable(config.judge.endpoint, store)
    with stop_requests() as stop:
        open_corpus(config.corpus, store)
        go_on(stop, plans.judgements.ref)
        if plans.asked is not None and config.pool is not None:
            pool = config.pool
            store.make(plans.asked, lambda draft: _ask(pool, config.seed, store, draft, stop))
            go_on(stop, plans.asked.ref)
        store.make(plans.judgements, lambda draft: _judge(config, store, draft, stop))
    return store.make(plans.preferences, lambda draft: _pair(config, store, draft))


def _keep_restricted_text_here(config: BuildPreferencesConfig) -> None:
    responders = config.pool.responders if config.pool else ()
    endpoints = [config.judge.endpoint, *(each.endpoint for each in responders)]
    keep_restricted_text_here(
        endpoints, {source.path: source.data_class for source in config.corpus.speeches}
    )


def costs(config: BuildPreferencesConfig, store: Store) -> list[PaidCalls]:
    """Return the paid calls that are still owed; nothing is asked and nothing written."""
    plans = plan(config, store)
    return [] if store.find(plans.judgements) else preference_costs(config, plans.corpus, plans.asked, store)


def _ask(pool: PoolConfig, seed: int, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    speeches = [each.speech for each in read_speeches(store.open(draft.parent("speeches")))]
    candidates: dict[tuple[str, str], Candidate] = {}
    failed: dict[str, dict[str, int]] = {}
    repeated = 0
    for responder in pool.responders:
        asked = Respondents(speeches_of(responder, speeches, pool), seed)
        responded = respond(responder, asked, store, stop)
        failed[responder.author] = responded.failed
        for candidate in responded.candidates:
            repeated += (candidate.speech_id, candidate.text) in candidates
            candidates.setdefault((candidate.speech_id, candidate.text), candidate)
    order = {speech.id: at for at, speech in enumerate(speeches)}
    write_candidates(
        draft, sorted(candidates.values(), key=lambda each: (order[each.speech_id], each.author))
    )
    draft.write_metrics({"kept": len(candidates), "repeated_text": repeated, "failed": failed})


def _judge(config: BuildPreferencesConfig, store: Store, draft: Draft, stop: Callable[[], bool]) -> None:
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(draft.parent("speeches")))}
    candidates = _candidates(store, draft.plan.parents)
    items = [(speeches[each.speech_id], each) for each in candidates if each.text]
    with open_judge(config.judge, store, stop) as judge:
        with progress("judging responses", len(items)) as advance:
            judgements = judge.rate(items, advance)
        draft.notes["judge"] = judge.name
        principles = judge.principles
    by_topic = missing_by_topic([speech for speech, _ in items], judgements)
    _require_few_missing(judgements, config)
    write_judgements(draft, judgements, principles)
    draft.write_metrics(
        {
            "left_out": _left_out(store, draft.plan.parents, candidates),
            "judged": len(judgements),
            "status": dict(sorted(Counter(each.status.value for each in judgements).items())),
            "missing_by_topic": {topic: share._asdict() for topic, share in by_topic.items()},
            "histograms": _histograms(judgements, principles),
        }
    )


def _left_out(store: Store, parents: Sequence[Parent], distinct: Sequence[Candidate]) -> dict[str, int]:
    """Count the candidates that are not judged; with `judged` they add up to all of the parents'."""
    rows = sum(len(read_candidates(store.open(parent))) for parent in parents if parent.kind == "candidates")
    empty = sum(not each.text for each in distinct)
    return {"repeated_text": rows - len(distinct), "empty": empty}


def _histograms(judgements: Sequence[Judgement], principles: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = {name: Counter(each.ratings[name] for each in judgements if each.ratings) for name in principles}
    return {name: {str(rating): count for rating, count in sorted(by.items())} for name, by in counts.items()}


def _require_few_missing(judgements: Sequence[Judgement], config: BuildPreferencesConfig) -> None:
    missing = missing_share(judgements)
    if missing.share > config.judge.max_missing_share:
        reasons = Counter(each.status.value for each in judgements if each.status is not ReplyStatus.VALID)
        raise DataQualityError(
            f"{missing.missing} of {missing.total} judgements failed ({dict(reasons)})",
            where="judge.max_missing_share",
            remedy="run the same command to ask those again, or look at the replies in the journal",
        )


def _pair(config: BuildPreferencesConfig, store: Store, draft: Draft) -> None:
    rubric = load_rubric(config.judge.rubric)
    splits = _scored_by_split(store, draft.plan.parents)
    train = pair_by_gap(splits["train"], config.pairing, len(rubric.principle_ids))
    dev = pair_by_gap(splits["dev"], config.pairing, len(rubric.principle_ids))
    test = pair_extremes(splits["test"], config.pairing.drop_safety_inverted)
    pairings = {"train": train, "dev": dev, "test": test}
    _require_pairs(pairings, config)
    for split, pairing in pairings.items():
        if pairing.pairs:
            write_pairs(draft, split, pairing.pairs, rubric.principle_ids)
    metrics = {split: pairing.as_dict() for split, pairing in pairings.items()}
    draft.write_metrics({"pairing": metrics, "words": _words(pairings)})
    licences = sorted({source.licence for source in config.corpus.speeches})
    rows = {split: len(pairing.pairs) for split, pairing in pairings.items() if pairing.pairs}
    card = dataset_card(
        DatasetFacts(config.name, licences, rows, tuple(rubric.principle_ids), _notices(store, draft))
    )
    draft.file("README.md").write_text(card, encoding="utf-8")


def _notices(store: Store, draft: Draft) -> tuple[str, ...]:
    inherited = [notice for parent in draft.plan.parents for notice in store.open(parent).notices]
    return tuple(dict.fromkeys(inherited))


def _require_pairs(pairings: Mapping[str, Pairing], config: BuildPreferencesConfig) -> None:
    wanted = ["train", "test"] if config.corpus.split.test_share else ["train"]
    for split in wanted:
        if not pairings[split].pairs:
            raise DataQualityError(
                f"no pair is left in {split}: {dict(pairings[split].dropped)}",
                where="pairing",
                remedy="add responses of different quality, or lower pairing.min_gap",
            )


def _scored_by_split(store: Store, parents: Sequence[Parent]) -> dict[str, list[ScoredSpeech]]:
    by_role = {parent.role: parent for parent in parents}
    judgements = {each.candidate_id: each for each in read_judgements(store.open(by_role["judgements"]))}
    scored: dict[str, list[ScoredCandidate]] = {}
    for candidate in _candidates(store, parents):
        judgement = judgements.get(candidate.id)
        if judgement is not None and judgement.status is ReplyStatus.VALID:
            scored.setdefault(candidate.speech_id, []).append(
                ScoredCandidate(candidate, judgement.total, judgement.ratings)
            )
    splits: dict[str, list[ScoredSpeech]] = {"train": [], "dev": [], "test": []}
    for each in read_speeches(store.open(by_role["speeches"])):
        splits[each.split].append((each.speech, scored.get(each.speech.id, [])))
    return splits


def _candidates(store: Store, parents: Sequence[Parent]) -> list[Candidate]:
    """Return all candidates of the parents; a text that two of them give to one speech counts once."""
    distinct: dict[tuple[str, str], Candidate] = {}
    for parent in parents:
        if parent.kind == "candidates":
            for candidate in read_candidates(store.open(parent)):
                distinct.setdefault((candidate.speech_id, candidate.text), candidate)
    return list(distinct.values())


def _words(pairings: Mapping[str, Pairing]) -> dict[str, Any]:
    """Return the mean number of words of each side, by split."""
    means: dict[str, Any] = {}
    for split, pairing in pairings.items():
        if pairing.pairs:
            chosen = [len(pair.chosen.candidate.text.split()) for pair in pairing.pairs]
            rejected = [len(pair.rejected.candidate.text.split()) for pair in pairing.pairs]
            means[split] = {"chosen": sum(chosen) / len(chosen), "rejected": sum(rejected) / len(rejected)}
    return means
