"""Candidate -> Judgement, two Candidates -> Comparison, without a model: a stand-in for trying things out.

The judge adds up what can be pointed at in an English text (see `offline_features`), by the weights that the
rubric's `offline` block gives to each. It reads no meaning: irony, tact and truth are beyond it. Equal texts,
equal ratings, on every machine.
"""

import math
from collections.abc import Mapping, Sequence

from psychocounsel.errors import ConfigError
from psychocounsel.judging.judge import ADDRESSES_JUDGE, ComparisonTask, Progress
from psychocounsel.judging.offline_text import (
    Feature,
    addresses_judge,
    load_lexicon,
    measure,
    view_client,
    view_reply,
)
from psychocounsel.judging.rubric import OfflineWeights, Rubric
from psychocounsel.llm.types import JSON
from psychocounsel.types import OVERALL, Candidate, Comparison, Judgement, ReplyStatus, Speech, Winner

VERSION = 1
"""Raised by hand whenever a rule changes; weights and word lists have their digests."""

NOTICE = (
    "Rated by the offline judge, a rule of thumb over word lists for trying the pipeline out: "
    "its ratings are no evidence about the quality of counselling."
)
TIE_MARGIN = 0.05
"""Two responses tie on a principle when their latent ratings differ by less than this share of the scale.

Overall the same holds of the mean over the principles.
"""
_MUTING_FAULTS = ("repetition", "salad", "echo", "stuffing")
_SHOWN_FROM = 0.05
_EVIDENCE_SHOWN = 6


class OfflineJudge:
    """Rates by transparent features; needs no key, no network and no accelerator."""

    name = "offline"
    notice = NOTICE

    def __init__(self, rubric: Rubric) -> None:
        self._weights = _weights_of(rubric)
        self._rubric = rubric

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the rubric."""
        return self._rubric.principle_ids

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings: rubric, weights, word lists, and the version of the rules."""
        return {
            "backend": "offline",
            "version": VERSION,
            "rubric": self._rubric.digest,
            "weights": self._weights.digest,
            "lexicon": load_lexicon().digest,
        }

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Rate each response on its own; an empty one gets the lowest rating everywhere."""
        judgements: list[Judgement] = []
        for speech, candidate in items:
            judgements.append(self._judgement(speech, candidate))
            progress(1)
        return judgements

    def _judgement(self, speech: Speech, candidate: Candidate) -> Judgement:
        latents = self.latents(speech, candidate)
        ratings = {name: math.floor(latent + 0.5) for name, latent in latents.items()}
        flag = ADDRESSES_JUDGE if addresses_judge(candidate.text) else ""
        return Judgement(candidate.id, self.name, ReplyStatus.VALID, ratings, reason=flag)

    def compare(self, items: Sequence[ComparisonTask], progress: Progress) -> list[Comparison]:
        """Compare latent ratings; two responses in the other order give exactly the swapped verdict."""
        verdicts: list[Comparison] = []
        for item in items:
            verdicts.append(self._verdict(item))
            progress(1)
        return verdicts

    def _verdict(self, item: ComparisonTask) -> Comparison:
        first, second = self.latents(item.speech, item.first), self.latents(item.speech, item.second)
        mean_gap = (sum(first.values()) - sum(second.values())) / len(first)
        winners = {OVERALL: self._winner(mean_gap)}
        winners |= {name: self._winner(first[name] - second[name]) for name in first}
        return Comparison(item.speech.id, item.first.id, item.second.id, ReplyStatus.VALID, winners)

    def _winner(self, gap: float) -> Winner:
        margin = TIE_MARGIN * (self._rubric.maximum - self._rubric.minimum)
        if abs(gap) < margin:
            return Winner.TIE
        return Winner.FIRST if gap > 0 else Winner.SECOND

    def latents(self, speech: Speech, candidate: Candidate) -> dict[str, float]:
        """Return the real-valued rating per principle, within the rubric's scale, before rounding."""
        features = _features(speech, candidate)
        low, high = self._rubric.minimum, self._rubric.maximum
        if features is None:
            return dict.fromkeys(self.principles, float(low))
        shares = {name: _logistic(self._logit(name, features)) for name in self.principles}
        return {name: low + (high - low) * share for name, share in shares.items()}

    def explain(self, speech: Speech, candidate: Candidate) -> dict[str, list[str]]:
        """Return, by principle, the features that fired, the weightiest first, with their words."""
        features = _features(speech, candidate)
        if features is None:
            return {name: ["the response holds no words"] for name in self.principles}
        return {name: _reasons(self._contributions(name, features), features) for name in self.principles}

    def _logit(self, principle: str, features: Mapping[str, Feature]) -> float:
        return self._weights.principles[principle].base + sum(self._contributions(principle, features).values())

    def _contributions(self, principle: str, features: Mapping[str, Feature]) -> dict[str, float]:
        """What each feature adds; a broken text earns nothing for the good words in it."""
        soundness = 1.0 - max(features[name].value for name in _MUTING_FAULTS)
        return {
            name: weight * features[name].value * (soundness if weight > 0 else 1.0)
            for name, weight in self._weights.of(principle).items()
        }


def _weights_of(rubric: Rubric) -> OfflineWeights:
    weights = rubric.offline
    lacking = [name for name in rubric.principle_ids if weights is None or name not in weights.principles]
    if weights is None or lacking:
        raise ConfigError(
            f"the offline judge has no rules for the principle(s) {', '.join(lacking)}",
            where=rubric.source,
            remedy="add them to the rubric's `offline` block, or judge with backend: endpoint",
        )
    return weights


def _features(speech: Speech, candidate: Candidate) -> dict[str, Feature] | None:
    client = view_client(speech)
    reply = view_reply(candidate.text, client)
    if reply is None:
        return None
    features = measure(client, reply)
    if not candidate.finished:
        features["unfinished"] = Feature(1.0, ("ran into its token limit",))
    return features


def _reasons(parts: Mapping[str, float], features: Mapping[str, Feature]) -> list[str]:
    shown = [name for name in sorted(parts, key=lambda name: -abs(parts[name])) if abs(parts[name]) >= _SHOWN_FROM]
    return [_reason(name, parts[name], features[name].evidence) for name in shown]


def _reason(name: str, part: float, evidence: Sequence[str]) -> str:
    words = f": {', '.join(evidence[:_EVIDENCE_SHOWN])}" if evidence else ""
    return f"{name.replace('_', ' ')} {part:+.2f}{words}"


def _logistic(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
