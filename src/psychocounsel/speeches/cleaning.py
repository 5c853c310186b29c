"""Raw text -> clean text, step by named step: what is done to speeches and to responses, in which order."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from psychocounsel.config.corpus import CleaningConfig
from psychocounsel.speeches.contacts import with_surrogates, without_contacts
from psychocounsel.speeches.known_people import KnownPeople
from psychocounsel.speeches.markup import without_markup
from psychocounsel.speeches.normalising import normalise
from psychocounsel.speeches.signatures import without_signatures
from psychocounsel.speeches.spacing import with_sentence_spacing

DEIDENTIFICATION = "deidentification"

_MAX_ROUNDS = 20


class Step(NamedTuple):
    """One pure change of a text, and the name under which the funnel counts it."""

    name: str
    change: Callable[[str], str]


class Cleaned(NamedTuple):
    """A clean text and the names of the steps that changed it, in their order."""

    text: str
    changed_by: tuple[str, ...]


class Prepared(NamedTuple):
    """A text as the cleaning left it, as it is known once identities are hidden, and what changed it.

    `foreign` says that it is in none of the wanted languages; None where nobody looked.
    """

    plain: str
    text: str
    changed_by: tuple[str, ...]
    foreign: str | None = None


SPEECH_STEPS = (
    Step("markup", without_markup),
    Step("characters", normalise),
    Step("sentence_spacing", with_sentence_spacing),
)


def response_steps(config: CleaningConfig, authors: Iterable[str]) -> tuple[Step, ...]:
    """Return the steps for responses: those for speeches, then signatures and contacts as the config says.

    Args:
        config: `signatures` and `contacts` are read.
        authors: names or page addresses of all authors; people among them are looked for in every response.
    """
    steps = list(SPEECH_STEPS)
    if config.signatures == "remove":
        known = KnownPeople.of_authors(authors)
        # Where addresses go, they go as a whole, and the names in them too.
        in_addresses = config.contacts == "keep"
        steps.append(Step("signatures", partial(without_signatures, known=known, in_addresses=in_addresses)))
    if config.contacts != "keep":
        change = without_contacts if config.contacts == "drop_sentence" else with_surrogates
        steps.append(Step("contacts", change))
    return tuple(steps)


def prepare(
    raw: str,
    steps: Sequence[Step],
    deidentify: Callable[[str], str] | None = None,
    other_language: Callable[[str], str | None] | None = None,
) -> Prepared:
    """Clean a text, look at its language, and hide identities; an empty text stays as it is."""
    plain, changed_by = clean(raw, steps)
    if not plain:
        return Prepared(plain, plain, changed_by)
    foreign = None if other_language is None else other_language(plain)
    hidden = plain if deidentify is None else deidentify(plain)
    changed_by = (*changed_by, DEIDENTIFICATION) if hidden != plain else changed_by
    return Prepared(plain, hidden, changed_by, foreign)


def clean(text: str, steps: Sequence[Step]) -> Cleaned:
    """Apply the steps in order, again and again, until none changes the text: a clean text stays as it is."""
    changed_by: set[str] = set()
    unchanged: dict[str, str] = {}  # a step that left this very text alone is not asked again
    for _ in range(_MAX_ROUNDS):
        before = text
        for step in steps:
            if unchanged.get(step.name) == text:
                continue
            after = step.change(text)
            if after == text:
                unchanged[step.name] = text
            else:
                changed_by.add(step.name)
            text = after
        if text == before:
            break
    return Cleaned(text, tuple(step.name for step in steps if step.name in changed_by))
