"""Chats and preference pairs as token ids.

A chat template is applied once and gives ids; no rendered text is tokenized again, so a chat has one beginning-of-text
token and an answer one terminator. Nothing is truncated: a truncated side has lost its terminator, and two truncated
sides may be the same text. A pair with a side that does not fit is dropped and counted.
"""

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, cast

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import LengthConfig
from psychocounsel.errors import ConfigError, DataQualityError, InputError
from psychocounsel.llm.types import THOUGHTS_BEGIN, THOUGHTS_END, without_thoughts
from psychocounsel.training.runtime import load_pretrained, on_this_machine, quiet_libraries
from psychocounsel.types import Policy, PreferencePair

PAD_TOKEN = "<|finetune_right_pad_id|>"  # noqa: S105 (a token of the vocabulary, not a secret)
RESERVED_PREFIX = "<|reserved_special_token_"
PINNED_DATE = '{% macro strftime_now(format) %}{{ date_string }}{% endmacro %}{{ "" }}'
"""Prepended to a chat template, it gives the configured date where the template asks for today's."""
_KNOWS_CONTROL_TOKENS = (
    "sanitize_control_tokens" in inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
)


class EncodedExchange(NamedTuple):
    """A prompt and its answer as ids; `response_ids` end in the answer's one terminator."""

    prompt_ids: list[int]
    response_ids: list[int]


class TemplateError(InputError):
    """A chat template that refuses a chat, or whose ids cannot be split into a prompt and a terminated answer."""


def load_tokenizer(policy: Policy) -> PreTrainedTokenizerBase:
    """Return the tokenizer that is stored with the weights of `policy`.

    Raises:
        ConfigError: there is none, or it has no chat template.
    """
    tokenizer: PreTrainedTokenizerBase = load_pretrained(AutoTokenizer, policy)
    if not tokenizer.chat_template:
        remedy = "use an instruction-tuned model"
        raise ConfigError("the tokenizer has no chat template", where=policy.location, remedy=remedy)
    return tokenizer


def require_trainable(policy: Policy, chat: ChatFormat) -> None:
    """Raise what training would raise about the tokenizer of `policy`: its template, its padding, a chat's end.

    A model on the Hub of which no tokenizer was downloaded, or a part of one, is left for later.

    Raises:
        ConfigError: it has no chat template, or no padding token.
        TemplateError: its template refuses the chat, or answers have no end.
    """
    local = on_this_machine(policy, "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
    if local is not None:
        try:
            tokenizer = load_tokenizer(local)
            pad_token_id(tokenizer)
            encode_exchange(tokenizer, "Hello", "Hello", chat)
        except (ConfigError, TemplateError) as fault:  # which name the folder of the Hub's cache, or no model
            raise type(fault)(fault.what, where=policy.location, remedy=fault.remedy) from fault


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that stand for no text: begin, end, headers, padding, reserved."""
    return frozenset(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that pads short rows. It never ends an answer, so no end is taken for padding.

    It is Llama 3's own padding token, or the tokenizer's if that is not the end-of-text token, or a reserved one, or
    the one for unknown text (Mistral has no other, and no text that it could not write), or the tokenizer's although
    it is the end-of-text token (Phi-4-mini ends answers with another one), or any special one (Granite 3).

    Raises:
        ConfigError: the vocabulary has none of these.
        TemplateError: which special token ends an answer had to be known, and the template writes none.
    """
    vocabulary = tokenizer.get_vocab()
    if PAD_TOKEN in vocabulary:
        return vocabulary[PAD_TOKEN]
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return cast(int, tokenizer.pad_token_id)
    if reserved := [index for token, index in vocabulary.items() if token.startswith(RESERVED_PREFIX)]:
        return min(reserved)
    if tokenizer.unk_token_id not in (None, tokenizer.eos_token_id):
        return cast(int, tokenizer.unk_token_id)
    if spare := special_ids(tokenizer) - {terminator_id(tokenizer)}:
        own = cast(int | None, tokenizer.pad_token_id)
        return own if own in spare else min(spare)
    raise ConfigError(
        "the tokenizer has no padding token distinct from the one that ends an answer",
        where=tokenizer.name_or_path,
        remedy="add one to the tokenizer (add_special_tokens) and save it with the model",
    )


def terminator_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id with which the chat template ends an answer (`<|eot_id|>` in Llama 3).

    Raises:
        TemplateError: the template writes none.
    """
    return encode_exchange(tokenizer, "Hello", "Hello", ChatFormat()).response_ids[-1]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, speech_text: str, chat: ChatFormat, history: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Return the ids of the chat up to where the assistant begins to speak; `history` are earlier turns, by role.

    Raises:
        TemplateError: there is not exactly one beginning-of-text token, where the tokenizer writes one itself; or
            there are two at the start.
    """
    ids = _apply_template(tokenizer, speech_text, None, chat, history)
    begin = cast(int | None, tokenizer.bos_token_id)
    if begin is None:
        return ids
    # Phi names a token that its chats do not begin with, and SmolLM2 the one that begins each turn.
    begins_text = begin in cast(list[int], tokenizer("").input_ids)
    if (ids.count(begin) != 1 or ids[0] != begin) if begins_text else ids[:2] == [begin, begin]:
        raise TemplateError(
            f"the chat template gives {ids.count(begin)} beginning-of-text tokens in one prompt, not one at its start",
            remedy="correct the chat template",
        )
    return ids


def encode_exchange(
    tokenizer: PreTrainedTokenizerBase,
    speech_text: str,
    response: str,
    chat: ChatFormat,
    history: Sequence[tuple[str, str]] = (),
) -> EncodedExchange:
    """Return the ids of prompt and answer, taken from one encoding of the whole chat.

    What a template writes after the terminator is left out.

    Raises:
        TemplateError: the prompt is no prefix of the chat, or the answer has not exactly one terminator.
    """
    prompt = encode_prompt(tokenizer, speech_text, chat, history)
    whole = _apply_template(tokenizer, speech_text, response, chat, history)
    if whole[: len(prompt)] != prompt:
        remedy = "use a chat template that only appends"
        if THOUGHTS_END in response:  # many templates leave them out, or write them where the prompt has ended them
            remedy = f"leave the thoughts of a model, which end in {THOUGHTS_END}, out of the answers"
        raise TemplateError("the prompt's token ids are not a prefix of the chat's", remedy=remedy)
    special, rest = special_ids(tokenizer), whole[len(prompt) :]
    ends = [place for place, index in enumerate(rest) if index in special]
    if not ends or cast(str, tokenizer.decode(rest[ends[0] :], skip_special_tokens=True)).strip():
        raise TemplateError(
            f"the template does not end an answer with its first special token; it writes {len(ends)} special tokens",
            remedy="use a chat template that closes the assistant's turn with its end-of-turn token",
        )
    return EncodedExchange(prompt, rest[: ends[0] + 1])


def _apply_template(
    tokenizer: PreTrainedTokenizerBase,
    speech_text: str,
    response: str | None,
    chat: ChatFormat,
    history: Sequence[tuple[str, str]],
) -> list[int]:
    turns = [*history, ("user", speech_text), *([] if response is None else [("assistant", response)])]
    if chat.system_prompt and turns[0][0] != "system":
        turns.insert(0, ("system", chat.system_prompt))
    if not _KNOWS_CONTROL_TOKENS:
        turns = [(role, _broken_up(content, tokenizer)) for role, content in turns]
    try:
        ids = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns],
            tokenize=True,
            return_dict=False,
            add_generation_prompt=response is None,
            date_string=chat.date_string,
            enable_thinking=False,  # Qwen 3 and others would think aloud first; what they say then is no answer
            chat_template=PINNED_DATE + tokenizer.get_chat_template(),
            sanitize_control_tokens=True,  # a client who types "<|eot_id|>" must not end a turn
        )
    except jinja2.TemplateError as refusal:  # as of a session that the counsellor opens
        remedy = "use a model whose chat template takes these turns"
        if turns[0] == ("system", chat.system_prompt):
            remedy = "set chat.system_prompt to '', if it takes no system message; or " + remedy
        raise TemplateError(f"the chat template refuses the turns: {refusal}", remedy=remedy) from refusal
    return cast(list[int], ids)


def _broken_up(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return `text` with a zero-width space in each special token that it spells: transformers 5.19 would read it."""
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            text = text.replace(token.content, f"{token.content[0]}\u200b{token.content[1:]}")
    return text


def answer_text(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """Return the text of an answer without the thoughts before it, which the prompt may have begun."""
    text = cast(str, tokenizer.decode(list(answer_ids), skip_special_tokens=True))
    end_of_prompt = cast(str, tokenizer.decode(list(prompt_ids[-8:])))
    return without_thoughts(text if not end_of_prompt.rstrip().endswith(THOUGHTS_BEGIN) else THOUGHTS_BEGIN + text)


class TokenizedPair(NamedTuple):
    """A pair as ids; an answer ends in its terminator unless it is unfinished, neither repeats the prompt."""

    pair_id: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def length(self) -> int:
        """Tokens of the prompt and its longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


class LengthTable(NamedTuple):
    """How many pairs are kept, and how many are dropped for which reason; a pair counts under its first reason."""

    kept: int = 0
    too_long_chosen: int = 0
    too_long_rejected: int = 0
    not_a_prefix: int = 0
    identical_tokens: int = 0

    @property
    def dropped(self) -> int:
        """Number of pairs that are left out."""
        return sum(self) - self.kept


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    length: LengthConfig,
    chat: ChatFormat,
    *,
    closes_unfinished: bool = False,
) -> tuple[list[TokenizedPair], LengthTable]:
    """Return the pairs that fit into `length.max_length_tokens`, in their order, and the counts of all.

    An unfinished answer has no terminator, for a policy would learn from it when to end or not to end; one has it if
    `closes_unfinished`, for a reward model, which scores texts with it.

    Raises:
        DataQualityError: more than `length.max_dropped_share` of the pairs is dropped, or none is left.
    """
    rows: list[TokenizedPair] = []
    reasons: Counter[str] = Counter()
    refusal: TemplateError | None = None
    for pair in pairs:
        try:
            with quiet_libraries():  # the warning on texts beyond the model's positions: such pairs are dropped here
                chosen, rejected = (
                    encode_exchange(tokenizer, pair.speech.text, side.candidate.text, chat, pair.speech.history)
                    for side in (pair.chosen, pair.rejected)
                )
        except TemplateError as fault:
            refusal = refusal or fault
            reasons["not_a_prefix"] += 1
            continue
        if not closes_unfinished:
            chosen, rejected = (
                encoded if side.candidate.finished else encoded._replace(response_ids=encoded.response_ids[:-1])
                for encoded, side in ((chosen, pair.chosen), (rejected, pair.rejected))
            )
        longest_answer = length.max_length_tokens - len(chosen.prompt_ids)
        if len(chosen.response_ids) > longest_answer:
            reasons["too_long_chosen"] += 1
        elif len(rejected.response_ids) > longest_answer:
            reasons["too_long_rejected"] += 1
        elif chosen.response_ids == rejected.response_ids:
            reasons["identical_tokens"] += 1
        else:
            rows.append(TokenizedPair(pair.id, chosen.prompt_ids, chosen.response_ids, rejected.response_ids))
    table = LengthTable(kept=len(rows), **reasons)
    if not rows or table.dropped > length.max_dropped_share * len(pairs):
        counts = ", ".join(f"{reason} {count}" for reason, count in table._asdict().items())
        what = f"{table.dropped} of {len(pairs)} pairs cannot be trained on ({counts})"
        remedy = "raise length.max_length_tokens or length.max_dropped_share, or use shorter responses"
        if refusal is not None and 2 * table.not_a_prefix > table.dropped:
            what, remedy = f"{what}: {refusal.what}", refusal.remedy
        raise DataQualityError(what, remedy=remedy)
    return rows, table
