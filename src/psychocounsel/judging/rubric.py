"""YAML -> Rubric: the principles on which responses are rated, in words that a clinician can edit."""

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml

from psychocounsel.domain import OVERALL
from psychocounsel.errors import ConfigError

_BUNDLED = files("psychocounsel.judging") / "rubrics"
_RUBRIC_KEYS = ("version", "language", "scale", "principles")
_PRINCIPLE_KEYS = ("id", "name", "description", "anchors")


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

    `source` says where it was read and is no part of the digest: the words are what counts.
    """

    version: str
    language: str
    minimum: int
    maximum: int
    principles: tuple[Principle, ...]
    source: str = ""

    @property
    def principle_ids(self) -> tuple[str, ...]:
        """Ids of the principles, in order."""
        return tuple(principle.id for principle in self.principles)

    @property
    def scale(self) -> tuple[int, ...]:
        """Every rating there is, the lowest first."""
        return tuple(range(self.minimum, self.maximum + 1))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that a judge is shown, and the version."""
        principles = [
            [item.id, item.name, item.description, [[point, item.anchors[point]] for point in self.scale]]
            for item in self.principles
        ]
        content = [self.version, self.language, self.minimum, self.maximum, principles]
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()


def load_rubric(name_or_path: str) -> Rubric:
    """Load a bundled rubric by its name, or any YAML file by its path.

    Raises:
        ConfigError: no such rubric, or one that is incomplete; says in which file and where.
    """
    text, source = _read(name_or_path)
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader that refuses duplicate keys
    except yaml.YAMLError as error:
        raise ConfigError(_flat(str(error)), where=source, remedy="mend the YAML") from error
    return _Reader(source).rubric(raw)


def _read(name_or_path: str) -> tuple[str, str]:
    bundled = sorted(entry.name.removesuffix(".yaml") for entry in _BUNDLED.iterdir())
    if name_or_path in bundled:
        return (_BUNDLED / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"{name_or_path}.yaml"
    try:
        return Path(name_or_path).read_text(encoding="utf-8"), name_or_path
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            "no rubric can be read there",
            where=name_or_path,
            remedy=f"name a bundled rubric ({', '.join(bundled)}) or the path of a UTF-8 YAML file",
        ) from error


def _flat(message: str) -> str:
    return " ".join(message.split())


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key {key.value!r}", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class _Reader:
    """Turns plain data into a rubric and says of every fault where it stands."""

    source: str

    def rubric(self, raw: object) -> Rubric:
        """Check the whole file."""
        top = self._mapping(raw, _RUBRIC_KEYS, "the rubric")
        minimum, maximum = self._scale(top["scale"])
        principles = top["principles"]
        if not isinstance(principles, list) or not principles:
            raise self._fault("'principles' is not a list of principles", "list at least one")
        scale = range(minimum, maximum + 1)
        read = tuple(
            self._principle(entry, number, scale)
            for number, entry in enumerate(cast("list[object]", principles), start=1)
        )
        self._distinct([principle.id for principle in read])
        return Rubric(
            version=self._text(top["version"], "version"),
            language=self._text(top["language"], "language"),
            minimum=minimum,
            maximum=maximum,
            principles=read,
            source=self.source,
        )

    def _scale(self, raw: object) -> tuple[int, int]:
        scale = self._mapping(raw, ("min", "max"), "scale")
        low, high = scale["min"], scale["max"]
        if type(low) is not int or type(high) is not int or not low < high:
            raise self._fault(
                "scale: min and max are not whole numbers with min below max", "write min: 1, max: 5"
            )
        return low, high

    def _principle(self, raw: object, number: int, scale: range) -> Principle:
        place = f"principle {number}"
        entry = self._mapping(raw, _PRINCIPLE_KEYS, place)
        name = self._text(entry["id"], f"{place}: id")
        if not name.isidentifier():
            raise self._fault(
                f"{place}: id {name!r} is no column name", "use letters, digits and underscores"
            )
        anchors = entry["anchors"]
        if not isinstance(anchors, dict) or set(cast("dict[object, object]", anchors)) != set(scale):
            raise self._fault(
                f"{place} ({name}): anchors are not exactly the points {scale.start} to {scale.stop - 1}",
                "describe each point of the scale once, with the whole number as its key",
            )
        return Principle(
            id=name,
            name=self._text(entry["name"], f"{place} ({name}): name"),
            description=self._text(entry["description"], f"{place} ({name}): description"),
            anchors={
                point: self._text(
                    cast("dict[int, object]", anchors)[point], f"{place} ({name}): anchor {point}"
                )
                for point in scale
            },
        )

    def _mapping(self, raw: object, keys: tuple[str, ...], place: str) -> dict[str, object]:
        if not isinstance(raw, dict):
            raise self._fault(f"{place} is not a block of keys", f"give the keys {', '.join(keys)}")
        block = cast("dict[str, object]", raw)
        missing = [key for key in keys if key not in block]
        if missing:
            raise self._fault(f"{place} lacks the key(s) {', '.join(missing)}", "add them")
        unknown = [str(key) for key in block if key not in keys]
        if unknown:
            raise self._fault(
                f"{place} has the unknown key(s) {', '.join(unknown)}", f"keep to {', '.join(keys)}"
            )
        return block

    def _text(self, raw: object, place: str) -> str:
        if not isinstance(raw, str):
            raise self._fault(f"{place} is not text", "put it in quotes")
        if not raw.strip():
            raise self._fault(f"{place} is empty", "write it out")
        return " ".join(raw.split())

    def _distinct(self, names: list[str]) -> None:
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise self._fault(f"principle id(s) used twice: {', '.join(repeated)}", "give each its own id")
        if OVERALL in names:
            raise self._fault(
                f"a principle is called '{OVERALL}'", "that name means the verdict as a whole; choose another"
            )

    def _fault(self, what: str, remedy: str) -> ConfigError:
        return ConfigError(what, where=self.source, remedy=remedy)
