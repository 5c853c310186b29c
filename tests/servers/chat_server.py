"""A scripted chat endpoint on 127.0.0.1 that counts what it was asked and what it finished sending.

Speaks `POST /v1/chat/completions`, and `GET /v1/models` where `models` are given. A script decides on every
request: a `Reply`, or a `Fault` of HTTP or of the wire. Without one, it answers whatever the schema asks for,
the same words for the same messages. In a test:

    with ChatServer(script) as server: ... server.base_url ... server.count
"""

import asyncio
import hashlib
import json
import math
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

MODEL = "scripted-judge-2025-01-01"


@dataclass(frozen=True)
class Reply:
    """A chat completion; `text` None means that the message has no content."""

    text: str | None
    finish_reason: str | None = "stop"
    refusal: str | None = None
    model: str = MODEL
    delay_seconds: float = 0.0
    prompt_tokens: int = 11
    completion_tokens: int = 7


@dataclass(frozen=True)
class Fault:
    """Anything else: a status, a broken body (`cut`), a dead line (`reset`, `hang`), a slow one (`drip`)."""

    status: int = 200
    body: bytes = b'{"error": {"message": "scripted fault"}}'
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    cut: bool = False
    reset: bool = False
    hang: bool = False
    drip_seconds: float = 0.0
    delay_seconds: float = 0.0


Script = Callable[[Mapping[str, Any], int], Reply | Fault]


def error_fault(status: int, message: str, code: str = "", headers: Mapping[str, str] | None = None) -> Fault:
    """Return a fault in OpenAI's shape of an error."""
    body = json.dumps({"error": {"message": message, "type": code, "code": code}}).encode()
    return Fault(status=status, body=body, headers=headers or {})


GIVEN_UP = error_fault(500, "come tomorrow", headers={"Retry-After": "86400"})
"""A fault that is not waited for: the request is lost at once."""


@dataclass
class Received:
    """One request to `/v1/chat/completions`; `sent_at` is set once the whole answer was handed over."""

    number: int
    body: Mapping[str, Any]
    authorization: str
    received_at: float
    sent_at: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def answer_by_schema(request: Mapping[str, Any], number: int) -> Reply:
    """Fill the request's schema by a hash of its messages; without a schema, say a sentence."""
    del number
    seed = hashlib.sha256(json.dumps(request["messages"]).encode()).hexdigest()
    schema = request.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is None:
        return Reply(f"It sounds as if this weighs on you. What would help most? ({seed[:8]})")
    prompt = "\n".join(message["content"] for message in request["messages"])
    return Reply(json.dumps(_fill(schema, seed, "", prompt)))


def _fill(schema: Mapping[str, Any], seed: str, path: str, prompt: str) -> Any:
    draw = int(hashlib.sha256(f"{seed}{path}".encode()).hexdigest()[:8], 16)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][draw % len(schema["enum"])]
    match schema.get("type"):
        case "object":
            parts = schema.get("properties", {}).items()
            return {name: _fill(part, seed, f"{path}/{name}", prompt) for name, part in parts}
        case "array":
            wanted = range(schema.get("minItems", 1))
            return [_fill(schema["items"], seed, f"{path}/{index}", prompt) for index in wanted]
        case "integer" | "number":
            low, high = schema.get("minimum", 1), schema.get("maximum", 5)
            return low + draw % (high - low + 1)
        case "boolean":
            return bool(draw % 2)
        case _:
            echo = re.search(r'"?item_id"?\s*[:=]\s*"?([\w.-]+)', prompt)
            return echo.group(1) if path.endswith("/item_id") and echo else f"because ({seed[:6]})"


class _Line(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class ChatServer:
    """Serves from a thread of its own until the `with` block ends; all its sockets are closed then."""

    def __init__(self, script: Script = answer_by_schema, models: Sequence[Mapping[str, Any]] | None = None) -> None:
        self.script = script
        self.models = models
        self.hold_from = math.inf  # requests from this number on wait until it is raised
        self.received: list[Received] = []
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def count(self) -> int:
        return len(self.received)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        self._lines: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for line in self._lines:
            line.cancel()
        await asyncio.gather(*self._lines, return_exceptions=True)
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._talk(_Line(reader, writer)))
        self._lines.add(task)
        task.add_done_callback(self._lines.discard)

    async def _talk(self, line: _Line) -> None:
        try:
            # A client that was killed in the middle breaks the line; that is no fault of the server.
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._exchange(line):
                    pass
        finally:
            line.writer.close()
            with suppress(OSError):
                await line.writer.wait_closed()

    async def _exchange(self, line: _Line) -> bool:
        """Answer one request; return whether the line stays open."""
        head = (await line.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *fields = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)}
        body = await line.reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = request_line.split(" ")
        if (method, path) == ("GET", "/v1/models") and self.models is not None:
            listing = {"object": "list", "data": list(self.models)}
            await _send(line, Fault(body=json.dumps(listing).encode()))
            return True
        if method != "POST" or path not in ("/v1/chat/completions", "/v1/decisions"):
            await _send(line, error_fault(404, f"no such path: {path}"))
            return True
        return await self._complete(line, json.loads(body), headers)

    async def _complete(self, line: _Line, body: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
        authorization = headers.get("authorization", "")
        request = Received(self.count, body, authorization, time.monotonic(), headers=headers)
        self.received.append(request)
        answer = self.script(body, request.number)
        await asyncio.sleep(answer.delay_seconds)
        while request.number >= self.hold_from:
            await asyncio.sleep(0.005)
        if isinstance(answer, Reply):
            answer = Fault(body=json.dumps(completion_of(answer, request.number)).encode())
        open_still = await _send(line, answer)
        request.sent_at = time.monotonic()
        return open_still


async def _send(line: _Line, answer: Fault) -> bool:
    if answer.hang:
        await line.reader.read()  # until the client gives up
        return False
    if answer.reset:
        line.writer.transport.abort()
        return False
    extra = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
    head = f"HTTP/1.1 {answer.status} Scripted\r\nContent-Type: application/json\r\n{extra}"
    line.writer.write(f"{head}Content-Length: {len(answer.body)}\r\n\r\n".encode())
    if answer.drip_seconds:
        for byte in answer.body:
            line.writer.write(bytes([byte]))
            await line.writer.drain()
            await asyncio.sleep(answer.drip_seconds)
    else:
        line.writer.write(answer.body[: len(answer.body) // 2] if answer.cut else answer.body)
    await line.writer.drain()
    return not answer.cut


def completion_of(reply: Reply, number: int) -> dict[str, Any]:
    """Return the body of a chat completion."""
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": {**counts, "total_tokens": sum(counts.values())},
    }
