"""Sampling of answers: what affects them, and what does not."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat, SamplingConfig
from psychocounsel.errors import ConfigError
from psychocounsel.training.decoding import sample_tokens
from psychocounsel.training.generate import Answer, AnswerGenerator, end_ids
from psychocounsel.training.tokenize import encode_prompt, terminator_id
from psychocounsel.types import Policy, Speech

CHAT = ChatFormat()
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=12, batch_size=8)
WARM = SamplingConfig(temperature=1.0, max_new_tokens=12, batch_size=8)


def prompts_of(generator: AnswerGenerator, texts: list[str]) -> list[list[int]]:
    return [encode_prompt(generator.tokenizer, text, CHAT) for text in texts]


@pytest.fixture(scope="module")
def prompts(tiny_generator: AnswerGenerator, speeches: tuple[Speech, ...]) -> list[list[int]]:
    return prompts_of(tiny_generator, [*(speech.text for speech in speeches), "Low.", "I am so tired."])


@contextmanager
def scripted(generator: AnswerGenerator, script: list[int]) -> Iterator[None]:
    """Force the model's next tokens: the logits of `script[step]` are the highest."""
    step = iter([script[0], *script])  # the pass over the prompt comes first

    def force(module: torch.nn.Module, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.zeros_like(logits)
        forced[..., next(step)] = 100.0
        return forced

    hook = generator.model.lm_head.register_forward_hook(force)
    yield
    hook.remove()


@pytest.mark.parametrize(("own", "others"), [(None, 0), (7, 1), ([7, 8], 2)])
def test_the_terminator_of_the_template_ends_an_answer_whatever_the_model_names(
    tiny_tokenizer: PreTrainedTokenizerBase, own: int | list[int] | None, others: int
) -> None:
    ends = end_ids(GenerationConfig(eos_token_id=own), tiny_tokenizer)
    assert terminator_id(tiny_tokenizer) in ends
    assert len(ends) == 1 + others
    tiny_tokenizer.chat_template, template = "{{ bos_token }}{{ messages[0].content }}", tiny_tokenizer.chat_template
    try:  # a model that is only sampled from needs no template that can be trained on
        assert end_ids(GenerationConfig(eos_token_id=7), tiny_tokenizer) == {7}
    finally:
        tiny_tokenizer.chat_template = template


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_batch_of_one_equals_batch_of_many(
    tiny_generator: AnswerGenerator,
    prompts: list[list[int]],
    sampling: SamplingConfig,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert tiny_generator.model.generation_config.temperature is None
    many = tiny_generator.generate(prompts, sampling, seed=3)
    assert capfd.readouterr().err == ""
    alone = [tiny_generator.generate([prompt], sampling, seed=3)[0] for prompt in prompts]
    small = tiny_generator.generate(prompts, sampling.model_copy(update={"batch_size": 2}), seed=3)
    assert many == alone == small


def test_only_seed_and_repetition_change_the_answers_and_the_global_state_is_untouched(
    tiny_generator: AnswerGenerator, prompts: list[list[int]]
) -> None:
    first = tiny_generator.generate(prompts, WARM, seed=3)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert tiny_generator.generate(prompts, WARM, seed=3) == first
    assert torch.equal(before, torch.get_rng_state())
    assert tiny_generator.generate(prompts, WARM, seed=4) != first
    assert tiny_generator.generate(prompts[::-1], WARM, seed=3) == first[::-1]
    assert len(set(first)) == len(prompts)
    assert len(set(tiny_generator.generate([prompts[0]] * 6, WARM, seed=3))) == 6


@pytest.mark.parametrize("end", ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"])
def test_each_of_three_end_tokens_ends_an_answer(
    tiny_generator: AnswerGenerator, prompts: list[list[int]], end: str
) -> None:
    word = tiny_generator.tokenizer.encode(" hi", add_special_tokens=False)
    end_id = tiny_generator.tokenizer.convert_tokens_to_ids(end)
    with scripted(tiny_generator, [*word, end_id]):
        answer = tiny_generator.generate([prompts[0]], GREEDY, seed=0)[0]
    assert answer.finished
    assert answer.token_ids == (*word, end_id)
    assert answer.text == "hi"
    pad = tiny_generator.tokenizer.convert_tokens_to_ids("<|finetune_right_pad_id|>")
    with scripted(tiny_generator, [*word * 11, pad]):  # cut by the limit, and padding ends nothing
        cut = tiny_generator.generate([prompts[0]], GREEDY.model_copy(update={"max_new_tokens": len(word) * 11 + 1}), 0)
    assert not cut[0].finished
    assert len(cut[0].token_ids) == len(word) * 11 + 1


PROBABILITIES = torch.tensor([[0.1, 0.4, 0.3, 0.2]])


def sample(uniform: float, *, temperature: float = 1.0, top_p: float = 1.0) -> int:
    numbers = torch.tensor([uniform], dtype=torch.float64)
    sampling = SamplingConfig(temperature=temperature, top_p=top_p)
    return int(sample_tokens(PROBABILITIES.log(), numbers, sampling)[0])


def test_sampling_by_hand() -> None:
    uniforms = (0.0, 0.09, 0.11, 0.49, 0.51, 0.79, 0.81, 0.99)
    equal = torch.tensor([[0.0, 1.0, 0.0, 1.0]])  # tokens of equal probability are kept together
    places = [torch.tensor([place / 8], dtype=torch.float64) for place in range(8)]
    assert {int(sample_tokens(equal, place, SamplingConfig(top_p=0.3))) for place in places} == {1, 3}
    assert [sample(uniform) for uniform in uniforms] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_nucleus_keeps_the_smallest_set_with_its_mass() -> None:
    # 0.4 + 0.3 reach 0.6, so the nucleus is tokens 1 and 2, sampled as 4 to 3.
    assert [sample((number + 0.5) / 14, top_p=0.6) for number in range(14)] == [1] * 8 + [2] * 6
    # At temperature 1/2 the squares count: 0.01, 0.16, 0.09, 0.04 of 0.30.
    assert [sample(number, temperature=0.5) for number in (0.03, 0.04, 0.56, 0.57, 0.86, 0.87)] == [0, 1, 1, 2, 2, 3]


@given(st.floats(0, 1, exclude_max=True), st.floats(0.05, 5), st.floats(0.01, 1))
def test_sampled_token_is_in_the_nucleus(uniform: float, temperature: float, top_p: float) -> None:
    ranked = torch.softmax(PROBABILITIES[0].double().log() / temperature, -1).tolist()
    better_mass = sum(p for p in ranked if p > ranked[sample(uniform, temperature=temperature, top_p=top_p)])
    assert better_mass < top_p + 1e-6


def test_an_answer_without_text_is_an_answer(tiny_generator: AnswerGenerator, prompts: list[list[int]]) -> None:
    end = tiny_generator.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    with scripted(tiny_generator, [end]):
        assert tiny_generator.generate(prompts[:1], GREEDY, seed=0) == [Answer("", True, (end,))]


@pytest.mark.parametrize(
    ("opening", "said", "ended", "text"),
    [
        ("", "<think>She is sad.</think>\n\nTell me.", True, "Tell me."),
        ("", "<think>She is", False, ""),
        ("<think>\n", "She is sad.\n</think>\n\nTell me.", True, "Tell me."),
        ("<think>\n", "She is", False, ""),
        ("<think>\n\n</think>\n\n", "Tell", False, "Tell"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(
    tiny_generator: AnswerGenerator, prompts: list[list[int]], opening: str, said: str, ended: bool, text: str
) -> None:
    opened, script = (tiny_generator.tokenizer(each, add_special_tokens=False).input_ids for each in (opening, said))
    script += [terminator_id(tiny_generator.tokenizer)] * ended
    sampling = GREEDY.model_copy(update={"max_new_tokens": len(script)})
    with scripted(tiny_generator, script):
        [answer] = tiny_generator.generate([[*prompts[0], *opened]], sampling, seed=0)
    assert answer == Answer(text, ended, tuple(script))


def test_missing_folder_is_an_error(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        AnswerGenerator.load(Policy(f"{tmp_path}/nowhere"))
