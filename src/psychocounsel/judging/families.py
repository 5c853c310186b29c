"""Model names -> one family or not, so that a result judged by its own labeller, or author, says so."""

import re

BETWEEN_NAMES = " + "
"""Joins the names of several judges into one."""

_SEPARATORS = re.compile(r"[-_:.@/\s]+")
_FINE_TUNED = "ft:"
_MAKERS = {
    "openai": r"(chat)?gpt\w*|o\d+|davinci|codex",
    "meta": r"\w*llama\d*",
    "anthropic": r"claude\w*",
    "google": r"gemini|gemma\d*|palm\d*|bison",
    "mistral": r"\w*(mistral|mixtral|ministral|magistral|codestral|devstral|pixtral)\w*",
    "alibaba": r"qwen\d*|qwq|qvq",
    "deepseek": r"deepseek\w*",
    "microsoft": r"phi\d*|wizardlm\d*",
    "cohere": r"command|aya|c4ai",
    "xai": r"grok\d*",
    "moonshot": r"kimi",
    "zhipu": r"\w*glm\d*",
}
"""By maker, the words by which a model's name is known."""


def same_family(left: str, right: str) -> bool:
    """Whether two judge or model names share a maker, read from the words of the name.

    `gpt-4o`, `chatgpt-4o-latest`, `o3-mini` and `ft:gpt-4o-mini:org::id` are of one family, and so are
    `Llama-3.1-8B` and `meta-llama/Meta-Llama-3.1-8B`; `gpt-4o` and `claude-sonnet-4` are not. A model made
    from another one's weights or answers that says so is of both families: `DeepSeek-R1-Distill-Llama-8B`. Of
    an unknown maker, a name counts by its first word without the owner. A panel is of each member's family.
    """
    return not _families(left).isdisjoint(_families(right))


def _families(name: str) -> frozenset[str]:
    return frozenset(family for judge in name.split(BETWEEN_NAMES) for family in _families_of_one(judge))


def _families_of_one(name: str) -> frozenset[str]:
    told = name.casefold().strip()
    if told.startswith(_FINE_TUNED):
        told = told.removeprefix(_FINE_TUNED).partition(":")[0]
    words = [word for word in _SEPARATORS.split(told.rsplit("/", maxsplit=1)[-1]) if word]
    known = [maker for maker, spelling in _MAKERS.items() if _is_among(words, spelling)]
    return frozenset(known or [re.sub(r"\d+$", "", words[0]) if words else ""])


def _is_among(words: list[str], spelling: str) -> bool:
    return any(re.fullmatch(spelling, word) for word in words)
