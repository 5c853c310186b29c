"""Text -> does it speak of suicide or self-harm by plain words? A hint for slices, not an assessment."""

import re

_CRISIS = re.compile(
    r"\bsuicid|\bself[- ]?harm|\bkill(ed|ing)? (my|him|her|them)sel(f|ves)"
    r"|\b(end(ed|ing)?|tak(e|ing)|took) (my|his|her|their) (own )?life\b|\bend(ed|ing)? it all\b"
    r"|\b(hurt|harm|cut)(ting|ing)? myself\b|\b(want|wish)(ed|ing|s)? (to die|(i|he|she) (was|were) dead)\b"
    r"|\bbetter off (dead|without me)\b"
    r"|\b(do not|don['\u2019]?t|not) want to (be alive|be here any ?more|live|wake up)\b",
    re.IGNORECASE,
)


def mentions_crisis(text: str) -> bool:
    """Whether a text speaks of suicide or self-harm by plain words; a hint, not an assessment."""
    return _CRISIS.search(text) is not None
