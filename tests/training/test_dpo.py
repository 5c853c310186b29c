"""DPO training: it starts at ln 2, against a reference that stays, on ids that nobody cut or made again."""

import json
import math
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from preference_runs import (
    CHAT,
    align_config,
    make_pairs,
    one_thread,  # noqa: F401 (a fixture)
    optimisation,
    output_in,
    relative_difference,
    run_dpo,
    same_weights,
    weights_of,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from psychocounsel.errors import IncompleteError
from psychocounsel.training import dpo as dpo_module
from psychocounsel.training import trainer as arguments
from psychocounsel.training.dpo import DpoRun, chosen_nll, train_dpo
from psychocounsel.training.generate import load_causal_model
from psychocounsel.training.tokenize import TokenizedPair, load_tokenizer, tokenize_pairs
from psychocounsel.training.trainer import TrainingOutput
from psychocounsel.types import Policy

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2}
ALL_PAIRS = {"global_batch_size": 14, "per_device_batch_size": 14}


def token_rows(folder: Path) -> list[TokenizedPair]:
    config = align_config()
    return tokenize_pairs(make_pairs(), load_tokenizer(Policy(str(folder))), config.length, CHAT)[0]


def answer_logps(model: PreTrainedModel, prompts: Sequence[list[int]], answers: Sequence[list[int]]) -> torch.Tensor:
    """Return the summed log-probability of each answer, one sequence at a time: [answers]."""
    sums: list[torch.Tensor] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]  # [answer, vocabulary]
        logps = logits.log_softmax(-1)
        sums.append(logps[torch.arange(len(answer)), torch.tensor(answer)].sum())
    return torch.stack(sums)


def disturbed(base: Path, folder: Path) -> Path:
    """Save a policy that differs from `base`, and return its folder."""
    model = load_causal_model(Policy(str(base)), torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    load_tokenizer(Policy(str(base))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("lora", [None, LORA])
def test_training_starts_at_ln_2_without_a_margin(tmp_path: Path, tiny_model_folder: Path, lora: object) -> None:
    summary = run_dpo(tiny_model_folder, output_in(tmp_path), align_config(optimisation(lora=lora)))
    assert summary.first_loss == pytest.approx(math.log(2), abs=1e-6)
    assert summary.history[0]["margin"] == pytest.approx(0, abs=1e-5)
    assert summary.history[-1]["loss"] < summary.first_loss
    assert summary.history[-1]["margin"] > 0


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_reference_is_the_model_that_was_named(tmp_path: Path, tiny_model_folder: Path, lora: object) -> None:
    policy = disturbed(tiny_model_folder, tmp_path / "policy")
    rows = token_rows(tiny_model_folder)
    prompts = [row.prompt_ids for row in rows]
    ratios: list[torch.Tensor] = []
    for side in ([row.chosen_ids for row in rows], [row.rejected_ids for row in rows]):
        logps = [
            answer_logps(load_causal_model(Policy(str(folder)), torch.float32), prompts, side)
            for folder in (policy, tiny_model_folder)
        ]
        ratios.append(logps[0] - logps[1])
    margins = 0.2 * (ratios[0] - ratios[1])  # [pairs]
    config = align_config(optimisation(**ALL_PAIRS, lora=lora), beta=0.2, epochs=1)
    run = DpoRun(Policy(str(policy)), Policy(str(tiny_model_folder)), config, 0)
    first = train_dpo(run, make_pairs(), output_in(tmp_path)).history[0]
    assert first["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert first["loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()), abs=1e-4)
    assert abs(first["margin"]) > 1e-3


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_folder_is_a_plain_policy(tmp_path: Path, tiny_model_folder: Path, lora: object) -> None:
    output = output_in(tmp_path)
    run_dpo(tiny_model_folder, output, align_config(optimisation(lora=lora)))
    model = AutoModelForCausalLM.from_pretrained(output.folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert len(base.generation_config.eos_token_id) == 3
    assert model.generation_config.to_dict() == base.generation_config.to_dict()
    names = ("config.json", "chat_template.jinja", "tokenizer.json")
    for name in names:
        assert (output.folder / name).read_text() == (tiny_model_folder / name).read_text()
    assert AutoTokenizer.from_pretrained(output.folder).pad_token is None
    assert weights_of(output.folder).keys() == weights_of(tiny_model_folder).keys()
    assert not same_weights(weights_of(output.folder), weights_of(tiny_model_folder))
    assert not list(output.folder.glob("adapter*")) + list(output.folder.glob("*.bin"))


def test_the_trainer_sees_our_ids_whole(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[tuple[int, ...]] = set()
    real = dpo_module.DataCollatorForPreference.torch_call

    def watching(self: dpo_module.DataCollatorForPreference, examples: list[dict[str, list[int]]]) -> object:
        batch = real(self, examples)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            seen.add(tuple(ids[mask.bool()].tolist()))
        return batch

    monkeypatch.setattr(dpo_module.DataCollatorForPreference, "torch_call", watching)
    run_dpo(tiny_model_folder, output_in(tmp_path))
    rows = token_rows(tiny_model_folder)
    chosen = {tuple(row.prompt_ids + row.chosen_ids) for row in rows}
    assert seen == chosen | {tuple(row.prompt_ids + row.rejected_ids) for row in rows}


def test_a_sequence_longer_than_the_libraries_default_is_not_cut() -> None:
    base = Policy("nowhere")
    run = DpoRun(base, base, align_config(), 0)
    made = dpo_module._arguments(run, arguments.Schedule(1, 1, 0), Path("work"))
    assert made.max_length is None


def test_the_likelihood_term_is_a_mean_over_pairs_of_means_over_tokens() -> None:
    # Two pairs; the chosen answers have 2 and 1 tokens: ((1 + 3) / 2 + 5 / 1) / 2 = 3.5.
    log_probs = torch.tensor([[0.0, -1.0, -3.0], [-5.0, 0.0, 0.0], [-9.0, -9.0, -9.0], [-9.0, -9.0, -9.0]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]])
    assert float(chosen_nll(log_probs, mask)) == pytest.approx(3.5)


def test_the_first_loss_adds_the_weighted_likelihood_term(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = token_rows(tiny_model_folder)
    model = load_causal_model(Policy(str(tiny_model_folder)), torch.float32)
    logps = answer_logps(model, [row.prompt_ids for row in rows], [row.chosen_ids for row in rows])
    nll = float(-(logps / torch.tensor([len(row.chosen_ids) for row in rows])).mean())
    config = align_config(optimisation(**ALL_PAIRS), nll_weight=0.25, epochs=1)
    first = run_dpo(tiny_model_folder, output_in(tmp_path), config).history[0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.25 * nll, abs=1e-4)
    assert first["nll"] == pytest.approx(nll, abs=1e-4)
    assert first["logps_chosen"] == pytest.approx(float(logps.mean()), abs=1e-3)


def test_both_log_probabilities_are_in_every_row(tmp_path: Path, tiny_model_folder: Path) -> None:
    summary = run_dpo(tiny_model_folder, output_in(tmp_path))
    expected = {
        "logps_chosen",
        "logps_rejected",
        "margin",
        "accuracy",
        "reward_chosen",
        "reward_rejected",
        "nll",
    }
    assert all(expected <= row.keys() for row in summary.history)
    assert all(math.isfinite(value) for row in summary.history for value in row.values())


def test_max_steps_overrules_the_epochs(tmp_path: Path, tiny_model_folder: Path) -> None:
    base = Policy(str(tiny_model_folder))
    seen: list[tuple[int, int]] = []
    output = output_in(tmp_path)
    watched = TrainingOutput(output.folder, output.work, output.cancel, lambda *step: seen.append(step), output.run_id)
    summary = train_dpo(DpoRun(base, base, align_config(epochs=7), 0, max_steps=3), make_pairs(), watched)
    assert summary.steps == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("per_device", "nll_weight"), [(1, 0.0), (4, 0.5)])
def test_accumulated_micro_batches_equal_one_large_batch(
    tmp_path: Path, tiny_model_folder: Path, per_device: int, nll_weight: float
) -> None:
    # 14 pairs in batches of 8: with 4 a device, the last step holds micro-batches of 4 and of 2.
    large, small = output_in(tmp_path / "8x1"), output_in(tmp_path / "small")
    run_dpo(tiny_model_folder, large, align_config(nll_weight=nll_weight))
    pieces = optimisation(per_device_batch_size=per_device)
    run_dpo(tiny_model_folder, small, align_config(pieces, nll_weight=nll_weight))
    start = weights_of(tiny_model_folder)
    assert relative_difference(weights_of(large.folder), weights_of(small.folder), start) < 1e-3


@pytest.mark.parametrize("autocast", [False, True])
def test_tiny_updates_are_not_swallowed_although_the_base_is_in_bf16(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    monkeypatch.setattr(arguments, "autocast_available", lambda: autocast)
    base = tmp_path / "bf16"
    load_causal_model(Policy(str(tiny_model_folder)), torch.bfloat16).save_pretrained(base)
    load_tokenizer(Policy(str(tiny_model_folder))).save_pretrained(base)
    assert {values.dtype for values in weights_of(base).values()} == {torch.bfloat16}
    steady = optimisation(learning_rate=5e-7, scheduler="constant", warmup_share=0.0)
    output = output_in(tmp_path)
    run_dpo(base, output, align_config(steady, epochs=10))
    before, after = weights_of(base), weights_of(output.folder)
    assert {values.dtype for values in after.values()} == {torch.float32}
    moves = torch.cat([(after[name] - before[name].float()).abs().flatten() for name in before])
    assert float((moves > 0).float().mean()) > 0.9
    # Adam moves a weight by about the learning rate at each of 20 steps, less where gradients change sign.
    assert 0.2 * 20 * 5e-7 < float(moves.median()) < 1.1 * 20 * 5e-7


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path: Path, tiny_model_folder: Path) -> None:
    outputs = [output_in(tmp_path / str(number)) for number in range(3)]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        run_dpo(tiny_model_folder, output, seed=seed)
    first, second, other = (weights_of(output.folder) for output in outputs)
    assert same_weights(first, second)
    assert not same_weights(first, other)


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
def test_gradient_checkpointing_changes_speed_only(tmp_path: Path, tiny_model_folder: Path, lora: object) -> None:
    plain, frugal = output_in(tmp_path / "plain"), output_in(tmp_path / "frugal")
    run_dpo(tiny_model_folder, plain, align_config(optimisation(lora=lora)))
    run_dpo(tiny_model_folder, frugal, align_config(optimisation(lora=lora, gradient_checkpointing=True)))
    assert same_weights(weights_of(plain.folder), weights_of(frugal.folder))


def test_a_policy_that_holds_no_finite_numbers_is_stopped_at_once(tmp_path: Path, tiny_model_folder: Path) -> None:
    model = load_causal_model(Policy(str(tiny_model_folder)), torch.float32)
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    model.save_pretrained(tmp_path / "nan")
    load_tokenizer(Policy(str(tiny_model_folder))).save_pretrained(tmp_path / "nan")
    output = output_in(tmp_path)
    with pytest.raises(IncompleteError, match="the loss became nan at step 1"):
        run_dpo(tmp_path / "nan", output)
    assert not output.folder.exists()


def test_training_opens_no_connection(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    sent: list[object] = []
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: sent.append(what))
    run_dpo(tiny_model_folder, output_in(tmp_path))
    assert sent == []


def test_nothing_is_printed(tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run_dpo(tiny_model_folder, output_in(tmp_path))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_history_can_be_written_as_json(tmp_path: Path, tiny_model_folder: Path) -> None:
    summary = run_dpo(tiny_model_folder, output_in(tmp_path))
    assert json.loads(json.dumps(summary.history)) == [dict(row) for row in summary.history]
