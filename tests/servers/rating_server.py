"""A chat endpoint that costs next to nothing: ratings after a fixed latency, faults by share, a bill by item.

One `asyncio.Protocol` and no library, for a client's speed is measured against it and it must be the faster
of the two. It answers every `POST .../chat/completions` with a reply that fits the request's own schema and
echoes its item id. `GET /bill` returns what was billed. In a test or a benchmark:

    with serving(latency_seconds=0.1) as server: ... server.base_url ... server.bill()
"""

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

MODEL = "rating-server-1"
KINDS = ("429", "500", "drop", "badjson")
_ITEM_ID = re.compile(rb'item_id\\*"\s*:\s*\\*"([0-9A-Za-z_.-]+)')
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_MINUTE_SECONDS = 60.0
_TOKENS = {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960}


class Bill(NamedTuple):
    """What the server answered and would charge for.

    `sent` has (item id, when its reply was wholly sent) in order, `asked` when each request was wholly there.
    Times are those of `time.monotonic`, which all processes of one machine share.
    """

    requests: int
    billed: int
    most_in_flight: int
    by_status: Mapping[str, int]
    sent: list[tuple[str, float]]
    asked: list[tuple[str, float]]

    @property
    def repeats(self) -> int:
        """How many replies were paid for an item that had been paid for before."""
        return self.billed - len({item for item, _ in self.sent})


@dataclass
class Books:
    """What all connections share."""

    latency_seconds: float
    faults: Mapping[str, float]
    requests_per_minute: int
    draw: random.Random

    def __post_init__(self) -> None:
        self.requests = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.by_status: Counter[str] = Counter()
        self.sent: list[tuple[str, float]] = []
        self.asked: list[tuple[str, float]] = []
        self.replies: dict[bytes, bytes] = {}
        self.left = max(1.0, self.requests_per_minute / _MINUTE_SECONDS)
        self.filled_at = time.monotonic()

    def bill(self) -> bytes:
        """Return the bill as JSON."""
        fields = (self.requests, len(self.sent), self.most_in_flight, self.by_status, self.sent, self.asked)
        return json.dumps(dict(zip(Bill._fields, fields, strict=True))).encode()

    def has_room(self) -> bool:
        """Take one from the bucket that fills evenly and holds one second's worth, as real ones do."""
        now = time.monotonic()
        per_second = self.requests_per_minute / _MINUTE_SECONDS
        self.left = min(max(1.0, per_second), self.left + (now - self.filled_at) * per_second)
        self.filled_at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True

    def limits(self) -> bytes:
        """Return the headers that state the limit of requests."""
        if not self.requests_per_minute:
            return b""
        per_second = self.requests_per_minute / _MINUTE_SECONDS
        full_in = max(0.0, per_second - self.left) / per_second
        reported = f"{self.requests_per_minute}|{int(self.left)}|{full_in:.3f}s".split("|")
        names = ("limit-requests", "remaining-requests", "reset-requests")
        return "".join(f"x-ratelimit-{n}: {v}\r\n" for n, v in zip(names, reported, strict=True)).encode()

    def fault(self) -> str:
        """Return the fault that befalls this request, or nothing."""
        if self.requests_per_minute and not self.has_room():
            return "429"
        at = self.draw.random()
        for kind, share in self.faults.items():
            at -= share
            if at < 0:
                return kind
        return ""


class RatingProtocol(asyncio.Protocol):
    """One connection, kept alive; requests on it come one after another."""

    def __init__(self, books: Books, loop: asyncio.AbstractEventLoop) -> None:
        self._books = books
        self._loop = loop
        self._buffer = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while True:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            reported = _LENGTH.search(self._buffer, 0, end)
            whole = end + 4 + (int(reported[1]) if reported else 0)
            if len(self._buffer) < whole:
                return
            request, self._buffer = self._buffer[:whole], self._buffer[whole:]
            self._take(request, end)

    def _take(self, request: bytes, end: int) -> None:
        books = self._books
        if request.startswith(b"GET"):
            return self._write(b"200", books.bill() if b"/bill" in request[:20] else b'{"data": []}')
        books.requests += 1
        books.in_flight += 1
        books.most_in_flight = max(books.most_in_flight, books.in_flight)
        found = _ITEM_ID.search(request, end)
        item = found[1] if found else b""
        books.asked.append((item.decode(), time.monotonic()))
        fault = books.fault()
        soon = fault in ("429", "500")
        # A refusal comes at once, as it does from a gateway.
        self._loop.call_later(0 if soon else books.latency_seconds, self._answer, request, item, fault)
        return None

    def _answer(self, request: bytes, item: bytes, fault: str) -> None:
        books = self._books
        books.in_flight -= 1
        books.by_status[fault or "200"] += 1
        if self._transport.is_closing() or fault == "drop":
            self._transport.abort()
        elif fault in ("429", "500"):
            self._write(fault.encode(), b'{"error": {"message": "scripted", "code": "scripted"}}')
        else:
            reply = self._reply(request).replace(b"@@", item)
            self._write(b"200", reply[: len(reply) // 2] if fault == "badjson" else reply)
            books.sent.append((item.decode(), time.monotonic()))

    def _reply(self, request: bytes) -> bytes:
        schema = request[request.find(b'"response_format"') :]
        known = self._books.replies.get(schema)
        if known is None:
            body = json.loads(request[request.find(b"\r\n\r\n") + 4 :])
            known = self._books.replies[schema] = _completion(body)
        return known

    def _write(self, status: bytes, body: bytes) -> None:
        head = b"HTTP/1.1 %b OK\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n"
        self._transport.write(head % (status, self._books.limits(), len(body)) + body)


def _completion(body: Mapping[str, Any]) -> bytes:
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    text = json.dumps(_fill(schema)) if schema else '{"item_id": "@@"}'
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = {"id": "c-1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
    return json.dumps({**whole, "usage": _TOKENS}).encode()


def _fill(schema: Mapping[str, Any], name: str = "", definitions: Mapping[str, Any] | None = None) -> Any:
    definitions = schema.get("$defs", {}) if definitions is None else definitions
    schema = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "enum" in schema:
        return schema["enum"][len(schema["enum"]) // 2]
    if schema["type"] == "object":
        return {name: _fill(part, name, definitions) for name, part in schema["properties"].items()}
    if schema["type"] == "integer":
        return schema.get("minimum", 3)
    return "@@" if name == "item_id" else "The counsellor listens, names the feeling and leaves the choice."


@dataclass
class RatingServer:
    """A server that runs in a process of its own."""

    base_url: str
    process: subprocess.Popen[str]

    def bill(self) -> Bill:
        """Return what was billed so far."""
        url = self.base_url.removesuffix("/v1") + "/bill"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310
            reported = json.load(answer)
        times = {name: [(item, at) for item, at in reported[name]] for name in ("sent", "asked")}
        return Bill(**{**reported, **times})


@contextmanager
def serving(
    latency_seconds: float = 0.1, faults: Mapping[str, float] | None = None, requests_per_minute: int = 0, seed: int = 0
) -> Generator[RatingServer]:
    """Yield a server in its own process; it is killed afterwards."""
    reported = ",".join(f"{kind}={share}" for kind, share in (faults or {}).items())
    options = [f"--latency-seconds={latency_seconds}", f"--faults={reported}", f"--seed={seed}"]
    command = [sys.executable, __file__, *options, f"--requests-per-minute={requests_per_minute}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield RatingServer(f"http://127.0.0.1:{port}/v1", process)
        finally:
            process.kill()


async def _serve(books: Books) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: RatingProtocol(books, loop), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def _shares(reported: str) -> dict[str, float]:
    pairs = (part.split("=") for part in reported.split(",") if part)
    return {kind: float(share) for kind, share in pairs if kind in KINDS}


def main() -> None:
    """Serve until killed; the port is the first line of output."""
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--latency-seconds", type=float, default=0.1)
    parser.add_argument("--faults", default="", help="shares, as in 429=0.05,500=0.03,drop=0.02,badjson=0.02")
    parser.add_argument("--requests-per-minute", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)  # noqa: S311
    books = Books(options.latency_seconds, _shares(options.faults), options.requests_per_minute, draw)
    with suppress(ImportError):
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(books))


if __name__ == "__main__":
    main()
