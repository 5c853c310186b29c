import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from psychocounsel.corpus import parallel as parallel_map
from psychocounsel.corpus.parallel import SideBySide

TEXTS = [f"text {number}" for number in range(1_000)]


def with_pid(text: str) -> tuple[str, int]:
    return text.upper(), os.getpid()


def open_with_pid() -> Callable[[str], tuple[str, int]]:
    return with_pid


def here(text: str) -> tuple[str, int]:
    return text.upper(), 0


def dies(text: str) -> tuple[str, int]:
    if text == "text 900":
        os._exit(7)
    return text.upper(), os.getpid()


def open_dying() -> Callable[[str], tuple[str, int]]:
    return dies


@pytest.fixture(autouse=True)
def few_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_map, "FIRST_TEXTS", 100)
    monkeypatch.setattr(parallel_map, "CHUNK_TEXTS", 30)


def test_many_texts_are_shared_out_and_come_in_order() -> None:
    made = list(SideBySide(here, open_with_pid, workers=2).each(iter(TEXTS)))
    assert [text for text, _ in made] == [text.upper() for text in TEXTS]
    assert {pid for _, pid in made[:100]} == {0}
    assert {pid for _, pid in made[100:]}.isdisjoint({0, os.getpid()})


def test_few_texts_start_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_map, "ProcessPoolExecutor", None)
    made = list(SideBySide(here, open_with_pid, workers=2).each(TEXTS[:100]))
    assert made == [(text.upper(), 0) for text in TEXTS[:100]]
    made = list(SideBySide(here, open_with_pid, workers=0).each(TEXTS))
    assert len(made) == len(TEXTS)


def test_no_more_is_read_ahead_than_workers_can_take() -> None:
    read: list[str] = []

    def texts():
        for text in TEXTS:
            read.append(text)
            yield text

    each = SideBySide(here, open_with_pid, workers=2).each(texts())
    for _ in range(101):
        next(each)
    assert len(read) <= 100 + 1 + 30 * (2 * 3 + 1)
    each.close()


def test_a_worker_that_dies_costs_no_text() -> None:
    made = list(SideBySide(here, open_dying, workers=2).each(TEXTS))
    assert [text for text, _ in made] == [text.upper() for text in TEXTS]


PARENT = """
import os, sys, time
sys.path[:0] = {path!r}
from psychocounsel.corpus import parallel as parallel_map
from test_side_by_side import open_with_pid, here
if __name__ == "__main__":
    parallel_map.FIRST_TEXTS = parallel_map.CHUNK_TEXTS = 1
    def texts():
        yield from map(str, range(10))
        print("ready", flush=True)
        time.sleep(60)
    for text, pid in parallel_map.SideBySide(here, open_with_pid, workers=1).each(texts()):
        if pid:
            print(pid, flush=True)
"""


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(path=[str(Path(__file__).parent), *sys.path]), encoding="utf-8")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        worker = next(int(line) for line in parent.stdout if line.strip().isdigit())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(worker):
        time.sleep(0.02)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
