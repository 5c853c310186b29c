"""Texts -> one line of JSON for a prompt: nothing in it passes for its end, turns the reading or hides."""

import re
from collections.abc import Mapping
from json.encoder import encode_basestring as _json_text

_TAGS = "\U000e0000-\U000e007f"
# Flags of the parts of a country are written with tags: a black flag, three to six signs, and an end.
_FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
# Valid in a JSON string, yet lines or directions of their own to a reader, or there without being seen (or no
# valid UTF-8 at all). Joiners, soft hyphens and spaces without width stay: scripts and emoji need them.
_UNSEEN = (
    "\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_ESCAPED = re.compile(f"(?P<flag>{_FLAG})|[\u0080-\u009f\u2028\u2029\ud800-\udfff{_UNSEEN}{_TAGS}]")
_HIDDEN_WORDS = re.compile(f"{_FLAG}|(?P<tags>[{_TAGS}]+)")
_WITHOUT_WIDTH = re.compile(f"[\u00ad\u200b-\u200d{_UNSEEN}]")
_FIRST_TAG = 0xE0000


def one_line(item: Mapping[str, str]) -> str:
    """Return texts as JSON on one line; every unruly sign in it is escaped."""
    text = f"{{{', '.join(f'{_json_text(key)}: {_json_text(value)}' for key, value in item.items())}}}"
    return text if text.isascii() else _ESCAPED.sub(_escaped, text)


def unhidden(text: str) -> str:
    """Return a text as a model may read it: hidden words in plain letters, and no sign without width."""
    if text.isascii():
        return text
    return _WITHOUT_WIDTH.sub("", _HIDDEN_WORDS.sub(_plain, text))


def _escaped(match: re.Match[str]) -> str:
    if match["flag"]:
        return match["flag"]
    units = match.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _plain(match: re.Match[str]) -> str:
    if not match["tags"]:
        return match.group()
    letters = (chr(ord(tag) - _FIRST_TAG) for tag in match["tags"])
    return f" {''.join(letter for letter in letters if letter.isprintable())} "
