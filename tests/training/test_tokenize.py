"""Chats and pairs as token ids: templates, padding, and which pairs fit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from preference_runs import make_pair
from tokenizers import Tokenizer, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import LengthConfig
from psychocounsel.errors import ConfigError, DataQualityError
from psychocounsel.training.tiny_llama import train_tokenizer
from psychocounsel.training.tokenize import (
    LengthTable,
    TemplateError,
    encode_exchange,
    encode_prompt,
    pad_token_id,
    require_trainable,
    special_ids,
    terminator_id,
    tokenize_pairs,
)
from psychocounsel.types import Policy, PreferencePair

CHAT = ChatFormat()
ANY_SHARE = LengthConfig(max_length_tokens=512, max_dropped_share=1.0)
texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60).filter(str.strip)
many_examples = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def reply_pair(chosen: str, rejected: str) -> PreferencePair:
    return make_pair("I feel low today.", chosen, rejected)


def fresh_tokenizer(template: str | None = None) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(["I feel low today. What happened?"], 300, 512)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


@many_examples
@given(st.lists(texts, min_size=3, max_size=7).filter(lambda said: len(said) % 2))
def test_a_session_goes_on_where_the_last_exchange_ended(
    tiny_tokenizer: PreTrainedTokenizerBase, said: list[str]
) -> None:
    *before, first, answer, second = said
    history = [(("user", "assistant")[at % 2], text) for at, text in enumerate(before)]
    exchange = encode_exchange(tiny_tokenizer, first, answer, CHAT, history)
    prompt = encode_prompt(tiny_tokenizer, second, CHAT, [*history, ("user", first), ("assistant", answer)])
    whole = exchange.prompt_ids + exchange.response_ids
    assert prompt[: len(whole)] == whole
    end = terminator_id(tiny_tokenizer)
    assert prompt.count(end) == 1 + len(said)  # of the system message, which holds the date, and of every turn


@many_examples
@given(speech=texts, response=texts)
@example(speech="I typed <|eot_id|> and <|begin_of_text|>.", response="You typed <|eot_id|>, I see.")
@example(speech="\U0001f469‍\U0001f469‍\U0001f467 fine", response="שלום  line")
def test_exchange_has_one_begin_and_one_terminator(
    tiny_tokenizer: PreTrainedTokenizerBase, speech: str, response: str
) -> None:
    exchange = encode_exchange(tiny_tokenizer, speech, response, CHAT)
    begin, end = tiny_tokenizer.bos_token_id, terminator_id(tiny_tokenizer)
    assert exchange.prompt_ids[0] == begin
    assert (exchange.prompt_ids + exchange.response_ids).count(begin) == 1
    assert exchange.response_ids[-1] == end
    assert [index for index in exchange.response_ids if index in special_ids(tiny_tokenizer)] == [end]
    assert exchange.prompt_ids == encode_prompt(tiny_tokenizer, speech, CHAT)
    read = str(tiny_tokenizer.decode(exchange.response_ids[:-1]))
    assert read.replace("<\u200b|", "<|").strip() == response.strip()  # broken up with transformers below 5.20


def test_chat_is_rendered_as_in_llama_3(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    chat = ChatFormat(system_prompt=" Be kind. ", date_string="01 Jan 2026")
    ids = encode_exchange(tiny_tokenizer, " I am low. ", " Tell me more. ", chat)
    assert tiny_tokenizer.decode(ids.prompt_ids) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 01 Jan 2026\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nI am low.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tiny_tokenizer.decode(ids.response_ids) == "Tell me more.<|eot_id|>"


def test_date_is_pinned_in_a_template_that_only_knows_the_clock() -> None:
    tokenizer = fresh_tokenizer('{{ bos_token }}{{ strftime_now("%d %b %Y") }}{{ messages[0].content }}')
    assert tokenizer.decode(encode_prompt(tokenizer, " Hello", CHAT)) == "<|begin_of_text|>26 Jul 2024 Hello"


class _Vocabulary:
    """The part of a tokenizer that decides its padding token."""

    name_or_path = "somewhere"
    eos_token_id = 1

    def __init__(self, pad_id: int | None, unk_id: int | None = None, **vocabulary: int) -> None:
        self.pad_token_id = pad_id
        self.unk_token_id = unk_id
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return self._vocabulary


def test_padding_never_ends_an_answer(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    reserved = {"<|reserved_special_token_1|>": 9, "<|reserved_special_token_0|>": 8}
    assert tiny_tokenizer.pad_token_id is None
    assert tiny_tokenizer.convert_ids_to_tokens(pad_token_id(tiny_tokenizer)) == "<|finetune_right_pad_id|>"
    assert pad_token_id(_Vocabulary(5)) == 5
    assert pad_token_id(_Vocabulary(1, **reserved)) == 8
    assert pad_token_id(_Vocabulary(None, unk_id=0, **reserved)) == 8
    assert pad_token_id(_Vocabulary(None, unk_id=0)) == 0


@pytest.mark.parametrize(
    ("end", "spare", "padding"),
    [
        ("<|end|>", ["<|user|>"], "<|endoftext|>"),  # Phi-4-mini: a text ends with what begins and pads it, a turn not
        ("<|endoftext|>", ["<|fim|>", "<|user|>"], "<|fim|>"),  # Granite 3: turns end with it, too
        ("<|endoftext|>", [], None),
    ],
)
def test_one_token_may_begin_end_and_pad_texts(end: str, spare: list[str], padding: str | None) -> None:
    backend = Tokenizer(models.WordLevel({"Hello": 0, "<|endoftext|>": 1}, unk_token="<|endoftext|>"))
    backend.add_special_tokens(list(dict.fromkeys(["<|endoftext|>", *spare, end])))
    named = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
    if padding is not None:
        assert tokenizer.convert_ids_to_tokens(pad_token_id(tokenizer)) == padding
        return
    with pytest.raises(ConfigError, match="no padding token distinct"):
        pad_token_id(tokenizer)


@pytest.mark.parametrize(
    ("begin", "end", "last"),
    [
        ("<|start_header_id|>", "<|eot_id|>", ""),  # SmolLM2: each turn begins with what is named as begin of text
        ("<|end_of_text|>", "<|eot_id|>", ""),  # Phi-4: a begin of text is named, and none is written
        ("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_text|>"),  # Phi-3: the text ends after the turn
    ],
)
def test_templates_of_other_families_are_taken_as_they_are(begin: str, end: str, last: str) -> None:
    tokenizer = fresh_tokenizer(
        "{% for m in messages %}<|start_header_id|>{{ m.role }}\n{{ m.content }}<|eot_id|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant\n{% else %}" + last + "{% endif %}"
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A", "$A $B", [])
    tokenizer.bos_token, tokenizer.eos_token = begin, end
    prompt, response = (tokenizer.decode(each) for each in encode_exchange(tokenizer, "low", "What happened?", CHAT))
    assert prompt == "<|start_header_id|>user\nlow<|eot_id|>\n<|start_header_id|>assistant\n"
    assert response == "What happened?<|eot_id|>"


def test_a_model_that_thinks_first_is_asked_not_to() -> None:
    tokenizer = fresh_tokenizer(  # as Qwen 3's
        "{{ bos_token }}{% for m in messages %}{{ m.role }}\n{% if loop.last and m.role == 'assistant' %}<think>\n\n"
        "</think>\n\n{% endif %}{{ m.content }}<|eot_id|>\n{% endfor %}{% if add_generation_prompt %}assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    exchange = encode_exchange(tokenizer, "low", "What happened?", CHAT)
    assert tokenizer.decode(exchange.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert tokenizer.decode(exchange.response_ids) == "What happened?<|eot_id|>"
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.content }}", "{{ m.content.split('<think>')[0] }}")
    tokenizer.chat_template = tokenizer.chat_template.replace("{% if loop.last and", "{% if '<' not in m.content and")
    with pytest.raises(TemplateError) as refusal:
        encode_exchange(tokenizer, "low", "<think>Oh.</think>Go on.", CHAT)
    assert "</think>" in refusal.value.remedy


def test_a_template_that_refuses_a_system_message_says_what_to_set() -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = fresh_tokenizer(
        refusing + "{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>{% endfor %}"
    )
    with pytest.raises(DataQualityError, match="System role not supported") as failure:
        tokenize_pairs([reply_pair("Go on.", "Oh.")], tokenizer, length(200), ChatFormat(system_prompt="Be kind."))
    assert "chat.system_prompt" in failure.value.remedy
    assert tokenize_pairs([reply_pair("Go on.", "Oh.")], tokenizer, length(200), CHAT)[1].kept == 1


@pytest.mark.parametrize("known", [".no_exist/{}/chat_template.jinja", "trees/{}.json"])
def test_a_tokenizer_is_judged_only_once_all_of_it_was_downloaded(
    known: str, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    repository, commit = tmp_path / "models--acme--base", "a" * 40
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "refs", (repository / known.format(commit)).parent):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        shutil.copy(tmp_path / "whole" / name, snapshot)
        require_trainable(Policy("acme/base"), CHAT)
    files = {"tokenizer.json": {"size": 1, "blob_id": "b"}}
    (repository / known.format(commit)).write_text(json.dumps({"format_version": 1, "files": files}))
    with pytest.raises(ConfigError, match="chat template") as fault:  # there is none to come, so it is a base model
        require_trainable(Policy("acme/base"), CHAT)
    assert fault.value.where == "acme/base"
    shutil.copy(tmp_path / "whole" / "chat_template.jinja", snapshot)
    require_trainable(Policy("acme/base"), CHAT)


def test_text_after_the_terminator_is_left_out() -> None:
    tokenizer = fresh_tokenizer("{{ bos_token }}{% for m in messages %}{{ m.content }}<|eot_id|>\n{% endfor %}")
    exchange = encode_exchange(tokenizer, "low", "What happened?", CHAT)
    assert tokenizer.decode(exchange.response_ids) == "What happened?<|eot_id|>"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ bos_token }}{{ messages[-1].content }}{% if add_generation_prompt %}think{% endif %}", "prefix"),
        ("{{ bos_token }}{% for m in messages %}\n{{ m.content }}{% endfor %}", "0 special tokens"),
        ("{{ bos_token }}{% for m in messages %}<|eom_id|>{{ m.content }}<|eot_id|>{% endfor %}", "2 special tokens"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", "2 beginning-of-text"),
        ("{{ raise_exception('roles must alternate') }}", "refuses the turns: roles must alternate"),
    ],
)
def test_unsuitable_templates_are_an_error(template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        encode_exchange(fresh_tokenizer(template), "low", "What happened?", CHAT)


def test_both_sides_are_measured_and_the_limit_itself_fits(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    long_text, short_text = "What happened today, and then? " * 4, "Oh."
    fits = sum(map(len, encode_exchange(tiny_tokenizer, "I feel low today.", long_text, CHAT)))
    pairs = [reply_pair(long_text, short_text), reply_pair(short_text, long_text), reply_pair("Hm.", short_text)]
    tables = [tokenize_pairs(pairs, tiny_tokenizer, length(limit), CHAT)[1] for limit in (fits, fits - 1)]
    assert tables == [LengthTable(kept=3), LengthTable(kept=1, too_long_chosen=1, too_long_rejected=1)]


def length(max_length_tokens: int, max_dropped_share: float = 1.0) -> LengthConfig:
    return LengthConfig(max_length_tokens=max_length_tokens, max_dropped_share=max_dropped_share)


@many_examples
@given(
    sides=st.lists(st.tuples(texts, texts).filter(lambda pair: pair[0] != pair[1]), min_size=1, max_size=5),
    answer_tokens=st.integers(22, 60),
)
def test_kept_and_dropped_add_up_and_nothing_is_cut(
    tiny_tokenizer: PreTrainedTokenizerBase, sides: list[tuple[str, str]], answer_tokens: int
) -> None:
    max_length_tokens = len(encode_prompt(tiny_tokenizer, "I feel low today.", CHAT)) + answer_tokens
    pairs = [reply_pair("Please tell me more.", "Oh."), *(reply_pair(*side) for side in sides)]
    rows, table = tokenize_pairs(pairs, tiny_tokenizer, length(max_length_tokens), CHAT)
    assert table.kept + table.dropped == len(pairs)
    assert table.kept == len(rows)
    by_id = {pair.id: pair for pair in pairs}
    for row in rows:
        for text, ids in (
            (by_id[row.pair_id].chosen.candidate.text, row.chosen_ids),
            (by_id[row.pair_id].rejected.candidate.text, row.rejected_ids),
        ):
            assert ids == encode_exchange(tiny_tokenizer, "I feel low today.", text, CHAT).response_ids
            assert len(row.prompt_ids) + len(ids) <= max_length_tokens


def test_prompt_that_is_no_prefix_is_counted() -> None:
    tokenizer = fresh_tokenizer(
        "{{ bos_token }}{{ '!' if messages[-1].content == 'Bad.' else '' }}{{ messages[0].content }}:"
        "{% if messages | length > 1 %} {{ messages[1].content }}<|eot_id|>{% endif %}"
    )
    pairs = [reply_pair("Good.", "Bad."), reply_pair("Bad.", "Good."), reply_pair("Good.", "Fair.")]
    table = tokenize_pairs(pairs, tokenizer, ANY_SHARE, CHAT)[1]
    assert table == LengthTable(kept=1, not_a_prefix=2)
    assert table.dropped == 2


def test_an_unfinished_answer_has_a_terminator_for_a_reward_model_only(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    pair = reply_pair("Tell me.", "Oh.")
    cut = replace(pair.rejected, candidate=replace(pair.rejected.candidate, finished=False))
    for_policy, for_reward = (
        tokenize_pairs([replace(pair, rejected=cut)], tiny_tokenizer, ANY_SHARE, CHAT, closes_unfinished=closes)[0][0]
        for closes in (False, True)
    )
    assert [*for_policy.rejected_ids, terminator_id(tiny_tokenizer)] == for_reward.rejected_ids
    assert for_policy.chosen_ids == for_reward.chosen_ids
    assert for_policy.chosen_ids[-1] == terminator_id(tiny_tokenizer)


def test_too_many_dropped_pairs_are_an_error(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    long_pair = reply_pair("What happened? " * 60, "Oh.")
    identical = reply_pair("Tell me more.", " Tell me more.\n")
    table = tokenize_pairs([identical, reply_pair("Tell me.", "Oh.")], tiny_tokenizer, ANY_SHARE, CHAT)[1]
    assert table == LengthTable(kept=1, identical_tokens=1)
    pairs = [long_pair, *(reply_pair(f"Tell me {number}.", "Oh.") for number in range(3))]
    _, table = tokenize_pairs(pairs, tiny_tokenizer, length(200, 0.25), CHAT)
    assert table.dropped == 1
    with pytest.raises(DataQualityError, match=r"1 of 4 pairs .*too_long_chosen 1") as failure:
        tokenize_pairs(pairs, tiny_tokenizer, length(200, 0.24), CHAT)
    assert failure.value.exit_code == 4
    for count in (0, 1):
        with pytest.raises(DataQualityError, match=f"{count} of {count} pairs"):
            tokenize_pairs(pairs[1:][:count], tiny_tokenizer, length(5), CHAT)
