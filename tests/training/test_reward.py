"""Reward training and scoring: loss, pooled token, head and normalisation."""

import json
import math
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
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from psychocounsel.errors import ConfigError, DataQualityError, IncompleteError, InputError, StoreError
from psychocounsel.training.checkpoints import newest_verified, run_fingerprint
from psychocounsel.training.reward import (
    BradleyTerryTrainer,
    Exchange,
    PooledTokenCollator,
    RewardScorer,
    load_with_new_head,
    require_last_token_pooled,
    train_reward_model,
    write_normalisation,
)
from psychocounsel.training.runtime import quiet_libraries
from psychocounsel.training.tokenize import load_tokenizer, pad_token_id, terminator_id
from psychocounsel.types import Policy

LORA = {"rank": 4, "alpha": 8}


def scorer_in(folder: Path) -> RewardScorer:
    return RewardScorer.load(Policy(str(folder)), CHAT)


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
    assert scorer_in(trained).raw(chosen, len(chosen)) == pytest.approx(logits[:, 0].tolist(), abs=1e-5)


def test_first_loss_is_bradley_terry_of_the_new_head(
    tmp_path: Path, tiny_model_folder: Path, base_tokenizer: PreTrainedTokenizerBase
) -> None:
    base = Policy(str(tiny_model_folder))
    model = load_with_new_head(base, base_tokenizer, seed=3)
    model.save_pretrained(tmp_path / "start")
    base_tokenizer.save_pretrained(tmp_path / "start")
    scorer = scorer_in(tmp_path / "start")
    chosen, rejected = (torch.tensor(scorer.raw(side, 4)) for side in exchanges())
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
    chosen, rejected = (scorer.raw(side, 8) for side in exchanges())
    assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
    together = [*exchanges()[0], *exchanges()[1]]
    alone = [scorer.raw([exchange], 1)[0] for exchange in together]
    seen: list[tuple[int, int]] = []
    assert scorer.raw(together, 16, lambda *step: seen.append(step)) == pytest.approx(alone, abs=1e-5)
    assert seen == [(16, 28), (28, 28)]
    assert scorer.raw([], 4) == []


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
    expected = RewardScorer(adapted, scorer.tokenizer, CHAT, scorer.scale).raw(exchanges()[0], 8)
    assert scorer.raw(exchanges()[0], 8) == pytest.approx(expected, abs=1e-5)


def test_summary_and_normalised_rewards(tmp_path: Path, tiny_model_folder: Path) -> None:
    output, seen = watched(output_in(tmp_path))
    summary = run_reward(tiny_model_folder, output)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (summary.steps, summary.lengths.kept, summary.lengths.dropped) == (4, 14, 0)
    assert all({"loss", "grad_norm", "learning_rate", "accuracy", "margin"} <= row.keys() for row in summary.history)
    chosen, _ = exchanges()
    plain = scorer_in(output.folder)
    raw = plain.raw(chosen, 8)
    assert plain.scale.normalise(0.75) == 0.75
    before = json.loads((output.folder / "config.json").read_text())
    write_normalisation(output.folder, 0.5, 2.0)
    after = json.loads((output.folder / "config.json").read_text())
    assert after == {**before, "reward_mean": 0.5, "reward_std": 2.0}
    scaled = scorer_in(output.folder)
    assert scaled.raw(chosen, 8) == raw
    assert scaled.scale.normalise(0.75) == (0.75 - 0.5) / 2.0
    config = AutoModelForSequenceClassification.from_pretrained(output.folder).config
    assert (config.reward_mean, config.reward_std) == (0.5, 2.0)
    for mean, std in ((0.0, 0.0), (0.0, -1.0), (math.nan, 1.0), (0.0, math.inf)):
        with pytest.raises(DataQualityError, match="cannot be normalised"):
            write_normalisation(output.folder, mean, std)
    assert json.loads((output.folder / "config.json").read_text()) == after


def test_nothing_to_train(tmp_path: Path, tiny_model_folder: Path) -> None:
    with pytest.raises(IncompleteError, match="moved no weight"):
        run_reward(tiny_model_folder, output_in(tmp_path), reward_config(optimisation(learning_rate=1e-30)))
    assert not output_in(tmp_path).folder.exists()
    short = reward_config(length={"max_length_tokens": 8})
    for pairs in (make_pairs(), []):
        with pytest.raises(DataQualityError):
            train_reward_model(Policy(str(tiny_model_folder)), pairs, short, output_in(tmp_path))
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
    assert fetched.raw(exchanges()[0], 8) == here.raw(exchanges()[0], 8)
    assert (fetched.scale.mean, fetched.scale.std) == (here.scale.mean, here.scale.std)
