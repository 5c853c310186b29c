"""The selection rule of online DPO: which answers of a round are ranked, by what, and which of them become a pair."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from psychocounsel.config.schema import OnlineConfig
from psychocounsel.errors import ConfigError
from psychocounsel.judging.pairing import Pairing, PairingRule, pair_extremes
from psychocounsel.store.schemas import RewardScore
from psychocounsel.types import Candidate, ScoredCandidate, Speech

_OF_OTHER_STEPS = {
    *("speeches", "reward_model", "rounds", "steps_per_round", "speeches_per_round", "optimizer_state"),
    *("candidates_per_speech", "sampling", "sampler", "probe"),
}


class Selection(NamedTuple):
    """The pairs of a round with the combinations that gave none, and why answers took no part, by reason."""

    pairing: Pairing
    left_out: Counter[str]


def selection_settings(online: OnlineConfig) -> dict[str, Any]:
    """Return what decides which answers of a round become pairs: all keys of the block that no other step reads."""
    return {name: value for name, value in online.fingerprint().items() if name not in _OF_OTHER_STEPS}


def select_pairs(
    speeches: Mapping[str, Speech],
    candidates: Iterable[Candidate],
    scores: Mapping[str, RewardScore],
    online: OnlineConfig,
) -> Selection:
    """Pair the highest answer to each speech, of the finished ones under no veto, with the one that ranks lowest.

    `speeches` and `scores` are by their ids; an answer without a text has no score.

    Raises:
        ConfigError: a veto is on a principle for which the reward model has no head.
    """
    unknown = sorted(set(online.vetoes).difference(*(each.principles for each in scores.values())))
    if unknown:
        raise ConfigError(
            f"the reward model has no head for {', '.join(unknown)}",
            where="online.vetoes",
            remedy="name its principles, or train it with heads: principles",
        )
    ranked: dict[str, list[ScoredCandidate]] = {}
    left_out: Counter[str] = Counter()
    for candidate in candidates:
        group = ranked.setdefault(candidate.speech_id, [])
        if not candidate.text:
            left_out["empty"] += 1
        elif not candidate.finished and online.unfinished == "leave_out":
            left_out["unfinished"] += 1
        else:
            score = selection_score(candidate, scores[candidate.id], online)
            group.append(ScoredCandidate(candidate, score, scores[candidate.id].principles))
    for speech_id, group in ranked.items():
        ranked[speech_id] = kept = _with_eligible_best(group, online.vetoes)
        left_out.update("vetoed" if each.candidate.finished else "unfinished" for each in group if each not in kept)
    pairing = pair_extremes([(speeches[each], group) for each, group in ranked.items()], PairingRule())
    return Selection(pairing, +left_out)


def selection_score(candidate: Candidate, score: RewardScore, online: OnlineConfig) -> float:
    """Return the normalised reward less the penalties for an unfinished and for a long answer."""
    unfinished = 0.0 if candidate.finished else online.unfinished_penalty
    return score.reward - unfinished - online.length_penalty_per_100_tokens * score.tokens / 100


def _with_eligible_best(group: Sequence[ScoredCandidate], vetoes: Mapping[str, float]) -> list[ScoredCandidate]:
    """Return the answers to one speech without the unfinished and vetoed ones that rank above all others."""

    def is_eligible(each: ScoredCandidate) -> bool:
        return each.candidate.finished and all(each.ratings[name] >= veto for name, veto in vetoes.items())

    best = max((each.score for each in group if is_eligible(each)), default=-math.inf)
    return [each for each in group if each.score < best or is_eligible(each)]
