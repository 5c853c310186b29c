"""Author of a response -> full name of a person, or none for models, practices and nicknames."""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from psychocounsel.config.base import Settings
from psychocounsel.config.loading import load_config

_FILE = Path(__file__).resolve().parent / "people.yaml"

Words = Annotated[frozenset[str], Field(strict=False)]


class PeopleWords(Settings):
    """The word lists of people.yaml."""

    titles: Words
    credentials: Words
    professions: Words
    organisations: Words
    not_people: Words
    states: Words
    cities: Words
    closings: Words
    farewells: Words


@cache
def people_words() -> PeopleWords:
    """Read the bundled word lists.

    Raises:
        ConfigError: the file lacks a list; names it.
    """
    return load_config(PeopleWords, _FILE)


_ADDRESS = re.compile(r"^(?:https?://|www\.)", re.IGNORECASE)
_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
_BRACKETED = re.compile(r"\([^)]*\)")
_MAX_NAME_WORDS, _MIN_NAME_WORDS = 5, 2


def author_name(author: str) -> str | None:
    """Return the full name in the address of an author's page, its last part, or a plain name; else None.

    `https://example.org/therapists/dr-jane-doe-lcsw-2` and `Dr. Jane Doe, LCSW` are both `Jane Doe`. Names of
    models and practices, and single words, are no full names.
    """
    text = author.strip()
    if _ADDRESS.match(text):
        text = text.partition("?")[0].rstrip("/").rsplit("/", maxsplit=1)[-1].lower()
    elif "/" in text and " " not in text:
        return None  # a model and its maker
    words = _slug_words(text) if _SLUG.fullmatch(text) else _plain_words(text)
    is_name = _MIN_NAME_WORDS <= len(words) <= _MAX_NAME_WORDS and len(words[0]) > 1
    return " ".join(words) if is_name and not _is_no_person(words) else None


def _slug_words(slug: str) -> list[str]:
    words = slug.split("-")
    if words[-1].isdigit() and not _is_no_person(words[:-1]):
        words = words[:-1]  # the second of its name
    words = _without_place(_until_credentials(_without_title(words)))
    return [word.capitalize() for word in words]


def _plain_words(name: str) -> list[str]:
    words = _BRACKETED.sub(" ", name.partition(",")[0]).split()
    return [word.strip(".-") for word in _until_credentials(_without_title(words)) if word.strip(".-")]


def _is_no_person(words: Sequence[str]) -> bool:
    lists = people_words()
    lower = [word.lower() for word in words]
    return any(
        word in lists.organisations
        or word in lists.not_people
        or any(character.isdigit() for character in word)
        for word in lower
    )


def _without_title(words: list[str]) -> list[str]:
    while words and bare(words[0]) in people_words().titles:
        words = words[1:]
    return words


def bare(word: str) -> str:
    """Return a word as people.yaml spells it: lower case, without punctuation."""
    return "".join(character for character in word.lower() if character.isalnum() or character == "-").strip(
        "-"
    )


def _until_credentials(words: list[str]) -> list[str]:
    """Cut at the first credential behind two words of a name; "Ma" and "Do" may be names, so two stay."""
    lists = people_words()
    for at, word in enumerate(words):
        joined = bare(word) + (bare(words[at + 1]) if at + 1 < len(words) and len(bare(word)) <= 3 else "")
        is_credential = bare(word) in lists.credentials | lists.professions or joined in lists.credentials
        if at >= _MIN_NAME_WORDS and is_credential:
            return words[:at]
    return words


def _without_place(words: list[str]) -> list[str]:
    lists = people_words()
    if len(words) > _MIN_NAME_WORDS and words[-1] in lists.states:
        words = words[:-1]
        return words[:-1] if len(words) > _MIN_NAME_WORDS else words
    for length in (2, 1):
        if len(words) - length >= _MIN_NAME_WORDS and " ".join(words[-length:]) in lists.cities:
            return words[:-length]
    return words
