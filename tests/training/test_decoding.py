"""Decoding in rows that are refilled: the tokens are the model's own, whatever shares the cache with an answer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from psychocounsel.config.components import SamplingConfig
from psychocounsel.errors import ConfigError
from psychocounsel.training import decoding
from psychocounsel.training.decoding import DecodingTask, decode, sample_tokens

SHAPE: dict[str, Any] = {
    **{"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "pad_token_id": 0},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3},
    "tie_word_embeddings": False,
}
ENDS = set(range(3, 20))


def llama() -> Any:
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def mistral() -> Any:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6)).eval()


def gemma() -> Any:  # windows in every other layer, and capped logits
    config = Gemma2Config(**SHAPE, sliding_window=6, query_pre_attn_scalar=8)
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager").eval()


def answers(model: Any, prompts: list[list[int]], n: int, sampling: SamplingConfig) -> list[list[int]]:
    tasks = [DecodingTask(at * n + k, tuple(prompt), k) for at, prompt in enumerate(prompts) for k in range(n)]
    found: dict[int, list[int]] = {}
    decode(model, tasks, sampling, ENDS, 0, found.update)
    return [found[place] for place in range(len(tasks))]


def ragged_prompts() -> list[list[int]]:
    lengths = torch.randint(2, 14, (7,)).tolist()
    return [torch.randint(20, 97, (length,)).tolist() for length in lengths]


@pytest.mark.parametrize("make", [llama, mistral, gemma])
@pytest.mark.parametrize(("rows", "slack", "prefill"), [(1, 1, 1), (3, 2, 20), (64, 128, 4096)])
def test_greedy_answers_are_those_of_generate_on_each_prompt_alone(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any], rows: int, slack: int, prefill: int
) -> None:
    monkeypatch.setattr(decoding, "SLACK_COLUMNS", slack)  # columns are moved at every second step
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", prefill)
    torch.manual_seed(1)
    model, prompts = make(), ragged_prompts()
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=20, batch_size=rows)
    found = answers(model, prompts, 2, sampling)
    stock = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=sorted(ENDS), pad_token_id=0)
    for at, prompt in enumerate(prompts):
        expected = model.generate(torch.tensor([prompt]), generation_config=stock)[0, len(prompt) :].tolist()
        assert found[2 * at] == found[2 * at + 1] == expected
    assert len({len(each) for each in found}) > 1  # rows end at different steps, and are refilled


def test_samples_depend_on_the_prompt_and_its_repeat_alone() -> None:
    torch.manual_seed(2)
    model, prompts = llama(), ragged_prompts()
    runs = [answers(model, prompts, 3, SamplingConfig(max_new_tokens=20, batch_size=rows)) for rows in (1, 4, 64)]
    assert runs[0] == runs[1] == runs[2]
    assert len(set(map(tuple, runs[0]))) > len(prompts)


def test_a_prompt_is_computed_once_for_all_its_answers() -> None:
    torch.manual_seed(3)
    model, prompts = llama(), ragged_prompts()
    tokens = [0]

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor], output: object) -> None:
        tokens[0] += inputs[0].numel()

    model.model.embed_tokens.register_forward_hook(count)
    longest = max(map(len, prompts))
    found = answers(model, prompts, 8, SamplingConfig(max_new_tokens=20, batch_size=5))
    assert tokens[0] <= len(prompts) * longest + sum(map(len, found))


def test_masks_begin_where_memory_is_aligned() -> None:
    torch.manual_seed(4)
    model, masks = llama(), list[torch.Tensor]()
    forward = model.forward

    def watched(**inputs: Any) -> Any:
        if "attention_mask" in inputs:
            masks.append(inputs["attention_mask"])
        return forward(**inputs)

    model.forward = watched
    answers(model, ragged_prompts(), 2, SamplingConfig(max_new_tokens=20, batch_size=3))
    assert masks
    assert all(mask.data_ptr() % 16 == 0 for mask in masks)


def test_a_model_without_keys_and_values_is_refused() -> None:
    config = FalconMambaConfig(vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="local sampler"):
        answers(FalconMambaForCausalLM(config), [[21, 22]], 1, SamplingConfig())


@pytest.mark.parametrize("vocabulary", [5, decoding.BLOCK, 3 * decoding.BLOCK + 1])
def test_a_sample_is_where_the_distribution_exceeds_its_number(vocabulary: int) -> None:
    torch.manual_seed(4)
    logits, numbers = 3 * torch.randn(200, vocabulary), torch.rand(200, dtype=torch.float64)
    for temperature in (0.5, 1.0):
        exact = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
        sampled = sample_tokens(logits, numbers, SamplingConfig(temperature=temperature))
        expected = torch.searchsorted(exact, numbers[:, None])[:, 0]
        assert (sampled == expected).double().mean() > 0.98  # single precision moves a border now and then
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    kept = torch.full((2, vocabulary), -40.0)
    kept[:, [1, -2]] = 0.0
    assert sample_tokens(kept, ends, SamplingConfig(top_p=0.9)).tolist() == [1, vocabulary - 2]
