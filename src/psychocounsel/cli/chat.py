"""`psychocounsel chat`: models answer side by side in the terminal."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from psychocounsel.cli.output import Offline, StoreFolder
from psychocounsel.errors import ExitCode, InputError
from psychocounsel.reporting import console
from psychocounsel.store.files import write_faults
from psychocounsel.store.store import open_store

if TYPE_CHECKING:
    from psychocounsel.stages.chat import ChatAnswer

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL",
        help="Artifacts, folders, hub:owner/name, endpoint:MODEL, endpoint:MODEL@BASE_URL, or a responder's YAML file.",
    ),
]
Reward = Annotated[str | None, typer.Option("--reward", metavar="REF", help="Score the answers with a reward model.")]
System = Annotated[str, typer.Option("--system", help="System prompt: a text, or bundled:counsellor.")]
Temperature = Annotated[float, typer.Option("--temperature", min=0.0, help="0 takes the most likely token.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Where an answer is cut.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Another seed gives other answers.")]
Save = Annotated[Path | None, typer.Option("--save", metavar="FILE", help="Append words and answers as JSON lines.")]


def chat(
    models: Models,
    reward: Reward = None,
    system: System = "",
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = 0,
    save: Save = None,
    offline: Offline = False,
    store: StoreFolder = None,
) -> None:
    """Talk to models, side by side.

    Every line is answered by itself. Nothing is kept unless --save names a file. Ctrl-D or Ctrl-C ends.
    """
    from psychocounsel.config.components import ChatFormat, SamplingConfig
    from psychocounsel.config.loading import config_of
    from psychocounsel.corpus.crisis import mentions_crisis
    from psychocounsel.stages.chat import RESOURCES, Chat, ChatOptions, saved_line

    if save is not None and not save.resolve().parent.is_dir():
        raise InputError("there is no such folder", where=str(save.parent), remedy="create it, or name another file")
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens)
    options = ChatOptions(sampling, config_of(ChatFormat, {"system_prompt": system}), seed)
    with closing(Chat(models, reward, options, open_store(store, offline))) as speakers:
        console.note("Experimental models, not counsellors. Every line is answered by itself; Ctrl-D ends.")
        console.note(RESOURCES)  # words do not tell every danger
        try:
            for text in _lines():
                if mentions_crisis(text):
                    console.result(f"{RESOURCES}\n")
                answers = speakers.answer(text)
                _show(answers)
                if save is not None:
                    with write_faults(save), save.open("a", encoding="utf-8") as stream:
                        stream.write(saved_line(text, answers))
        except KeyboardInterrupt:
            # A model on this machine computes in a thread that nothing stops, and there is nothing to save.
            os._exit(ExitCode.DONE)


def _lines() -> Iterator[str]:
    """Yield the lines of stdin that have text, until it ends."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            text = _printable(input("> " if sys.stdin.isatty() else "")).strip()
        except EOFError:
            return
        if text:
            yield text


def _show(answers: Sequence["ChatAnswer"]) -> None:
    """Print answers next to each other on a terminal, one below the other elsewhere."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    parts = [(_head(each), _printable(each.text) or f"(no answer: {_printable(each.reason)})") for each in answers]
    if not sys.stdout.isatty():
        console.result("\n\n".join(f"{head}\n{text}" for head, text in parts) + "\n")
        return
    table = Table(expand=True, pad_edge=False)
    for head, _ in parts:
        table.add_column(Text(head), ratio=1)
    table.add_row(*(Text(text) for _, text in parts))
    Console().print(table)


def _head(answer: "ChatAnswer") -> str:
    reward = "" if answer.reward is None else f"  reward {answer.reward:+.2f}"
    return f"[{answer.model}]{reward}{'' if answer.finished else '  (cut at its token limit)'}"


def _printable(text: str) -> str:
    """Return text without control characters, with which a model could steer the terminal."""
    return "".join(character for character in text if character.isprintable() or character == "\n")
