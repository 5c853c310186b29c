"""What is connected, and what must not be: addresses, restricted text, planned models."""

import asyncio
from pathlib import Path

import pytest

from fake_model import count_replies
from psychocounsel.config.components import ChatFormat, EndpointConfig, JudgeConfig, ResponderConfig, SamplingConfig
from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.judging.judges import judge_fingerprint
from psychocounsel.llm.endpoints import (
    JOURNAL_FILE,
    keep_restricted_text_here,
    planned_journal,
    planned_model,
    require_usable,
)
from psychocounsel.llm.types import ChatRequest, Message, RequestContext
from psychocounsel.stages.respond import plan_responder
from psychocounsel.store.store import Store

REMOTE = EndpointConfig(model="judge", base_url="https://judge.invalid/v1")
LOCAL = EndpointConfig(model="judge", base_url="http://127.0.0.1:9/v1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_restricted_text_and_a_remote_model_never_meet() -> None:
    keep_restricted_text_here([None, LOCAL], {"a.csv": "restricted"})
    keep_restricted_text_here([REMOTE], {"a.csv": "public", "b.csv": "deidentified"})
    with pytest.raises(ConfigError) as caught:
        keep_restricted_text_here([None, LOCAL, REMOTE], {"a.csv": "public", "b.csv": "restricted"})
    assert caught.value.where == "b.csv"
    assert "https://judge.invalid/v1" in caught.value.what


def test_address_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    endpoint = EndpointConfig(model="judge")
    judge = JudgeConfig(backend="endpoint", endpoint=endpoint)
    settings = [judge_fingerprint(judge, store).settings["endpoint"]]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.append(judge_fingerprint(judge, store).settings["endpoint"])
    assert [each["base_url"] for each in settings] == ["https://api.openai.com/v1", "http://127.0.0.1:9/v1"]
    keep_restricted_text_here([endpoint], {"a.csv": "restricted"})
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ConfigError):
        keep_restricted_text_here([endpoint], {"a.csv": "restricted"})


def test_offline_refuses_remote_endpoints_while_planning(tmp_path: Path) -> None:
    offline = Store(tmp_path, offline=True)
    with pytest.raises(ConfigError, match="drop --offline"):
        judge_fingerprint(JudgeConfig(backend="endpoint", endpoint=REMOTE), offline)
    with pytest.raises(ConfigError, match="drop --offline"):
        plan_responder(ResponderConfig(author="a", endpoint=REMOTE), offline, "model")
    judge_fingerprint(JudgeConfig(backend="endpoint", endpoint=LOCAL), offline)
    judge_fingerprint(JudgeConfig(), offline)


def test_speed_knobs_of_an_endpoint_change_no_plan(store: Store) -> None:
    slow = REMOTE.model_copy(update={"concurrency": 1, "timeout_seconds": 5.0, "api_key_env": "OTHER"})
    plans = [judge_fingerprint(JudgeConfig(backend="endpoint", endpoint=each), store) for each in (REMOTE, slow)]
    assert plans[0] == plans[1]


def test_only_the_offline_judge_brings_a_notice(store: Store) -> None:
    assert judge_fingerprint(JudgeConfig(), store).notices
    assert judge_fingerprint(JudgeConfig(backend="endpoint", endpoint=LOCAL), store).notices == ()


def test_every_missing_key_is_named_with_whose_it_is(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OTHER_KEY", raising=False)
    require_usable({"judge": None, "responder elm": LOCAL}, store)
    other = REMOTE.model_copy(update={"api_key_env": "OTHER_KEY"})
    with pytest.raises(ConfigError) as caught:
        require_usable({"responder elm": REMOTE, "responder oak": LOCAL, "judge": other}, store)
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["responder elm", "judge"]
    assert "OPENAI_API_KEY" in lines[0]
    assert "OTHER_KEY" in lines[1]


def test_how_a_file_is_sampled_is_no_part_of_what_it_is(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "said.csv"
    path.write_text("speech,response\nI cannot sleep.,What keeps you up?\n", encoding="utf-8")
    plain = ResponderConfig(author="said", file=str(path))
    changed = plain.model_copy(
        update={"sampling": SamplingConfig(temperature=0.1), "chat": ChatFormat(system_prompt="Be brief.")}
    )
    assert plan_responder(plain, store, "model") == plan_responder(changed, store, "model")


def test_a_system_prompt_is_part_of_what_a_model_is(store: Store) -> None:
    plain = ResponderConfig(author="elm", endpoint=LOCAL)
    told = plain.model_copy(update={"chat": ChatFormat(system_prompt="Be brief.")})
    assert plan_responder(plain, store, "model") != plan_responder(told, store, "model")


def test_planned_journal_leaves_no_trace(store: Store) -> None:
    with planned_journal(store) as journal:
        assert count_replies(journal) == 0
    assert not store.root.exists()
    assert not (store.root / JOURNAL_FILE).exists()


def test_planned_model_answers_nobody() -> None:
    model = planned_model(LOCAL)
    assert model.fingerprint == {"model": "judge", "base_url": "http://127.0.0.1:9/v1"}
    with pytest.raises(EndpointError):
        asyncio.run(model.generate(ChatRequest((Message("user", "hello"),), 0.0, 1.0, 5), RequestContext()))
