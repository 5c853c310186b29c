"""YAML -> Rubric: the principles on which responses are rated, in words that a clinician can edit."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

from psychocounsel.config.loading import load_config, read_config_file
from psychocounsel.errors import ConfigError
from psychocounsel.judging.offline_weights import OfflineWeights
from psychocounsel.judging.rubric_file import PrincipleBlock, ReplyLayout, RubricFile, faults_between_keys

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
            content.append(self.reply.identity())
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
