"""Config blocks: what enters a fingerprint, and which combinations are refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from psychocounsel.config.components import (
    ChatFormat,
    EndpointConfig,
    Gate,
    JudgeConfig,
    PoolConfig,
    ResponderConfig,
    SamplingConfig,
    Settings,
    SpeedSetting,
)
from psychocounsel.config.corpus import CorpusConfig
from psychocounsel.config.recipe import STAGES
from psychocounsel.config.schema import AlignConfig, OptimisationConfig, ReportConfig, TrainRewardConfig
from psychocounsel.config.sources import SpeechColumns, SpeechSource

OPTIMISATION = OptimisationConfig(learning_rate=9e-6, global_batch_size=128)
ENDPOINT = EndpointConfig(model="gpt-4o-2024-11-20")
LOCAL = ResponderConfig(author="local", model="tiny")
SOURCE = SpeechSource(path="speeches.csv", columns=SpeechColumns(text="text"), licence="cc0-1.0", data_class="public")
CORPUS = CorpusConfig(name="talk", speeches=(SOURCE,))
REWARD = TrainRewardConfig(name="reward", base_model="tiny", preferences="pairs", optimisation=OPTIMISATION)
ALIGN = {"name": "a", "policy": "tiny", "optimisation": OPTIMISATION}
DPO = {**ALIGN, "mode": "dpo", "preferences": "pairs"}
LEFT_OUT = {
    "CleaningConfig": {"strict"},
    "CorpusConfig": {"prepared", "expected_speeches"},
    "AlignConfig": {"launch"},
    "BuildPreferencesConfig": {"retry_failed"},
    "EndpointConfig": {
        *("api_key_env", "timeout_seconds", "concurrency", "requests_per_minute", "tokens_per_minute"),
        *("max_attempts", "max_cost", "price", "identity", "headers"),
    },
    "EvalCrisisConfig": {"retry_failed"},
    "EvalRewardConfig": {"allow_leakage", "batch_size"},
    "EvalWinrateConfig": {"retry_failed", "allow_leakage"},
    "ImportPreferencesConfig": {"expected_test_speeches"},
    "JudgeConfig": {"batch", "batch_size", "max_missing_share", "pilot"},
    "LengthConfig": {"max_dropped_share"},
    "ModelJudgeConfig": {"batch", "batch_size", "pilot"},
    "OnlineConfig": {"keep", "stop_when"},
    "OptimisationConfig": {"per_device_batch_size", "gradient_checkpointing", "packing", "save_every_steps", "tracker"},
    "ResponderConfig": {"max_missing_share", "several_answers"},
    "SamplerConfig": {"gpu_memory_utilization", "start_seconds"},
    "SamplingConfig": {"batch_size"},
    "SftConfig": {"tracker"},
    "TopicsConfig": {"max_missing_share"},
    "TrainRewardConfig": {"allow_leakage", "launch"},
}


def blocks_of(model: type[Settings]) -> set[type[Settings]]:
    found = {model}
    for info in model.model_fields.values():
        arguments = [info.annotation, *getattr(info.annotation, "__args__", ())]
        for block in arguments:
            if isinstance(block, type) and issubclass(block, Settings):
                found |= blocks_of(block)
    return found


def test_only_these_fields_are_left_out_of_fingerprints() -> None:
    marked: dict[str, set[str]] = {}
    for block in set().union(*(blocks_of(stage.config) for stage in STAGES.values())):
        for name, info in block.model_fields.items():
            if any(isinstance(mark, SpeedSetting | Gate) for mark in info.metadata):
                marked.setdefault(block.__name__, set()).add(name)
    assert marked == LEFT_OUT


@pytest.mark.parametrize("config", [OPTIMISATION, ENDPOINT, LOCAL, SamplingConfig(), JudgeConfig(backend="endpoint")])
def test_every_other_field_is_in_the_fingerprint(config: Settings) -> None:
    model = type(config)
    assert config.fingerprint().keys() == model.model_fields.keys() - LEFT_OUT[model.__name__]


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (REWARD, {"optimisation": OPTIMISATION.model_copy(update={"precision": "fp32"})}),
        (CORPUS, {"speeches": (SOURCE.model_copy(update={"licence": "mit"}),)}),
        (JudgeConfig(), {"samples": 3}),
        (SamplingConfig(), {"temperature": None}),
    ],
)
def test_a_setting_that_affects_the_result_changes_the_fingerprint(config: Settings, change: dict[str, Any]) -> None:
    assert config.model_copy(update=change).fingerprint() != config.fingerprint()


def test_policies_that_are_older_than_the_choice_of_a_loss_keep_their_ids() -> None:
    default, other = (AlignConfig.model_validate({**DPO, "loss": name}) for name in ("sigmoid", "ipo"))
    assert other.fingerprint().keys() - default.fingerprint().keys() == {"loss", "label_smoothing"}
    assert default.fingerprint().keys() == AlignConfig.model_fields.keys() - {"loss", "label_smoothing", "launch"}


def test_a_speed_setting_deep_inside_and_a_float_as_a_whole_number_change_nothing() -> None:
    faster = REWARD.model_copy(update={"optimisation": OPTIMISATION.model_copy(update={"per_device_batch_size": 1})})
    assert faster != REWARD
    assert faster.fingerprint() == REWARD.fingerprint()
    values = REWARD.model_dump() | {"centre_rewards_coefficient": 1, "optimisation": OPTIMISATION}
    point = REWARD.model_copy(update={"centre_rewards_coefficient": 1.0})
    assert str(TrainRewardConfig.model_validate(values).fingerprint()) == str(point.fingerprint())


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (ResponderConfig, {"author": "a"}, "exactly one of endpoint, model and file"),
        (ResponderConfig, {"author": "a", "model": "m", "file": "f"}, "exactly one of endpoint, model and file"),
        (PoolConfig, {"responders": (LOCAL,), "per_speech": 2}, "per_speech exceeds the number"),
        (PoolConfig, {"responders": (LOCAL, LOCAL), "per_speech": 1}, "share an author name"),
        (ChatFormat, {"system_prompt": "bundled:butler"}, "no system prompt 'butler'; known: counsellor"),
        (CorpusConfig, {"name": "a", "speeches": ()}, "at least 1 item"),
        (AlignConfig, {**ALIGN, "mode": "dpo"}, "mode: dpo needs preferences"),
        (AlignConfig, {**DPO, "loss": "robust"}, "needs a label_smoothing above 0"),
        (AlignConfig, {**DPO, "label_smoothing": 0.1}, "no other loss takes one"),
        (AlignConfig, {**ALIGN, "mode": "online"}, "mode: online needs an online block"),
        (AlignConfig, {**ALIGN, "mode": "online", "preferences": "pairs"}, "takes no preferences"),
        (ReportConfig, {"name": "../up", "artifacts": ("a",)}, "should match pattern"),
        (JudgeConfig, {"endpoint": ENDPOINT}, "backend: offline takes no endpoint"),
        (JudgeConfig, {"backend": "decisions", "samples": 3}, "decisions takes no samples; leave it out"),
        (JudgeConfig, {"backend": "endpoint", "samples": 3}, "set a temperature"),
        (JudgeConfig, {"backend": "local"}, "backend: local needs a model"),
        (JudgeConfig, {"backend": "local", "model": "m", "score": "expected"}, "no log-probabilities"),
        (JudgeConfig, {"backend": "offline", "batch": {"enabled": True}}, "offline has no batches"),
        (JudgeConfig, {"backend": "decisions", "temperature": 0.5}, "decisions takes no temperature"),
        (JudgeConfig, {"backend": "panel"}, "needs a panel"),
        (JudgeConfig, {"backend": "offline", "panel": [{}, {"max_tokens": 9}]}, "no other backend takes one"),
        (JudgeConfig, {"panel": [{}, {"backend": "offline"}]}, "endpoint"),
        (JudgeConfig, {"panel": [{}, {"rubric": "other"}]}, "rubric"),
        (JudgeConfig, {"panel": [{"backend": "decisions"}]}, "at least two judges"),
        (JudgeConfig, {"panel": [{}, {}]}, "are the same; use one with samples: 2"),
        (JudgeConfig, {"panel": [{}, {"backend": "decisions"}], "max_tokens": 9}, "have their own max_tokens"),
        (
            JudgeConfig,
            {"panel": [{"backend": "decisions"}, {"backend": "local", "model": "m"}], "batch": {"enabled": True}},
            "no judge of the panel has batches",
        ),
    ],
)
def test_a_block_that_contradicts_itself_is_refused(
    model: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model.model_validate(values)


def test_a_judge_at_an_endpoint_has_a_default_model() -> None:
    model = "gpt-4o-2024-08-06"
    assert JudgeConfig(backend="endpoint").endpoint == EndpointConfig(model=model)
    elsewhere = JudgeConfig.model_validate({"backend": "endpoint", "endpoint": {"base_url": "http://127.0.0.1:1/v1"}})
    assert elsewhere.endpoint == EndpointConfig(model=model, base_url="http://127.0.0.1:1/v1")
    assert JudgeConfig().endpoint is None


def test_a_bundled_system_prompt_is_in_the_fingerprint_as_text() -> None:
    assert "Do not diagnose" in ChatFormat(system_prompt="bundled:counsellor").fingerprint()["system_prompt"]
    assert ChatFormat(system_prompt="Be brief.").system_prompt == "Be brief."


def test_what_is_not_sent_to_an_endpoint_is_1_for_a_local_model() -> None:
    unsent = SamplingConfig(temperature=None, top_p=None)
    assert (unsent.local_temperature, unsent.local_top_p) == (1.0, 1.0)
    assert SamplingConfig(temperature=0.0).local_temperature == 0.0


def test_a_panel_is_its_judges() -> None:
    judges = [{"endpoint": {"model": "elm"}}, {"endpoint": {"model": "yew"}, "samples": 3, "temperature": 1.0}]
    panel = JudgeConfig.model_validate({"panel": judges})
    assert [each.samples for each in panel.members] == [1, 3]
    assert list(panel.named_endpoints) == ["judge.panel[0]", "judge.panel[1]"]
    assert panel.fingerprint().keys() == {"backend", "rubric", "panel"}


def test_the_batches_of_a_panel_are_those_of_its_judges_at_endpoints() -> None:
    judges = [{"endpoint": {"model": "one"}}, {"backend": "decisions"}, {"batch": {"max_lines": 7}}]
    panel = JudgeConfig.model_validate({"panel": judges, "batch": {"enabled": True}})
    assert [each.batch.enabled for each in panel.members] == [True, False, True]
    assert panel.members[2].batch.max_lines == 7
    assert panel.fingerprint() == JudgeConfig.model_validate({"panel": judges}).fingerprint()
