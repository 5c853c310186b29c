"""A chat model behind an OpenAI-compatible endpoint, through the official client over aiohttp.

How often and when a request is sent, and what each HTTP status means, is decided in `rate_limit`. Bodies are read
leniently, for compatible servers leave fields out, send null, or send more than is documented. Nothing is guessed: a
body without a choice to read is a failed transfer, everything else has a status.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai
from pydantic_core import to_json

from psychocounsel.config.components import EndpointConfig
from psychocounsel.errors import EndpointError, IncompleteError
from psychocounsel.llm.cancel import CancelToken
from psychocounsel.llm.rate_limit import (
    RETRIED,
    OnStatus,
    RateLimiter,
    RetryPolicy,
    on_status,
    quota_is_used_up,
    retry_after_seconds,
)
from psychocounsel.llm.structured_output import kept_choices, mapping_of, text_of
from psychocounsel.llm.types import (
    ENDLESS_BLANKS,
    ChatReply,
    ChatRequest,
    RefusedRequestError,
    RequestContext,
    api_key,
    endpoint_fingerprint,
    filled,
    is_on_this_machine,
    require_reachable,
    resolved_base_url,
    without_secrets,
)
from psychocounsel.types import ReplyStatus

log = logging.getLogger(__name__)

CONTENT_FILTER_CODES = frozenset({"content_filter", "content_policy_violation"})
LONGEST_QUOTE_CHARS = 200

_UNFINISHED = {
    "length": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "max_tokens": (ReplyStatus.CUT, "the reply was cut at its token limit"),
    "model_length": (ReplyStatus.CUT, "the reply was cut at the model's own limit"),  # Mistral's
    "content_filter": (ReplyStatus.CONTENT_FILTER, "the provider's content filter stopped the reply"),
}
_BROKEN_OFF = frozenset({"error", "abort", "insufficient_system_resource"})
"""Why OpenRouter and Mistral, vLLM, and DeepSeek end a reply that is not whole."""
_MOST_TOKENS = 10**12
"""Larger counts are misreported, and would not fit into the journal's columns."""

_OTHER_BODIES = {b"<": "a web page", b"data:": "a stream, which was not asked for"}

DECISIONS_PATH = "/decisions"
_TOO_LONG_CODES = frozenset({"context_length_exceeded", "string_above_max_length"})
_TRIES_WHILE_UNREACHABLE = 2
_LISTING_SECONDS = 15.0
_MANY_BLANKS = 100
_DEFAULT_RETRY = RetryPolicy()
_LIMIT_HEADERS = b"x-ratelimit-"


def codes_of(error: openai.APIStatusError) -> set[str]:
    """Return the names that the server gives to the error."""
    return {str(error.code), str(error.type)}


def quoted(error: openai.APIStatusError, endpoint: EndpointConfig) -> str:
    """Return the server's message on one line, without secrets and not too long."""
    return without_secrets(message_in(error.body) or error.message, endpoint)[:LONGEST_QUOTE_CHARS]


def message_in(error: object) -> str:
    """Return an error's message on one line; OpenAI nests it, other servers send a detail or a bare string."""
    fields = mapping_of(error)
    message = fields.get("message") or fields.get("detail") if fields else error
    return " ".join(text_of(message).split())


def _is_filtered(error: openai.APIStatusError) -> bool:
    """Whether the prompt was filtered; OpenRouter says what it flagged (https://openrouter.ai/docs/errors)."""
    flagged = "flagged_input" in mapping_of(mapping_of(error.body).get("metadata"))
    return error.status_code in (400, 403) and (flagged or not codes_of(error).isdisjoint(CONTENT_FILTER_CODES))


def key_refusal(error: openai.APIStatusError, key_variable: str) -> tuple[str, str] | None:
    """Return what is wrong with the key in an environment variable, and the remedy; None if it is not the key."""
    if quota_is_used_up(error.status_code, codes_of(error)):
        return "the quota of this key is used up", "add credit or raise the limit, then run again"
    if error.status_code == 401:
        return "the key is not accepted", f"put a valid key into the environment variable {key_variable}"
    return None


def broken_connection(error: Exception) -> tuple[str, bool]:
    """Return why a connection failed, and whether there was none at all, so that nothing was sent."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, aiohttp.ClientConnectorError):
            return f"no connection ({cause.os_error})", True
    return f"no connection, or it broke ({type(cause).__name__})", False


@dataclass(frozen=True)
class _FailedTry:
    """A try that brought no reply; the request may be sent again."""

    reason: str
    action: OnStatus
    retry_after_seconds: float = 0.0
    is_unreachable: bool = False


@dataclass
class _Tries:
    """How often a request was tried, and when it may be sent again; times are by the event loop's clock."""

    deadline: float
    resume_at: float = 0.0
    counted: int = 0
    free: int = 0


@dataclass
class _Connection:
    """What lives as long as one event loop; `refused` is set with the error that meets every request.

    `resume_at` is when requests may go after a pause for all of them, by the event loop's clock.
    """

    client: openai.AsyncOpenAI
    limiter: RateLimiter
    refused: asyncio.Event
    refusal: EndpointError | None = None
    resume_at: float = 0.0
    was_reached: bool = False
    was_late: bool = False

    async def wait_until(self, resume_at: float, cancel: CancelToken) -> None:
        """Wait, at most until the run is cancelled or the endpoint refuses another request for good."""
        if self.refusal is None and resume_at > asyncio.get_running_loop().time():
            async with cancel.interrupting():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(resume_at):
                        await self.refused.wait()
        if self.refusal is not None:
            raise self.refusal


class OpenAIChatModel:
    """The model behind `endpoint`. The key is read from the environment, and no attribute of ours keeps it.

    Raises:
        ConfigError: the key is missing or unusable, `base_url` is no plain http(s) address, or the run is
            `offline` and the endpoint is not on this machine. Raised before any socket is opened.
    """

    def __init__(self, endpoint: EndpointConfig, offline: bool = False, retry: RetryPolicy = _DEFAULT_RETRY) -> None:
        self._endpoint = endpoint
        self._retry = retry
        self._base_url = resolved_base_url(endpoint)
        require_reachable(self._base_url, offline)
        api_key(endpoint)
        filled(endpoint.headers)
        self._extra_body: dict[str, Any] = filled(endpoint.extra_body)
        self._connection: _Connection | None = None

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """That of the endpoint."""
        return endpoint_fingerprint(self._endpoint)

    @property
    def base_url(self) -> str:
        """The address."""
        return self._base_url

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Send the request until it is answered, refused, or its tries or its deadline are used up."""
        connection = self._connect()
        body = self.body(request)
        if not connection.limiter.acquire_at_once():
            async with context.cancel.interrupting():
                await connection.limiter.acquire()
        try:
            return await self._send_with_retries(connection, request, body, context)
        finally:
            connection.limiter.release()

    async def _send_with_retries(
        self, connection: _Connection, request: ChatRequest, body: bytes, context: RequestContext
    ) -> ChatReply:
        clock = asyncio.get_running_loop().time
        reason = "the deadline passed while the server asked all requests to wait"
        tries = _Tries(clock() + self._endpoint.timeout_seconds * self._retry.deadline_factor)
        while tries.counted < self._retry.max_tries:
            if not await self._wait_for_slot(connection, request, len(body), tries, context.cancel):
                break
            outcome = await self._send(connection, request, body, tries.deadline - clock())
            if isinstance(outcome, ChatReply):
                return outcome
            reason = outcome.reason
            if outcome.action is OnStatus.RETRY_LOST:
                await context.on_lost_response()
            is_free = outcome.action is OnStatus.SLOW_DOWN_FREE
            tries.free += is_free
            tries.counted += not is_free
            if outcome.is_unreachable and not connection.was_reached and tries.counted >= _TRIES_WHILE_UNREACHABLE:
                raise IncompleteError(
                    f"no server answers: {reason}",
                    where=self._base_url,
                    remedy="start the server, or check endpoint.base_url and the network; then run the same "
                    "command again",
                )
            digest = request.digest(self.fingerprint)
            backoff_seconds = self._retry.wait_seconds(tries.counted + tries.free, digest)
            tries.resume_at = clock() + max(outcome.retry_after_seconds, backoff_seconds)
            if outcome.action in (OnStatus.SLOW_DOWN, OnStatus.SLOW_DOWN_FREE):
                connection.limiter.slow_down()
                connection.resume_at = max(connection.resume_at, tries.resume_at)
        if connection.was_late and not connection.was_reached:
            seconds = self._endpoint.timeout_seconds * self._retry.deadline_factor
            raise IncompleteError(
                f"the server takes requests and has answered none within {seconds:.3g} s",
                where=self._base_url,
                remedy="restart the server, or raise endpoint.timeout_seconds if it is slow; then run the same command "
                "again",
            )
        return ChatReply(ReplyStatus.ERROR, "", self._endpoint.model, 0, 0, reason)

    async def _wait_for_slot(
        self, connection: _Connection, request: ChatRequest, body_chars: int, tries: _Tries, cancel: CancelToken
    ) -> bool:
        """Wait until the request may go; return False if that is not before its deadline.

        Every try takes a slot, for the server counts all of them. The deadline is the server's: what our own limits
        take is added to it.
        """
        clock = asyncio.get_running_loop().time
        while True:
            resume_at = tries.resume_at
            if connection.resume_at > clock():
                # Spread out, or all that waited for the same moment would rush the server again.
                spread_seconds = self._retry.spread_seconds(request.digest(self.fingerprint))
                resume_at = max(resume_at, connection.resume_at + spread_seconds)
            if resume_at >= tries.deadline:
                return False
            await connection.wait_until(resume_at, cancel)
            joined_at = clock()
            slot = connection.limiter.next_slot(body_chars)
            await connection.wait_until(slot, cancel)
            tries.deadline += clock() - joined_at
            # While it queued, the server may have asked all to wait: then all take new slots.
            if slot <= joined_at or connection.resume_at <= clock():
                cancel.raise_if_cancelled()
                return True

    async def _send(
        self, connection: _Connection, request: ChatRequest, body: bytes, seconds_left: float
    ) -> ChatReply | _FailedTry:
        path, read = (DECISIONS_PATH, read_decision) if request.questions else ("/chat/completions", read_completion)
        limit_seconds = min(self._endpoint.timeout_seconds, seconds_left)
        try:
            # A limit for the whole: a slow stream of bytes would never exceed one for each read.
            async with connection.limiter.time_limit(limit_seconds):
                response = await connection.client.post(path, content=body, cast_to=httpx2.Response)
            connection.was_reached = True
            reply = read(response.content)
        except TimeoutError:
            reason = f"no answer within {limit_seconds:.3g} s"
            if not connection.was_late:
                connection.was_late = True
                log.warning(f"{self._base_url}: {reason} (endpoint.timeout_seconds); trying again")
            return _FailedTry(reason, OnStatus.RETRY_LOST)
        except UnreadableBodyError as fault:
            reason = without_secrets(str(fault), self._endpoint)[:LONGEST_QUOTE_CHARS]
            return _FailedTry(f"unreadable answer: {reason}", OnStatus.RETRY_LOST)
        except openai.APIStatusError as error:
            status_error = error
        except (openai.OpenAIError, aiohttp.ClientError) as error:
            reason, is_unreachable = broken_connection(error)
            action = OnStatus.RETRY if is_unreachable else OnStatus.RETRY_LOST
            return _FailedTry(reason, action, is_unreachable=is_unreachable)
        else:
            connection.limiter.on_reply(_limit_headers(response.headers), reply.prompt_tokens + reply.completion_tokens)
            return reply
        # Outside the handler, so that no traceback drags the request and its headers along.
        return self._read_status(connection, status_error)

    def _read_status(self, connection: _Connection, error: openai.APIStatusError) -> ChatReply | _FailedTry:
        connection.was_reached = True
        status, codes = error.status_code, codes_of(error)
        if _is_filtered(error):
            reason = "the provider filtered the prompt"
            return ChatReply(ReplyStatus.CONTENT_FILTER, "", self._endpoint.model, 0, 0, reason)
        action, message = on_status(status, codes), quoted(error, self._endpoint)
        if action in RETRIED:
            headers = error.response.headers
            connection.limiter.read_headers(_limit_headers(headers))
            reason = f"the server answered HTTP {status}: {message}"
            return _FailedTry(reason, action, retry_after_seconds(headers) or 0.0)
        if action is OnStatus.REFUSE_REQUEST:
            raise RefusedRequestError(
                f"the request is refused (HTTP {status}: {message})",
                where=self._base_url,
                remedy="check that endpoint.model takes these parameters (a temperature or top_p of null is not "
                "sent), a JSON schema for its reply and, for score: expected, logprobs",
                concerns_item=status == 413 or bool(codes & _TOO_LONG_CODES) or "context length" in message,
            )
        if connection.refusal is None:
            model, key = self._endpoint.model, self._endpoint.api_key_env
            what, remedy = "the request is refused", "check endpoint.model and endpoint.base_url"
            if status == 403:
                what = f"the key may not use the model {model!r}"
                remedy = f"use another model, or a key in {key} that may"
            elif status == 404:
                what = f"there is no model {model!r} here"
                remedy = "check endpoint.model, and that endpoint.base_url ends as the provider says (often /v1)"
            what, remedy = key_refusal(error, key) or (what, remedy)
            connection.refusal = EndpointError(
                f"{what} (HTTP {status}: {message})", where=self._base_url, remedy=remedy
            )
            connection.refused.set()
        raise connection.refusal

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what `GET /models` lists; None if there is no such list, or none that can be read."""
        client = self._connect().client
        try:
            async with asyncio.timeout(min(self._endpoint.timeout_seconds, _LISTING_SECONDS)):
                response = await client.get("/models", cast_to=httpx2.Response)
            return read_listing(response.content)
        except (TimeoutError, openai.OpenAIError, aiohttp.ClientError):
            return None

    async def aclose(self) -> None:
        """Close the connections of the current event loop."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.limiter.close()
            await connection.client.close()

    def _connect(self) -> _Connection:
        if self._connection is None:
            endpoint = self._endpoint
            limiter = RateLimiter(endpoint.concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
            self._connection = _Connection(open_client(endpoint), limiter, asyncio.Event())
        return self._connection

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request, live or in a batch."""
        fields = decision_fields(request) if request.questions else self._completion_fields(request)
        return to_json({"model": self._endpoint.model, **fields, **self._extra_body})

    def _completion_fields(self, request: ChatRequest) -> dict[str, Any]:
        # OpenAI's newer models refuse max_tokens; many compatible servers know nothing else.
        is_openai = (urlsplit(self._base_url).hostname or "").endswith("openai.com")
        limit = "max_completion_tokens" if is_openai else "max_tokens"
        fields: dict[str, Any] = {"messages": _turns(request), limit: request.max_tokens}
        if request.temperature is not None:
            fields["temperature"] = request.temperature
        if request.top_p is not None:
            fields["top_p"] = request.top_p
        if request.response_schema is not None:
            schema = {"name": request.schema_name, "strict": True, "schema": request.response_schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif request.json_mode:
            fields["response_format"] = {"type": "json_object"}
        if request.top_logprobs:
            fields |= {"logprobs": True, "top_logprobs": request.top_logprobs}
        return fields


def open_client(endpoint: EndpointConfig) -> openai.AsyncOpenAI:
    """Return the official client for an endpoint, without its own retries and time limits.

    Raises:
        ConfigError: the key is missing or unusable.
    """
    base_url = resolved_base_url(endpoint)
    http = openai.DefaultAioHttpClient(
        timeout=None,
        # No limit: as many connections as requests in flight, and all are kept.
        limits=httpx2.Limits(max_connections=0),
        # Neither a proxy from the environment nor a redirect may lead off this machine.
        trust_env=not is_on_this_machine(base_url),
        follow_redirects=False,
    )
    return openai.AsyncOpenAI(
        api_key=api_key(endpoint),
        base_url=base_url,
        default_headers=filled(endpoint.headers),
        max_retries=0,
        timeout=None,
        http_client=http,
    )


def _turns(request: ChatRequest) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in request.messages]


def _limit_headers(headers: httpx2.Headers) -> dict[str, str]:
    """Return the rate-limit headers, names in lower case; looking each up would decode them all each time."""
    raw = ((name.lower(), value) for name, value in headers.raw)
    return {name.decode(): value.decode("latin-1") for name, value in raw if name.startswith(_LIMIT_HEADERS)}


# Bodies of responses.


class UnreadableBodyError(ValueError):
    """A body with status 200 that holds no reply."""


def read_completion(body: bytes) -> ChatReply:
    """Return the reply in a body of `POST /chat/completions`.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of choices.
    """
    payload, choices = _list_in(body, "choices")
    choice = mapping_of(choices[0] if choices else None)
    finish = text_of(choice.get("finish_reason"))
    if finish in _BROKEN_OFF:
        raise UnreadableBodyError(f"the server broke the reply off{_quoted_after_colon(choice.get('error'))}")
    message = mapping_of(choice.get("message"))
    content = cast("object", message.get("content"))
    if isinstance(content, list):  # some servers send a list of parts
        text = "".join(text_of(mapping_of(part).get("text")) for part in cast("list[Any]", content))
    else:
        text = text_of(content)
    if refusal := text_of(message.get("refusal")):
        status, text, reason = ReplyStatus.REFUSAL, refusal, "the model refused"
    elif finish in _UNFINISHED:
        status, reason = _UNFINISHED[finish]
        if status is ReplyStatus.CUT and (blanks := len(text) - len(text.rstrip())) >= _MANY_BLANKS:
            # Where a grammar allows blanks between JSON fields, a small model may write nothing else.
            reason += f" after {blanks} {ENDLESS_BLANKS}"
    elif text.strip():
        status, reason = ReplyStatus.VALID, ""
    else:
        status, reason = ReplyStatus.EMPTY, "the reply has no text"
    if not text and (message.get("reasoning") or message.get("reasoning_content")):  # vLLM's name for it; an older one
        reason += ", only thoughts: allow it more tokens, have it not think, or correct the server's reasoning parser"
    kept = kept_choices(mapping_of(choice.get("logprobs")).get("content"), text)
    return _reply(status, text, reason, payload, "prompt_tokens", "completion_tokens", kept)


def decision_fields(request: ChatRequest) -> dict[str, Any]:
    """Return what `POST /decisions` is sent beside the model; it takes neither a temperature nor a token limit."""
    return {"input": _turns(request), "questions": list(request.questions)}


def read_decision(body: bytes) -> ChatReply:
    """Return the reply in a body of `POST /decisions`; its text is the list of answers, as JSON.

    It is a refusal if the model declined every question; single declined answers are the parser's business.

    Raises:
        UnreadableBodyError: it is no JSON, an error in disguise, or holds no list of answers.
    """
    payload, answers = _list_in(body, "answers")
    status, reason = ReplyStatus.VALID, ""
    if not answers:
        status, reason = ReplyStatus.EMPTY, "the reply has no answers"
    elif all(mapping_of(answer).get("type") == "refusal" for answer in answers):
        status, reason = ReplyStatus.REFUSAL, "the model declined every question"
    return _reply(status, json.dumps(answers, separators=(",", ":")), reason, payload, "input_tokens", "output_tokens")


def _list_in(body: bytes, name: str) -> tuple[Mapping[str, Any], list[Any]]:
    """Return a body and the list in it under a name."""
    payload = _object(body)
    listed = payload.get(name)
    if not isinstance(listed, list):
        error = f"the body holds an error{_quoted_after_colon(payload.get('error'))}"
        raise UnreadableBodyError(error if "error" in payload else f"no {name}")
    return payload, cast("list[Any]", listed)


def _reply(
    status: ReplyStatus, text: str, reason: str, payload: Mapping[str, Any], sent: str, received: str, choices: str = ""
) -> ChatReply:
    usage = mapping_of(payload.get("usage"))
    cached = _count(mapping_of(usage.get(f"{sent}_details")).get("cached_tokens"))
    model = intern(text_of(payload.get("model")))  # one string for all replies, not one for each
    prompt, completion = _count(usage.get(sent)), _count(usage.get(received))
    if prompt:  # some servers count thoughts, which are billed as well, in the total alone
        completion = max(completion, _count(usage.get("total_tokens")) - prompt)
    return ChatReply(status, text, model, prompt, completion, reason, cached, choices=choices)


def read_listing(body: bytes) -> list[Mapping[str, Any]] | None:
    """Return the entries that a body of `GET /models` lists; None if it holds no such list."""
    try:
        _, listed = _list_in(body, "data")
    except UnreadableBodyError:
        return None
    return [each for each in map(mapping_of, listed) if isinstance(each.get("id"), str)]


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        return mapping_of(json.loads(body))
    except (ValueError, RecursionError):
        what = next((what for head, what in _OTHER_BODIES.items() if body.lstrip().startswith(head)), "no JSON")
        raise UnreadableBodyError(f"the body is {what}") from None


def _quoted_after_colon(error: object) -> str:
    message = message_in(error)
    return f": {message}" if message else ""


def _count(value: object) -> int:
    """Return a number of tokens, or 0 in the place of anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS else 0
