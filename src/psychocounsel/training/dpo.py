"""PreferencePair -> Policy: direct preference optimisation against a reference that stays as it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from psychocounsel.config.stages import AlignConfig
from psychocounsel.domain import Policy, PreferencePair
from psychocounsel.llm.local_model import load_causal_model, load_tokenizer, pad_token_id
from psychocounsel.llm.quiet import quiet_libraries
from psychocounsel.training.answer_head import project_answers_only
from psychocounsel.training.arguments import Schedule, peft_config, shared_arguments
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.run import (
    CarefulTrainer,
    ModelConfigs,
    TrainingOutput,
    TrainingSummary,
    history,
    run_trainer,
    save_plain,
)
from psychocounsel.training.tokens import TokenizedPair, tokenize_pairs

HISTORY_COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "nll": "nll",
}


@dataclass(frozen=True)
class DpoRun:
    """A policy to train, the reference it is held to, and how; `max_steps` overrules `config.epochs`."""

    policy: Policy
    reference: Policy
    config: AlignConfig
    seed: int
    max_steps: int | None = None

    @property
    def settings(self) -> list[Any]:
        """What, beside the pairs and the models, decides the weights that come out."""
        return [self.config.identity(), self.seed, self.max_steps]


class ReadyIdsDpoTrainer(CarefulTrainer, DPOTrainer):
    """trl's trainer on our token ids, with a likelihood term that does not depend on the micro-batch."""

    nll_weight = 0.0

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # trl would tokenize texts itself; our rows are ids already, whole, with one terminator each.
        return dataset

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Return the mean of `-log sigmoid(beta * margin) + nll_weight * nll(chosen)` over the pairs.

        The second term is the chosen side's negative log-likelihood per token, averaged over pairs: trl's own
        "sft" loss averages over the micro-batch's tokens, so accumulating 1 x 8 would differ from 8 x 1.
        """
        outputs: list[Any] = []

        def remembering(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        loss = super()._compute_loss(remembering, inputs, return_outputs)
        nll = chosen_nll(outputs[0].log_probs, inputs["completion_mask"])
        self._metrics["train"]["nll"].append(nll.item())
        return loss + self.nll_weight * nll if self.nll_weight else loss


def chosen_nll(log_probs: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of the chosen side's negative log-likelihood per token.

    `log_probs` is [2 * pairs, tokens - 1], zero outside the answers; `completion_mask` is
    [2 * pairs, tokens]; the chosen sides come first. Formula: Pang et al. 2024 (Iterative RPO), eq. 1, here
    divided by the answer's length alone.
    """
    lengths = completion_mask[:, 1:].sum(dim=1).chunk(2)[0]  # [pairs]
    logps = log_probs.sum(dim=1).chunk(2)[0]  # [pairs]
    return -(logps / lengths).mean()


def train_dpo(run: DpoRun, pairs: Sequence[PreferencePair], output: TrainingOutput) -> TrainingSummary:
    """Train `run.policy` on `pairs` and write a plain `from_pretrained` folder to `output.folder`.

    Loss: `-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))`, ratios of policy to reference
    (Rafailov et al. 2023, eq. 7). The reference is a copy of its own, never "the policy without its adapter".

    Raises:
        DataQualityError: too many pairs do not fit.
        IncompleteError: a loss or gradient was not finite, or no weight moved.
        Preempted: `output.stop` said so.
    """
    tokenizer = load_tokenizer(run.policy)
    tokens = tokenize_pairs(pairs, tokenizer, run.config.length, run.config.chat)
    schedule = Schedule(len(tokens.rows), run.config.epochs, run.seed, run.max_steps)
    with quiet_libraries():
        model = load_causal_model(run.policy, torch.float32)
        configs = ModelConfigs.of(model)
        trainer = _trainer(
            run, model, [_row(row) for row in tokens.rows], _arguments(run, schedule, output.work)
        )
        trainer.row_lengths = [row.length for row in tokens.rows]
        seconds = run_trainer(trainer, output, run_fingerprint(pairs, [*run.settings, output.run_id]))
        save_plain(trainer.model, configs, tokenizer, output.folder)
    steps = trainer.state.global_step
    return TrainingSummary(steps, seconds, tokens.table, history(trainer, HISTORY_COLUMNS))


def _trainer(
    run: DpoRun, model: PreTrainedModel, rows: list[dict[str, list[int]]], arguments: DPOConfig
) -> ReadyIdsDpoTrainer:
    tokenizer = load_tokenizer(run.policy)
    tokenizer.pad_token_id = pad_token_id(tokenizer)
    trainer = ReadyIdsDpoTrainer(
        model=model,
        ref_model=load_causal_model(run.reference, torch.float32).requires_grad_(False).eval(),
        args=arguments,
        data_collator=DataCollatorForPreference(pad_token_id(tokenizer)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=peft_config(run.config.optimisation.lora, "CAUSAL_LM"),
    )
    trainer.nll_weight = run.config.nll_weight
    if not torch.cuda.is_available():
        for each in (trainer.model, trainer.ref_model):
            project_answers_only(each.get_base_model() if isinstance(each, PeftModel) else each)
    return trainer


def _arguments(run: DpoRun, schedule: Schedule, work: Path) -> DPOConfig:
    return DPOConfig(
        **shared_arguments(run.config.optimisation, schedule, work),
        beta=run.config.beta,
        loss_type=["sigmoid"],
        max_length=None,
    )


def _row(pair: TokenizedPair) -> dict[str, list[int]]:
    return {"prompt_ids": pair.prompt_ids, "chosen_ids": pair.chosen_ids, "rejected_ids": pair.rejected_ids}
