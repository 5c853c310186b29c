"""Send rating requests through bare sockets: the upper bound for any client.

python ceiling.py REQUESTS.jsonl BASE_URL IN_FLIGHT WORK
"""

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"Content-Length: (\d+)")


async def work(payloads: Iterator[bytes], host: str, port: int) -> int:
    """Send one payload after another on one connection; return how many were answered."""
    reader, writer = await asyncio.open_connection(host, port)
    answered = 0
    for payload in payloads:
        writer.write(payload)
        head = await reader.readuntil(b"\r\n\r\n")
        found = _LENGTH.search(head)
        await reader.readexactly(int(found[1]) if found else 0)
        answered += head.startswith(b"HTTP/1.1 200")
    writer.close()
    return answered


async def run_requests(bodies: list[bytes], base_url: str, in_flight: int) -> int:
    """Return how many requests were answered."""
    parts = urlsplit(base_url)
    head = f"POST {parts.path}/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: %d\r\n\r\n"
    payloads = iter([head.encode() % len(body) + body for body in bodies])
    workers = (work(payloads, parts.hostname or "", parts.port or 80) for _ in range(in_flight))
    return sum(await asyncio.gather(*workers))


def main() -> None:
    """Send every request once and print the seconds."""
    path, base_url, in_flight, _ = sys.argv[1:5]
    bodies = Path(path).read_bytes().splitlines()
    started = time.monotonic()
    answered = uvloop.run(run_requests(bodies, base_url, int(in_flight)))
    print(json.dumps({"seconds": time.monotonic() - started, "answered": answered}))


if __name__ == "__main__":
    main()
