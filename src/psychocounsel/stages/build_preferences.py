"""Speeches -> candidates -> judgements -> pairs: the preference dataset.

Judging and pairing are artifacts of their own: another pairing rule reads the same judgements.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig, PoolConfig
from psychocounsel.config.schema import BuildPreferencesConfig, PairLengthConfig
from psychocounsel.corpus.build import CorpusPlans, open_corpus, plan_corpus
from psychocounsel.errors import ConfigError, DataQualityError, PsychoCounselError, counted
from psychocounsel.evaluation.text_quality import word_count
from psychocounsel.judging.audit import histograms, sample_metrics
from psychocounsel.judging.judge import addressing_judge, missing_by_topic, missing_share, require_judged
from psychocounsel.judging.judges import judge_fingerprint, judge_spending, judge_standing, open_judge
from psychocounsel.judging.pairing import (
    Pairing,
    PairingRule,
    ScoredSpeech,
    Unfit,
    assign_dev,
    pair_by_gap,
    pair_extremes,
    resolve_rule,
)
from psychocounsel.judging.rubric import load_rubric
from psychocounsel.llm.cancel import CancelToken, cancelled_by_signals
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_listed, require_usable
from psychocounsel.reporting import console
from psychocounsel.reporting.cards import gather_dataset_facts, write_dataset_card
from psychocounsel.reporting.console import progress
from psychocounsel.reporting.tables import audit_lines
from psychocounsel.stages.audit import audit_judge, plan_audit
from psychocounsel.stages.dry_run import PaidCalls, audit_costs, preference_costs
from psychocounsel.stages.respond import NOT_IN_FILE, ResponseRequest, plan_responder, respond, speeches_of
from psychocounsel.store.artifacts import MANIFEST, Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.files import digest_of_files
from psychocounsel.store.references import POLICY_KINDS, ModelReference, resolve_model
from psychocounsel.store.schemas import (
    read_candidates,
    read_judgements,
    read_speeches,
    write_candidates,
    write_judgements,
    write_pairs,
)
from psychocounsel.store.store import Store, note_failed, retry_spec
from psychocounsel.types import Candidate, Policy, ReplyStatus, ScoredCandidate, Speech

SPLITS = ("train", "dev", "test")

_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")


def pairing_settings(config: BuildPreferencesConfig, store: Store) -> dict[str, Any]:
    """Return what decides the pairs of given judgements, the rubric's terms and the tokenizer included.

    Raises:
        ConfigError: a weight or veto does not fit the rubric, or nothing answers to the tokenizer's name.
    """
    pairing = config.pairing
    terms = resolve_rule(pairing, load_rubric(config.judge.rubric)).fingerprint()
    seed = None if pairing.dev_share is None else config.seed
    limit = pairing.length and length_identity(pairing.length, store)
    return {**pairing.fingerprint(), **terms, "dev_seed": seed, "length": limit}


def length_identity(length: PairLengthConfig, store: Store) -> dict[str, Any]:
    """Return what decides which pairs fit.

    A tokenizer's artifact is known by its id: it is no parent, for none of its weights enter the pairs.

    Raises:
        ConfigError: nothing answers to the tokenizer's name.
    """
    found = _tokenizer(length, store)
    known_by = found.fingerprint if found.parent is None else {"artifact": found.parent.id}
    return {**length.fingerprint(), "tokenizer": known_by}


def _tokenizer(length: PairLengthConfig, store: Store) -> ModelReference:
    folder = Path(length.tokenizer)
    if (folder / "tokenizer_config.json").is_file() and not (folder / MANIFEST).is_file():
        names = [path.name for path in folder.iterdir() if path.suffix in _TOKENIZER_SUFFIXES]
        return ModelReference(None, {"files": digest_of_files(folder, names)}, Policy(str(folder)))
    return resolve_model(store, length.tokenizer, POLICY_KINDS)


def open_rule(config: BuildPreferencesConfig, store: Store) -> PairingRule:
    """Return the rule of a config, its tokenizer loaded if it names one.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    rubric = load_rubric(config.judge.rubric)
    length = config.pairing.length
    if length is None:
        return resolve_rule(config.pairing, rubric)
    return resolve_rule(config.pairing, rubric, token_limit(length, store))


def token_limit(length: PairLengthConfig, store: Store) -> Unfit:
    """Return the check of a response with its prompt against `max_length_tokens`.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    # transformers: only where pairs are measured in tokens
    from psychocounsel.training.runtime import quiet_libraries
    from psychocounsel.training.tokenize import TemplateError, encode_exchange, load_tokenizer

    tokenizer = load_tokenizer(_tokenizer(length, store).policy(store))

    @cache
    def unfit(speech: Speech, candidate: Candidate) -> str | None:
        try:
            with quiet_libraries():  # a text beyond the model's positions is our business: it is dropped
                ids = encode_exchange(tokenizer, speech.text, candidate.text, length.chat)
        except TemplateError:
            return "not_a_prefix"
        tokens = len(ids.prompt_ids) + len(ids.response_ids)
        return "too_long" if tokens > length.max_length_tokens else None

    return unfit


def pair_splits(
    config: BuildPreferencesConfig, rule: PairingRule, store: Store, parents: Sequence[Parent]
) -> dict[str, Pairing]:
    """Return the pairs of every split: each speech gives its pairs to the one it stands in.

    Args:
        config: says how test is paired and whether dev is divided anew.
        rule: who may be preferred to whom.
        store: where the parents lie.
        parents: speeches, candidates and judgements.

    Raises:
        DataQualityError: no pair is left in a split that is asked for.
    """
    scored = _scored_by_split(config, store, parents)
    pair_test = pair_extremes if config.pairing.test_rule == "extremes" else pair_by_gap
    pairings = {
        "train": pair_by_gap(scored["train"], rule),
        "dev": pair_by_gap(scored["dev"], rule),
        "test": pair_test(scored["test"], rule),
    }
    _require_pairs(pairings, config)
    return pairings


def _scored_by_split(
    config: BuildPreferencesConfig, store: Store, parents: Sequence[Parent]
) -> dict[str, list[ScoredSpeech]]:
    by_role = {parent.role: parent for parent in parents}
    judgements = {each.candidate_id: each for each in read_judgements(store.open(by_role["judgements"]))}
    scored: dict[str, list[ScoredCandidate]] = {}
    for candidate in distinct_candidates(store, parents):
        judgement = judgements.get(candidate.id)
        if judgement is not None and judgement.status is ReplyStatus.VALID:
            side = ScoredCandidate(candidate, float(judgement.total), judgement.ratings)
            scored.setdefault(candidate.speech_id, []).append(side)
    rows = read_speeches(store.open(by_role["speeches"]))
    names = [row.split for row in rows]
    if config.pairing.dev_share is not None:
        names = assign_dev(names, [row.cluster for row in rows], config.pairing.dev_share, config.seed)
    splits: dict[str, list[ScoredSpeech]] = {name: [] for name in SPLITS}
    for name, row in zip(names, rows, strict=True):
        splits[name].append((row.speech, scored.get(row.speech.id, [])))
    return splits


def distinct_candidates(store: Store, parents: Sequence[Parent]) -> list[Candidate]:
    """Return all candidates of the parents; a text that two of them give to one speech counts once."""
    distinct: dict[tuple[str, str], Candidate] = {}
    for parent in parents:
        if parent.kind == "candidates":
            for candidate in read_candidates(store.open(parent)):
                distinct.setdefault((candidate.speech_id, candidate.text), candidate)
    return list(distinct.values())


def _require_pairs(pairings: Mapping[str, Pairing], config: BuildPreferencesConfig) -> None:
    asked = {"train": True, "dev": config.pairing.dev_share, "test": config.corpus.split.test_share}
    for split in SPLITS:
        if asked[split] and not pairings[split].pairs:
            raise DataQualityError(
                f"no pair is left in {split}: {counted(pairings[split].dropped)}",
                where="pairing",
                remedy=_remedy(pairings[split]),
            )


def _remedy(pairing: Pairing) -> str:
    """Name what the last checks were that a pair did not pass: it was nearest to being kept there."""
    remedies = {
        "too_long": "raise pairing.length.max_length_tokens, or add shorter responses",
        "not_a_prefix": "name another pairing.length.tokenizer: its chat template cannot be split",
        "vetoed": "lower pairing.vetoes, or add better responses",
    }
    for reason, remedy in remedies.items():
        if reason in pairing.dropped:
            return remedy
    usual = "add responses of different quality, or lower pairing.min_gap"
    return usual if pairing.dropped else "add speeches, or change pairing.dev_share"


def words_by_side(pairings: Mapping[str, Pairing]) -> dict[str, Any]:
    """Return the mean number of words of each side, by split that has pairs."""
    means: dict[str, Any] = {}
    for split, pairing in pairings.items():
        if pairing.pairs:
            chosen = [word_count(pair.chosen.candidate.text) for pair in pairing.pairs]
            rejected = [word_count(pair.rejected.candidate.text) for pair in pairing.pairs]
            means[split] = {"chosen": sum(chosen) / len(chosen), "rejected": sum(rejected) / len(rejected)}
    return means


VERSION = 2
STAGE = "build-preferences"


class PreferencePlans(NamedTuple):
    """What the stage makes, in order."""

    corpus: CorpusPlans
    asked: ArtifactSpec | None
    judgements: ArtifactSpec
    preferences: ArtifactSpec
    audit: ArtifactSpec


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
    pairs = ArtifactSpec(
        "preferences",
        config.name,
        STAGE,
        VERSION,
        {"pairing": pairing_settings(config, store)},
        (judgements.as_parent("judgements"), *judgements.parents),
    )
    return PreferencePlans(corpus, asked, judgements, pairs, plan_audit(config, judgements))


def _plan_asked(config: BuildPreferencesConfig, corpus: CorpusPlans, store: Store) -> ArtifactSpec | None:
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
    asked = ArtifactSpec("candidates", f"{config.name}-pool", STAGE, VERSION, settings, parents)
    return retry_spec(asked, store) if config.retry_failed else asked


def _plan_judgements(
    config: BuildPreferencesConfig, corpus: CorpusPlans, asked: ArtifactSpec | None, store: Store
) -> ArtifactSpec:
    parents = [corpus.speeches.as_parent("speeches")]
    if corpus.candidates is not None:
        parents.append(corpus.candidates.as_parent("ready candidates"))
    if asked is not None:
        parents.append(asked.as_parent("asked candidates"))
    judge = judge_fingerprint(config.judge, store)
    judged = ArtifactSpec(
        "judgements", config.name, STAGE, VERSION, {"judge": judge.settings}, tuple(parents), judge.notices
    )
    return retry_spec(judged, store) if config.retry_failed else judged


def build_preferences(config: BuildPreferencesConfig, store: Store) -> Artifact:
    """Build the preference dataset of a config, or return it if it exists.

    The audit of its judge comes last: an error there leaves the dataset as it stands.

    Raises:
        ConfigError: restricted text would reach a remote judge or responder, or one cannot be asked.
        EndpointError: an endpoint refuses.
        IncompleteError: an endpoint does not answer; what was answered is kept.
        DataQualityError: too many answers or judgements failed, or no pair is left in a split.
        RunCancelledError: SIGINT or SIGTERM came; what was answered is kept.
    """
    plans = plan(config, store)
    _require_usable(config, plans, store)
    if store.find(plans.judgements) is None:
        open_rule(config, store)  # a tokenizer that cannot be loaded is told before anything is paid
    with cancelled_by_signals() as cancel:
        open_corpus(config.corpus, store, cancel, progress)
        cancel.raise_if_cancelled(plans.judgements.ref)
        if plans.asked is not None and config.pool is not None:
            pool = config.pool
            store.make(plans.asked, lambda writer: _ask(pool, config.seed, store, writer, cancel))
            cancel.raise_if_cancelled(plans.asked.ref)
        store.make(plans.judgements, lambda writer: _judge(config, store, writer, cancel))
        pairs = store.make(plans.preferences, lambda writer: _pair(config, store, writer))
        _audit(config, plans, store, cancel)
    return pairs


def _audit(config: BuildPreferencesConfig, plans: PreferencePlans, store: Store, cancel: CancelToken) -> None:
    """Tell what the judge is worth; the dataset stands already, whatever becomes of the audit."""
    try:
        audit = store.make(plans.audit, lambda writer: audit_judge(config, store, writer, cancel))
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
    keep_restricted_text_here(endpoints, {source.path: source.data_class for source in config.corpus.speeches})


def costs(config: BuildPreferencesConfig, store: Store) -> list[PaidCalls]:
    """Return the paid calls that are still owed; nothing is asked and nothing written."""
    plans = plan(config, store)
    if store.find(plans.judgements) is None:
        return preference_costs(config, plans.corpus, plans.asked, store)
    return [] if store.find(plans.audit) else audit_costs(config, plans.judgements, store)


def _ask(pool: PoolConfig, seed: int, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    speeches = [each.speech for each in read_speeches(store.open(writer.parent("speeches")))]
    candidates: dict[tuple[str, str], Candidate] = {}
    failed: dict[str, dict[str, int]] = {}
    spend: dict[str, Any] = {}
    repeated = 0
    for responder in pool.responders:
        asked = ResponseRequest(speeches_of(responder, speeches, pool), seed)
        responded = respond(responder, asked, store, cancel)
        failed[responder.author] = responded.failed
        if responded.spend:
            spend[responder.author] = responded.spend["spend"]
        for candidate in responded.candidates:
            repeated += (candidate.speech_id, candidate.text) in candidates
            candidates.setdefault((candidate.speech_id, candidate.text), candidate)
    order = {speech.id: at for at, speech in enumerate(speeches)}
    write_candidates(writer, sorted(candidates.values(), key=lambda each: (order[each.speech_id], each.author)))
    counts = {"kept": len(candidates), "repeated_text": repeated, "failed": failed}
    writer.write_metrics({**counts, "spend": spend} if spend else counts)
    statuses = [(why, count) for by_status in failed.values() for why, count in by_status.items()]
    note_failed(writer, sum(count for why, count in statuses if why != NOT_IN_FILE))


def _judge(config: BuildPreferencesConfig, store: Store, writer: ArtifactWriter, cancel: CancelToken) -> None:
    speeches = {each.speech.id: each.speech for each in read_speeches(store.open(writer.parent("speeches")))}
    candidates = distinct_candidates(store, writer.spec.parents)
    items = [(speeches[each.speech_id], each) for each in candidates if each.text]
    with open_judge(
        config.judge, store, cancel, may_wait=True, max_missing_share=config.judge.max_missing_share
    ) as judge:
        with progress("judging responses", len(items), lambda: judge_standing(judge)) as advance:
            judgements = judge.rate(items, advance)
        writer.notes["judge"] = judge.name
        principles, spend = judge.principles, judge_spending(judge)
    by_topic = missing_by_topic([speech for speech, _ in items], judgements)
    require_judged(judgements, "judgements", config.judge.max_missing_share)
    note_failed(writer, missing_share(judgements).missing)
    write_judgements(writer, judgements, principles)
    writer.write_metrics(
        {
            "left_out": _left_out(store, writer.spec.parents, candidates),
            "judged": len(judgements),
            "status": dict(sorted(Counter(each.status.value for each in judgements).items())),
            "addresses_judge": addressing_judge(judgements),
            "missing_by_topic": {topic: share._asdict() for topic, share in by_topic.items()},
            "histograms": histograms(judgements, principles),
            **sample_metrics(judgements, principles),
            **spend,
        }
    )


def _left_out(store: Store, parents: Sequence[Parent], distinct: Sequence[Candidate]) -> dict[str, int]:
    """Count the candidates that are not judged; with `judged` they add up to all of the parents'."""
    rows = sum(len(read_candidates(store.open(parent))) for parent in parents if parent.kind == "candidates")
    empty = sum(not each.text for each in distinct)
    return {"repeated_text": rows - len(distinct), "empty": empty}


def _pair(config: BuildPreferencesConfig, store: Store, writer: ArtifactWriter) -> None:
    rubric = load_rubric(config.judge.rubric)
    pairings = pair_splits(config, open_rule(config, store), store, writer.spec.parents)
    for split, pairing in pairings.items():
        if pairing.pairs:
            write_pairs(writer, split, pairing.pairs, rubric.principle_ids)
    writer.notes["scale"] = [rubric.minimum, rubric.maximum]
    metrics = {split: pairing.as_dict() for split, pairing in pairings.items()}
    writer.write_metrics({"pairing": metrics, "words": words_by_side(pairings)})
    pairs = {split: pairing.pairs for split, pairing in pairings.items()}
    write_dataset_card(writer, gather_dataset_facts(store, writer, pairs, rubric))
