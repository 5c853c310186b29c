"""The probe of an online run: what a policy's new answers to held-out speeches show, after every round the same ones.

Reward and text quality say how the answers are, drift how far the policy is from the initial one, and a judge which of
two answers is better.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from psychocounsel.evaluation.probes import kl_estimates, questions
from psychocounsel.evaluation.statistics import rate_if_known
from psychocounsel.evaluation.text_quality import measure_text_quality
from psychocounsel.evaluation.winrate import POINTS, BothOrders
from psychocounsel.judging.judge import ComparisonTask, Judge, compare_in_both_orders, require_judged
from psychocounsel.judging.judges import judge_status
from psychocounsel.reporting.console import progress
from psychocounsel.store.schemas import OrderedComparison, RewardScore
from psychocounsel.types import Candidate, Rate, SampledAnswer, Speech

if TYPE_CHECKING:
    from psychocounsel.training.drift import TokenStatistics


class Verdicts(NamedTuple):
    """What a judge says of a policy's answers; without a judge, nothing.

    `against` are comparisons with the initial policy's answers, of the draws `draws`, and `ranked` those of the answer
    to a speech that has the highest reward with the one that has the lowest.
    """

    against: Sequence[BothOrders] = ()
    draws: Sequence[int] = ()
    ranked: Sequence[BothOrders] = ()

    def rows(self) -> list[OrderedComparison]:
        """Return the comparisons with the initial policy's answers as a table holds them."""
        return [
            OrderedComparison(comparison, order, draw)
            for each, draw in zip(self.against, self.draws, strict=True)
            for order, comparison in (("forward", each.forward), ("backward", each.backward))
        ]


@dataclass(frozen=True)
class Probe:
    """A policy's answers to the probe speeches, and the rewards of those that have a text."""

    speeches: Sequence[Speech]
    sampled: Sequence[SampledAnswer]
    scores: Sequence[RewardScore]

    @property
    def candidates(self) -> list[Candidate]:
        """The answers."""
        return [each.candidate for each in self.sampled]

    def judged(self, judge: Judge, initial: Sequence[Candidate], max_missing_share: float) -> Verdicts:
        """Have a judge compare the answers with the `initial` policy's, and with each other, in both orders.

        Raises:
            IncompleteError: an endpoint left comparisons without an answer.
            DataQualityError: more comparisons failed than may.
        """
        against, ranked = self.compared(initial)
        tasks = [*against, *ranked]
        with progress("comparing probe answers, both orders", 2 * len(tasks), lambda: judge_status(judge)) as advance:
            forward, backward = compare_in_both_orders(judge, tasks, advance)
        require_judged([*forward, *backward], "comparisons", max_missing_share)
        pairs = [BothOrders(*each) for each in zip(forward, backward, strict=True)]
        return Verdicts(pairs[: len(against)], [each.first.draw for each in against], pairs[len(against) :])

    def compared(self, initial: Sequence[Candidate]) -> tuple[list[ComparisonTask], list[ComparisonTask]]:
        """Return the comparisons with the `initial` policy's answers of the same draws, and those with each other."""
        by_id = {each.id: each for each in self.speeches}
        others = {(each.speech_id, each.draw): each for each in initial}
        own = [each for each in self.candidates if (each.speech_id, each.draw) in others]
        against = [ComparisonTask(by_id[each.speech_id], each, others[each.speech_id, each.draw]) for each in own]
        return against, self._extremes()

    def _extremes(self) -> list[ComparisonTask]:
        """Return the answers to each speech with the highest and the lowest reward, unless all rewards are equal."""
        rewards = {each.candidate_id: each.reward for each in self.scores}
        tasks: list[ComparisonTask] = []
        for speech in self.speeches:
            own = [each for each in self.candidates if each.speech_id == speech.id and each.id in rewards]
            own.sort(key=lambda each: rewards[each.id])
            if own and rewards[own[-1].id] > rewards[own[0].id]:
                tasks.append(ComparisonTask(speech, own[-1], own[0]))
        return tasks

    def metrics(
        self, own: "Sequence[TokenStatistics]", initial: "Sequence[TokenStatistics]", verdicts: Verdicts
    ) -> dict[str, Any]:
        """Return the figures of the answers; the policy and the initial one give their tokens `own` and `initial`."""
        return {
            "reward": mean_and_spread(self.scores),
            "text_quality": measure_text_quality(self.candidates),
            "questions_per_answer": statistics.fmean(questions(each.text) for each in self.candidates),
            "kl": kl_estimates([each.logps for each in own], [each.logps for each in initial]),
            "entropy": statistics.fmean(entropy for each in own for entropy in each.entropies),
            "win_rate": _rate(verdicts.against),
            "agreement": _rate(verdicts.ranked),
            "crisis": self._crisis(verdicts),
        }

    def _crisis(self, verdicts: Verdicts) -> dict[str, Any] | None:
        """Return the figures of the answers to speeches about crisis, None if there are no such answers."""
        speech_ids = {each.id for each in self.speeches if each.crisis}
        answers = {each.id: each for each in self.candidates if each.speech_id in speech_ids}
        rewards = [each.reward for each in self.scores if each.candidate_id in answers]
        if not rewards:
            return None
        return {
            "answers": len(rewards),
            "reward": statistics.fmean(rewards),
            "unfinished_rate": measure_text_quality(list(answers.values())).unfinished_rate,
            "win_rate": _rate([each for each in verdicts.against if each.speech_id in speech_ids]),
        }


def mean_and_spread(scores: Sequence[RewardScore]) -> dict[str, float]:
    """Return mean and standard deviation of rewards, and their number, as `metrics.json` holds them."""
    rewards = [score.reward for score in scores]
    return {"mean": statistics.fmean(rewards), "std": statistics.pstdev(rewards), "n": len(rewards)}


def _rate(compared: Sequence[BothOrders]) -> Rate | None:
    return rate_if_known([POINTS[each.outcome()] for each in compared], [each.speech_id for each in compared])
