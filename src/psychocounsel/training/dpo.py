"""PreferencePair -> Policy: direct preference optimisation against a reference that stays as it is."""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from psychocounsel.config.schema import AlignConfig
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.generate import load_causal_model
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.tokenize import TokenizedPair, load_tokenizer, pad_token_id, tokenize_pairs
from psychocounsel.training.trainer import (
    CarefulTrainer,
    ModelConfigs,
    Schedule,
    TrainingOutput,
    TrainingSummary,
    history,
    peft_config,
    run_trainer,
    save_plain,
    shared_arguments,
)
from psychocounsel.types import Policy, PreferencePair

IGNORED = -100


class AnswerLogProbs(NamedTuple):
    """What trl's trainer reads of a forward pass: [batch, tokens - 1] each, zero outside answers."""

    log_probs: torch.Tensor
    entropy: torch.Tensor
    mean_logits: torch.Tensor
    is_top1: torch.Tensor
    aux_loss: None = None


def project_answers_only(model: Any) -> None:
    """Let `model(..., labels=labels, fused_lm_head=True)` project only positions whose label counts.

    Any other call goes the way it went before.
    """
    original_forward = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return original_forward(*args, **kwargs)
        labels = kwargs.pop("labels")
        hidden = self.base_model(*args, **kwargs).last_hidden_state[:, :-1]  # [batch, tokens - 1, hidden]
        return answer_log_probs(hidden, labels[:, 1:], self.get_output_embeddings())

    model.forward = types.MethodType(forward, model)


def answer_log_probs(hidden: torch.Tensor, labels: torch.Tensor, head: torch.nn.Module) -> AnswerLogProbs:
    """Return log-probabilities of `labels` where they are not -100.

    Args:
        hidden: [batch, tokens, hidden], each position about to predict the label at its place.
        labels: [batch, tokens].
        head: the projection to the vocabulary.
    """
    counts = labels != IGNORED
    logits = head(hidden[counts]).float()  # [answer tokens, vocabulary]
    wanted = labels[counts]
    logps = logits.log_softmax(dim=-1)
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(dim=-1)
        mean_logits = logits.mean(dim=-1)
        is_top1 = logits.argmax(dim=-1) == wanted
    return AnswerLogProbs(
        _spread(logps.gather(1, wanted[:, None])[:, 0], counts),
        _spread(entropy, counts),
        _spread(mean_logits, counts),
        _spread(is_top1, counts),
    )


def _spread(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Put values back at their places; the rest is zero."""
    return values.new_zeros(places.shape).masked_scatter(places, values)


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
        return [self.config.fingerprint(), self.seed, self.max_steps]


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
        Preempted: `output.cancel` is cancelled.
    """
    tokenizer = load_tokenizer(run.policy)
    rows, table = tokenize_pairs(pairs, tokenizer, run.config.length, run.config.chat)
    schedule = Schedule(len(rows), run.config.epochs, run.seed, run.max_steps)
    with quiet_libraries():
        model = load_causal_model(run.policy, torch.float32)
        configs = ModelConfigs.of(model)
        trainer = _trainer(run, model, [_row(row) for row in rows], _arguments(run, schedule, output.work))
        trainer.row_lengths = [row.length for row in rows]
        seconds = run_trainer(trainer, output, run_fingerprint(pairs, [*run.settings, output.run_id]))
        save_plain(trainer.model, configs, tokenizer, output.folder)
    steps = trainer.state.global_step
    return TrainingSummary(steps, seconds, table, history(trainer, HISTORY_COLUMNS))


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
