"""Word lists, names as they are written, and what a find is."""

import re

from psychocounsel.config.corpus import ENTITIES
from psychocounsel.corpus.text import LISTS, word_list
from psychocounsel.store.files import digest_of_files

PLACEHOLDER = re.compile(rf"\[({'|'.join(ENTITIES)})_(\d+)\]")


# --- Word lists --------------------

# Shorter ones in capitals are abbreviations more often than names: ED, IAN, KIM.
_SHORTEST_IN_CAPITALS = 4
_SHORTEST_IN_LOWER_CASE = 5

GIVEN = word_list("given_names")
AMBIGUOUS = word_list("ambiguous_names")
SURNAMES = word_list("surnames")
NOT_NAMES = word_list("not_names")
METHOD_AUTHORS = word_list("authors_of_methods")

GIVEN_LOWER = frozenset(name.lower() for name in GIVEN)
AMBIGUOUS_LOWER = frozenset(name.lower() for name in AMBIGUOUS)
SURNAMES_LOWER = frozenset(name.lower() for name in SURNAMES)
NO_WORDS_LOWER = GIVEN_LOWER - word_list("words_in_lower_case")
GIVEN_ANYHOW = (
    GIVEN
    | {name.upper() for name in GIVEN if len(name) >= _SHORTEST_IN_CAPITALS}
    | {name for name in NO_WORDS_LOWER if len(name) >= _SHORTEST_IN_LOWER_CASE}
)
ORDINARY_CAPITALISED = frozenset(word.capitalize() for word in NOT_NAMES - AMBIGUOUS_LOWER)
LISTS_DIGEST = digest_of_files(LISTS, sorted(path.name for path in LISTS.glob("*.txt")))

UPPER = "A-Z\u00c0-\u00d6\u00d8-\u00de\u0106\u010c\u0110\u011e\u0130\u0141\u0143\u015a\u015e\u0160\u0179\u017b\u017d"
# Of Latin letters: in a script without spaces the sentence goes on behind a name.
NAME = rf"[{UPPER}](?:[A-Za-z\u00c0-\u024f\u1e00-\u1eff]|['\u2019-](?=[{UPPER}])){{1,40}}"
