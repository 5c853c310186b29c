"""Artifacts, example answers -> ReportData: everything a report shows, without a store behind it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, cast

from psychocounsel.domain import Rate, Speech
from psychocounsel.store.artifacts import Artifact, Parent

REPORT_FILE = "report.html"

_RATE_KEYS = {"estimate", "low", "high", "n", "missing"}


class ParentFacts(NamedTuple):
    """An artifact that another one was made from, and its role there."""

    role: str
    kind: str
    ref: str
    id: str

    @classmethod
    def of(cls, parents: Iterable[Parent]) -> "tuple[ParentFacts, ...]":
        """Return the facts of an artifact's parents."""
        return tuple(cls(each.role, each.kind, each.ref, each.id) for each in parents)


class FileFacts(NamedTuple):
    """A file of an artifact as its manifest lists it."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ArtifactFacts:
    """One artifact: what its manifest and its `metrics.json` say."""

    kind: str
    name: str
    ref: str
    id: str
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rows: Mapping[str, int] = field(default_factory=dict[str, int])
    parents: tuple[ParentFacts, ...] = ()
    notices: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    files: tuple[FileFacts, ...] = ()
    made_with: Mapping[str, str] = field(default_factory=dict[str, str])
    stage: str = ""
    version: int = 1
    created_at: str = ""
    seconds: float = 0.0

    @classmethod
    def of(cls, artifact: Artifact) -> "ArtifactFacts":
        """Return the facts of a sealed artifact."""
        manifest = artifact.manifest
        files = manifest["files"].items()
        return cls(
            kind=artifact.kind,
            name=artifact.name,
            ref=artifact.ref,
            id=artifact.id,
            metrics=artifact.metrics,
            rows=manifest["rows"],
            parents=ParentFacts.of(artifact.parents),
            notices=artifact.notices,
            settings=manifest["settings"],
            files=tuple(FileFacts(name, entry["bytes"], entry["sha256"]) for name, entry in files),
            made_with=manifest["made_with"],
            stage=manifest["stage"],
            version=manifest["version"],
            created_at=manifest["created_at"],
            seconds=manifest["seconds"],
        )

    @property
    def anchor(self) -> str:
        """Where the closing table tells about it."""
        return f"artifact-{self.id[:8]}"

    @property
    def settings_text(self) -> str:
        """The settings as indented JSON."""
        return json.dumps(dict(self.settings), indent=1, ensure_ascii=False, sort_keys=True)

    def value(self, *path: str) -> Any:
        """Return what stands at a path of `metrics.json`, None where it ends early."""
        value: Any = self.metrics
        for key in path:
            if not isinstance(value, Mapping):
                return None
            value = cast(Mapping[str, Any], value).get(key)
        return value

    def table(self, *path: str) -> Mapping[str, Any]:
        """Return the mapping at a path, empty where there is none."""
        value = self.value(*path)
        return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}

    def number(self, *path: str) -> float | None:
        """Return the number at a path, None where there is none."""
        value = self.value(*path)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    def sequence(self, *path: str) -> Sequence[Any]:
        """Return the list at a path, empty where there is none."""
        value = self.value(*path)
        return cast(Sequence[Any], value) if isinstance(value, list | tuple) else ()

    def rate(self, *path: str) -> Rate | None:
        """Return the rate at a path, None where there is none."""
        return as_rate(self.value(*path))

    def rates(self, *path: str) -> dict[str, Rate]:
        """Return the rates by name at a path."""
        read = {name: as_rate(value) for name, value in self.table(*path).items()}
        return {name: rate for name, rate in read.items() if rate is not None}


def as_rate(value: Any) -> Rate | None:
    """Read the shape in which `metrics.json` holds a rate; None for anything else."""
    if not isinstance(value, Mapping):
        return None
    shape = cast(Mapping[str, Any], value)
    return Rate(**{key: shape[key] for key in _RATE_KEYS}) if shape.keys() >= _RATE_KEYS else None


def in_order(by_split: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told by split as train, dev, test; `metrics.json` sorts by letter."""
    return {split: by_split[split] for split in ("train", "dev", "test") if split in by_split}


@dataclass(frozen=True)
class Example:
    """A test speech, both answers and what the judge said of them in both orders, by criterion."""

    speech: Speech
    policy_text: str
    reference_text: str
    outcomes: Mapping[str, str]


@dataclass(frozen=True)
class ExampleSet:
    """Examples out of one verdicts artifact, and who wrote the answers."""

    verdicts_ref: str
    policy_author: str
    reference_author: str
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class ReportData:
    """A run to be shown: its artifacts, parents before children, and some of its answers."""

    title: str
    artifacts: tuple[ArtifactFacts, ...]
    examples: tuple[ExampleSet, ...] = ()

    @cached_property
    def by_id(self) -> Mapping[str, ArtifactFacts]:
        """The artifacts by their full id."""
        return {each.id: each for each in self.artifacts}

    def of_kind(self, kind: str) -> list[ArtifactFacts]:
        """Return the artifacts of a kind, parents before children."""
        return [each for each in self.artifacts if each.kind == kind]

    @cached_property
    def datasets(self) -> list[ArtifactFacts]:
        """Preference datasets: those with splits; the pairs of an online round have none."""
        return [each for each in self.of_kind("preferences") if "combinations" not in each.table("pairing")]

    @cached_property
    def final_policies(self) -> list[ArtifactFacts]:
        """Policies that are not a round on the way to another policy."""
        on_the_way = {each.id for policy in self.of_kind("policies") for each in self.rounds_of(policy)[:-1]}
        return [each for each in self.of_kind("policies") if each.id not in on_the_way]

    def rounds_of(self, policy: ArtifactFacts) -> list[ArtifactFacts]:
        """Return the policies of an online run, round by round, ending with `policy` itself."""
        chain = [policy]
        while len(chain) < len(policy.sequence("rounds")):
            previous = self.parent_of(chain[0], "previous policy")
            if previous is None:
                break
            chain.insert(0, previous)
        return chain

    def parent_of(self, artifact: ArtifactFacts, role: str) -> ArtifactFacts | None:
        """Return the parent in a role, None where it has none or it is not in the report."""
        ids = [parent.id for parent in artifact.parents if parent.role == role]
        return self.by_id.get(ids[0]) if ids else None
