"""Bundled lists -> sets: given names, surnames, and words that are no names."""

from pathlib import Path

from psychocounsel.store.digests import digest_of_files

_FOLDER = Path(__file__).resolve().parent / "lists"
# Shorter ones in capitals are abbreviations more often than names: ED, IAN, KIM.
_SHORTEST_IN_CAPITALS = 4
_SHORTEST_IN_LOWER_CASE = 5


def words(name: str) -> frozenset[str]:
    """Return the words of a bundled list; its lines that start with `#` are remarks."""
    lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


GIVEN = words("given_names")
AMBIGUOUS = words("ambiguous_names")
SURNAMES = words("surnames")
NOT_NAMES = words("not_names")

GIVEN_LOWER = frozenset(name.lower() for name in GIVEN)
AMBIGUOUS_LOWER = frozenset(name.lower() for name in AMBIGUOUS)
SURNAMES_LOWER = frozenset(name.lower() for name in SURNAMES)
NO_WORDS_LOWER = GIVEN_LOWER - words("words_in_lower_case")
GIVEN_ANYHOW = (
    GIVEN
    | {name.upper() for name in GIVEN if len(name) >= _SHORTEST_IN_CAPITALS}
    | {name for name in NO_WORDS_LOWER if len(name) >= _SHORTEST_IN_LOWER_CASE}
)
ORDINARY_CAPITALISED = frozenset(word.capitalize() for word in NOT_NAMES - AMBIGUOUS_LOWER)
LISTS_DIGEST = digest_of_files(_FOLDER, sorted(path.name for path in _FOLDER.glob("*.txt")))
