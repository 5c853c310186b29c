"""Finds texts in none of the wanted languages, offline; in doubt a text counts as wanted."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Protocol, cast

from psychocounsel.errors import ConfigError

# Dialects and close kin, which look the same in a short text.
_KIN = {
    "en": ("pcm",),
    "ar": ("arz", "ary"),
    "zh": ("wuu", "yue"),
    "no": ("nn", "da"),
    "es": ("ext", "an", "gl"),
    "pt": ("gl",),
    "it": ("vec", "lij"),
    "fr": ("wa",),
    "hr": ("bs", "sr"),
    "sr": ("bs", "hr"),
    "id": ("ms",),
    "ms": ("id",),
}
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
_WORD = re.compile(r"[a-z]+")
# Common English words that hardly occur in texts of other languages.
_ENGLISH_WORDS = """
    the and that with have this they what would because about my you she when been from just feel feeling know
    not but are were your could should there their myself him how why who will get want always never people
    think things for
    had its being doing having said says told asked where which while then than though really every
    everything something anything nothing someone anyone everyone nobody even again only after before since
    until between through without against away right days night weeks month months year years times house
    work friend friends mother father mom brother daughter son husband wife boyfriend girlfriend child
    children need needs tell told talk talking keep keeps make makes going went came goes liked much other
    another own too very maybe enough
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())


class _Model(Protocol):
    labels: list[str]

    def rank(self, text: str) -> list[tuple[str, float]]: ...


@cache
def _load_model() -> _Model:
    """Load the n-gram model of `py3langid`, which is part of the package and takes about 80 MB of memory."""
    from py3langid import langid

    read = langid.LanguageIdentifier.from_model_file
    return cast("_Model", read(langid.MODEL_FILE, norm_probs=True))


def is_foreign(text: str, languages: Iterable[str]) -> bool:
    """Return whether a text is certainly in none of the languages, or of those that read alike.

    Stage directions, placeholders and addresses do not count. Fewer than twenty letters, or six of scripts such
    as Cyrillic or Chinese, are not judged; without languages nothing is.

    Raises:
        ConfigError: the model does not know one of the languages.
    """
    wanted = set(languages)
    if not wanted:
        return False
    prose = _ASIDE.sub(" ", text)[:_SAMPLE_CHARS]
    is_dense = not prose.isascii() and len(_DENSE.findall(prose)) >= _MIN_DENSE_LETTERS
    if not is_dense and len(_LETTER.findall(prose)) < _MIN_LETTERS:
        return False
    if "en" in wanted:
        words = _WORD.findall(prose.lower())
        if len(words) > 5 and sum(word in _ENGLISH for word in words) >= _ENGLISH_SHARE * len(words):
            return False  # certain without the model, which is slower
    model = _load_model()
    if unknown := sorted(wanted - set(model.labels)):
        raise ConfigError(
            f"no language is known by the code {', '.join(unknown)}",
            where="corpus.cleaning.languages",
            remedy="use ISO 639-1 codes such as en, or an empty list for any language",
        )
    wanted |= {_NO_LANGUAGE, *(kin for language in wanted for kin in _KIN.get(language, ()))}
    return sum(share for language, share in model.rank(prose) if language in wanted) < _MAX_SHARE_TO_DROP
