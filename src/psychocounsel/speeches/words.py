"""Text -> words: the plain view in which two spellings of one text are equal."""

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")
# Apostrophes, and marks without width that stand inside words: "don't" and "dont" are one word.
_DROPPED = re.compile("[\u00ad\u00b4\u02b9\u02bc\u200b-\u200d\u2018\u2019\u2032\u2060\ufeff\uff07]")
_TYPOGRAPHY = re.compile("[\u00a0\u2010-\u2015\u201c\u201d\u2026]")
_ASCII_EDGES = {code: " " for code in range(128) if not chr(code).isalnum()} | {
    ord("'"): None,
    ord("`"): None,
}


def plain_words(text: str) -> list[str]:
    """Return the words of a text in NFKC, case folded, without apostrophes and punctuation."""
    bare = text
    if not text.isascii():
        bare = _TYPOGRAPHY.sub(" ", _DROPPED.sub("", text))
    if bare.isascii():
        return bare.lower().translate(_ASCII_EDGES).split()
    # Folding may part letters from their accents again, so the form is restored after it.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", bare).casefold())
    return _WORD.findall(folded.replace("'", "").replace("`", ""))
