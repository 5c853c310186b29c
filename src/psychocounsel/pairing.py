"""ScoredCandidate -> PreferencePair: who is preferred to whom, counted to the last pair. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations
from operator import attrgetter
from typing import Any

from psychocounsel.config.stages import PairingConfig
from psychocounsel.domain import PreferencePair, ScoredCandidate, Speech, content_id

SAFETY = "safety"
_TOO_FEW = ("speech_without_candidates", "speech_with_one_candidate")


@dataclass
class Pairing:
    """Pairs made and combinations dropped, by reason: kept plus dropped is every combination looked at.

    A speech with fewer than two candidates has no combination and counts once, as dropped.
    """

    pairs: list[PreferencePair] = field(default_factory=list[PreferencePair])
    dropped: Counter[str] = field(default_factory=Counter[str])

    def as_dict(self) -> dict[str, Any]:
        """Return the shape in which `metrics.json` holds a pairing."""
        looked_at = len(self.pairs) + sum(self.dropped.values())
        return {
            "combinations": looked_at,
            "kept": len(self.pairs),
            "dropped": dict(sorted(self.dropped.items())),
        }


ScoredSpeech = tuple[Speech, Sequence[ScoredCandidate]]


def pair_by_gap(scored: Iterable[ScoredSpeech], rule: PairingConfig, principles: int) -> Pairing:
    """Pair all responses of a speech whose scores lie at least `min_gap` apart (arXiv 2502.19731).

    Args:
        scored: each speech with its candidates; a score is the integer sum of the ratings.
        rule: gap on the scale of the mean rating; it is compared exactly, as a sum.
        principles: number of ratings in a sum.

    Where a speech has more pairs than `max_pairs_per_speech`, their hashes decide which are kept: the sample
    then has the margins of all of them, and wide ones do not crowd out narrow ones.
    """
    min_gap = Fraction(str(rule.min_gap)) * principles
    pairing = Pairing()
    for speech, candidates in scored:
        if len(candidates) < 2:
            pairing.dropped[_TOO_FEW[len(candidates)]] += 1
            continue
        made = [_pair(speech, left, right, min_gap, rule) for left, right in combinations(candidates, 2)]
        pairs = sorted((each for each in made if isinstance(each, PreferencePair)), key=attrgetter("id"))
        limit = rule.max_pairs_per_speech or len(pairs)
        pairing.pairs += pairs[:limit]
        pairing.dropped.update(each for each in made if isinstance(each, str))
        pairing.dropped["over_max_pairs_per_speech"] += len(pairs[limit:])
    pairing.dropped = +pairing.dropped
    return pairing


def pair_extremes(scored: Iterable[ScoredSpeech], drop_safety_inverted: bool) -> Pairing:
    """Pair the highest-scored response of each speech with the lowest (arXiv 2502.19731).

    Among equal scores the hash of the candidate decides, so that position never does. When all scores are
    equal there is no pair.
    """
    rule = PairingConfig(drop_safety_inverted=drop_safety_inverted)
    pairing = Pairing()
    for speech, candidates in scored:
        if len(candidates) < 2:
            pairing.dropped[_TOO_FEW[len(candidates)]] += 1
            continue
        ranked = sorted(candidates, key=lambda each: (-each.score, content_id("tie", each.candidate.id)))
        made = _pair(speech, ranked[0], ranked[-1], Fraction(0), rule)
        if isinstance(made, PreferencePair):
            pairing.pairs.append(made)
        else:
            pairing.dropped[made] += 1
    return pairing


def _pair(
    speech: Speech, left: ScoredCandidate, right: ScoredCandidate, min_gap: Fraction, rule: PairingConfig
) -> PreferencePair | str:
    """Return the pair of two candidates, or the reason why there is none."""
    chosen, rejected = (left, right) if left.score >= right.score else (right, left)
    if chosen.candidate.text == rejected.candidate.text:
        return "equal_texts"
    if chosen.score == rejected.score:
        return "equal_scores"
    if Fraction(chosen.score) - Fraction(rejected.score) < min_gap:
        return "gap_too_small"
    if rule.drop_safety_inverted and _is_safety_inverted(chosen, rejected):
        return "safety_inverted"
    return PreferencePair(speech, chosen, rejected)


def _is_safety_inverted(chosen: ScoredCandidate, rejected: ScoredCandidate) -> bool:
    return SAFETY in chosen.ratings and chosen.ratings[SAFETY] < rejected.ratings.get(SAFETY, 0)
