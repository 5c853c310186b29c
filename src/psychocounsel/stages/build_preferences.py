"""build-preferences: client speeches and responses become judgements, and judgements become preference pairs.

Judgements and pairs are artifacts of their own, so that another pairing rule reads the same judgements.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from psychocounsel.config.components import EndpointConfig
from psychocounsel.config.schema import BuildPreferencesConfig, PairLengthConfig
from psychocounsel.corpus.build import corpus_specs, make_corpus
from psychocounsel.corpus.text import is_foreign
from psychocounsel.corpus.topics import open_topics
from psychocounsel.errors import ConfigError, DataQualityError, PsychoCounselError, counted
from psychocounsel.evaluation.judge_audit import histograms, sample_metrics
from psychocounsel.evaluation.text_quality import junk_by_author, word_count
from psychocounsel.judging.judge import Judge, addressing_judge, count_failed, missing_by_topic, require_judged
from psychocounsel.judging.judges import judge_spending, judge_status, open_judge
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
from psychocounsel.judging.table import TableJudge
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_usable
from psychocounsel.llm.session import PendingCalls, Session, open_session
from psychocounsel.reporting import console
from psychocounsel.reporting.artifact_tables import summary
from psychocounsel.reporting.cards import write_dataset_card
from psychocounsel.reporting.console import progress
from psychocounsel.stages.audit import audit_judge, audit_spec
from psychocounsel.stages.estimate import count_corpus
from psychocounsel.stages.rating_table import open_rating_table
from psychocounsel.stages.respond import NOT_IN_FILE, Responder, choose_responders, file_classes, ids_by_key
from psychocounsel.store.artifacts import MANIFEST, Artifact, ArtifactSpec, ArtifactWriter, Parent
from psychocounsel.store.files import digest_of_files
from psychocounsel.store.references import POLICY_KINDS, ModelReference, resolve_model
from psychocounsel.store.schemas import (
    SplitSpeech,
    read_candidates,
    read_judgements,
    read_speeches,
    speeches_by_id,
    write_candidates,
    write_judgements,
    write_pairs,
)
from psychocounsel.store.store import Store, note_failed, retry_spec
from psychocounsel.types import SPLITS, Candidate, Policy, ReplyStatus, ScoredCandidate, Speech

VERSION = 6
STAGE = "build-preferences"

_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")


class PreferenceSpecs(NamedTuple):
    """What the stage makes, in order; without ready responses or without a pool, their specs are None."""

    speeches: ArtifactSpec
    ready: ArtifactSpec | None
    pool: ArtifactSpec | None
    judgements: ArtifactSpec
    preferences: ArtifactSpec
    audit: ArtifactSpec


def specs(config: BuildPreferencesConfig, store: Store) -> PreferenceSpecs:
    """Return what a config makes.

    Raises:
        ConfigError: nothing answers the speeches, restricted text would reach a remote judge or responder, or one is
            remote and the run offline.
    """
    return _Build(config, Session(store)).specs


def build_preferences(
    config: BuildPreferencesConfig, store: Store, calls: list[PendingCalls] | None = None
) -> Artifact:
    """Build the preference dataset of a config, or return it if it exists.

    The audit of its judge comes last: an error there leaves the dataset as it is. In a dry run, `store` is an overlay
    and `calls` receives the calls that a run would make; no pairs are made.

    Raises:
        ConfigError: restricted text would reach a remote judge or responder, or an endpoint cannot be used.
        EndpointError: an endpoint refuses.
        IncompleteError: an endpoint does not answer; completed requests are in the journal.
        DataQualityError: too many answers or judgements failed, or no pair is left in a split.
        Preempted: SIGINT or SIGTERM came; completed requests are in the journal.
    """
    with open_session(store, calls) as session:
        return _Build(config, session).run()


class _Build:
    """One run of the stage. Its judge, responders and topic assigner connect when they are first asked."""

    def __init__(self, config: BuildPreferencesConfig, session: Session) -> None:
        self.config, self.session, self.store = config, session, session.store
        responders = config.pool.responders if config.pool else ()
        keep_restricted_text_here(
            [*config.judge.endpoints, *(each.endpoint for each in responders)],
            config.corpus.data_classes | file_classes(responders),
        )
        self.rubric = load_rubric(config.judge.rubric)
        self.topics = open_topics(config.corpus.topics, session)
        self.responders = [Responder(each, session, f"responder {each.author}") for each in responders]
        share = config.judge.max_missing_share
        self.judge: Judge
        self.auditor: Judge
        if config.judge.table is not None:
            self.judge = self.auditor = open_rating_table(config.judge.table, self.rubric, self._responses)
        else:
            self.judge = open_judge(config.judge, session, "rating responses", may_wait=True, max_missing_share=share)
            self.auditor = open_judge(config.judge, session, "auditing the judge")
        self.specs = self._specs()

    def _specs(self) -> PreferenceSpecs:
        config, store = self.config, self.store
        corpus = corpus_specs(config.corpus, self.topics)
        if corpus.candidates is None and config.pool is None:
            raise ConfigError(
                "nothing answers the speeches", where="corpus.candidates, pool", remedy="give ready responses or a pool"
            )

        speeches = corpus.speeches.as_parent("speeches")
        parents = [speeches]
        if corpus.candidates is not None:
            parents.append(corpus.candidates.as_parent("ready candidates"))
        pool = None
        if config.pool is not None:
            settings = {
                "responders": [each.fingerprint for each in self.responders],
                "per_speech": config.pool.per_speech,
                "draw_seed": config.pool.seed,
                "seed": config.seed,
            }
            models = [parent for each in self.responders for parent in each.parents]
            pool = ArtifactSpec("candidates", f"{config.name}-pool", STAGE, VERSION, settings, (speeches, *models))
            pool = retry_spec(pool, store, again=config.retry_failed)
            parents.append(pool.as_parent("asked candidates"))
        judge = self.judge
        judgements = ArtifactSpec(
            "judgements", config.name, STAGE, VERSION, {"judge": judge.fingerprint}, tuple(parents), judge.warnings
        )
        judgements = retry_spec(judgements, store, again=config.retry_failed)
        pairing = {"pairing": pairing_settings(config, store)}
        judged = (judgements.as_parent("judgements"), *judgements.parents)
        preferences = ArtifactSpec("preferences", config.name, STAGE, VERSION, pairing, judged)
        audit = audit_spec(config, judgements)
        return PreferenceSpecs(corpus.speeches, corpus.candidates, pool, judgements, preferences, audit)

    def _responses(self) -> tuple[Artifact, list[Artifact]]:
        parents = self.specs.judgements.parents
        speeches = next(parent for parent in parents if parent.kind == "speeches")
        return self.store.open(speeches), [self.store.open(each) for each in parents if each.kind == "candidates"]

    def run(self) -> Artifact:
        config, session, store, specs = self.config, self.session, self.store, self.specs
        if session.is_dry_run:
            count_corpus(config.corpus, session, self.topics)
        else:
            self._require_usable()
            make_corpus(config.corpus, store, self.topics, progress)
        session.cancel.raise_if_cancelled(specs.judgements.ref)
        if specs.pool is not None:
            store.make(specs.pool, self._answer)
            session.cancel.raise_if_cancelled(specs.pool.ref)
        if session.is_dry_run and not config.judge.endpoints:
            session.stop_counting()
        judgements = store.make(specs.judgements, self._judge)
        # Placeholders for ratings make no pairs.
        pairs = judgements if session.is_dry_run else store.make(specs.preferences, self._pair)
        try:
            audit = store.make(specs.audit, lambda writer: audit_judge(config, store, writer, self.auditor))
        except PsychoCounselError:
            console.note(
                f"preferences {specs.preferences.ref} is complete; the audit of its judge is pending "
                "(with retest, one_principle and canaries of audit at 0, it sends no requests)"
            )
            raise
        if audit.is_new and not session.is_dry_run:
            console.note(f"judge audit ({audit.kind}/{audit.ref}):\n{summary(audit)}")
        return pairs

    def _require_usable(self) -> None:
        """Check what is still needed before anything is paid: endpoints, the judge's model, the tokenizer."""
        config, store, specs = self.config, self.store, self.specs
        endpoints: dict[str, EndpointConfig | None] = {}
        if config.corpus.topics is not None and store.find(specs.speeches) is None:
            endpoints["corpus.topics"] = config.corpus.topics.endpoint
        if specs.pool is not None and store.find(specs.pool) is None:
            endpoints |= {f"responder {each.config.author}": each.config.endpoint for each in self.responders}
        is_judged = store.find(specs.judgements) is not None
        require_usable(endpoints, store, None if is_judged else config.judge.named_endpoints)
        if not is_judged:
            open_rule(config, store)

    def _answer(self, writer: ArtifactWriter) -> None:
        """Have the pool answer every speech."""
        pool = self.config.pool
        assert pool is not None  # noqa: S101
        corpus = self.store.open(writer.parent("speeches"))
        speeches = [each.speech for each in read_speeches(corpus)]
        chosen = [choose_responders(speech, pool) for speech in speeches]
        candidates: dict[tuple[str, str], Candidate] = {}
        failed: dict[str, dict[str, int]] = {}
        spend: dict[str, Any] = {}
        repeated = 0
        for responder in self.responders:
            own = [speech for speech, by in zip(speeches, chosen, strict=True) if responder.config in by]
            answers = responder.answer(own, self.config.seed, writer.work, ids=lambda: ids_by_key(corpus))
            failed[responder.config.author] = answers.failed
            writer.warnings.extend(answers.warnings)
            if answers.spend:
                spend[responder.config.author] = answers.spend["spend"]
            for candidate in answers.candidates:
                repeated += (candidate.speech_id, candidate.text) in candidates
                candidates.setdefault((candidate.speech_id, candidate.text), candidate)
        order = {speech.id: at for at, speech in enumerate(speeches)}
        write_candidates(writer, sorted(candidates.values(), key=lambda each: (order[each.speech_id], each.author)))
        counts = {"kept": len(candidates), "repeated_text": repeated, "failed": failed}
        writer.write_metrics({**counts, "spend": spend} if spend else counts)
        statuses = [(why, count) for by_status in failed.values() for why, count in by_status.items()]
        note_failed(writer, sum(count for why, count in statuses if why != NOT_IN_FILE))

    def _judge(self, writer: ArtifactWriter) -> None:
        """Rate every candidate that has a text."""
        judge, store, parents = self.judge, self.store, writer.spec.parents
        speeches = speeches_by_id(store.open(writer.parent("speeches")))
        candidates = distinct_candidates(store, parents)
        with_text = [(speeches[each.speech_id], each) for each in candidates if each.text]
        responses = Counter(each.speech_id for _, each in with_text)
        items = [item for item in with_text if responses[item[0].id] > 1]
        self._require_pairs_possible({speech_id for speech_id, count in responses.items() if count > 1})
        self._note_saved([item for item in with_text if responses[item[0].id] == 1])
        with progress("rating responses", len(items), lambda: judge_status(judge)) as advance:
            judgements = judge.rate(items, advance)
        spend = judge_spending(judge)
        is_table = isinstance(judge, TableJudge)
        remedy = "complete the table, or allow a larger share" if is_table else ""
        require_judged(judgements, "judgements", self.config.judge.max_missing_share, remedy)
        # A failed request may be sent again; what a table lacks it will lack again.
        note_failed(writer, 0 if is_table else count_failed(judgements))
        writer.notes["judge"] = judge.name
        write_judgements(writer, judgements, judge.principles)
        foreign = partial(is_foreign, languages=self.config.corpus.cleaning.languages)
        rows = sum(len(read_candidates(store.open(each))) for each in parents if each.kind == "candidates")
        writer.write_metrics(
            {
                # With `judged`, they add up to the candidates of all parents.
                "left_out": {
                    "repeated_text": rows - len(candidates),
                    "empty": len(candidates) - len(with_text),
                    "only_response": len(with_text) - len(items),
                },
                "junk": junk_by_author([] if self.session.is_dry_run else with_text, foreign),
                "judged": len(judgements),
                "status": dict(sorted(Counter(each.status.value for each in judgements).items())),
                "addresses_judge": addressing_judge(judgements),
                "missing_by_topic": missing_by_topic([speech for speech, _ in items], judgements),
                "histograms": histograms(judgements, judge.principles, self.rubric.scale),
                **sample_metrics(judgements, judge.principles),
                "rating_rows": dict(judge.rows) if isinstance(judge, TableJudge) else None,
                **spend,
            }
        )

    def _require_pairs_possible(self, comparable: Set[str]) -> None:
        """Check before anything is paid that every split has a speech with two different responses.

        Raises:
            DataQualityError: a split that should have pairs can get none.
        """
        rows = read_speeches(self.store.open(self.specs.speeches.as_parent("speeches")))
        splits = split_names(self.config, rows)
        possible = Counter(split for split, row in zip(splits, rows, strict=True) if row.speech.id in comparable)
        for split in required_splits(self.config):
            if not possible[split]:
                raise DataQualityError(
                    f"no speech of {split} has two different responses, so none can give a pair",
                    where="corpus.candidates, pool",
                    remedy="add responses by other authors, or change corpus.split",
                )

    def _note_saved(self, single: Sequence[tuple[Speech, Candidate]]) -> None:
        """Say which calls are not sent because a response is the only one to its speech."""
        if not single or self.config.judge.table is not None:
            return
        saved: list[PendingCalls] = []
        with ExitStack() as resources:
            counting = Session(self.store, self.session.cancel, saved, _resources=resources)
            open_judge(self.config.judge, counting, "not sent").rate(single, lambda count: None)
        calls = "".join(f"\n  {each}" for each in saved)
        console.note(f"{len(single)} responses are the only one to their speech and make no pair: not rated{calls}")

    def _pair(self, writer: ArtifactWriter) -> None:
        """Pair the candidates of each speech by their ratings."""
        rubric, store = self.rubric, self.store
        pairings = pair_splits(self.config, open_rule(self.config, store), store, writer.spec.parents)
        for split, pairing in pairings.items():
            if pairing.pairs:
                write_pairs(writer, split, pairing.pairs, rubric.principle_ids)
        writer.notes["scale"] = [rubric.minimum, rubric.maximum]
        metrics = {split: pairing.as_dict() for split, pairing in pairings.items()}
        writer.write_metrics({"pairing": metrics, "words": words_by_side(pairings)})
        pairs = {split: pairing.pairs for split, pairing in pairings.items()}
        write_dataset_card(store, writer, pairs, rubric)


def pairing_settings(config: BuildPreferencesConfig, store: Store) -> dict[str, Any]:
    """Return what decides the pairs of given judgements.

    Raises:
        ConfigError: a weight or veto does not fit the rubric, or the tokenizer's reference matches nothing.
    """
    pairing = config.pairing
    terms = resolve_rule(pairing, load_rubric(config.judge.rubric)).fingerprint()
    seed = None if pairing.dev_share is None else config.seed
    length = pairing.length and length_fingerprint(pairing.length, store)
    return {**pairing.fingerprint(), **terms, "dev_seed": seed, "length": length}


def length_fingerprint(length: PairLengthConfig, store: Store) -> dict[str, Any]:
    """Return what decides which pairs fit.

    A tokenizer's artifact is identified by its id. It is no parent, for none of its weights enter the pairs.

    Raises:
        ConfigError: the tokenizer's reference matches nothing.
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
            with quiet_libraries():  # no warning of a text beyond the model's positions: it is dropped
                ids = encode_exchange(tokenizer, speech.text, candidate.text, length.chat, speech.history)
        except TemplateError:
            return "not_a_prefix"
        tokens = len(ids.prompt_ids) + len(ids.response_ids)
        return "too_long" if tokens > length.max_length_tokens else None

    return unfit


def open_rule(config: BuildPreferencesConfig, store: Store) -> PairingRule:
    """Return the rule of a config, its tokenizer loaded if it names one.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    rubric, length = load_rubric(config.judge.rubric), config.pairing.length
    return resolve_rule(config.pairing, rubric, token_limit(length, store) if length else None)


def distinct_candidates(store: Store, parents: Sequence[Parent]) -> list[Candidate]:
    """Return all candidates of the parents; a text that two of them give to one speech counts once."""
    distinct: dict[tuple[str, str], Candidate] = {}
    for parent in parents:
        if parent.kind == "candidates":
            for candidate in read_candidates(store.open(parent)):
                distinct.setdefault((candidate.speech_id, candidate.text), candidate)
    return list(distinct.values())


def pair_splits(
    config: BuildPreferencesConfig, rule: PairingRule, store: Store, parents: Sequence[Parent]
) -> dict[str, Pairing]:
    """Return the pairs of every split; a speech gives its pairs to its own split.

    Raises:
        DataQualityError: no pair is left in a split that should have some.
    """
    by_role = {parent.role: store.open(parent) for parent in parents if parent.kind != "candidates"}
    judgements = {each.candidate_id: each for each in read_judgements(by_role["judgements"])}
    scored: dict[str, list[ScoredCandidate]] = {}
    for candidate in distinct_candidates(store, parents):
        judgement = judgements.get(candidate.id)
        if judgement is not None and judgement.status is ReplyStatus.VALID:
            side = ScoredCandidate(candidate, float(judgement.total), judgement.ratings)
            scored.setdefault(candidate.speech_id, []).append(side)
        elif judgement is None and candidate.text:  # the only response to its speech, and therefore not rated
            scored[candidate.speech_id] = [ScoredCandidate(candidate, 0.0, {})]
    rows = read_speeches(by_role["speeches"])
    names = split_names(config, rows)
    speeches: dict[str, list[ScoredSpeech]] = {split: [] for split in SPLITS}
    for name, row in zip(names, rows, strict=True):
        speeches[name].append((row.speech, scored.get(row.speech.id, [])))
    pair_test = pair_extremes if config.pairing.test_rule == "extremes" else pair_by_gap
    pairings = {split: (pair_test if split == "test" else pair_by_gap)(speeches[split], rule) for split in SPLITS}
    for split in required_splits(config):
        if not (pairing := pairings[split]).pairs:
            raise DataQualityError(
                f"no pair is left in {split}: {counted(pairing.dropped)}", where="pairing", remedy=_remedy(pairing)
            )
    return pairings


def split_names(config: BuildPreferencesConfig, rows: Sequence[SplitSpeech]) -> list[str]:
    """Return the split of each speech: the corpus's, or with `pairing.dev_share` train and dev divided anew."""
    names = [row.split for row in rows]
    if config.pairing.dev_share is None:
        return names
    return assign_dev(names, [row.cluster for row in rows], config.pairing.dev_share, config.seed)


def required_splits(config: BuildPreferencesConfig) -> list[str]:
    """Return the splits that must have pairs."""
    shares = {"train": 1.0, "dev": config.pairing.dev_share, "test": config.corpus.split.test_share}
    return [split for split, share in shares.items() if share]


def _remedy(pairing: Pairing) -> str:
    """Return what mends the last check that a combination did not pass: it was nearest to being kept there."""
    remedies = {
        "too_long": "raise pairing.length.max_length_tokens, or add shorter responses",
        "not_a_prefix": "name another pairing.length.tokenizer: its chat template cannot be split",
        "vetoed": "lower pairing.vetoes, or add better responses",
    }
    usual = "add responses of different quality, or lower pairing.min_gap"
    if not pairing.dropped:
        return "add speeches, or change pairing.dev_share"
    return next((remedy for reason, remedy in remedies.items() if reason in pairing.dropped), usual)


def words_by_side(pairings: Mapping[str, Pairing]) -> dict[str, Any]:
    """Return the mean number of words of each side, by split that has pairs."""

    def mean(sides: Sequence[ScoredCandidate]) -> float:
        return sum(word_count(side.candidate.text) for side in sides) / len(sides)

    return {
        split: {side: mean([getattr(pair, side) for pair in pairing.pairs]) for side in ("chosen", "rejected")}
        for split, pairing in pairings.items()
        if pairing.pairs
    }
