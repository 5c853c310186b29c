"""Plain text: its words and sentences, one form of its characters, no markup, and its language."""

import html
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from psychocounsel.config.corpus import Entity
from psychocounsel.errors import ConfigError, InputError

LISTS = Path(__file__).resolve().parent / "lists"


def word_list(name: str) -> frozenset[str]:
    """Return the words of a bundled list; its lines that start with `#` are comments."""
    lines = (LISTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


_WORD = re.compile(r"[^\W_]+")
# Apostrophes, and marks without width inside words: "don't" and "dont" are one word.
_DROPPED = re.compile("[\u00ad\u00b4\u02b9\u02bc\u200b-\u200d\u2018\u2019\u2032\u2060\ufeff\uff07]")
_TYPOGRAPHY = re.compile("[\u00a0\u2010-\u2015\u201c\u201d\u2026]")
_ASCII_EDGES = {code: " " for code in range(128) if not chr(code).isalnum()} | {ord("'"): None, ord("`"): None}


def plain_words(text: str) -> list[str]:
    """Return the words of a text in NFKC, case folded, without apostrophes and punctuation."""
    bare = text if text.isascii() else _TYPOGRAPHY.sub(" ", _DROPPED.sub("", text))
    if bare.isascii():
        return bare.lower().translate(_ASCII_EDGES).split()
    # Folding may part letters from their accents again, so the form is restored after it.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", bare).casefold())
    return _WORD.findall(folded.replace("'", "").replace("`", ""))


def either(phrases: Iterable[str]) -> str:
    """Return a pattern of any of the phrases, of several the longest; `re` tries those with the right first letter."""
    by_initial: dict[str, list[str]] = defaultdict(list)
    for phrase in sorted(phrases, key=lambda phrase: (-len(phrase), phrase)):
        by_initial[re.escape(phrase[0])].append(re.escape(phrase[1:]))
    groups = (f"{initial}(?:{'|'.join(rests)})" for initial, rests in by_initial.items())
    return f"(?=[{''.join(by_initial)}])(?:{'|'.join(groups)})"


class Span(NamedTuple):
    """A part of a text that identifies a person: `text[start:end]`; the score is in 0 to 1."""

    start: int
    end: int
    entity: Entity
    score: float


Spans: TypeAlias = Iterable[Span | tuple[int, int]]


def touches(start: int, end: int, spans: Spans) -> bool:
    """Return whether `text[start:end]` shares a character with one of the spans."""
    return any(first < end and start < last for first, last, *_ in spans)


def blanked(text: str, spans: Spans, filler: str = " ") -> str:
    """Return the text with a filler in the spans, so that every other character keeps its position."""
    characters = list(text)
    for start, end, *_ in spans:
        characters[start:end] = filler * (end - start)
    return "".join(characters)


def replaced(text: str, parts: Iterable[tuple[int, int, str]]) -> str:
    """Return the text with another text in each of its parts `text[start:end]`, which are sorted and do not overlap."""
    pieces: list[str] = []
    position = 0
    for start, end, other in parts:
        pieces += [text[position:start], other]
        position = end
    return "".join([*pieces, text[position:]])


# A line feed, closing marks and space, or marks of Chinese and Japanese, which no space follows; `re` skips to the
# first character.
_FULL_WIDTH = r"。\uff01\uff1f"
_END = re.compile(
    rf"[\n.!?…؟।\u06d4{_FULL_WIDTH}](?:(?<=\n)\n*(?=(?P<line>\S)?)"
    rf"|(?<=[{_FULL_WIDTH}])[{_FULL_WIDTH}…]*[”\u2019」』\uff09]* *(?=\S)|(?<![\n{_FULL_WIDTH}])"
    r"(?<![.!?…]{2})[.!?…]*[)\]\"”\u2019]*[ \u2028]+(?=(?P<next>[\"'“\u2018(\[¿¡]*\S)))"
)
_MARKS = re.compile(r"[.!?…]+")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:dr|mr|mrs|ms|mx|prof|rev|st|vs|ex|approx|dept|ext|fig|no|vol|ch|pp|e\.g|i\.e|cf|[a-z])$",
    re.IGNORECASE,
)
_SMALL_I = re.compile(r"i\b")
_NUMBERING = re.compile(r"\s*[(\[]?\w{1,2}[)\]]?$")
_NUMBERING_CHARS = 8
_ABBREVIATION_CHARS = 12
_WRAPPED_LINE_CHARS = 60
_ENDS = tuple('.!?…:;"”)')


def sentences(text: str) -> list[str]:
    """Split a text after each sentence and each line; the space after a sentence belongs to it.

    A full stop ends a sentence when a capital, a digit or a quotation mark follows, and no abbreviation,
    initial or list number precedes it. A line feed ends one unless the paragraph is wrapped there.
    """
    pieces: list[str] = []
    start = 0
    for end in _END.finditer(text):
        mark = text[end.start()]
        continues = _is_wrapped(text, end) if mark == "\n" else mark in ".!?…" and _continues(text, start, end)
        if not continues:
            pieces.append(text[start : end.end()])
            start = end.end()
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def _is_wrapped(text: str, end: re.Match[str]) -> bool:
    if end.end() - end.start() > 1 or end["line"] is None:
        return False
    line = text[text.rfind("\n", 0, end.start()) + 1 : end.start()]
    is_full = len(line) >= _WRAPPED_LINE_CHARS
    return not line.rstrip().endswith(_ENDS) and (is_full or end["line"].islower())


def _continues(text: str, start: int, end: re.Match[str]) -> bool:
    mark = _MARKS.match(text, end.start())
    marks = mark.group() if mark is not None else ""
    following = end["next"][-1]
    if marks != ".":
        return marks.endswith((".", "…")) and following.islower()
    if following.islower() and not _SMALL_I.match(text, end.end("next") - 1):
        return True
    before = text[max(start, end.start() - _ABBREVIATION_CHARS) : end.start()]
    if before.endswith((" I", " i")):
        return False
    is_numbering = end.start() - start <= _NUMBERING_CHARS and _NUMBERING.match(text[start : end.start()])
    return bool(is_numbering or _ABBREVIATION.search(before))


_CONTROLS = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f]")
# Files of Windows read as Latin-1 have these for quotation marks and dashes; browsers read them so (HTML, 13.2.5.80).
_OF_WINDOWS = {chr(code): bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
# Directional marks, characters without width, soft hyphens.
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
# Joiners form emoji and letters of Arabic or Indic scripts; between other characters they only hide.
_JOINERS = "\u200c\u200d"
_IDLE_JOINERS = re.compile(f"(?<![\u0590-\u1dff\u2190-\U0010ffff])[{_JOINERS}]+")
# Anything but one plain space, because most spaces need no change.
_SPACES = re.compile("[ \t\u00a0\u2007\u202f](?:[ \t\u00a0\u2007\u202f]+|(?<! ))")
_BLANK_LINES = re.compile(r"\n{3,}")
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")


def refusal(text: str) -> str | None:
    """Return what in a text Parquet cannot hold: a NUL or a lone surrogate; None when it is fine."""
    if not text.isascii() and _LONE_SURROGATE.search(text):
        return "a lone surrogate"
    return "a NUL character" if "\x00" in text else None


def normalise(text: str) -> str:
    """Return the text in Unicode NFC with plain spaces and line feeds, stripped at both ends.

    Emoji with joiners, right-to-left letters and U+2028 stay; U+0080 to U+009F become what Windows-1252 means by them,
    but for U+0085; other control characters, directional marks, characters without width and soft hyphens go.
    """
    visible = _CONTROLS.sub(lambda control: _OF_WINDOWS.get(control.group(), ""), text)
    visible = visible.replace("\r\n", "\n").replace("\r", "\n")
    if not visible.isascii():
        # Invisible characters go first: one may separate a letter from its accent. Joiners go last: composing
        # may change the letter that precedes them.
        visible = unicodedata.normalize("NFC", _INVISIBLE.sub("", visible))
        if any(joiner in visible for joiner in _JOINERS):
            visible = unicodedata.normalize("NFC", _IDLE_JOINERS.sub("", visible))
    spaced = _SPACES.sub(" ", visible)
    if any(sign in spaced for sign in (" \n", "\n ", "\n\n\n")):
        spaced = _BLANK_LINES.sub("\n\n", "\n".join(line.strip(" ") for line in spaced.split("\n")))
    return spaced.strip()


def require_text(value: object, column: str, where: str) -> str:
    """Return a cell's text, empty for a null; raises InputError if it is no text, or Parquet cannot hold it."""
    if value is None:
        return ""
    if not isinstance(value, str):
        fault, remedy = f"{column!r} is {type(value).__name__}, not text", "quote it, or drop the row"
    elif (problem := refusal(value)) is not None:
        fault, remedy = f"{column!r} holds {problem}", "remove it, or drop the row"
    else:
        return value
    raise InputError(fault, where=where, remedy=remedy)


def clean_text(value: object, column: str, where: str) -> str:
    """Return a cell's text, normalised; raises InputError as `require_text` does."""
    return normalise(require_text(value, column, where))


_LINE_NAMES = word_list("html_lines")
_NAMES = _LINE_NAMES | word_list("html_inline")
_PARAGRAPH_TAGS = frozenset(("blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "table"))
_HIDDEN_TAGS = frozenset(("script", "style"))
_BARE_ATTRIBUTES = word_list("html_bare_attributes")
_LESS_THAN = re.compile(
    r"<(?P<opens>/?[a-z]|!--|!doctype\b|\?xml\b)?(?P<hidden>(?<=s)(?:cript|tyle)\b)?", re.IGNORECASE
)
_HIDDEN_ENDS = re.compile(r"</(script|style)\b[^<>]*>", re.IGNORECASE)
# References end in a semicolon; others occur in addresses, such as `?a=1&copy=2`.
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSAND, _LESS = "\ue000", "\ue001"  # of private use: they stand for what the parser must not touch
_MAX_NESTING = 20


# Tags of forums that are closed, the innermost of their kind.
_BBCODE = re.compile(
    r"\[(?P<tag>b|i|u|s|url|email|img|quote|color|size|font|center|list|code|spoiler)(?:=(?P<value>[^\]\n]{0,300}))?\]"
    r"(?P<inner>(?:(?!\[(?P=tag)[\]=]).)*?)\[/(?P=tag)\]",
    re.IGNORECASE | re.DOTALL,
)
_OF_BBCODE = {
    "url": '<a href="{value}">{inner}</a>',
    "img": "",
    "quote": "<blockquote>{inner}</blockquote>",
    "list": "<ul>{inner}</ul>",
}


def _as_html(tag: re.Match[str]) -> str:
    value, inner = (tag["value"] or tag["inner"]).strip("\"' "), tag["inner"]
    if tag["tag"].lower() == "list":
        inner = inner.replace("[*]", "<li>")
    return _OF_BBCODE.get(tag["tag"].lower(), "{inner}").format(value=html.escape(value), inner=inner)


def without_markup(text: str, is_kept: Callable[[str], bool] = lambda address: False) -> str:
    """Return roughly the text that a browser would show, with line feeds for its breaks; BBCode of forums as HTML.

    Of links, those whose address `is_kept` and is not in their own text have it behind them, in brackets.
    Only complete tags of known HTML elements count, so `I <3 you`, `a < b` and `<sighs>` stay. A text that was
    escaped more than once is decoded to the end.
    """
    for _ in range(_MAX_NESTING):
        # Before decoding: `&quot;` inside an attribute does not end it.
        plain = _BBCODE.sub(_as_html, text) if "[/" in text else text
        plain = _shown(plain, is_kept) if "<" in plain else plain
        if "&" in plain:
            plain = _REFERENCE.sub(lambda reference: html.unescape(reference.group()), plain)
        if plain == text:
            return text
        text = plain
    # Tags nested this deep are no prose, and the loop has to end.
    return text.replace("<", "").replace("&", "")


def _shown(text: str, is_kept: Callable[[str], bool]) -> str:
    """Return what a parser shows of a text; what begins no tag, comment or declaration, or never ends, is text."""
    last_end, last_comment = text.rfind(">"), text.rfind("-->")
    last_hidden = {match[1].lower(): match.start() for match in _HIDDEN_ENDS.finditer(text)}

    def as_text_unless_markup(sign: re.Match[str]) -> str:
        end = last_comment if sign["opens"] == "!--" else last_end
        if sign["hidden"] and not sign["opens"].startswith("/"):
            end = last_hidden.get(f"s{sign['hidden']}".lower(), -1)
        return sign.group() if sign["opens"] and sign.start() < end else _LESS + sign.group()[1:]

    parser = _Parser(is_kept)
    parser.feed(_LESS_THAN.sub(as_text_unless_markup, text).replace("&", _AMPERSAND))
    parser.close()
    return "".join(parser.pieces).replace(_LESS, "<").replace(_AMPERSAND, "&")


_NO_PAGE = re.compile(r"^(?:tel|sms|mailto):(?://)?")
_ADDRESS_SIGNS = re.compile(r"^[a-z]+:|www\.|[^A-Za-z0-9]")


class _Parser(HTMLParser):
    """Collects the text between tags, line feeds for the tags that break lines, and as they are tags of no element."""

    def __init__(self, is_kept: Callable[[str], bool]) -> None:
        super().__init__(convert_charrefs=False)
        self.pieces: list[str] = []
        self._is_hidden = False
        self._is_kept = is_kept
        self._link: tuple[str, int] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        is_element = tag in _NAMES or tag in _HIDDEN_TAGS or ":" in tag
        if is_element and all(value is not None or name in _BARE_ATTRIBUTES for name, value in attrs):
            self._is_hidden = tag in _HIDDEN_TAGS
            address = dict(attrs).get("href") if tag == "a" else None
            if address and self._is_kept(address):
                self._link = address, len(self.pieces)
            self.pieces.append("\n- " if tag == "li" else " " if tag in ("td", "th") else _break(tag))
        else:
            self.pieces.append(self.get_starttag_text() or "")

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link is not None:
            address, begin = self._link
            shown = _ADDRESS_SIGNS.sub("", "".join(self.pieces[begin:]))
            if _ADDRESS_SIGNS.sub("", address) not in shown:
                self.pieces.append(f" ({_NO_PAGE.sub('', address)})")
            self._link = None
        if tag in _NAMES or ":" in tag:
            self.pieces.append("" if tag == "li" else _break(tag))
        elif tag not in _HIDDEN_TAGS:
            self.pieces.append(f"</{tag}>")
        self._is_hidden = False

    def handle_data(self, data: str) -> None:
        if not self._is_hidden:
            self.pieces.append(data)


def _break(tag: str) -> str:
    if tag in _PARAGRAPH_TAGS:
        return "\n\n"
    return "\n" if tag in _LINE_NAMES else ""


# --- Languages --------------------

# Dialects and close kin, which look the same in a short text.
_KIN = {
    "en": "pcm", "ar": "arz ary", "zh": "wuu yue", "no": "nn da", "es": "ext an gl", "pt": "gl", "it": "vec lij",
    "fr": "wa", "hr": "bs sr", "sr": "bs hr", "id": "ms", "ms": "id",
}  # fmt: skip
_NO_LANGUAGE = "zxx"
_MAX_SHARE_TO_DROP = 0.02
_MIN_LETTERS = 20
_MIN_DENSE_LETTERS = 6
_SAMPLE_CHARS = 600
_ENGLISH_SHARE = 0.2

_ASIDE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]|\*[^*\n]*\*|(?:https?://|www\.)\S+")
_LETTER = re.compile(r"[^\W\d_]")
# Scripts in which one letter is a syllable or a word.
_DENSE = re.compile("[\u0400-\u1cff\u3040-\u9fff\uac00-\ud7af]")
_LATIN_WORD = re.compile(r"[a-z]+")
_ENGLISH = word_list("english")


@cache
def _load_model() -> Any:
    """Load the n-gram model of `py3langid`, which is part of the package and takes about 80 MB of memory."""
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def is_foreign(text: str, languages: Iterable[str]) -> bool:
    """Return whether a text is certainly in none of the languages, or of those that read alike.

    Stage directions, placeholders and addresses do not count. Fewer than twenty letters, or six of scripts such
    as Cyrillic or Chinese, are not judged; without languages nothing is. Raises ConfigError for an unknown language.
    """
    wanted = set(languages)
    if not wanted:
        return False
    prose = _ASIDE.sub(" ", text)[:_SAMPLE_CHARS]
    if "en" in wanted:
        words = _LATIN_WORD.findall(prose.lower())
        if len(words) > 5 and sum(map(_ENGLISH.__contains__, words)) >= _ENGLISH_SHARE * len(words):
            return False  # certain without the model, which is slower
    is_dense = not prose.isascii() and len(_DENSE.findall(prose)) >= _MIN_DENSE_LETTERS
    if not is_dense and len(_LETTER.findall(prose)) < _MIN_LETTERS:
        return False
    model = _load_model()
    if unknown := sorted(wanted - set(model.labels)):
        raise ConfigError(
            f"no language is known by the code {', '.join(unknown)}",
            where="corpus.cleaning.languages",
            remedy="use ISO 639-1 codes such as en, or an empty list for any language",
        )
    wanted |= {_NO_LANGUAGE, *(kin for language in wanted for kin in _KIN.get(language, "").split())}
    return sum(share for language, share in model.rank(prose) if language in wanted) < _MAX_SHARE_TO_DROP
