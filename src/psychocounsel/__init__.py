"""Teach a language model to answer counselling clients, and measure how well it does.

The names below are those of `psychocounsel.api`, which is imported when the first of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psychocounsel.api import ComparedAnswers as ComparedAnswers
    from psychocounsel.api import Judge as Judge
    from psychocounsel.api import Policy as Policy
    from psychocounsel.api import RewardModel as RewardModel
    from psychocounsel.api import Speech as Speech
    from psychocounsel.api import Store as Store
    from psychocounsel.api import WinRate as WinRate
    from psychocounsel.api import load_pairs as load_pairs
    from psychocounsel.api import run_stage as run_stage
    from psychocounsel.api import win_rate as win_rate

    __version__: str

__all__ = [
    "ComparedAnswers",
    "Judge",
    "Policy",
    "RewardModel",
    "Speech",
    "Store",
    "WinRate",
    "__version__",
    "load_pairs",
    "run_stage",
    "win_rate",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("psychocounsel")
    if name not in __all__:
        raise AttributeError(f"module 'psychocounsel' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("psychocounsel.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
