"""PreferencePair -> TokenizedPair: token ids, and the only length policy there is.

Nothing is ever cut: a cut side has lost its terminator, and two cut sides may have become the same text. A
pair of which either side does not fit is dropped and counted, and too many dropped pairs end the stage.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import LengthConfig
from psychocounsel.errors import DataQualityError
from psychocounsel.training.generate import TemplateError, encode_exchange
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.types import PreferencePair


class TokenizedPair(NamedTuple):
    """A pair as ids; both answers end in their terminator, neither repeats the prompt."""

    pair_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt and its longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class LengthTable:
    """How many pairs were kept, and why the others were dropped: each counts under its first reason."""

    kept: int = 0
    too_long_chosen: int = 0
    too_long_rejected: int = 0
    not_a_prefix: int = 0
    identical_tokens: int = 0

    @property
    def dropped(self) -> int:
        """Number of pairs that were left out."""
        return self.total - self.kept

    @property
    def total(self) -> int:
        """Number of pairs that were looked at."""
        return sum(self.as_dict().values())

    def as_dict(self) -> dict[str, int]:
        """Return the counts by reason, in the order in which a table shows them."""
        return asdict(self)


class TokenizedPairs(NamedTuple):
    """The pairs that fit, in their order, and the count of those that do not."""

    rows: list[TokenizedPair]
    table: LengthTable


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    length: LengthConfig,
    chat: ChatFormat,
) -> TokenizedPairs:
    """Encode `pairs`; leave out, and count, those that do not fit into `length.max_length_tokens`.

    Raises:
        DataQualityError: more than `length.max_dropped_share` of the pairs was dropped, or none is left.
    """
    rows: list[TokenizedPair] = []
    reasons: list[str] = []
    for pair in pairs:
        with quiet_libraries():  # a text beyond the model's positions is our business: it is dropped
            row = _encode(pair, tokenizer, chat)
        reason = "not_a_prefix" if row is None else _reason_to_drop(row, length.max_length_tokens)
        if row is not None and reason is None:
            rows.append(row)
        reasons.append(reason or "kept")
    table = LengthTable(**{reason: reasons.count(reason) for reason in set(reasons)})
    _check(table, length)
    return TokenizedPairs(rows, table)


def _encode(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat) -> TokenizedPair | None:
    try:
        chosen = encode_exchange(tokenizer, pair.speech.text, pair.chosen.candidate.text, chat)
        rejected = encode_exchange(tokenizer, pair.speech.text, pair.rejected.candidate.text, chat)
    except TemplateError:
        return None
    return TokenizedPair(pair.id, chosen.prompt_ids, chosen.response_ids, rejected.response_ids)


def _reason_to_drop(row: TokenizedPair, max_length_tokens: int) -> str | None:
    room = max_length_tokens - len(row.prompt_ids)
    if len(row.chosen_ids) > room:
        return "too_long_chosen"
    if len(row.rejected_ids) > room:
        return "too_long_rejected"
    return "identical_tokens" if row.chosen_ids == row.rejected_ids else None


def _check(table: LengthTable, length: LengthConfig) -> None:
    if table.kept and table.dropped <= length.max_dropped_share * table.total:
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in table.as_dict().items())
    raise DataQualityError(
        f"{table.dropped} of {table.total} pairs cannot be trained on ({counts})",
        remedy="raise length.max_length_tokens or length.max_dropped_share, or use shorter responses",
    )
