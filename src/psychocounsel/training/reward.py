"""Reward models: training a Bradley-Terry head on a chat model, and scoring answers with it."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from pydantic import TypeAdapter
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

from psychocounsel.config.components import ChatFormat
from psychocounsel.config.schema import TrainRewardConfig
from psychocounsel.errors import ConfigError, DataQualityError, InputError, StoreError
from psychocounsel.store.artifacts import MANIFEST, METRICS
from psychocounsel.store.files import digest_of_files, write_bytes
from psychocounsel.training.checkpoints import run_fingerprint
from psychocounsel.training.packing import use_packed_forward
from psychocounsel.training.runtime import default_device, load_pretrained, quiet_libraries
from psychocounsel.training.sharded import undivided
from psychocounsel.training.shards import Progress, in_shards
from psychocounsel.training.tokenize import (
    EncodedExchange,
    TokenizedPair,
    encode_exchange,
    load_tokenizer,
    pad_token_id,
    tokenize_pairs,
)
from psychocounsel.training.trainer import (
    LengthGroupedTrainer,
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
from psychocounsel.types import Normalisation, Policy, PreferencePair, RatingScale, Reward, RewardModel

MEAN_KEY = "reward_mean"
STD_KEY = "reward_std"
PRINCIPLES_KEY = "reward_principles"
"""In the config of a model with one output per principle: weight, mean and standard deviation of each."""
HISTORY_COLUMNS = {name: name for name in ("accuracy", "margin", "mean_reward")}
SHARD_EXCHANGES = 4096
MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Of weights, their config and a tokenizer."""
OUR_FILES = (METRICS, MANIFEST)
"""What the folder of a model gets besides, later."""


class HeadsTrainer(RewardTrainer):
    """trl's trainer for a model with one output per principle, of which the reward is the weighted mean.

    `head_weights` are their shares in the reward, [heads]; empty for a model whose one output is the reward.
    """

    head_weights: Sequence[float] = ()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return trl's loss of the rewards plus, with heads by principle, the mean loss of these.

        trl's is `-log sigmoid(r(x, chosen) - r(x, rejected) - margin)`: arXiv 2502.19731, with the margin of Llama 2
        (arXiv 2307.09288, equation 2).
        """
        signs = inputs.pop("signs", None)
        logits: list[torch.Tensor] = []

        def rewards(**batch: Any) -> Any:
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            outputs.logits = outputs.logits.float()  # DeepSpeed's autocast leaves them in bfloat16
            if self.head_weights:
                logits.append(outputs.logits)  # [2 * pairs, heads]
                outputs.logits = outputs.logits @ outputs.logits.new_tensor(self.head_weights)[:, None]
            return outputs

        loss: Any = super().compute_loss(rewards, inputs, return_outputs, num_items_in_batch)
        if not self.head_weights:
            return loss
        chosen, rejected = torch.chunk(logits[0], 2)
        of_principles = principle_loss(chosen, rejected, signs)
        return (loss[0] + of_principles, loss[1]) if return_outputs else loss + of_principles


def principle_loss(chosen: torch.Tensor, rejected: torch.Tensor, signs: torch.Tensor) -> torch.Tensor:
    """Return the Bradley-Terry loss of each principle, averaged over pairs and principles.

    All are [pairs, principles]. `signs` is 1 where the chosen side is rated higher, -1 where it is rated lower, and 0
    where both are rated alike or not at all: such a pair counts with a loss of 0, so that the mean over a large batch
    is that of its micro-batches.
    """
    return -(signs.abs() * torch.nn.functional.logsigmoid(signs * (chosen - rejected))).mean()


class BradleyTerryTrainer(LengthGroupedTrainer, HeadsTrainer):
    """The trainer of reward models. Override `compute_loss` of `HeadsTrainer` for another objective."""


class PooledTokenCollator(DataCollatorForPreference):
    """Pads pairs to the right and checks that the reward is read from the last real token."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids` and `attention_mask`: [2 * pairs, tokens], the chosen sides first.

        Where the examples have them, also `margin`, [pairs], and `signs`, [pairs, principles].
        """
        batch = super().torch_call(examples)
        if "signs" in examples[0]:
            batch["signs"] = torch.tensor([example["signs"] for example in examples], dtype=torch.float)
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
    base: Policy,
    pairs: Sequence[PreferencePair],
    config: TrainRewardConfig,
    output: TrainingOutput,
    scale: RatingScale,
) -> TrainingSummary:
    """Train a reward model from `base` on `pairs` and write it to `output.folder`.

    The folder opens with `AutoModelForSequenceClassification` and `AutoTokenizer`; adapters are merged. Heads by
    principle and margins follow the ratings on `scale`; a pair without ratings has neither.

    Raises:
        DataQualityError: too many pairs do not fit.
        IncompleteError: a loss or gradient is not finite, or no weight moved.
        Preempted: `output.cancel` is cancelled.
    """
    tokenizer = load_tokenizer(base)
    tokenizer.pad_token_id = pad_token_id(tokenizer)
    rows, lengths = tokenize_pairs(pairs, tokenizer, config.length, config.chat, closes_unfinished=True)
    weights = {name: float(each) for name, each in scale.weights.items()} if config.heads == "principles" else {}
    arguments = RewardConfig(
        **training_arguments(config.optimisation, output.work, rows=len(rows), epochs=config.epochs, seed=config.seed),
        max_length=None,
        center_rewards_coefficient=config.centre_rewards_coefficient or None,
        remove_unused_columns=False,
    )
    autocast_deepspeed(arguments, config.optimisation)
    with quiet_libraries():
        model = load_with_new_head(base, tokenizer, config.seed, weights, **loading_options(config.optimisation))
        prepare_weights(model, config.optimisation)
        configs = copy_configs(model)
        model.config.num_labels = 1  # trl refuses any other number: what it sees is one reward
        trainer = BradleyTerryTrainer(
            model=model,
            args=arguments,
            data_collator=PooledTokenCollator(pad_token_id(tokenizer)),
            train_dataset=Dataset.from_list(with_ratings(rows, pairs, config, scale)),
            processing_class=tokenizer,
            peft_config=peft_config(config.optimisation.lora, "SEQ_CLS", ["score"]),
        )
        trainer.head_weights = list(weights.values())
        trainer.row_lengths = [row.length for row in rows]
        fingerprint = run_fingerprint(pairs, [config.fingerprint(), output.run_id])
        packing = config.optimisation.packing
        seconds = train_and_save(trainer, configs, tokenizer, output, fingerprint, packing=packing)
    return TrainingSummary(trainer.state.global_step, seconds, lengths, history(trainer, HISTORY_COLUMNS))


def with_ratings(
    rows: Sequence[TokenizedPair], pairs: Sequence[PreferencePair], config: TrainRewardConfig, scale: RatingScale
) -> list[dict[str, Any]]:
    """Return the rows in trl's columns, with what a config takes from the ratings: margins, signs by principle."""
    by_id = {pair.id: pair for pair in pairs}
    table: list[dict[str, Any]] = []
    for row in rows:
        pair, prompt = by_id[row.pair_id], row.prompt_ids
        columns: dict[str, Any] = {"chosen_ids": prompt + row.chosen_ids, "rejected_ids": prompt + row.rejected_ids}
        if config.margin == "score_gap":
            columns["margin"] = float(scale.gap(pair) or 0) / scale.width
        if config.heads == "principles":
            columns["signs"] = scale.signs(pair)
        table.append(columns)
    return table


def load_with_new_head(
    base: Policy,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    weights: Mapping[str, float] | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Return `base` with a linear head sampled from `seed`, of standard deviation `1 / sqrt(hidden + 1)`.

    It has one output, or one for each principle of `weights`, which the config names. `options` are those of
    `from_pretrained`; without them it is fp32.

    Raises:
        ConfigError: the folder or Hub id holds no model that can carry a head.
    """
    options = {"dtype": torch.float32, **options}
    if weights:
        options |= {"id2label": dict(enumerate(weights)), "label2id": {name: at for at, name in enumerate(weights)}}
    else:
        options["num_labels"] = 1
    model = load_pretrained(AutoModelForSequenceClassification, base, use_safetensors=True, **options)
    text_config = cast(Any, model.config.get_text_config())  # of a model that reads images too, its own
    std = 1 / math.sqrt(text_config.hidden_size + 1)
    if model.score.weight.is_meta:  # a head that no file holds, in a process that will get a shard from the first one
        model.score.to_empty(device="cpu")
    with undivided(model.score.weight) as weight:
        head = torch.empty(weight.shape).normal_(std=std, generator=torch.Generator().manual_seed(seed))
        weight.data.copy_(head)
    text_config.pad_token_id = pad_token_id(tokenizer)
    if weights:
        setattr(model.config, PRINCIPLES_KEY, {name: {"weight": weight} for name, weight in weights.items()})
    return model


def normalise_on(folder: Path, rewards: Sequence[Reward]) -> RewardModel:
    """Write mean and standard deviation of some rewards of a model into its `config.json`, and return what it is now.

    Raises:
        DataQualityError: they are not finite, or all rewards of a head are equal.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    overall = _normalisation([each.raw for each in rewards], folder)
    heads: dict[str, Any] = config.get(PRINCIPLES_KEY) or {}
    for name, head in heads.items():
        head |= vars(_normalisation([each.raw_principles[name] for each in rewards], folder))
    text = json.dumps({**config, MEAN_KEY: overall.mean, STD_KEY: overall.std}, indent=2) + "\n"
    write_bytes(folder / "config.json", text.encode("utf-8"))
    return reward_model_of(str(folder), AutoConfig.from_pretrained(folder))


def _normalisation(raw: Sequence[float], folder: Path) -> Normalisation:
    if not all(map(math.isfinite, raw)) or len(set(raw)) < 2:
        raise DataQualityError(
            f"rewards from {min(raw)} to {max(raw)} cannot be normalised",
            where=str(folder),
            remedy="train on more pairs; the model gives every response the same reward, or none that is finite",
        )
    return Normalisation(statistics.fmean(raw), statistics.pstdev(raw))


def reward_model_of(location: str, config: PreTrainedConfig) -> RewardModel:
    """Return what a sequence classifier's outputs stand for, as its config says; without normalisation, mean 0.

    Raises:
        ConfigError: it has several outputs that its config does not weigh.
    """
    heads: dict[str, Any] = getattr(config, PRINCIPLES_KEY, None) or {}
    if config.num_labels != (len(heads) or 1):
        raise ConfigError(
            f"the model has {config.num_labels} outputs, and its config does not say how they make one reward",
            where=location,
            remedy=f"name a model with one output, or with {PRINCIPLES_KEY} in its config.json",
        )
    mean, std = getattr(config, MEAN_KEY, None), getattr(config, STD_KEY, None)
    overall = Normalisation(float(mean or 0.0), 1.0 if std is None else float(std))
    # The labels have the order of the outputs; transformers sorts the keys of everything else.
    labels: Any = config.id2label
    names = [labels[at] for at in range(len(heads))]
    principles = {name: Normalisation(heads[name].get("mean", 0.0), heads[name].get("std", 1.0)) for name in names}
    return RewardModel(location, overall, {name: heads[name]["weight"] for name in names}, principles)


class Exchange(NamedTuple):
    """What a client said and what was answered; `history` are role and text of the turns before."""

    speech_text: str
    response_text: str
    history: tuple[tuple[str, str], ...] = ()


class RewardScorer:
    """A reward model that scores exchanges; a score does not depend on what else is in its batch."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, meaning: RewardModel
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.chat = chat
        self.meaning = meaning
        self.pad_id = pad_token_id(tokenizer)
        # A model from elsewhere may pad with its end-of-text token, and so read one token too early.
        cast(Any, self.model.config.get_text_config()).pad_token_id = self.pad_id
        self.is_packed = use_packed_forward(self.model)
        if self.is_packed:
            cast(Any, self.model).score.float()  # bfloat16 rewards would be equal where answers differ a little

    @classmethod
    def load(cls, model: Policy, chat: ChatFormat) -> "RewardScorer":
        """Open a reward model in a folder or on the Hub; mean 0 and deviation 1 where its config names none.

        Below their head, the weights are bfloat16 on a CUDA device, elsewhere as they are stored.

        Raises:
            StoreError: there is no reward model.
            ConfigError: it has several outputs that its config does not weigh.
        """
        device = default_device()
        options = {"dtype": torch.bfloat16} if device == "cuda" else {}
        try:
            opened = load_pretrained(AutoModelForSequenceClassification, model, use_safetensors=True, **options)
        except ConfigError as error:
            remedy = "name an artifact or folder that train-reward has written, or a Hub id"
            raise StoreError("there is no reward model", where=model.location, remedy=remedy) from error
        meaning = reward_model_of(model.location, opened.config)
        return cls(opened.to(device), load_tokenizer(model), chat, meaning)

    def rewards(
        self,
        exchanges: Sequence[Exchange],
        batch_size: int,
        progress: Progress = lambda done, total: None,
    ) -> list[Reward]:
        """Return the reward of each exchange, in their order.

        `progress` is called with the number of exchanges scored so far, and of all.

        Raises:
            DataQualityError: a reward is not finite.
        """
        return self.rewards_of(self.encode(exchanges), batch_size, progress)

    def encode(self, exchanges: Sequence[Exchange]) -> list[EncodedExchange]:
        """Return the exchanges as ids, in the chat format of the scorer."""
        return [
            encode_exchange(self.tokenizer, each.speech_text, each.response_text, self.chat, each.history)
            for each in exchanges
        ]

    def rewards_of(self, encoded: Sequence[EncodedExchange], batch_size: int, progress: Progress) -> list[Reward]:
        """Return the reward of each exchange, as `rewards` does."""
        ids = [each.prompt_ids + each.response_ids for each in encoded]
        # Packed, answers to one prompt share it; padded, rows of one length waste nothing.
        order = sorted(range(len(ids)), key=lambda place: ids[place] if self.is_packed else [len(ids[place])])
        outputs: dict[int, list[float]] = {}
        for start in range(0, len(ids), batch_size):
            places = order[start : start + batch_size]
            outputs.update(zip(places, self._outputs([ids[place] for place in places]), strict=True))
            progress(len(outputs), len(ids))
        return [self.meaning.reward(outputs[place]) for place in range(len(ids))]

    @torch.inference_mode()
    def _outputs(self, ids: list[list[int]]) -> list[list[float]]:
        width = max(map(len, ids))
        input_ids = torch.tensor([row + [self.pad_id] * (width - len(row)) for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        require_last_token_pooled(input_ids, mask, self.pad_id)
        device = self.model.device
        logits = self.model(input_ids=input_ids.to(device), attention_mask=mask.to(device)).logits  # [batch, heads]
        if not logits.isfinite().all():
            raise DataQualityError(
                "the model gives a reward that is not finite",
                where=self.meaning.location,
                remedy="name another model: its weights are damaged, or too large for the precision of this device",
            )
        return logits.float().tolist()


def score_exchanges(
    model: Policy, chat: ChatFormat, exchanges: list[Exchange], batch_size: int, work: Path, progress: Progress
) -> list[tuple[Reward, int]]:
    """Return the reward of each exchange and the length in tokens of its response, by a reward model.

    What is scored is kept in `work`; a killed run loses one shard of the exchanges. This is a job: it may run in
    another process. `progress` is called with the number scored so far, and of all.
    """
    scorer = cache(lambda: RewardScorer.load(model, chat))

    def score(shard: Sequence[Exchange], report: Progress) -> list[tuple[Reward, int]]:
        encoded = scorer().encode(shard)
        rewards = scorer().rewards_of(encoded, batch_size, report)
        return [(reward, len(each.response_ids)) for reward, each in zip(rewards, encoded, strict=True)]

    # A model that was just trained may be another one when the run is resumed, and its normalisation is yet to come.
    folder = Path(model.location)
    files = [each.name for each in folder.glob("*") if each.suffix in MODEL_SUFFIXES and each.name not in OUR_FILES]
    weights = digest_of_files(folder, files) if folder.is_dir() else [model.location, model.revision]
    return in_shards(
        exchanges,
        SHARD_EXCHANGES,
        score,
        known_by=[weights, chat.fingerprint()],
        plain=TypeAdapter(list[tuple[Reward, int]]),
        work=work,
        progress=progress,
    )
