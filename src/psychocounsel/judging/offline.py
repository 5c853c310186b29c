"""The offline judge: rates and compares without a model, for trying the pipeline out.

It adds up features that can be pointed at in an English text (`offline_features`), by the weights in the rubric's
`offline` block, or for a rubric without one by general rules. It reads no meaning: irony, tact and truth are beyond it.
Equal texts get equal ratings, on every machine.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import cast

from psychocounsel.errors import ConfigError
from psychocounsel.judging.injection import ADDRESSES_JUDGE, addresses_judge
from psychocounsel.judging.judge import ComparisonTask, Progress
from psychocounsel.judging.offline_features import load_lexicon, load_neighbours, measure
from psychocounsel.judging.rubric import OfflineWeights, PrincipleWeights, Rubric, load_rubric
from psychocounsel.llm.types import JSON
from psychocounsel.types import OVERALL, Candidate, Comparison, Judgement, ReplyStatus, Speech, Winner

VERSION = 3
"""Raised by hand whenever a rule changes; weights and word lists have their own digests."""

WARNING = (
    "Rated by the offline judge, a rule of thumb over word lists for trying the pipeline out: "
    "its ratings are no evidence about the quality of counselling."
)
GENERAL_WARNING = (
    "The rubric has no rules for the offline judge, which rated its principles by general rules: "
    "it has not read what they say."
)
TIE_MARGIN = 0.2
"""Two responses tie on a principle, or overall, when their (mean) logits differ by less, mid-scale 5 % of it."""
_LOWEST = -20.0  # the logit of a response without words, or that addresses the judge
_MUTING_FAULTS = ("repetition", "echo", "stuffing")
_addresses_judge = lru_cache(maxsize=4096)(addresses_judge)


def _general_weights(principles: Sequence[str]) -> OfflineWeights:
    """Return the rules of the bundled principle of the same id, or else the mean of those of all seven."""
    bundled = cast("OfflineWeights", load_rubric("seven-principles").offline)
    count = len(bundled.principles)
    features: dict[str, float] = {}
    for rules in bundled.principles.values():
        for name, weight in rules.features.items():
            features[name] = features.get(name, 0.0) + weight / count
    base = sum(rules.base for rules in bundled.principles.values()) / count
    rules = PrincipleWeights(base=base, features=features)
    return OfflineWeights(
        faults=bundled.faults, principles={name: bundled.principles.get(name, rules) for name in principles}
    )


class OfflineJudge:
    """Rates by transparent features; needs no key, no network and no accelerator."""

    name = "offline"

    def __init__(self, rubric: Rubric) -> None:
        self.warnings = (WARNING,) if rubric.offline else (WARNING, GENERAL_WARNING)
        weights = rubric.offline or _general_weights(rubric.principle_ids)
        missing = [name for name in rubric.principle_ids if name not in weights.principles]
        if missing:
            raise ConfigError(
                f"the offline judge has no rules for the principle(s) {', '.join(missing)}",
                where=rubric.source,
                remedy="add them to the rubric's `offline` block, or judge with backend: endpoint",
            )
        self._weights, self._rubric, self.principles = weights, rubric, rubric.principle_ids

    @property
    def fingerprint(self) -> Mapping[str, JSON]:
        """What shapes the ratings: rubric, weights, word lists, samples, and the version of the rules."""
        return {
            "backend": "offline",
            "version": VERSION,
            "rubric": self._rubric.digest,
            "weights": self._weights.digest,
            "lexicon": load_lexicon().digest,
            "samples": load_neighbours().digest,
        }

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response on its own; an empty one, or one that addresses the judge, gets the lowest ratings."""
        judgements: list[Judgement] = []
        for speech, candidate in items:
            ratings = {name: math.floor(latent + 0.5) for name, latent in self.latents(speech, candidate).items()}
            flag = ADDRESSES_JUDGE if _addresses_judge(candidate.text) else ""
            judgements.append(Judgement(candidate.id, self.name, ReplyStatus.VALID, ratings, reason=flag))
            progress(1)
        return judgements

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare logits; two responses in the other order give exactly the swapped comparison."""
        comparisons: list[Comparison] = []
        for speech, first, second in items:
            one, other = self._logits(speech, first), self._logits(speech, second)
            winners = {OVERALL: self._winner((sum(one.values()) - sum(other.values())) / len(one))}
            winners |= {name: self._winner(one[name] - other[name]) for name in one}
            comparisons.append(Comparison(speech.id, first.id, second.id, ReplyStatus.VALID, winners))
            progress(1)
        return comparisons

    def _winner(self, gap: float) -> Winner:
        if abs(gap) < TIE_MARGIN:
            return Winner.TIE
        return Winner.FIRST if gap > 0 else Winner.SECOND

    def latents(self, speech: Speech, candidate: Candidate) -> dict[str, float]:
        """Return the real-valued rating per principle, within the rubric's scale, before rounding."""
        low, high = self._rubric.minimum, self._rubric.maximum
        logits = self._logits(speech, candidate)
        return {name: low + (high - low) / (1.0 + math.exp(-logit)) for name, logit in logits.items()}

    def _logits(self, speech: Speech, candidate: Candidate) -> dict[str, float]:
        """Return the latent ratings as logits, which also tell two texts apart that are both at an end of the scale."""
        features = None if _addresses_judge(candidate.text) else measure(speech, candidate)
        if features is None:
            return dict.fromkeys(self.principles, _LOWEST)
        # A copied or repetitive text earns nothing for the good words in it, and word salad half.
        soundness = (1.0 - max(features[name] for name in _MUTING_FAULTS)) * (1.0 - features["salad"] / 2)
        logits: dict[str, float] = {}
        for name in self.principles:
            parts = (
                weight * features[feature] * (soundness if weight > 0 else 1.0)
                for feature, weight in self._weights.of(name).items()
            )
            logits[name] = self._weights.principles[name].base + sum(parts)
        return logits
