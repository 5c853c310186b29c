"""Reward models: training a Bradley-Terry head on a chat model, and scoring answers with it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import TrainRewardConfig
from psychocounsel.errors import ConfigError, DataQualityError, InputError, StoreError
from psychocounsel.store.files import write_bytes
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.runtime import default_device, load_pretrained, quiet_libraries
from psychocounsel.training.tokenize import encode_exchange, load_tokenizer, pad_token_id, tokenize_pairs
from psychocounsel.training.trainer import (
    CheckedTrainer,
    TrainingOutput,
    TrainingSummary,
    copy_configs,
    history,
    peft_config,
    run_trainer,
    save_plain,
    training_arguments,
)
from psychocounsel.types import Policy, PreferencePair, RewardModel

MEAN_KEY = "reward_mean"
STD_KEY = "reward_std"
HISTORY_COLUMNS = {name: name for name in ("accuracy", "margin", "mean_reward")}


class BradleyTerryTrainer(CheckedTrainer, RewardTrainer):
    """trl's trainer, whose `compute_loss` is `-log sigmoid(r(x, chosen) - r(x, rejected))` (arXiv 2502.19731).

    Override `compute_loss` here for another objective.
    """


class PooledTokenCollator(DataCollatorForPreference):
    """Pads pairs to the right and checks that the reward is read from the last real token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`: [2 * pairs, tokens], the chosen sides first."""
        batch = super().torch_call(examples)
        require_last_token_pooled(batch["input_ids"], batch["attention_mask"], self.pad_token_id)
        return batch


def require_last_token_pooled(input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_id: int) -> None:
    """Raise InputError unless the model pools the last token of each row that the mask keeps.

    Sequence classifiers pool the rightmost token that differs from `pad_id`; where padding is the end-of-text token,
    that is one too early. Both tensors are [batch, tokens].
    """
    places = torch.arange(input_ids.shape[-1], device=input_ids.device)
    pooled = ((input_ids != pad_id) * places).argmax(dim=-1)  # [batch]
    last = (attention_mask * places).argmax(dim=-1)  # [batch]
    if not torch.equal(pooled, last):
        raise InputError(
            "the reward would be read from another token than the last one",
            remedy="use a tokenizer whose padding token is never part of a text",
        )


def train_reward_model(
    base: Policy, pairs: Sequence[PreferencePair], config: TrainRewardConfig, output: TrainingOutput
) -> TrainingSummary:
    """Train a reward model from `base` on `pairs` and write it to `output.folder`.

    The folder opens with `AutoModelForSequenceClassification` and `AutoTokenizer`; adapters are merged.

    Raises:
        DataQualityError: too many pairs do not fit.
        IncompleteError: a loss or gradient is not finite, or no weight moved.
        Preempted: `output.cancel` is cancelled.
    """
    tokenizer = load_tokenizer(base)
    tokenizer.pad_token_id = pad_token_id(tokenizer)
    rows, lengths = tokenize_pairs(pairs, tokenizer, config.length, config.chat)
    examples = [
        {"chosen_ids": row.prompt_ids + row.chosen_ids, "rejected_ids": row.prompt_ids + row.rejected_ids}
        for row in rows
    ]
    arguments = RewardConfig(
        **training_arguments(config.optimisation, output.work, rows=len(rows), epochs=config.epochs, seed=config.seed),
        max_length=None,
        center_rewards_coefficient=config.centre_rewards_coefficient or None,
    )
    with quiet_libraries():
        model = load_with_new_head(base, tokenizer, config.seed)
        configs = copy_configs(model)
        trainer = BradleyTerryTrainer(
            model=model,
            args=arguments,
            data_collator=PooledTokenCollator(pad_token_id(tokenizer)),
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            peft_config=peft_config(config.optimisation.lora, "SEQ_CLS", ["score"]),
        )
        trainer.row_lengths = [row.length for row in rows]
        seconds = run_trainer(trainer, output, run_fingerprint(pairs, [config.fingerprint(), output.run_id]))
        save_plain(trainer.model, configs, tokenizer, output.folder)
    return TrainingSummary(trainer.state.global_step, seconds, lengths, history(trainer, HISTORY_COLUMNS))


def load_with_new_head(base: Policy, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return `base` in fp32 with a linear head sampled from `seed`, of standard deviation `1 / sqrt(hidden + 1)`.

    Raises:
        ConfigError: the folder or Hub id holds no model that can carry a head.
    """
    model = load_pretrained(
        AutoModelForSequenceClassification, base, num_labels=1, dtype=torch.float32, use_safetensors=True
    )
    std = 1 / math.sqrt(model.config.hidden_size + 1)
    torch.nn.init.normal_(model.score.weight, std=std, generator=torch.Generator().manual_seed(seed))
    model.config.pad_token_id = pad_token_id(tokenizer)
    return model


def write_normalisation(folder: Path, mean: float, std: float) -> None:
    """Write mean and standard deviation of the rewards into the model's `config.json`.

    Raises:
        DataQualityError: they are not finite, or all rewards are equal.
    """
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise DataQualityError(
            f"rewards with mean {mean} and standard deviation {std} cannot be normalised",
            where=str(folder),
            remedy="train on more pairs; the model gives every response the same reward",
        )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, MEAN_KEY: mean, STD_KEY: std}, indent=2) + "\n"
    write_bytes(folder / "config.json", text.encode("utf-8"))


class Exchange(NamedTuple):
    """What a client said and what was answered."""

    speech_text: str
    response_text: str


class RewardScorer:
    """A reward model that scores exchanges; a score does not depend on what else is in its batch."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, scale: RewardModel
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat = chat
        self.scale = scale
        self.pad_id = pad_token_id(tokenizer)
        # A model from elsewhere may pad with its end-of-text token, and so read one token too early.
        self.model.config.pad_token_id = self.pad_id

    @classmethod
    def load(cls, model: Policy, chat: ChatFormat, device: str = "auto") -> "RewardScorer":
        """Open a reward model in a folder or on the Hub; mean 0 and deviation 1 where its config names none.

        Raises:
            StoreError: there is no reward model.
        """
        try:
            opened = load_pretrained(AutoModelForSequenceClassification, model, use_safetensors=True)
        except ConfigError as error:
            remedy = "name an artifact or folder that train-reward has written, or a Hub id"
            raise StoreError("there is no reward model", where=model.location, remedy=remedy) from error
        mean, std = (getattr(opened.config, key, None) for key in (MEAN_KEY, STD_KEY))
        scale = RewardModel(model.location, float(mean or 0.0), 1.0 if std is None else float(std))
        return cls(opened.to(default_device(device)), load_tokenizer(model), chat, scale)

    def raw(
        self,
        exchanges: Sequence[Exchange],
        batch_size: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[float]:
        """Return the model's logit for each exchange, in their order.

        `progress` is called with the number of exchanges scored so far, and of all.
        """
        encoded = [encode_exchange(self.tokenizer, *exchange, self.chat) for exchange in exchanges]
        ids = [each.prompt_ids + each.response_ids for each in encoded]
        by_length = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        scores: dict[int, float] = {}
        for start in range(0, len(ids), batch_size):
            places = by_length[start : start + batch_size]
            scores.update(zip(places, self._score([ids[place] for place in places]), strict=True))
            progress(len(scores), len(ids))
        return [scores[place] for place in range(len(ids))]

    def response_tokens(self, exchanges: Sequence[Exchange]) -> list[int]:
        """Return the length in tokens of each response, its terminator included."""
        return [len(encode_exchange(self.tokenizer, *each, self.chat).response_ids) for each in exchanges]

    @torch.inference_mode()
    def _score(self, ids: list[list[int]]) -> list[float]:
        width = max(map(len, ids))
        input_ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        require_last_token_pooled(input_ids, mask, self.pad_id)
        device = self.model.device
        logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits  # [batch, 1]
        return logits[:, 0].float().tolist()
