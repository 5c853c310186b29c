"""DPO training: it starts at ln 2, against a fixed reference, on token ids that are neither cut nor made again."""

import json
import math
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from preference_runs import (
    CHAT,
    align_config,
    make_pair,
    make_pairs,
    optimisation,
    output_in,
    reference_rows,
    run_dpo,
    watched,
    weights_of,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from trl.trainer.dpo_trainer import DataCollatorForPreference

from psychocounsel.training import weights as weights_module
from psychocounsel.training.dpo import train_dpo
from psychocounsel.training.generate import load_causal_model
from psychocounsel.training.tokenize import TokenizedPair, load_tokenizer, tokenize_pairs
from psychocounsel.training.trainer import RunPosition
from psychocounsel.types import Policy

LORA = {"rank": 4, "alpha": 8, "dropout": 0.2}
ALL_PAIRS = {"global_batch_size": 14, "per_device_batch_size": 14}


def model_in(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_causal_model(Policy(str(folder)), dtype)


def save_with_tokenizer(model: PreTrainedModel, base: Path, folder: Path) -> Path:
    model.save_pretrained(folder)
    load_tokenizer(Policy(str(base))).save_pretrained(folder)
    return folder


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


def test_the_loss_of_experts_is_that_of_the_pairs_alone(tmp_path: Path, tiny_model_folder: Path) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    config = Qwen3MoeConfig(vocab_size=model_in(tiny_model_folder).config.vocab_size, **size, **experts)
    base = save_with_tokenizer(Qwen3MoeForCausalLM(config), tiny_model_folder, tmp_path / "base")
    history = run_dpo(base, output_in(tmp_path), max_steps=1).history
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("lora", [None, LORA])
def test_training_starts_at_ln_2_and_writes_a_plain_policy(
    tmp_path: Path, tiny_model_folder: Path, lora: object, capfd: pytest.CaptureFixture[str]
) -> None:
    output, seen = watched(output_in(tmp_path))
    config = align_config(optimisation(lora=lora), epochs=7)
    history = run_dpo(tiny_model_folder, output, config, max_steps=4).history
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert capfd.readouterr() == ("", "")
    assert json.loads(json.dumps(history)) == list(history)
    assert all(math.isfinite(value) for row in history for value in row.values())
    first, *_, last = history
    assert {"margin", "accuracy", "reward_chosen", "reward_rejected", "logps_rejected"} <= last.keys()
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < first["loss"]
    assert last["margin"] > 0
    model, base = (AutoModelForCausalLM.from_pretrained(each) for each in (output.folder, tiny_model_folder))
    assert len(base.generation_config.eos_token_id) == 3
    assert model.generation_config.to_dict() == base.generation_config.to_dict()
    for name in ("config.json", "chat_template.jinja", "tokenizer.json"):
        assert (output.folder / name).read_text() == (tiny_model_folder / name).read_text()
    assert AutoTokenizer.from_pretrained(output.folder).pad_token is None
    assert weights_of(output.folder).keys() == weights_of(tiny_model_folder).keys()
    assert not list(output.folder.glob("adapter*")) + list(output.folder.glob("*.bin"))


Formula = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
LOGSIGMOID = torch.nn.functional.logsigmoid
# Of beta 0.2 and the log-ratios of chosen (c) and rejected answers (r) of n and m tokens, from the papers; `robust` is
# of a quarter of flipped labels.
LOSSES: dict[str, Formula] = {
    "sigmoid": lambda c, r, n, m: -LOGSIGMOID(0.2 * (c - r)),  # Rafailov et al. 2023, eq. 7
    "sigmoid_norm": lambda c, r, n, m: -LOGSIGMOID(0.2 * (c / n - r / m)),  # Lambert et al. 2024 (Tulu 3)
    "ipo": lambda c, r, n, m: (c / n - r / m - 1 / (2 * 0.2)) ** 2,  # Azar et al. 2023, eq. 17, per token
    "hinge": lambda c, r, n, m: (1 - 0.2 * (c - r)).clamp(min=0),  # Zhao et al. 2023 (SLiC-HF)
    # Chowdhury et al. 2024 (rDPO)
    "robust": lambda c, r, n, m: -(0.75 * LOGSIGMOID(0.2 * (c - r)) - 0.25 * LOGSIGMOID(-0.2 * (c - r))) / 0.5,
    "apo_zero": lambda c, r, n, m: 1 - (0.2 * c).sigmoid() + (0.2 * r).sigmoid(),  # D'Oosterlinck et al. 2024, eq. 7
}


@pytest.mark.parametrize(("loss", "lora"), [*((name, None) for name in LOSSES), ("sigmoid", LORA)])
def test_first_loss_is_of_the_named_formula_and_reference(
    tmp_path: Path, tiny_model_folder: Path, loss: str, lora: object
) -> None:
    model, generator = model_in(tiny_model_folder), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy = save_with_tokenizer(model, tiny_model_folder, tmp_path / "policy")
    rows = token_rows(tiny_model_folder)
    prompts = [row.prompt_ids for row in rows]
    sides = [row.chosen_ids for row in rows], [row.rejected_ids for row in rows]
    ratios = [
        answer_logps(model_in(policy), prompts, side) - answer_logps(model_in(tiny_model_folder), prompts, side)
        for side in sides
    ]
    margins = 0.2 * (ratios[0] - ratios[1])  # [pairs]
    losses = LOSSES[loss](*ratios, *(torch.tensor([len(ids) for ids in side]) for side in sides))
    smoothing = 0.25 if loss == "robust" else 0.0
    optimised = optimisation(**ALL_PAIRS, lora=lora)
    config = align_config(optimised, loss=loss, label_smoothing=smoothing, beta=0.2, epochs=1)
    first = run_dpo(policy, output_in(tmp_path), config, reference=tiny_model_folder).history[0]
    assert first["margin"] == pytest.approx(float(margins.mean()), abs=1e-4)
    assert first["loss"] == pytest.approx(float(losses.mean()), abs=1e-4)
    assert abs(first["margin"]) > 1e-3


def test_trainer_sees_our_ids_uncut(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[int, ...]] = set()
    real = DataCollatorForPreference.torch_call

    def recording(self: DataCollatorForPreference, examples: list[dict[str, list[int]]]) -> object:
        batch = real(self, examples)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            seen.add(tuple(ids[mask.bool()].tolist()))
        return batch

    monkeypatch.setattr(DataCollatorForPreference, "torch_call", recording)
    base = Policy(str(tiny_model_folder))
    longer_than_trl_allows_by_default = make_pair("I am tired.", "What happened? " * 150, "Move on.")
    pairs = [*make_pairs(1), longer_than_trl_allows_by_default]
    config = align_config(
        optimisation(global_batch_size=2, per_device_batch_size=2), length={"max_length_tokens": 4096}
    )
    reference = reference_rows(tiny_model_folder, pairs, config)
    train_dpo(base, reference, pairs, config, output_in(tmp_path), seed=0, max_steps=1)
    rows, _ = tokenize_pairs(pairs, load_tokenizer(base), config.length, CHAT)
    assert max(row.length for row in rows) > 1024
    chosen = {tuple(row.prompt_ids + row.chosen_ids) for row in rows}
    assert seen == chosen | {tuple(row.prompt_ids + row.rejected_ids) for row in rows}


def test_first_loss_adds_the_weighted_likelihood_term(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = token_rows(tiny_model_folder)
    model = model_in(tiny_model_folder)
    logps = answer_logps(model, [row.prompt_ids for row in rows], [row.chosen_ids for row in rows])
    nll = float(-(logps / torch.tensor([len(row.chosen_ids) for row in rows])).mean())
    config = align_config(optimisation(**ALL_PAIRS), nll_weight=0.25, epochs=1)
    first = run_dpo(tiny_model_folder, output_in(tmp_path), config).history[0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.25 * nll, abs=1e-4)
    assert first["nll"] == pytest.approx(nll, abs=1e-4)
    assert first["logps_chosen"] == pytest.approx(float(logps.mean()), abs=1e-3)


def test_tiny_updates_are_not_swallowed_although_the_base_is_in_bf16(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_module, "is_torch_bf16_gpu_available", lambda: True)
    base = save_with_tokenizer(model_in(tiny_model_folder, torch.bfloat16), tiny_model_folder, tmp_path / "bf16")
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


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}])
@pytest.mark.parametrize("state", ["continue", "reset"])
def test_trainings_in_a_row_follow_one_schedule_and_may_continue_the_optimizer(
    tmp_path: Path, tiny_model_folder: Path, state: str, lora: dict[str, int] | None
) -> None:
    config = align_config(optimisation(**ALL_PAIRS, scheduler="cosine", warmup_share=0.25, lora=lora), beta=0.5)
    whole = output_in(tmp_path / "whole")
    in_one = run_dpo(tiny_model_folder, whole, config, max_steps=8).history
    reference = reference_rows(tiny_model_folder, make_pairs(), config)
    policy, before, in_two = Policy(str(tiny_model_folder)), None, list[Mapping[str, float]]()
    for first_step in (0, 4):
        output = output_in(tmp_path / str(first_step))
        position = RunPosition(first_step, 8, before, continues_optimizer=state == "continue")
        in_two += train_dpo(
            policy, reference, make_pairs(), config, output, seed=0, max_steps=4, position=position
        ).history
        policy, before = policy if lora else Policy(str(output.folder)), output.folder
    rates, whole_rates = ([row["learning_rate"] for row in rows] for rows in (in_two, in_one))
    assert rates == pytest.approx(whole_rates)
    assert rates[:3] == pytest.approx([0, 5e-4, 1e-3])  # warm-up over two of all eight steps
    one, two = weights_of(whole.folder), weights_of(tmp_path / "4" / "model")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one) == (state == "continue")
