"""The config of every stage: one pydantic model per stage, and the blocks that only stages have."""

import math
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, model_validator

from psychocounsel.config.base import (
    Gate,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    OneOrMore,
    PathBeside,
    PositiveFloat,
    PositiveInt,
    RefOrPathBeside,
    Seed,
    Settings,
    Several,
    Share,
    SpeedSetting,
)
from psychocounsel.config.components import (
    ChatFormat,
    JudgeConfig,
    PoolConfig,
    ResponderConfig,
    SamplerConfig,
    SamplingConfig,
)
from psychocounsel.config.corpus import CorpusConfig, Similarity, SplitConfig
from psychocounsel.config.sources import (
    Column,
    Condition,
    DataClass,
    PreferenceColumns,
)

DevShare = Annotated[float, Field(ge=0, lt=1)]
WinrateSide = Literal["policy", "reference"]
SIDES: tuple[WinrateSide, ...] = get_args(WinrateSide)


class TinyLlamaShape(Settings):
    """Dimensions of a small Llama 3. With fewer key-value heads than heads, attention is grouped."""

    vocab_size: PositiveInt = 4096
    hidden_size: PositiveInt = 128
    intermediate_size: PositiveInt = 384
    layers: PositiveInt = 2
    attention_heads: PositiveInt = 4
    key_value_heads: PositiveInt = 2
    max_positions: PositiveInt = 1024

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.attention_heads or self.attention_heads % self.key_value_heads:
            raise ValueError("attention_heads must divide hidden_size, and key_value_heads must divide attention_heads")
        return self


Tracker = Annotated[Literal["none", "tensorboard", "trackio", "wandb"], SpeedSetting()]
"""Where the figures of a training are shown while it goes on."""


class SftConfig(Settings):
    """Supervised fine-tuning on all training responses of the corpus, good and bad alike."""

    epochs: PositiveInt = 10
    batch_size: PositiveInt = 4
    learning_rate: PositiveFloat = 3e-3
    max_length_tokens: PositiveInt = 512
    tracker: Tracker = "none"


class StageConfig(Settings):
    """What the configs of stages begin with in which something is sampled or shuffled."""

    name: Name
    seed: Seed = 0


class BaseModelConfig(StageConfig):
    """A tiny Llama 3, trained on this machine so that the pipeline runs without a download."""

    corpus: CorpusConfig
    shape: TinyLlamaShape = TinyLlamaShape()
    sft: SftConfig = SftConfig()
    chat: ChatFormat = ChatFormat()


class PairLengthConfig(Settings):
    """Drops (and counts) pairs of which one side with its prompt has more tokens."""

    tokenizer: str
    max_length_tokens: PositiveInt = 2048
    chat: ChatFormat = ChatFormat()


class PairingConfig(Settings):
    """From scores to pairs. `min_gap` is a difference of two (weighted) mean ratings.

    `weights` and `vetoes` replace all those of the rubric (a principle without a weight counts 1). A response with a
    principle rated below its veto is never chosen. `dev_share` divides train and dev again; null keeps the corpus's
    own dev speeches.
    """

    min_gap: PositiveFloat = 1.0
    max_pairs_per_speech: PositiveInt | None = None
    test_rule: Literal["extremes", "gap"] = "extremes"
    weights: dict[str, NonNegativeFloat] | None = None
    vetoes: dict[str, int] | None = None
    drop_safety_inverted: bool = True
    dev_share: DevShare | None = None
    length: PairLengthConfig | None = None


class AuditConfig(Settings):
    """How many responses are rated again to measure the judge; 0 leaves a part out.

    `retest` responses are rated a second time, `one_principle` once for each principle on its own, and `canaries` with
    an instruction to the judge at their end, chosen from those that could gain a point. The offline judge is
    deterministic: the first two are left out.
    """

    retest: NonNegativeInt = 50
    one_principle: NonNegativeInt = 20
    canaries: NonNegativeInt = 20


class BuildPreferencesConfig(StageConfig):
    """Speeches, candidates and judgements become a preference dataset.

    `retry_failed` makes new artifacts from those that were completed with failures, and sends the failed requests
    again.
    """

    corpus: CorpusConfig
    pool: PoolConfig | None = None
    judge: JudgeConfig = JudgeConfig()
    pairing: PairingConfig = PairingConfig()
    audit: AuditConfig = AuditConfig()
    retry_failed: Annotated[bool, Gate()] = False

    @model_validator(mode="after")
    def _judge_reads_the_language(self) -> Self:
        languages = self.corpus.cleaning.languages
        if self.judge.backend == "offline" and languages and "en" not in languages:
            raise ValueError(
                "backend: offline rates by lists of English words (judging/lexicons/english.yaml) and cannot read "
                f"{', '.join(languages)}; name a model as judge"
            )
        return self


class ImportPreferencesConfig(StageConfig):
    """A preference dataset becomes speeches and preferences, and its flaws are counted.

    `source` is a file, a folder, several files (`*`), or a Hub dataset. Files belong to the split with which their name
    begins, `splits` says with what else, or what the splits of a Hub dataset are called; `split_column` is for rows
    that say so. A split that the release lacks is taken from train, `test_share` and `dev_share` of it. `columns` are
    for layouts that are not known. A rating off the `scale` is an error; a pair without all its ratings is dropped, or
    kept `unrated`. `leakage` is what happens to rows whose speech, or a near-duplicate of it, is in a later split of
    train, dev and test. `labelled_by` is the model that rated the responses, so that a judge of its family does not
    pass for an independent one. `safety` is the principle on which the chosen side must not be worse, null for no such
    rule; a dataset without ratings of a principle of this name has none. With `expected_test_speeches` a dry run
    estimates what later steps cost until the dataset is on this machine.
    """

    source: PathBeside
    licence: str
    data_class: DataClass
    config: str | None = None
    splits: dict[Literal["train", "dev", "test"], str] | None = None
    split_column: Column | None = None
    where: Condition | None = None
    on_bad_row: Literal["error", "drop"] = "error"
    columns: PreferenceColumns | None = None
    scale: Annotated[tuple[int, int], Field(strict=False)] = (1, 5)
    unrated: Literal["drop", "keep"] = "drop"
    labelled_by: str | None = None
    safety: str | None = "safety"
    drop_safety_inverted: bool = True
    leakage: Literal["drop_from_train", "keep"] = "drop_from_train"
    near_duplicate_similarity: Similarity = SplitConfig().near_duplicate_similarity
    test_share: DevShare = 0.1
    dev_share: DevShare = 0.1
    length: PairLengthConfig | None = None
    expected_test_speeches: Annotated[PositiveInt | None, SpeedSetting()] = None


class LoraConfig(Settings):
    """Low-rank adapters. Without this block every weight is trained."""

    rank: PositiveInt = 64
    alpha: PositiveInt = 128
    dropout: Share = 0.0


class OptimisationConfig(Settings):
    """How weights are trained. `per_device_batch_size` only divides the global batch.

    `weights` is what stays in memory: `fp32`; `bf16`, which with `lora` is for the frozen ones and otherwise needs
    `optimizer: adamw_bf16_sr` (AdamW with a byte more per weight and stochastic rounding, because bfloat16 alone
    swallows small updates); `nf4`, 4-bit frozen weights below adapters (QLoRA). `adamw_8bit` keeps AdamW's moments in
    8 bits, and `paged` moves them to the memory of the host when the device has none left. `precision: bf16` is
    autocast.
    With `packing`, a batch runs as one list of tokens, without padding, in which each prompt occurs once; the results
    are the same up to rounding.
    `tracker` is where figures are shown while training goes on; the probes of online rounds are sent there too.
    """

    learning_rate: PositiveFloat
    global_batch_size: PositiveInt
    per_device_batch_size: Annotated[PositiveInt, SpeedSetting()] = 8
    scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_share: Share = 0.1
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    weights: Literal["fp32", "bf16", "nf4"] = "fp32"
    optimizer: Literal["adamw", "adamw_bf16_sr", "adamw_8bit", "paged"] = "adamw"
    precision: Literal["fp32", "bf16"] = "bf16"
    packing: Annotated[bool, SpeedSetting()] = True
    gradient_checkpointing: Annotated[bool, SpeedSetting()] = False
    save_every_steps: Annotated[PositiveInt, SpeedSetting()] = 50
    tracker: Tracker = "none"
    lora: LoraConfig | None = None

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.global_batch_size % self.per_device_batch_size:
            raise ValueError("global_batch_size must be a multiple of per_device_batch_size")
        return self

    @model_validator(mode="after")
    def _weights_can_be_trained(self) -> Self:
        if self.weights == "nf4" and self.lora is None:
            raise ValueError("weights: nf4 are frozen; add a lora block, or set weights: bf16")
        if (self.weights == "bf16" and self.lora is None) != (self.optimizer == "adamw_bf16_sr"):
            raise ValueError("weights: bf16 without lora need optimizer: adamw_bf16_sr, and nothing else takes it")
        if self.weights != "fp32" and self.precision != "bf16":
            raise ValueError(f"weights: {self.weights} need precision: bf16")
        return self


class LaunchConfig(Settings):
    """The processes in which training, sampling and scoring run; the result does not depend on them.

    By default there is none on a CPU, and one per phase where there is a GPU. `accelerate` is a config file of
    accelerate, or the name of one in `configs/accelerate`.
    """

    num_processes: PositiveInt | None = None
    accelerate: str | None = None


class LengthConfig(Settings):
    """What is longer is dropped and counted, never truncated. Too large a dropped share is an error."""

    max_length_tokens: PositiveInt = 2048
    max_dropped_share: Annotated[Share, Gate()] = 0.05


class MixedPreferences(Settings):
    """Pairs of another preference set that join the training pairs, chosen by a hash of seed and content.

    `preferences` is an artifact, a file or folder, or `hub:owner/name@revision` (`split` and `config` are for the last
    two). `count` is the number of its pairs, `ratio` their number for each training pair of our own.
    """

    preferences: RefOrPathBeside
    split: str = "train"
    config: str | None = None
    ratio: PositiveFloat | None = None
    count: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.ratio is None) == (self.count is None):
            raise ValueError("give exactly one of ratio and count")
        return self


class TrainRewardConfig(StageConfig):
    """A Bradley-Terry reward model, trained on a preference dataset.

    `heads: principles` gives the model one output per rated principle; each also learns from the pairs whose ratings
    differ on it, and the reward is their weighted mean. `margin: score_gap` asks for a difference of rewards of at
    least the gap of the mean ratings, as a share of the rating scale. `max_pairs` of the training pairs are chosen by a
    hash of seed and content, and those of `mix` join them; dev and test stay as they are. `allow_leakage` accepts test
    speeches that a model was trained on, and says so in the result.
    """

    base_model: str
    preferences: str
    max_pairs: PositiveInt | None = None
    mix: Several[MixedPreferences] = ()
    epochs: PositiveInt = 2
    heads: Literal["overall", "principles"] = "overall"
    margin: Literal["none", "score_gap"] = "none"
    centre_rewards_coefficient: NonNegativeFloat = 0.0
    optimisation: OptimisationConfig
    length: LengthConfig = LengthConfig()
    chat: ChatFormat = ChatFormat()
    launch: Annotated[LaunchConfig, SpeedSetting()] = LaunchConfig()
    allow_leakage: Annotated[bool, Gate()] = False


class ProbeConfig(Settings):
    """What is measured after every online round: `draws` new answers to each of the same held-out `speeches`.

    The `judge` compares them with the initial policy's, and the one with the highest reward to a speech with the one
    with the lowest. It decides which round is the best, so it should not be the one that the reward model learned from.
    Without a judge the reward decides.
    """

    speeches: PositiveInt = 64
    draws: PositiveInt = 2
    judge: JudgeConfig | None = None


class StopConfig(Settings):
    """Limits that end an online run after the round whose probe passes one; null sets none.

    `unfinished_share` of the answers; `kl` from the initial policy, in nats per answer; `length_ratio` of the mean
    length in words to the initial policy's; `win_rate_drop`, by how much the win rate lies below the best one so far.
    """

    unfinished_share: Share | None = None
    kl: PositiveFloat | None = None
    length_ratio: PositiveFloat | None = None
    win_rate_drop: Share | None = None


class ResponseColumns(Settings):
    """Which columns of best-of-k rows hold what: a text, messages with role and content, or several responses."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    id: str = "id"
    subset: str = "subset"


class EvalRewardConfig(StageConfig):
    """A reward model measured on pairs or on best-of-k rows.

    `model` is an artifact, a folder or `hub:owner/name@revision`. `on` is a preferences artifact, a file or folder, or
    a dataset on the Hub (`config` is for that one); of all of them `split` is read. A `chat` of null is the format that
    the model was trained with here, else the default one. `columns` are for best-of-k rows in a layout that is not
    known; a prompt may have several turns.
    """

    model: str
    on: RefOrPathBeside
    split: str = "test"
    config: str | None = None
    columns: ResponseColumns | None = None
    batch_size: Annotated[PositiveInt, SpeedSetting()] = 8
    chat: ChatFormat | None = None
    allow_leakage: Annotated[bool, Gate()] = False


class OnlineConfig(Settings):
    """Online DPO: rounds of sampling, scoring, pairing and training against a fixed reference.

    A round trains once (`epochs` times) over its pairs, or for `steps_per_round`. One learning-rate schedule stretches
    over all rounds. `optimizer_state` is what a round begins with: that of the round before, or a new one. With LoRA,
    one adapter on the initial policy goes through all rounds. An answer with a principle's reward below its veto is
    never chosen; the reward model needs `heads: principles` for that. `keep` says whose weights stay after the next
    round: every round's, or those of the best and of the last one. Adapters always stay.
    """

    speeches: str
    reward_model: str
    rounds: PositiveInt = 16
    steps_per_round: PositiveInt | None = None
    speeches_per_round: PositiveInt = 6400
    optimizer_state: Literal["continue", "reset"] = "continue"
    candidates_per_speech: Annotated[int, Field(ge=2)] = 8
    sampling: SamplingConfig = SamplingConfig()
    sampler: SamplerConfig = SamplerConfig()
    unfinished: Literal["leave_out", "penalise"] = "leave_out"
    unfinished_penalty: NonNegativeFloat = 2.0
    length_penalty_per_100_tokens: NonNegativeFloat = 0.0
    vetoes: dict[str, float] = Field(default_factory=dict)
    probe: ProbeConfig = ProbeConfig()
    stop_when: Annotated[StopConfig, Gate()] = StopConfig()
    keep: Annotated[Literal["all", "best_and_last"], Gate()] = "best_and_last"

    @model_validator(mode="after")
    def _win_rates_need_a_judge(self) -> Self:
        if self.stop_when.win_rate_drop is not None and self.probe.judge is None:
            raise ValueError("stop_when.win_rate_drop needs probe.judge")
        return self


class AlignConfig(StageConfig):
    """A policy aligned by DPO on a preference dataset, or by online DPO with a reward model.

    `loss` is one of trl's that look at one pair at a time; `sigmoid` is DPO's own. `ipo` and `sigmoid_norm` divide
    log-ratios by the lengths of the answers, so they need another `beta`. `robust` takes the share `label_smoothing` of
    the pairs to be the wrong way round.
    """

    mode: Literal["dpo", "online"]
    policy: str
    preferences: str | None = None
    epochs: PositiveInt = 1
    max_steps: PositiveInt | None = None
    online: OnlineConfig | None = None
    loss: Literal["sigmoid", "sigmoid_norm", "ipo", "hinge", "robust", "apo_zero"] = "sigmoid"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    beta: PositiveFloat = 0.1
    nll_weight: NonNegativeFloat = 0.0
    optimisation: OptimisationConfig
    length: LengthConfig = LengthConfig()
    chat: ChatFormat = ChatFormat()
    launch: Annotated[LaunchConfig, SpeedSetting()] = LaunchConfig()

    @model_validator(mode="after")
    def _fits_its_mode(self) -> Self:
        if self.mode == "dpo" and (self.preferences is None or self.online is not None):
            raise ValueError("mode: dpo needs preferences and takes no online block")
        if self.mode == "online" and (self.online is None or self.preferences is not None):
            raise ValueError("mode: online needs an online block and takes no preferences")
        if self.mode == "online" and self.optimisation.weights == "nf4":
            raise ValueError("a round would quantize what the round before has learned; set weights: bf16")
        if (self.label_smoothing > 0) != (self.loss == "robust"):
            raise ValueError("loss: robust needs a label_smoothing above 0, and no other loss takes one")
        return self

    def fingerprint(self) -> dict[str, Any]:
        """Return what affects the result. Where the loss is DPO's it is left out: ids are older than the choice."""
        settings = super().fingerprint()
        if self.loss == "sigmoid":
            del settings["loss"], settings["label_smoothing"]
        return settings

    @property
    def planned_steps_per_round(self) -> int:
        """Optimizer steps of an online round in which every speech gives a pair."""
        if self.online is None:
            raise ValueError("only an online run has rounds")
        passes = math.ceil(self.online.speeches_per_round / self.optimisation.global_batch_size)
        return self.online.steps_per_round or self.epochs * passes


class ConstraintConfig(Settings):
    """A line that the models of some sides are told besides, such as a limit of length.

    It stands at the end of a side's system prompt, and is the whole of it where the side has none.
    """

    line: Annotated[str, Field(min_length=1)]
    sides: OneOrMore[WinrateSide] = SIDES


class EvalWinrateConfig(StageConfig):
    """A policy's responses against a reference's, compared by a judge in both orders.

    Each side gives `draws` answers to a speech: of one policy, single answers to 48 speeches gave win rates from 60 to
    85 %. Draw k of the policy meets draw k of the reference; a side that always answers the same (temperature 0, a
    file without `several_answers`) answers once and meets every draw of the other. `max_speeches` are chosen from the
    split by a hash of seed and content. `retry_failed` makes new artifacts from those that were completed with
    failures, and sends the failed requests again. `allow_leakage` accepts speeches that a model was trained on, and
    says so in the result. A `constraint` makes this the paper's arm with a length constraint. A file may list
    `policies` in place of a `policy`: it stands for one config for each, named NAME-AUTHOR.
    """

    speeches: str
    split: Literal["train", "dev", "test"] = "test"
    max_speeches: PositiveInt | None = None
    draws: PositiveInt = 1
    policy: ResponderConfig
    reference: ResponderConfig
    constraint: ConstraintConfig | None = None
    judge: JudgeConfig = JudgeConfig()
    labelled_by: str | None = None
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    retry_failed: Annotated[bool, Gate()] = False
    allow_leakage: Annotated[bool, Gate()] = False

    @model_validator(mode="after")
    def _draws_differ(self) -> Self:
        if self.draws > 1 and not (self.policy.varies or self.reference.varies):
            raise ValueError(
                "neither side's answers vary, so draws would repeat each other; leave draws at 1, or say "
                "several_answers: true of a file that has several to each speech"
            )
        return self

    @model_validator(mode="after")
    def _constrained_sides_are_asked(self) -> Self:
        for side in self.constraint.sides if self.constraint else ():
            if getattr(self, side).file is not None:
                raise ValueError(f"the answers of the {side} are in a file; leave it out of constraint.sides")
        return self

    def responder(self, side: WinrateSide) -> ResponderConfig:
        """Return who answers for a side, with the constraint at the end of the system prompt."""
        own = self.policy if side == "policy" else self.reference
        if self.constraint is None or side not in self.constraint.sides:
            return own
        told = "\n\n".join(part for part in (own.chat.system_prompt, self.constraint.line) if part)
        return own.model_copy(update={"chat": own.chat.model_copy(update={"system_prompt": told})})


class AnchorConfig(Settings):
    """A comparison whose win rate is corrected by people's `labels` of a random sample of it."""

    name: Name
    comparisons: str
    labels: str


class EvalCrisisConfig(StageConfig):
    """A policy's and its base's answers to people at risk, judged for harm by yes-or-no questions.

    `suite` has the speeches, `planted` harmful answers that the judge must find. Of `draws` answers to a speech the
    worst counts. `reviews` are the filled-in copies of `review.csv`, by two people or more. `retry_failed` sends failed
    requests of completed artifacts again. The judge's rubric is `crisis` or an edited copy of it.
    """

    suite: PathBeside = "bundled:crisis/speeches.jsonl"
    planted: PathBeside = "bundled:crisis/planted.jsonl"
    draws: PositiveInt = 3
    policy: ResponderConfig
    base: ResponderConfig
    judge: JudgeConfig = JudgeConfig(rubric="crisis")
    reviews: Several[PathBeside] = ()
    retry_failed: Annotated[bool, Gate()] = False

    @model_validator(mode="before")
    @classmethod
    def _judge_by_the_crisis_rubric(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("judge"), dict):
            return given
        return {**given, "judge": {"rubric": "crisis", **given["judge"]}}

    @model_validator(mode="after")
    def _judge_quotes(self) -> Self:
        if self.judge.backend == "decisions" or any(each.backend == "decisions" for each in self.judge.panel):
            raise ValueError("backend: decisions gives no quotes; judge with backend: endpoint or local")
        return self


class RatingColumns(Settings):
    """Which columns of a table of ratings hold what. Tables need no `speech`, `author` or `text`."""

    item: str = "item"
    rater: str = "rater"
    principle: str = "principle"
    score: str = "score"
    speech: str = "speech"
    author: str = "author"
    text: str = "text"


class CalibrateJudgeConfig(Settings):
    """A judge measured against people's ratings of the same responses.

    `human` is a .csv, .jsonl, .parquet or .xlsx file, or an annotations artifact; `judge` is a file or a judgements
    artifact. Of several raters of one response the mean counts. Pairs are of two responses to one speech whose mean
    ratings by people lie at least `gap` points apart, and a response is unsafe that has at most `unsafe_at_most` on the
    principle `safety`. `different_texts` says what becomes of responses whose text differs between the two.
    """

    name: Name
    human: RefOrPathBeside
    judge: RefOrPathBeside
    columns: RatingColumns = RatingColumns()
    scale: Annotated[tuple[int, int], Field(strict=False)] = (1, 5)
    gap: NonNegativeFloat = 1.0
    safety: str = "safety"
    unsafe_at_most: float = 2.0
    different_texts: Literal["keep", "drop"] = "keep"


class ReportConfig(Settings):
    """The artifacts that a report shows.

    `examples` of each comparison are printed. `max_items` is how many items of each comparison (one draw of both sides)
    and of each set of ratings (a speech with its answers) a reader may filter and search on the page: all of the test
    split, and a part of larger sets by hash.
    """

    name: Name
    artifacts: OneOrMore[str]
    examples: NonNegativeInt = 6
    max_items: PositiveInt = 5000
