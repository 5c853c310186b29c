"""Preference pairs and best-of-k rows of any dataset: texts, authors and ratings of responses, and released splits.

Known without a word in the config are the columns of PsychoCounsel-Preference (arXiv 2502.19731) and of our own
datasets, trl's `prompt`, `chosen` and `rejected` as texts or messages, the transcripts of HH-RLHF, the scores of
UltraFeedback as binarized, HelpSteer2's preferences, and the best-of-k rows of RewardBench 2 and RMB.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

from psychocounsel.config.schema import ImportPreferencesConfig, ResponseColumns
from psychocounsel.config.sources import Column, PreferenceColumns, RowSource
from psychocounsel.corpus.formats import BadRow, SourceRow
from psychocounsel.corpus.sources import (
    SPLIT_NAMES,
    cell,
    files_of,
    flag_cell,
    history_cell,
    holds,
    label_cell,
    merged_turns,
    messages_in,
    messages_of,
    rating_of,
    read_cells,
    read_rows,
    read_source,
    source_fingerprint,
    source_name,
    split_cell,
    text_cell,
)
from psychocounsel.corpus.text import refusal
from psychocounsel.errors import InputError
from psychocounsel.llm.types import without_thoughts
from psychocounsel.store.references import HUB
from psychocounsel.types import SPLITS, Candidate, PreferencePair, Rating, ScoredCandidate, Speech, Turn

Message = tuple[str, str]
"""Role and text."""


# --- Releases --------------------

_RATING = "_rating"
_OWN = {"pair_id", "fine_topic", "crisis"}
"""Columns of our own datasets."""


class PreferenceSide(NamedTuple):
    """One response of a row: its text, its author, its ratings by principle (None for a missing one), its score.

    The score is the one by which our own datasets ranked it; None in others.
    """

    text: str = ""
    author: str = ""
    ratings: Mapping[str, Rating | None] = {}
    score: float | None = None


class PreferenceRow(NamedTuple):
    """One preference as it was released; `split` is the one it was released in.

    `fault` says why it holds no preference between two answers to one speech, such as `not_an_exchange`; None if it
    does.
    `crisis` is None where the row does not say.
    """

    where: str
    split: str
    question: str = ""
    chosen: PreferenceSide = PreferenceSide()
    rejected: PreferenceSide = PreferenceSide()
    topic: str = ""
    fine_topic: str = ""
    crisis: bool | None = None
    fault: str | None = None
    history: tuple[Turn, ...] = ()

    @property
    def session(self) -> tuple[Turn, ...]:
        """The history, then the question."""
        return (*self.history, Turn("user", self.question))


def preference_fingerprint(config: ImportPreferencesConfig) -> dict[str, Any]:
    """Return what identifies the rows: the content of the files by split, and how they are read."""
    found: dict[str, Any] = {}
    for split, source in _parts(config):
        found.setdefault(split, []).append(source_fingerprint(source.path, source.split, source.config))
    read_by = config.fingerprint()
    return found | {name: read_by[name] for name in ("columns", "split_column", "where", "on_bad_row", "scale")}


def read_preference_rows(config: ImportPreferencesConfig) -> list[PreferenceRow]:
    """Read the rows of a preference dataset, train before dev and test; all have the same principles.

    Raises:
        InputError: a file or column is missing, a cell is not what its column holds, or a rating is off the scale.
    """
    rows: list[PreferenceRow] = []
    layout: PreferenceColumns | None = None

    def read(split: str, row: SourceRow) -> PreferenceRow:
        nonlocal layout
        layout = layout or config.columns or _layout(tuple(row.values))
        split = split if config.split_column is None else split_cell(row, config.split_column)
        return _read(row, split, layout, config.scale)

    for split, source in _parts(config):
        for row in read_cells(read_source(source), partial(read, split), config.on_bad_row):
            rows.append(PreferenceRow(row.where, split, fault="bad_row") if isinstance(row, BadRow) else row)
    return sorted(rows, key=lambda row: SPLITS.index(row.split))


def _parts(config: ImportPreferencesConfig) -> Iterator[tuple[str, RowSource]]:
    """Yield splits and what is read for them: files by the beginning of their names; if none has one, all are train."""

    def source(path: str, split: str = "train") -> RowSource:
        return RowSource(path=path, split=split, config=config.config, where=config.where, on_bad_row=config.on_bad_row)

    if config.source.startswith(HUB):
        own = config.splits or ({"train": "train"} if config.split_column else {"train": "train", "test": "test"})
        yield from ((split, source(config.source, name)) for split, name in own.items())
        return
    beginnings = {begin: split for split, begin in config.splits.items()} if config.splits else SPLIT_NAMES
    files = files_of(config.source)
    named = [(_split_of(file, beginnings), file) for file in files]
    found = {split for split, _ in named}
    if config.splits and (missing := config.splits.keys() - found):
        remedy = f"the files are {', '.join(file.name for file in files)}"
        what = f"no file begins with {config.splits[min(missing)]!r}"
        raise InputError(what, where=config.source, remedy=remedy)
    if config.split_column or found == {""}:
        yield from (("train", source(str(file))) for file in files)
    else:
        yield from ((own, source(str(file))) for own in SPLITS for split, file in named if split == own)


def _split_of(file: Path, beginnings: Mapping[str, str] = SPLIT_NAMES) -> str:
    """Return the split that a file's name begins with, as in `test-00000-of-00001.parquet`; empty for none."""
    return next((split for begin, split in beginnings.items() if file.name.startswith(begin)), "")


_HELPSTEER2: dict[str, Any] = {
    "chosen": "response_1",
    "rejected": "response_2",
    "swap": "preference_strength > 0",
    "tie": "preference_strength == 0",
}


@lru_cache
def _layout(names: tuple[str, ...]) -> PreferenceColumns:
    """Return which columns of a row hold what, by their names."""
    principles = [
        name.removeprefix("chosen_").removesuffix(_RATING)
        for name in names
        if name.startswith("chosen_") and name.endswith(_RATING)
    ]
    ratings: dict[str, tuple[Column, Column]]
    ratings = {name: (f"chosen_{name}{_RATING}", f"rejected_{name}{_RATING}") for name in principles}
    if not ratings and {"score_chosen", "score_rejected"} <= {*names}:
        ratings = {"score": ("score_chosen", "score_rejected")}
    speech = next((name for name in ("prompt", "question", "instruction") if name in names), None)
    return PreferenceColumns(
        **(_HELPSTEER2 if "preference_strength" in names else {}),
        speech=("instruction", "input") if speech == "instruction" and "input" in names else speech,
        chosen_author="chosen_model" if "chosen_model" in names else None,
        rejected_author="rejected_model" if "rejected_model" in names else None,
        topic=next((name for name in ("topic", "subset") if name in names), None),
        history="history" if {*_OWN, "history"} <= {*names} else None,
        ratings=ratings,
    )


def _read(row: SourceRow, split: str, columns: PreferenceColumns, scale: Sequence[int] | None) -> PreferenceRow:
    """Read a row, in a layout that is known or that a config describes.

    Without a scale, only what makes a pair: its texts, its topic whatever that holds, and its scores.
    """
    if columns.tie is not None and holds(row, columns.tie):
        return PreferenceRow(row.where, split, fault="no_preference")
    order = (1, 0) if columns.swap is not None and holds(row, columns.swap) else (0, 1)
    names, authors = (columns.chosen, columns.rejected), (columns.chosen_author, columns.rejected_author)
    given = [cell(row, names[at]) for at in order]
    asked = None if columns.speech is None else cell(row, columns.speech) or ""
    texts = _exchange_of(asked, ["" if value is None else value for value in given], row.where)
    if isinstance(texts, str):
        return PreferenceRow(row.where, split, fault=texts)
    both = zip(order, (texts.chosen, texts.rejected), strict=True)
    sides = [
        PreferenceSide(
            answer,
            "" if (author := authors[at]) is None or scale is None else label_cell(row, author),
            {} if scale is None else {name: _rating(row, pair[at], scale) for name, pair in columns.ratings.items()},
            _score(row, ("chosen_score", "rejected_score")[at]),
        )
        for at, answer in both
    ]
    is_own = scale is not None and row.values.keys() >= _OWN
    if columns.topic is None:
        topic = ""
    else:
        topic = str(cell(row, columns.topic) or "") if scale is None else label_cell(row, columns.topic)
    return PreferenceRow(
        row.where,
        split,
        texts.prompt,
        *sides,
        topic=topic,
        fine_topic=text_cell(row, "fine_topic") if is_own else "",
        crisis=flag_cell(row, "crisis") if is_own else None,
        history=texts.history or (history_cell(row, columns.history) if columns.history else ()),
    )


def _rating(row: SourceRow, column: Column, scale: Sequence[int]) -> Rating | None:
    value = cell(row, column)
    if value in (None, "") or (isinstance(value, float) and math.isnan(value)):
        return None
    return rating_of(value, row.where, *scale)


def _score(row: SourceRow, column: str) -> float | None:
    value = row.values.get(column) if row.values.keys() >= _OWN else None
    return float(value) if isinstance(value, int | float) else None


# --- Pairs of others, to train on and to evaluate with --------------------

_READER = 10
"""Raised by hand whenever rows of others may be read differently than before."""


class OutsidePairs(NamedTuple):
    """The distinct pairs of a dataset, and its rows that give none, by reason."""

    pairs: list[PreferencePair]
    dropped: Counter[str]


def outside_fingerprint(source: str, split: str, config: str | None) -> list[dict[str, Any]]:
    """Return what identifies a dataset: the digests of its files, or its Hub name with revision.

    Raises:
        InputError: there is no such file.
    """
    return [source_fingerprint(path, split, config) | {"reader": _READER} for path in _paths(source, split)]


def _paths(source: str, split: str) -> list[str]:
    """Return what to read: of a folder the files that begin with the split, only Parquet files if some of them are.

    Where no file begins with any split, these are all but Parquet files.
    """
    if source.startswith(HUB) or Path(source).is_file():
        return [source]
    files = files_of(source, may_be_empty=True)
    found = [file for file in files if file.name.startswith(split)]
    found = found or [file for file in files if _split_of(file) == SPLIT_NAMES.get(split, split)]
    found = [file for file in found if file.suffix == ".parquet"] or found
    if not found and not any(map(_split_of, files)):
        found = [file for file in files if file.suffix != ".parquet" and file.stat().st_size]
    if not found:
        remedy = "name the folder of a copy of the data set, or hub:owner/name"
        raise InputError(f"no file begins with {split!r}", where=source, remedy=remedy)
    return [str(file) for file in found]


def read_outside(
    source: str, split: str, config: str | None, columns: ResponseColumns | None = None
) -> "OutsidePairs | list[BestOfK]":
    """Read a dataset: a .json, .jsonl, .csv or .parquet file, a folder of them, or `hub:owner/name@revision`.

    Rows are best-of-k rows if their `chosen` is a list of texts, if they are laid out as RMB's, or if `columns` names
    what is where; a pair after several turns is one of them, with one response on either side. All others are pairs.

    Rows whose own column `split` names another split are left out.

    Raises:
        InputError: it cannot be read, has no rows (of the split), or a row is not laid out like this.
    """
    rows = chain.from_iterable(read_rows(path, split, config) for path in _paths(source, split))
    first = next(rows, None)
    if first is None:
        raise InputError("has no rows", where=source, remedy="name a dataset with rows")
    rows, layout = chain([first], rows), columns or _best_of_k_layout(first.values)
    if layout is None:
        return _pairs_of(rows, source_name(source), split)
    prompts = [_best_of_k(row, layout) for row in rows if not _is_of_another_split(row, split)]
    if not prompts:
        raise InputError(f"all rows are of another split than {split}", where=source, remedy="name that split")
    return prompts


def _is_of_another_split(row: SourceRow, wanted: str) -> bool:
    """Return whether a row says so itself in a column `split`, as those of HelpSteer2 do; other words are no splits."""
    own, wanted = (SPLIT_NAMES.get(name, name) for name in (str(row.values.get("split")).lower(), wanted))
    return {own, wanted} <= {*SPLITS} and own != wanted


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


def _pairs_of(rows: Iterable[SourceRow], source: str, split: str) -> OutsidePairs:
    """Return the pairs of a split's rows in a known layout, whatever their ratings."""
    pairs: dict[str, PreferencePair] = {}
    dropped: Counter[str] = Counter()
    for each in rows:
        if _is_of_another_split(each, split):
            dropped["another_split"] += 1
            continue
        layout = _layout(tuple(each.values))
        if not {layout.chosen, layout.rejected} <= each.values.keys():
            remedy = "describe it to import-preferences, as `columns`, and name what that makes"
            raise InputError("is laid out as no known preference dataset", where=each.where, remedy=remedy)
        row = _read(each, split, layout, None)
        if (fault := row.fault or _fault_of_texts(row)) is not None:
            dropped[fault] += 1
            continue
        speech = Speech(row.question, topic=row.topic, source=source, history=row.history)
        chosen, rejected = (
            ScoredCandidate(Candidate(speech.id, "", side.text), score)
            for side, score in ((row.chosen, 1.0), (row.rejected, 0.0))
        )
        pair = PreferencePair(speech, chosen, rejected)
        dropped["repeated"] += pair.id in pairs
        pairs[pair.id] = pair
    return OutsidePairs(list(pairs.values()), +dropped)


def _fault_of_texts(row: PreferenceRow) -> str | None:
    texts = (row.question, row.chosen.text, row.rejected.text)
    if any(refusal(text) for text in (*(turn.content for turn in row.history), *texts)):
        return "unreadable"
    if not all(text.strip() for text in texts):
        return "empty"
    return "equal_texts" if texts[1] == texts[2] else None


# --- Texts of a row --------------------


class Answered(NamedTuple):
    """What a client says, the turns before it, and two answers to it."""

    history: tuple[Turn, ...]
    prompt: str
    chosen: str
    rejected: str


def _exchange_of(prompt: object, responses: Sequence[object], where: str) -> Answered | str:
    """Return the session so far and the two responses, or the reason why they are no two answers to one speech.

    Each is a text, a list of messages, or a transcript as in HH-RLHF or HelpSteer2; responses may repeat the prompt,
    and a prompt of None stands in them.
    """
    before = _prompt(prompt, where)
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
    return Answered(tuple(turns), asked, _said(chosen), _said(rejected))


def _said(text: str) -> str:
    """Return a response as it was released, except for the thoughts before it."""
    said = without_thoughts(text)
    return text if said == text.strip() else said


def _prompt(value: object, where: str) -> list[Message]:
    """Return the messages of a prompt, without the empty answer with which some transcripts end."""
    messages = list(_messages(value, "user", where))
    return messages[:-1] if messages and messages[-1] == ("assistant", "") else messages


def _messages(value: object, role: str, where: str) -> Iterator[Message]:
    """Yield the messages of a cell: a text is one message with `role` or a transcript, a null is none."""
    held = messages_in(value)
    if isinstance(held, str):
        yield role, held
    elif held is not None:
        what = "a prompt" if role == "user" else "a response"
        yield from messages_of(held, what, where)


# --- Best of k --------------------


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


def _best_of_k_layout(values: Mapping[str, object]) -> ResponseColumns | None:
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


def _best_of_k(row: SourceRow, columns: ResponseColumns) -> BestOfK:
    if columns.chosen in _RMB and (other := next(iter(_RMB.keys() & row.values.keys() - {columns.chosen}), None)):
        remedy = "name the folder with one of them; a pair and a best of several are not the same measure"
        raise InputError(
            f"has a column {other!r}, and rows before it {columns.chosen!r}", where=row.where, remedy=remedy
        )
    turns = _prompt(cell(row, columns.prompt), row.where)
    sides = (columns.chosen, columns.rejected)
    chosen, rejected = (tuple(map(_said, _answers(cell(row, side), row.where))) for side in sides)
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
