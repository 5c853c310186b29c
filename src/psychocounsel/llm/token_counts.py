"""Text -> number of tokens, without a download: exact for OpenAI's models, elsewhere an estimate.

The vocabularies lie in the package `bpe-openai`. What a provider adds around messages is set at
TOKENS_PER_MESSAGE each; the response's schema is a part of the prompt.
"""

import json
import warnings
from functools import cache, lru_cache
from typing import Protocol, cast

from psychocounsel.llm.chat import ChatRequest

TOKENS_PER_MESSAGE = 4
CHARS_PER_TOKEN = 4
"""Of English text, roughly, under the tokenizers of present models."""

_VOCABULARIES = (
    ("o200k_base", ("gpt-4o", "chatgpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4", "gpt-oss")),
    ("cl100k_base", ("gpt-4", "gpt-3.5")),
)


class _Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


class TokenCounter:
    """Counts tokens as a model does.

    Attributes:
        is_exact: whether the model's vocabulary is known; if not, four characters count as one token.
    """

    def __init__(self, model: str) -> None:
        self._vocabulary = vocabulary_of(model)
        self.is_exact = self._vocabulary is not None

    def text(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return _count(self._vocabulary, text)

    def prompt(self, request: ChatRequest) -> int:
        """Return the number of tokens that a request sends."""
        messages = sum(self.text(each.content) + TOKENS_PER_MESSAGE for each in request.messages)
        return messages + self.text(_schema_text(request))

    def at_most(self, request: ChatRequest) -> int:
        """Return a number that the prompt's tokens do not pass, whatever the model's vocabulary."""
        if self.is_exact:
            return self.prompt(request)
        texts = [*(each.content for each in request.messages), _schema_text(request)]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)  # no token is less than a byte
        return size + TOKENS_PER_MESSAGE * len(request.messages)


def vocabulary_of(model: str) -> str | None:
    """Return the name of the vocabulary that a model reads with; None if it is not known.

    A provider's prefix (`openai/gpt-4o`) and a fine-tune's (`ft:gpt-4o:...`) do not matter.
    """
    name = model.removeprefix("ft:").rpartition("/")[2]
    found = (vocabulary for vocabulary, heads in _VOCABULARIES if name.startswith(heads))
    return next(found, None)


@lru_cache(maxsize=256)
def _count(vocabulary: str | None, text: str) -> int:
    if vocabulary is None:
        return -(-len(text) // CHARS_PER_TOKEN)
    # A lone surrogate is sent as a replacement character, too.
    return len(_encoding(vocabulary).encode_ordinary(text.encode("utf-8", "replace").decode()))


@cache
def _encoding(vocabulary: str) -> _Encoding:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package opens its files in an old way
        import bpe_openai  # 70 MB: only where something is counted

        return cast("_Encoding", bpe_openai.get_encoding(vocabulary))


def _schema_text(request: ChatRequest) -> str:
    if request.questions:
        return json.dumps(request.questions, default=dict)
    return json.dumps(request.response_schema, default=dict) if request.response_schema else ""
