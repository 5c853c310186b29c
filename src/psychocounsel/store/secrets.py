"""Text -> which kinds of keys, tokens and paths of a person's folders it holds, never the secret itself."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_MIN_VALUE_CHARS = 8
"""A shorter value of a variable, such as `none` or `EMPTY`, is a placeholder and stands in many a text."""


class SecretKind(NamedTuple):
    """A kind of secret; a text without any of its markers holds none, which is quick to see."""

    name: str
    markers: tuple[str, ...]
    pattern: re.Pattern[str]


_GITHUB = ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_")
_KEYS = (
    SecretKind("an API key (sk-)", ("sk-",), re.compile(r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,}")),
    SecretKind("a Hugging Face token", ("hf_",), re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")),
    SecretKind(
        "an AWS access key", ("AKIA", "ASIA"), re.compile(r"(?<![A-Z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Z0-9])")
    ),
    SecretKind(
        "a GitHub token",
        _GITHUB,
        re.compile(r"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,})"),
    ),
    SecretKind("a Google API key", ("AIza",), re.compile(r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}")),
    SecretKind("a Slack token", ("xox",), re.compile(r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,}")),
    SecretKind("a private key", ("PRIVATE KEY",), re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY")),
)
_HOME = SecretKind(
    "a path of a home folder",
    ("/home/", "/Users/", "/root/", ":\\Users\\", ":\\\\Users\\\\"),
    re.compile(r"(?<![\w.-])(/(home|Users)/[^/\s\"'`]+|/root/|[A-Za-z]:\\+Users\\+[^\\\s\"'`]+)"),
)


def key_kinds(environment: Mapping[str, str] = os.environ) -> list[SecretKind]:
    """Return the kinds of keys to look for, the values of this machine's own keys and tokens among them."""
    own = [
        SecretKind(f"the value of {name}", (value.strip(),), re.compile(re.escape(value.strip())))
        for name, value in environment.items()
        if name.upper().endswith(("_API_KEY", "_TOKEN")) and len(value.strip()) >= _MIN_VALUE_CHARS
    ]
    return [*own, *_KEYS]


def home_kinds() -> list[SecretKind]:
    """Return the kinds of paths that name a person: home folders, this machine's own among them."""
    home = str(Path.home()).rstrip("/")
    own = SecretKind(_HOME.name, (home,), re.compile(re.escape(home) + r"(?![\w.-])"))
    return [_HOME, own] if home else [_HOME]


def kinds_in(text: str, kinds: Sequence[SecretKind]) -> Iterator[str]:
    """Yield the names of the kinds of secrets that a text holds, each once."""
    names = (
        kind.name
        for kind in kinds
        if any(marker in text for marker in kind.markers) and kind.pattern.search(text)
    )
    yield from dict.fromkeys(names)


def redacted(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text with every key and token in it blotted out."""
    for kind in key_kinds(environment):
        text = kind.pattern.sub("[...]", text)
    return text
