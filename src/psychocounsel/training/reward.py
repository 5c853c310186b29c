"""PreferencePair -> RewardModel: a Bradley-Terry head on a chat model, and the scores it gives."""

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
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.tokenize import TokenizedPair, encode_exchange, load_tokenizer, pad_token_id, tokenize_pairs
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
from psychocounsel.types import Policy, PreferencePair, RewardModel

MEAN_KEY = "reward_mean"
STD_KEY = "reward_std"

HISTORY_COLUMNS = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "accuracy": "accuracy",
    "margin": "margin",
    "mean_reward": "mean_reward",
}


class Exchange(NamedTuple):
    """What a client said and what was answered."""

    speech_text: str
    response_text: str


class BradleyTerryTrainer(CarefulTrainer, RewardTrainer):
    """trl's trainer; the loss is `-log sigmoid(r(x, chosen) - r(x, rejected))` (arXiv 2502.19731)."""


class PooledTokenCollator(DataCollatorForPreference):
    """Pads pairs to the right and makes sure that the reward is read from the last real token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`: [2 * pairs, tokens], the chosen sides first."""
        batch = super().torch_call(examples)
        require_last_token_pooled(batch["input_ids"], batch["attention_mask"], self.pad_token_id)
        return batch


def require_last_token_pooled(input_ids: torch.Tensor, attention_mask: torch.Tensor, pad_id: int) -> None:
    """Raise InputError unless the model's pooled token is the last token that the mask lets through.

    Sequence classifiers pool the rightmost token that differs from `pad_id`; where padding is the
    end-of-text token, that is one too early. Both tensors are [batch, tokens].
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
        IncompleteError: a loss or gradient was not finite, or no weight moved.
        Preempted: `output.cancel` is cancelled.
    """
    tokenizer = load_tokenizer(base)
    tokenizer.pad_token_id = pad_token_id(tokenizer)
    rows, table = tokenize_pairs(pairs, tokenizer, config.length, config.chat)
    schedule = Schedule(len(rows), config.epochs, config.seed)
    fingerprint = run_fingerprint(pairs, [config.fingerprint(), output.run_id])
    with quiet_libraries():
        model = load_with_new_head(base, tokenizer, config.seed)
        configs = ModelConfigs.of(model)
        trainer = BradleyTerryTrainer(
            model=model,
            args=_arguments(config, schedule, output.work),
            data_collator=PooledTokenCollator(pad_token_id(tokenizer)),
            train_dataset=Dataset.from_list([_row(row) for row in rows]),
            processing_class=tokenizer,
            peft_config=peft_config(config.optimisation.lora, "SEQ_CLS", ["score"]),
        )
        trainer.row_lengths = [row.length for row in rows]
        seconds = run_trainer(trainer, output, fingerprint)
        save_plain(trainer.model, configs, tokenizer, output.folder)
    steps = trainer.state.global_step
    return TrainingSummary(steps, seconds, table, history(trainer, HISTORY_COLUMNS))


def load_with_new_head(base: Policy, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return `base` in fp32 with a linear head of its own seed, spread by `1 / sqrt(hidden + 1)`.

    Raises:
        ConfigError: the folder or Hub id holds no model that can carry a head.
    """
    try:
        with quiet_libraries():  # they report the head, which the base lacks, as a fault
            model = AutoModelForSequenceClassification.from_pretrained(
                base.location,
                revision=base.revision or "main",
                num_labels=1,
                dtype=torch.float32,
                use_safetensors=True,
            )
    except (OSError, ValueError) as error:
        raise ConfigError(
            "no model can be loaded", where=base.location, remedy=f"check the folder or Hub id ({error})"
        ) from error
    spread = 1 / math.sqrt(model.config.hidden_size + 1)
    torch.nn.init.normal_(model.score.weight, std=spread, generator=torch.Generator().manual_seed(seed))
    model.config.pad_token_id = pad_token_id(tokenizer)
    return model


def write_normalisation(folder: Path, mean: float, std: float) -> None:
    """Keep mean and standard deviation of the rewards in the model's `config.json`.

    Raises:
        DataQualityError: they are not finite, or the rewards do not differ at all.
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


class RewardScorer:
    """A reward model that scores exchanges; a score does not depend on what shares its batch."""

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
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with quiet_libraries():
                opened: Any = AutoModelForSequenceClassification.from_pretrained(
                    model.location, revision=model.revision or "main", use_safetensors=True
                )
        except (OSError, ValueError) as fault:
            raise StoreError(
                "there is no reward model",
                where=model.location,
                remedy="name an artifact or folder that train-reward has written, or a Hub id",
            ) from fault
        mean, std = (getattr(opened.config, key, None) for key in (MEAN_KEY, STD_KEY))
        scale = RewardModel(model.location, float(mean or 0.0), 1.0 if std is None else float(std))
        return cls(opened.to(device), load_tokenizer(model), chat, scale)

    def raw(
        self,
        exchanges: Sequence[Exchange],
        batch_size: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[float]:
        """Return the model's logit for each exchange, in their order; `progress` is told how many it has."""
        ids = [self._ids(exchange) for exchange in exchanges]
        by_length = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        scores: dict[int, float] = {}
        for start in range(0, len(ids), batch_size):
            places = by_length[start : start + batch_size]
            scores.update(zip(places, self._score([ids[place] for place in places]), strict=True))
            progress(len(scores), len(ids))
        return [scores[place] for place in range(len(ids))]

    def normalised(self, exchanges: Sequence[Exchange], batch_size: int) -> list[float]:
        """Return `(raw - mean) / std` for each exchange (arXiv 2502.19731)."""
        return [self.scale.normalise(score) for score in self.raw(exchanges, batch_size)]

    def response_tokens(self, exchanges: Sequence[Exchange]) -> list[int]:
        """Return the length in tokens of each response, its terminator included."""
        return [
            len(encode_exchange(self.tokenizer, each.speech_text, each.response_text, self.chat).response_ids)
            for each in exchanges
        ]

    def _ids(self, exchange: Exchange) -> list[int]:
        encoded = encode_exchange(self.tokenizer, exchange.speech_text, exchange.response_text, self.chat)
        return encoded.prompt_ids + encoded.response_ids

    @torch.inference_mode()
    def _score(self, ids: list[list[int]]) -> list[float]:
        width = max(map(len, ids))
        input_ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        require_last_token_pooled(input_ids, mask, self.pad_id)
        device = self.model.device
        logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits  # [batch, 1]
        return logits[:, 0].float().tolist()


def _arguments(config: TrainRewardConfig, schedule: Schedule, work: Path) -> RewardConfig:
    return RewardConfig(
        **shared_arguments(config.optimisation, schedule, work),
        max_length=None,
        center_rewards_coefficient=config.centre_rewards_coefficient or None,
    )


def _row(pair: TokenizedPair) -> dict[str, list[int]]:
    return {
        "chosen_ids": pair.prompt_ids + pair.chosen_ids,
        "rejected_ids": pair.prompt_ids + pair.rejected_ids,
    }
