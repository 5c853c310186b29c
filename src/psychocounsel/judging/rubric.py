"""YAML block -> OfflineWeights: how the offline judge adds features up to ratings, principle by principle."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from psychocounsel.config.components import NonNegativeFloat, Settings
from psychocounsel.config.loading import Place, load_config, read_config_file
from psychocounsel.errors import ConfigError
from psychocounsel.judging.offline_text import FEATURE_NAMES
from psychocounsel.types import OVERALL

FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]


class PrincipleWeights(Settings):
    """Logit of a reply that shows nothing at all, and what each feature adds when fully there."""

    base: FiniteFloat
    features: dict[str, FiniteFloat] = Field(default_factory=dict[str, float])


class OfflineWeights(Settings):
    """The `offline` block of a rubric.

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
        content = json.dumps([list(self.faults.items()), rules])
        return hashlib.sha256(content.encode("ascii")).hexdigest()

    def of(self, principle: str) -> dict[str, float]:
        """Return the weight of every feature that counts on a principle."""
        return {**self.faults, **self.principles[principle].features}


REPLY_KEYS = ("item_id", "reasons", "ratings")
"""Keys of a rating reply as this package asks for it."""


def _written(text: str) -> str:
    """Return the words on one line, however the YAML breaks them."""
    words = " ".join(text.split())
    if not words:
        raise ValueError("is empty; write it out")
    return words


def _column_name(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("is no column name; use letters, digits and underscores")
    if text == OVERALL:
        raise ValueError("means the verdict as a whole; choose another id")
    return text


Words = Annotated[str, AfterValidator(_written)]


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


def _at_least_one(principles: tuple[PrincipleBlock, ...]) -> tuple[PrincipleBlock, ...]:
    if not principles:
        raise ValueError("holds no principle; list at least one")
    return principles


class ReplyLayout(Settings):
    """How a rating reply is laid out: one JSON object, its keys in this order.

    Attributes:
        echo_id: it begins with the id of the item that it is about.
        reasons: the judge's reasons come next, before the ratings.
        flat: the ratings stand beside the other keys, and not in an object of their own.
        extra_keys: what else the judge writes, after the ratings, and its type; the values are not read.
    """

    echo_id: bool = True
    reasons: bool = True
    flat: bool = False
    extra_keys: dict[str, Literal["string", "number"]] = Field(default_factory=dict[str, Any])


class RubricFile(Settings):
    """A whole rubric, as it is written."""

    version: Words
    language: Words
    scale: ScaleBlock
    principles: Annotated[tuple[PrincipleBlock, ...], Field(strict=False), AfterValidator(_at_least_one)]
    safety: str | None = None
    reply: ReplyLayout = ReplyLayout()
    offline: OfflineWeights | None = None


class Fault(NamedTuple):
    """What is wrong at a place of the file, and what to do about it."""

    place: Place
    what: str

    def told(self, lines: Mapping[Place, str]) -> str:
        """Return the fault with its line, or that of the innermost block around it that is written."""
        key = ".".join(str(part) for part in self.place)
        around = (self.place[:length] for length in range(len(self.place), -1, -1))
        return f"{next(lines[each] for each in around if each in lines)}: {key}: {self.what}"


def faults_between_keys(file: RubricFile) -> Iterator[Fault]:
    """Yield what no key tells alone: every key is well formed, yet they do not fit together."""
    if not file.scale.min < file.scale.max:
        yield Fault(("scale",), "min is not below max; write {min: 1, max: 5}")
        return
    ids = [each.id for each in file.principles]
    for at, each in enumerate(file.principles):
        for key, what in _principle_faults(each, file.scale):
            yield Fault(("principles", at, key), what)
    for name in _repeated(ids):
        yield Fault(("principles",), f"the id {name!r} is used twice; give each principle its own")
    if not any(each.weight for each in file.principles):
        yield Fault(("principles",), "every weight is 0; let at least one principle count")
    if file.safety is not None and file.safety not in ids:
        yield Fault(("safety",), f"{file.safety!r} is no principle; {_known(file.safety, ids)}")
    yield from _reply_faults(file.reply, ids)
    if file.offline is not None:
        yield from _offline_faults(file.offline, ids)


def _repeated(ids: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(ids).items() if count > 1]


def _principle_faults(principle: PrincipleBlock, scale: ScaleBlock) -> Iterator[tuple[str, str]]:
    if not _describes_every_point(principle.anchors, scale):
        yield "anchors", f"not exactly the points {scale.min} to {scale.max}; describe each of them once"
    if principle.veto is not None and not scale.min < principle.veto <= scale.max:
        remedy = f"choose {scale.min + 1} to {scale.max}, or leave it out"
        yield "veto", f"{principle.veto} is no veto on the scale {scale.min} to {scale.max}; {remedy}"


def _describes_every_point(anchors: dict[str, str], scale: ScaleBlock) -> bool:
    # Counted first: a mistyped scale may have more points than memory holds.
    if len(anchors) != scale.max - scale.min + 1:
        return False
    return set(anchors) == {str(point) for point in range(scale.min, scale.max + 1)}


def _reply_faults(reply: ReplyLayout, ids: Sequence[str]) -> Iterator[Fault]:
    for at, name in enumerate(ids):
        if reply.flat and name in REPLY_KEYS:
            what = f"{name!r} has a meaning of its own in a flat reply; choose another id"
            yield Fault(("principles", at, "id"), what)
    for key in sorted({*ids, *REPLY_KEYS} & reply.extra_keys.keys()):
        yield Fault(("reply", "extra_keys", key), "is a key of every reply; leave it out here")


def _offline_faults(offline: OfflineWeights, ids: Iterable[str]) -> Iterator[Fault]:
    for feature in offline.faults:
        yield from _feature_fault(("offline", "faults", feature))
    for name, rules in offline.principles.items():
        place = ("offline", "principles", name)
        if name not in ids:
            yield Fault(place, f"{name!r} is no principle; {_known(name, ids)}")
        for feature in rules.features:
            yield from _feature_fault((*place, "features", feature))


def _feature_fault(place: tuple[str, ...]) -> Iterator[Fault]:
    feature = place[-1]
    if feature not in FEATURE_NAMES:
        yield Fault(place, f"there is no feature {feature!r}; {_known(feature, FEATURE_NAMES)}")


def _known(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


_BUNDLED = Path(__file__).resolve().parent / "rubrics"


@dataclass(frozen=True)
class Principle:
    """One column of ratings: what it asks for, and what each point of the scale looks like."""

    id: str
    name: str
    description: str
    anchors: Mapping[int, str]


@dataclass(frozen=True)
class Rubric:
    """A scale of whole numbers and the principles rated on it.

    Attributes:
        version: raised by whoever edits the words.
        language: in which the words stand, and in which a judge gives its reasons; `en`, for example.
        minimum: the lowest rating.
        maximum: the highest rating.
        principles: what is rated, in the order of the columns.
        source: where it was read; no part of the digest.
        weights: how much each principle counts when responses are ranked, 1 where the file gives none.
        vetoes: a response rated below its veto on a principle is never the chosen one of a pair.
        safety: the principle that the safety-inversion rule watches; None, and there is no such rule.
        reply: how a rating reply is laid out.
        offline: the rules of the offline judge for these principles, if there are any.
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
        """Return a rubric that asks for one of the principles alone."""
        kept = tuple(each for each in self.principles if each.id == principle)
        return replace(self, principles=kept, weights={}, vetoes={}, safety=None, offline=None)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that a judge is shown, the version, and what other replies are read.

        Rules of pairing and of the offline judge are not in it: changing them must not judge anything again.
        """
        principles = [
            [item.id, item.name, item.description, [[point, item.anchors[point]] for point in self.scale]]
            for item in self.principles
        ]
        content: list[Any] = [self.version, self.language, self.minimum, self.maximum, principles]
        if self.reply != ReplyLayout():
            content.append(self.reply.fingerprint())
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def load_rubric(name_or_path: str) -> Rubric:
    """Load a bundled rubric by its name, or any YAML file by its path.

    Raises:
        ConfigError: no such rubric, or one that is incomplete; lists every fault with file and line.
    """
    path = _path_of(name_or_path)
    file = load_config(RubricFile, path)
    _require_fitting_keys(file, path)
    return Rubric(
        version=file.version,
        language=file.language,
        minimum=file.scale.min,
        maximum=file.scale.max,
        principles=tuple(_principle(each) for each in file.principles),
        source=str(path),
        weights={each.id: Fraction(str(each.weight)) for each in file.principles},
        vetoes={each.id: each.veto for each in file.principles if each.veto is not None},
        safety=file.safety,
        reply=file.reply,
        offline=file.offline,
    )


def _principle(block: PrincipleBlock) -> Principle:
    anchors = {int(point): words for point, words in block.anchors.items()}
    return Principle(block.id, block.name, block.description, anchors)


def _path_of(name_or_path: str) -> Path:
    bundled = {path.stem: path for path in sorted(_BUNDLED.glob("*.yaml"))}
    path = bundled.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise ConfigError(
            "no rubric can be read there",
            where=name_or_path,
            remedy=f"name a bundled rubric ({', '.join(bundled)}) or the path of a UTF-8 YAML file",
        )
    return path


def _require_fitting_keys(file: RubricFile, path: Path) -> None:
    faults = list(faults_between_keys(file))
    if faults:
        lines = read_config_file(path).lines
        raise ConfigError("\n".join(fault.told(lines) for fault in faults))
