"""PreferencePairs -> Baselines: what a reward model must beat to have learned counselling.

An accuracy of 98 % may say no more than "this model usually writes better" or "the longer answer won". So
the accuracy is shown beside two predictors that read nothing, and again on those pairs alone whose authors
are about equally good.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from psychocounsel.domain import PreferencePair, Rate, ScoredCandidate, exact_mean
from psychocounsel.evaluation.intervals import BootstrapSettings, bootstrap_rate
from psychocounsel.evaluation.reward_metrics import correctness
from psychocounsel.evaluation.words import word_count

SAME_TIER_SHARE = Fraction(1, 16)
"""Authors whose means in train differ by less than this share of the rating scale are of one tier."""


class Scale(NamedTuple):
    """The lowest and the highest rating."""

    minimum: int
    maximum: int

    @property
    def same_tier_gap(self) -> Fraction:
        """`SAME_TIER_SHARE` in points: a quarter of one on a scale from 1 to 5."""
        return SAME_TIER_SHARE * (self.maximum - self.minimum)


USUAL_SCALE = Scale(1, 5)
"""That of released datasets, and of those that do not tell theirs."""


@dataclass(frozen=True)
class Baselines:
    """The three figures beside an accuracy, each on the same test pairs.

    Args:
        author_identity: accuracy of preferring the author with the better mean in train.
        longer_wins: accuracy of preferring the answer with more words.
        same_tier: the reward model's own accuracy where both authors are of one tier; None without such a
            pair.
    """

    author_identity: Rate
    longer_wins: Rate
    same_tier: Rate | None

    def as_dict(self) -> dict[str, object]:
        """Return the shape in which `metrics.json` holds the figures."""
        return {
            "author_identity": self.author_identity.as_dict(),
            "longer_wins": self.longer_wins.as_dict(),
            "same_tier": self.same_tier.as_dict() if self.same_tier else None,
        }


def measure_baselines(
    train: Sequence[PreferencePair],
    test: Sequence[PreferencePair],
    margins: Sequence[float | None],
    settings: BootstrapSettings,
    scale: Scale = USUAL_SCALE,
) -> Baselines:
    """Return the baselines of a reward model with intervals by bootstrap over speeches.

    Args:
        train: the pairs that the reward model was trained on.
        test: the pairs that it is measured on.
        margins: its r(chosen) - r(rejected) on each test pair, None where it could not score.
        settings: how the intervals are drawn.
        scale: of the ratings.

    Raises:
        DataQualityError: when there are no test pairs.
    """
    speeches = [pair.speech.id for pair in test]
    own = zip(correctness(margins), speeches, same_tier(train, test, scale), strict=True)
    close = [(credit, speech) for credit, speech, same in own if same]
    scored = any(credit is not None for credit, _ in close)
    return Baselines(
        author_identity=bootstrap_rate(author_identity(train, test), speeches, settings),
        longer_wins=bootstrap_rate(longer_wins(test), speeches, settings),
        same_tier=bootstrap_rate([c for c, _ in close], [s for _, s in close], settings) if scored else None,
    )


def author_means(pairs: Sequence[PreferencePair]) -> Mapping[str, Fraction]:
    """Return each author's mean rating over the unique candidates of `pairs`, exactly.

    A candidate's score is the mean of its ratings, on their scale; one without ratings tells
    nothing and is left out. Fractions, because a floating mean puts gaps that lie on a threshold on either
    side of it.
    """
    seen: dict[str, ScoredCandidate] = {
        side.candidate.id: side for pair in pairs for side in (pair.chosen, pair.rejected) if side.ratings
    }
    by_author: dict[str, list[Fraction]] = {}
    for side in seen.values():
        score = exact_mean(side.ratings.values())
        by_author.setdefault(side.candidate.author, []).append(score)
    return {author: sum(scores, Fraction(0)) / len(scores) for author, scores in by_author.items()}


def author_identity(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the author with the better mean in train.

    Equal means, or an author who is not in train, give a half: there is nothing to go by.
    """
    return [_credit(gap) if gap is not None else 0.5 for gap in _author_gaps(train, test)]


def longer_wins(test: Sequence[PreferencePair]) -> list[float]:
    """Return per test pair 1, a half or 0 for preferring the longer answer; equal word counts give a half."""
    return [
        _credit(word_count(pair.chosen.candidate.text) - word_count(pair.rejected.candidate.text))
        for pair in test
    ]


def same_tier(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair], scale: Scale = USUAL_SCALE
) -> list[bool]:
    """Return per test pair whether its authors' means in train differ by under the `same_tier_gap`.

    An author who is not in train has no tier, so such a pair is not of one.
    """
    return [gap is not None and abs(gap) < scale.same_tier_gap for gap in _author_gaps(train, test)]


def _author_gaps(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> list[Fraction | None]:
    """Return per test pair the chosen author's mean minus the other's; None if either is unknown."""
    means = author_means(train)
    gaps: list[Fraction | None] = []
    for pair in test:
        chosen = means.get(pair.chosen.candidate.author)
        rejected = means.get(pair.rejected.candidate.author)
        gaps.append(None if chosen is None or rejected is None else chosen - rejected)
    return gaps


def _credit(gap: Fraction | int) -> float:
    if gap == 0:
        return 0.5
    return 1.0 if gap > 0 else 0.0
