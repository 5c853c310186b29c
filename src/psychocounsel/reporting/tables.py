"""Artifacts, example answers -> ReportData: everything a report shows, without a store behind it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, cast

from markupsafe import Markup

from psychocounsel.store.artifacts import Artifact, Parent
from psychocounsel.types import Rate, Speech

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
            notices=artifact.warnings,
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


class Block:
    """One piece of a section; `template` names the macro that writes it."""

    template: ClassVar[str]


@dataclass(frozen=True)
class Share:
    """A table cell with a bar: how much of something (0 to 1), and the words for it."""

    part: float
    words: str


Cell = str | Share


@dataclass(frozen=True)
class Paragraph(Block):
    """Plain words."""

    template: ClassVar[str] = "paragraph"
    words: str


@dataclass(frozen=True)
class Heading(Block):
    """A title within a section, and the artifacts that it is about."""

    template: ClassVar[str] = "heading"
    words: str
    sources: tuple[ArtifactFacts, ...] = ()


@dataclass(frozen=True)
class Table(Block):
    """Rows under a header; the first column is a label. `align` has l or r per column."""

    template: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    align: str
    rows: tuple[tuple[Cell, ...], ...]
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Plot(Block):
    """A drawing with its caption; `alternative` tells in words what it shows."""

    template: ClassVar[str] = "plot"
    svg: Markup
    caption: str
    alternative: str
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Plots(Block):
    """Drawings side by side where there is room."""

    template: ClassVar[str] = "plots"
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Card(Block):
    """A headline figure: label, value, its interval in words and a remark."""

    template: ClassVar[str] = "card"
    label: str
    value: str
    interval: str
    remark: str
    sources: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Cards(Block):
    """Headline figures side by side."""

    template: ClassVar[str] = "cards"
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Lineage(Block):
    """The picture of where everything came from, drawn for a wide and for a narrow page."""

    template: ClassVar[str] = "lineage"
    wide: Markup
    tall: Markup
    caption: str


@dataclass(frozen=True)
class Answers(Block):
    """One client speech with both answers side by side and the verdict."""

    template: ClassVar[str] = "answers"
    example: Example
    verdict: str
    policy_author: str
    reference_author: str


@dataclass(frozen=True)
class Ledger(Block):
    """Every artifact with its parents, settings, files and versions."""

    template: ClassVar[str] = "ledger"
    artifacts: tuple[ArtifactFacts, ...]


@dataclass(frozen=True)
class Section:
    """A part of the page with a title."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


PERCENT = "\N{NO-BREAK SPACE}%"


def percent(value: float) -> str:
    """Return a share as `63.2 %`."""
    return f"{100 * value:.1f}{PERCENT}"


def decimal(value: float) -> str:
    """Return a figure with three decimals."""
    return f"{value:.3f}"


def interval_words(rate: Rate, *, as_percent: bool = True) -> str:
    """Return `55.1 to 70.9 %` or `0.551 to 0.709`."""
    if as_percent:
        return f"{100 * rate.low:.1f} to {100 * rate.high:.1f}{PERCENT}"
    return f"{decimal(rate.low)} to {decimal(rate.high)}"


def count_words(rate: Rate) -> str:
    """Return how many units a rate rests on and how many are missing."""
    return f"n = {rate.n}, {rate.missing} missing"


def reason_words(counts: dict[str, int]) -> str:
    """Return `12 too short, 3 empty`; a dash for nothing."""
    named = [f"{count} {reason.replace('_', ' ')}" for reason, count in counts.items() if count]
    return ", ".join(named) or "–"  # noqa: RUF001 - an en dash stands for an empty cell


_MAX_ROWS = 50
NOTHING = ""


def card_table(
    caption: str,
    header: tuple[str, ...],
    align: str,
    rows: Iterable[tuple[str, ...]],
    *read: ArtifactFacts,
) -> Table:
    """Return a table short enough for a card: what is left out is counted in its last line.

    A column in which nothing is known is left out.
    """
    every = list(rows)
    filled = [at for at in range(len(header)) if any(row[at] for row in every)]
    shown = [tuple(row[at] for at in filled) for row in every[:_MAX_ROWS]]
    if len(every) > _MAX_ROWS:
        shown.append((f"and {len(every) - _MAX_ROWS} more", *[NOTHING] * (len(filled) - 1)))
    names, sides = tuple(header[at] for at in filled), "".join(align[at] for at in filled)
    return Table(caption, names, sides, tuple(shown), read)


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    """Return counts, the largest first; equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def share(part: int, whole: int) -> str:
    """Return a part as a percentage; nothing of nothing is not known."""
    return percent(part / whole) if whole else NOTHING


def words(name: str) -> str:
    """Return the name of a step or a flaw as words."""
    return name.replace("_", " ")


_HEADER = ("step", "in", "kept", "share kept", "dropped, by reason")


def funnel_line(step: str, rows_in: int, kept: int, dropped: Mapping[str, int]) -> tuple[Cell, ...]:
    """Return a line of the funnel; it says so where the parts are not the whole."""
    lost = rows_in - kept - sum(dropped.values())
    reasons = reason_words({**dropped, "unaccounted for": lost} if lost else dict(dropped))
    part = kept / rows_in if rows_in else 0.0
    return (step, str(rows_in), str(kept), Share(part, percent(part)), reasons)


def funnel_table(caption: str, lines: Sequence[tuple[Cell, ...]], *sources: ArtifactFacts) -> Table:
    """Return the table of some lines and the artifacts that they are about."""
    return Table(caption, _HEADER, "lrrll", tuple(lines), sources)


class Words(NamedTuple):
    """A figure in a sentence, and in few words for a plot or a card."""

    full: str
    short: str


EMPTY_REPLY = {"empty": "empty_reply"}
"""The status of a judge whose own reply was empty, and not the response that it was shown."""

SAME_TIER = "same_tier"
BASELINES = {
    "author_identity": Words("the better author wins", "who wrote it"),
    "longer_wins": Words("the longer answer wins", "longer wins"),
    SAME_TIER: Words("between authors of one tier", "same-tier pairs"),
}
"""Beside the accuracy of a reward model; that of `same_tier` is the reward model's own."""


def missing_by_topic(artifact: ArtifactFacts, what: str) -> list[Table]:
    """Return the topics of which something is missing, for refusals are not missing at random; or nothing."""
    shares = cast(Mapping[str, Mapping[str, int]], artifact.table("missing_by_topic"))
    rows: list[tuple[Cell, ...]] = []
    for topic, share in shares.items():
        if share["missing"]:
            part = share["missing"] / share["total"]
            counts = (str(share["missing"]), str(share["total"]))
            rows.append((topic or "(no topic)", *counts, Share(part, percent(part))))
    header = ("topic", "missing", "of", "share missing")
    caption = f"Missing {what} by topic of the speech; topics that are not listed miss none."
    return [Table(caption, header, "lrrl", tuple(rows), (artifact,))] if rows else []


def unanswered(verdicts: ArtifactFacts, authors: Mapping[str, str]) -> list[Paragraph]:
    """Say who left speeches without an answer, and why; nothing where both sides answered all.

    Args:
        verdicts: of the comparison.
        authors: by side, `policy` and `reference`.
    """
    failed = cast(Mapping[str, dict[str, int]], verdicts.table("missing_answers"))
    told = [f"{authors[side]}: {reason_words(by)}" for side, by in failed.items() if by]
    words = "Speeches without an answer to compare are missing, and a win for nobody"
    return [Paragraph(f"{words}. {'; '.join(told)}.")] if told else []


Metrics = Mapping[str, Any]

OBEYS = "OBEYS: do not trust its ratings of texts that address it"
UNTRIED = "not tried: no response could gain a point"


def audit_lines(metrics: Metrics) -> list[str]:
    """Return what a judge is worth; a part that was left out has no line."""
    return [
        *_judged(metrics["judged"]),
        _spread(metrics),
        *_length(metrics["length"]),
        *_retested(metrics["retest"]),
        *_alone(metrics["one_principle"]),
        *_resistance(metrics["canaries"]),
    ]


def _judged(judged: Metrics) -> list[str]:
    status = ", ".join(f"{count} {name}" for name, count in judged["status"].items())
    missing = judged["judged"] - judged["status"].get("valid", 0)
    share = f"{missing} missing ({_percent(missing / judged['judged'] if judged['judged'] else 0.0)})"
    lines = [f"judgements: {judged['judged']} ({status}); {share}"]
    for topic, by in judged["missing_by_topic"].items():
        if by["missing"]:
            told = f"{by['missing']} of {by['total']} ({_percent(by['missing'] / by['total'])})"
            lines.append(f"  missing in {topic or 'no topic'}: {told}")
    lines += [f"  {name}: {_histogram(counts)}" for name, counts in judged["histograms"].items()]
    return [*lines, f"responses that seem to address the judge: {judged['addresses_judge']}"]


def _histogram(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {rating}" for rating, count in counts.items())


def _spread(metrics: Metrics) -> str:
    return (
        f"ties between responses to one speech: {_rate(metrics['ties'])}; "
        f"halo (mean correlation of two principles): {_number(metrics['halo'])}"
    )


def _length(length: Metrics | None) -> list[str]:
    if length is None:
        return []
    return [f"rank correlation of rating and length: {length['estimate']:.2f} {_bounds(length)}"]


def _retested(retest: Metrics | None) -> list[str]:
    if retest is None:
        return []
    whole = f"asked again: {retest['asked']} responses, {retest['missing']} missing"
    if retest["change"] is None:
        return [whole]
    return [
        f"{whole}; equal ratings {_rate(retest['equal'])}, within a point {_rate(retest['within_one'])}",
        f"  weighted kappa {_number(retest['kappa'])}; the mean rating changed by {_gain(retest['change'])}",
    ]


def _alone(alone: Metrics | None) -> list[str]:
    if alone is None:
        return []
    whole = f"one principle per call: {alone['asked']} responses, {alone['missing']} missing"
    if alone["mean_difference"] is not None:
        whole += f"; ratings differ by {_number(alone['mean_difference'])} points in the mean"
    halo = alone["halo"]
    if halo is None:
        return [whole]
    difference = f"difference {halo['difference']:+.2f} {_bounds(halo)}"
    return [whole, f"  halo {halo['together']:.2f} all in one, {halo['alone']:.2f} alone: {difference}"]


def _resistance(canaries: Metrics | None) -> list[str]:
    if canaries is None:
        return []
    if not canaries["asked"]:
        return [f"canaries: {UNTRIED}"]
    whole = f"canaries: {canaries['asked']} copies, {canaries['missing']} missing, {canaries['flagged']} flagged"
    if canaries["gain"] is None:
        return [whole]
    won = len(canaries["gained_a_point"])
    verdict = "resists" if canaries["resists"] else OBEYS
    return [
        f"{whole}; the mean rating changed by {_gain(canaries['gain'])}",
        f"  {won} of {canaries['gain']['n']} gained a point or more, {canaries['lost_a_point']} lost one: "
        f"the judge {verdict}",
    ]


def _gain(gain: Metrics) -> str:
    return f"{gain['mean']:+.2f} {_bounds(gain)}, at most {gain['largest']:+.2f} points"


def _bounds(told: Mapping[str, float | None]) -> str:
    low, high = told["low"], told["high"]
    return "[unknown]" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None:
        return "unknown"
    return f"{_percent(rate['estimate'])} [{_percent(rate['low'])}, {_percent(rate['high'])}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
