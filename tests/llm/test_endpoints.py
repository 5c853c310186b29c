"""What is connected, and what must not be: addresses, restricted text, planned models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from psychocounsel.config.components import EndpointConfig, JudgeConfig, ResponderConfig
from psychocounsel.errors import ConfigError
from psychocounsel.judging.judges import open_judge
from psychocounsel.llm.endpoints import keep_restricted_text_here, require_usable
from psychocounsel.llm.session import Session, open_session
from psychocounsel.stages.respond import Responder
from psychocounsel.store.store import Store

REMOTE = EndpointConfig(model="judge", base_url="https://judge.invalid/v1")
LOCAL = EndpointConfig(model="judge", base_url="http://127.0.0.1:9/v1")


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
    settings = [fingerprint(judge, store)]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    settings.append(fingerprint(judge, store))
    assert [each["base_url"] for each in settings] == ["https://api.openai.com/v1", "http://127.0.0.1:9/v1"]
    keep_restricted_text_here([endpoint], {"a.csv": "restricted"})
    monkeypatch.delenv("OPENAI_BASE_URL")
    with pytest.raises(ConfigError):
        keep_restricted_text_here([endpoint], {"a.csv": "restricted"})


def fingerprint(judge: JudgeConfig, store: Store) -> Mapping[str, Any]:
    return open_judge(judge, Session(store), "rating").fingerprint


def test_offline_refuses_remote_endpoints_and_warns_of_the_offline_judge_alone(tmp_path: Path) -> None:
    with open_session(Store(tmp_path, offline=True)) as offline:
        with pytest.raises(ConfigError, match="drop --offline"):
            open_judge(JudgeConfig(backend="endpoint", endpoint=REMOTE), offline, "rating")
        with pytest.raises(ConfigError, match="drop --offline"):
            Responder(ResponderConfig(author="a", endpoint=REMOTE), offline, "model")
        assert not open_judge(JudgeConfig(backend="endpoint", endpoint=LOCAL), offline, "rating").warnings
        assert open_judge(JudgeConfig(), offline, "rating").warnings


def test_speed_settings_of_an_endpoint_change_no_fingerprint(store: Store) -> None:
    slow = REMOTE.model_copy(update={"concurrency": 1, "timeout_seconds": 5.0, "api_key_env": "OTHER"})
    one, other = (fingerprint(JudgeConfig(backend="endpoint", endpoint=each), store) for each in (REMOTE, slow))
    assert one == other


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
