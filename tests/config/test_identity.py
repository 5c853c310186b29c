"""Settings -> identity: what is in an id, and what never is."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from psychocounsel.config.components import (
    DEFAULT_JUDGE,
    BatchConfig,
    ChatFormat,
    EndpointConfig,
    Gate,
    JudgeConfig,
    PoolConfig,
    PriceConfig,
    ResponderConfig,
    SamplingConfig,
    Settings,
    SpeedKnob,
)
from psychocounsel.config.schema import (
    AlignConfig,
    BaseModelConfig,
    BuildPreferencesConfig,
    CorpusConfig,
    EvalWinrateConfig,
    OnlineConfig,
    OptimisationConfig,
    ReportConfig,
    SpeechColumns,
    SpeechSource,
    TopicsConfig,
    TrainRewardConfig,
)
from psychocounsel.store.files import digest_of

OPTIMISATION = OptimisationConfig(learning_rate=9e-6, global_batch_size=128)
ENDPOINT = EndpointConfig(model="gpt-4o-2024-11-20")
ASKED = ResponderConfig(author="asked", endpoint=ENDPOINT)
LOCAL = ResponderConfig(author="local", model="tiny")
SOURCE = SpeechSource(path="speeches.csv", columns=SpeechColumns(text="text"), licence="cc0-1.0", data_class="public")
CORPUS = CorpusConfig(name="talk", speeches=(SOURCE,), topics=TopicsConfig())
JUDGE = JudgeConfig(backend="endpoint", endpoint=ENDPOINT)
CONFIGS: tuple[Settings, ...] = (
    BaseModelConfig(name="tiny", corpus=CORPUS),
    BuildPreferencesConfig(
        name="pairs", corpus=CORPUS, pool=PoolConfig(responders=(ASKED, LOCAL), per_speech=2), judge=JUDGE
    ),
    TrainRewardConfig(name="reward", base_model="tiny", preferences="pairs", optimisation=OPTIMISATION),
    AlignConfig(
        name="policy",
        mode="online",
        policy="tiny",
        online=OnlineConfig(speeches="talk", reward_model="reward"),
        optimisation=OPTIMISATION,
    ),
    EvalWinrateConfig(name="rate", speeches="talk", policy=LOCAL, reference=ASKED, judge=JUDGE),
    ReportConfig(name="report", artifacts=("rate",)),
)
KNOBS = {
    "EndpointConfig.api_key_env": "OTHER_KEY",
    "EndpointConfig.timeout_seconds": 7.5,
    "EndpointConfig.concurrency": 1,
    "EndpointConfig.requests_per_minute": 600,
    "EndpointConfig.tokens_per_minute": 90_000,
    "JudgeConfig.batch_size": 2,
    "JudgeConfig.batch": BatchConfig(max_lines=5),
    "SamplingConfig.batch_size": 3,
    "OptimisationConfig.per_device_batch_size": 1,
    "OptimisationConfig.gradient_checkpointing": True,
    "OptimisationConfig.save_every_steps": 3,
}
GATES = {
    "BuildPreferencesConfig.retry_failed": True,
    "EndpointConfig.max_attempts": 9,
    "EndpointConfig.max_cost": 12.5,
    "EndpointConfig.price": PriceConfig(prompt=1.0, completion=2.0),
    "EvalWinrateConfig.retry_failed": True,
    "JudgeConfig.max_missing_share": 0.5,
    "LengthConfig.max_dropped_share": 0.5,
    "ResponderConfig.max_missing_share": 0.5,
    "TopicsConfig.max_missing_share": 0.5,
}
LEFT_OUT = KNOBS | GATES


def fields_of(config: Settings) -> list[tuple[str, bool]]:
    """Return each field of a block and whether it is a speed knob or a gate."""
    return [
        (name, any(isinstance(mark, SpeedKnob | Gate) for mark in info.metadata))
        for name, info in type(config).model_fields.items()
    ]


def turned(value: Any, knobs: dict[str, Any]) -> Any:
    """Return a value with the given knobs and gates turned, wherever in it their blocks stand."""
    if isinstance(value, tuple):
        return tuple(turned(item, knobs) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, Settings):
        return value
    changes = {
        name: knobs.get(f"{type(value).__name__}.{name}", getattr(value, name))
        if is_knob
        else turned(getattr(value, name), knobs)
        for name, is_knob in fields_of(value)
    }
    return type(value)(**changes)


def blocks_in(value: Any) -> list[Settings]:
    if isinstance(value, tuple):
        return [block for item in value for block in blocks_in(item)]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, Settings):
        return []
    return [value, *(block for name, _ in fields_of(value) for block in blocks_in(getattr(value, name)))]


def test_every_speed_knob_and_gate_is_one_that_these_tests_turn() -> None:
    blocks = [block for config in CONFIGS for block in blocks_in(config)]
    marked = {f"{type(block).__name__}.{name}" for block in blocks for name, is_knob in fields_of(block) if is_knob}
    assert marked == set(LEFT_OUT)


@given(st.sampled_from(CONFIGS), st.sets(st.sampled_from(sorted(LEFT_OUT))))
def test_speed_knobs_and_gates_never_change_the_identity(config: Settings, chosen: set[str]) -> None:
    changed = turned(config, {name: LEFT_OUT[name] for name in chosen})
    assert digest_of(changed.fingerprint()) == digest_of(config.fingerprint())


def test_turning_all_knobs_and_gates_changes_the_configs_that_hold_them() -> None:
    knobs = [turned(config, KNOBS) != config for config in CONFIGS]
    gates = [turned(config, GATES) != config for config in CONFIGS]
    assert knobs == [False, True, True, True, True, False]
    assert gates == [True, True, True, True, True, False]


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (OPTIMISATION, {"global_batch_size": 64}),
        (OPTIMISATION, {"precision": "fp32"}),
        (OPTIMISATION, {"warmup_share": 0.2}),
        (ENDPOINT, {"base_url": "http://127.0.0.1:1/v1"}),
        (ENDPOINT, {"model": "other"}),
        (SamplingConfig(), {"temperature": 0.5}),
        (CORPUS, {"name": "other"}),
        (SOURCE, {"licence": "mit"}),
        (CONFIGS[2], {"seed": 1}),
    ],
)
def test_a_setting_that_affects_the_result_changes_the_identity(config: Settings, change: dict[str, Any]) -> None:
    assert digest_of(config.model_copy(update=change).fingerprint()) != digest_of(config.fingerprint())


def test_a_whole_number_is_the_same_setting_as_its_float() -> None:
    whole = TrainRewardConfig.model_validate(
        {**CONFIGS[2].model_dump(), "centre_rewards_coefficient": 1, "optimisation": OPTIMISATION}
    )
    point = whole.model_copy(update={"centre_rewards_coefficient": 1.0})
    assert digest_of(whole.fingerprint()) == digest_of(point.fingerprint())


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (ResponderConfig, {"author": "a"}, "exactly one of endpoint, model and file"),
        (
            ResponderConfig,
            {"author": "a", "model": "m", "file": "f"},
            "exactly one of endpoint, model and file",
        ),
        (PoolConfig, {"responders": (LOCAL,), "per_speech": 2}, "per_speech exceeds the number"),
        (PoolConfig, {"responders": (LOCAL, LOCAL), "per_speech": 1}, "share an author name"),
        (ChatFormat, {"system_prompt": "bundled:butler"}, "no system prompt 'butler'; known: counsellor"),
        (JudgeConfig, {"endpoint": ENDPOINT}, "backend: offline takes no endpoint"),
        (CorpusConfig, {"name": "a", "speeches": ()}, "at least 1 item"),
        (ReportConfig, {"name": "../up", "artifacts": ("a",)}, "should match pattern"),
    ],
)
def test_blocks_that_contradict_themselves_are_refused(
    model: type[Settings], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model(**values)


@pytest.mark.parametrize(
    ("mode", "blocks", "message"),
    [
        ("dpo", {}, "mode: dpo needs preferences"),
        ("online", {}, "mode: online needs an online block"),
        ("online", {"preferences": "pairs"}, "takes no preferences"),
    ],
)
def test_a_mode_has_its_block(mode: str, blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AlignConfig(name="a", mode=mode, policy="tiny", optimisation=OPTIMISATION, **blocks)  # pyright: ignore[reportArgumentType]


def test_a_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        OPTIMISATION.global_batch_size = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("judge", "digest"),
    [
        (JudgeConfig(), "d5235150ff71af3588f931bcd387892215eecae07a7675ddca4b9bb76230d9b0"),
        (JUDGE, "aaa6a955d29b1f527120f96b4327cbd0af205f9e6bc394b03d0ede3ff5f5e044"),
        (
            JudgeConfig(backend="local", model="tiny"),
            "fe9f8409a445428e0550ae1384054863db8bfa0ae1d7041df751459b1bf209e0",
        ),
    ],
)
def test_what_a_judge_can_do_more_changes_no_id_of_one_that_does_not(judge: JudgeConfig, digest: str) -> None:
    assert digest_of(judge.fingerprint()) == digest
    assert digest_of(judge.model_copy(update={"samples": 3}).fingerprint()) != digest


def test_a_panel_is_its_judges() -> None:
    one, two = ({"endpoint": {"model": name}} for name in ("elm", "yew"))
    panel = JudgeConfig.model_validate({"panel": [one, {**two, "samples": 3, "temperature": 1.0}]})
    assert [each.samples for each in panel.members] == [1, 3]
    assert list(panel.named_endpoints) == ["judge.panel[0]", "judge.panel[1]"]
    assert panel.fingerprint().keys() == {"backend", "rubric", "panel"}
    other = JudgeConfig.model_validate({"panel": [one, two]})
    assert digest_of(other.fingerprint()) != digest_of(panel.fingerprint())


def test_a_judge_at_an_endpoint_needs_no_more_than_that() -> None:
    judge = JudgeConfig(backend="endpoint")
    assert judge.endpoint == EndpointConfig(model=DEFAULT_JUDGE)
    elsewhere = JudgeConfig.model_validate({"backend": "endpoint", "endpoint": {"base_url": "http://127.0.0.1:1/v1"}})
    assert elsewhere.endpoint == EndpointConfig(model=DEFAULT_JUDGE, base_url="http://127.0.0.1:1/v1")
    assert JudgeConfig().endpoint is None


def test_a_system_prompt_that_ships_is_part_of_the_identity_word_for_word() -> None:
    shipped = ChatFormat(system_prompt="bundled:counsellor")
    assert "Do not diagnose" in shipped.fingerprint()["system_prompt"]
    assert ChatFormat().fingerprint()["system_prompt"] == ""
    assert ChatFormat(system_prompt="Be brief.").system_prompt == "Be brief."


def test_what_is_not_sent_is_one_on_this_machine() -> None:
    unsent = SamplingConfig(temperature=None, top_p=None)
    assert (unsent.local_temperature, unsent.local_top_p) == (1.0, 1.0)
    assert SamplingConfig(temperature=0.0, top_p=0.5).local_temperature == 0.0
    assert digest_of(unsent.fingerprint()) != digest_of(SamplingConfig().fingerprint())


def test_the_batches_of_a_panel_are_those_of_its_judges_behind_endpoints() -> None:
    judges = [{"endpoint": {"model": "one"}}, {"backend": "decisions"}, {"batch": {"max_lines": 7}}]
    plain = JudgeConfig.model_validate({"panel": judges})
    panel = JudgeConfig.model_validate({"panel": judges, "batch": {"enabled": True}})
    assert [each.batch.enabled for each in panel.members] == [True, False, True]
    assert panel.members[2].batch.max_lines == 7
    assert digest_of(panel.fingerprint()) == digest_of(plain.fingerprint())
    none = [{"backend": "decisions"}, {"backend": "local", "model": "m"}]
    with pytest.raises(ValidationError, match="has no batches"):
        JudgeConfig.model_validate({"panel": none, "batch": {"enabled": True}})


def test_what_decides_takes_no_samples_and_says_so_first() -> None:
    with pytest.raises(ValidationError, match="backend: decisions takes no samples; leave it out"):
        JudgeConfig.model_validate({"backend": "decisions", "samples": 3})
