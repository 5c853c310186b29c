"""Small preference data, settings and outputs that the tests of reward and DPO training share."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import AlignConfig, LengthConfig, OptimisationConfig, TrainRewardConfig
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.store.schemas import ReferenceLogprobs
from psychocounsel.training.dpo import train_dpo
from psychocounsel.training.reference import reference_logprobs
from psychocounsel.training.reward import train_reward_model
from psychocounsel.training.tokenize import load_tokenizer, tokenize_pairs
from psychocounsel.training.trainer import TrainingOutput, TrainingSummary
from psychocounsel.types import Candidate, Policy, PreferencePair, RatingScale, ScoredCandidate, Speech

CHAT = ChatFormat()
TINY = {"name": "tiny", "preferences": "tiny", "length": LengthConfig(max_length_tokens=256)}
FEELINGS = ("sad", "tired", "angry", "lost", "afraid", "numb", "ashamed")


def make_pair(speech_text: str, chosen: str, rejected: str) -> PreferencePair:
    speech = Speech(speech_text)
    return PreferencePair(
        speech,
        ScoredCandidate(Candidate(speech.id, "good", chosen), 5.0),
        ScoredCandidate(Candidate(speech.id, "bad", rejected), 1.0),
    )


def make_pairs(count: int = 14) -> list[PreferencePair]:
    """Return pairs whose two sides differ in content and, from pair to pair, in length."""
    return [
        make_pair(
            f"I feel {feeling} since week {number}.",
            "What is " + "really " * (number % 4) + f"hard about feeling {feeling}?",
            "Move on." + " Stop it." * (number % 5),
        )
        for number, feeling in zip(range(count), itertools.cycle(FEELINGS), strict=False)
    ]


def optimisation(**changes: object) -> OptimisationConfig:
    settings = {"learning_rate": 1e-3, "global_batch_size": 8, "per_device_batch_size": 8, "save_every_steps": 100}
    return OptimisationConfig.model_validate(settings | changes)


def reward_config(optimised: OptimisationConfig | None = None, **changes: object) -> TrainRewardConfig:
    settings = {"base_model": "tiny", "optimisation": optimised or optimisation()}
    return TrainRewardConfig.model_validate(TINY | settings | changes)


def align_config(optimised: OptimisationConfig | None = None, **changes: object) -> AlignConfig:
    settings = {"mode": "dpo", "policy": "tiny", "epochs": 2, "optimisation": optimised or optimisation()}
    return AlignConfig.model_validate(TINY | settings | changes)


def output_in(folder: Path) -> TrainingOutput:
    """Return an output below `folder` that is never stopped."""
    return TrainingOutput(folder / "model", folder / "work", CancelToken(), lambda _step, _total: None, "run")


def stopping_after(step: int, output: TrainingOutput) -> TrainingOutput:
    """Return `output`, asking to stop once `step` steps are done."""
    cancel = CancelToken()
    return replace(output, cancel=cancel, progress=lambda now, _total: cancel.cancel() if now >= step else None)


def watched(output: TrainingOutput) -> tuple[TrainingOutput, list[tuple[int, int]]]:
    """Return `output` and a list that receives its progress: steps done, steps in total."""
    seen: list[tuple[int, int]] = []
    return replace(output, progress=lambda *step: seen.append(step)), seen


def run_reward(base: Path, output: TrainingOutput, config: TrainRewardConfig | None = None) -> TrainingSummary:
    return train_reward_model(Policy(str(base)), make_pairs(), config or reward_config(), output, RatingScale())


def run_dpo(
    base: Path,
    output: TrainingOutput,
    config: AlignConfig | None = None,
    *,
    seed: int = 0,
    max_steps: int | None = None,
    reference: Path | None = None,
) -> TrainingSummary:
    config, pairs = config or align_config(), make_pairs()
    known = reference_rows(reference or base, pairs, config)
    return train_dpo(Policy(str(base)), known, pairs, config, output, seed=seed, max_steps=max_steps)


def reference_rows(reference: Path, pairs: Sequence[PreferencePair], config: AlignConfig) -> list[ReferenceLogprobs]:
    policy = Policy(str(reference))
    rows, _ = tokenize_pairs(pairs, load_tokenizer(policy), config.length, config.chat)
    with TemporaryDirectory() as work:
        return reference_logprobs(policy, rows, config.optimisation, Path(work))


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two models agree in every bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def relative_difference(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> float:
    """Return how far two trainings end apart, as a share of how far the first moved."""
    names = [name for name in one if name in start]
    apart = sum(float((one[name] - other[name]).abs().sum()) for name in names)
    moved = sum(float((one[name] - start[name]).abs().sum()) for name in names)
    return apart / moved
