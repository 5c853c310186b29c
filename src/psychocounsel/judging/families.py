"""Judge names -> one family or not, so that a result judged by its own labeller says so."""

import re

_SUFFIX = re.compile(r"[-_:.@/]+")


def same_family(left: str, right: str) -> bool:
    """Whether two judge or model names share their maker's family, read from the first part of the name.

    `gpt-4o-2024-08-06` and `gpt-4.1` are of one family, `gpt-4o` and `claude-sonnet-4` are not. A name with
    an owner, such as `meta-llama/Llama-3.1-70B`, counts by what follows the owner.
    """
    return _family(left) == _family(right)


def _family(name: str) -> str:
    model = name.rsplit("/", maxsplit=1)[-1].casefold()
    first = _SUFFIX.split(model, maxsplit=1)[0]
    return re.sub(r"\d+$", "", first)
