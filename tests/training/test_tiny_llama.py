"""The tiny Llama 3 has the real one's shape and awkward details; it learns, and resumes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from preference_runs import output_in, same_weights, stopping_after, watched, weights_of
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from psychocounsel.config.schema import BaseModelConfig, TinyLlamaShape
from psychocounsel.errors import DataQualityError, Preempted
from psychocounsel.store.shapes import SftSummary
from psychocounsel.training.tiny_llama import (
    PROMPT_WEIGHT,
    Pack,
    batch_loss,
    build_model,
    collate,
    learning_rate_share,
    make_tiny_llama,
    pack,
    train_sft,
)
from psychocounsel.training.tokenize import EncodedExchange
from psychocounsel.training.trainer import TrainingOutput
from psychocounsel.types import Candidate, Speech

PAD = 386


def test_folder_opens_plainly_with_the_details_of_llama_3(tiny_model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert tokenizer.is_fast
    assert len(tokenizer) == model.config.vocab_size
    assert list(tiny_model_folder.glob("*.safetensors"))
    assert not list(tiny_model_folder.glob("*.bin"))
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape == (32, 32)
    assert attention.k_proj.weight.shape == (16, 32)  # two heads of eight serve four
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    rope = json.loads((tiny_model_folder / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["rope_theta"]) == ("llama3", 500_000.0)
    decoding = GenerationConfig.from_pretrained(tiny_model_folder)
    ends = tokenizer.convert_ids_to_tokens(decoding.eos_token_id)
    assert ends == ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    assert (decoding.do_sample, decoding.temperature, decoding.top_p) == (True, 0.6, 0.9)
    assert tokenizer.eos_token == "<|eot_id|>"
    assert tokenizer.pad_token is model.config.pad_token_id is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=("Cs",))))
@example(text="\U0001f469\u200d\U0001f469\u200d\U0001f467 \u05e9\u05dc\u05d5\u05dd \u2028 end\x00\r\n\n  x")
def test_every_text_survives(tiny_tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    ids = tiny_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tiny_tokenizer.decode(ids) == text


def test_equal_configs_give_equal_weights_and_leave_the_random_state_alone(
    tiny_model_folder: Path,
    tmp_path: Path,
    speeches: tuple[Speech, ...],
    candidates: tuple[Candidate, ...],
    tiny_config: BaseModelConfig,
) -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    again, other = output_in(tmp_path / "again"), output_in(tmp_path / "other")
    make_tiny_llama(speeches, candidates, tiny_config, again)
    assert torch.equal(before, torch.get_rng_state())
    make_tiny_llama(speeches, candidates, tiny_config.model_copy(update={"seed": 8}), other)
    assert same_weights(weights_of(tiny_model_folder), weights_of(again.folder))
    assert not same_weights(weights_of(tiny_model_folder), weights_of(other.folder))


def test_stopped_run_ends_bitwise_equal_to_an_uninterrupted_one(
    tmp_path: Path, speeches: tuple[Speech, ...], candidates: tuple[Candidate, ...], tiny_config: BaseModelConfig
) -> None:
    config = tiny_config.model_copy(update={"sft": tiny_config.sft.model_copy(update={"epochs": 3})})

    def make(output: TrainingOutput) -> SftSummary:
        return make_tiny_llama(speeches, candidates, config, output)

    whole, output = output_in(tmp_path / "whole"), output_in(tmp_path / "stopped")
    straight = make(whole)
    for stop in (1, 4):
        with pytest.raises(Preempted, match=f"step {stop} of {straight.steps}"):
            make(stopping_after(stop, output))
        assert not output.folder.exists()
    output, seen = watched(output)
    resumed = make(output)
    assert seen == [(step, straight.steps) for step in range(5, straight.steps + 1)]
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))
    assert (resumed.first_loss, resumed.last_loss) == (straight.first_loss, straight.last_loss)
    other, seen = watched(replace(output, run_id="other"))
    make(other)
    assert len(seen) == straight.steps


def test_nothing_to_learn_from(tmp_path: Path, speeches: tuple[Speech, ...], tiny_config: BaseModelConfig) -> None:
    to_another_speech = Candidate(Speech("Somebody else entirely.").id, "a", "Hello.")
    with pytest.raises(DataQualityError, match="no response answers"):
        make_tiny_llama(speeches, [to_another_speech], tiny_config, output_in(tmp_path))
    own = Candidate(speeches[0].id, "a", "Hello.")
    short = tiny_config.sft.model_copy(update={"max_length_tokens": 3})
    with pytest.raises(DataQualityError, match="no response fits"):
        make_tiny_llama(speeches, [own], tiny_config.model_copy(update={"sft": short}), output_in(tmp_path))


def test_answers_to_one_prompt_share_a_pack() -> None:
    rows = [EncodedExchange([1, 2], [number]) for number in range(3, 8)]
    assert pack([*rows, EncodedExchange([1], [9])]) == [
        Pack([1, 2], [[3], [4], [5], [6]]),
        Pack([1, 2], [[7]]),
        Pack([1], [[9]]),
    ]


def test_collated_by_hand() -> None:
    batch = collate([Pack([5, 6], [[7, 8], [9]]), Pack([5], [[6]])], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert batch.sources.tolist() == [0, 1, 2, 1, 5]
    assert batch.targets.tolist() == [6, 7, 8, 9, 6]
    assert batch.weights.tolist() == [PROMPT_WEIGHT, 1, 1, 1, 1]
    assert batch.visible[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    # A terminator is learned even where it is the padding.
    assert collate([Pack([5], [[6, 0]]), Pack([5], [[6, 7, 8, 0]])], pad_id=0).targets.tolist() == [6, 0, 6, 7, 8, 0]


def test_packing_changes_no_loss(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    model = build_model(SHAPE, tiny_tokenizer).eval()
    prompt, responses = [7, 8, 9, 10], [[11, 12], [13, 14, 15], [16]]
    packed = batch_loss(model, collate([Pack(prompt, responses), Pack([3, 4], [[5]])], PAD)).item()
    total = weight = 0.0
    for ids, count, learned in (
        (prompt, 4, PROMPT_WEIGHT),
        *((prompt + response, 4, 1.0) for response in responses),
        ([3, 4], 2, PROMPT_WEIGHT),
        ([3, 4, 5], 2, 1.0),
    ):
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        first = 1 if learned == PROMPT_WEIGHT else count
        for place in range(first, len(ids)):
            total -= learned * logits[place - 1, ids[place]].item()
            weight += learned
    assert packed == pytest.approx(total / weight, abs=1e-5)


WIDTHS = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 32, "max_positions": 64}
SHAPE = TinyLlamaShape(**WIDTHS, layers=1, attention_heads=2, key_value_heads=1)


def test_training_learns_and_counts_its_steps(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerBase, tiny_config: BaseModelConfig
) -> None:
    torch.manual_seed(0)
    model = build_model(SHAPE, tiny_tokenizer)
    config = tiny_config.sft.model_copy(
        update={"epochs": 20, "batch_size": 2, "learning_rate": 1e-2, "max_length_tokens": 6}
    )
    rows = [EncodedExchange([1, 2, number], [4, 5, 6]) for number in (3, 7, 8)] + [EncodedExchange([1] * 9, [2])]
    output, seen = watched(output_in(tmp_path))
    summary = train_sft(model, rows, config, PAD, output)
    assert summary.steps == 40  # two batches of at most two answers; the seven-token row is left out
    assert seen == [(step, 40) for step in range(1, 41)]
    assert summary.first_loss == pytest.approx(math.log(400), rel=0.1)
    assert summary.last_loss < 0.5 * summary.first_loss
    assert summary.parameters == sum(weight.numel() for weight in model.parameters())
    assert not model.training


def test_learning_rate_rises_then_falls() -> None:
    shares = [learning_rate_share(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.2)
    assert shares[4] == shares[5] == 1.0
    assert shares[5:] == sorted(shares[5:], reverse=True)
    assert 0 < shares[-1] < 0.001
    assert learning_rate_share(0, 1) == 1.0
