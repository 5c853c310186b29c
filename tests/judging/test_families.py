"""Which models are of one make, by the names under which people know them."""

import pytest

from psychocounsel.judging.judge import same_family

SAME = [
    ("gpt-4o", "gpt-4.1-mini-2025-04-14"),
    ("gpt-4o-2024-08-06", "chatgpt-4o-latest"),
    ("gpt-4o", "o3-mini"),
    ("gpt-4o", "ft:gpt-4o-mini-2024-07-18:my-org::abc123"),
    ("openai/gpt-4o", "azure/gpt-35-turbo"),
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3.1-70B"),
    ("meta-llama/Llama-3.2-3B", "unsloth/llama3-8b"),
    ("codellama-7b", "TinyLlama-1.1B"),
    ("claude-3-5-sonnet-20241022", "claude-opus-4"),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen-max"),
    ("gemini-1.5-pro", "google/gemma-2-9b-it"),
    ("Mixtral-8x7B", "mistralai/Mistral-7B-Instruct-v0.3"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "Llama-3.1-8B"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "deepseek-chat"),
    ("offline", "offline"),
    ("my-judge-2", "my-judge"),
    ("meta-llama/Llama-3.1-8B + deepseek-ai/deepseek-chat", "meta-llama/Llama-3.2-3B"),
]
OTHER = [
    ("gpt-4o", "claude-sonnet-4"),
    ("gpt-4o", "gemini-2.0-flash"),
    ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
    ("mistralai/Mistral-7B", "meta-llama/Llama-3.1-8B"),
    ("offline", "gpt-4o"),
    ("ours-1", "theirs-1"),
    ("phi-4", "o1"),
    ("", "gpt-4o"),
    ("gemma-2 + gpt-4o", "claude-sonnet-4 + Llama-3.1-8B"),
]


@pytest.mark.parametrize(("left", "right"), SAME)
def test_one_make(left: str, right: str) -> None:
    assert same_family(left, right)
    assert same_family(right, left)


@pytest.mark.parametrize(("left", "right"), OTHER)
def test_two_makes(left: str, right: str) -> None:
    assert not same_family(left, right)
    assert not same_family(right, left)
