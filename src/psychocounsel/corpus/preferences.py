"""Preference pairs and best-of-k rows of others, in the layouts of trl, HelpSteer2, RewardBench 2 and RMB."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

from psychocounsel.config.schema import ResponseColumns
from psychocounsel.corpus.sources import (
    SourceRow,
    cell,
    files_of,
    merged_turns,
    messages_of,
    read_rows,
    source_fingerprint,
    source_name,
)
from psychocounsel.corpus.text import refusal
from psychocounsel.errors import InputError
from psychocounsel.store.references import HUB
from psychocounsel.types import Candidate, PreferencePair, ScoredCandidate, Speech, Turn


class OutsidePairs(NamedTuple):
    """The distinct pairs of a dataset, and its rows that give none, by reason."""

    pairs: list[PreferencePair]
    dropped: Counter[str]


_READER = 3
"""Raised by hand whenever rows of others may be read differently than before."""

Message = tuple[str, str]
"""Role and text."""


class Answered(NamedTuple):
    """What a client says, the turns before it, and two answers to it."""

    history: tuple[Turn, ...]
    prompt: str
    chosen: str
    rejected: str


class BestOfK(NamedTuple):
    """A prompt with its correct (`chosen`) and its other responses; `subset` is a part of the benchmark.

    `history` are the turns before the prompt.
    """

    id: str
    subset: str
    prompt: str
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    history: tuple[Message, ...] = ()


_RMB = {
    "bon_best": ("loser_list", "bon_uid"),
    "chosen": ("reject", "pair_uid"),
}
"""RMB's two layouts (arXiv 2410.09893), by the column of the better response: that of the others, and of the id."""
_ANSWER = ("answer", "content", "text", "response")
"""Keys under which a response that is an object has its text; the first one that there is counts."""


def outside_fingerprint(source: str, split: str, config: str | None) -> list[dict[str, Any]]:
    """Return what identifies a dataset: the digests of its files, or its Hub name with revision.

    Raises:
        InputError: there is no such file.
    """
    return [source_fingerprint(path, split, config) | {"reader": _READER} for path in _paths(source, split)]


def _paths(source: str, split: str) -> list[str]:
    """Return what to read: of a folder the files that begin with the split, or where none does, all but Parquet files.

    Raises:
        InputError: there is none.
    """
    if source.startswith(HUB) or Path(source).is_file():
        return [source]
    files = files_of(source)
    named = [file for file in files if file.name.startswith(split)]
    found = named or [file for file in files if file.suffix != ".parquet"]
    if not found:
        remedy = "name the folder of a copy of the data set, or hub:owner/name"
        raise InputError(f"there is no {split}*.parquet", where=source, remedy=remedy)
    return [str(file) for file in found]


def read_outside(
    source: str, split: str, config: str | None, columns: ResponseColumns | None = None
) -> OutsidePairs | list[BestOfK]:
    """Read a dataset: a .json, .jsonl, .csv or .parquet file, a folder of them, or `hub:owner/name@revision`.

    Rows are best-of-k rows if their `chosen` is a list of texts, if they are laid out as RMB's, or if `columns` names
    what is where; a pair after several turns is one of them, with one response on either side. All others are pairs.

    Raises:
        InputError: it cannot be read, has no rows, or a row is not laid out like this.
    """
    rows = chain.from_iterable(read_rows(path, split, config) for path in _paths(source, split))
    first = next(rows, None)
    if first is None:
        raise InputError("has no rows", where=source, remedy="name a dataset with rows")
    rows, layout = chain([first], rows), columns or _layout(first.values)
    return pairs_of(rows, source_name(source)) if layout is None else [_best_of_k(row, layout) for row in rows]


def read_outside_pairs(source: str, split: str, config: str | None) -> OutsidePairs:
    """Read a dataset of pairs, as `read_outside` does.

    Raises:
        InputError: it holds best-of-k rows.
    """
    read = read_outside(source, split, config)
    if isinstance(read, OutsidePairs):
        return read
    remedy = "name a dataset whose chosen and rejected are one response each"
    raise InputError("has best-of-k rows, not pairs", where=source, remedy=remedy)


def _layout(values: Mapping[str, object]) -> ResponseColumns | None:
    """Return the columns of best-of-k rows; None for pairs."""
    if "conversation_input" in values:
        better = "bon_best" if "bon_best" in values else "chosen"
        others, key = _RMB[better]
        return ResponseColumns(
            prompt="conversation_input", chosen=better, rejected=others, id=key, subset="category_path"
        )
    chosen = values.get("chosen")
    is_list = isinstance(chosen, list) and all(isinstance(each, str) for each in cast("list[object]", chosen))
    return ResponseColumns() if is_list else None


def pairs_of(rows: Iterable[SourceRow], source: str) -> OutsidePairs:
    """Return the pairs of `chosen` and `rejected`: texts after a `prompt`, or conversations in trl's layout.

    HelpSteer2's `response_1`, `response_2` and `preference_strength` are read too. A `subset` becomes the topic,
    earlier turns the history. A pair is dropped if others than user and assistant speak.

    Raises:
        InputError: a column is missing, or a cell is neither text nor a list of messages.
    """
    pairs: dict[str, PreferencePair] = {}
    dropped: Counter[str] = Counter()
    for row in rows:
        texts = _texts(row)
        if isinstance(texts, str):
            dropped[texts] += 1
            continue
        topic = str(row.values.get("subset") or "")
        speech = Speech(texts.prompt, topic=topic, source=source, history=texts.history)
        chosen, rejected = (
            ScoredCandidate(Candidate(speech.id, "", text), score)
            for text, score in ((texts.chosen, 1.0), (texts.rejected, 0.0))
        )
        pair = PreferencePair(speech, chosen, rejected)
        dropped["repeated"] += pair.id in pairs
        pairs[pair.id] = pair
    return OutsidePairs(list(pairs.values()), +dropped)


def _texts(row: SourceRow) -> Answered | str:
    """Return the texts of a row, or the reason why it gives no pair."""
    sides = ordered_by_strength(row)
    if sides is None:
        return "no_preference"
    texts = exchange_of(row.values.get("prompt"), [cell(row, side) for side in sides], row.where)
    if isinstance(texts, str):
        return texts
    said = (*(turn.content for turn in texts.history), texts.prompt, texts.chosen, texts.rejected)
    if any(refusal(text) for text in said):
        return "unreadable"
    if not all(text.strip() for text in said[-3:]):
        return "empty"
    return "equal_texts" if texts.chosen == texts.rejected else texts


def ordered_by_strength(row: SourceRow) -> tuple[str, str] | None:
    """Return the columns of the chosen and the rejected response, by HelpSteer2's strength where there is one.

    None means that neither is preferred.
    """
    if "preference_strength" not in row.values:
        return "chosen", "rejected"
    strength = cell(row, "preference_strength")
    if not isinstance(strength, int | float):
        raise InputError("'preference_strength' is no number", where=row.where, remedy="correct or drop the row")
    if strength == 0:
        return None
    return ("response_2", "response_1") if strength > 0 else ("response_1", "response_2")


def exchange_of(prompt: object, responses: Sequence[object], where: str) -> Answered | str:
    """Return the session so far and the two responses, or the reason why they are no two answers to one speech.

    Each is a text, a list of messages, or a transcript as in HH-RLHF or HelpSteer2; responses may repeat the prompt,
    and a prompt of None stands in them.

    Raises:
        InputError: one is neither text nor messages.
    """
    before = list(_messages(prompt, "user", where))
    conversations: list[list[Message]] = []
    for response in responses:
        messages = list(_messages(response, "assistant", where))
        # A conversation that begins with the user repeats the prompt.
        conversations.append(messages if messages and messages[0][0] != "assistant" else [*before, *messages])
    for each in conversations:
        roles = [role for role, _ in each]
        if roles[-2:] != ["user", "assistant"] or not {*roles} <= {"user", "assistant"}:
            return "not_an_exchange"
    (*session, (_, chosen)), (*session_too, (_, rejected)) = conversations
    if session != session_too:
        return "two_prompts"
    *before, (_, asked) = session
    turns = merged_turns(Turn("user" if role == "user" else "assistant", text.strip()) for role, text in before)
    if turns and turns[-1].role == "user":
        asked = "\n\n".join(filter(str.strip, (turns.pop().content, asked)))
    return Answered(tuple(turns), asked, chosen, rejected)


_TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
_MARKED_TURNS = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _messages(value: object, role: str, where: str) -> Iterator[Message]:
    """Yield the messages of a cell: a text is one message with `role` or a transcript, a null is none.

    Transcripts are those of HH-RLHF, and HelpSteer2's with `<extra_id_1>` between the turns.
    """
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        _, *parts = _TRANSCRIPT.split(value)
        for speaker, text in zip(parts[::2], parts[1::2], strict=True):
            yield "user" if speaker == "Human" else "assistant", text.strip()
    elif isinstance(value, str):
        first, *parts = _MARKED_TURNS.split(value)
        yield role, first
        for speaker, text in zip(parts[::2], parts[1::2], strict=True):
            yield "user" if speaker == "User" else "assistant", text
    elif value is not None:
        yield from messages_of(cast("list[object]", value) if isinstance(value, list) else [value], role, where)


def _best_of_k(row: SourceRow, columns: ResponseColumns) -> BestOfK:
    turns = list(_messages(cell(row, columns.prompt), "user", row.where))
    chosen, rejected = (tuple(_answers(cell(row, side), row.where)) for side in (columns.chosen, columns.rejected))
    if not (turns and turns[-1][0] == "user" and chosen and rejected):
        remedy = "give a prompt that ends with the user, and at least one response on either side"
        raise InputError("is no best-of-k row", where=row.where, remedy=remedy)
    if any(refusal(text) for _, text in turns) or any(refusal(text) for text in (*chosen, *rejected)):
        raise InputError("has a text that no table can hold", where=row.where, remedy="correct or drop the row")
    count = row.values.get("num_correct")
    if count is not None and count != len(chosen):
        remedy = "list every correct response in chosen"
        raise InputError(f"num_correct is {count}, chosen has {len(chosen)}", where=row.where, remedy=remedy)
    subset = str(row.values.get(columns.subset) or "")
    key = str(row.values.get(columns.id, row.where))
    return BestOfK(key, subset, turns[-1][1], chosen, rejected, tuple(turns[:-1]))


def _answers(value: object, where: str) -> Iterator[str]:
    """Yield the responses in a cell: a text, an object with a text, or a list of these."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _answers(each, where)
    else:
        known: Mapping[str, object] = cast("dict[str, object]", value) if isinstance(value, dict) else {}
        text = next((known[key] for key in _ANSWER if key in known), None)
        if not isinstance(text, str):
            remedy = f"give texts, or objects with one of {', '.join(_ANSWER)}"
            raise InputError("a response is no text", where=where, remedy=remedy)
        yield text
