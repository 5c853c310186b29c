"""Rubrics: a scale, the principles rated on it, and how ratings are paired; each read from one YAML file."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from psychocounsel.config.base import Several
from psychocounsel.config.components import NonNegativeFloat, Settings
from psychocounsel.config.loading import Place, load_config, read_config_file
from psychocounsel.errors import ConfigError, did_you_mean
from psychocounsel.judging.offline_features import FEATURE_NAMES
from psychocounsel.types import OVERALL

REPLY_KEYS = ("item_id", "reasons", "ratings")
"""Keys of a rating reply, besides those that a rubric adds."""

_BUNDLED = Path(__file__).resolve().parent / "rubrics"


def _one_line(text: str) -> str:
    """Return the words on one line, however the YAML breaks them."""
    words = " ".join(text.split())
    if not words:
        raise ValueError("is empty; write it out")
    return words


def _column_name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("is no column name; use letters, digits and underscores")
    if text == OVERALL:
        raise ValueError("means the comparison as a whole; choose another id")
    if text == "raw":
        raise ValueError("names the column of rewards before normalisation; choose another id")
    return text


FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Words = Annotated[str, AfterValidator(_one_line)]


class ScaleBlock(Settings):
    """The lowest and the highest rating."""

    min: int
    max: int


class PrincipleBlock(Settings):
    """One principle: the words that a judge is shown, and how it counts when pairs are made."""

    id: Annotated[str, AfterValidator(_column_name)]
    name: Words
    description: Words
    anchors: dict[str, Words]
    weight: NonNegativeFloat = 1.0
    veto: int | None = None


class ReplyLayout(Settings):
    """How a rating reply is laid out: one JSON object, its keys in this order.

    Attributes:
        echo_id: it begins with the id of the item that it is about.
        reasons: the judge's reasons come next, before the ratings.
        flat: the ratings are keys of the reply, and not of an object of their own.
        extra_keys: what else the judge writes, after the ratings, and its type; the values are not read.
    """

    echo_id: bool = True
    reasons: bool = True
    flat: bool = False
    extra_keys: dict[str, Literal["string", "number"]] = Field(default_factory=dict[str, Any])


class PrincipleWeights(Settings):
    """Logit of a response that shows nothing at all, and what each feature adds when fully there."""

    base: FiniteFloat
    features: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])


class OfflineWeights(Settings):
    """How the offline judge rates: the `offline` block of a rubric.

    A principle's logit is its base plus the sum of weight times feature (see `offline_features`); the scale's
    ends are the ends of the logistic curve. `faults` count on every principle; one that a principle lists
    itself has that weight there instead.
    """

    faults: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])
    principles: dict[str, PrincipleWeights]

    @property
    def digest(self) -> str:
        """SHA-256 over every weight, in order: floating sums depend on it."""
        rules = [[name, by.base, list(by.features.items())] for name, by in self.principles.items()]
        return _digest([list(self.faults.items()), rules])

    def of(self, principle: str) -> dict[str, float]:
        """Return the weight of every feature that counts on a principle."""
        return {**self.faults, **self.principles[principle].features}


class RubricFile(Settings):
    """A whole rubric, as it is written."""

    version: Words
    language: Words
    scale: ScaleBlock
    principles: Several[PrincipleBlock]
    safety: str | None = None
    reply: ReplyLayout = ReplyLayout()
    offline: OfflineWeights | None = None


# --- Faults between keys: every key is well formed, yet they do not fit together -------------------------------------

Fault = tuple[Place, str]
"""A place of the file, and what is wrong there with the remedy."""


def _faults(file: RubricFile) -> Iterator[Fault]:
    low, high = file.scale.min, file.scale.max
    if not low < high:
        yield ("scale",), "min is not below max; write {min: 1, max: 5}"
        return
    if not file.principles:
        yield ("principles",), "holds no principle; list at least one"
        return
    ids = [each.id for each in file.principles]
    for at, each in enumerate(file.principles):
        # Counted first: a mistyped scale may have more points than memory holds.
        if len(each.anchors) != high - low + 1 or set(each.anchors) != set(map(str, range(low, high + 1))):
            yield ("principles", at, "anchors"), f"not exactly the points {low} to {high}; describe each of them once"
        if each.veto is not None and not low < each.veto <= high:
            remedy = f"choose {low + 1} to {high}, or leave it out"
            yield ("principles", at, "veto"), f"{each.veto} is no veto on the scale {low} to {high}; {remedy}"
        if file.reply.flat and each.id in REPLY_KEYS:
            yield ("principles", at, "id"), f"{each.id!r} is another key of a flat reply; choose another id"
    for name, count in Counter(ids).items():
        if count > 1:
            yield ("principles",), f"the id {name!r} is used twice; give each principle its own"
    if not any(each.weight for each in file.principles):
        yield ("principles",), "every weight is 0; let at least one principle count"
    if file.safety is not None and file.safety not in ids:
        yield ("safety",), f"{file.safety!r} is no principle; {did_you_mean(file.safety, ids)}"
    for key in sorted({*ids, *REPLY_KEYS} & file.reply.extra_keys.keys()):
        yield ("reply", "extra_keys", key), "is a key of every reply; leave it out here"
    if file.offline is not None:
        yield from _offline_faults(file.offline, ids)


def _offline_faults(offline: OfflineWeights, ids: Iterable[str]) -> Iterator[Fault]:
    places: list[tuple[str, ...]] = [("offline", "faults", feature) for feature in offline.faults]
    for name, rules in offline.principles.items():
        if name not in ids:
            yield ("offline", "principles", name), f"{name!r} is no principle; {did_you_mean(name, ids)}"
        places += [("offline", "principles", name, "features", feature) for feature in rules.features]
    for place in places:
        if place[-1] not in FEATURE_NAMES:
            yield place, f"there is no feature {place[-1]!r}; {did_you_mean(place[-1], FEATURE_NAMES)}"


# --- The rubric ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Principle:
    """One column of ratings: what it asks for, and what each point of the scale looks like."""

    id: str
    name: str
    description: str
    anchors: Mapping[int, str]


@dataclass(frozen=True)
class Rubric:
    """A scale of whole numbers and the principles rated on it, in the order of the columns.

    Attributes:
        version: raised when the words are edited.
        language: in which the words stand, and in which a judge gives its reasons; `en`, for example.
        source: where it was read; no part of the digest.
        weights: how much each principle counts when responses are ranked, 1 where the file gives none.
        vetoes: a response rated below its veto on a principle is never the chosen one of a pair.
        safety: the principle that the safety-inversion rule watches; None, and there is no such rule.
    """

    version: str
    language: str
    minimum: int
    maximum: int
    principles: tuple[Principle, ...]
    source: str = ""
    weights: Mapping[str, Fraction] = field(default_factory=dict[str, Fraction])
    vetoes: Mapping[str, int] = field(default_factory=dict[str, int])
    safety: str | None = None
    reply: ReplyLayout = field(default_factory=ReplyLayout)
    offline: OfflineWeights | None = None

    def __post_init__(self) -> None:
        weights = {name: self.weights.get(name, Fraction(1)) for name in self.principle_ids}
        object.__setattr__(self, "weights", weights)

    @property
    def principle_ids(self) -> tuple[str, ...]:
        """Ids of the principles, in order."""
        return tuple(principle.id for principle in self.principles)

    @property
    def scale(self) -> tuple[int, ...]:
        """Every rating there is, the lowest first."""
        return tuple(range(self.minimum, self.maximum + 1))

    def only(self, principle: str) -> "Rubric":
        """Return a rubric with one of the principles alone."""
        kept = tuple(each for each in self.principles if each.id == principle)
        return replace(self, principles=kept, weights={}, vetoes={}, safety=None, offline=None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that a judge is shown, the version, and the layout of replies.

        Rules of pairing and of the offline judge are not in it: a change to them must not judge anything again.
        """
        principles = [
            [item.id, item.name, item.description, [[point, item.anchors[point]] for point in self.scale]]
            for item in self.principles
        ]
        content: list[Any] = [self.version, self.language, self.minimum, self.maximum, principles]
        if self.reply != ReplyLayout():
            content.append(self.reply.fingerprint())
        return _digest(content)


def _digest(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def load_rubric(name_or_path: str) -> Rubric:
    """Load a bundled rubric by its name, or any YAML file by its path.

    Raises:
        ConfigError: no such rubric, or one that is incomplete; lists every fault with file and line.
    """
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.yaml"))}
    path = bundled.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ConfigError(
            "no rubric can be read there",
            where=name_or_path,
            remedy=f"name a bundled rubric ({', '.join(bundled)}) or the path of a UTF-8 YAML file; it begins beside "
            "the config that the command names, also if that config includes the judge from another folder",
        )
    file = load_config(RubricFile, path)
    if faults := list(_faults(file)):
        lines = read_config_file(path).lines
        raise ConfigError(
            "\n".join(f"{_line(place, lines)}: {'.'.join(map(str, place))}: {what}" for place, what in faults)
        )
    blocks = file.principles
    return Rubric(
        version=file.version,
        language=file.language,
        minimum=file.scale.min,
        maximum=file.scale.max,
        principles=tuple(
            Principle(each.id, each.name, each.description, {int(at): words for at, words in each.anchors.items()})
            for each in blocks
        ),
        source=str(path),
        weights={each.id: Fraction(str(each.weight)) for each in blocks},
        vetoes={each.id: each.veto for each in blocks if each.veto is not None},
        safety=file.safety,
        reply=file.reply,
        offline=file.offline,
    )


def _line(place: Place, lines: Mapping[Place, str]) -> str:
    """Return the line of a place, or that of the innermost block around it that is written."""
    return next(lines[place[:length]] for length in range(len(place), -1, -1) if place[:length] in lines)
