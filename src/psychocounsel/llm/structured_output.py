"""Structured output from servers that enforce a JSON schema, that have a JSON mode, or that have neither.

A model that the server does not list, or no longer has, is refused before the first request.

What a server can do shows in the content of its replies and not in their status, for some accept a schema and
ignore it. The first request goes out with its schema. If the reply fits it, the server is taken to enforce it, at
no cost. If it does not, or if the server refuses the schema, at most two probes, which no model answers in JSON of
its own accord, find out what the server enforces. The result is kept in a file next to the journal.
"""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from psychocounsel.errors import EndpointError, IncompleteError, PsychoCounselError, first_of
from psychocounsel.llm.types import (
    JSON,
    ChatModel,
    ChatReply,
    ChatRequest,
    Message,
    RefusedRequestError,
    RequestContext,
)
from psychocounsel.store.files import write_bytes
from psychocounsel.types import ReplyStatus

log = logging.getLogger(__name__)

MOST_ALTERNATIVES = 20
"""`top_logprobs` at most, by the protocol."""

_END_KEYS = ("shutdown_date", "deprecation_date", "expiration_date", "deprecation")
_MOST_NAMES = 8
_LEAST_LOGPROB = -50.0
_DECIMALS = 6
_SCHEMA_IN_WORDS = "The whole reply is one JSON object that fits this JSON schema, and nothing else:"
_PROBE_SCHEMA: dict[str, JSON] = {
    "type": "object",
    "properties": {"fruit": {"type": "string", "enum": ["quince", "medlar"]}},
    "required": ["fruit"],
    "additionalProperties": False,
}
# JSON mode wants the word JSON in the messages.
_PROBE = (Message("user", "Say good morning in one short sentence, in plain words and without any JSON."),)


class OutputMode(StrEnum):
    """How a server is held to a schema; in `JSON_OBJECT` and `TEXT` the prompt contains the schema."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    TEXT = "text"


class Endpoint(ChatModel, Protocol):
    """A chat model behind an address."""

    @property
    def base_url(self) -> str:
        """The address, which need not be part of the fingerprint."""
        ...

    async def aclose(self) -> None:
        """Close the connections of the current event loop."""

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what the endpoint lists; None if there is no such list."""
        ...

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request, live or in a batch."""
        ...


class Capabilities:
    """The output modes of servers, in a JSON file: `{"MODEL at BASE_URL": "json_schema"}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, fingerprint: Mapping[str, str]) -> OutputMode | None:
        """Return the output mode of a model, or None if it is not known."""
        known = self._read().get(_name(fingerprint))
        return OutputMode(known) if known in list(OutputMode) else None

    def remember(self, fingerprint: Mapping[str, str], mode: OutputMode) -> None:
        """Keep the output mode of a model."""
        known = {**self._read(), _name(fingerprint): mode.value}
        write_bytes(self._path, json.dumps(known, indent=2, sort_keys=True).encode())

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}  # it is found out again
        return cast("dict[str, str]", known) if isinstance(known, dict) else {}


def in_mode(request: ChatRequest, mode: OutputMode) -> ChatRequest:
    """Return the request for a server that can do no more than `mode`."""
    if request.response_schema is None or mode is OutputMode.JSON_SCHEMA:
        return request
    schema = json.dumps(request.response_schema, ensure_ascii=False, default=dict[str, Any])
    instruction = f"{_SCHEMA_IN_WORDS}\n{schema}"
    first, *others = request.messages
    if first.role == "system":
        messages = (Message("system", f"{first.content}\n\n{instruction}"), *others)
    else:
        messages = (Message("system", instruction), *request.messages)
    return replace(request, messages=messages, response_schema=None, json_mode=mode is OutputMode.JSON_OBJECT)


class StructuredOutputModel:
    """Sends each request in the output mode that the endpoint enforces, and finds that mode out.

    Before the first request it reads the endpoint's list of models. Its fingerprint is the endpoint's: what a server
    can do is no more part of it than the server's version.
    """

    def __init__(self, endpoint: Endpoint, capabilities: Capabilities, pinned: OutputMode | None = None) -> None:
        self._endpoint = endpoint
        self._capabilities = capabilities
        self._known = pinned or capabilities.of(endpoint.fingerprint)
        self._is_checked = False
        self._asking = asyncio.Lock()  # what the server lists or enforces
        self._learning: asyncio.Task[None] | None = None

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The endpoint's fingerprint."""
        return self._endpoint.fingerprint

    @property
    def base_url(self) -> str:
        """The endpoint's address."""
        return self._endpoint.base_url

    @property
    def is_known(self) -> bool:
        """Whether the server's output mode is known."""
        return self._known is not None

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request in the output mode known so far."""
        return self._endpoint.body(in_mode(request, self._known or OutputMode.JSON_SCHEMA))

    async def check(self) -> None:
        """Read the endpoint's list of models, once.

        Raises:
            EndpointError: the endpoint does not list the model, or lists it as shut down.
        """
        if not self._is_checked:
            async with self._asking:
                if not self._is_checked and (end := await end_of_life(self._endpoint)) is not None:
                    log.warning(f"the model {self.fingerprint['model']} will be shut down on {end}; choose a successor")
                self._is_checked = True

    async def aclose(self) -> None:
        """Close the connections, after any probe in flight; what was learned stays."""
        await self._finish_learning()
        await self._endpoint.aclose()
        self._asking = asyncio.Lock()  # the next event loop is a different one

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Return the reply; errors are the endpoint's and those of `check`.

        A reply is returned at once, before any probe: it is paid for, and must not be lost with a probe.
        """
        await self.check()
        if request.response_schema is None:
            return await self._endpoint.generate(request, context)
        await self._finish_learning()
        if self._known is not None:
            return await self._endpoint.generate(in_mode(request, self._known), context)
        try:
            reply = await self._endpoint.generate(request, context)
        except RefusedRequestError as refusal:
            if refusal.concerns_item:
                raise
            return await self._generate_without_schema(request, context)
        if reply.status is ReplyStatus.VALID and self._known is None:
            if fits(reply.text, request.response_schema):
                self._learn(OutputMode.JSON_SCHEMA)
            elif self._learning is None or self._learning.done():
                self._learning = asyncio.create_task(self._learn_by_probes(request, context))
        return reply

    async def _learn_by_probes(self, request: ChatRequest, context: RequestContext) -> None:
        # Whatever is wrong with the endpoint or the run, the next request meets it too.
        with contextlib.suppress(PsychoCounselError):
            async with self._asking:
                if self._known is not None:
                    return
                probe = replace(request, messages=_PROBE, response_schema=_PROBE_SCHEMA, schema_name="probe")
                reply = await self._send_probe(probe, context)
                if reply.answered and fits(reply.text, _PROBE_SCHEMA):
                    self._learn(OutputMode.JSON_SCHEMA)
                elif reply.answered and (found := await self._mode_without_schema(request, context)) is not None:
                    self._learn(found)

    async def _finish_learning(self) -> None:
        if self._learning is not None and not self._learning.done():
            await asyncio.wait({self._learning})

    async def _generate_without_schema(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Use JSON mode if the server has it, else plain text; remember the mode once it is answered."""
        async with self._asking:
            found = self._known
            if found in (None, OutputMode.JSON_SCHEMA):
                found = await self._mode_without_schema(request, context)
        reply = await self._endpoint.generate(in_mode(request, found or OutputMode.TEXT), context)
        if self._known is None and found is not None and reply.answered:
            self._learn(found)
        return reply

    async def _mode_without_schema(self, request: ChatRequest, context: RequestContext) -> OutputMode | None:
        """Return the mode that a probe shows; None if it is not answered."""
        probe = replace(request, messages=_PROBE, response_schema=None, json_mode=True)
        try:
            reply = await self._send_probe(probe, context)
        except RefusedRequestError:
            return OutputMode.TEXT
        if not reply.answered:
            return None
        return OutputMode.JSON_OBJECT if isinstance(loaded(reply.text), dict) else OutputMode.TEXT

    async def _send_probe(self, probe: ChatRequest, context: RequestContext) -> ChatReply:
        reply = await self._endpoint.generate(probe, context)
        if reply.answered:
            context.on_probe(reply)
        return reply

    def _learn(self, found: OutputMode) -> None:
        self._known = found
        # A reply was just paid for; a mode that cannot be written is found out again.
        with contextlib.suppress(IncompleteError):
            self._capabilities.remember(self.fingerprint, found)


def fits(text: str, schema: Mapping[str, JSON]) -> bool:
    """Whether a text is bare JSON of a schema of objects, enums, strings, integers, booleans and arrays."""
    return _fits(loaded(text), schema)


def _fits(value: object, schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return any(type(value) is type(each) and value == each for each in schema["enum"])
    if schema.get("type") == "object":
        parts = cast("Mapping[str, Mapping[str, Any]]", schema.get("properties", {}))
        if not isinstance(value, dict) or value.keys() != parts.keys():
            return False
        fields = cast("dict[str, object]", value)
        return all(_fits(fields[name], part) for name, part in parts.items())
    wanted = {"string": str, "integer": int, "boolean": bool, "array": list}.get(str(schema.get("type")))
    return wanted is None or type(value) is wanted


def loaded(text: str | bytes) -> object:
    """Return the value of a JSON text, or None if it is not one."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _name(fingerprint: Mapping[str, str]) -> str:
    return f"{fingerprint['model']} at {fingerprint['base_url']}"


# The models that an endpoint lists.


async def end_of_life(endpoint: Endpoint, may_be_absent: bool = False) -> date | None:
    """Return the future day on which an endpoint's model is shut down; None if its list names no day.

    Raises:
        EndpointError: the endpoint does not list the model, unless it `may_be_absent`, or lists it as shut down.
    """
    listed = await endpoint.listed_models() or []
    model, base_url = endpoint.fingerprint["model"], endpoint.base_url
    if may_be_absent and not any(each.get("id") == model for each in listed):
        return None
    names = {str(each.get("id")): each for each in listed}
    entry = names.get(model, names.get(f"{model}:latest"))
    if names and entry is None:
        raise EndpointError(
            f"there is no model {model!r} here: unknown, or retired",
            where=base_url,
            remedy=f"set endpoint.model to one of {_some_names(listed)}",
        )
    end = _shutdown_date(entry or {})
    if end is not None and _is_past(end):
        raise EndpointError(
            f"the model {model!r} was shut down on {end}",
            where=base_url,
            remedy=f"set endpoint.model to a successor, one of {_some_names(listed)}",
        )
    return end


def _shutdown_date(entry: Mapping[str, Any]) -> date | None:
    for key in _END_KEYS:
        with contextlib.suppress(LookupError, TypeError, ValueError):
            return date.fromisoformat(entry[key][:10])
    return None


def _is_past(end: date) -> bool:
    return end <= datetime.now(UTC).date()


def _some_names(listed: Sequence[Mapping[str, Any]]) -> str:
    ends = {str(each.get("id")): _shutdown_date(each) for each in listed}
    names = sorted(name for name, end in ends.items() if end is None or not _is_past(end))
    return first_of(names, _MOST_NAMES) or "none"


# JSON values that may be anything.


def mapping_of(value: object) -> Mapping[str, Any]:
    """Return a JSON object, or an empty one in the place of anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def text_of(value: object) -> str:
    """Return a string that can be written to files, or an empty one in the place of anything else."""
    if not isinstance(value, str):
        return ""
    # No file and no server takes a lone surrogate; it becomes U+FFFD here.
    return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


# Log-probabilities of the numbers in a reply.


class TokenChoice(NamedTuple):
    """A token, the character of the reply's text at which it begins, and its alternatives, itself included.

    Log-probabilities are natural logarithms.
    """

    start: int
    token: str
    alternatives: tuple[tuple[str, float], ...]


def kept_choices(tokens: object, text: str) -> str:
    """Return the token choices at the numbers of a reply, as JSON to keep; empty if the server sent no tokens.

    `tokens` is `choices[0].logprobs.content`, whatever it is. If they do not add up to the text, none is kept.
    """
    if not isinstance(tokens, list) or not tokens:
        return ""
    entries = [mapping_of(each) for each in cast("list[Any]", tokens)]
    choices = [
        [start, str(entry.get("token")), _alternatives(entry)]
        for start, entry in _digit_tokens(entries, text.encode("utf-8", "replace"))
        if _begins_number(str(entry.get("token")), text[:start])
    ]
    return json.dumps(choices, separators=(",", ":"))


def read_choices(kept: str) -> list[TokenChoice]:
    """Return the choices that `kept_choices` wrote."""
    if not kept:
        return []
    return [
        TokenChoice(start, token, tuple((other, logprob) for other, logprob in alternatives))
        for start, token, alternatives in json.loads(kept)
    ]


def _digit_tokens(entries: list[Mapping[str, Any]], text: bytes) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the tokens that hold a digit, with the character of the text at which each begins."""
    pieces = [_token_bytes(entry) for entry in entries]
    # Thoughts may stand before the text and an end mark after it.
    offset = b"".join(pieces).rfind(text)
    at = -offset
    for piece, entry in zip(pieces, entries, strict=True):
        if offset >= 0 and 0 <= at < len(text) and any(48 <= byte <= 57 for byte in piece):
            yield len(text[:at].decode("utf-8", "ignore")), entry
        at += len(piece)


def _token_bytes(entry: Mapping[str, Any]) -> bytes:
    sent = entry.get("bytes")
    if isinstance(sent, list):
        try:
            return bytes(cast("list[int]", sent))
        except (TypeError, ValueError):
            pass
    token = entry.get("token")
    return token.encode("utf-8", "replace") if isinstance(token, str) else b""


def _begins_number(token: str, before: str) -> bool:
    """Whether a token writes the first digit of a JSON value."""
    digit = re.search("[0-9]", token)
    return digit is not None and (before + token[: digit.start()]).rstrip(" \t\r\n-").endswith(":")


def _alternatives(entry: Mapping[str, Any]) -> list[tuple[str, float]]:
    others = entry.get("top_logprobs")
    found: dict[str, float] = {}
    for each in (*map(mapping_of, cast("list[Any]", others) if isinstance(others, list) else []), entry):
        token, logprob = each.get("token"), each.get("logprob")
        if not isinstance(token, str) or not isinstance(logprob, int | float):
            continue
        if re.search("[0-9]", token) and logprob > _LEAST_LOGPROB:
            found.setdefault(token, round(float(min(logprob, 0.0)), _DECIMALS))
    return list(found.items())
