"""ChatRequest -> ChatRequest that the server can keep to: JSON schema, JSON mode, or plain words.

What a server can do is told by the content of its replies and not by their status, for some accept a schema
and ignore it. The first request goes out with its schema. A reply that is what the schema says settles it at
no cost; if it is not, or if the server refuses the schema, two questions that no model answers in JSON of its
own accord find out what the server enforces. What is found out is kept beside the journal. A reply that came
is handed on at once: it is paid for, and must not wait for those questions or be lost with them.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from psychocounsel.errors import IncompleteError, PsychoCounselError
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

_SCHEMA_IN_WORDS = "The whole reply is one JSON object that fits this JSON schema, and nothing else:"
_FRUIT: JSON = {"type": "string", "enum": ["quince", "medlar"]}
_PROBE_SCHEMA: dict[str, JSON] = {
    "type": "object",
    "properties": {"fruit": _FRUIT},
    "required": ["fruit"],
    "additionalProperties": False,
}
# JSON mode wants the word JSON in the messages.
_PROBE = (Message("user", "Say good morning in one short sentence, in plain words and without any JSON."),)


class Replies(StrEnum):
    """How a server is held to a schema; `JSON_OBJECT` and `TEXT` are told the schema in words."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    TEXT = "text"


class Endpoint(ChatModel, Protocol):
    """A chat model behind an address: it holds connections and lists its models."""

    async def aclose(self) -> None:
        """Close the connections of the present event loop."""
        ...

    async def listed_models(self) -> list[Mapping[str, Any]] | None:
        """Return what the models endpoint lists; None where there is no such list."""
        ...

    async def check(self) -> None:
        """Raise what is wrong with the model, as far as it can be told before the first request."""
        ...

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request."""
        ...


class Capabilities:
    """What is known of servers, in a JSON file: `{"MODEL at BASE_URL": "json_schema"}`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, fingerprint: Mapping[str, str]) -> Replies | None:
        """Return what is known of a model, or None."""
        known = self._read().get(_name(fingerprint))
        return Replies(known) if known in set(Replies) else None

    def remember(self, fingerprint: Mapping[str, str], replies: Replies) -> None:
        """Keep what was found out of a model."""
        known = {**self._read(), _name(fingerprint): replies.value}
        write_bytes(self._path, json.dumps(known, indent=2, sort_keys=True).encode())

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}  # found out again
        return cast("dict[str, str]", known) if isinstance(known, dict) else {}


def enforces_schemas(base_url: str) -> bool:
    """Whether a server is known to hold its models to a schema."""
    return (urlsplit(base_url).hostname or "") == "api.openai.com"


def fitted(request: ChatRequest, replies: Replies) -> ChatRequest:
    """Return the request as a server is asked that can do no more than `replies`."""
    if request.response_schema is None or replies is Replies.JSON_SCHEMA:
        return request
    schema = json.dumps(request.response_schema, ensure_ascii=False, default=dict[str, Any])
    return replace(
        request,
        messages=_with_instruction(request.messages, f"{_SCHEMA_IN_WORDS}\n{schema}"),
        response_schema=None,
        json_mode=replies is Replies.JSON_OBJECT,
    )


class StructuredOutputModel:
    """An endpoint of unknown abilities, asked in the way that suits it.

    Its fingerprint is the endpoint's: what the server can do is its own affair, as its weights are.
    """

    def __init__(self, endpoint: Endpoint, capabilities: Capabilities, pinned: Replies | None = None) -> None:
        self._endpoint = endpoint
        self._capabilities = capabilities
        self._known = pinned or capabilities.of(endpoint.fingerprint)
        self._probing = asyncio.Lock()
        self._settling: asyncio.Task[None] | None = None

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """The fingerprint of the endpoint."""
        return self._endpoint.fingerprint

    @property
    def is_known(self) -> bool:
        """Whether it is known what the server can do."""
        return self._known is not None

    def body(self, request: ChatRequest) -> bytes:
        """Return what is sent for a request, as far as is known what the server can do."""
        return self._endpoint.body(fitted(request, self._known or Replies.JSON_SCHEMA))

    async def check(self) -> None:
        """Raise what is wrong with the model, as `generate` would; connections are closed again."""
        try:
            await self._endpoint.check()
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connections once it is settled what the server can do; what was learned stays."""
        await self._settled()
        await self._endpoint.aclose()
        self._probing = asyncio.Lock()  # the next event loop is another one

    async def generate(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Ask as the server can keep to; errors as those of the endpoint."""
        if request.response_schema is None:
            return await self._endpoint.generate(request, context)
        await self._settled()
        if self._known is not None:
            return await self._endpoint.generate(fitted(request, self._known), context)
        try:
            reply = await self._endpoint.generate(request, context)
        except RefusedRequestError as refusal:
            if refusal.concerns_item:
                raise
            return await self._generate_without_schema(request, context)
        if reply.status is ReplyStatus.VALID and self._known is None:
            self._learn_from(reply.text, request, context)
        return reply

    def _learn_from(self, text: str, request: ChatRequest, context: RequestContext) -> None:
        if fits(text, request.response_schema or {}):
            self._learn(Replies.JSON_SCHEMA)
        elif self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle(request, context))

    async def _settle(self, request: ChatRequest, context: RequestContext) -> None:
        # Whatever is wrong with the endpoint or the run, the next request meets it too.
        with contextlib.suppress(PsychoCounselError):
            async with self._probing:
                if self._known is None and (found := await self._probe(request, context)) is not None:
                    self._learn(found)

    async def _settled(self) -> None:
        """Return when nobody is finding out any more what the server can do."""
        settling = self._settling
        if settling is not None and not settling.done():
            await asyncio.wait({settling})

    async def _generate_without_schema(self, request: ChatRequest, context: RequestContext) -> ChatReply:
        """Ask in JSON mode, then in words; what is answered at all is remembered, and so is not refused."""
        async with self._probing:
            found = self._known
            if found in (None, Replies.JSON_SCHEMA):
                found = Replies.JSON_OBJECT if await self._has_json_mode(request, context) else Replies.TEXT
        reply = await self._endpoint.generate(fitted(request, found), context)
        if self._known is None and reply.answered:
            self._learn(found)
        return reply

    async def _probe(self, request: ChatRequest, context: RequestContext) -> Replies | None:
        """Return what the server enforces; None where it did not answer."""
        probe = replace(request, messages=_PROBE, response_schema=_PROBE_SCHEMA, schema_name="probe")
        reply = await self._send_probe(probe, context)
        if not reply.answered:
            return None
        if fits(reply.text, _PROBE_SCHEMA):
            return Replies.JSON_SCHEMA
        return Replies.JSON_OBJECT if await self._has_json_mode(request, context) else Replies.TEXT

    async def _has_json_mode(self, request: ChatRequest, context: RequestContext) -> bool:
        probe = replace(request, messages=_PROBE, response_schema=None, json_mode=True)
        try:
            reply = await self._send_probe(probe, context)
        except RefusedRequestError:
            return False
        return isinstance(_loaded(reply.text), dict)

    async def _send_probe(self, probe: ChatRequest, context: RequestContext) -> ChatReply:
        reply = await self._endpoint.generate(probe, context)
        if reply.answered:
            context.on_probe(reply)
        return reply

    def _learn(self, found: Replies) -> None:
        self._known = found
        # A reply was just paid for; what cannot be kept of the server is found out again.
        with contextlib.suppress(IncompleteError):
            self._capabilities.remember(self.fingerprint, found)


def fits(text: str, schema: Mapping[str, JSON]) -> bool:
    """Whether a text is bare JSON of a schema of objects, choices, text and whole numbers."""
    return _fits(_loaded(text), schema)


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


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _with_instruction(messages: tuple[Message, ...], words: str) -> tuple[Message, ...]:
    first, *others = messages
    if first.role != "system":
        return (Message("system", words), *messages)
    return (Message("system", f"{first.content}\n\n{words}"), *others)


def _name(fingerprint: Mapping[str, str]) -> str:
    return f"{fingerprint['model']} at {fingerprint['base_url']}"
