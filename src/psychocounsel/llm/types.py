"""Requests, replies and the protocol of chat models; where their endpoints are, and the keys to them."""

import hashlib
import ipaddress
import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from json.encoder import encode_basestring as _json_text
from json.encoder import encode_basestring_ascii as _quoted
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable
from urllib.parse import urlsplit

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, EndpointError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.types import ReplyStatus

if TYPE_CHECKING:
    from hashlib import _Hash


JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

THOUGHTS_BEGIN, THOUGHTS_END = "<think>", "</think>"
"""Around what many models write before an answer, where neither template nor server keeps it apart."""
_DIGEST_FORMAT = "chat-request-1"
_SHARED_PARTS = 16
_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """Everything that shapes a reply, except the model.

    Args:
        temperature: None is not sent; nor is a `top_p` of None.
        response_schema: a JSON schema that the reply must fit. Models write keys in the schema's order. Do not
            change it afterwards: its JSON is cached.
        sample_index: distinguishes repeated samples of one prompt.
        json_mode: request any JSON object; without a schema only.
        top_logprobs: how many alternatives of every token to return with their log-probabilities.
        questions: makes it a request to the decisions endpoint; the reply is the JSON list of answers.
    """

    messages: tuple[Message, ...]
    temperature: float | None
    top_p: float | None
    max_tokens: int
    response_schema: Mapping[str, JSON] | None = None
    schema_name: str = "reply"
    sample_index: int = 0
    json_mode: bool = False
    top_logprobs: int = 0
    questions: tuple[Mapping[str, JSON], ...] = ()

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("a request needs at least one message")
        if self.max_tokens < 1 or self.sample_index < 0:
            raise ValueError("max_tokens must be positive, sample_index not negative")

    def digest(self, fingerprint: Mapping[str, str]) -> str:
        """Return the SHA-256 (64 hexadecimal digits) under which replies of a model to this request are journalled."""
        # Over one JSON list, written piece by piece: a million requests share all but their item.
        hashed = _shared_start(tuple(sorted(fingerprint.items())), self.messages[0]).copy()
        others = "".join(f",{_message_json(each)}" for each in self.messages[1:])
        sampling = f"[{_exactly(self.temperature)},{_exactly(self.top_p)},{self.max_tokens}]"
        schema = f"[{_quoted(self.schema_name)},{schema_json(self.response_schema)}]"
        more: list[JSON] = ["json_mode"] if self.json_mode else []
        if self.top_logprobs:
            more.append(f"top_logprobs {self.top_logprobs}")
        if self.questions:
            more.append(["questions", self.questions])
        rest = f",{_ENCODER.encode(more)[1:]}" if more else "]"
        hashed.update(f"{others}],{sampling},{schema},{self.sample_index}{rest}".encode("ascii"))
        return hashed.hexdigest()


def schema_json(schema: Mapping[str, JSON] | None) -> str:
    """Return a schema as compact ASCII JSON, cached by identity for schemas that many requests share."""
    known = _schema_texts.get(id(schema))
    if known is None or known[0] is not schema:
        if len(_schema_texts) >= _SHARED_PARTS:
            _schema_texts.clear()
        known = _schema_texts[id(schema)] = (schema, _ENCODER.encode(schema))
    return known[1]


_schema_texts: dict[int, tuple[Mapping[str, JSON] | None, str]] = {}


@lru_cache(maxsize=_SHARED_PARTS)
def _shared_start(fingerprint: tuple[tuple[str, str], ...], first: Message) -> "_Hash":
    return hashlib.sha256(f'["{_DIGEST_FORMAT}",{_ENCODER.encode(fingerprint)},[{_message_json(first)}'.encode("ascii"))


def _message_json(message: Message) -> str:
    return f"[{_quoted(message.role)},{_quoted(message.content)}]"


def _exactly(number: float | None) -> str:
    if number is None:
        return "null"
    if not isfinite(number):
        raise ValueError("temperature and top_p must be finite")
    return repr(float(number))


@dataclass(frozen=True, slots=True)
class ChatReply:
    """What came back, or why nothing did.

    Args:
        status: VALID means that the text is complete, not that it can be parsed. ERROR means that no response
            came after bounded retries.
        text: also of a refused, filtered or cut reply, as far as it came.
        model: the name that the reply itself gives.
        prompt_tokens: as the server reports them; 0 if it does not. `completion_tokens` likewise.
        cached_tokens: those of the prompt that the provider read from its prefix cache.
        batched: whether it is paid at the price of a batch.
        choices: alternatives of the numbers in the text (`structured_output.kept_choices`); empty without logprobs.
    """

    status: ReplyStatus
    text: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    reason: str = ""
    cached_tokens: int = 0
    batched: bool = False
    choices: str = ""

    @property
    def answered(self) -> bool:
        """Whether a response came, which is paid for."""
        return self.status is not ReplyStatus.ERROR


ENDLESS_BLANKS = "blanks, of which more would follow"
"""Of the reason of a reply that more tokens would not complete."""


def without_thoughts(text: str) -> str:
    """Return what a model says after its thoughts, stripped; nothing if they do not end.

    A template may have begun them in the prompt, so their end need not have a beginning.
    """
    _, end, said = text.rpartition(THOUGHTS_END)
    return "" if not end and said.lstrip().startswith(THOUGHTS_BEGIN) else said.strip()


def spoken(reply: ChatReply) -> ChatReply:
    """Return a reply as an answer to a client: without thoughts, and empty if there is nothing else."""
    text = without_thoughts(reply.text)
    if text == reply.text.strip():
        return reply
    if reply.status is ReplyStatus.VALID and not text:
        return replace(reply, text=text, status=ReplyStatus.EMPTY, reason="the reply has only thoughts")
    return replace(reply, text=text)


class RefusedRequestError(EndpointError):
    """A request that the endpoint does not accept.

    If it accepted others, the fault is this request's. If it accepted none yet, it would refuse all of them,
    unless its message is about this one (`concerns_item`: it is too long).
    """

    def __init__(self, what: str, *, where: str, remedy: str, concerns_item: bool = False) -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.concerns_item = concerns_item


async def ignore_loss() -> None:
    """Do nothing about a lost response."""


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What a model has to know of the run that sends a request.

    Args:
        cancel: once cancelled, the model sends nothing new; what is in flight may finish.
        on_lost_response: called when a request was sent and no response came; returns once that is on disk.
        on_probe: called with each reply to a request of the model's own, which finds out what a server can do.
    """

    cancel: CancelToken = field(default_factory=CancelToken)
    on_lost_response: Callable[[], Awaitable[None]] = ignore_loss
    on_probe: Callable[[ChatReply], None] = lambda reply: None


class ChatModel(Protocol):
    """Something that answers chat requests, several at once when awaited together."""

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The resolved `model` and `base_url`: part of every request's digest."""
        ...

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Return the reply; transport faults end, after bounded retries, as an `ERROR` reply.

        Raises:
            RunCancelledError: the context was cancelled before the request was sent, or sent again.
            EndpointError: the endpoint refuses for a reason that a retry does not mend (a wrong key, an
                unknown model, an exhausted quota). The message never holds the key.
            RefusedRequestError: the endpoint does not accept this request; it may accept others.
            IncompleteError: nothing listens at the address, and nothing has answered yet.
        """
        ...


@runtime_checkable
class Closable(Protocol):
    """A chat model that holds connections; `run_requests` closes it before its event loop ends."""

    async def aclose(self) -> None:
        """Close what is open; the next `generate` opens it again, in its own event loop."""


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
            "base_url is not an http(s) address",
            where="endpoint.base_url",
            remedy=f"write it out, as in {DEFAULT_BASE_URL}",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds credentials, a query or a fragment",
            where="endpoint.base_url",
            remedy=f"keep only scheme, host and path; the key belongs into {endpoint.api_key_env}",
        )
    return url.rstrip("/")


def endpoint_fingerprint(endpoint: EndpointConfig) -> dict[str, str]:
    """Return the fingerprint of the model behind an endpoint; `base_url` is its identity, if it has one."""
    pinned = {} if endpoint.response_format == "auto" else {"replies": endpoint.response_format}
    body = {"extra_body": json.dumps(endpoint.extra_body, sort_keys=True)} if endpoint.extra_body else {}
    known_as = resolved_base_url(endpoint) if endpoint.identity is None else endpoint.identity.rstrip("/")
    return {"model": endpoint.model, "base_url": known_as, **pinned, **body}


def is_on_this_machine(base_url: str) -> bool:
    """Whether an address is on this machine, without a DNS lookup."""
    host = urlsplit(base_url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_reachable(base_url: str, offline: bool) -> None:
    """Raise ConfigError if the run is offline and the address is not on this machine."""
    if offline and not is_on_this_machine(base_url):
        raise ConfigError(
            f"offline, but the endpoint {base_url} is not on this machine",
            where="endpoint.base_url",
            remedy="drop --offline, or set base_url to a server on 127.0.0.1",
        )


class LazyModel:
    """A chat model that is loaded at its first request: never, if nothing is pending."""

    def __init__(self, fingerprint: Mapping[str, str], load: Callable[[], ChatModel]) -> None:
        self.fingerprint = fingerprint
        self._load = load
        self._model: ChatModel | None = None

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Return the model's reply; errors are its own, and those of loading it."""
        if self._model is None:
            self._model = self._load()
        return await self._model.generate(request, context)


def api_key(endpoint: EndpointConfig) -> str:
    """Return the API key of an endpoint; a server on this machine needs none.

    Raises:
        ConfigError: the environment variable is empty, or holds something that cannot be a key.
    """
    variable, base_url = endpoint.api_key_env, resolved_base_url(endpoint)
    if not variable.isidentifier():
        raise ConfigError(
            "api_key_env is not the name of an environment variable (nor the place for the key itself)",
            where="endpoint.api_key_env",
            remedy="write the variable's name, as in OPENAI_API_KEY, and export the key under it",
        )
    key = os.environ.get(variable, "").strip()
    if not key and is_on_this_machine(base_url):
        return "no-key-needed"
    if not key:
        raise ConfigError(
            f"the environment variable {variable} holds no API key",
            where="endpoint.api_key_env",
            remedy=f"export {variable}=..., or name the variable that holds the key for {base_url}",
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"the API key in {variable} has characters that no key has (a space, a line break)",
            where="endpoint.api_key_env",
            remedy="copy the key again",
        )
    return key


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def filled(value: Any) -> Any:
    """Return a value of `headers` or `extra_body` with the environment variables that it names.

    Raises:
        ConfigError: one is not set.
    """
    if isinstance(value, dict):
        return {key: filled(each) for key, each in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [filled(each) for each in cast("list[Any]", value)]
    return _VARIABLE.sub(_variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1], "").strip()
    if not value:
        raise ConfigError(
            f"the environment variable {match[1]} is not set",
            where="endpoint.headers, endpoint.extra_body",
            remedy=f"export {match[1]}=...",
        )
    return value


def without_secrets(text: str, endpoint: EndpointConfig) -> str:
    """Return a text without the key of an endpoint, and without other values that came from the environment."""
    named = _VARIABLE.findall(json.dumps([endpoint.headers, endpoint.extra_body]))
    for secret in (api_key(endpoint), *(os.environ.get(name, "").strip() for name in named)):
        text = text.replace(secret, "[key]") if secret else text
    return text


# --- Texts as data in a prompt ----------------------------------------------------------------------------------------

TAGS = "\U000e0000-\U000e007f"
# Flags of the parts of a country are written with tags: a black flag, three to six signs, and an end.
FLAG = "\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f"
# Valid in a JSON string, yet lines or directions of their own to a reader, or there without being seen (or no
# valid UTF-8 at all). Joiners, soft hyphens and spaces without width stay: scripts and emoji need them.
UNSEEN = (
    "\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
)
_ESCAPED = re.compile(f"(?P<flag>{FLAG})|[\u0080-\u009f\u2028\u2029\ud800-\udfff{UNSEEN}{TAGS}]")


def one_line(item: Mapping[str, JSON]) -> str:
    """Return texts as a JSON object on one line; every character that could break or hide in it is escaped."""
    text = f"{{{', '.join(f'{_json_text(key)}: {_plain_json(value)}' for key, value in item.items())}}}"
    return text if text.isascii() else _ESCAPED.sub(_escaped, text)


def _plain_json(value: JSON) -> str:
    return _json_text(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _escaped(match: re.Match[str]) -> str:
    if match["flag"]:
        return match["flag"]
    units = match.group().encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
