"""A page in headless Chromium, driven over the DevTools protocol on two pipes: no package, no open port."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _chromium() -> str | None:
    """Return the browser, if there is one that starts; some distributions have a stub of the name."""
    for name in ("chromium", "google-chrome", "chrome"):
        found = shutil.which(name)
        if found and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    return None


CHROMIUM = _chromium()
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)
_SILENCE = 120.0
_KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


class Page:
    """An open page. `errors` are console errors and exceptions; `requests` what it fetched beside itself."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer, self._number, self._session = b"", 0, ""
        self.address = ""
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.has_loaded = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the browser's answer to a command; https://chromedevtools.github.io/devtools-protocol lists them."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        os.write(
            self._to, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            got = self._receive()
            if got.get("id") == number:
                assert "error" not in got, got["error"]
                return got["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            assert select.select([self._from], [], [], _SILENCE)[0], "the browser hangs"
            part = os.read(self._from, 1 << 16)
            assert part, "the browser ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        got = json.loads(line)
        match got.get("method"), got.get("params"):
            case "Runtime.exceptionThrown", {"exceptionDetails": details}:
                self.errors.append(json.dumps(details))
            case "Runtime.consoleAPICalled", {"type": "error" | "assert", "args": words}:
                self.errors.append(json.dumps(words))
            case "Log.entryAdded", {"entry": {"level": "error"} as entry}:
                self.errors.append(json.dumps(entry))
            case "Network.requestWillBeSent", {"request": {"url": url}} if url.partition("#")[0] != self.address:
                self.requests.append(url)
            case "Page.loadEventFired", _:
                self.has_loaded = True
            case _:
                pass
        return got

    def open(self, path: Path) -> None:
        """Load a file and wait until it has loaded."""
        self.address = path.resolve().as_uri()
        self._load("Page.navigate", url=self.address)

    def reload(self) -> None:
        """Load the page again and wait until it has loaded."""
        self._load("Page.reload")

    def _load(self, method: str, **parameters: Any) -> None:
        self.has_loaded = False
        self.call(method, **parameters)
        while not self.has_loaded:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or of the promise that it gives."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"still not true: {expression}"
            time.sleep(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, such as `Enter`, `ArrowDown` or `j`."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = _KEYS.get(key, ord(key[0].upper()))
        pressed = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 * shift}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )


@contextmanager
def open_page(path: Path, profile: Path) -> Generator[Page]:
    """Open a file in a new browser; `profile` is an empty folder for it."""
    assert CHROMIUM is not None
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    flags = " ".join(_FLAGS)
    # With this flag Chromium reads commands from descriptor 3 and writes to 4.
    command = f'exec "$0" {flags} --remote-debugging-pipe --user-data-dir="$1" 3<&{their_in} 4>&{their_out}'
    with subprocess.Popen(
        ["bash", "-c", command, CHROMIUM, str(profile)],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as browser:
        os.close(their_in)
        os.close(their_out)
        page = Page(our_out, our_in)
        try:
            target = page.call("Target.createTarget", url="about:blank")["targetId"]
            page._session = page.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.call(f"{domain}.enable")
            page.open(path)
            yield page
        finally:
            browser.terminate()
            os.close(our_out)
            os.close(our_in)
