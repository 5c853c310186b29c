"""Packed execution: the numbers of the library's own forward, from fewer tokens."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from preference_runs import align_config, optimisation, output_in, reward_config, run_dpo, run_reward
from torch.nn.attention.flex_attention import flex_attention
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from trl.trainer.utils import add_fused_lm_head

from psychocounsel.training.packing import PackedAttention, compiled, pack, response_logprobs, use_packed_forward
from psychocounsel.training.runtime import quiet_libraries

VOCABULARY = 50
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1")
tokens = st.integers(1, VOCABULARY - 1)


@st.composite
def exchanges(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Return prompts and responses: several to a prompt, one-token ones, equal ones, prompts that begin alike.

    A prompt may begin with another one, as the later turns of a session do.
    """
    system = draw(st.lists(tokens, max_size=30))
    prompts = draw(st.lists(st.lists(tokens, min_size=1, max_size=40), min_size=1, max_size=3))
    prompts += [draw(st.sampled_from(prompts)) + each for each in draw(st.lists(st.lists(tokens, min_size=1)))]
    rows = draw(st.lists(st.tuples(st.sampled_from(prompts), st.lists(tokens, min_size=1, max_size=30)), min_size=1))
    return [(system + prompt, response) for prompt, response in rows[:8]]


def llama(classifier: bool = False, **changes: object) -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(**SHAPE, num_labels=3, **changes)
    return LlamaForSequenceClassification(config) if classifier else LlamaForCausalLM(config)


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Return ids, mask and labels, padded to the right and unlabelled in prompts: [rows, tokens] each."""
    width = max(len(prompt) + len(response) for prompt, response in rows)

    def batch(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([each + [filler] * (width - len(each)) for each in values])

    return {
        "input_ids": batch([prompt + response for prompt, response in rows], 0),
        "attention_mask": batch([[1] * len(prompt + response) for prompt, response in rows], 0),
        "labels": batch([[-100] * len(prompt) + response for prompt, response in rows], -100),
    }


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=60), min_size=1, max_size=8))
def test_every_row_can_be_read_from_the_list(rows: list[list[int]]) -> None:
    packed = pack(rows)
    for row, places in zip(rows, packed.places, strict=True):
        assert [packed.token_ids[place] for place in places] == row
        assert [packed.positions[place] for place in places] == list(range(len(row)))
    assert [segment.start for segment in packed.segments[1:]] == [segment.end for segment in packed.segments[:-1]]
    assert len(packed.token_ids) <= len({tuple(row[: end + 1]) for row in rows for end in range(len(row))}) + 16 * 8


def test_a_prompt_occurs_once_and_equal_rows_too() -> None:
    prompt = list(range(1, 31))
    packed = pack([[*prompt, 40, 41], [*prompt, 42], [*prompt, 40, 41], list(range(10, 20))])
    assert len(packed.token_ids) == 30 + 2 + 1 + 10
    assert packed.places[0] == packed.places[2]


@settings(max_examples=40)
@given(exchanges())
@pytest.mark.parametrize("frozen_head", [False, True])
def test_log_probabilities_and_gradients_equal_the_librarys(
    frozen_head: bool, rows: list[tuple[list[int], list[int]]]
) -> None:
    theirs, ours = llama(), llama()
    for model in (theirs, ours):
        add_fused_lm_head(model, outputs=OUTPUTS)
        model.get_output_embeddings().weight.requires_grad_(not frozen_head)
    assert use_packed_forward(ours)
    batch = padded(rows)
    weights = torch.linspace(-1, 1, len(rows))
    results = [model(**batch, fused_lm_head=True, use_cache=False) for model in (theirs, ours)]
    for name in OUTPUTS:
        expected, got = (getattr(each, name) for each in results)
        mask = batch["labels"][:, 1:] != -100
        torch.testing.assert_close(got[mask], expected[mask], rtol=1e-5, atol=1e-5)
        assert not got[~mask].any()
    for each in results:
        (each.log_probs.sum(dim=1) * weights).sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)
    sums = torch.stack([each.log_probs.sum() for each in response_logprobs(ours, rows, batch_size=3)])
    torch.testing.assert_close(sums, results[0].log_probs.sum(dim=1).detach(), rtol=1e-5, atol=1e-5)


@settings(max_examples=20)
@given(exchanges())
def test_rewards_and_their_gradients_equal_the_librarys(rows: list[tuple[list[int], list[int]]]) -> None:
    theirs, ours = llama(classifier=True), llama(classifier=True)
    assert use_packed_forward(ours)
    batch = {name: tensor for name, tensor in padded(rows).items() if name != "labels"}
    results = [model(**batch).logits for model in (theirs, ours)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    for each in results:
        each.square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_rewards_of_adapters_with_their_head_equal_the_librarys() -> None:
    rows = [([*range(1, 31)], [40, 41]), ([*range(1, 31)], [42]), ([*range(3, 9)], [7, 8, 9])]
    adapters = LoraConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    models: list[Any] = []
    for _ in range(2):
        model = llama(classifier=True)  # which seeds the adapters as well
        with quiet_libraries():  # peft uses old names of transformers
            models.append(get_peft_model(model, adapters))
    theirs, ours = models
    assert use_packed_forward(ours)
    batch = {name: tensor for name, tensor in padded(rows).items() if name != "labels"}
    results = [model(**batch).logits for model in models]
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
    for each in results:
        each.square().sum().backward()
    trained = [
        (mine, other) for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True) if other.requires_grad
    ]
    assert trained
    for mine, other in trained:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@settings(max_examples=20, deadline=None)
@given(exchanges())
def test_the_mask_of_a_gpus_kernel_equals_attention_by_segment(rows: list[tuple[list[int], list[int]]]) -> None:
    packed = pack([prompt + response for prompt, response in rows])
    attention = PackedAttention(packed.segments, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    count = len(packed.token_ids)
    query, key, value = (torch.randn(1, heads, count, 16, generator=generator) for heads in (4, 2, 2))
    expected = flex_attention(query, key, value, block_mask=attention.block_mask(), scale=0.3, enable_gqa=True)
    torch.testing.assert_close(attention(query, key, value, 0.3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_gpus_kernel_is_compiled_for_every_kind_of_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    newer = torch.compile

    def compile_of_torch_2_11(function: Callable[..., Any], *, dynamic: bool, backend: str) -> Callable[..., Any]:
        return newer(function, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch, "compile", compile_of_torch_2_11)
    attention = PackedAttention(pack([list(range(40))]).segments, torch.device("cpu"))
    kernel = compiled(flex_attention, backend="eager")
    for head_size in range(16, 28):  # the sizes of a batch change less often, and cannot be counted on
        query = torch.randn(1, 2, 40, head_size)
        found = kernel(query, query, query, block_mask=attention.block_mask(), scale=0.3)
        torch.testing.assert_close(found, attention(query, query, query, 0.3), rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
def test_a_gpus_kernel_gives_the_values_and_gradients_of_attention_by_segment() -> None:
    generator = torch.Generator().manual_seed(0)
    for prompt in (1, 30, 130, 300):  # not shared, less than a block of 128, more, and several blocks
        rows = [[first] * prompt + [ending] * 40 for first in (5, 6) for ending in (7, 8)]
        segments = pack(rows).segments
        states = [torch.randn(1, heads, segments[-1].end, 64, generator=generator) for heads in (4, 2, 2, 4)]
        found = []
        for place in ("cpu", "cuda"):
            *inputs, weights = (each.detach().to(place).requires_grad_() for each in states)
            values = PackedAttention(segments, torch.device(place))(*inputs, 0.125)
            (values * weights).sum().backward()
            found.append([each.cpu() for each in (values, *(each.grad for each in inputs))])
        torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)


SOME_ROWS = [([5] * 20 + [6], [7, 8, 9]), ([5] * 20 + [6], [9]), ([4, 3, 2], [7, 7, 7, 1])]


def windowed_smollm3() -> SmolLM3Config:
    return SmolLM3Config(**SHAPE, no_rope_layers=[1, 0], use_sliding_window=True, sliding_window=4)


@pytest.mark.parametrize(
    ("model", "known"),
    [
        (lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)), True),
        (lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)), True),
        (lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)), False),
        (lambda: Ministral3ForCausalLM(Ministral3Config(**SHAPE)), True),
        (lambda: Olmo2ForCausalLM(Olmo2Config(**SHAPE)), True),  # keys and queries are normalised
        (lambda: Phi3ForCausalLM(Phi3Config(**SHAPE)), True),
        (lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, sliding_window=9000, max_position_embeddings=4096)), True),
        (lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, sliding_window=4)), False),
        (lambda: SmolLM3ForCausalLM(SmolLM3Config(**SHAPE, no_rope_layers=[1, 0])), True),
        (lambda: SmolLM3ForCausalLM(windowed_smollm3()), False),
        (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)), False),
    ],
)
def test_only_known_attention_is_packed_and_results_never_differ(
    model: Callable[[], PreTrainedModel], known: bool, caplog: pytest.LogCaptureFixture
) -> None:
    built = model().eval()
    batch = padded(SOME_ROWS)
    add_fused_lm_head(built, outputs=OUTPUTS)
    expected = built(**batch, fused_lm_head=True, use_cache=False).log_probs
    with caplog.at_level(logging.WARNING):
        assert use_packed_forward(built) == known
    assert ("without packing" in caplog.text) != known
    torch.testing.assert_close(built(**batch, fused_lm_head=True, use_cache=False).log_probs, expected)
    sums = torch.stack([each.log_probs.sum() for each in response_logprobs(built, SOME_ROWS, batch_size=2)])
    torch.testing.assert_close(sums, expected.sum(dim=1).detach())


def test_checkpointed_layers_and_autocast_give_the_same_gradients() -> None:
    gradients: list[torch.Tensor] = []
    for prepared in (False, True):
        model = llama()
        use_packed_forward(model)
        if prepared:
            model.train()
            newer = getattr(model, "activation_checkpointing_enable", None)  # older versions of transformers have none
            (newer or model.gradient_checkpointing_enable)()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(**padded(SOME_ROWS), fused_lm_head=True, use_cache=False)
        assert output.log_probs.dtype == torch.float32
        output.log_probs.sum().backward()
        gradients.append(torch.cat([each.grad.flatten() for each in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_50_steps_of_training_follow_the_librarys_own_curve(tmp_path: Path, tiny_model_folder: Path, kind: str) -> None:
    curves: list[list[float]] = []
    for packing in (False, True):
        tuned = optimisation(packing=packing, learning_rate=3e-4, global_batch_size=4, per_device_batch_size=4)
        output = output_in(tmp_path / str(packing))
        if kind == "dpo":
            history = run_dpo(tiny_model_folder, output, align_config(tuned), max_steps=50).history
        else:
            history = run_reward(tiny_model_folder, output, reward_config(tuned, epochs=13)).history
        curves.append([row["loss"] for row in history])
    assert len(curves[0]) >= 50
    assert curves[1] == pytest.approx(curves[0], abs=1e-3)
