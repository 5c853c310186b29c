"""Direct preference optimisation: a policy trained on pairs against a reference that stays as it is."""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl.trainer import dpo_trainer
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

from psychocounsel.config.schema import AlignConfig, OptimisationConfig
from psychocounsel.errors import StoreError
from psychocounsel.store.schemas import ReferenceLogprobs
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.generate import load_causal_model
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.tokenize import TokenizedPair, load_tokenizer, pad_token_id, tokenize_pairs
from psychocounsel.training.trainer import (
    LengthGroupedTrainer,
    RunPosition,
    TrainingOutput,
    TrainingSummary,
    autocast_deepspeed,
    copy_configs,
    history,
    peft_config,
    train_and_save,
    training_arguments,
)
from psychocounsel.training.weights import loading_options, prepare_weights
from psychocounsel.types import Policy, PreferencePair

HISTORY_COLUMNS = {
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "rewards/chosen": "reward_chosen",
    "rewards/rejected": "reward_rejected",
    "logps/chosen": "logps_chosen",
    "logps/rejected": "logps_rejected",
    "nll": "nll",
}


def train_dpo(
    policy: Policy,
    reference: Sequence[ReferenceLogprobs],
    pairs: Sequence[PreferencePair],
    config: AlignConfig,
    output: TrainingOutput,
    *,
    seed: int,
    max_steps: int | None = None,
    position: RunPosition | None = None,
) -> TrainingSummary:
    """Train `policy` on `pairs` and write a plain `from_pretrained` folder to `output.folder`.

    Loss: `-log sigmoid(beta * (log-ratio of chosen - log-ratio of rejected))`, ratios of policy to reference (Rafailov
    et al. 2023, eq. 7), or what `config.loss` names instead. Of the reference only the log-probabilities of the pairs
    are known, and no second model is in memory. `max_steps` overrides `config.epochs`. In an online run, `position`
    says which part of its schedule this training is; with an adapter to go on with, `policy` is what the adapter is on.

    Raises:
        ConfigError: the next training of the run could not go on from this one.
        DataQualityError: too many pairs do not fit.
        IncompleteError: a loss or gradient is not finite, or no weight moved.
        Preempted: `output.cancel` is cancelled.
    """
    tokenizer, padding_tokenizer = load_tokenizer(policy), load_tokenizer(policy)
    padding_tokenizer.pad_token_id = pad_token_id(tokenizer)
    rows, lengths = tokenize_pairs(pairs, tokenizer, config.length, config.chat)
    shared = training_arguments(
        config.optimisation,
        output.work,
        rows=len(rows),
        epochs=config.epochs,
        seed=seed,
        max_steps=max_steps,
        position=position,
    )
    loss_types: list[str] = [config.loss]
    # With "precompute", trl reads the reference's log-probabilities from columns, which the rows have already.
    arguments = DPOConfig(
        **shared,
        beta=config.beta,
        loss_type=loss_types,
        label_smoothing=config.label_smoothing,
        max_length=None,
        precompute_ref_log_probs=True,
        router_aux_loss_coef=0.0,  # it balances experts over a micro-batch, whose size would then change the loss
    )
    autocast_deepspeed(arguments, config.optimisation)
    with quiet_libraries(), patch.multiple(dpo_trainer, create_model_from_path=_none, hash_module=_none):
        # Patched: sharded training would load the reference, and all weights be hashed for the name of a cache file.
        model = load_trainable(policy, config.optimisation)
        configs = copy_configs(model)
        trainer = TokenizedDPOTrainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorForPreference(pad_token_id(tokenizer)),
            train_dataset=Dataset.from_list(with_reference(rows, reference)),
            processing_class=padding_tokenizer,
            peft_config=peft_config(config.optimisation.lora, "CAUSAL_LM"),
        )
        trainer.nll_weight, trainer.position = config.nll_weight, position
        trainer.row_lengths = [row.length for row in rows]
        fingerprint = run_fingerprint(pairs, [config.fingerprint(), seed, max_steps, output.run_id])
        packing = config.optimisation.packing
        seconds = train_and_save(trainer, configs, tokenizer, output, fingerprint, packing=packing)
    return TrainingSummary(trainer.state.global_step, seconds, lengths, history(trainer, HISTORY_COLUMNS))


def _none(*_: Any, **__: Any) -> None:
    pass


def load_trainable(policy: Policy, optimisation: OptimisationConfig) -> PreTrainedModel:
    """Return the weights of `policy` as they are trained, or raise ConfigError if they cannot be loaded."""
    model = load_causal_model(policy, **loading_options(optimisation))
    prepare_weights(model, optimisation)
    return model


def with_reference(rows: Sequence[TokenizedPair], reference: Sequence[ReferenceLogprobs]) -> list[dict[str, Any]]:
    """Return the rows in trl's columns.

    Raises:
        StoreError: the reference's log-probabilities are those of other pairs or token ids.
    """
    known = {each.pair_id: each for each in reference}
    table: list[dict[str, Any]] = []
    for row in rows:
        found = known.get(row.pair_id)
        if found is None or (found.chosen_tokens, found.rejected_tokens) != (
            len(row.chosen_ids),
            len(row.rejected_ids),
        ):
            raise StoreError(
                "the log-probabilities of the reference are not those of the pairs as the policy reads them",
                where=f"pair {row.pair_id}",
                remedy="train a policy with the tokenizer and chat template of its reference",
            )
        ids = {"prompt_ids": row.prompt_ids, "chosen_ids": row.chosen_ids, "rejected_ids": row.rejected_ids}
        table.append({**ids, "ref_chosen_logps": found.chosen_logps, "ref_rejected_logps": found.rejected_logps})
    return table


class TokenizedDPOTrainer(LengthGroupedTrainer, DPOTrainer):
    """trl's trainer on our token ids, with a likelihood term that does not depend on the micro-batch."""

    nll_weight = 0.0

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        # trl would tokenize texts itself; our rows are ids already, untruncated, with one terminator each.
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        return dataset  # trl would compute the columns that the rows have already

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Return the mean of `loss + nll_weight * nll(chosen)` over the pairs.

        The second term is the chosen side's negative log-likelihood per token, averaged over pairs: trl's own "sft"
        loss averages over the micro-batch's tokens, so accumulating 1 x 8 would differ from 8 x 1.
        """
        outputs: list[Any] = []

        def recording_model(**kwargs: Any) -> Any:
            outputs.append(model(**kwargs))
            return outputs[-1]

        loss = super()._compute_loss(recording_model, inputs, return_outputs)
        nll = chosen_nll(outputs[0].log_probs, inputs["completion_mask"])
        self._metrics["train"]["nll"].append(self.accelerator.gather(nll.detach()).mean().item())
        return loss + self.nll_weight * nll if self.nll_weight else loss


def chosen_nll(log_probs: torch.Tensor, completion_mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of the chosen side's negative log-likelihood per token.

    `log_probs` is [2 * pairs, tokens - 1], zero outside the answers; `completion_mask` is [2 * pairs, tokens]; the
    chosen sides come first. Formula: Pang et al. 2024 (Iterative RPO), eq. 1, divided by the answer's length alone.
    """
    lengths = completion_mask[:, 1:].sum(dim=1).chunk(2)[0]  # [pairs]
    logps = log_probs.sum(dim=1).chunk(2)[0]  # [pairs]
    return -(logps / lengths).mean()
