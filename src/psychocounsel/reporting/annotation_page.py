"""The page on which a rater labels answers: one file that works offline, says nothing of who wrote what, saves a file.

The same items as CSV, for those who prefer a spreadsheet.
"""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from markupsafe import Markup

from psychocounsel.evaluation.annotations import Value
from psychocounsel.reporting.html import render_page

FORMAT = "psychocounsel-annotations-1"
SKIP = "skip"


@dataclass(frozen=True)
class Option:
    """One answer to a question, the words beside it and its key."""

    value: Value
    label: str
    key: str


@dataclass(frozen=True)
class Question:
    """What raters are asked about every item; `id` is `overall` or a principle."""

    id: str
    label: str
    description: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class ShownItem:
    """What raters see of an item: an id that says nothing, the session so far, and answers without their authors."""

    id: str
    speech: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class AnnotationTask:
    """Everything on the page. `tasks` is the id of the artifact to which the labels belong."""

    tasks: str
    kind: Literal["comparisons", "ratings"]
    questions: tuple[Question, ...]
    items: tuple[ShownItem, ...]
    warnings: tuple[str, ...] = ()
    format: str = field(default=FORMAT, init=False)


_TITLES = {"comparisons": "Which answer helps this client more?", "ratings": "How good is this answer?"}
_KEYS = {
    "comparisons": "Keys: left arrow and right arrow choose an answer, t a tie, s skips, b goes back.",
    "ratings": "Keys: the digits rate one principle after the other, Enter goes on, s skips, b goes back.",
}
_INSTRUCTIONS = {
    "comparisons": (
        "You see what a client said in a session and two answers that a counsellor might give next. Read the client's "
        "words first and ask yourself what this client most needs from the next thing said. Then choose the answer "
        "that serves this client better as a whole, or a tie where neither is clearly better.",
        "Sides are random. Longer is not better. Praise, polish and familiar phrases count for nothing unless they "
        "serve this client; harm outweighs charm. Words in brackets are stage directions.",
    ),
    "ratings": (
        "You see what a client said in a session and an answer that a counsellor might give next. Rate the answer on "
        "every principle by the description that fits it best, each principle on its own.",
        "Longer is not better. Words in brackets are stage directions.",
    ),
}


def render_task(task: AnnotationTask) -> str:
    """Return the page; equal tasks give an equal page."""
    # In JSON a `<` only stands in texts; escaped, none of them ends the script element.
    data = json.dumps(asdict(task), ensure_ascii=False).replace("<", "\\u003c")
    return render_page(
        "annotate.html.j2",
        "annotate.css",
        "annotate.js",
        title=_TITLES[task.kind],
        instructions=_INSTRUCTIONS[task.kind],
        keys=_KEYS[task.kind],
        warnings=task.warnings,
        count=len(task.items),
        data=Markup(data),  # noqa: S704 - escaped above
    )


def no_formula(text: str) -> str:
    """Return a text for a spreadsheet; one that it would read as a formula gets a quote in front."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def render_csv(task: AnnotationTask) -> str:
    """Return the items as CSV with an empty column for every question."""
    sides = ("left", "right") if task.kind == "comparisons" else ("response",)
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["item", *(question.id for question in task.questions), "speech", *sides])
    for item in task.items:
        rows.writerow([item.id, *[""] * len(task.questions), *map(no_formula, (item.speech, *item.answers))])
    return out.getvalue()
