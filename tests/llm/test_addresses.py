"""Which addresses stay on this machine, and which must never be asked."""

import pytest

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError
from psychocounsel.llm.types import is_on_this_machine, require_reachable, resolved_base_url


@pytest.mark.parametrize(
    "url", ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://127.8.9.1:80", "http://[::1]:8000/v1"]
)
def test_addresses_of_this_machine(url: str) -> None:
    assert is_on_this_machine(url)
    require_reachable(url, offline=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1",
        "http://127.0.0.1.judge.invalid/v1",
        "http://localhost.judge.invalid/v1",
        "http://10.0.0.1/v1",
        "http://0.0.0.0/v1",
    ],
)
def test_addresses_beyond_this_machine(url: str) -> None:
    assert not is_on_this_machine(url)
    require_reachable(url, offline=False)
    with pytest.raises(ConfigError, match="drop --offline"):
        require_reachable(url, offline=True)


def test_own_address_comes_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert resolved_base_url(EndpointConfig(model="m")) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1/")
    assert resolved_base_url(EndpointConfig(model="m")) == "http://127.0.0.1:9/v1"
    assert resolved_base_url(EndpointConfig(model="m", base_url="http://a.invalid/v1")) == "http://a.invalid/v1"


@pytest.mark.parametrize(
    "url", ["ftp://a.invalid", "a.invalid/v1", "https://me:secret@a.invalid", "https://a.invalid?k=1"]
)
def test_addresses_that_hold_more_or_less_are_refused_unquoted(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved_base_url(EndpointConfig(model="m", base_url=url))
    assert "secret@" not in str(caught.value)
