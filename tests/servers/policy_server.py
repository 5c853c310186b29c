"""A server that answers as the weights it was started with: `policy_server.py PORT NAME [--stubborn | --broken]`.

An answer repeats the client's last word, is cut at the token limit where that word is "long", and empty where it is
"rain"; to "filtered" the server sends a part of one, and it takes no request that ends with "much". A stubborn server
ignores SIGTERM, a broken one ends before it listens; DELETE ends it after its answer.
"""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": self.name, "object": "model"}]})

    def do_DELETE(self) -> None:
        self._send({})
        os._exit(1)

    def do_POST(self) -> None:
        asked: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == self.name
        word = asked["messages"][-1]["content"].split()[-1]
        if word == "much":
            self._send({"error": {"message": "the prompt is longer than the context"}}, 400)
            return
        reason = {"long": "length", "filtered": "content_filter"}.get(word, "stop")
        choice = {
            "index": 0,
            "finish_reason": reason,
            "message": {"role": "assistant", "content": "" if word == "rain" else f"You said {word}"},
        }
        usage = {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
        sys.stdout.write(f"answered {word}\n")
        sys.stdout.flush()
        self._send({"id": "1", "object": "chat.completion", "model": self.name, "choices": [choice], "usage": usage})

    def _send(self, body: Any, status: int = 200) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


if __name__ == "__main__":
    if "--broken" in sys.argv:
        sys.exit("out of memory, say")
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Handler.name = sys.argv[2]
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
