"""Types of the data flow: Speech -> Candidate -> Judgement -> PreferencePair -> RewardModel -> Policy -> Comparison.

All are frozen, with their invariants in `__post_init__`. Nothing here reads or writes a file.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from itertools import chain
from json.encoder import encode_basestring_ascii
from math import fsum
from typing import Literal, NamedTuple, Protocol, TypeAlias, TypeVar

OVERALL = "overall"
"""The criterion of a comparison that weighs a response as a whole."""

Rating: TypeAlias = int | float
"""A whole number of a scale (`int`), or a mean or expectation over it (`float`)."""

SPLITS = ("train", "dev", "test")
"""The splits of speeches and pairs, in this order."""

_LARGEST_DENOMINATOR = 1_000_000


def exact_rating(rating: Rating) -> int | Fraction:
    """Return the exact value of a rating: a mean is the fraction that its float stands for.

    The mean of up to a million whole numbers comes back exactly.
    """
    if isinstance(rating, int):
        return rating
    return Fraction(rating).limit_denominator(_LARGEST_DENOMINATOR)


def exact_mean(ratings: Collection[Rating]) -> Fraction:
    """Return the mean of some ratings, to be rounded once and at the end."""
    return Fraction(sum(map(exact_rating, ratings))) / len(ratings)


def mean_ratings(several: Sequence[Mapping[str, Rating]]) -> dict[str, Rating]:
    """Return the mean by principle, always a float; `exact_rating` returns the fraction that it stands for."""
    return {name: fsum(ratings[name] for ratings in several) / len(several) for name in several[0]}


def content_id(*parts: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 over `parts`; equal content, equal id."""
    # The bytes of `json.dumps(parts, separators=(",", ":"))`, in half the time.
    payload = f"[{','.join(map(encode_basestring_ascii, parts))}]"
    return hashlib.sha256(payload.encode("ascii")).hexdigest()[:16]


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


_Item = TypeVar("_Item", bound=_Identified)


def sample_by_hash(items: Sequence[_Item], count: int | None, purpose: str, seed: int) -> list[_Item]:
    """Return `count` of the items, or all of them, in the order of a hash of purpose, seed and content."""
    return sorted(items, key=lambda each: content_id(purpose, str(seed), each.id))[:count]


class Turn(NamedTuple):
    """What was said before a speech, by the client (`user`) or the counsellor (`assistant`)."""

    role: Literal["user", "assistant"]
    content: str


SPEAKERS = {"user": "client", "assistant": "counsellor"}
"""Who speaks, by the role in a chat."""


@dataclass(frozen=True)
class Speech:
    """What a client says in a session, stage directions included; `fine_topic` is a subdivision of `topic`.

    `history` are the earlier turns of the session, oldest first, as far as they are known.
    """

    text: str
    topic: str = ""
    crisis: bool = False
    source: str = ""
    fine_topic: str = ""
    history: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("a speech has text")

    @cached_property
    def id(self) -> str:
        """Content hash of the text, and of the history if there is one."""
        return content_id("speech", self.text, *chain.from_iterable(self.history))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The session so far: the history, then the text."""
        return (*self.history, Turn("user", self.text))

    @property
    def transcript(self) -> str:
        """The session so far for readers: the text, after the earlier turns with their speakers if there are some."""
        if not self.history:
            return self.text
        return "\n\n".join(f"{SPEAKERS[turn.role].capitalize()}: {turn.content}" for turn in self.turns)


@dataclass(frozen=True)
class Candidate:
    """One response to one speech by one author (a model, or a person).

    `finished` is False when generation ran into its token limit before the end of the answer. `draw` numbers the
    answers that one author gave to one speech, from 0.
    """

    speech_id: str
    author: str
    text: str
    finished: bool = True
    draw: int = 0

    @cached_property
    def id(self) -> str:
        """Content hash of speech, author and text."""
        return content_id("candidate", self.speech_id, self.author, self.text)


class SampledAnswer(NamedTuple):
    """An answer and its token ids as they were sampled, an end included; None where only the text is known.

    The ids of the text may be others: a model can spell one text in many ways.
    """

    candidate: Candidate
    token_ids: tuple[int, ...] | None


class ReplyStatus(StrEnum):
    """How a request to a judge or a responder ended; only VALID carries a result."""

    VALID = "valid"
    REFUSAL = "refusal"
    CONTENT_FILTER = "content_filter"
    EMPTY = "empty"
    CUT = "cut"
    INVALID = "invalid"
    ERROR = "error"


class Scoring(StrEnum):
    """How a rating comes from a reply: as it is written there, or expected over the scale's points."""

    WRITTEN = "written"
    EXPECTED = "expected"


@dataclass(frozen=True)
class RatingSample:
    """One reply of one judge, where a judgement rests on more than the number that one reply has written.

    `sample_index` numbers the repeated samples of one judge.
    """

    judge: str
    sample_index: int
    status: ReplyStatus
    ratings: Mapping[str, Rating] = field(default_factory=dict[str, Rating])
    reason: str = ""
    scored_by: Scoring = Scoring.WRITTEN


@dataclass(frozen=True)
class Judgement:
    """A candidate rated on every principle of a rubric, or the reason why it is not.

    The ratings are means of `samples`, which is empty where they are one reply's own whole numbers. `reasons` are the
    judge's own words for its ratings; `reason` says why there are none, or what was noticed about the response.
    """

    candidate_id: str
    judge: str
    status: ReplyStatus
    ratings: Mapping[str, Rating] = field(default_factory=dict[str, Rating])
    reason: str = ""
    samples: tuple[RatingSample, ...] = ()
    reasons: str = ""

    def __post_init__(self) -> None:
        if (self.status is ReplyStatus.VALID) != bool(self.ratings):
            raise ValueError("a valid judgement has ratings, a failed one has none")

    @property
    def total(self) -> int | Fraction:
        """Sum of the ratings: exact where a floating mean is not."""
        return sum(map(exact_rating, self.ratings.values()))


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate with the score that ranks it: a sum of ratings, or a reward."""

    candidate: Candidate
    score: float
    ratings: Mapping[str, Rating] = field(default_factory=dict[str, Rating])


@dataclass(frozen=True)
class PreferencePair:
    """Two responses to one speech, the first preferred to the second."""

    speech: Speech
    chosen: ScoredCandidate
    rejected: ScoredCandidate

    def __post_init__(self) -> None:
        if {self.chosen.candidate.speech_id, self.rejected.candidate.speech_id} != {self.speech.id}:
            raise ValueError("both sides of a pair answer its one speech")
        if not self.margin > 0:
            raise ValueError("the chosen side scores strictly higher")
        if self.chosen.candidate.text == self.rejected.candidate.text:
            raise ValueError("the two sides differ in text")

    @property
    def margin(self) -> float:
        """Score of the chosen side minus that of the rejected side, always positive."""
        return self.chosen.score - self.rejected.score

    @cached_property
    def id(self) -> str:
        """Content hash of the two candidates in order."""
        return content_id("pair", self.chosen.candidate.id, self.rejected.candidate.id)


@dataclass(frozen=True)
class RatingScale:
    """How the ratings of a preference dataset make the score of a response.

    Attributes:
        low: the lowest rating of the scale.
        high: the highest.
        weights: share of each principle in the mean rating; they add up to 1. Empty where nothing is rated.
    """

    low: int = 1
    high: int = 5
    weights: Mapping[str, Fraction] = field(default_factory=dict[str, Fraction])

    @property
    def width(self) -> int:
        """Points between the ends of the scale."""
        return self.high - self.low

    def gap(self, pair: PreferencePair) -> Fraction | None:
        """Return by how many points the mean rating of the chosen side is higher; None for a pair without ratings."""
        if not pair.chosen.ratings:
            return None
        return sum((weight * _lead(pair, name) for name, weight in self.weights.items()), Fraction(0))

    def signs(self, pair: PreferencePair) -> list[int]:
        """Return for each principle 1, -1 or 0: the chosen side is rated higher, lower, or alike or not at all."""
        leads = [_lead(pair, name) if pair.chosen.ratings else 0 for name in self.weights]
        return [(lead > 0) - (lead < 0) for lead in leads]


def _lead(pair: PreferencePair, principle: str) -> int | Fraction:
    """Return the rating of the chosen side on a principle minus that of the rejected side, exactly."""
    return exact_rating(pair.chosen.ratings[principle]) - exact_rating(pair.rejected.ratings[principle])


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of raw rewards on a fixed set of responses."""

    mean: float = 0.0
    std: float = 1.0

    def apply(self, raw: float) -> float:
        """Return `(raw - mean) / std`, as the released reward model does (arXiv 2502.19731)."""
        return (raw - self.mean) / self.std


@dataclass(frozen=True)
class Reward:
    """What a reward model gives a response: the overall reward and, where it has such heads, one per principle.

    `raw` is the model's own scale. `reward` and `principles` are normalised, `raw_principles` are not.
    """

    raw: float
    reward: float
    raw_principles: Mapping[str, float] = field(default_factory=dict[str, float])
    principles: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True)
class RewardModel:
    """A Bradley-Terry reward model on disk, what its outputs stand for, and their normalisation.

    Attributes:
        location: a `from_pretrained` folder or a Hub id.
        normalisation: of the overall reward.
        weights: share of each principle in the overall reward, in the order of the outputs; they add up to 1. Empty
            where the one output is the overall reward.
        principles: the normalisation of each principle's reward.
    """

    location: str
    normalisation: Normalisation = Normalisation()
    weights: Mapping[str, float] = field(default_factory=dict[str, float])
    principles: Mapping[str, Normalisation] = field(default_factory=dict[str, Normalisation])

    def reward(self, outputs: Sequence[float]) -> Reward:
        """Return the reward that the model's outputs for one response stand for."""
        if not self.weights:
            return Reward(outputs[0], self.normalisation.apply(outputs[0]))
        raw = dict(zip(self.weights, outputs, strict=True))
        overall = sum(self.weights[name] * output for name, output in raw.items())
        normalised = {name: self.principles[name].apply(output) for name, output in raw.items()}
        return Reward(overall, self.normalisation.apply(overall), raw, normalised)


@dataclass(frozen=True)
class Policy:
    """A model that answers clients: a `from_pretrained` folder, or a Hub id with its revision."""

    location: str
    revision: str | None = None


class Winner(StrEnum):
    """Who wins a comparison, by position."""

    FIRST = "first"
    SECOND = "second"
    TIE = "tie"

    def swap(self) -> "Winner":
        """Return the winner after first and second changed places."""
        if self is Winner.TIE:
            return self
        return Winner.SECOND if self is Winner.FIRST else Winner.FIRST


@dataclass(frozen=True)
class Vote:
    """One reply of one judge to a comparison that rests on several."""

    judge: str
    sample_index: int
    status: ReplyStatus
    winners: Mapping[str, Winner] = field(default_factory=dict[str, Winner])

    def swap(self) -> "Vote":
        """Return the same vote with the two candidates in the other order."""
        return replace(self, winners={name: winner.swap() for name, winner in self.winners.items()})


@dataclass(frozen=True)
class Comparison:
    """A judge's comparison of two candidates, by criterion (`overall` and each principle).

    The winners are the majority of `votes`, which is empty where they come from one reply. `reasons` are the judge's
    own words; "A" is the first response.
    """

    speech_id: str
    first_id: str
    second_id: str
    status: ReplyStatus
    winners: Mapping[str, Winner] = field(default_factory=dict[str, Winner])
    votes: tuple[Vote, ...] = ()
    reasons: str = ""

    def __post_init__(self) -> None:
        if (self.status is ReplyStatus.VALID) != bool(self.winners):
            raise ValueError("a valid comparison has winners, a failed one has none")

    def swap(self) -> "Comparison":
        """Return the same comparison with the two candidates in the other order."""
        winners = {criterion: winner.swap() for criterion, winner in self.winners.items()}
        votes = tuple(vote.swap() for vote in self.votes)
        return replace(self, first_id=self.second_id, second_id=self.first_id, winners=winners, votes=votes)


PERCENT = "\N{NO-BREAK SPACE}%"


def percent(share: float, decimals: int = 1) -> str:
    """Return a share as `63.2 %`."""
    return f"{100 * share:.{decimals}f}{PERCENT}"


@dataclass(frozen=True)
class Rate:
    """An estimate with its interval, the number of units it rests on and of those left out."""

    estimate: float
    low: float
    high: float
    n: int
    missing: int = 0


@dataclass(frozen=True)
class Coefficient:
    """A coefficient of agreement or a correlation, its interval, and the number of things it rests on."""

    estimate: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Spread:
    """A figure that may be negative, with its interval, and the number of speeches that it rests on."""

    estimate: float
    low: float
    high: float
    speeches: int

    @property
    def is_distinct(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high
