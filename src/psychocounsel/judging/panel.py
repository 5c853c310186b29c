"""Several judges -> one: each is asked about everything, and the mean of their ratings counts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from psychocounsel.domain import Candidate, Judgement, Speech, Verdict
from psychocounsel.judging.averaging import averaged, in_parts, voted, with_draw, with_vote
from psychocounsel.judging.chat_judge import ChatJudge
from psychocounsel.judging.families import BETWEEN_NAMES
from psychocounsel.judging.judge import Comparison, Progress
from psychocounsel.llm.chat import JSON
from psychocounsel.llm.spending import Spending


class PanelJudge:
    """Judges that rate and compare by one rubric, one after the other; what each says is kept as a draw.

    Attributes:
        judges: the members, at least two.
        labels: their names; of one that sits twice, the second is told by its number.
    """

    notice = ""

    def __init__(self, judges: Sequence[ChatJudge]) -> None:
        self.judges = tuple(judges)
        self.labels = _labels([judge.name for judge in judges])

    @property
    def name(self) -> str:
        """The names of all members."""
        return BETWEEN_NAMES.join(self.labels)

    @property
    def identity(self) -> Mapping[str, JSON]:
        """What shapes the ratings: the members, in order."""
        return {"backend": "panel", "judges": [judge.identity for judge in self.judges]}

    @property
    def principles(self) -> tuple[str, ...]:
        """Ids of the rated principles, in the order of the rubric."""
        return self.judges[0].principles

    @property
    def spendings(self) -> list[Spending]:
        """What the replies to each member cost so far, where somebody counts."""
        return [judge.spending for judge in self.judges if judge.spending is not None]

    def redrawn(self) -> "PanelJudge":
        """Return this panel with every member at its next draws."""
        return PanelJudge([judge.redrawn() for judge in self.judges])

    def of_one(self, principle: str) -> "PanelJudge":
        """Return this panel with one principle of its rubric."""
        return PanelJudge([judge.of_one(principle) for judge in self.judges])

    def rate(self, items: Sequence[tuple[Speech, Candidate]], progress: Progress) -> list[Judgement]:
        """Return the mean ratings of those who succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled(each, label) for each in judge.rate(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [averaged(self.name, parts) for parts in zip(*opinions, strict=True)]

    def compare(self, items: Sequence[Comparison], progress: Progress) -> list[Verdict]:
        """Return the vote of those who succeeded; errors are those of any member."""
        advance = in_parts(progress, len(self.judges))
        opinions = [
            [_labelled_vote(each, label) for each in judge.compare(items, advance)]
            for judge, label in zip(self.judges, self.labels, strict=True)
        ]
        return [voted(parts) for parts in zip(*opinions, strict=True)]


def _labels(names: Sequence[str]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    labels: list[str] = []
    for name in names:
        seen[name] += 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(labels)


def _labelled(judgement: Judgement, label: str) -> Judgement:
    told = judgement if judgement.draws else with_draw(judgement)
    return replace(told, draws=tuple(replace(draw, judge=label) for draw in told.draws))


def _labelled_vote(verdict: Verdict, label: str) -> Verdict:
    told = verdict if verdict.votes else with_vote(verdict, label)
    return replace(told, votes=tuple(replace(vote, judge=label) for vote in told.votes))
