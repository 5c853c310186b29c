"""Judgements + rubric + config -> pairs by split: the cheap step, repeated without a call to anybody."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from psychocounsel.config.stages import BuildPreferencesConfig, PairLengthConfig
from psychocounsel.domain import Candidate, Policy, ReplyStatus, ScoredCandidate, Speech
from psychocounsel.errors import DataQualityError, counted
from psychocounsel.evaluation.words import word_count
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.pairing import (
    Pairing,
    PairingRule,
    RubricTerms,
    ScoredSpeech,
    Unfit,
    assign_dev,
    pair_by_gap,
    pair_extremes,
    resolve_rule,
)
from psychocounsel.store.artifacts import MANIFEST, Parent
from psychocounsel.store.digests import digest_of_files
from psychocounsel.store.references import POLICY_KINDS, ModelReference, resolve_model
from psychocounsel.store.store import Store
from psychocounsel.store.tables.nouns import read_candidates, read_judgements, read_speeches

SPLITS = ("train", "dev", "test")

_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")


def pairing_settings(config: BuildPreferencesConfig, store: Store) -> dict[str, Any]:
    """Return what decides the pairs of given judgements, the rubric's terms and the tokenizer included.

    Raises:
        ConfigError: a weight or veto does not fit the rubric, or nothing answers to the tokenizer's name.
    """
    pairing = config.pairing
    terms = resolve_rule(pairing, _terms(load_rubric(config.judge.rubric))).identity()
    seed = None if pairing.dev_share is None else config.seed
    limit = pairing.length and length_identity(pairing.length, store)
    return {**pairing.identity(), **terms, "dev_seed": seed, "length": limit}


def _terms(rubric: Rubric) -> RubricTerms:
    return RubricTerms(rubric.weights, rubric.vetoes, rubric.safety, rubric.scale)


def length_identity(length: PairLengthConfig, store: Store) -> dict[str, Any]:
    """Return what decides which pairs fit.

    A tokenizer's artifact is known by its id: it is no parent, for none of its weights enter the pairs.

    Raises:
        ConfigError: nothing answers to the tokenizer's name.
    """
    found = _tokenizer(length, store)
    known_by = found.identity if found.parent is None else {"artifact": found.parent.id}
    return {**length.identity(), "tokenizer": known_by}


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
    terms = _terms(load_rubric(config.judge.rubric))
    length = config.pairing.length
    if length is None:
        return resolve_rule(config.pairing, terms)
    return resolve_rule(config.pairing, terms, token_limit(length, store))


def token_limit(length: PairLengthConfig, store: Store) -> Unfit:
    """Return the check of a response with its prompt against `max_length_tokens`.

    Raises:
        ConfigError: the tokenizer cannot be loaded.
    """
    # transformers: only where pairs are measured in tokens
    from psychocounsel.llm.local_model import TemplateError, encode_exchange, load_tokenizer
    from psychocounsel.llm.quiet import quiet_libraries

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
