"""EndpointConfig -> the address that is really asked: known while planning, before any client is loaded."""

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from psychocounsel.config.models import EndpointConfig
from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.llm.chat import ChatModel, ChatReply, ChatRequest

DEFAULT_BASE_URL = "https://api.openai.com/v1"


def resolved_base_url(endpoint: EndpointConfig) -> str:
    """Return the address of an endpoint: its own, that of OPENAI_BASE_URL, or OpenAI's.

    Raises:
        ConfigError: it is no plain http(s) address.
    """
    url = endpoint.base_url or os.environ.get("OPENAI_BASE_URL", "").strip() or DEFAULT_BASE_URL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "base_url is no web address",
            where="endpoint.base_url",
            remedy=f"write it out, as in {DEFAULT_BASE_URL}",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds more than an address, perhaps a secret",
            where="endpoint.base_url",
            remedy=f"leave only scheme, host and path; the key belongs into {endpoint.api_key_env}",
        )
    return url.rstrip("/")


def endpoint_identity(endpoint: EndpointConfig) -> dict[str, str]:
    """Return what identifies the model behind an endpoint in every request's digest."""
    pinned = {} if endpoint.replies == "auto" else {"replies": endpoint.replies}
    return {"model": endpoint.model, "base_url": resolved_base_url(endpoint), **pinned}


def is_on_this_machine(base_url: str) -> bool:
    """Whether an address stays on this machine, whatever a name server would say."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_reachable(base_url: str, offline: bool) -> None:
    """Refuse an address beyond this machine to an offline run.

    Raises:
        ConfigError: with the remedy.
    """
    if offline and not is_on_this_machine(base_url):
        raise ConfigError(
            f"offline, but the endpoint {base_url} is not on this machine",
            where="endpoint.base_url",
            remedy="drop --offline, or set base_url to a server on 127.0.0.1",
        )


@dataclass(frozen=True)
class UnconnectedModel:
    """A chat model that is planned but not connected: it names itself and answers nothing."""

    identity: Mapping[str, str]

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Refuse: a plan asks nobody."""
        raise EndpointError(f"{self.identity['model']} is not asked while planning ({request.schema_name})")


class LazyModel:
    """A chat model that is loaded when it is first asked: where nothing is owed, never."""

    def __init__(self, identity: Mapping[str, str], load: Callable[[], ChatModel]) -> None:
        self.identity = identity
        self._load = load
        self._model: ChatModel | None = None

    async def ask(self, request: ChatRequest) -> ChatReply:
        """Ask the model; errors are its own, and those of loading it."""
        if self._model is None:
            self._model = self._load()
        return await self._model.ask(request)
