"""Training in several processes: as in one, with the same global batch."""

import os
import shutil
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sharded_on_cpu
import torch
from preference_runs import (
    align_config,
    make_pairs,
    optimisation,
    output_in,
    reference_rows,
    reward_config,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from psychocounsel.config.components import recipes_folder
from psychocounsel.config.schema import LaunchConfig
from psychocounsel.errors import Preempted
from psychocounsel.training.dpo import train_dpo
from psychocounsel.training.launch import Launch, launch_of
from psychocounsel.training.reward import train_reward_model
from psychocounsel.training.trainer import RunPosition, TrainingOutput, TrainingSummary
from psychocounsel.types import Policy, RatingScale

HERE = Launch()
JOBS_HERE = os.pathsep.join(sys.path)
LORA = {"rank": 4, "alpha": 8}
JOBS = {"dpo": train_dpo, "reward": train_reward_model}


def processes(number: int, accelerate: str | None = None) -> Launch:
    if accelerate in ("zero2", "zero3"):
        pytest.importorskip("deepspeed")
    return launch_of(LaunchConfig(num_processes=number, accelerate=accelerate))


def train(
    kind: str, base: Path, output: TrainingOutput, launch: Launch = HERE, job: Any = None, **changes: object
) -> TrainingSummary:
    """Train for two epochs of 15 pairs, a step of 8 and one of 7, in this process or as launched."""
    optimised = optimisation(**{"per_device_batch_size": 2, "save_every_steps": 1} | changes)
    model, pairs = Policy(str(base)), make_pairs(15)
    if kind == "reward":
        settings = {"base": model, "config": reward_config(optimised), "scale": RatingScale()}
        return launch.train(job or train_reward_model, output, pairs=pairs, **settings)
    config = align_config(optimised, nll_weight=0.1)
    settings = {"policy": model, "reference": reference_rows(base, pairs, config), "config": config, "seed": 3}
    return launch.train(job or train_dpo, output, pairs=pairs, **settings)


def assert_equal_runs(folder: Path, other: Path, one: TrainingSummary, two: TrainingSummary) -> None:
    """Losses and final weights agree to 1e-5."""
    for ours, theirs in zip(one.history, two.history, strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
    left, right = weights_of(folder), weights_of(other)
    assert left.keys() == right.keys()
    for name, values in left.items():
        torch.testing.assert_close(values, right[name], rtol=1e-5, atol=1e-5)


def test_two_processes_train_as_one_and_in_the_precision_of_the_config(tmp_path: Path, tiny_model_folder: Path) -> None:
    one, two, mine = output_in(tmp_path / "one"), output_in(tmp_path / "two"), tmp_path / "mine.yaml"
    text = (recipes_folder() / "accelerate" / "cpu.yaml").read_text(encoding="utf-8")
    mine.write_text(text.replace('mixed_precision: "no"', "mixed_precision: bf16"), encoding="utf-8")
    launches = ((one, HERE), (two, processes(2, str(mine))))
    summaries = [train("dpo", tiny_model_folder, output, launch) for output, launch in launches]
    assert_equal_runs(one.folder, two.folder, *summaries)
    assert summaries[1].steps == 4
    AutoModelForCausalLM.from_pretrained(two.folder)


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["fsdp2", "zero2", "zero3"])
@pytest.mark.parametrize(("kind", "lora"), [("dpo", None), ("dpo", LORA), ("reward", None), ("reward", LORA)], ids=str)
def test_sharded_weights_train_as_one(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: object, accelerate: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    launch, job = processes(2, accelerate), getattr(sharded_on_cpu, JOBS[kind].__name__)
    one, two = output_in(tmp_path / "one"), output_in(tmp_path / "two")
    summary = train(kind, tiny_model_folder, one, lora=lora)
    for _ in range(2):  # at the second time, training is complete and only the model is to be written
        shutil.rmtree(two.folder, ignore_errors=True)
        sharded = train(kind, tiny_model_folder, two, launch, job, lora=lora)
        assert_equal_runs(one.folder, two.folder, summary, sharded)


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["fsdp2", "zero3"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_a_head_of_its_own_is_sharded_too(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, lora: object, accelerate: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    torch.manual_seed(0)
    base, launch = tmp_path / "untied", processes(2, accelerate)
    for kind, options in ((AutoModelForCausalLM, {"tie_word_embeddings": False}), (AutoTokenizer, {})):
        kind.from_pretrained(tiny_model_folder, **options).save_pretrained(base)
    assert "lm_head.weight" in weights_of(base)
    one, two = output_in(tmp_path / "one"), output_in(tmp_path / "two")
    runs = ((one, HERE, train_dpo), (two, launch, sharded_on_cpu.train_dpo))
    summaries = [train("dpo", base, *run, lora=lora) for run in runs]
    assert_equal_runs(one.folder, two.folder, *summaries)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
def test_sharded_trainings_in_a_row_go_on_like_those_of_one_process(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, lora: object
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    config, pairs = align_config(optimisation(per_device_batch_size=2, save_every_steps=1, lora=lora)), make_pairs()
    reference = reference_rows(tiny_model_folder, pairs, config)
    runs: dict[str, list[TrainingSummary]] = {"one": [], "two": []}
    for name, launch, job in (("one", HERE, train_dpo), ("two", processes(2, "fsdp2"), sharded_on_cpu.train_dpo)):
        policy, before = Policy(str(tiny_model_folder)), None
        for first_step in (0, 2):
            output = output_in(tmp_path / name / str(first_step))
            position = RunPosition(first_step, 4, before)
            settings = {"policy": policy, "reference": reference, "pairs": pairs, "config": config, "seed": 3}
            runs[name].append(launch.train(job, output, **settings, max_steps=2, position=position))
            policy, before = policy if lora else Policy(str(output.folder)), output.folder
    for number, first_step in enumerate((0, 2)):
        folders = [tmp_path / name / str(first_step) / "model" for name in runs]
        assert_equal_runs(*folders, *(each[number] for each in runs.values()))


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["fsdp2", "zero2", "zero3"])
def test_adapters_on_sharded_bfloat16_weights_are_saved_in_fp32(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, accelerate: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    one, two, launch = output_in(tmp_path / "one"), output_in(tmp_path / "two"), processes(2, accelerate)
    runs = ((one, HERE, None), (two, launch, sharded_on_cpu.train_dpo))
    summaries = [train("dpo", tiny_model_folder, *run, weights="bf16", precision="bf16", lora=LORA) for run in runs]
    assert AutoModelForCausalLM.from_pretrained(two.folder).dtype == torch.float32
    assert any(torch.any(each != each.bfloat16()) for each in weights_of(two.folder).values())
    if accelerate == "fsdp2":  # DeepSpeed sums gradients in bfloat16
        assert_equal_runs(one.folder, two.folder, *summaries)


@pytest.mark.slow
def test_heads_by_principle_are_gathered_from_their_shards(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    scale = RatingScale(1, 5, {"empathy": Fraction(3, 4), "safety": Fraction(1, 4)})
    ratings = {"chosen": {"empathy": 5, "safety": 2}, "rejected": {"empathy": 1, "safety": 3}}
    pairs = [
        replace(pair, **{side: replace(getattr(pair, side), ratings=each) for side, each in ratings.items()})
        for pair in make_pairs()
    ]
    output = output_in(tmp_path)
    config = reward_config(optimisation(per_device_batch_size=2), heads="principles")
    settings = {"base": Policy(str(tiny_model_folder)), "pairs": pairs, "config": config, "scale": scale}
    processes(2, "fsdp2").train(sharded_on_cpu.train_reward_model, output, **settings)
    model = AutoModelForSequenceClassification.from_pretrained(output.folder)
    assert model.config.id2label == {0: "empathy", 1: "safety"}
    assert model.score.weight.shape[0] == 2


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), [("dpo", 4), ("reward", 2), ("reward", 4)])
def test_more_processes_train_as_one(tmp_path: Path, tiny_model_folder: Path, kind: str, number: int) -> None:
    one, several = output_in(tmp_path / "one"), output_in(tmp_path / "several")
    changes = {"per_device_batch_size": 1, "global_batch_size": 12}  # the second step has 3 rows for 4 processes
    summaries = [train(kind, tiny_model_folder, *run, **changes) for run in ((one, HERE), (several, processes(number)))]
    assert_equal_runs(one.folder, several.folder, *summaries)
    if kind == "reward":
        AutoModelForSequenceClassification.from_pretrained(several.folder)


@pytest.mark.slow
@pytest.mark.parametrize("accelerate", ["cpu", "fsdp2", "zero2", "zero3"])
def test_a_stopped_run_resumes_as_it_was(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, accelerate: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    whole, parts = output_in(tmp_path / "whole"), output_in(tmp_path / "parts")
    launch, job = processes(2, accelerate), sharded_on_cpu.train_dpo
    # One pass is two steps: the run resumes in the middle of the second.
    with pytest.raises(Preempted):
        train("dpo", tiny_model_folder, parts, launch, sharded_on_cpu.stopped_dpo)
    assert (parts.work / "checkpoint-3").exists()
    resumed = train("dpo", tiny_model_folder, parts, launch, job)
    assert_equal_runs(whole.folder, parts.folder, train("dpo", tiny_model_folder, whole, launch, job), resumed)


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_is_resumed_by_one(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", JOBS_HERE)
    whole, parts = output_in(tmp_path / "whole"), output_in(tmp_path / "parts")
    with pytest.raises(Preempted):
        train("dpo", tiny_model_folder, parts, processes(2), sharded_on_cpu.stopped_dpo)
    resumed = train("dpo", tiny_model_folder, parts)
    assert_equal_runs(whole.folder, parts.folder, train("dpo", tiny_model_folder, whole), resumed)
