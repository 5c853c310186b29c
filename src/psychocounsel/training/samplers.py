"""Samplers: backends that answer speeches with the weights of a policy, in shards of some hundred answers."""

import importlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import TypeAdapter
from transformers import PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat, SamplerConfig, SamplingConfig
from psychocounsel.errors import ConfigError, IncompleteError
from psychocounsel.training.generate import Answer, AnswerGenerator, end_ids, load_generation_config
from psychocounsel.training.shards import Progress, in_shards
from psychocounsel.training.tokenize import encode_prompt, load_tokenizer
from psychocounsel.types import Policy, Speech, content_id

SHARD_ANSWERS = 1024
POLL_SECONDS = 0.2
_ANSWERS = TypeAdapter(list[list[Answer]])


@dataclass(frozen=True)
class SamplingTask:
    """What is to be sampled: `per_speech` answers to each speech."""

    speeches: tuple[Speech, ...]
    per_speech: int
    sampling: SamplingConfig
    chat: ChatFormat
    seed: int


def sample(
    policy: Policy, task: SamplingTask, sampler: SamplerConfig, work: Path, progress: Progress
) -> list[list[Answer]]:
    """Return the answers to each speech of a task, in the order of its speeches.

    Shards that `work` holds are not sampled again. `progress` is called with the number of answers so far, and of all;
    what it raises ends the sampling.

    Raises:
        ConfigError: tokenizer or weights cannot be loaded.
    """
    engine = cache(lambda: VllmEngine(policy, task, sampler) if sampler.backend == "vllm" else LocalEngine(policy))
    settings = [each.fingerprint() for each in (task.sampling, task.chat, sampler)]
    return in_shards(
        task.speeches,
        shard_size(task.per_speech),
        lambda speeches, report: engine()(replace(task, speeches=tuple(speeches)), report),
        known_by=[task.per_speech, task.seed, *settings],
        plain=_ANSWERS,
        work=work,
        progress=progress,
    )


def shard_size(per_speech: int) -> int:
    """Return the number of speeches in a shard; several processes divide a task between shards."""
    return max(1, SHARD_ANSWERS // per_speech)


class LocalEngine:
    """transformers in this process."""

    def __init__(self, policy: Policy) -> None:
        self._generator = AnswerGenerator.load(policy)

    def __call__(self, task: SamplingTask, progress: Progress) -> list[list[Answer]]:
        """Return the answers to each speech of a shard."""
        n = task.per_speech
        repeated = [prompt for prompt in prompts_of(self._generator.tokenizer, task) for _ in range(n)]
        answers = self._generator.generate(repeated, task.sampling, task.seed, progress)
        return [answers[at : at + n] for at in range(0, len(answers), n)]


class VllmEngine:
    """vLLM in this process, on the one GPU that it sees. Its memory is free when the process ends.

    It has not been run on a GPU; the calls are those of its documented API.

    Raises:
        ConfigError: vLLM is not installed, or the tokenizer cannot be loaded.
        IncompleteError: vLLM cannot load the weights.
    """

    def __init__(self, policy: Policy, task: SamplingTask, sampler: SamplerConfig) -> None:
        # The engine computes in this process and not in a child: none is left behind, and its order is reproducible.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            self._vllm: Any = importlib.import_module("vllm")
        except ImportError as fault:
            raise ConfigError(
                f"vLLM cannot be imported: {fault}",
                where="sampler.backend vllm",
                remedy="pip install 'psychocounsel[vllm]', or set it to local",
            ) from fault
        self._tokenizer = load_tokenizer(policy)
        self._end_ids = end_ids(load_generation_config(policy), self._tokenizer)
        self._llm = _call_vllm(
            self._vllm.LLM,
            model=policy.location,
            revision=policy.revision,
            tokenizer_revision=policy.revision,
            dtype="bfloat16",
            gpu_memory_utilization=sampler.gpu_memory_utilization,
            enable_prefix_caching=True,
            max_model_len=max(map(len, prompts_of(self._tokenizer, task))) + task.sampling.max_new_tokens,
        )

    def __call__(self, task: SamplingTask, progress: Progress) -> list[list[Answer]]:
        """Return the answers to each speech of a shard.

        Raises:
            IncompleteError: vLLM failed, or gave an answer up.
        """
        prompts, sampling = prompts_of(self._tokenizer, task), task.sampling
        is_greedy = not sampling.local_temperature
        parameters = [
            self._vllm.SamplingParams(
                n=1 if is_greedy else task.per_speech,
                # One for each prompt: vLLM adds the number of the answer, so equal ones would share their noise.
                seed=int(content_id("vllm", str(task.seed), speech.id), 16) >> 2,
                temperature=sampling.local_temperature,
                top_p=sampling.local_top_p,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=sorted(self._end_ids),
                detokenize=False,
            )
            for speech in task.speeches
        ]
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        total = len(prompts) * task.per_speech
        # In a thread, so that this one hears of a cancelled run.
        pool = ThreadPoolExecutor(1)
        generating = pool.submit(_call_vllm, self._llm.generate, inputs, parameters, use_tqdm=False)
        while not generating.done():
            progress(0, total)
            wait([generating], POLL_SECONDS)
        outputs = generating.result()
        progress(total, total)
        return [
            [self._answer(each) for each in output.outputs] * (task.per_speech if is_greedy else 1)
            for output in outputs
        ]

    def _answer(self, completion: Any) -> Answer:
        if completion.finish_reason not in ("stop", "length"):
            raise IncompleteError(
                f"vLLM ended an answer with {completion.finish_reason!r}",
                where="sampler.backend vllm",
                remedy="run the same command again",
            )
        ids = tuple(completion.token_ids)
        text = cast(str, self._tokenizer.decode(list(ids), skip_special_tokens=True))
        return Answer(text.strip(), completion.finish_reason == "stop", ids)


def _call_vllm(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as fault:
        raise IncompleteError(
            f"vLLM failed: {fault}",
            where="sampler.backend vllm",
            remedy="if memory is short, lower sampler.gpu_memory_utilization; then run the same command again",
        ) from fault


def prompts_of(tokenizer: PreTrainedTokenizerBase, task: SamplingTask) -> list[list[int]]:
    """Return the ids of each speech's prompt."""
    return [encode_prompt(tokenizer, speech.text, task.chat, speech.history) for speech in task.speeches]
