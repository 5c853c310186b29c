"""YAML -> RubricFile: the keys of a rubric, and every fault in it with its place."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field

from psychocounsel.config.base import NonNegativeFloat, Settings
from psychocounsel.config.yaml_lines import Place
from psychocounsel.domain import OVERALL
from psychocounsel.judging.offline_features import FEATURE_NAMES
from psychocounsel.judging.offline_weights import OfflineWeights

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
