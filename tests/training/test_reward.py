"""Reward training and scoring: loss, pooled token, head and normalisation."""

import json
import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from preference_runs import (
    CHAT,
    make_pairs,
    optimisation,
    output_in,
    reward_config,
    run_reward,
    same_weights,
    watched,
    weights_of,
)
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, InputError, StoreError
from psychocounsel.training import reward
from psychocounsel.training.checkpoints import newest_verified, run_fingerprint
from psychocounsel.training.reward import (
    BradleyTerryTrainer,
    Exchange,
    PooledTokenCollator,
    RewardScorer,
    load_with_new_head,
    normalise_on,
    require_last_token_pooled,
    score_exchanges,
    train_reward_model,
)
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.tokenize import load_tokenizer, pad_token_id, terminator_id
from psychocounsel.training.trainer import TrainingOutput, TrainingSummary
from psychocounsel.types import Normalisation, Policy, PreferencePair, RatingScale, Reward

LORA = {"rank": 4, "alpha": 8}


def scorer_in(folder: Path) -> RewardScorer:
    return RewardScorer.load(Policy(str(folder)), CHAT)


def raw(scorer: RewardScorer, exchanges: Sequence[Exchange], batch_size: int = 8, *progress: Any) -> list[float]:
    return [each.raw for each in scorer.rewards(exchanges, batch_size, *progress)]


@pytest.fixture(scope="module")
def trained(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained reward model; do not write into it."""
    output = output_in(tmp_path_factory.mktemp("trained"))
    run_reward(tiny_model_folder, output, reward_config(epochs=10))
    return output.folder


@pytest.fixture
def base_tokenizer(tiny_model_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(Policy(str(tiny_model_folder)))


def exchanges() -> tuple[list[Exchange], list[Exchange]]:
    """Return the chosen and the rejected exchanges of the test pairs."""
    pairs = make_pairs()
    chosen = [Exchange(pair.speech.text, pair.chosen.candidate.text) for pair in pairs]
    return chosen, [Exchange(pair.speech.text, pair.rejected.candidate.text) for pair in pairs]


def test_folder_opens_plainly_and_gives_the_same_logits(trained: Path, tiny_model_folder: Path) -> None:
    config, base = (json.loads((folder / "config.json").read_text()) for folder in (trained, tiny_model_folder))
    assert (config["eos_token_id"], config["use_cache"]) == (base["eos_token_id"], base["use_cache"])
    assert config["pad_token_id"] not in config["eos_token_id"]
    assert not list(trained.glob("*.bin"))
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert config["pad_token_id"] == tokenizer.pad_token_id
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    chosen, _ = exchanges()
    messages = [
        [{"role": "user", "content": one.speech_text}, {"role": "assistant", "content": one.response_text}]
        for one in chosen
    ]
    batch = tokenizer.apply_chat_template(
        messages, date_string=CHAT.date_string, padding=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.shape == (len(chosen), 1)
    assert raw(scorer_in(trained), chosen, len(chosen)) == pytest.approx(logits[:, 0].tolist(), abs=1e-5)


def test_first_loss_is_bradley_terry_of_the_new_head(
    tmp_path: Path, tiny_model_folder: Path, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    base = Policy(str(tiny_model_folder))
    model = load_with_new_head(base, base_tokenizer, seed=3)
    model.save_pretrained(tmp_path / "start")
    base_tokenizer.save_pretrained(tmp_path / "start")
    scorer = scorer_in(tmp_path / "start")
    chosen, rejected = (torch.tensor(raw(scorer, side, 4)) for side in exchanges())
    # One step, of which half is warm-up, is enough to move the weights.
    whole = optimisation(global_batch_size=len(chosen), per_device_batch_size=len(chosen), warmup_share=0.5)
    expected = -logsigmoid(chosen - rejected).mean()
    summary = run_reward(tiny_model_folder, output_in(tmp_path / "a"), reward_config(whole, seed=3, epochs=1))
    plain_first = summary.history[0]["loss"]
    assert plain_first == pytest.approx(float(expected), abs=1e-5)
    centred = reward_config(whole, seed=3, epochs=1, centre_rewards_coefficient=0.5)
    expected += 0.5 * ((chosen + rejected) ** 2).mean()
    centred_first = run_reward(tiny_model_folder, output_in(tmp_path / "b"), centred).history[0]["loss"]
    assert centred_first == pytest.approx(float(expected), abs=1e-5)
    assert centred_first > plain_first + 1e-3


def test_head_depends_on_its_seed_alone_and_has_the_right_spread(
    tiny_model_folder: Path, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    base = Policy(str(tiny_model_folder))
    heads: list[torch.Tensor] = []
    for seed, global_seed in ((1, 10), (1, 11), (2, 10)):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            heads.append(load_with_new_head(base, base_tokenizer, seed).score.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    hidden = heads[0].shape[1]
    together = torch.cat([load_with_new_head(base, base_tokenizer, seed).score.weight for seed in range(20)])
    assert float(together.detach().std()) == pytest.approx(1 / math.sqrt(hidden + 1), rel=0.1)


def test_pooled_token_must_be_the_last_real_one() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    require_last_token_pooled(torch.tensor([[5, 6, 7, 0], [5, 0, 6, 7]]), mask, pad_id=0)
    require_last_token_pooled(torch.tensor([[0, 0, 6, 7]]), torch.tensor([[0, 0, 1, 1]]), pad_id=0)
    with pytest.raises(InputError, match="another token"):
        require_last_token_pooled(torch.tensor([[5, 6, 0, 0], [5, 0, 6, 7]]), mask, pad_id=0)


def test_padding_with_the_terminator_is_an_error_in_training(base_tokenizer: PreTrainedTokenizerBase) -> None:
    end = terminator_id(base_tokenizer)
    rows = [{"chosen_ids": [5, 6, end], "rejected_ids": [5, end]}]
    assert PooledTokenCollator(pad_token_id(base_tokenizer))(rows)["input_ids"].shape == (2, 3)
    with pytest.raises(InputError, match="another token"):
        PooledTokenCollator(end)(rows)


def test_score_prefers_the_chosen_side_and_does_not_depend_on_its_batch(trained: Path) -> None:
    scorer = scorer_in(trained)
    chosen, rejected = (raw(scorer, side, 8) for side in exchanges())
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
    together = [*exchanges()[0], *exchanges()[1]]
    alone = [raw(scorer, [exchange], 1)[0] for exchange in together]
    seen: list[tuple[int, int]] = []
    assert raw(scorer, together, 16, lambda *step: seen.append(step)) == pytest.approx(alone, abs=1e-5)
    assert seen == [(16, 28), (28, 28)]
    assert raw(scorer, [], 4) == []


def test_a_model_that_reads_images_too_becomes_a_reward_model(tmp_path: Path, tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(Policy(str(tiny_model_folder)))
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "head_dim": 16, "num_key_value_heads": 2, "pad_token_id": None, **size}
    vision = {"image_size": 28, "patch_size": 14, **size}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=0)
    for each in (Gemma3ForConditionalGeneration(config), tokenizer):
        each.save_pretrained(tmp_path / "base")
    with quiet_libraries():
        run_reward(tmp_path / "base", output_in(tmp_path), reward_config(epochs=1))
    chosen, _ = exchanges()
    rewards = raw(scorer_in(tmp_path / "model"), chosen)
    assert rewards == pytest.approx(raw(scorer_in(tmp_path / "model"), chosen, 1), abs=1e-5)
    assert len(set(rewards)) > 1


def test_a_killed_run_scores_what_is_missing_until_the_model_is_another(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward, "SHARD_EXCHANGES", 4)
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    asked = exchanges()[0]

    def score(location: str, stop_after: int) -> tuple[list[tuple[Reward, int]], int]:
        seen: list[int] = []

        def progress(done: int, total: int) -> None:
            del total
            seen.append(done)
            if done > stop_after:
                raise InterruptedError

        found = score_exchanges(Policy(location), CHAT, asked, 2, tmp_path / "work", progress)
        return found, min(seen, default=len(asked))

    with pytest.raises(InterruptedError):
        score(str(folder), 8)
    # Of what the killed run has written, and however the folder is spelled.
    for name in ("scores.parquet", "metrics.json", "manifest.json", "README.md"):
        (folder / name).write_text("{}")
    whole, first = score("model", 99)
    assert first == 10
    assert score(str(folder), 0) == (whole, len(asked))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "reward_mean": 5.0}))
    other, first = score(str(folder), 99)
    assert first == 2
    assert [each.raw for each, _ in other] == [each.raw for each, _ in whole]
    assert [each.reward for each, _ in other] != [each.reward for each, _ in whole]


def test_adapter_is_merged_with_its_head(tmp_path: Path, tiny_model_folder: Path) -> None:
    output = output_in(tmp_path)
    run_reward(tiny_model_folder, output, reward_config(optimisation(lora=LORA), epochs=3))
    assert not list(output.folder.glob("adapter*"))
    base, tokenizer = Policy(str(tiny_model_folder)), load_tokenizer(Policy(str(tiny_model_folder)))
    start = load_with_new_head(base, tokenizer, seed=0)
    assert not torch.equal(weights_of(output.folder)["score.weight"], start.score.weight)
    with quiet_libraries():
        adapted = PeftModel.from_pretrained(start, str(output.work / "checkpoint-6"))
    scorer = scorer_in(output.folder)
    expected = raw(RewardScorer(adapted, scorer.tokenizer, CHAT, scorer.meaning), exchanges()[0], 8)
    assert raw(scorer, exchanges()[0], 8) == pytest.approx(expected, abs=1e-5)


def test_summary_and_normalised_rewards(tmp_path: Path, tiny_model_folder: Path) -> None:
    output, seen = watched(output_in(tmp_path))
    summary = run_reward(tiny_model_folder, output)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (summary.steps, summary.lengths.kept, summary.lengths.dropped) == (4, 14, 0)
    assert all({"loss", "grad_norm", "learning_rate", "accuracy", "margin"} <= row.keys() for row in summary.history)
    scorer, (chosen, _) = scorer_in(output.folder), exchanges()
    before = json.loads((output.folder / "config.json").read_text())
    rewards = scorer.rewards(chosen, 8)
    assert [each.reward for each in rewards] == [each.raw for each in rewards]
    values = [each.raw for each in rewards]
    meaning = normalise_on(output.folder, rewards)
    assert meaning.normalisation == Normalisation(statistics.fmean(values), statistics.pstdev(values))
    after = json.loads((output.folder / "config.json").read_text())
    assert after == {**before, "reward_mean": meaning.normalisation.mean, "reward_std": meaning.normalisation.std}
    assert scorer_in(output.folder).meaning == meaning
    again = scorer_in(output.folder).rewards(chosen, 8)
    assert [each.raw for each in again] == values
    assert [statistics.fmean(each.reward for each in again), statistics.pstdev(each.reward for each in again)] == (
        pytest.approx([0, 1], abs=1e-9)
    )
    for flat in ([1.0, 1.0], [1.0, math.nan], [1.0, math.inf]):
        with pytest.raises(DataQualityError, match="cannot be normalised"):
            normalise_on(output.folder, [Reward(each, each) for each in flat])
    assert json.loads((output.folder / "config.json").read_text()) == after


def test_nothing_to_train(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(IncompleteError, match="moved no weight"):
        run_reward(tiny_model_folder, output_in(tmp_path), reward_config(optimisation(learning_rate=1e-30)))
    assert not output_in(tmp_path).folder.exists()
    short = reward_config(length={"max_length_tokens": 8})
    for pairs in (make_pairs(), []):
        with pytest.raises(DataQualityError):
            train_reward_model(Policy(str(tiny_model_folder)), pairs, short, output_in(tmp_path), RatingScale())
    with pytest.raises(StoreError, match="no reward model"):
        scorer_in(tmp_path / "missing")
    with pytest.raises(ConfigError):
        run_reward(tmp_path / "missing", output_in(tmp_path))


def poison(monkeypatch: pytest.MonkeyPatch, at_step: int, kind: str) -> None:
    """Make loss or gradient of one step not a number; the loss itself stays finite for a gradient."""
    real = BradleyTerryTrainer.compute_loss

    def poisoned(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        loss = real(self, model, inputs, *args, **kwargs)
        if self.state.global_step + 1 != at_step:
            return loss
        return loss * math.nan if kind == "loss" else loss + torch.sqrt(model.score.weight.sum() * 0)

    monkeypatch.setattr(BradleyTerryTrainer, "compute_loss", poisoned)


@pytest.mark.parametrize("kind", ["loss", "gradient norm"])
def test_number_that_is_not_finite_ends_training_with_the_last_good_checkpoint(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    output, whole = output_in(tmp_path / "poisoned"), output_in(tmp_path / "whole")
    config = reward_config(optimisation(save_every_steps=1))
    with monkeypatch.context() as patched:
        poison(patched, at_step=3, kind=kind)
        with pytest.raises(IncompleteError, match=f"the {kind} became nan at step 3"):
            run_reward(tiny_model_folder, output, config)
    assert not output.folder.exists()
    fingerprint = run_fingerprint(make_pairs(), [config.fingerprint(), output.run_id])
    checkpoint = newest_verified(output.work, fingerprint)
    assert checkpoint == output.work / "checkpoint-2"
    assert all(torch.isfinite(values).all() for values in weights_of(checkpoint).values())
    run_reward(tiny_model_folder, output, config)
    run_reward(tiny_model_folder, whole, config)
    assert same_weights(weights_of(output.folder), weights_of(whole.folder))


def test_reward_model_on_the_hub_is_loaded_by_name_and_revision(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[tuple[str, str]] = []

    def serve(kind: Any) -> None:
        real = kind.from_pretrained

        def load(location: str, revision: str, **more: Any) -> Any:
            loaded.append((location, revision))
            return real(trained, **more)

        monkeypatch.setattr(kind, "from_pretrained", load)

    here = scorer_in(trained)
    for kind in (AutoModelForSequenceClassification, AutoTokenizer):
        serve(kind)
    fetched = RewardScorer.load(Policy("owner/name", "abc"), CHAT)
    assert loaded == [("owner/name", "abc")] * 2
    assert raw(fetched, exchanges()[0], 8) == raw(here, exchanges()[0], 8)
    assert replace(fetched.meaning, location="") == replace(here.meaning, location="")


def test_rewards_of_bfloat16_weights_are_no_bfloat16_numbers(tmp_path: Path, trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    rewards = raw(scorer_in(tmp_path), exchanges()[0])
    assert rewards == pytest.approx(raw(scorer_in(trained), exchanges()[0]), rel=0.05, abs=0.05)
    assert torch.tensor(rewards).bfloat16().tolist() != rewards


def test_a_reward_that_is_not_finite_is_no_reward(tmp_path: Path, trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    model.score.weight.data[:] = torch.nan
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path)
    with pytest.raises(DataQualityError, match="not finite"):
        raw(scorer_in(tmp_path), exchanges()[0])


SCALE = RatingScale(1, 5, {"safety": Fraction(1, 4), "empathy": Fraction(3, 4)})
RATINGS = (
    ({"empathy": 5, "safety": 3}, {"empathy": 2, "safety": 3}),
    ({"empathy": 4, "safety": 2}, {"empathy": 3, "safety": 4}),
)


def rated_pairs() -> list[PreferencePair]:
    """Return the test pairs with ratings; every other one is safer on its rejected side, and the last has none."""

    def rate(pair: PreferencePair, number: int) -> PreferencePair:
        chosen, rejected = RATINGS[number % 2]
        sides = {"chosen": replace(pair.chosen, ratings=chosen), "rejected": replace(pair.rejected, ratings=rejected)}
        return replace(pair, **sides)

    *rated, unrated = make_pairs()
    return [*(rate(pair, number) for number, pair in enumerate(rated)), unrated]


def train_rated(base: Path, output: TrainingOutput, **changes: Any) -> TrainingSummary:
    return train_reward_model(Policy(str(base)), rated_pairs(), reward_config(**changes), output, SCALE)


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("lora", [None, LORA])
def test_heads_by_principle_are_named_saved_and_weighed(
    tmp_path: Path, tiny_model_folder: Path, lora: dict[str, int] | None
) -> None:
    output = output_in(tmp_path)
    train_rated(tiny_model_folder, output, heads="principles", epochs=20, optimised=optimisation(lora=lora))
    scorer = scorer_in(output.folder)
    assert scorer.model.config.id2label == {0: "safety", 1: "empathy"}
    chosen, rejected = (scorer.rewards(side, 8) for side in exchanges())
    for each in chosen:
        assert list(each.principles) == ["safety", "empathy"]
        assert each.raw == pytest.approx(0.75 * each.raw_principles["empathy"] + 0.25 * each.raw_principles["safety"])
    rated = list(zip(chosen, rejected, strict=True))[:-1]
    assert all(better.raw > worse.raw for better, worse in rated)
    meaning = normalise_on(output.folder, [*chosen, *rejected])
    again = scorer_in(output.folder)
    assert again.meaning == meaning
    for name in SCALE.weights:
        normalised = [each.principles[name] for side in exchanges() for each in again.rewards(side, 8)]
        assert [statistics.fmean(normalised), statistics.pstdev(normalised)] == pytest.approx([0, 1], abs=1e-6)
    assert raw(again, exchanges()[0]) == [each.raw for each in chosen]


def test_a_head_learns_its_principle_where_the_whole_prefers_the_other_side(
    tmp_path: Path, tiny_model_folder: Path
) -> None:
    train_rated(tiny_model_folder, output_in(tmp_path), heads="principles", epochs=60)
    scorer = scorer_in(output_in(tmp_path).folder)
    chosen, rejected = (scorer.rewards(side, 8) for side in exchanges())
    less_safe = list(zip(chosen, rejected, strict=True))[1:-1:2]
    assert all(better.raw > worse.raw for better, worse in less_safe)
    assert all(better.principles["safety"] < worse.principles["safety"] for better, worse in less_safe)


@pytest.mark.parametrize("heads", ["overall", "principles"])
@pytest.mark.parametrize("margin", ["none", "score_gap"])
def test_first_loss_with_heads_and_margins(
    tmp_path: Path, tiny_model_folder: Path, base_tokenizer: PreTrainedTokenizerBase, heads: str, margin: str
) -> None:
    weights = {name: float(weight) for name, weight in SCALE.weights.items()} if heads == "principles" else {}
    model = load_with_new_head(Policy(str(tiny_model_folder)), base_tokenizer, 3, weights)
    model.save_pretrained(tmp_path / "start")
    base_tokenizer.save_pretrained(tmp_path / "start")
    start = scorer_in(tmp_path / "start")
    loss = 0.0
    pairs = zip(rated_pairs(), *(start.rewards(side, 4) for side in exchanges()), strict=True)
    for number, (pair, chosen, rejected) in enumerate(pairs):
        # Weighted gaps of the ratings: 3 * 3/4 = 2.25, then 3/4 - 2 * 1/4 = 0.25, of 4 points.
        gap = 0.0 if not pair.chosen.ratings or margin == "none" else (2.25, 0.25)[number % 2] / 4
        loss -= math.log(sigmoid(chosen.raw - rejected.raw - gap))
        for name, sign in (("empathy", 1), ("safety", (0, -1)[number % 2])):
            if weights and pair.chosen.ratings and sign:
                lead = chosen.raw_principles[name] - rejected.raw_principles[name]
                loss -= math.log(sigmoid(sign * lead)) / 2
    whole = optimisation(global_batch_size=14, per_device_batch_size=14, warmup_share=0.5)
    together = train_rated(
        tiny_model_folder, output_in(tmp_path / "a"), seed=3, epochs=1, heads=heads, margin=margin, optimised=whole
    )
    assert together.history[0]["loss"] == pytest.approx(loss / 14, abs=1e-5)
    small = optimisation(global_batch_size=14, per_device_batch_size=2, warmup_share=0.5)
    accumulated = train_rated(
        tiny_model_folder, output_in(tmp_path / "b"), seed=3, epochs=1, heads=heads, margin=margin, optimised=small
    )
    assert accumulated.history[0]["loss"] == pytest.approx(loss / 14, abs=1e-5)
    assert accumulated.history[0]["grad_norm"] == pytest.approx(together.history[0]["grad_norm"], rel=1e-4)


def test_outputs_that_make_no_reward_are_refused(tmp_path: Path, tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(Policy(str(tiny_model_folder)))
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="3 outputs"):
        scorer_in(tmp_path)
