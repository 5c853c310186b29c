"""annotate: a random sample of answers for experts to label, blinded, and their labels back in the store."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Literal, NamedTuple, cast

from pydantic import ValidationError

from psychocounsel.config.components import Settings
from psychocounsel.config.schema import SIDES
from psychocounsel.corpus.formats import MAX_LINE_BYTES
from psychocounsel.errors import ConfigError, InputError, first_of
from psychocounsel.evaluation.anchor import FEWEST_LABELS, more_speeches
from psychocounsel.evaluation.annotations import Label, Value, annotation_metrics, is_random_sample, policy_points
from psychocounsel.judging.rubric import Rubric, load_rubric
from psychocounsel.reporting.annotation_page import (
    SKIP,
    AnnotationTask,
    Option,
    Question,
    ShownItem,
    render_csv,
    render_task,
)
from psychocounsel.stages.build_preferences import distinct_candidates
from psychocounsel.stages.respond import data_classes
from psychocounsel.store.artifacts import SHORT_ID, Artifact, ArtifactSpec, ArtifactWriter
from psychocounsel.store.evaluation_metrics import AnnotationTaskMetrics
from psychocounsel.store.files import digest_of, write_bytes
from psychocounsel.store.references import resolve_existing
from psychocounsel.store.schemas import (
    Annotation,
    AnnotationItem,
    HumanRating,
    read_candidates,
    read_comparisons,
    read_judgements,
    read_records,
    speeches_by_id,
    write_human_ratings,
    write_records,
)
from psychocounsel.store.store import Store, flatten
from psychocounsel.types import OVERALL, Candidate, Rating, Speech, content_id

VERSION = 1
STAGE = "annotate"
PAGE_FILE = "annotate.html"
CSV_FILE = "annotate.csv"
NAMED_FAULTS = 5
SHOWN_CHARS = 60
RESTRICTED = (
    "These texts are restricted: label them on the computer on which this page was made, and send the page to nobody."
)
Labeller = Literal["human", "model"]

_RATER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_COMPARISON = Question(
    OVERALL,
    "Which answer is better?",
    "",
    (
        Option("left", "Left", "\N{LEFTWARDS ARROW}"),
        Option("tie", "Tie", "t"),
        Option("right", "Right", "\N{RIGHTWARDS ARROW}"),
    ),
)


# --- Export ----------------------------------------------------------------------------------------------------------


def export_tasks(ref: str, store: Store, sample: int, seed: int, rubric: str) -> Artifact:
    """Write a random sample of the comparisons or judgements of an artifact for raters, or return it if it exists.

    Of comparisons, one draw of every speech comes before a second draw of any. Which items, in which order and with
    which answer on the left is decided by hashes of the seed and the item, so a larger sample of the same seed begins
    with the smaller one, with the same ids.

    Raises:
        ConfigError: nothing has this reference, the sample is larger than what there is, or the rubric is another one
            than the judge's.
    """
    source = resolve_existing(store, ref, "comparisons", "judgements")
    found = load_rubric(rubric) if source.kind == "judgements" else None
    if found is not None:
        _require_rubric(found, source)
    settings = {"sample": sample, "seed": seed, "rubric": found and found.digest}
    spec = ArtifactSpec("annotation-tasks", source.name, STAGE, VERSION, settings, (source.as_parent(source.kind),))
    return store.make(spec, lambda writer: _export(writer, source, store, found))


def _require_rubric(rubric: Rubric, judgements: Artifact) -> None:
    settings = flatten(judgements.manifest["settings"])
    if rubric.digest not in [value for key, value in settings.items() if key.endswith("rubric")]:
        raise ConfigError(
            f"judgements {judgements.ref} were made with another rubric",
            where=rubric.source,
            remedy="name the judge's rubric with --rubric",
        )


def _export(writer: ArtifactWriter, source: Artifact, store: Store, rubric: Rubric | None) -> None:
    settings = writer.spec.settings
    answers = _answers(source, store)
    speeches = speeches_by_id(store.open(source.parent("speeches")))
    seed = str(settings["seed"])
    items = _compared_items(source, seed) if rubric is None else _rated_items(source, answers, seed)
    if settings["sample"] > len(items):
        raise ConfigError(
            f"{source.kind} {source.ref} has {len(items)} items that can be labelled",
            where=f"--sample {settings['sample']}",
            remedy="ask for fewer",
        )
    sampled = items[: settings["sample"]]
    is_restricted = "restricted" in data_classes(store.open(source.parent("speeches"))).values()
    questions = (_COMPARISON,) if rubric is None else _rating_questions(rubric)
    task = AnnotationTask(
        writer.spec.id,
        "comparisons" if rubric is None else "ratings",
        questions,
        tuple(_shown(each, speeches, answers) for each in sampled),
        (RESTRICTED,) if is_restricted else (),
    )
    writer.notes["restricted"] = is_restricted  # no warning: labels and rates made from it send nobody a page
    covered, there = (len({each.speech_id for each in some}) for some in (sampled, items))
    if rubric is None and covered < FEWEST_LABELS:
        remedy = more_speeches(there) if there < FEWEST_LABELS else f"--sample {FEWEST_LABELS} or more covers enough"
        writer.warnings.append(
            f"The sample covers {covered} speeches: labels of it show how far people agree with each other, but do not "
            f"correct the win rate, for which `anchor` needs {FEWEST_LABELS} speeches; {remedy}."
        )
    write_records(writer, AnnotationItem, sampled)
    write_bytes(writer.file(PAGE_FILE), render_task(task).encode("utf-8"))
    write_bytes(writer.file(CSV_FILE), render_csv(task).encode("utf-8-sig"))
    writer.write_metrics(
        {
            "kind": task.kind,
            "items": len(sampled),
            "of": len(items),
            "speeches": covered,
            "questions": [each.id for each in questions],
            "scale": rubric and rubric.scale,
        }
    )


def _answers(source: Artifact, store: Store) -> dict[str, Candidate]:
    """Return every answer that an item may show, by id."""
    if source.kind == "judgements":
        return {each.id: each for each in distinct_candidates(store, source.parents)}
    sides = [source.parent(f"{side} answers") for side in SIDES]
    return {each.id: each for side in sides for each in read_candidates(store.open(side))}


def _compared_items(comparisons: Artifact, seed: str) -> list[AnnotationItem]:
    """Return an item for every draw of every speech that both sides answered, in random order, judged or not."""
    by_speech: dict[str, list[AnnotationItem]] = {}
    for row in read_comparisons(comparisons):
        if row.order == "forward":
            each = row.comparison
            item = content_id("annotation", seed, comparisons.id, each.speech_id, str(row.draw))
            policy_at = int(content_id("side", item), 16) % 2
            sides = (each.second_id, each.first_id) if policy_at else (each.first_id, each.second_id)
            by_speech.setdefault(each.speech_id, []).append(
                AnnotationItem(item, each.speech_id, row.draw, sides, policy_at)
            )
    ranked = [
        (rank, item)
        for items in by_speech.values()
        for rank, item in enumerate(sorted(items, key=lambda each: each.item))
    ]
    return [item for _, item in sorted(ranked, key=lambda each: (each[0], each[1].item))]


def _rated_items(judgements: Artifact, answers: Mapping[str, Candidate], seed: str) -> list[AnnotationItem]:
    """Return an item for every judged answer, in random order."""
    judged = [answers[each.candidate_id] for each in read_judgements(judgements)]
    items = [
        AnnotationItem(
            content_id("annotation", seed, judgements.id, each.id), each.speech_id, each.draw, (each.id,), None
        )
        for each in judged
    ]
    return sorted(items, key=lambda each: each.item)


def _rating_questions(rubric: Rubric) -> tuple[Question, ...]:
    return tuple(
        Question(
            each.id,
            each.name,
            each.description,
            tuple(Option(point, each.anchors[point], str(point)) for point in rubric.scale),
        )
        for each in rubric.principles
    )


def _shown(item: AnnotationItem, speeches: Mapping[str, Speech], answers: Mapping[str, Candidate]) -> ShownItem:
    return ShownItem(
        item.item, speeches[item.speech_id].transcript, tuple(answers[each].text for each in item.answer_ids)
    )


# --- Import ----------------------------------------------------------------------------------------------------------


class RaterFile(NamedTuple):
    """What one file holds: a rater, and what they say of each item that they saw."""

    path: Path
    rater: str
    labels: Mapping[str, Label]


Options = Mapping[str, Sequence[Value]]
"""What may be answered, by question."""


def import_labels(tasks: str, files: Sequence[Path], labeller: Labeller, store: Store) -> Artifact:
    """Add the labels in raters' files to the store, or return them if they are there.

    Raises:
        ConfigError: there is no such export.
        InputError: a file cannot be read, belongs to another export, or has labels that do not fit it; or a rater has
            labelled an item twice, or nobody any.
    """
    exported = resolve_existing(store, tasks, "annotation-tasks")
    asked = AnnotationTaskMetrics.model_validate(exported.metrics)
    scale = asked.scale
    if scale and len(scale) == 2:  # older exports have only its ends
        scale = tuple(range(int(scale[0]), int(scale[1]) + 1))
    options = dict.fromkeys(asked.questions, scale or [each.value for each in _COMPARISON.options])
    key = read_records(exported, AnnotationItem)
    labels: dict[str, dict[str, Label]] = {}
    for path in files:
        read = _read_json(path, exported, options) if path.suffix.lower() == ".json" else _read_csv(path, options)
        _add(labels, read, exported, {each.item for each in key})
    if not any(label is not None for own in labels.values() for label in own.values()):
        raise InputError("no item is labelled", where=", ".join(map(str, files)), remedy="give files with labels")
    labels = dict(sorted(labels.items()))
    settings = {"labeller": labeller, "labels": digest_of(labels)}
    spec = ArtifactSpec("annotations", exported.name, STAGE, VERSION, settings, (exported.as_parent("tasks"),))
    return store.make(spec, lambda writer: _import(writer, exported, store, key, labels))


class _SavedPage(Settings):
    """A file that the page has saved."""

    format: Literal["psychocounsel-annotations-1"]
    tasks: str
    rater: str
    labels: dict[str, dict[str, Value] | None]


def _read_json(path: Path, exported: Artifact, options: Options) -> RaterFile:
    try:
        saved = _SavedPage.model_validate_json(_bytes(path))
    except ValidationError:
        raise InputError(
            "is no file that the page has saved", where=str(path), remedy="give the .json file of a rater, or a .csv"
        ) from None
    if saved.tasks != exported.id:
        raise _of_another_export(path, exported, f"the page is that of {saved.tasks[:SHORT_ID]!r}")
    faults = [
        f"item {item}: {json.dumps(label)}"
        for item, label in saved.labels.items()
        if label is not None and _misfit(label, options)
    ]
    return _checked(RaterFile(path, saved.rater, saved.labels), faults, options)


def _read_csv(path: Path, options: Options) -> RaterFile:
    """Read a filled spreadsheet; its name is the rater's, and an item without any answer is pending."""
    # What a spreadsheet does to texts does not matter: only ids and answers are read.
    text = _bytes(path).decode("utf-8-sig", errors="replace")
    delimiter = ";" if ";" in text.partition("\n")[0] else ","
    csv.field_size_limit(MAX_LINE_BYTES)  # of the process: what else it has read must not decide
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [header.index(name) for name in ("item", *options)]
    except (csv.Error, ValueError):
        names = ", ".join(("item", *options))
        raise InputError(
            f"is no CSV file with the columns {names}", where=str(path), remedy=f"fill in the {CSV_FILE} of the export"
        ) from None
    labels: dict[str, Label] = {}
    faults: list[str] = []
    for row in rows:
        item, *given = (row[at].strip().lower() if at < len(row) else "" for at in columns)
        if not any(given):
            continue
        label = (
            None
            if SKIP in given
            else {name: _value(text, options[name]) for name, text in zip(options, given, strict=True)}
        )
        if label is not None and _misfit(label, options):
            faults.append(f"item {item}: {', '.join(repr(cell[:SHOWN_CHARS]) for cell in given)}")
        if item in labels:
            faults.append(f"item {item} a second time")
        labels[item] = label
    return _checked(RaterFile(path, path.stem, labels), faults, options)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as fault:
        raise InputError(f"cannot be read: {fault.strerror}", where=str(path), remedy="check the path") from None


def _value(text: str, options: Sequence[Value]) -> Value:
    """Return the option that a cell names, or its text."""
    return next((each for each in options if str(each) == text), text)


def _misfit(label: Mapping[str, Value], options: Options) -> bool:
    """Return whether a label lacks a question, has one that is not asked, or an answer that is not on the scale."""
    return label.keys() != options.keys() or any(value not in options[name] for name, value in label.items())


def _checked(read: RaterFile, faults: Sequence[str], options: Options) -> RaterFile:
    if not _RATER.fullmatch(read.rater):
        raise InputError(
            f"{read.rater!r} is no code of a rater",
            where=str(read.path),
            remedy="use up to 40 of a-z, A-Z, digits, dots, underscores, hyphens; the name of a .csv file is its rater",
        )
    if faults:
        values = "; ".join(f"{name}: {', '.join(map(str, of))}" for name, of in options.items())
        raise InputError(
            f"{len(faults)} labels do not fit: {first_of(faults, NAMED_FAULTS, '; ')}",
            where=str(read.path),
            remedy=f"give each item once, with an answer to every question, or {SKIP} ({values})",
        )
    return read


def _add(labels: dict[str, dict[str, Label]], read: RaterFile, exported: Artifact, known: Set[str]) -> None:
    """Add the labels of a file to those of its rater."""
    own = labels.setdefault(read.rater.lower(), {})
    unknown = [item for item in read.labels if item not in known]
    if unknown:
        raise _of_another_export(read.path, exported, f"{len(unknown)} items, {unknown[0]!r} the first, are unknown")
    twice = [item for item in read.labels if item in own]
    if twice:
        raise InputError(
            f"{read.rater} has labelled {len(twice)} items in another file already, {twice[0]} the first",
            where=str(read.path),
            remedy="give one file of each rater, and every rater a code of their own",
        )
    own.update(read.labels)


def _of_another_export(path: Path, exported: Artifact, what: str) -> InputError:
    return InputError(
        f"does not belong to annotation-tasks {exported.ref}: {what}",
        where=str(path),
        remedy="name the export that the rater was given; `psychocounsel list annotation-tasks` shows them",
    )


def _import(
    writer: ArtifactWriter,
    exported: Artifact,
    store: Store,
    key: Sequence[AnnotationItem],
    labels: Mapping[str, Mapping[str, Label]],
) -> None:
    labeller = str(writer.spec.settings["labeller"])
    sampled = "random" if is_random_sample(key, labels) else "other"
    questions = AnnotationTaskMetrics.model_validate(exported.metrics).questions
    source = store.open(exported.parents[0])
    given = [(rater, each, own[each.item]) for rater, own in labels.items() for each in key if each.item in own]
    if source.kind == "comparisons":
        write_records(
            writer,
            Annotation,
            (
                Annotation(
                    each.item,
                    source.id,
                    each.speech_id,
                    each.draw,
                    rater,
                    labeller,
                    *((SKIP, None) if label is None else (str(label[OVERALL]), policy_points(label[OVERALL], each))),
                    sampled,
                )
                for rater, each, label in given
            ),
        )
    else:
        answers = _answers(source, store)
        speeches = speeches_by_id(store.open(source.parent("speeches")))
        write_human_ratings(
            writer,
            (
                HumanRating(
                    each.answer_ids[0],
                    each.speech_id,
                    rater,
                    labeller,
                    name,
                    None if label is None else cast("Rating", label[name]),
                    sampled,
                    speeches[each.speech_id].transcript,
                    answers[each.answer_ids[0]].text,
                )
                for rater, each, label in given
                for name in questions
            ),
        )
    metrics = annotation_metrics(key, labels, questions)
    writer.write_metrics({"labeller": labeller, "sampled": sampled, **metrics})
