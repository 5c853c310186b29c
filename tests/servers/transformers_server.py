"""A folder of weights -> `transformers serve` on 127.0.0.1: a chat server of which no line is ours.

It listens on a port that the system picks, loads nothing from the Hub, and is killed when the block ends:

    with serving(folder, log) as server: ... server.base_url ... server.requests()
"""

import re
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from miniature import SHAPE
from psychocounsel.config.schema import TinyLlamaShape

START_LIMIT_SECONDS = 120.0
# A judge's prompt must fit, letter by letter where no merge was learned.
LONG_SHAPE = TinyLlamaShape.model_validate({**SHAPE, "max_positions": 16384})
WIDE_SHAPE = LONG_SHAPE.model_copy(update={"hidden_size": 128})
"""vLLM on a CPU takes no heads of 8 dimensions."""
_LISTENING = re.compile(r"running on (http://127\.0\.0\.1:\d+)")
_ANSWERED = '"POST /v1/chat/completions '


@dataclass(frozen=True)
class TransformersServer:
    """A running server; `model` is the folder that it serves, and the name by which it is asked."""

    model: str
    base_url: str
    log: Path

    def requests(self) -> int:
        """Return how many chat completions it was asked for, refused ones included, by its own log."""
        return self.reported().count(_ANSWERED)

    def reported(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")


def make_untrained_llama(texts: Iterable[str], folder: Path, shape: TinyLlamaShape = LONG_SHAPE) -> None:
    """Save a tiny Llama 3 that has learned nothing: it babbles, and ends where chance has it."""
    import torch  # seconds, and quick tests import this module

    from psychocounsel.training.runtime import quiet_libraries
    from psychocounsel.training.tiny_llama import build_model, train_tokenizer

    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        tokenizer = train_tokenizer(texts, shape.vocab_size, shape.max_positions)
        tokenizer.save_pretrained(folder)
        build_model(shape, tokenizer).save_pretrained(folder)


@contextmanager
def serving(folder: Path, log: Path, environment: Mapping[str, str]) -> Generator[TransformersServer]:
    """Yield the server once it has loaded the model and listens."""
    command = [Path(sys.executable).with_name("transformers"), "serve", folder]
    options = ["--host", "127.0.0.1", "--port", "0", "--device", "cpu", "--default-seed", "0"]
    with log.open("wb") as reported:
        child = subprocess.Popen([*command, *options], stdout=reported, stderr=reported, env=environment)
    try:
        yield TransformersServer(str(folder), f"{_address(child, log)}/v1", log)
    finally:
        child.kill()
        child.wait()


def _address(child: subprocess.Popen[bytes], log: Path) -> str:
    """Return where the server listens; it says so only after the model is loaded."""
    deadline = time.monotonic() + START_LIMIT_SECONDS
    while time.monotonic() < deadline:
        ended = child.poll() is not None
        reported = log.read_text(encoding="utf-8", errors="replace")
        if listening := _LISTENING.search(reported):
            return listening[1]
        assert not ended, f"the server ended with {child.returncode}:\n{reported}"
        time.sleep(0.05)
    raise AssertionError(f"no server after {START_LIMIT_SECONDS:g} s:\n{log.read_text(errors='replace')}")
