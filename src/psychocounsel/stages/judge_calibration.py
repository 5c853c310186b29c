"""calibrate-judge: a judge's ratings measured against people's ratings of the same responses."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from psychocounsel.config.schema import CalibrateJudgeConfig, RatingColumns
from psychocounsel.corpus.formats import SourceRow, is_table
from psychocounsel.corpus.sources import (
    cell,
    name_cell,
    read_rows,
    source_fingerprint,
    text_cell,
)
from psychocounsel.errors import DataQualityError, InputError
from psychocounsel.evaluation.judge_calibration import FEWEST_ITEMS, RatedItem, calibration
from psychocounsel.stages.audit import read_rated
from psychocounsel.stages.rating_table import rating_of
from psychocounsel.store.artifacts import Artifact, ArtifactSpec, ArtifactWriter, Kind, Parent
from psychocounsel.store.references import resolve
from psychocounsel.store.schemas import RATINGS_FILE, HumanRating, read_records
from psychocounsel.store.store import Store
from psychocounsel.types import Rating, exact_mean

VERSION = 1
STAGE = "calibrate-judge"


class RatingRow(NamedTuple):
    """One rating; what is not known of the response is empty."""

    where: str
    item: str
    rater: str
    principle: str
    score: object
    speech: str = ""
    author: str = ""
    text: str = ""


@dataclass
class Ratings:
    """The ratings of one response by principle and rater."""

    speech: str
    author: str
    text: str
    scores: dict[str, dict[str, Rating]] = field(default_factory=lambda: defaultdict(dict))

    def means(self, principles: Iterable[str]) -> dict[str, Fraction]:
        """Return the exact mean over raters of each principle that is rated."""
        return {name: exact_mean(self.scores[name].values()) for name in principles if name in self.scores}


def specs(config: CalibrateJudgeConfig, store: Store) -> ArtifactSpec:
    """Return what the stage would create.

    Raises:
        ConfigError: a reference matches nothing.
        InputError: a file is missing.
    """
    settings = config.fingerprint() | {"name": None}
    parents: list[Parent] = []
    for role, (ref, kind) in _sides(config).items():
        if is_table(ref):
            settings[role] = source_fingerprint(ref, "train")
        else:
            parents.append(resolve(store, ref, kind).as_parent(role))
            settings[role] = None
    return ArtifactSpec("judge-calibrations", config.name, STAGE, VERSION, settings, tuple(parents))


def _sides(config: CalibrateJudgeConfig) -> dict[str, tuple[str, Kind]]:
    return {"human": (config.human, "annotations"), "judge": (config.judge, "judgements")}


def calibrate_judge(config: CalibrateJudgeConfig, store: Store) -> Artifact:
    """Measure the judge of a config, or return the result if it exists.

    Raises:
        InputError: a rating cannot be read, is off the scale or stands there twice.
        DataQualityError: the two tables share too few responses.
    """
    return store.make(specs(config, store), lambda writer: _build(config, store, writer))


def _build(config: CalibrateJudgeConfig, store: Store, writer: ArtifactWriter) -> None:
    sides: dict[str, dict[str, Ratings]] = {}
    raters: dict[str, Counter[str]] = {}
    for role, (ref, _) in _sides(config).items():
        sides[role], raters[role] = _grouped(_rows(role, ref, config, store, writer), config)
    human, judge = sides["human"], sides["judge"]
    differing = [item for item in human if item in judge and _differ(human[item].text, judge[item].text)]
    different = list(dict.fromkeys(human[item].speech or item for item in differing))
    kept = config.different_texts == "keep"
    judged = _principles(judge)
    principles = [name for name in _principles(human) if name in judged]
    left_out = set[str]() if kept else set(differing)
    both = [item for item in human if item in judge and item not in left_out]
    rated = [_rated(item, human[item], judge[item], principles) for item in both]
    items = [each for each in rated if each.human]
    if len(items) < FEWEST_ITEMS:
        raise DataQualityError(
            f"only {len(items)} responses are rated by both, fewer than {FEWEST_ITEMS}",
            remedy="check that both use the same items and principles, or rate more",
        )
    if itself := raters["human"].keys() & raters["judge"].keys():
        writer.warnings.append(
            f"{', '.join(sorted(itself))} rated on both sides: agreement with oneself says nothing about a judge."
        )
    if different:
        what = "are counted all the same" if kept else "are left out"
        writer.warnings.append(
            f"{len(different)} speeches or items have one text beside people's ratings and another beside the judge's "
            f"({', '.join(different)}): their {len(differing)} responses {what}."
        )
    writer.write_metrics(
        {
            "judge": " + ".join(sorted(raters["judge"])),
            "raters": dict(sorted(raters["human"].items())),
            "items": len(items),
            "unmatched": {"human": len(human.keys() - judge.keys()), "judge": len(judge.keys() - human.keys())},
            "different_texts": different,
            "differing": len(differing),
            "kept": kept,
            **calibration(items, principles, config.gap, config.safety, config.unsafe_at_most),
        }
    )


def _rows(
    role: str, ref: str, config: CalibrateJudgeConfig, store: Store, writer: ArtifactWriter
) -> Iterator[RatingRow]:
    """Return the ratings of a side: of its artifact, if it is one, else of a table."""
    parent = next((each for each in writer.spec.parents if each.role == role), None)
    if parent is None:
        return _table(ref, config.columns)
    return _judged(store, store.open(parent)) if role == "judge" else _labelled(store.open(parent))


def _principles(side: Mapping[str, Ratings]) -> dict[str, None]:
    """Return what was rated, in the order in which it occurs."""
    return dict.fromkeys(name for each in side.values() for name in each.scores)


def _rated(item: str, human: Ratings, judge: Ratings, principles: Iterable[str]) -> RatedItem:
    """Return both sides' ratings on the principles that both rated."""
    both = [name for name in principles if name in human.scores and name in judge.scores]
    raters = {name: list(human.scores[name].values()) for name in both}
    author, speech = human.author or judge.author, human.speech or judge.speech or item
    return RatedItem(item, speech, author, human.means(both), judge.means(both), raters)


def _differ(one: str, other: str) -> bool:
    """Return whether two texts differ in more than white space; an unknown one differs from none."""
    return bool(one) and bool(other) and one.split() != other.split()


def _grouped(rows: Iterable[RatingRow], config: CalibrateJudgeConfig) -> tuple[dict[str, Ratings], Counter[str]]:
    """Return the ratings by item, and how many each rater gave."""
    low, high = config.scale
    items: dict[str, Ratings] = {}
    raters = Counter[str]()
    for row in rows:
        known = items.setdefault(row.item, Ratings(row.speech, row.author, row.text))
        scores = known.scores[row.principle]
        if row.rater in scores:
            raise InputError(
                f"{row.rater} has rated {row.principle} of item {row.item} twice",
                where=row.where,
                remedy="leave one row of each item, rater and principle",
            )
        scores[row.rater] = rating_of(row.score, row.where, low, high)
        raters[row.rater] += 1
    return items, raters


def _table(path: str, columns: RatingColumns) -> Iterator[RatingRow]:
    for row in read_rows(path):
        if (score := cell(row, columns.score)) in (None, ""):
            continue  # a rating that the rater left out
        yield RatingRow(
            row.where,
            name_cell(row, columns.item),
            name_cell(row, columns.rater),
            name_cell(row, columns.principle),
            score,
            **{name: _optional(row, getattr(columns, name), name) for name in ("speech", "author", "text")},
        )


def _optional(row: SourceRow, column: str, default: str) -> str:
    """Return the text of a column that tables need not have; one that the config names otherwise must be there."""
    if column == default and column not in row.values:
        return ""
    return name_cell(row, column) if isinstance(row.values.get(column), int) else text_cell(row, column)


def _judged(store: Store, judgements: Artifact) -> Iterator[RatingRow]:
    for speech, candidate, judgement in read_rated(store, judgements):
        for name, rating in judgement.ratings.items():
            about = {"speech": speech.id, "author": candidate.author, "text": candidate.text}
            yield RatingRow(judgements.ref, candidate.id, judgement.judge, name, rating, **about)


def _labelled(annotations: Artifact) -> Iterator[RatingRow]:
    if RATINGS_FILE not in annotations.manifest["files"]:
        raise InputError(
            "these labels say which answer is better, and a judge is calibrated by ratings of answers",
            where=annotations.ref,
            remedy="export judgements for raters, or correct the win rate by these labels: `psychocounsel anchor`",
        )
    for each in read_records(annotations, HumanRating):
        if each.labeller != "human":
            raise InputError("a model gave these ratings", where=annotations.ref, remedy="name people's ratings")
        if each.score is not None:
            about = {"speech": each.speech_id, "text": each.response}
            yield RatingRow(annotations.ref, each.item, each.rater, each.principle, each.score, **about)
