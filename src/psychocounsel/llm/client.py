"""An answer that is none -> whether it may pass, and how it is told: alike on every road to a provider.

What a road alone asks for (a model, a batch) it words itself.
"""

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import ConfigError, EndpointError, IncompleteError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.rate_limit import RateLimiter, RetryPolicy, retry_after_seconds
from psychocounsel.llm.replies import (
    DECISIONS_PATH,
    UnreadableBodyError,
    decision_body,
    read_completion,
    read_decision,
    read_listing,
)
from psychocounsel.llm.types import (
    ChatReply,
    ChatRequest,
    Message,
    RefusedRequestError,
    RequestContext,
    api_key,
    endpoint_fingerprint,
    is_on_this_machine,
    require_reachable,
    resolved_base_url,
    schema_json,
)
from psychocounsel.types import ReplyStatus

_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_NO_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_LONGEST_QUOTE_CHARS = 200


class StatusError(Protocol):
    """An answer whose HTTP status is an error, as the official client raises it."""

    status_code: int
    message: str
    body: object | None
    code: str | None
    type: str | None


class Worded(NamedTuple):
    """What is refused, and what to do about it."""

    what: str
    remedy: str


class Broken(NamedTuple):
    """A line that broke; `nobody_listens` says that no connection came about, so that nothing was sent."""

    reason: str
    nobody_listens: bool


def codes_of(error: StatusError) -> set[str]:
    """Return the names that the server gives to the error."""
    return {str(error.code), str(error.type)}


def has_no_quota(error: StatusError) -> bool:
    """Whether the key has used up what it may spend; no wait mends that."""
    return error.status_code == 402 or bool(codes_of(error) & _NO_QUOTA)


def may_pass(error: StatusError) -> bool:
    """Whether the same request may be answered later."""
    return error.status_code in _PASSING and not has_no_quota(error)


def quoted(error: StatusError, key: str) -> str:
    """Return the server's own words on one line, without the key and not too long."""
    return " ".join(_said(error).split()).replace(key, "[key]")[:_LONGEST_QUOTE_CHARS]


def refusal_of_key(error: StatusError, key_variable: str) -> Worded | None:
    """Return what is wrong with the key itself; None where it is not the key.

    Args:
        error: the refusal.
        key_variable: name of the environment variable that holds the key.
    """
    if has_no_quota(error):
        return Worded("the quota of this key is used up", "add credit or raise the limit, then run again")
    if error.status_code == 401:
        return Worded("the key is not accepted", f"put a valid key into the environment variable {key_variable}")
    return None


def broken_by(error: Exception) -> Broken:
    """Return what became of a line, by the error that the client raised."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, aiohttp.ClientConnectorError):
            return Broken(f"no connection ({cause.os_error})", nobody_listens=True)
    return Broken(f"no connection, or it broke ({type(cause).__name__})", nobody_listens=False)


def _said(error: StatusError) -> str:
    """Return the server's own words: OpenAI has an error's message, others a bare error or a detail."""
    said = error.body
    if isinstance(said, dict):
        named = cast("dict[str, Any]", said)
        said = named.get("message") or named.get("detail")
    return said if isinstance(said, str) and said.strip() else error.message


_FILTERED = frozenset({"content_filter", "content_policy_violation"})
_NOT_TAKEN = frozenset({400, 413, 422})
_TOO_LONG = frozenset({"context_length_exceeded", "string_above_max_length"})
_TRIES_BEFORE_THE_FIRST_ANSWER = 2
_UNLIMITED = 0
_LISTING_SECONDS = 15.0
_DEFAULT_RETRY = RetryPolicy()
_LIMIT_HEADERS = b"x-ratelimit-"


@dataclass(frozen=True)
class _Fault:
    """A fault that may pass; `asked_wait_seconds` is what the server asked for."""

    reason: str
    asked_wait_seconds: float | None = None
    everybody_waits: bool = False
    nobody_listens: bool = False
    is_free: bool = False
    possibly_billed: bool = False


class _Route(NamedTuple):
    """Where a request goes, and who reads what comes back."""

    path: str
    read: Callable[[bytes], ChatReply]


_CHAT = _Route("/chat/completions", read_completion)
_DECISIONS = _Route(DECISIONS_PATH, read_decision)


def _route(request: ChatRequest) -> _Route:
    return _DECISIONS if request.questions else _CHAT


class _Span(NamedTuple):
    """The moments between which a request may go, by the event loop's clock."""

    begin: float
    end: float


@dataclass
class _Connection:
    """What lives as long as one event loop."""

    client: openai.AsyncOpenAI
    pace: RateLimiter
    refused: asyncio.Event
    refusal: EndpointError | None = None
    resume_at_seconds: float = 0.0
    was_reached: bool = False


class OpenAIChatModel:
    """A model behind `endpoint`; the key is read from the environment and kept in no attribute of ours.

    Raises:
        ConfigError: the key is missing or unusable, `base_url` is no plain http(s) address, or `offline` is
            set and the endpoint is not on this machine. Raised before any socket is opened.
    """

    def __init__(self, endpoint: EndpointConfig, offline: bool = False, retry: RetryPolicy = _DEFAULT_RETRY) -> None:
        self._endpoint = endpoint
        self._retry = retry
        self._base_url = resolved_base_url(endpoint)
        self._loopback = is_on_this_machine(self._base_url)
        if not endpoint.api_key_env.isidentifier():
            raise ConfigError(
                "api_key_env is no name of an environment variable (and not the place for the key itself)",
                where="endpoint.api_key_env",
                remedy="write the variable's name, as in OPENAI_API_KEY, and export the key under it",
            )
        require_reachable(self._base_url, offline)
        self._key()
        self._connection: _Connection | None = None

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The model's name, the resolved base URL, and how replies are held to a schema if that is pinned."""
        return endpoint_fingerprint(self._endpoint)

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Send the request until it is answered, refused, or its tries or its deadline are used up."""
        connection = self._open()
        body = self._body(request)
        if not connection.pace.enter_at_once():
            async with context.cancel.interrupting():
                await connection.pace.enter()
        try:
            return await self._generate(connection, request, context, body)
        finally:
            connection.pace.leave()

    async def _generate(
        self, connection: _Connection, request: ChatRequest, context: RequestContext, body: bytes
    ) -> ChatReply:
        clock = asyncio.get_running_loop().time
        allowed_seconds = self._endpoint.timeout_seconds * self._retry.deadline_factor
        fault = _Fault("the deadline passed while the server asked everybody to wait")
        own_resume_at, tries, turned_away = 0.0, 0, 0
        deadline = clock() + allowed_seconds
        while tries < self._retry.max_tries:
            span = _Span(own_resume_at, deadline)
            queued_seconds = await self._queue(connection, request, context.cancel, len(body), span)
            if queued_seconds is None:
                break
            deadline += queued_seconds
            outcome = await self._send(connection, _route(request), body, deadline - clock())
            if isinstance(outcome, ChatReply):
                return outcome
            fault = outcome
            if fault.possibly_billed:
                await context.on_lost_response()
            turned_away += fault.is_free
            tries += not fault.is_free
            if fault.nobody_listens and not connection.was_reached:
                self._give_up_early(fault, tries)
            key = request.digest(self.fingerprint)
            backed_off_seconds = self._retry.wait_seconds(tries + turned_away, key)
            own_resume_at = clock() + max(fault.asked_wait_seconds or 0.0, backed_off_seconds)
            if fault.everybody_waits:
                connection.pace.pushed_back()
                connection.resume_at_seconds = max(connection.resume_at_seconds, own_resume_at)
        return ChatReply(ReplyStatus.ERROR, "", self._endpoint.model, 0, 0, fault.reason)

    async def _queue(
        self, connection: _Connection, request: ChatRequest, cancel: CancelToken, body_chars: int, span: _Span
    ) -> float | None:
        """Wait until the request may go; return for how long it queued by our own pace, None if too long.

        Every sending takes a turn, the first and those after a fault: all of them count for the server. The
        deadline is for the server, and what we make a request queue does not count for it.
        """
        clock = asyncio.get_running_loop().time
        queued_seconds = 0.0
        while True:
            resume_at = max(span.begin, self._shared_resume_at(connection, request))
            if resume_at >= span.end + queued_seconds:
                return None
            await _wait_until(resume_at, connection, cancel)
            joined_at = clock()
            turn_at = connection.pace.turn_at_seconds(body_chars)
            await _wait_until(turn_at, connection, cancel)
            queued_seconds += clock() - joined_at
            # While it queued, the server may have asked everybody to wait: then all take turns anew.
            if turn_at <= joined_at or connection.resume_at_seconds <= clock():
                cancel.raise_if_cancelled()
                return queued_seconds

    def _give_up_early(self, fault: _Fault, tries: int) -> None:
        if tries >= _TRIES_BEFORE_THE_FIRST_ANSWER:
            raise IncompleteError(
                f"nobody answers: {fault.reason}",
                where=self._base_url,
                remedy="start the server, or check endpoint.base_url and the network; then run the same command again",
            )

    async def aclose(self) -> None:
        """Close the connections of the present event loop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.pace.close()
            await connection.client.close()

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what `GET /models` lists; None where there is no such list, or none that can be read."""
        client = self._open().client
        try:
            async with asyncio.timeout(min(self._endpoint.timeout_seconds, _LISTING_SECONDS)):
                response = await client.get("/models", cast_to=httpx2.Response)
            return read_listing(response.content)
        except (TimeoutError, openai.OpenAIError, aiohttp.ClientError):
            return None

    def _shared_resume_at(self, connection: _Connection, request: ChatRequest) -> float:
        # Spread out, or all who waited for the same moment would rush the server again.
        if connection.resume_at_seconds <= asyncio.get_running_loop().time():
            return 0.0
        return connection.resume_at_seconds + self._retry.spread_seconds(request.digest(self.fingerprint))

    def _open(self) -> _Connection:
        if self._connection is None:
            endpoint = self._endpoint
            http = openai.DefaultAioHttpClient(
                # Every request has one time limit for all of it, set where it is sent.
                timeout=None,
                # As many connections as requests in flight, and all are kept.
                limits=httpx2.Limits(max_connections=_UNLIMITED),
                # Neither a proxy from the environment nor a redirect may lead off this machine.
                trust_env=not self._loopback,
                follow_redirects=False,
            )
            client = openai.AsyncOpenAI(
                api_key=self._key(), base_url=self._base_url, max_retries=0, timeout=None, http_client=http
            )
            pace = RateLimiter(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
            self._connection = _Connection(client, pace, asyncio.Event())
        return self._connection

    async def _send(
        self, connection: _Connection, route: _Route, body: bytes, seconds_left: float
    ) -> ChatReply | _Fault:
        limit_seconds = min(self._endpoint.timeout_seconds, seconds_left)
        try:
            # A limit for the whole: a server that drips would never meet one for each read.
            async with asyncio.timeout(limit_seconds):
                response = await connection.client.post(route.path, content=body, cast_to=httpx2.Response)
            connection.was_reached = True
            reply = route.read(response.content)
            connection.pace.answered(_limits_told(response.headers), reply.prompt_tokens + reply.completion_tokens)
        except TimeoutError:
            return _Fault(f"no answer within {limit_seconds:.3g} s", possibly_billed=True)
        except UnreadableBodyError as fault:
            return _Fault(f"unreadable answer: {fault}", possibly_billed=True)
        except openai.APIStatusError as error:
            status_error = error
        except (openai.OpenAIError, aiohttp.ClientError) as error:
            reason, nobody_listens = broken_by(error)
            return _Fault(reason, nobody_listens=nobody_listens, possibly_billed=not nobody_listens)
        else:
            return reply
        # Outside the handler, so that no traceback drags the request and its headers along.
        return self._read_status(connection, status_error)

    def _read_status(self, connection: _Connection, error: openai.APIStatusError) -> ChatReply | _Fault:
        connection.was_reached = True
        if error.status_code == 400 and codes_of(error) & _FILTERED:
            return ChatReply(
                ReplyStatus.CONTENT_FILTER, "", self._endpoint.model, 0, 0, "the provider filtered the prompt"
            )
        if may_pass(error):
            connection.pace.learn(_limits_told(error.response.headers))
            return _Fault(
                f"the server answered HTTP {error.status_code}",
                retry_after_seconds(error.response.headers),
                everybody_waits=error.status_code in (429, 503, 529),
                is_free=error.status_code == 429,
            )
        if error.status_code in _NOT_TAKEN and not has_no_quota(error):
            raise self._not_taken(error)
        connection.refusal = connection.refusal or self._refusal(error)
        connection.refused.set()
        raise connection.refusal

    def _not_taken(self, error: openai.APIStatusError) -> RefusedRequestError:
        said = quoted(error, self._key())
        is_too_long = error.status_code == 413 or bool(codes_of(error) & _TOO_LONG) or "context length" in said
        return RefusedRequestError(
            f"the request is refused (HTTP {error.status_code}: {said})",
            where=self._base_url,
            remedy="check that endpoint.model takes these parameters (a temperature or top_p of null is not "
            "sent), a JSON schema for its reply and, for score: expected, logprobs",
            concerns_item=is_too_long,
        )

    def _refusal(self, error: openai.APIStatusError) -> EndpointError:
        endpoint, status = self._endpoint, error.status_code
        if of_key := refusal_of_key(error, endpoint.api_key_env):
            what, remedy = of_key
        elif status == 403:
            what = f"the key may not use the model {endpoint.model!r}"
            remedy = f"use another model, or a key in {endpoint.api_key_env} that may"
        elif status == 404:
            what = f"there is no model {endpoint.model!r} here"
            remedy = "check endpoint.model, and that endpoint.base_url ends as the provider says (often /v1)"
        else:
            what = "the request is refused"
            remedy = "check endpoint.model and endpoint.base_url"
        said = quoted(error, self._key())
        return EndpointError(f"{what} (HTTP {status}: {said})", where=self._base_url, remedy=remedy)

    async def check(self) -> None:
        """Return: nothing is known of the model before it is asked."""

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request, whichever road it takes."""
        return self._body(request)

    def _body(self, request: ChatRequest) -> bytes:
        if request.questions:
            return _json(decision_body(self._endpoint.model, request)).encode()
        # OpenAI's newer models refuse max_tokens; many compatible servers know nothing else.
        official = (urlsplit(self._base_url).hostname or "").endswith("openai.com")
        turns = (_shared_turn_json(turn) if turn.role == "system" else _turn_json(turn) for turn in request.messages)
        limit = "max_completion_tokens" if official else "max_tokens"
        fields = [
            f'"model":{_json(self._endpoint.model)}',
            f'"messages":[{",".join(turns)}]',
            f'"{limit}":{request.max_tokens}',
        ]
        drawing = {"temperature": request.temperature, "top_p": request.top_p}
        fields += [f'"{name}":{_json(value)}' for name, value in drawing.items() if value is not None]
        if request.response_schema is not None:
            told = f'"name":{_json(request.schema_name)},"strict":true'
            told += f',"schema":{schema_json(request.response_schema)}'
            fields.append(f'"response_format":{{"type":"json_schema","json_schema":{{{told}}}}}')
        elif request.json_mode:
            fields.append('"response_format":{"type":"json_object"}')
        if request.top_logprobs:
            fields.append(f'"logprobs":true,"top_logprobs":{request.top_logprobs}')
        return f"{{{','.join(fields)}}}".encode()

    def _key(self) -> str:
        return api_key(self._endpoint)


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _turn_json(turn: Message) -> str:
    return f'{{"role":{_json(turn.role)},"content":{_json(turn.content)}}}'


_shared_turn_json = lru_cache(maxsize=16)(_turn_json)
"""Of the system message, which many requests share: what it says is written once."""


def _limits_told(headers: httpx2.Headers) -> dict[str, str]:
    """Return the rate-limit headers, names in lower case; looking each up would decode them all each time."""
    told = ((name.lower(), value) for name, value in headers.raw)
    return {name.decode(): value.decode("latin-1") for name, value in told if name.startswith(_LIMIT_HEADERS)}


async def _wait_until(resume_at_seconds: float, connection: _Connection, cancel: CancelToken) -> None:
    """Wait, but for no longer than until the run is cancelled or the endpoint refuses another request for good."""
    if connection.refusal is None and resume_at_seconds > asyncio.get_running_loop().time():
        async with cancel.interrupting():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(resume_at_seconds):
                    await connection.refused.wait()
    if connection.refusal is not None:
        raise connection.refusal
